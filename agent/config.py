"""agent.toml and the environment, decoded once into a frozen struct; the state folder and its lock."""

import fcntl
import json
import os
import time
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from agent.errors import ConfigError
from agent.private_files import make_private_dir, write_private

ENV_PREFIX = "STOWAGE_AGENT_"

T = TypeVar("T")

_Seconds = Annotated[float, Meta(ge=0.05, le=86_400)]


class Intervals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds. The manager calls a host silent after three beats, and an observation old after three probes."""

    beat_s: _Seconds = 5.0
    probe_s: _Seconds = 30.0
    reconcile_s: _Seconds = 300.0
    probe_timeout_s: _Seconds = 10.0


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this host is, and whom it listens to. Written by `join`; it holds no secret.

    manager_key: hex of the manager's Ed25519 key; only credentials that it signed are opened.
    nats_ca: file with the CA of the bus's servers, where they speak TLS with a certificate of a CA of their own.
    reserved_dirs: absolute paths of folders that no local_file backend may be in or around, beside the agent's own.
    image_dirs: absolute paths of folders whose files a volume may be filled from; they may be mounts.
    """

    host_id: str
    host_name: str
    fleet_id: str
    manager_url: str
    nats_urls: tuple[str, ...]
    manager_key: str
    nats_ca: str = ""
    reserved_dirs: tuple[str, ...] = ()
    image_dirs: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    intervals: Intervals = Intervals()


#: A VM's process of another user passes through on its way to a disk; it lists nothing, and every file in there is 0600.
_PASSABLE = 0o711
#: Seconds; no volume waits so long for the image that was fetched for it.
_MAX_DOWNLOAD_AGE_S = 24 * 3600.0


class StateDir:
    """The places below the state folder, all of them on a local file system."""

    def __init__(self, root: Path) -> None:
        # Links resolved: the kernel's list of mounts, in which we look for ours, knows no others.
        self.root = root.resolve()
        self.config_file = self.root / "agent.toml"
        self.identity_file = self.root / "identity.nk"
        self.sealing_file = self.root / "sealing.key"
        self.bus_creds_file = self.root / "bus.creds"
        self.journal_file = self.root / "journal.db"
        self.lock_file = self.root / "lock"
        self.credentials = self.root / "credentials"
        self.backends = self.root / "backends"
        self.mounts = self.root / "mounts"
        self.trials = self.root / "trials"
        self.downloads = self.root / "downloads"
        self.run = self.root / "run"
        self.works = self.run / "works"

    def prepare(self) -> None:
        """Every folder exists with mode 0700, but that everybody may pass to the mounts."""
        make_private_dir(self.root, _PASSABLE)
        for folder in (self.credentials, self.backends, self.trials, self.downloads, self.run, self.works):
            make_private_dir(folder)
        make_private_dir(self.mounts, _PASSABLE)

    def remove_left_overs(self) -> None:
        """What an earlier life of the agent left half done is gone: short-lived secrets, the progress of works, downloads that were
        not finished, and those that no volume was ever filled from. So too of uploads.
        """
        old = time.time() - _MAX_DOWNLOAD_AGE_S
        finished = (*self.downloads.glob("*.image"), *self.downloads.glob("*.upload"))
        whole = {path for path in finished if path.stat().st_mtime > old}
        for left_over in {*self.run.iterdir(), *self.works.iterdir(), *self.downloads.iterdir()} - {self.works} - whole:
            left_over.unlink(missing_ok=True)

    def refuse_foreign(self) -> None:
        """Raises ConfigError when the folder holds other things than an agent's: we would change its mode."""
        ours = (self.config_file, self.identity_file, self.lock_file, self.credentials)
        if self.root.exists() and any(self.root.iterdir()) and not any(path.exists() for path in ours):
            raise ConfigError(f"{self.root} holds other files; give the agent a folder of its own with --state-dir")

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """No other agent uses this state folder meanwhile. Raises ConfigError if one does.

        The kernel drops the lock when the process dies, however it dies.
        """
        make_private_dir(self.root, _PASSABLE)
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another agent uses {self.root}; stop it, or give this one its own --state-dir"
                ) from error
            yield
        finally:
            os.close(descriptor)


def load_config(
    state: StateDir,
    environ: Mapping[str, str],
    nats_urls: tuple[str, ...] = (),
    reserve: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
) -> AgentConfig:
    """The file, with the environment laid over it and `nats_urls` (command line) over that; `reserve` (command line) is added
    to its reserved_dirs, and all of them are resolved, as a backend's folder is before it is held against them; `images` to its
    image_dirs, which are resolved when a file is looked for in them, for a mount may hang.

    Raises ConfigError, which names the file or variable, the key and the remedy.
    """
    try:
        raw = tomllib.loads(state.config_file.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{state.config_file} is missing; join this host first: python -m agent join URL TOKEN"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{state.config_file} is not TOML: {error}") from error
    config = _convert(raw, AgentConfig, str(state.config_file))
    reserved = tuple(map(os.path.realpath, (*config.reserved_dirs, *reserve)))
    image_dirs = (*config.image_dirs, *images)
    if relative := [folder for folder in image_dirs if not os.path.isabs(folder)]:
        raise ConfigError(
            f"image_dirs of {state.config_file}, or --images: {relative[0]!r} is no absolute path; give one"
        )
    config = msgspec.structs.replace(config, reserved_dirs=reserved, image_dirs=image_dirs)
    return with_environment(config, environ, nats_urls)


def with_environment(config: AgentConfig, environ: Mapping[str, str], nats_urls: tuple[str, ...] = ()) -> AgentConfig:
    """The variables: NATS_URLS (with commas between) and {BEAT,PROBE,RECONCILE,PROBE_TIMEOUT}_S, after the prefix."""
    given = {key.removeprefix(ENV_PREFIX): value for key, value in environ.items() if key.startswith(ENV_PREFIX)}
    urls_given = tuple(filter(None, given.pop("NATS_URLS", "").split(",")))
    urls = nats_urls or urls_given or config.nats_urls
    intervals = msgspec.structs.asdict(config.intervals)
    for name in intervals:
        if name.upper() in given:
            intervals[name] = given.pop(name.upper())
    if given:
        known = ", ".join(ENV_PREFIX + name for name in ("NATS_URLS", *(name.upper() for name in intervals)))
        raise ConfigError(f"{ENV_PREFIX}{min(given)} is not known; known are {known}")
    checked = _convert(intervals, Intervals, f"{ENV_PREFIX}…_S", strict=False)
    return msgspec.structs.replace(config, nats_urls=urls, intervals=checked)


def save_config(state: StateDir, config: AgentConfig) -> None:
    """The file holds the config; intervals are left to their defaults, so that an upgrade may change those."""
    names = ("host_id", "host_name", "fleet_id", "manager_url", "nats_urls", "manager_key")
    lines = [
        "# Written by `stowage-agent join`; a table [intervals] may be added.",
        *(f"{name} = {_toml(getattr(config, name))}" for name in names),
        "",
        "[labels]",
        *(f"{_toml(key)} = {_toml(value)}" for key, value in sorted(config.labels.items())),
    ]
    write_private(state.config_file, "\n".join([*lines, ""]).encode())


def _toml(value: str | tuple[str, ...]) -> str:
    """A TOML basic string or array of them: JSON's escapes are TOML's, but for DEL."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(_toml, value))}]"


def _convert(raw: Any, type_: type[T], where: str, *, strict: bool = True) -> T:
    try:
        return msgspec.convert(raw, type_, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error
