"""Give a volume another size. Kind `volume.resize`.

    ready --finish--> ready with the new size
    any failure: the old size, on the storage too; what a shrink cut off is zeros then, and what it did not cut off is there

1. begin    refused while something is under way on it, and for a shrink while it is attached
2. resize   on the storage (to another size than it has)          undo: the old size; what that added reads as zeros
3. blank    what was added reads as zeros; what is to be cut off is wiped, by the backend's policy
4. finish   (to the size that it has) the storage is set right; row, event      PIVOT
5. settle   the storage is told that it was blanked

A storage whose blocks hold others' bytes marks what a resize adds until it is told (agent/lv_volumes.py): wherever this ends,
nobody gets the volume with them in it, and a resize to any size, also to its own, goes on from there.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.create_volume import refused
from manager.sagas.delete_volume import stale
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import attachments, events, hosts, volumes
from manager.store.pool import Connection
from manager.store.volumes import VolumeRow
from manager.volume_place import Place, place_in, spec_in, volume_params
from schemas.events import EventType
from schemas.faults import FaultCode
from schemas.kinds import KINDS
from schemas.problems import ProblemCode
from schemas.volume_rpc import AttachMode, BlankVolume, ResizeVolume, VolumeFormat, VolumeSpec, WorkReport
from schemas.volumes import VolumeState

log = logging.getLogger(__name__)

#: Looks in a row, on the way back, that told nothing.
_MOST_FAILURES = 3
#: Between two tries to tell the storage, seconds.
_PAUSE_S = 1.0
#: With these a host that was asked for a resize has changed nothing.
_REFUSALS = (FaultCode.WRONG_SIZE, FaultCode.UNSUPPORTED)


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    params = run.params
    row = await usable(connection, run)
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
    # Until the host has answered, for one that is silent may cut or blank it still when another one has it.
    await volumes.set_worker(connection, row.id, params["worker"])
    return {"before": volumes.shown(row)}


async def usable(connection: Connection, run: Run) -> VolumeRow:
    """The saga's volume, ready, of the version that was asked for, with nothing else under way on it, locked. Raises Refused."""
    row = await volumes.lock(connection, run.params["volume_id"])
    if row is None:
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no volume {run.params['name']}")
    expected = run.params.get("if_match")
    if expected is not None and row.version != expected:
        raise stale(row.name, row.version, expected)
    if row.state is not VolumeState.READY or row.spec != spec_in(run.params):
        raise Refused.because(
            ProblemCode.WRONG_STATE,
            f"{row.name} is {row.state.value}, or was resized or moved a moment ago: read it again, and repeat what is still wanted",
        )
    if other := await volumes.other_operation(connection, row.id, run.row.id):
        raise refused(moves.refuse_busy(row, other))
    if row.worker_id not in (None, run.params["worker"]) and await hosts.is_live(connection, str(row.worker_id)):
        host = run.registry.host_name(str(row.worker_id))
        raise Refused.because(
            ProblemCode.WRONG_STATE,
            f"{host} has not answered since a resize of {row.name} that failed, and may be at it still:"
            f" wait until it has, or make sure that {host} is off and revoke it",
        )
    return row


async def resize(run: Run) -> dict[str, Any]:
    await _resize(run, spec_in(run.params), run.params["size_bytes"], may_shrink=run.params["may_shrink"])
    return {"is_resized": True}


async def back(run: Run) -> dict[str, Any]:
    """A host that is away is not waited for: what it may have done the drift report shows, and the next resize mends. Nor is what
    could not be blanked tried for ever, for a volume that is marked so is handed out to nobody.
    """
    before, wanted = spec_in(run.params).size_bytes, run.params["size_bytes"]
    # Of bytes that bear no mark nobody knows whether this added them, or they are of a time that a restored database forgot.
    may_shrink = wanted > before and not KINDS[place_in(run.params).kind].marks_growth
    if run.online([run.params["worker"]]) and not _was_refused(run):
        with contextlib.suppress(StepFailed, TryAgain):
            await _resize(run, _sized(run, wanted), before, may_shrink=may_shrink)
            if await _blank_again(run, before):
                await _resize(run, _sized(run, before), before, what="settled")
    return {"is_unanswered": moves.is_unanswered(run)}


async def blank(run: Run) -> dict[str, Any]:
    """{"is_blanked"}: whether there was anything to blank."""
    worker, wanted = run.params["worker"], run.params["size_bytes"]
    report = await moves.work(run, worker, lambda: _look(run, wanted), places=(place_in(run.params),))
    return {"is_blanked": report.total_bytes > 0}


async def mend(run: Run) -> dict[str, Any]:
    if not _is_other(run.params):
        wanted = run.params["size_bytes"]
        await _resize(run, _sized(run, wanted), wanted, may_shrink=run.params["may_shrink"])
    return {}


async def settle(run: Run) -> dict[str, Any]:
    """Tried for as long as an agent takes to start again; then the mark stays, and a resize to its size has to come before its use."""
    if not run.output.get("is_blanked"):
        return {}
    wanted, ends_at = run.params["size_bytes"], time.monotonic() + moves.PATIENCE_S
    while True:
        try:
            await _resize(run, _sized(run, wanted), wanted)
            return {}
        except StepFailed as error:
            reason, is_over = str(error), True
        except TryAgain as error:
            reason, is_over = str(error), time.monotonic() > ends_at
        if is_over:
            log.warning("volume stays marked", extra={"volume_id": run.params["volume_id"], "reason": reason})
            return {}
        await asyncio.sleep(_PAUSE_S)


async def _blank_again(run: Run, size_bytes: int) -> bool:
    """Whether there was anything to blank. Not by moves.work, which ends where somebody has asked for the operation's end: of one that
    was cancelled somebody has.
    """
    failures = 0
    while True:
        try:
            report = await moves.ask(run, run.params["worker"], _look(run, size_bytes), WorkReport)
        except TryAgain:
            failures += 1
            if failures == _MOST_FAILURES:
                raise
        else:
            failures = 0
            if report.is_done:
                return report.total_bytes > 0
        await asyncio.sleep(moves.PAUSE_S)


def _was_refused(run: Run) -> bool:
    """Whether the host has said that it left the volume as it was."""
    faults = run.row.error.faults if run.row.error else ()
    return "is_resized" not in run.output and any(fault.code in _REFUSALS for fault in faults)


def _is_other(params: Mapping[str, Any]) -> bool:
    """Whether another size is asked for than the volume has."""
    return bool(params["size_bytes"] != spec_in(params).size_bytes)


def _look(run: Run, size_bytes: int) -> BlankVolume:
    """size_bytes: what the volume is to have; what it has in common with the other size is not blanked."""
    from_bytes = min(spec_in(run.params).size_bytes, run.params["size_bytes"])
    head = run.head(run.params["worker"], "blank_volume")
    spec = _sized(run, size_bytes)
    volume_id = run.params["volume_id"]
    return BlankVolume(**head, volume_id=volume_id, spec=spec, from_bytes=from_bytes, wait_ms=moves.LOOK_MS)


def _sized(run: Run, size_bytes: int) -> VolumeSpec:
    spec = spec_in(run.params)
    return VolumeSpec(locator=spec.locator, format=spec.format, size_bytes=size_bytes)


async def _resize(run: Run, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool = False, what: str = "") -> None:
    """what: tells it from another one of the same step, which the host would answer with its answer to that."""
    worker, place = run.params["worker"], place_in(run.params)
    command = ResizeVolume(
        **run.head(worker, f"resize_volume {what}".strip()),
        volume_id=run.params["volume_id"],
        spec=spec,
        size_bytes=size_bytes,
        may_shrink=may_shrink,
    )
    await moves.ask(run, worker, command, type(None), place=place)


async def finish(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    volume_id = run.params["volume_id"]
    if _is_other(run.params):
        row = await volumes.set_size(connection, volume_id, run.params["size_bytes"])
        await events.append(
            connection,
            type=EventType.VOLUME_RESIZED,
            collection="volumes",
            subject_id=volume_id,
            actor=run.row.actor,
            request_id=run.row.request_id,
            data={"name": row.name, "before": run.output["before"], "after": volumes.shown(row)},
        )
    await volumes.set_worker(connection, volume_id, None)
    await moves.let_go(connection, run, place_in(run.params))
    return {"result": {"volume_id": volume_id}}


async def unhold(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    if not run.output.get("is_unanswered"):
        await volumes.set_worker(connection, run.params["volume_id"], None)
        await moves.let_go(connection, run, place_in(run.params))


def resize_params(
    row: VolumeRow, place: Place, worker: str, size_bytes: int, *, may_shrink: bool = False, if_match: int | None = None
) -> dict[str, Any]:
    """size_bytes: as the place rounds it; its own size: what an earlier resize has left is set right."""
    asked = {"size_bytes": size_bytes, "may_shrink": may_shrink, "if_match": if_match}
    return {**volume_params(row, place, worker), **asked}


RESIZE_VOLUME = SagaDef(
    kind="volume.resize",
    version=1,
    steps=(
        Step("begin", do_sql=begin, undo_sql=unhold),
        Step("resize", do=resize, undo=back, applies=_is_other),
        Step("blank", do=blank, is_long=True),
        Step("finish", do=mend, do_sql=finish),
        Step("settle", do=settle, applies=_is_other),
    ),
    pivot="finish",
    budget_s=60.0,
)
