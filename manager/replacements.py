"""The params of an operation that gives a volume other bytes: of a migration, or of a return to a snapshot."""

from typing import Any

import msgspec

from manager.errors import Refused
from manager.placement import Placement, Seat
from manager.store.backends import BackendRow
from manager.store.volumes import VolumeRow
from manager.volume_place import new_locator
from schemas.ids import new_id
from schemas.kinds import KINDS
from schemas.problems import FieldError
from schemas.volume_rpc import VolumeFormat, VolumeSource, VolumeSpec


async def migration_params(
    placement: Placement, row: VolumeRow, backend: str, host: str | None, *, if_match: int | None = None
) -> dict[str, Any]:
    """For `volume.migrate` to that backend. if_match: the only version that it is meant for. Raises Refused."""
    await placement.refuse_unready(row)
    target, source = placement.backend(backend), placement.backend(row.backend_id)
    if target.id == source.id and (KINDS[target.kind].is_shared or host is None):
        raise Refused.for_fields([FieldError(pointer="/backend", detail=f"is where {row.name} lies already")])
    if target.id == source.id:
        words = "no host sees the folder of another one; migrate by way of a shared backend"
        raise Refused.for_fields([FieldError(pointer="/host", detail=words)])
    formats = KINDS[target.kind].formats
    format_ = row.format if row.format in formats else formats[0]
    seat = await placement.seat_new(target, host, row.size_bytes, beside=[(source, row)])
    return replacement_params(placement, row, target, seat, format_, row, if_match=if_match)


def replacement_params(
    placement: Placement,
    row: VolumeRow,
    target: BackendRow,
    seat: Seat,
    format: VolumeFormat,
    source: VolumeRow,
    *,
    if_match: int | None = None,
) -> dict[str, Any]:
    """source: whose bytes the volume is to have: its own, or its snapshot's."""
    is_revert = source.id != row.id
    place = placement.place(target)
    new = VolumeSpec(locator=new_locator(), format=format, size_bytes=place.rounded(source.size_bytes))
    can_share = source.backend_id == target.id and source.format is format
    return {
        "volume_id": row.id,
        "name": row.name,
        "backend_id": place.backend_id,
        "place": msgspec.to_builtins(place),
        "old_place": msgspec.to_builtins(placement.place(placement.backend(row.backend_id))),
        "spec": msgspec.to_builtins(row.spec),
        "new_spec": msgspec.to_builtins(new),
        "worker": seat.worker.id,
        "host_id": seat.host_id,
        "transient_id": new_id(),
        "source": msgspec.to_builtins(as_source(source)),
        "source_id": source.id if is_revert else None,
        "source_place": source_place(placement, source, target),
        "origin": msgspec.to_builtins(source.spec) if can_share else None,
        "is_instant": False,
        "is_revert": is_revert,
        "if_match": if_match,
    }


def source_place(placement: Placement, source: VolumeRow, target: BackendRow) -> dict[str, Any] | None:
    """Where the source lies, as params carry it; None: on the target."""
    if source.backend_id == target.id:
        return None
    place: dict[str, Any] = msgspec.to_builtins(placement.place_of(source))
    return place


def as_source(row: VolumeRow) -> VolumeSource:
    return VolumeSource(spec=row.spec, backend_id=row.backend_id)


def key_of(row: VolumeRow) -> str:
    """One operation at a time changes a volume."""
    return f"volume:{row.id}"


def subject_of(row: VolumeRow) -> str:
    return f"{row.role.value}s/{row.id}"
