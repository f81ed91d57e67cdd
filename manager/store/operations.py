"""The saga journal: one row a saga, one row a step, every write checked against the fence."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from manager.store.backends import INSERT_LOCK
from manager.store.pool import Connection
from schemas.operations import Operation, OperationState, OperationStep, Progress, StepState
from schemas.problems import Problem

#: Days that an operation which has ended can be asked for.
KEPT_DAYS = 90
_PRUNED_AT_ONCE = 10_000

_COLUMNS = (
    "id, kind, version, key, subject, params, state, step, output, deadline, owner, fence, error, result,"
    " actor, request_id, created_at, updated_at, progress, is_cancelled, extract(epoch FROM deadline - now())::float8 AS left_s"
)


class OperationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of table operation. step: the next to run (running) or to undo (undoing). output: of all finished steps.

    left_s: seconds until the deadline when the row was read, by the database's clock. is_cancelled: somebody asked for its end.
    """

    id: str
    kind: str
    version: int
    key: str
    subject: str
    params: dict[str, Any]
    state: OperationState
    step: int
    output: dict[str, Any]
    deadline: dt.datetime
    owner: str | None
    fence: int
    error: Problem | None
    result: dict[str, Any] | None
    actor: str
    request_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    progress: Progress | None
    is_cancelled: bool
    left_s: float


class StepLine(msgspec.Struct, frozen=True, kw_only=True):
    """What one journal write says of one step."""

    index: int
    name: str
    state: StepState
    error: str | None = None


def _row(record: asyncpg.Record) -> OperationRow:
    return msgspec.convert(dict(record), OperationRow)


async def insert(
    connection: Connection,
    *,
    operation_id: str,
    kind: str,
    version: int,
    key: str,
    subject: str,
    params: dict[str, Any],
    budget_s: float,
    owner: str,
    lease_s: float,
    actor: str,
    request_id: str,
    first: StepLine,
) -> OperationRow | None:
    """The new saga with its first step done, owned by the caller; None when another one is active on the key."""
    # Shared with nobody who draws up a host's list right now: see backends.wanted_by.
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", INSERT_LOCK)
    record = await connection.fetchrow(
        "INSERT INTO operation (id, kind, version, key, subject, params, step, deadline, owner, lease_until, fence, actor, request_id)"
        " VALUES ($1, $2, $3, $4, $5, $6, 1, now() + make_interval(secs => $7), $8, now() + make_interval(secs => $9),"
        " nextval('fence_seq'), $10, $11)"
        f" ON CONFLICT (key) WHERE state IN ('running', 'undoing', 'stuck') DO NOTHING RETURNING {_COLUMNS}",
        operation_id, kind, version, key, subject, params, budget_s, owner, lease_s, actor, request_id,
    )  # fmt: skip
    if record is None:
        return None
    await connection.execute(
        "INSERT INTO operation_step (operation_id, index, name, state, started_at, ended_at)"
        " VALUES ($1, $2, $3, $4, now(), now())",
        operation_id, first.index, first.name, first.state,
    )  # fmt: skip
    return _row(record)


async def keep_output(connection: Connection, operation_id: str, output: dict[str, Any]) -> OperationRow:
    """The saga that was just inserted, with what its first step found out."""
    record = await connection.fetchrow(
        f"UPDATE operation SET output = output || $2 WHERE id = $1 RETURNING {_COLUMNS}", operation_id, output
    )
    assert record is not None, "inserted in this transaction"
    return _row(record)


async def active_on(connection: Connection, key: str) -> OperationRow | None:
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM operation WHERE key = $1 AND state IN ('running', 'undoing', 'stuck')", key
    )
    return _row(record) if record else None


async def first_on(connection: Connection, key: str, kind: str) -> OperationRow | None:
    """The oldest of that kind on the key that is still known."""
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM operation WHERE key = $1 AND kind = $2 ORDER BY id LIMIT 1", key, kind
    )
    return _row(record) if record else None


async def write(
    connection: Connection,
    row: OperationRow,
    line: StepLine,
    *,
    state: OperationState,
    step: int,
    output: dict[str, Any] | None = None,
    error: Problem | None = None,
    result: dict[str, Any] | None = None,
    budget_s: float | None = None,
) -> OperationRow | None:
    """One journal line: the saga moves on under a new fence; None when somebody else has moved it (we are fenced off).

    budget_s: the deadline is so far from now on; None: it stays.
    """
    record = await connection.fetchrow(
        "WITH moved AS (UPDATE operation SET state = $3, step = $4, output = output || $5,"
        " error = coalesce($6, error), result = coalesce($7, result), fence = nextval('fence_seq'), updated_at = now(),"
        " deadline = coalesce(now() + make_interval(secs => $13), deadline)"
        " WHERE id = $1 AND fence = $2 AND state IN ('running', 'undoing')"
        f" RETURNING {_COLUMNS}),"
        " line AS (INSERT INTO operation_step AS s (operation_id, index, name, state, error, started_at, ended_at)"
        " SELECT id, $8, $9, $10, $11, $12, now() FROM moved"
        " ON CONFLICT (operation_id, index) DO UPDATE SET state = excluded.state,"
        " error = coalesce(excluded.error, s.error), ended_at = excluded.ended_at)"
        " SELECT * FROM moved",
        row.id, row.fence, state, step, output or {},
        msgspec.to_builtins(error) if error else None, result,
        line.index, line.name, line.state, line.error, row.updated_at, budget_s,
    )  # fmt: skip
    return _row(record) if record else None


async def note_progress(connection: Connection, row: OperationRow, progress: Progress) -> bool | None:
    """Whether somebody asked for the operation's end; None when we are fenced off."""
    asked: bool | None = await connection.fetchval(
        "UPDATE operation SET progress = $3 WHERE id = $1 AND fence = $2 AND state IN ('running', 'undoing')"
        " RETURNING is_cancelled",
        row.id, row.fence, msgspec.to_builtins(progress),
    )  # fmt: skip
    return asked


async def ask_for_end(connection: Connection, operation_id: str) -> bool:
    """Whether it was on its way forward; if so it turns back at the next place where it can, should there be one."""
    done = await connection.execute(
        "UPDATE operation SET is_cancelled = true WHERE id = $1 AND state = 'running'", operation_id
    )
    return bool(done == "UPDATE 1")


async def is_end_asked(connection: Connection, operation_id: str) -> bool:
    return bool(await connection.fetchval("SELECT is_cancelled FROM operation WHERE id = $1", operation_id))


async def is_fence_held(connection: Connection, row: OperationRow) -> bool:
    """Whether the fence is still the one we know; if so its row is locked until the transaction ends."""
    fence = await connection.fetchval(
        "SELECT fence FROM operation WHERE id = $1 AND fence = $2 AND state IN ('running', 'undoing') FOR UPDATE",
        row.id, row.fence,
    )  # fmt: skip
    return fence is not None


#: How far an agent's word may move the sequence: after a restore of an older database it must, but not to its end.
_MOST_FENCE_JUMP = 10**9
#: More fences than others draw between two statements of ours.
_FENCE_SLACK = 100_000
_FENCE_LOCK = 7_310_004


async def renew_fence(connection: Connection, row: OperationRow, *, seen: int) -> OperationRow | None:
    """The same saga under a fence higher than its own and, if that is near, than `seen`; None when it is no longer ours."""
    await raise_fences(connection, above=seen)
    record = await connection.fetchrow(
        "UPDATE operation SET fence = nextval('fence_seq') WHERE id = $1 AND fence = $2"
        f" AND state IN ('running', 'undoing') RETURNING {_COLUMNS}",
        row.id, row.fence,
    )  # fmt: skip
    return _row(record) if record else None


async def raise_fences(connection: Connection, *, above: int) -> None:
    """The next fence is higher, if that is near. The sequence never goes back, whoever draws from it meanwhile.

    setval is not in the order of others' nextval, so it goes up by the gap and more from a number just drawn, under a lock.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _FENCE_LOCK)
        gap = await connection.fetchval("SELECT $1 - last_value FROM fence_seq", above)
        if 0 <= gap < _MOST_FENCE_JUMP:
            await connection.execute("SELECT setval('fence_seq', nextval('fence_seq') + $1)", gap + _FENCE_SLACK)


async def claim(
    connection: Connection, *, owner: str, lease_s: float, limit: int, known: Sequence[tuple[str, int]]
) -> list[OperationRow]:
    """Sagas whose owner let the lease run out; they are ours now, under a new fence.

    known: (kind, version) of the sagas that this code can drive; others are left to a manager that can.
    """
    records = await connection.fetch(
        "UPDATE operation SET owner = $1, fence = nextval('fence_seq'), lease_until = now() + make_interval(secs => $2)"
        " WHERE id IN (SELECT id FROM operation WHERE state IN ('running', 'undoing')"
        " AND (lease_until IS NULL OR lease_until < now())"
        " AND (kind, version) IN (SELECT * FROM unnest($4::text[], $5::int[]))"
        " ORDER BY created_at FOR UPDATE SKIP LOCKED LIMIT $3)"
        f" RETURNING {_COLUMNS}",
        owner, lease_s, limit, [kind for kind, _ in known], [version for _, version in known],
    )  # fmt: skip
    return [_row(r) for r in records]


async def disown(connection: Connection, *, replica: str, owner: str) -> None:
    """Sagas of earlier lives of this replica (owner is the present one) are free at once.

    The caller holds the replica's session lock, so those lives are over.
    """
    await connection.execute(
        "UPDATE operation SET lease_until = NULL WHERE state IN ('running', 'undoing')"
        " AND split_part(owner, ':', 1) = $1 AND owner <> $2",
        replica, owner,
    )  # fmt: skip


async def renew_leases(connection: Connection, *, owner: str, ids: Sequence[str], lease_s: float) -> set[str]:
    """The ids that are still ours, their leases renewed; those that have just ended too, for their drivers are still busy."""
    records = await connection.fetch(
        "UPDATE operation SET lease_until = now() + make_interval(secs => $3)"
        " WHERE id = ANY($2) AND owner = $1 RETURNING id",
        owner, list(ids), lease_s,
    )  # fmt: skip
    return {r["id"] for r in records}


async def release_lease(connection: Connection, *, owner: str) -> None:
    """At an orderly stop: whoever is there may take our sagas over at once."""
    await connection.execute(
        "UPDATE operation SET lease_until = NULL WHERE owner = $1 AND state IN ('running', 'undoing')", owner
    )


async def unstick(connection: Connection, operation_id: str) -> bool:
    """Whether it was stuck; if so its undo is tried again by whoever claims it."""
    done = await connection.execute(
        "UPDATE operation SET state = 'undoing', lease_until = NULL, fence = nextval('fence_seq'), updated_at = now()"
        " WHERE id = $1 AND state = 'stuck'",
        operation_id,
    )
    return bool(done == "UPDATE 1")


async def prune(connection: Connection) -> None:
    """What ended long ago is forgotten, a portion at a time; the events keep what it changed."""
    await connection.execute(
        "DELETE FROM operation WHERE id IN (SELECT id FROM operation WHERE state IN ('succeeded', 'failed', 'cancelled')"
        " AND updated_at < now() - make_interval(days => $1) LIMIT $2)",
        KEPT_DAYS, _PRUNED_AT_ONCE,
    )  # fmt: skip


async def link_idempotency(connection: Connection, *, token_id: str, key: str, operation_id: str) -> None:
    """A repeated request finds its saga even when the answer was never written."""
    await connection.execute(
        "UPDATE idempotency SET operation_id = $3 WHERE token_id = $1 AND key = $2", token_id, key, operation_id
    )


async def forget_query(connection: Connection, operation_id: str) -> None:
    """Of the address that the saga fetched from nothing stays that may open it: what stands behind the `?` may be a signature."""
    await connection.execute(
        "UPDATE operation SET params = jsonb_set(params, '{source,url}', to_jsonb(split_part(params #>> '{source,url}', '?', 1)))"
        " WHERE id = $1 AND params #> '{source,url}' IS NOT NULL",
        operation_id,
    )


async def get_row(connection: Connection, operation_id: str) -> OperationRow | None:
    record = await connection.fetchrow(f"SELECT {_COLUMNS} FROM operation WHERE id = $1", operation_id)
    return _row(record) if record else None


async def get(connection: Connection, operation_id: str) -> Operation | None:
    """The operation as the API shows it."""
    row = await get_row(connection, operation_id)
    if row is None:
        return None
    steps = await connection.fetch(
        "SELECT operation_id, name, state, started_at, ended_at, error FROM operation_step WHERE operation_id = $1 ORDER BY index",
        operation_id,
    )
    return _shown(row, steps)


async def page(
    connection: Connection, *, subject: str | None, state: str | None, kind: str | None, before: str | None, limit: int
) -> list[Operation]:
    """The newest first, those older than the id `before`."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM operation WHERE ($1::text IS NULL OR subject = $1) AND ($2::text IS NULL OR state = $2)"
        " AND ($3::text IS NULL OR kind = $3) AND ($4::uuid IS NULL OR id < $4) ORDER BY id DESC LIMIT $5",
        subject, state, kind, before, limit,
    )  # fmt: skip
    rows = [_row(r) for r in records]
    steps = await connection.fetch(
        "SELECT operation_id, name, state, started_at, ended_at, error FROM operation_step"
        " WHERE operation_id = ANY($1) ORDER BY operation_id, index",
        [row.id for row in rows],
    )
    return [_shown(row, [s for s in steps if s["operation_id"] == row.id]) for row in rows]


def _shown(row: OperationRow, steps: Sequence[asyncpg.Record]) -> Operation:
    return Operation(
        id=row.id,
        kind=row.kind,
        subject=row.subject,
        state=row.state,
        steps=tuple(
            OperationStep(
                name=s["name"],
                state=StepState(s["state"]),
                started_at=s["started_at"],
                ended_at=s["ended_at"],
                error=s["error"],
            )
            for s in steps
        ),
        progress=_progress(row),
        is_cancelled=row.is_cancelled,
        error=row.error,
        result=row.result,
        actor=row.actor,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _progress(row: OperationRow) -> Progress:
    """Of what has ended, how far it came; of what goes on, how fast and for how long too."""
    progress = row.progress or Progress()
    if row.state is OperationState.RUNNING:
        return progress
    return msgspec.structs.replace(progress, rate_bytes_s=None, eta_s=None)
