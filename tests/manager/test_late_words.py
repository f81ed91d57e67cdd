"""Of two observations of one host the newer one stands, told by the host's own count: in the database and in the registry."""

import datetime as dt
from collections.abc import AsyncIterator

import msgspec
import pytest

from manager.registry import Registry
from manager.store import backends
from manager.store.migrate import migrate
from manager.store.pool import Pool, connect, open_pool
from schemas.agent_rpc import Observation
from schemas.backends import HealthStatus
from schemas.hosts import HostSelector
from schemas.ids import new_id

HOST, BACKEND = new_id(), new_id()
RED = Observation(
    backend_id=BACKEND, generation=1, status=HealthStatus.UNREACHABLE, order=5, observed_at=dt.datetime.now(dt.UTC)
)
#: An older word that was read later, so that it bears a later time.
LATE = msgspec.structs.replace(
    RED, order=4, status=HealthStatus.HEALTHY, observed_at=RED.observed_at + dt.timedelta(seconds=9)
)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    """With one host and one backend."""
    connection = await connect(database)
    await migrate(connection)
    await connection.execute("INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, 'hv1', 'k', '')", HOST)
    await backends.insert_creating(
        connection, backend_id=BACKEND, name="tank", kind="nfs", config={}, credential_version=0, labels={},
        selector=HostSelector(),
    )  # fmt: skip
    await connection.close()
    pool = await open_pool(database, size=2)
    yield pool
    await pool.close()


@pytest.fixture
async def registry(pool: Pool) -> Registry:
    registry = Registry(pool, host_silent_s=60, observation_stale_s=3600)
    await registry.load()
    registry.alive(HOST)
    return registry


async def status_in_database(pool: Pool) -> str:
    return str(await pool.fetchval("SELECT status FROM backend_host"))


@pytest.mark.parametrize(
    ("second", "stands"),
    [
        (LATE, "unreachable"),
        (msgspec.structs.replace(LATE, order=5), "healthy"),
        (msgspec.structs.replace(LATE, order=6, observed_at=RED.observed_at - dt.timedelta(seconds=99)), "healthy"),
        # A count that was far too high once does not hold the column up for ever.
        (msgspec.structs.replace(LATE, observed_at=RED.observed_at + dt.timedelta(seconds=61)), "healthy"),
        # The manager's own words have no order.
        (msgspec.structs.replace(LATE, order=0), "healthy"),
        (msgspec.structs.replace(LATE, order=0, observed_at=RED.observed_at - dt.timedelta(seconds=1)), "unreachable"),
    ],
)
async def test_later_word_stands_only_if_it_is_the_newer(
    pool: Pool, registry: Registry, second: Observation, stands: str
) -> None:
    async with pool.acquire() as connection:
        for seen in (RED, second):
            await backends.record(connection, HOST, [seen])
            registry.observe(HOST, [seen])
    assert await status_in_database(pool) == stands
    assert registry.cells(BACKEND)[0].status == stands
