"""Moves that the volume sagas share: one command to one host, long work that is looked at until it is done, bytes that are taken away.

All commands of such a saga go to one host, chosen at its start (params `worker`): another may be working still.
Where a VG is changed, one command at a time goes there in the whole fleet (store/leases.py).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from manager.agents import offline_fault, silent_fault
from manager.errors import AgentError, AgentFailed, AgentOffline, StaleFence
from manager.sagas.moves import MOST_FAILURES
from manager.sagas.steps import Run, StepFailed, TryAgain
from manager.store import leases, volumes
from manager.store.pool import Connection, transaction
from manager.store.volumes import VolumeRow
from manager.volume_place import Place, source_place_in
from schemas.agent_rpc import AnyCommand
from schemas.faults import FaultCode
from schemas.problems import Problem, ProblemCode
from schemas.volume_rpc import EraseVolume, ResizeVolume, VolumeSpec, Wipe, WipeVolume, WorkReport

ResultT = TypeVar("ResultT")

#: How long a host may stay silent about long work before the saga gives up: an agent that is started again is back within, also
#: one of `stowage up`, whose supervisor waits up to 120 s before it starts again what has failed often.
PATIENCE_S = 180.0
#: How long one look at long work may take on the host.
LOOK_MS = 2000
#: How long a saga may stand in line in one step before its budget runs: with many before it, that they take their time is no failure.
LINE_S = 300.0
#: Where a tool may still be in the kernel, beyond any signal: what it had begun may come to the storage when that is back.
_MAY_GO_ON = (FaultCode.TIMED_OUT, FaultCode.HUNG)
#: Between two looks, for an agent that answers at once.
PAUSE_S = 0.1
_GIVE_UP = 3
#: Faults that say what a caller asked for, not what a backend lacks.
_ASKED = {
    FaultCode.UNSUPPORTED: ProblemCode.UNSUPPORTED,
    FaultCode.IN_USE: ProblemCode.VOLUME_IN_USE,
    FaultCode.FENCED_OFF: ProblemCode.VOLUME_IN_USE,
}


async def ask(
    run: Run, host_id: str, command: AnyCommand, result: type[ResultT], *, place: Place | None = None
) -> ResultT:
    """The host's answer. place: the command changes something there, so it waits for its turn and for the lease.

    Raises StepFailed for what will not get better, TryAgain for what is unknown or may, StaleFence.
    """
    if place is None or place.lane is None:
        return await _ask(run, host_id, command, result)
    began = time.monotonic()
    patience_s = max(1.0, run.left_s + LINE_S - run.lined_up_s)
    async with run.lanes.turn(place.lane, patience_s) as is_my_turn:
        run.stand_still(time.monotonic() - began, LINE_S)
        if not is_my_turn:
            raise TryAgain(await _waited(run, host_id, place))
        await _take_lease(run, host_id, place)
        try:
            answer = await _ask(run, host_id, command, result, has_place=True)
        except StaleFence:
            await _give_lease(run, host_id, place)
            raise
        except (StepFailed, TryAgain):
            if host_id in run.heard:
                await _give_lease(run, host_id, place)
            raise
        await _give_lease(run, host_id, place)
        return answer


async def work(
    run: Run, host_id: str, look: Callable[[], AnyCommand], *, places: Sequence[Place | None] = ()
) -> WorkReport:
    """The report of long work that is done. look: a fresh command that begins it or looks at it.
    places: where it has volumes open; of those that one host at a time can use, the lease lasts until the saga's end.

    Raises StepFailed when it failed, was cancelled, or nobody has heard of the host (or had the lease) for PATIENCE_S; Fenced.
    """
    heard_at = time.monotonic()
    report = WorkReport(is_done=False)
    while True:
        is_asked = False
        try:
            for place in places:
                if place is not None and place.is_one_host:
                    await _take_lease(run, host_id, place)
            is_asked = True
            report = await _ask(run, host_id, look(), WorkReport)
        except TryAgain as error:
            if is_asked and host_id in run.heard:
                raise
            if time.monotonic() > heard_at + PATIENCE_S:
                raise StepFailed(error.problem) from error
        else:
            heard_at = time.monotonic()
        # Also of a host that is silent, and perhaps starting again: what is cancelled meanwhile must end all the same.
        await run.report(report.done_bytes, report.total_bytes)
        if report.is_done:
            return report
        await asyncio.sleep(PAUSE_S)


async def take_away(
    run: Run,
    host_id: str,
    spec: VolumeSpec,
    place: Place,
    volume_id: str,
    *,
    was_sent_before: bool = False,
    has_bytes: bool = False,
) -> bool:
    """Whether nothing of the incarnation is left; never raises for a host's sake. For undos, and after a pivot.

    was_sent_before: the host has bytes for it from before the saga began. has_bytes: it may hold somebody's data: where the backend's
    policy is to wipe, it is left to the deletion of its row, which does that in its own time.
    """
    if not run.is_inherited and not was_sent_before and host_id not in run.asked:
        # It never came to it, for want of the lease perhaps, which is what taking away would wait for too.
        return True
    if has_bytes and place.wipe is not Wipe.NONE:
        if run.online([host_id]):
            with contextlib.suppress(StepFailed, TryAgain):
                await end_work(run, host_id, spec, place, volume_id)
        return False
    for _ in range(_GIVE_UP):
        if not run.online([host_id]):
            return False
        try:
            await erase(run, host_id, spec, place, volume_id)
        except TryAgain:
            continue
        except StepFailed:
            return False
        return True
    return False


async def end_work(run: Run, host_id: str, spec: VolumeSpec, place: Place, volume_id: str) -> None:
    """Nothing is under way on the incarnation there: a resize ends all work on it, and this one is to the size that it has."""
    head = run.head(host_id, "resize_volume", backend_id=place.backend_id)
    command = ResizeVolume(**head, volume_id=volume_id, spec=spec, size_bytes=spec.size_bytes)
    await ask(run, host_id, command, type(None), place=place)


async def erase(run: Run, host_id: str, spec: VolumeSpec, place: Place, volume_id: str) -> None:
    head = run.head(host_id, "erase_volume", backend_id=place.backend_id)
    await ask(run, host_id, EraseVolume(**head, volume_id=volume_id, spec=spec), type(None), place=place)


async def wipe(run: Run, host_id: str, spec: VolumeSpec, place: Place, volume_id: str) -> None:
    """By the backend's policy."""
    if place.wipe is Wipe.NONE:
        return

    def look() -> WipeVolume:
        head = run.head(host_id, "wipe_volume", backend_id=place.backend_id)
        return WipeVolume(**head, volume_id=volume_id, spec=spec, wipe=place.wipe, wait_ms=LOOK_MS)

    await work(run, host_id, look, places=(place,))


def is_unanswered(run: Run) -> bool:
    """Whether the saga's host may be at work still: it has not answered the last command that it was sent, as far as is known here."""
    worker = run.params["worker"]
    return (run.is_inherited or worker in run.asked) and worker not in run.heard


async def let_go(connection: Connection, run: Run, *places: Place | None) -> None:
    """The saga's leases are free, those that it kept to its end. Its host has answered its last command."""
    for place in places:
        if place is not None and place.lane is not None:
            await leases.give_back(
                connection,
                place.lane,
                operation_id=run.row.id,
                host_id=run.params["worker"],
                is_one_host=place.is_one_host,
            )


async def free_or_leave(connection: Connection, run: Run, volume_id: str, place: Place, *, is_left: bool) -> None:
    """The row of what an undone saga had made is gone; where the storage has it still, it stays to be deleted, without a name."""
    if is_left:
        await volumes.make_transient(connection, volume_id)
        is_made = "is_filled" in run.output
        if is_made or not is_unanswered(run):
            # Else the host may come to make it yet, and one that found nothing there would leave that to nobody.
            await loosen(connection, volume_id, place)
        return
    await volumes.forget(connection, volume_id)
    await let_go(connection, run, place, source_place_in(run.params))


async def loosen(connection: Connection, volume_id: str, place: Place) -> None:
    """Any host may take it away now, of a storage that many may change."""
    if place.lane is None:
        await volumes.set_worker(connection, volume_id, None)


def refuse_busy(row: VolumeRow, operation_id: str) -> Problem:
    return Problem(
        code=ProblemCode.WRONG_STATE,
        detail=f"another operation is under way on {row.name}, or reads it",
        operation=f"/v1/operations/{operation_id}",
    )


async def _ask(
    run: Run, host_id: str, command: AnyCommand, result: type[ResultT], *, has_place: bool = False
) -> ResultT:
    """has_place: the command changes what one host at a time may, so an answer must mean that nothing of it is under way."""
    verb = str(command.__struct_config__.tag)
    run.asked.add(host_id)
    run.heard.discard(host_id)
    try:
        answer = await _ask_in_charge(run, host_id, command, result)
    except StaleFence:
        raise
    except AgentError as error:
        if isinstance(error, AgentFailed):
            if not (has_place and error.fault.code in _MAY_GO_ON):
                run.heard.add(host_id)
            run.failures[host_id, verb] += 1
        elif isinstance(error, AgentOffline):
            run.registry.silence(host_id)
        problem = _problem(run, host_id, error)
        if isinstance(error, AgentFailed) and error.fault.code is not FaultCode.TIMED_OUT:
            run.said[host_id, verb] = problem
        elif not isinstance(error, AgentOffline):
            # That it had no time for one more try must not hide what it has said to the one before.
            problem = run.said.get((host_id, verb), problem)
        is_final = isinstance(error, AgentFailed) and not (
            error.is_retryable and run.failures[host_id, verb] < MOST_FAILURES
        )
        if is_final:
            raise StepFailed(problem) from error
        raise TryAgain(problem) from error
    run.heard.add(host_id)
    return answer


async def _ask_in_charge(run: Run, host_id: str, command: AnyCommand, result: type[ResultT]) -> ResultT:
    """A fence that a sync outdated while the saga stood in line is renewed here, in its place: it would else begin anew behind
    all the others, who outdate it again."""
    try:
        return await run.agents.ask(host_id, command, result)
    except StaleFence as stale:
        await run.outbid(stale.fence)
    return await run.agents.ask(host_id, msgspec.structs.replace(command, fence=run.row.fence), result)


def _problem(run: Run, host_id: str, error: AgentError) -> Problem:
    host, what = run.registry.host_name(host_id), run.params["name"]
    match error:
        case AgentFailed(fault=fault):
            code = _ASKED.get(fault.code, ProblemCode.PROBE_FAILED)
            return Problem(code=code, detail=f"{what}: {fault.detail} (on {host})", faults=(fault,))
        case AgentOffline():
            return Problem(code=ProblemCode.NO_AGENT, detail=f"{what}: {error}", faults=(offline_fault(host),))
        case _:
            return Problem(
                code=ProblemCode.AGENT_TIMEOUT, detail=f"{what}: {error}", faults=(silent_fault(host, str(error)),)
            )


async def _take_lease(run: Run, host_id: str, place: Place) -> None:
    assert place.lane is not None, "one host at a time is asked only where there is a place"
    async with transaction(run.pool) as connection:
        other = await leases.take(
            connection, place.lane, operation_id=run.row.id, host_id=host_id, is_one_host=place.is_one_host
        )
        if other is None and place.is_one_host:
            users = await volumes.hosts_in_use(connection, place.backend_id)
            other = next(iter(sorted(users.keys() - {host_id})), None)
    if other is not None:
        raise TryAgain(_held(run, place, other))


async def _give_lease(run: Run, host_id: str, place: Place) -> None:
    """But where one host alone may have volumes active, it is kept until the saga's end."""
    if place.lane is not None and not place.is_one_host:
        async with run.pool.acquire() as connection:
            await leases.give_back(connection, place.lane, operation_id=run.row.id, host_id=host_id)


async def _waited(run: Run, host_id: str, place: Place) -> Problem:
    """Why it was nobody's turn but others' all the time."""
    assert place.lane is not None, "there is a turn only where there is a place"
    async with run.pool.acquire() as connection:
        other = await leases.holder(connection, place.lane, but=host_id)
    return _held(run, place, other) if other else _busy(place, "other operations were before this one all the time")


def _held(run: Run, place: Place, other: str) -> Problem:
    return _busy(place, f"{run.registry.host_name(other)} is at it, or has not answered yet")


def _busy(place: Place, why: str) -> Problem:
    return Problem(
        code=ProblemCode.WRONG_STATE, detail=f"one host at a time may change the storage of {place.backend}: {why}"
    )
