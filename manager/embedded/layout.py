"""Where everything lies in the data folder of a `stowage up`, and how its files come about."""

import json
import os
import pwd
import re
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manager.embedded.errors import StartError

_LABEL_MAX = 63
#: What a first start makes before it holds `lock.children`. A disk of one's own comes with lost+found.
_BEFORE_LOCK = frozenset(("postgres", "nats", "keys", "log", "agents", "images", "lock", "lost+found"))


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Outside any checkout, so that a `git clean` deletes no disk."""
    if named := environment.get("STOWAGE_DATA_DIR"):
        return Path(named)
    return Path("/var/lib/stowage") if os.geteuid() == 0 else Path.home() / ".local" / "share" / "stowage"


@dataclass(frozen=True)
class Layout:
    """Names in one data folder."""

    data: Path

    @property
    def postgres(self) -> Path:
        return self.data / "postgres"

    @property
    def postgres_password(self) -> Path:
        return self.data / "postgres.password"

    @property
    def nats(self) -> Path:
        return self.data / "nats"

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def admin_token(self) -> Path:
        return self.manager("manager") / "admin.token"

    @property
    def volumes(self) -> Path:
        return self.data / "volumes"

    @property
    def images(self) -> Path:
        """Where a person puts files that volumes are to be filled from."""
        return self.data / "images"

    @property
    def first_start_done(self) -> Path:
        return self.data / "first_start_done"

    @property
    def ready(self) -> Path:
        return self.data / "ready.json"

    @property
    def logs(self) -> Path:
        return self.data / "log"

    def manager(self, name: str) -> Path:
        return self.data / name

    def agent(self, name: str) -> Path:
        return self.data / "agents" / name

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def reserved(self) -> list[Path]:
        """What no backend may be in or around: all but `volumes`, and whatever a person puts beside it."""
        managers = [path.parent for path in self.data.glob("manager*/config.toml")]
        return [self.postgres, self.nats, self.keys, self.logs, self.images, self.data / "agents", *managers]

    @property
    def own_log(self) -> Path:
        """What a detached `stowage up` says itself."""
        return self.log("up")

    def create(self) -> None:
        """The folders exist. Ours alone, but that PostgreSQL's user passes through the data folder when we are root, and
        the user of a VM to the agents' mounts.

        A data folder that exists is left as it is: whoever made it decided who may pass. Raises StartError, also when
        another user could change what lies in it: whoever does that leads us, root perhaps, where he likes.
        """
        try:
            # The mode at once: what a kill leaves here is left as it is by the next start.
            mode = 0o711 if os.geteuid() == 0 else 0o700
            try:
                self.data.mkdir(mode=mode, parents=True)
            except FileExistsError:
                _refuse_foreign(self.data)
            else:
                self.data.chmod(mode)  # whatever the umask
            for folder in (self.postgres, self.nats, self.keys, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
            agents = self.data / "agents"
            agents.mkdir(mode=0o700, exist_ok=True)
            agents.chmod(0o711)
            if not self.images.exists():
                self.images.mkdir(mode=0o755)
                self.images.chmod(0o755)
        except OSError as error:
            raise StartError(
                f"cannot make the data folder {self.data}: {error.strerror}; choose one with --data-dir"
            ) from error

    def rotate_logs(self) -> None:
        """Every child's log begins empty; the last run's is beside it as `.1`."""
        for log in self.logs.glob("*.log"):
            if log != self.own_log:  # we may be writing to it already
                rotate(log)


def rotate(log: Path) -> None:
    """The log is gone; what it held is beside it as `.1`."""
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))


def agent_names(count: int, hostname: str | None = None) -> list[str]:
    """The names of this machine's agents: its own, and then with -2, -3 …; all of them DNS labels."""
    text = (hostname or socket.gethostname()).partition(".")[0].lower()
    label = re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "host"
    return [_label(label, "" if number == 1 else f"-{number}") for number in range(1, count + 1)]


def manager_names(count: int) -> list[str]:
    return ["manager", *(f"manager-{number}" for number in range(2, count + 1))]


def write_private(path: Path, text: str) -> None:
    """The file holds exactly the text, 0600, at every moment either the old or the new."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def toml(values: Mapping[str, str | Sequence[str]]) -> str:
    """A flat TOML document; JSON's strings and lists of strings are TOML's too."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def _refuse_foreign(folder: Path) -> None:
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise StartError(f"{folder} is no folder; choose one with --data-dir")
    if found.st_uid != os.geteuid():
        raise StartError(
            f"the data folder {folder} belongs to {_user(found.st_uid)}, and this runs as {_user(os.geteuid())}: run it as"
            f" {_user(found.st_uid)}, make the folder yours (chown {_user(os.geteuid())} {folder}), or choose another with"
            " --data-dir"
        )
    if os.geteuid() == 0 and found.st_mode & 0o022:
        raise StartError(f"other users may write in the data folder {folder}; forbid it: chmod go-w {folder}")
    if not _may_be_ours(folder):
        raise StartError(f"{folder} holds other things and no data of ours; choose an empty folder with --data-dir")


def _may_be_ours(folder: Path) -> bool:
    """Empty, used before, or left by a first start that was killed before it took the lock: then `postgres` is empty still.

    A `postgres` alone is no sign of ours, and what is in it would be given to another user.
    """
    names = {path.name for path in folder.iterdir()}
    if "lock.children" in names:
        return True
    return names <= _BEFORE_LOCK and not ("postgres" in names and any((folder / "postgres").iterdir()))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _label(text: str, suffix: str) -> str:
    return text[: _LABEL_MAX - len(suffix)].rstrip("-") + suffix
