"""Make a volume, an image or a snapshot: empty, or with what a source holds. Kind `volume.create`.

    creating --finish--> ready
    creating --any failure--> gone; what the storage does not give back stays as `transient` until it does

1. reserve   row in state creating; the source stands still until the end      undo: row gone
2. prepare   a path, an address, an upload: fetched, its digest checked, its size seen   undo: what was fetched is gone
3. make      the incarnation exists; storage that can shares the source's blocks   undo: it is gone
4. fill      the source's content, else zeros; at its size, on stable storage
5. forget    an upload: the host keeps nothing of what it was sent, for nobody needs to fill from it again
6. finish    state, event                                                        PIVOT
"""

import logging
from typing import Any

import asyncpg
import msgspec

from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import attachments, events, volumes
from manager.store import operations as journal
from manager.store.pool import Connection
from manager.volume_place import Place, place_in, source_place_in
from schemas.events import EventType
from schemas.problems import FieldError, Problem, ProblemCode
from schemas.volume_rpc import (
    AttachMode,
    FileSource,
    FillVolume,
    ForgetUpload,
    Made,
    MakeVolume,
    PrepareSource,
    Source,
    VolumeFormat,
    VolumeSpec,
)
from schemas.volumes import VolumeRole, VolumeState

log = logging.getLogger(__name__)

_COLLECTIONS = {VolumeRole.VOLUME: "volumes", VolumeRole.IMAGE: "images", VolumeRole.SNAPSHOT: "snapshots"}
_CREATED = {
    VolumeRole.VOLUME: EventType.VOLUME_CREATED,
    VolumeRole.IMAGE: EventType.IMAGE_CREATED,
    VolumeRole.SNAPSHOT: EventType.SNAPSHOT_CREATED,
}


async def reserve(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    params, place = run.params, place_in(run.params)
    if params["source_id"] is not None:
        await hold_source(connection, run)
    try:
        is_free = await volumes.insert(
            connection,
            volume_id=params["volume_id"],
            name=params["name"],
            backend_id=place.backend_id,
            size_bytes=params["size_bytes"],
            role=VolumeRole(params["role"]),
            locator=params["locator"],
            format=VolumeFormat(params["format"]),
            parent_id=params["parent_id"],
            host_id=params["host_id"],
            worker_id=params["worker"],
            source=params["source_words"],
            labels=params["labels"],
        )
    except asyncpg.CheckViolationError:
        raise takes_none(place) from None
    if not is_free:
        raise name_taken(params["role"], params["name"])


async def hold_source(connection: Connection, run: Run) -> None:
    """The source is as it was when the operation was asked for, and nothing changes it until that has ended. Raises Refused."""
    params = run.params
    row = await volumes.lock(connection, params["source_id"])
    if row is None or row.state is not VolumeState.READY or row.locator != params["source"]["spec"]["locator"]:
        raise Refused.because(
            ProblemCode.WRONG_STATE, f"the source of {params['name']} was changed a moment ago; try again"
        )
    if other := await volumes.changing_operation(connection, row.id, run.row.id):
        raise refused(moves.refuse_busy(row, other))
    writers = [a for a in await attachments.of_volume(connection, row.id) if a.mode is AttachMode.RW]
    if writers and not (params["is_instant"] and writers[0].host_id == params["worker"]):
        host = run.registry.host_name(writers[0].host_id)
        raise Refused.because(
            ProblemCode.VOLUME_IN_USE,
            f"{row.name} is attached to {host}, which may be writing to it: detach it there first",
            blockers=({"type": "attachment", "id": writers[0].id, "name": host},),
        )


async def release(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    await journal.forget_query(connection, run.row.id)
    is_left = bool(run.output.get("is_left"))
    if is_left:
        # Of an image the row does not know it yet, and without one nothing can be said of it to a host.
        await volumes.set_size(connection, run.params["volume_id"], _spec(run).size_bytes)
    await moves.free_or_leave(connection, run, run.params["volume_id"], place_in(run.params), is_left=is_left)


async def prepare(run: Run) -> dict[str, Any]:
    source = source_in(run)
    assert isinstance(source, FileSource), "the step applies to these alone"
    worker, place = run.params["worker"], place_in(run.params)

    def look() -> PrepareSource:
        head = run.head(worker, "prepare_source")
        return PrepareSource(**head, volume_id=run.params["volume_id"], source=source, wait_ms=moves.LOOK_MS)

    report = await moves.work(run, worker, look)
    asked = run.params["size_bytes"]
    if 0 < asked < report.size_bytes:
        detail = f"{run.params['name']} cannot have {asked} bytes, for its source has {report.size_bytes}"
        raise StepFailed(
            Problem(
                code=ProblemCode.INVALID_FIELD,
                detail=detail,
                errors=(FieldError(pointer="/size_bytes", detail=f"must be at least {report.size_bytes}"),),
            )
        )
    return {"size_bytes": asked or place.rounded(report.size_bytes)}


async def take_away(run: Run) -> dict[str, Any]:
    """The undo of what was fetched and made."""
    place, params = place_in(run.params), run.params
    is_gone = await moves.take_away(
        run,
        params["worker"],
        _spec(run),
        place,
        params["volume_id"],
        was_sent_before=_comes_from(params, "upload"),
        has_bytes="is_filled" in run.output,
    )
    return {"is_left": not is_gone}


async def make(run: Run) -> dict[str, Any]:
    return await make_incarnation(run, run.params["volume_id"], _spec(run))


async def make_incarnation(run: Run, volume_id: str, spec: VolumeSpec) -> dict[str, Any]:
    """{"is_filled"}: whether it holds the origin's content already."""
    worker, place = run.params["worker"], place_in(run.params)
    command = MakeVolume(
        **run.head(worker, "make_volume", backend_id=place.backend_id),
        volume_id=volume_id,
        spec=spec,
        origin=msgspec.convert(run.params["origin"], VolumeSpec | None),
        is_instant=run.params["is_instant"],
    )
    made = await moves.ask(run, worker, command, Made, place=place)
    return {"is_filled": made.is_filled}


async def fill(run: Run) -> dict[str, Any]:
    return await fill_incarnation(run, run.params["volume_id"], _spec(run))


async def fill_incarnation(run: Run, volume_id: str, spec: VolumeSpec) -> dict[str, Any]:
    if run.output["is_filled"]:
        return {}
    worker, place = run.params["worker"], place_in(run.params)

    def look() -> FillVolume:
        head = run.head(worker, "fill_volume", backend_id=place.backend_id)
        return FillVolume(**head, volume_id=volume_id, spec=spec, source=source_in(run), wait_ms=moves.LOOK_MS)

    await moves.work(run, worker, look, places=(place, source_place_in(run.params)))
    return {}


async def forget(run: Run) -> dict[str, Any]:
    """A step of its own: until the journal says that it was filled, it may have to be filled once more.

    What a host cannot do now, its agent does by itself some time later.
    """
    worker, place = run.params["worker"], place_in(run.params)
    head = run.head(worker, "forget_upload", backend_id=place.backend_id)
    try:
        await moves.ask(run, worker, ForgetUpload(**head, volume_id=run.params["volume_id"]), type(None))
    except (TryAgain, StepFailed) as error:
        log.warning("what was uploaded stays a while", extra={"host_id": worker, "reason": str(error)})
    return {}


async def finish(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    params, role = run.params, VolumeRole(run.params["role"])
    await journal.forget_query(connection, run.row.id)
    row = await volumes.finish(
        connection, params["volume_id"], size_bytes=_spec(run).size_bytes, sha256=params["sha256"] or None
    )
    await moves.let_go(connection, run, place_in(params), source_place_in(params))
    await events.append(
        connection,
        type=_CREATED[role],
        collection=_COLLECTIONS[role],
        subject_id=row.id,
        actor=run.row.actor,
        request_id=run.row.request_id,
        data={"name": row.name, "before": None, "after": volumes.shown(row)},
    )
    return {"result": {"volume_id": row.id}}


def source_in(run: Run) -> Source | None:
    source: Source | None = msgspec.convert(run.params["source"], Source | None)
    return source


def refused(problem: Problem) -> Refused:
    return Refused(problem)


def takes_none(place: Place) -> Refused:
    return Refused.because(
        ProblemCode.WRONG_STATE,
        f"nothing new comes to {place.backend} now: set its state to ready, or choose another backend",
    )


def name_taken(role: str, name: str) -> Refused:
    return Refused.because(
        ProblemCode.NAME_TAKEN, f"there is {'an' if role == 'image' else 'a'} {role} named {name} already"
    )


def _comes_from(params: dict[str, Any], *sorts: str) -> bool:
    return params["source"] is not None and params["source"]["from"] in sorts


def _spec(run: Run) -> VolumeSpec:
    size = run.output.get("size_bytes") or run.params["size_bytes"]
    return VolumeSpec(
        locator=run.params["locator"], format=VolumeFormat(run.params["format"]), size_bytes=size or _LEAST_BYTES
    )


#: Of what is taken away before its size was seen.
_LEAST_BYTES = 512

CREATE_VOLUME = SagaDef(
    kind="volume.create",
    version=1,
    steps=(
        Step("reserve", do_sql=reserve, undo_sql=release),
        Step(
            "prepare",
            do=prepare,
            undo=take_away,
            is_long=True,
            applies=lambda params: _comes_from(params, "path", "url", "upload"),
        ),
        Step("make", do=make, undo=take_away),
        Step("fill", do=fill, is_long=True),
        Step("forget", do=forget, applies=lambda params: _comes_from(params, "upload")),
        Step("finish", do_sql=finish),
    ),
    pivot="finish",
    budget_s=120.0,
)
