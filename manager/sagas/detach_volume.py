"""Take a volume from a host. Kind `volume.detach`.

    attached --mark--> detaching --close--> none
    any failure: attached as before

1. mark     state detaching                                                    undo: attached
2. detach   on the host, which refuses while something there has it open      undo: ready there again
3. close    row closed, event                                                  PIVOT
4. tell     (force) a host that has not confirmed is to look at once at what it may still use

With force (params `is_forced`) a host that is away, or fails, is not waited for: it may still be writing to the volume,
and closes it itself as soon as it hears from the manager, for it is no longer in its list. Not of a thin pool: a host
that has it active destroys all its volumes when another one activates it, so it must answer, or be revoked.
"""

from typing import Any

from manager.agents import offline_fault
from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.attach_volume import note
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import attachments, volumes
from manager.store.attachments import AttachmentRow
from manager.store.pool import Connection
from manager.volume_place import place_in, spec_in
from schemas.events import EventType
from schemas.problems import Problem, ProblemCode
from schemas.volume_rpc import AttachedAt, AttachMode, AttachVolume, DetachVolume
from schemas.volumes import AttachmentState


async def mark(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    row = await volumes.lock(connection, run.params["volume_id"])
    mine = await _mine(connection, run)
    if row is None or mine is None:
        host = run.registry.host_name(run.params["worker"])
        raise Refused.because(ProblemCode.NOT_FOUND, f"{run.params['name']} is not attached to {host}")
    await attachments.set_state(connection, mine.id, AttachmentState.DETACHING)
    return {"attachment_id": mine.id, "epoch": mine.epoch, "mode": mine.mode.value}


async def unmark(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    await attachments.set_state(connection, run.output["attachment_id"], AttachmentState.ATTACHED)


async def detach(run: Run) -> dict[str, Any]:
    params, worker = run.params, run.params["worker"]
    is_online = bool(run.online([worker]))
    may_do_without = params["is_forced"] and not place_in(params).is_one_host
    if not is_online and may_do_without:
        return {"is_confirmed": False}
    if not is_online:
        host = run.registry.host_name(worker)
        if params["is_forced"]:
            raise StepFailed(refuse_without_answer(place_in(params).backend, host))
        raise StepFailed(
            Problem(
                code=ProblemCode.NO_AGENT,
                detail=f"{host} is offline and may still be writing to {params['name']}: wait for it, or make sure that it is off"
                " and detach with force. If it is running after all while another host writes, the volume's data is destroyed",
                faults=(offline_fault(host),),
            )
        )
    command = DetachVolume(
        **run.head(worker, "detach_volume"),
        volume_id=params["volume_id"],
        spec=spec_in(params),
        epoch=run.output["epoch"],
    )
    try:
        await moves.ask(run, worker, command, type(None))
    except (StepFailed, TryAgain):
        if not may_do_without:
            raise
        return {"is_confirmed": False}
    return {"is_confirmed": True}


def refuse_without_answer(backend: str, host: str) -> Problem:
    """Of a thin pool that a host which is away may have active."""
    return Problem(
        code=ProblemCode.WRONG_STATE,
        detail=f"the thin pool of {backend} may be active on {host} still, and a second host that uses it destroys all of its"
        f" volumes: make sure that {host} is off and revoke it, which frees what it holds",
    )


async def attach_again(run: Run) -> None:
    """Where the host does not answer, the row says what is its right; another attach of it gives the path again."""
    params, worker = run.params, run.params["worker"]
    if not run.online([worker]):
        return
    command = AttachVolume(
        **run.head(worker, "attach_volume"),
        volume_id=params["volume_id"],
        spec=spec_in(params),
        epoch=run.output["epoch"],
        mode=AttachMode(run.output["mode"]),
    )
    try:
        await moves.ask(run, worker, command, AttachedAt)
    except (StepFailed, TryAgain):
        return


async def close(connection: Connection, run: Run, gained: dict[str, Any]) -> dict[str, Any]:
    mine = await _mine(connection, run)
    is_confirmed = bool({**run.output, **gained}["is_confirmed"])
    if mine is not None:
        await attachments.close(connection, mine.id)
        await note(connection, run, EventType.ATTACHMENT_CLOSED, mine, None, is_confirmed=is_confirmed)
    return {"result": {"is_confirmed": is_confirmed}}


async def tell(run: Run) -> dict[str, Any]:
    """One that is there but did not obey would else go on until it syncs by itself, in some minutes."""
    if not run.output["is_confirmed"]:
        await run.agents.nudge(run.params["worker"])
    return {}


async def _mine(connection: Connection, run: Run) -> AttachmentRow | None:
    held = await attachments.of_volume(connection, run.params["volume_id"])
    return next((each for each in held if each.host_id == run.params["worker"]), None)


DETACH_VOLUME = SagaDef(
    kind="volume.detach",
    version=1,
    steps=(
        Step("mark", do_sql=mark, undo_sql=unmark),
        Step("detach", do=detach, undo=attach_again),
        Step("close", do_sql=close),
        Step("tell", do=tell, applies=lambda params: bool(params["is_forced"])),
    ),
    pivot="close",
    # An LV is looked for and activated by LVM tools, which take seconds each on a slow host, behind a probe perhaps.
    budget_s=60.0,
)
