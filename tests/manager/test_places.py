"""Who holds a place in which one saga at a time makes its marks, and until when."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from manager.store import backends, places
from manager.store.migrate import migrate
from manager.store.pool import Connection, connect
from schemas.hosts import HostSelector
from schemas.ids import new_id

PLACE = "iscsi_lvm iqn.2026-01.org.example:vms 0"


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    connection = await connect(database)
    await migrate(connection)
    yield connection
    await connection.close()


async def operation(connection: Connection, state: str = "running") -> str:
    operation_id = new_id()
    await connection.execute(
        "INSERT INTO operation (id, kind, version, key, subject, params, state, step, deadline, fence, actor, request_id)"
        " VALUES ($1, 'backend.add', 2, $2, '', '{}', $3, 1, now(), 1, '', '')",
        operation_id, new_id(), state,
    )  # fmt: skip
    return operation_id


async def claimed(connection: Connection, operation_id: str, backend_id: str = "") -> places.Holder | None:
    return await places.claim(connection, PLACE, operation_id=operation_id, backend_id=backend_id or new_id())


@pytest.mark.parametrize("state", ["running", "undoing", "stuck"])
async def test_place_of_a_saga_that_is_not_over_is_its_alone(connection: Connection, state: str) -> None:
    backend_id, first, second = new_id(), await operation(connection, state), await operation(connection)
    assert await claimed(connection, first, backend_id) is None
    assert await claimed(connection, second) == places.Holder(backend_id, ())
    assert await claimed(connection, first, backend_id) is None, "a step may be repeated"
    assert await places.claim(connection, "another", operation_id=second, backend_id=new_id()) is None


@pytest.mark.parametrize("state", ["succeeded", "failed"])
async def test_place_of_a_saga_that_ended_is_free(connection: Connection, state: str) -> None:
    first, second, third = [await operation(connection, word) for word in (state, "running", "running")]
    assert await claimed(connection, first) is None
    assert await claimed(connection, second) is None
    assert await claimed(connection, third) is not None


async def test_place_of_an_undone_add_waits_for_the_hosts_that_have_not_let_go(connection: Connection) -> None:
    host_id, backend_id, first = new_id(), new_id(), await operation(connection, "failed")
    await connection.execute(
        "INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, 'hv1', 'k', '')", host_id
    )
    await backends.insert_creating(
        connection, backend_id=backend_id, name="san", kind="iscsi_lvm", config={}, credential_version=0, labels={},
        selector=HostSelector(),
    )  # fmt: skip
    assert await claimed(connection, first, backend_id) is None
    await backends.finish_removal(connection, backend_id, unconfirmed=[host_id], keep_row=False)
    second = await operation(connection)

    assert await claimed(connection, second) == places.Holder(backend_id, ("hv1",))

    await backends.confirm_absent(connection, host_id, [backend_id])
    assert await claimed(connection, second) is None


async def test_place_of_an_initialization_without_an_answer_rests_but_for_its_own_backend(
    connection: Connection,
) -> None:
    backend_id, first = new_id(), await operation(connection, "failed")
    assert await claimed(connection, first, backend_id) is None
    ended = "UPDATE operation SET kind = 'backend.initialize', error = $2, updated_at = now() - make_interval(secs => $3) WHERE id = $1"

    await connection.execute(ended, first, {"code": "agent_timeout"}, 1.0)
    assert await claimed(connection, await operation(connection)) == places.Holder(backend_id, ())

    await connection.execute(ended, first, {"code": "probe_failed"}, 1.0)
    other = await operation(connection, "failed")
    assert await claimed(connection, other) is None

    await connection.execute(ended, other, {"code": "agent_timeout"}, places.REST_S + 1)
    assert await claimed(connection, await operation(connection, "failed")) is None


async def test_place_of_an_initialization_is_its_own_backends_to_try_again(connection: Connection) -> None:
    backend_id, first = new_id(), await operation(connection, "failed")
    assert await claimed(connection, first, backend_id) is None
    await connection.execute(
        "UPDATE operation SET kind = 'backend.initialize', error = $2 WHERE id = $1", first, {"code": "agent_timeout"}
    )
    assert await claimed(connection, await operation(connection), backend_id) is None


async def test_place_of_a_host_that_was_revoked_is_free(connection: Connection) -> None:
    host_id, backend_id, first = new_id(), new_id(), await operation(connection, "failed")
    await connection.execute(
        "INSERT INTO host (id, name, identity_key, sealing_key, revoked_at) VALUES ($1, 'hv1', 'k', '', NULL)", host_id
    )
    await backends.insert_creating(
        connection, backend_id=backend_id, name="san", kind="iscsi_lvm", config={}, credential_version=0, labels={},
        selector=HostSelector(),
    )  # fmt: skip
    assert await claimed(connection, first, backend_id) is None
    await backends.finish_removal(connection, backend_id, unconfirmed=[host_id], keep_row=False)
    await connection.execute("UPDATE host SET revoked_at = now() WHERE id = $1", host_id)

    assert await claimed(connection, await operation(connection)) is None


async def test_claim_waits_for_one_that_is_being_written(connection: Connection, database: str) -> None:
    """The second statement must see what the first transaction commits, or both would have the place."""
    first, second = await operation(connection), await operation(connection)
    other = await connect(database)
    try:
        async with connection.transaction():
            assert await claimed(connection, first) is None
            waiting = asyncio.create_task(_claim_in_transaction(other, second))
            # It holds the lock; whoever comes waits for it.
            while not await connection.fetchval(  # noqa: ASYNC110 - the server gives no other sign
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                await asyncio.sleep(0.01)
        assert await waiting is not None
    finally:
        await other.close()


async def _claim_in_transaction(connection: Connection, operation_id: str) -> places.Holder | None:
    async with connection.transaction():
        return await claimed(connection, operation_id)
