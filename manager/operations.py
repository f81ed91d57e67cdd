"""Operations as callers see them: read, list, wait for the end, and try a stuck one again."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from manager.actor import Actor
from manager.errors import ManagerError, Refused
from manager.sagas.catalog import SAGAS
from manager.sagas.engine import Engine
from manager.store import operations as journal
from manager.store.operations import OperationRow
from manager.store.pool import Pool
from schemas.ids import is_id
from schemas.operations import Operation, OperationState
from schemas.problems import FieldError, Problem, ProblemCode

log = logging.getLogger(__name__)

#: Where an operation is that has heeded its cancelling.
_TURNED_BACK = (OperationState.UNDOING, OperationState.CANCELLED)


@dataclass(frozen=True)
class Pending:
    """The saga goes on; ask /v1/operations/<id>."""

    operation_id: str


class Operations:
    """Reads the journal; `outcome` is how a use case turns a saga's end into an answer."""

    def __init__(self, pool: Pool, engine: Engine) -> None:
        self._pool = pool
        self._engine = engine

    async def get(self, operation_id: str) -> Operation:
        """Raises Refused not_found."""
        async with self._pool.acquire() as connection:
            operation = await journal.get(connection, operation_id)
        if operation is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no operation {operation_id}")
        return operation

    async def list(
        self,
        *,
        subject: str | None = None,
        state: str | None = None,
        kind: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> tuple[Sequence[Operation], str | None]:
        """(the newest first, those older than the cursor; the next page's cursor or None)."""
        if cursor is not None and not is_id(cursor):
            raise bad_cursor()
        async with self._pool.acquire() as connection:
            found = await journal.page(
                connection, subject=subject, state=state, kind=kind, before=cursor, limit=limit + 1
            )
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def retry(self, operation_id: str, actor: Actor) -> Operation:
        """The stuck operation, on its way again. Raises Refused not_found or wrong_state."""
        async with self._pool.acquire() as connection:
            is_freed = await journal.unstick(connection, operation_id)
        operation = await self.get(operation_id)
        if not is_freed:
            raise Refused.because(ProblemCode.WRONG_STATE, f"the operation is {operation.state.value}, not stuck")
        log.info(
            "operation tried again", extra={"operation_id": operation_id, "kind": operation.kind, "actor": actor.name}
        )
        return operation

    async def cancel(self, operation_id: str, actor: Actor) -> Operation:
        """It turns back at the next place where it can; asked again, the same.

        Raises Refused not_found, or wrong_state where it cannot any more.
        """
        row = await self._row(operation_id)
        definition = SAGAS.get(row.kind)
        can_turn_back = definition is not None and row.step <= definition.pivot_index
        is_asked = False
        if can_turn_back:
            async with self._pool.acquire() as connection:
                is_asked = await journal.ask_for_end(connection, operation_id)
        operation = await self.get(operation_id)
        if not is_asked and not (operation.is_cancelled and operation.state in _TURNED_BACK):
            is_past_pivot = operation.state is OperationState.RUNNING
            how = "past the point from which it can go back" if is_past_pivot else operation.state.value
            raise Refused.because(ProblemCode.WRONG_STATE, f"the operation is {how}, so it cannot be cancelled")
        log.info(
            "operation's end asked for", extra={"operation_id": operation_id, "kind": row.kind, "actor": actor.name}
        )
        return operation

    async def _row(self, operation_id: str) -> OperationRow:
        async with self._pool.acquire() as connection:
            row = await journal.get_row(connection, operation_id)
        if row is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no operation {operation_id}")
        return row

    async def outcome(self, operation_id: str, wait_s: float) -> OperationRow | None:
        """The row of an operation that succeeded; None while it still runs when the time is up.

        Raises the operation's own problem when it failed, saga_stuck when a person must look.
        """
        row = await self._engine.wait(operation_id, wait_s)
        match row.state:
            case OperationState.SUCCEEDED:
                return row
            case OperationState.RUNNING | OperationState.UNDOING:
                return None
            case OperationState.STUCK:
                raise Refused.because(
                    ProblemCode.SAGA_STUCK,
                    f"what {row.kind} had done could not be undone everywhere; see its steps",
                    operation=f"/v1/operations/{row.id}",
                )
            case OperationState.FAILED | OperationState.CANCELLED:
                raise ManagerError(with_operation(row))


def bad_cursor() -> Refused:
    """A cursor that no answer of ours gave."""
    return Refused.because(
        ProblemCode.INVALID_FIELD,
        "the cursor is not one of ours",
        errors=(FieldError(pointer="/query/cursor", detail="must come from next_cursor of an earlier answer"),),
    )


def with_operation(row: OperationRow) -> Problem:
    """The saga's own problem, pointing to it."""
    error = row.error
    return Problem(
        code=error.code if error else ProblemCode.INTERNAL,
        detail=error.detail if error else f"{row.kind} failed",
        errors=error.errors if error else (),
        faults=error.faults if error else (),
        blockers=error.blockers if error else (),
        operation=f"/v1/operations/{row.id}",
    )
