"""What is forgotten, and what is not: ended operations after their time, undone adds once every host has let go."""

from collections.abc import AsyncIterator

import pytest

from manager.store import backends, operations
from manager.store.migrate import migrate
from manager.store.pool import Connection, connect
from schemas.hosts import HostSelector
from schemas.ids import new_id


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    connection = await connect(database)
    await migrate(connection)
    yield connection
    await connection.close()


async def operation(connection: Connection, state: str, days: int) -> None:
    await connection.execute(
        "INSERT INTO operation (id, kind, version, key, subject, params, state, step, deadline, fence, actor, request_id, updated_at)"
        " VALUES ($1, 'backend.add', 1, $4, '', '{}', $2, 0, now(), 1, '', '', now() - make_interval(days => $3))",
        new_id(), state, days, new_id(),
    )  # fmt: skip


async def test_operation_is_forgotten_only_when_it_ended_long_ago(connection: Connection) -> None:
    for state in ("running", "undoing", "stuck", "succeeded", "failed"):
        for days in (0, operations.KEPT_DAYS + 1):
            await operation(connection, state, days)
    await operations.prune(connection)
    rows = await connection.fetch("SELECT state FROM operation")
    assert sorted(row["state"] for row in rows) == sorted(["running", "undoing", "stuck"] * 2 + ["succeeded", "failed"])


@pytest.mark.parametrize("keep_row", [True, False])
async def test_row_of_an_undone_add_goes_with_its_last_tombstone(connection: Connection, keep_row: bool) -> None:
    backend_id, host_id = new_id(), new_id()
    await connection.execute(
        "INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, 'hv1', 'k', '')", host_id
    )
    await backends.insert_creating(
        connection, backend_id=backend_id, name="tank", kind="nfs", config={}, credential_version=0, labels={},
        selector=HostSelector(),
    )  # fmt: skip
    await backends.finish_removal(connection, backend_id, unconfirmed=[host_id], keep_row=keep_row)
    await backends.prune(connection)
    assert await connection.fetchval("SELECT count(*) FROM backend") == 1
    await backends.confirm_absent(connection, host_id, [backend_id])
    await backends.prune(connection)
    assert await connection.fetchval("SELECT count(*) FROM backend") == (1 if keep_row else 0)
