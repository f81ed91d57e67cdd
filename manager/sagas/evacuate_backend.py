"""Move everything off a backend that drains, one volume after the other. Kind `backend.evacuate`.

1. begin    the backend drains                                   nothing is undone: what has moved has moved
2. move     a `volume.migrate` for each; those that cannot are told at the end
3. finish                                                        PIVOT
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from manager.errors import Refused
from manager.replacements import key_of, migration_params, subject_of
from manager.sagas.steps import Run, SagaDef, Step, StepFailed
from manager.store import attachments, backends, volumes
from manager.store import operations as journal
from manager.store.operations import OperationRow
from manager.store.pool import Connection
from manager.store.volumes import VolumeRow
from schemas.backends import BackendState
from schemas.operations import OperationState
from schemas.problems import Problem, ProblemCode

_POLL_S = 0.3
_MOST_TOLD = 100
_GOING_ON = (OperationState.RUNNING, OperationState.UNDOING)


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    row = await backends.lock(connection, run.backend_id)
    if row is None:
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {run.params['name']}")
    if row.state is not BackendState.DRAINING:
        raise Refused.because(
            ProblemCode.WRONG_STATE,
            f"{row.name} is {row.state.value}: set its state to draining first, or new volumes come while the others go",
        )


async def move(run: Run) -> dict[str, Any]:
    failed: dict[str, dict[str, str]] = {}
    moved_bytes = 0
    while row := await _next(run, failed):
        under_way = await _under_way(run, row)
        if under_way is not None and not _is_ours(run, under_way):
            # Somebody else's: waited for, never ended, and then seen what is left to do.
            ended = await _end_of(run, under_way.id, moved_bytes, is_ours=False)
            reason = f"operation {under_way.id} is stuck" if ended and ended.state is OperationState.STUCK else None
        else:
            reason = await _move(run, row, under_way, moved_bytes)
            moved_bytes += row.size_bytes if reason is None else 0
        if reason is not None:
            failed[row.id] = {"type": row.role.value, "id": row.id, "name": row.name, "reason": reason}
    if failed:
        raise StepFailed(
            Problem(
                code=ProblemCode.BACKEND_IN_USE,
                detail=f"{len(failed)} of the volumes of {run.params['name']} could not be moved; the others were",
                blockers=tuple(failed.values())[:_MOST_TOLD],
            )
        )
    return {"moved_bytes": moved_bytes}


async def _next(run: Run, failed: Mapping[str, object]) -> VolumeRow | None:
    async with run.pool.acquire() as connection:
        return await volumes.next_to_move(connection, run.backend_id, but=tuple(failed))


async def _under_way(run: Run, row: VolumeRow) -> OperationRow | None:
    async with run.pool.acquire() as connection:
        return await journal.active_on(connection, key_of(row))


def _is_ours(run: Run, operation: OperationRow) -> bool:
    """Whether this saga began it, perhaps in another life."""
    return operation.params.get("evacuation_id") == run.row.id


async def _move(run: Run, row: VolumeRow, under_way: OperationRow | None, moved_bytes: int) -> str | None:
    """None: it has moved; else why not."""
    operation_id = under_way.id if under_way else None
    if operation_id is None:
        async with run.pool.acquire() as connection:
            held = await attachments.of_volume(connection, row.id)
        if held:
            return (
                f"it is attached to {', '.join(run.registry.host_name(each.host_id) for each in held)}: detach it first"
            )
        try:
            params = await migration_params(run.placement, row, run.params["to"], None)
            params["evacuation_id"] = run.row.id
            operation_id = await run.start_child("volume.migrate", key_of(row), subject_of(row), params)
        except Refused as error:
            return error.problem.detail
    child = await _end_of(run, operation_id, moved_bytes, is_ours=True)
    if child is None or child.state is OperationState.SUCCEEDED:
        return None
    return child.error.detail if child.error else f"operation {child.id} {child.state.value}"


async def _end_of(run: Run, operation_id: str, moved_bytes: int, *, is_ours: bool) -> OperationRow | None:
    """The operation, ended. One of ours ends with this saga."""
    while True:
        async with run.pool.acquire() as connection:
            found = await journal.get_row(connection, operation_id)
        if found is None or found.state not in _GOING_ON:
            return found
        done = found.progress.done_bytes if found.progress and is_ours else 0
        try:
            await run.report(moved_bytes + done, run.params["total_bytes"])
        except StepFailed:
            if is_ours:
                async with run.pool.acquire() as connection:
                    await journal.ask_for_end(connection, operation_id)
            raise
        await asyncio.sleep(_POLL_S)


async def finish(_: Connection, run: Run, gained: dict[str, Any]) -> dict[str, Any]:
    return {"result": {"backend_id": run.backend_id, "moved_bytes": {**run.output, **gained}["moved_bytes"]}}


EVACUATE_BACKEND = SagaDef(
    kind="backend.evacuate",
    version=1,
    steps=(
        Step("begin", do_sql=begin),
        Step("move", do=move, is_long=True),
        Step("finish", do_sql=finish),
    ),
    pivot="finish",
    budget_s=60.0,
)
