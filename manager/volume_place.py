"""A backend as the place of volumes: what an operation's params carry of it, and what its kind says of work there."""

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from manager.store.volumes import VolumeRow
from schemas.kinds import KINDS
from schemas.volume_rpc import VolumeSpec, Wipe


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A backend as a saga's params carry it."""

    backend_id: str
    backend: str
    kind: str
    config: dict[str, Any]

    @property
    def lane(self) -> str | None:
        """Where one command at a time may change something; None where many may."""
        return place_name(self.kind, self.config)

    @property
    def is_one_host(self) -> bool:
        """Whether one host at a time can use any volume of it."""
        field = KINDS[self.kind].one_host_when
        return field is not None and bool(self.config[field])

    def rounded(self, size_bytes: int) -> int:
        """The least size that a volume of so many bytes can have there."""
        grain = KINDS[self.kind].grain_bytes
        return -(-size_bytes // grain) * grain

    @property
    def wipe(self) -> Wipe:
        field = KINDS[self.kind].wipe_field
        return Wipe(self.config[field]) if field else Wipe.NONE


def volume_params(row: VolumeRow, place: Place, worker: str | None) -> dict[str, Any]:
    """What the params of every operation on a volume that is there begin with. worker: id of the host that does it."""
    return {
        "volume_id": row.id,
        "name": row.name,
        "backend_id": place.backend_id,
        "place": msgspec.to_builtins(place),
        "spec": msgspec.to_builtins(row.spec),
        "worker": worker,
    }


def place_in(params: Mapping[str, Any], key: str = "place") -> Place:
    return msgspec.convert(params[key], Place)


def source_place_in(params: Mapping[str, Any]) -> Place | None:
    """Where the source volume lies, if that is another backend."""
    return msgspec.convert(params.get("source_place"), Place | None)


def spec_in(params: Mapping[str, Any], key: str = "spec") -> VolumeSpec:
    return msgspec.convert(params[key], VolumeSpec)


def place_name(kind: str, config: Mapping[str, Any]) -> str | None:
    """The place of a backend whose metadata one host at a time may change; None where all may at once."""
    fields = KINDS[kind].marks_alone_at
    return " ".join((kind, *(str(config[field]) for field in fields))) if fields else None


def new_locator() -> str:
    """A name on a storage that nothing has had before."""
    return secrets.token_hex(16)
