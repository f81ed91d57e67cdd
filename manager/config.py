"""The manager's configuration: one TOML file and `STOWAGE_*` from the environment, decoded once, unknown keys refused."""

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from manager.errors import ConfigError


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`keys_dir` holds the fleet's keys and is shared by all replicas; `state_dir` is this replica's own.

    replica: its name, which no other may have; the machine's where none is given.
    nats_urls: as the manager reaches the bus. agent_nats_urls: as agents do, where that differs.
    tls_cert and tls_key: PEM files; without them the API is plain HTTP, which agents accept on loopback only.
    """

    database_url: str
    nats_urls: tuple[str, ...]
    keys_dir: Path
    state_dir: Path
    listen: str = "127.0.0.1:8080"
    #: The API as hosts and people reach it, for the command to join; empty: the address that is bound.
    public_url: str = ""
    replica: str = msgspec.field(default_factory=socket.gethostname)
    agent_nats_urls: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    nats_tls_ca: Path | None = None
    #: Seconds without a word after which a host counts as offline; three of the agents' beats.
    host_silent_s: float = 15.0
    #: Seconds after which an observation is no longer believed; three of the agents' probes and a margin.
    observation_stale_s: float = 100.0
    #: Seconds a replica owns a saga without renewing; a dead replica's sagas are taken over after it.
    lease_s: float = 8.0
    #: The stream of events, as the first relay makes it; one that exists keeps what its operator gave it. At least an hour,
    #: for a duplicate window of ten minutes has room in it, and 16 MiB.
    event_stream_replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    event_stream_max_age_s: Annotated[float, msgspec.Meta(ge=3600)] = 24 * 3600.0
    event_stream_max_bytes: Annotated[int, msgspec.Meta(ge=16 * 1024**2)] = 1024**3

    @property
    def listen_address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of the file with the environment's words over it.

    Raises ConfigError naming the file and the key.
    """
    try:
        raw: dict[str, object] = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not even UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for field in msgspec.structs.fields(Config):
        word = environment.get("STOWAGE_" + field.name.upper())
        if word is not None:
            raw[field.name] = word.split(",") if field.name.endswith("_urls") else word
    try:
        config = msgspec.convert(raw, Config, strict=False, dec_hook=_decode)
        _ = config.listen_address
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: listen must be HOST:PORT, not {raw.get('listen')!r}") from error
    if config.public_url and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", config.public_url):
        raise ConfigError(f"{path}: public_url must be http(s)://HOST[:PORT][/PATH], not {config.public_url!r}")
    if not config.replica:
        raise ConfigError(f"{path}: replica must not be empty")
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError(f"{path}: tls_cert and tls_key go together")
    return config


def _decode(type_: type, value: object) -> object:
    if type_ is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("must be a path")
