"""Who holds a place in which one saga at a time makes its marks, and until when."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from manager.store import backends, hosts, places
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


async def add_host(connection: Connection, name: str) -> str:
    host_id = new_id()
    await connection.execute(
        "INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, $2, $2, '')", host_id, name
    )
    return host_id


async def add_backend(connection: Connection, state: str = "creating") -> str:
    backend_id = new_id()
    await backends.insert_creating(
        connection, backend_id=backend_id, name="san", kind="iscsi_lvm", config={}, credential_version=0, labels={},
        selector=HostSelector(),
    )  # fmt: skip
    await connection.execute("UPDATE backend SET state = $2 WHERE id = $1", backend_id, state)
    return backend_id


async def initialization(
    connection: Connection,
    backend_id: str,
    first: str,
    *,
    state: str = "failed",
    is_begun: bool = True,
    is_answered: bool = False,
    age_s: float = 1.0,
) -> str:
    """One that is over, whatever its problem was: no_agent and agent_timeout say the same of a host that fell silent."""
    operation_id = new_id()
    await connection.execute(
        "INSERT INTO operation (id, kind, version, key, subject, params, state, step, output, deadline, fence, actor, request_id,"
        " error, created_at, updated_at) VALUES ($1, 'backend.initialize', 3, 'backend:' || $2::uuid, '', $3, $4, 0, $5, now(), 1, '', '',"
        " $6, clock_timestamp(), now() - make_interval(secs => $7))",
        operation_id, backend_id, {"first": first}, state, {places.ANSWERED: True} if is_answered else {},
        {"code": "no_agent"}, age_s,
    )  # fmt: skip
    if is_begun:
        await connection.execute(
            "INSERT INTO operation_step (operation_id, index, name, state) VALUES ($1, 3, 'initialize', 'undone')",
            operation_id,
        )
    return operation_id


async def claimed(
    connection: Connection, operation_id: str, backend_id: str = "", first: str | None = None
) -> places.Holder | None:
    return await places.claim(
        connection, PLACE, operation_id=operation_id, backend_id=backend_id or new_id(), first=first
    )


@pytest.mark.parametrize("state", ["running", "undoing", "stuck"])
async def test_place_of_a_saga_that_is_not_over_is_its_alone(connection: Connection, state: str) -> None:
    backend_id, first, second = new_id(), await operation(connection, state), await operation(connection)
    assert await claimed(connection, first, backend_id) is None
    assert await claimed(connection, second) == places.Holder(backend_id, ())
    assert await claimed(connection, first, backend_id) is None, "a step may be repeated"
    assert await places.claim(connection, "another", operation_id=second, backend_id=new_id(), first=None) is None


@pytest.mark.parametrize("state", ["succeeded", "failed"])
async def test_place_of_a_saga_that_ended_is_free(connection: Connection, state: str) -> None:
    first, second, third = [await operation(connection, word) for word in (state, "running", "running")]
    assert await claimed(connection, first) is None
    assert await claimed(connection, second) is None
    assert await claimed(connection, third) is not None


async def test_place_of_an_undone_add_waits_for_the_hosts_that_have_not_let_go(connection: Connection) -> None:
    host_id, backend_id = await add_host(connection, "hv1"), await add_backend(connection)
    assert await claimed(connection, await operation(connection, "failed"), backend_id) is None
    await backends.finish_removal(connection, backend_id, unconfirmed=[host_id], keep_row=False)
    second = await operation(connection)

    assert await claimed(connection, second) == places.Holder(backend_id, ("hv1",))

    await backends.confirm_absent(connection, host_id, [backend_id])
    assert await claimed(connection, second) is None


async def test_place_of_an_undone_add_whose_host_was_revoked_is_free(connection: Connection) -> None:
    host_id, backend_id = await add_host(connection, "hv1"), await add_backend(connection)
    assert await claimed(connection, await operation(connection, "failed"), backend_id) is None
    await backends.finish_removal(connection, backend_id, unconfirmed=[host_id], keep_row=False)
    await hosts.revoke(connection, host_id)

    assert await claimed(connection, await operation(connection)) is None


@dataclass(frozen=True)
class Unanswered:
    """A backend whose initialization on hv1 has ended without that host's word, and another host."""

    backend_id: str
    hv1: str
    hv2: str

    @property
    def holder(self) -> places.Holder:
        return places.Holder(self.backend_id, ("hv1",), is_initialized=True)


@pytest.fixture
async def unanswered(connection: Connection) -> Unanswered:
    hv1, hv2 = await add_host(connection, "hv1"), await add_host(connection, "hv2")
    made = Unanswered(await add_backend(connection, "needs_initialization"), hv1, hv2)
    assert await _try(connection, made, hv1) is None
    return made


async def _try(connection: Connection, its: Unanswered, first: str, **more: Any) -> places.Holder | None:
    """Another initialization of the backend claims the place, and ends as it is said."""
    return await claimed(
        connection, await initialization(connection, its.backend_id, first, **more), its.backend_id, first
    )


async def test_place_of_an_initialization_without_an_answer_is_for_no_other_backend(
    connection: Connection, unanswered: Unanswered
) -> None:
    for first in (unanswered.hv1, unanswered.hv2):
        assert await claimed(connection, await operation(connection), new_id(), first) == unanswered.holder


async def test_place_of_an_initialization_without_an_answer_is_for_its_backend_through_the_same_host_alone(
    connection: Connection, unanswered: Unanswered
) -> None:
    """The first host may be between its look and its wipe; two that initialized one LUN at once would destroy it."""
    another = await operation(connection)
    assert await claimed(connection, another, unanswered.backend_id, unanswered.hv2) == unanswered.holder
    owing = await places.owing(connection, unanswered.backend_id)
    assert owing == places.Owing(unanswered.hv1, "hv1")
    assert await claimed(connection, another, unanswered.backend_id, unanswered.hv1) is None


async def test_place_is_kept_though_a_later_try_never_came_to_its_host(
    connection: Connection, unanswered: Unanswered
) -> None:
    assert await _try(connection, unanswered, unanswered.hv1, is_begun=False) is None
    assert await claimed(connection, await operation(connection)) == unanswered.holder


@pytest.mark.parametrize("state", ["failed", "succeeded"])
async def test_place_is_free_once_the_host_has_answered_a_later_try(
    connection: Connection, unanswered: Unanswered, state: str
) -> None:
    await _try(connection, unanswered, unanswered.hv1, state=state, is_answered=state == "failed")
    assert await places.owing(connection, unanswered.backend_id) is None
    assert await claimed(connection, await operation(connection), unanswered.backend_id, unanswered.hv2) is None


async def test_place_of_an_initialization_that_never_came_to_its_host_is_free(connection: Connection) -> None:
    backend_id, hv1 = await add_backend(connection, "needs_initialization"), await add_host(connection, "hv1")
    first = await initialization(connection, backend_id, hv1, is_begun=False)
    assert await claimed(connection, first, backend_id, hv1) is None
    assert await claimed(connection, await operation(connection)) is None


async def test_place_is_free_once_the_host_that_has_not_answered_is_revoked(
    connection: Connection, unanswered: Unanswered
) -> None:
    await hosts.revoke(connection, unanswered.hv1)
    assert await claimed(connection, await operation(connection)) is None


async def test_place_is_free_once_it_has_rested(connection: Connection, unanswered: Unanswered) -> None:
    await connection.execute(
        "UPDATE operation SET updated_at = now() - make_interval(secs => $1) WHERE kind = 'backend.initialize'",
        places.REST_S + 1,
    )
    assert await claimed(connection, await operation(connection)) is None


async def test_place_of_a_removed_backend_waits_until_the_host_has_let_go(
    connection: Connection, unanswered: Unanswered
) -> None:
    assert await backends.touched_hosts(connection, unanswered.backend_id) == [unanswered.hv1]
    await backends.finish_removal(connection, unanswered.backend_id, unconfirmed=[unanswered.hv1], keep_row=True)
    second = await operation(connection)
    assert await claimed(connection, second) == unanswered.holder

    await backends.confirm_absent(connection, unanswered.hv1, [unanswered.backend_id])
    assert await claimed(connection, second) is None


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
