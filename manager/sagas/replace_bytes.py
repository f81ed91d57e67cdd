"""Give a volume other bytes: its own in another place, or those of one of its snapshots. Kinds `volume.migrate`, `volume.revert`.

    the volume's row: old incarnation --switch--> new incarnation
    any failure before: the volume as it was; what the storage does not give back stays as `transient` until it does

1. begin     the volume stands still, detached; a transient row bears the new incarnation     undo: that row gone
2. make      the new incarnation exists                                                     undo: it is gone
3. fill      with the volume's bytes, or the snapshot's
4. compare   (migrate) read anew from both storages, byte for byte
5. switch    the rows exchange their incarnations, event                                    PIVOT
6. erase     the old incarnation; where that fails, it stays as transient, and is tried again by itself

Params: `place` is the new backend, `old_place` the volume's; `spec` the old incarnation, `new_spec` the new one.
"""

from typing import Any

import asyncpg

from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.create_volume import fill_incarnation, hold_source, make_incarnation, source_in, takes_none
from manager.sagas.resize_volume import usable
from manager.sagas.steps import Run, SagaDef, Step
from manager.store import attachments, events, volumes
from manager.store.pool import Connection
from manager.volume_place import place_in, source_place_in, spec_in
from schemas.events import EventType
from schemas.problems import ProblemCode
from schemas.volume_rpc import CompareVolume, VolumeSource, Wipe
from schemas.volumes import VolumeRole

_MIGRATED = {
    VolumeRole.VOLUME: ("volumes", EventType.VOLUME_MIGRATED),
    VolumeRole.IMAGE: ("images", EventType.IMAGE_MIGRATED),
    VolumeRole.SNAPSHOT: ("snapshots", EventType.SNAPSHOT_MIGRATED),
}


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    params, place, new = run.params, place_in(run.params), spec_in(run.params, "new_spec")
    row = await usable(connection, run)
    if held := await attachments.of_volume(connection, row.id):
        host = run.registry.host_name(held[0].host_id)
        raise Refused.because(
            ProblemCode.VOLUME_IN_USE,
            f"{row.name} is attached to {host}: detach it first",
            blockers=({"type": "attachment", "id": held[0].id, "name": host},),
        )
    if params["source_id"] is not None:
        await hold_source(connection, run)
    try:
        await volumes.insert(
            connection,
            volume_id=params["transient_id"],
            name=row.name,
            backend_id=place.backend_id,
            size_bytes=new.size_bytes,
            role=VolumeRole.TRANSIENT,
            locator=new.locator,
            format=new.format,
            host_id=params["host_id"],
            worker_id=params["worker"],
        )
    except asyncpg.CheckViolationError:
        raise takes_none(place) from None
    return {"before": volumes.shown(row)}


async def release(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    is_left = bool(run.output.get("is_left"))
    await moves.free_or_leave(connection, run, run.params["transient_id"], place_in(run.params), is_left=is_left)


async def make(run: Run) -> dict[str, Any]:
    return await make_incarnation(run, run.params["volume_id"], spec_in(run.params, "new_spec"))


async def unmake(run: Run) -> dict[str, Any]:
    params = run.params
    is_gone = await moves.take_away(
        run,
        params["worker"],
        spec_in(params, "new_spec"),
        place_in(params),
        params["volume_id"],
        has_bytes="is_filled" in run.output,
    )
    return {"is_left": not is_gone}


async def fill(run: Run) -> dict[str, Any]:
    return await fill_incarnation(run, run.params["volume_id"], spec_in(run.params, "new_spec"))


async def compare(run: Run) -> dict[str, Any]:
    params, worker, place = run.params, run.params["worker"], place_in(run.params)
    source = source_in(run)
    assert isinstance(source, VolumeSource), "a migration's source is the volume itself"

    def look() -> CompareVolume:
        head = run.head(worker, "compare_volume", backend_id=place.backend_id)
        spec = spec_in(params, "new_spec")
        return CompareVolume(**head, volume_id=params["volume_id"], spec=spec, source=source, wait_ms=moves.LOOK_MS)

    await moves.work(run, worker, look, places=(place, source_place_in(params)))
    return {}


async def switch(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    params = run.params
    new = spec_in(params, "new_spec")
    try:
        row = await volumes.exchange(connection, params["volume_id"], params["transient_id"], size_bytes=new.size_bytes)
    except asyncpg.CheckViolationError:
        raise takes_none(place_in(params)) from None
    collection, type_ = _MIGRATED[row.role]
    if params["is_revert"]:
        type_ = EventType.VOLUME_REVERTED
    await events.append(
        connection,
        type=type_,
        collection=collection,
        subject_id=row.id,
        actor=run.row.actor,
        request_id=run.row.request_id,
        data={
            "name": row.name,
            "before": run.output["before"],
            "after": volumes.shown(row),
            **({"snapshot_id": params["source_id"]} if params["is_revert"] else {}),
        },
    )
    return {"result": {"volume_id": row.id}}


async def erase(run: Run) -> dict[str, Any]:
    """The volume has its new bytes whatever becomes of this."""
    params, place, spec = run.params, place_in(run.params, "old_place"), spec_in(run.params)
    if place.wipe is not Wipe.NONE:
        # Wiping takes its time, and the volume is the user's again: the transient's own deletion does it.
        return {"is_old_left": True, "is_unanswered": False}
    is_gone = await moves.take_away(run, params["worker"], spec, place, params["volume_id"])
    return {"is_old_left": not is_gone, "is_unanswered": not is_gone and moves.is_unanswered(run)}


async def forget(connection: Connection, run: Run, gained: dict[str, Any]) -> None:
    params, output = run.params, {**run.output, **gained}
    if output["is_old_left"]:
        await moves.loosen(connection, params["transient_id"], place_in(params, "old_place"))
    else:
        await volumes.forget(connection, params["transient_id"])
    old, places = place_in(params, "old_place"), [place_in(params), source_place_in(params)]
    if output["is_unanswered"]:
        # Of a revert all of them are one place.
        places = [place for place in places if place is not None and place.lane != old.lane]
    else:
        places.append(old)
    await moves.let_go(connection, run, *places)


_STEPS = (
    Step("begin", do_sql=begin, undo_sql=release),
    Step("make", do=make, undo=unmake),
    Step("fill", do=fill, is_long=True),
    Step("compare", do=compare, is_long=True, applies=lambda params: not params["is_revert"]),
    Step("switch", do_sql=switch),
    Step("erase", do=erase, do_sql=forget),
)

MIGRATE_VOLUME = SagaDef(kind="volume.migrate", version=1, steps=_STEPS, pivot="switch", budget_s=120.0)
REVERT_VOLUME = SagaDef(kind="volume.revert", version=1, steps=_STEPS, pivot="switch", budget_s=120.0)
