"""The bus knows who is revoked: told again until it does, from the database's list alone, whatever comes late."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import cast

import pytest

from manager import revocations as module
from manager.bus_auth import BusAuth
from manager.revocations import Revocations
from manager.store import hosts as store
from manager.store.migrate import migrate
from manager.store.pool import Pool, open_pool
from schemas.bus import Bus, BusTimeout
from schemas.hosts import AgentFacts
from schemas.ids import new_id

_YEAR_S = 365 * 24 * 3600


class Servers:
    """What the bus keeps: the last account that arrived. script: what happens before each push arrives, in their order."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.versions: list[int] = []
        self.script: list[Callable[[], Awaitable[None]]] = []

    async def push_account(self, _: Bus, revoked: Mapping[str, int], *, version: int) -> None:
        if self.script:
            await self.script.pop(0)()
        self.kept = dict(revoked)
        self.versions.append(version)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    made = await open_pool(database, size=2)
    async with made.acquire() as connection:
        await migrate(connection)
        await store.fleet_id(connection, new_id())
    yield made
    await made.close()


@pytest.fixture
async def told(pool: Pool) -> "AsyncIterator[tuple[Servers, Revocations]]":
    servers = Servers()
    made = _over(pool, servers)
    task = asyncio.create_task(made.run(), name="revocations")
    yield servers, made
    task.cancel()
    await asyncio.wait([task])


def _over(pool: Pool, servers: Servers) -> Revocations:
    return Revocations(pool, cast("BusAuth", servers), cast("Bus", None))


async def _joined(pool: Pool, key: str) -> str:
    async with pool.acquire() as connection:
        facts = AgentFacts(labels={}, kinds=(), agent_version="1", protocol_min=1, protocol_max=1)
        row = await store.insert(
            connection, host_id=new_id(), name=key, identity_key=key, sealing_key=b"k" * 32, facts=facts
        )
    assert row is not None
    return row.id


async def _revoked(pool: Pool, key: str) -> None:
    host_id = await _joined(pool, key)
    async with pool.acquire() as connection, connection.transaction():
        await store.revoke(connection, host_id)


async def test_revocation_is_pushed_dated_ahead_and_the_caller_told(
    pool: Pool, told: tuple[Servers, Revocations]
) -> None:
    servers, revocations = told
    await _joined(pool, "stays")
    await _revoked(pool, "gone")
    assert await revocations.told(5)
    assert set(servers.kept) == {"gone"}
    assert servers.kept["gone"] > servers.versions[-1] + 9 * _YEAR_S


async def test_push_that_times_out_is_repeated_until_it_arrives(
    pool: Pool, told: tuple[Servers, Revocations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF_BASE_S", 0.01)
    servers, revocations = told

    async def fail() -> None:
        raise BusTimeout("no answer")

    assert await revocations.told(5)
    servers.script = [fail, fail, fail]
    await _revoked(pool, "gone")
    assert await revocations.told(5)
    assert set(servers.kept) == {"gone"}


async def test_push_under_way_holds_no_connection_and_its_caller_waits_no_longer_than_asked(
    pool: Pool, told: tuple[Servers, Revocations]
) -> None:
    servers, revocations = told
    assert await revocations.told(5)
    is_under_way, may_arrive = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        is_under_way.set()
        await may_arrive.wait()

    servers.script = [hang]
    await _revoked(pool, "gone")
    assert not await revocations.told(0.05)
    await is_under_way.wait()
    async with asyncio.timeout(2), pool.acquire():  # the other one is all that is left
        await _revoked(pool, "gone too")
    waiting = asyncio.create_task(revocations.told(5))
    may_arrive.set()
    assert await waiting
    assert set(servers.kept) == {"gone", "gone too"}


async def test_push_of_an_older_list_that_comes_late_is_overtaken_by_its_own_replica(
    pool: Pool, told: tuple[Servers, Revocations]
) -> None:
    servers, revocations = told
    assert await revocations.told(5)
    other = _over(pool, servers)
    task = asyncio.create_task(other.run(), name="another replica")
    assert await other.told(5)

    async def another_revokes_meanwhile() -> None:
        await _revoked(pool, "second")
        assert await other.told(5)

    await _revoked(pool, "first")
    servers.script = [another_revokes_meanwhile]
    assert await revocations.told(5)
    assert set(servers.kept) == {"first", "second"}
    task.cancel()
    await asyncio.wait([task])


async def test_push_nobody_asked_for_comes_from_time_to_time(
    pool: Pool, told: tuple[Servers, Revocations], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the revocation of a replica that died before it told."""
    monkeypatch.setattr(module, "_AGAIN_S", 0.05)
    servers, revocations = told
    assert await revocations.told(5)
    await _revoked(pool, "gone")
    async with asyncio.timeout(5):
        while not servers.kept:  # noqa: ASYNC110  # the stand-in has no event
            await asyncio.sleep(0.01)


async def test_account_version_rises_with_every_revocation_whatever_the_clock_says(pool: Pool) -> None:
    versions: list[int] = []
    await pool.execute("UPDATE fleet SET account_version = account_version + 100000")  # a clock that was ahead
    for name in ("a", "b", "c"):
        await _revoked(pool, name)
        async with pool.acquire() as connection:
            versions.append((await store.account(connection, newer_than_s=10))[0])
    assert versions == [versions[0], versions[0] + 1, versions[0] + 2]


async def test_account_leaves_out_revocations_of_long_ago(pool: Pool) -> None:
    for name in ("old", "new"):
        await _revoked(pool, name)
    await pool.execute("UPDATE host SET revoked_at = now() - interval '1 hour' WHERE name = 'old'")
    async with pool.acquire() as connection:
        assert set((await store.account(connection, newer_than_s=3000))[1]) == {"new"}
