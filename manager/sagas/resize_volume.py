"""Give a volume another size. Kind `volume.resize`.

    ready --finish--> ready with the new size
    any failure: the old size, on the storage too; what a shrink cut off is zeros then

1. begin    refused while something is under way on it, and for a shrink while it is attached
2. resize   on the storage                                       undo: the old size
3. blank    (grow) what was added reads as zeros
4. finish   row, event                                           PIVOT
"""

import contextlib
from typing import Any

from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.create_volume import refused
from manager.sagas.delete_volume import stale
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import attachments, events, volumes
from manager.store.pool import Connection
from manager.store.volumes import VolumeRow
from manager.volume_place import place_in, spec_in
from schemas.events import EventType
from schemas.problems import ProblemCode
from schemas.volume_rpc import AttachMode, BlankVolume, ResizeVolume, VolumeFormat, VolumeSpec
from schemas.volumes import VolumeState


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    params = run.params
    row = await usable(connection, run)
    if params["if_match"] is not None and row.version != params["if_match"]:
        raise stale(row.name, row.version, params["if_match"])
    held = await attachments.of_volume(connection, row.id)
    is_shrink = params["size_bytes"] < row.size_bytes
    others = [a for a in held if a.host_id != params["worker"] or a.mode is AttachMode.RO]
    if held and (is_shrink or others or row.format is VolumeFormat.QCOW2):
        host = run.registry.host_name(held[0].host_id)
        raise Refused.because(
            ProblemCode.VOLUME_IN_USE,
            f"{row.name} is attached to {host}: detach it first"
            " (only a raw volume that one host writes to can grow while it is attached)",
            blockers=tuple({"type": "attachment", "id": a.id, "name": run.registry.host_name(a.host_id)} for a in held),
        )
    return {"before": volumes.shown(row)}


async def usable(connection: Connection, run: Run) -> VolumeRow:
    """The saga's volume, ready, with nothing else under way on it, locked. Raises Refused."""
    row = await volumes.lock(connection, run.params["volume_id"])
    if row is None:
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no volume {run.params['name']}")
    if row.state is not VolumeState.READY or row.locator != run.params["spec"]["locator"]:
        raise Refused.because(ProblemCode.WRONG_STATE, f"{row.name} is {row.state.value}, or was moved a moment ago")
    if other := await volumes.other_operation(connection, row.id, run.row.id):
        raise refused(moves.refuse_busy(row, other))
    return row


async def resize(run: Run) -> dict[str, Any]:
    await _resize(run, spec_in(run.params), run.params["size_bytes"], may_shrink=run.params["may_shrink"])
    return {}


async def blank(run: Run) -> dict[str, Any]:
    params, worker, place = run.params, run.params["worker"], place_in(run.params)
    before = spec_in(params)
    spec = VolumeSpec(locator=before.locator, format=before.format, size_bytes=params["size_bytes"])

    def look() -> BlankVolume:
        head = run.head(worker, "blank_volume")
        return BlankVolume(
            **head, volume_id=params["volume_id"], spec=spec, from_bytes=before.size_bytes, wait_ms=moves.LOOK_MS
        )

    await moves.work(run, worker, look, places=(place,))
    return {}


async def back(run: Run) -> dict[str, Any]:
    """A host that is away is not waited for: what it may have done the drift report shows, and the next resize mends."""
    spec = spec_in(run.params)
    wanted = run.params["size_bytes"]
    if run.online([run.params["worker"]]):
        with contextlib.suppress(StepFailed, TryAgain):
            await _resize(
                run,
                VolumeSpec(locator=spec.locator, format=spec.format, size_bytes=wanted),
                spec.size_bytes,
                may_shrink=wanted > spec.size_bytes,
            )
    return {"is_unanswered": moves.is_unanswered(run)}


async def _resize(run: Run, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool) -> None:
    worker, place = run.params["worker"], place_in(run.params)
    command = ResizeVolume(
        **run.head(worker, "resize_volume"),
        volume_id=run.params["volume_id"],
        spec=spec,
        size_bytes=size_bytes,
        may_shrink=may_shrink,
    )
    await moves.ask(run, worker, command, type(None), place=place)


async def finish(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    row = await volumes.set_size(connection, run.params["volume_id"], run.params["size_bytes"])
    await moves.let_go(connection, run, place_in(run.params))
    await events.append(
        connection,
        type=EventType.VOLUME_RESIZED,
        collection="volumes",
        subject_id=row.id,
        actor=run.row.actor,
        request_id=run.row.request_id,
        data={"name": row.name, "before": run.output["before"], "after": volumes.shown(row)},
    )
    return {"result": {"volume_id": row.id}}


async def unhold(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    if not run.output.get("is_unanswered"):
        await moves.let_go(connection, run, place_in(run.params))


RESIZE_VOLUME = SagaDef(
    kind="volume.resize",
    version=1,
    steps=(
        Step("begin", do_sql=begin, undo_sql=unhold),
        Step("resize", do=resize, undo=back),
        Step(
            "blank",
            do=blank,
            is_long=True,
            applies=lambda params: params["size_bytes"] > spec_in(params).size_bytes,
        ),
        Step("finish", do_sql=finish),
    ),
    pivot="finish",
    budget_s=60.0,
)
