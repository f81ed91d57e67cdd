"""The audit log is read again from end to end: whatever was done to it in the database is found, and where."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from manager.store import events
from manager.store.migrate import migrate
from manager.store.pool import Connection, Pool, open_pool
from manager.verification import KEPT_S, Verification
from schemas.events import GENESIS, ChainReport, EventType, chain_hash
from schemas.ids import new_id

FLEET = new_id()
NEVER = dt.datetime.fromtimestamp(0, dt.UTC)
INTACT = ChainReport(is_intact=True, events=7, first_broken=None, is_complete=True, verified_at=NEVER)


def broken(events: int) -> ChainReport:
    """After so many good ones."""
    return msgspec.structs.replace(INTACT, is_intact=False, events=events, first_broken=str(events + 1))


async def read(verification: Verification) -> ChainReport:
    """Its report; of when is told by NEVER, having been just now."""
    report = await verification.report()
    assert abs(dt.datetime.now(dt.UTC) - report.verified_at) < dt.timedelta(seconds=30)
    return msgspec.structs.replace(report, verified_at=NEVER)


@pytest.fixture
async def pool(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    """With seven sealed events, read two at a time."""
    monkeypatch.setattr("manager.verification._PAGE", 2)
    pool = await open_pool(database, size=4)
    async with pool.acquire() as connection:
        await migrate(connection)
        await connection.execute("INSERT INTO fleet (id) VALUES ($1)", FLEET)
    await add(pool, 7)
    yield pool
    await pool.close()


async def add(pool: Pool, count: int) -> None:
    async with pool.acquire() as connection:
        for number in range(count):
            async with connection.transaction():
                await events.append(
                    connection, type=EventType.BACKEND_CREATED, collection="storage_backends", subject_id=new_id(),
                    actor="token:a", request_id="r", data={"n": number, "text": "ü", "part": 0.1},
                )  # fmt: skip
        assert await events.seal(connection, FLEET) == count


@pytest.mark.parametrize(
    ("tampering", "report"),
    [
        ("SELECT", INTACT),
        ("""UPDATE event SET data = '{"n": 8}' WHERE sequence = 3""", broken(2)),
        ("UPDATE event SET actor = 'token:b' WHERE sequence = 3", broken(2)),
        ("UPDATE event SET type = 'host.exploded' WHERE sequence = 3", broken(2)),
        ("UPDATE event SET time = time + interval '1 ms' WHERE sequence = 7", broken(6)),
        ("UPDATE event SET hash = repeat('a', 64) WHERE sequence = 4", broken(3)),
        ("UPDATE event SET hash = NULL WHERE sequence = 4", broken(3)),
        ("UPDATE event SET sequence = NULL WHERE sequence = 5", broken(4)),
        ("DELETE FROM event WHERE sequence = 4", broken(3)),
        ("DELETE FROM event WHERE sequence = 1", broken(0)),
        ("DELETE FROM event WHERE sequence = 7", broken(6)),
        ("DELETE FROM event WHERE sequence > 4", broken(4)),
        ("DELETE FROM event", broken(0)),
        ("UPDATE event SET sequence = 8 WHERE sequence = 7", broken(6)),
        ("UPDATE fleet SET chain_sequence = 6", broken(5)),
        ("UPDATE fleet SET chain_hash = repeat('0', 64)", broken(6)),
        ("UPDATE event SET id = gen_random_uuid() WHERE sequence = 2", broken(1)),
    ],
)
async def test_tampering_is_found_where_it_is(pool: Pool, tampering: str, report: ChainReport) -> None:
    await pool.execute(tampering)
    assert await read(Verification(pool, FLEET)) == report


async def forge(pool: Pool, sequence: int, *, prevhash: str | None = None) -> None:
    """The event says something else now, with a hash that fits."""
    async with pool.acquire() as connection:
        await connection.execute(
            "UPDATE event SET actor = 'token:nobody', prevhash = coalesce($2, prevhash) WHERE sequence = $1",
            sequence, prevhash,
        )  # fmt: skip
        (event,) = await events.links(connection, FLEET, after=sequence - 1, up_to=sequence, limit=1)
        await connection.execute("UPDATE event SET hash = $2 WHERE sequence = $1", sequence, chain_hash(event))


async def test_forged_event_with_a_hash_that_fits_is_found_by_the_next_and_the_last_by_the_head(pool: Pool) -> None:
    await forge(pool, 7)
    assert await read(Verification(pool, FLEET)) == broken(6)
    await forge(pool, 3)
    assert await read(Verification(pool, FLEET)) == broken(3)
    await forge(pool, 1, prevhash="f" * 64)
    assert await read(Verification(pool, FLEET)) == broken(0)


async def test_event_that_was_added_behind_the_head_is_found(pool: Pool) -> None:
    await pool.execute(
        "INSERT INTO event (id, type, subject, subject_id, actor, request_id, data, sequence, prevhash, hash)"
        " SELECT gen_random_uuid(), type, subject, subject_id, actor, request_id, data, 8, hash, hash FROM event WHERE sequence = 7"
    )
    assert await read(Verification(pool, FLEET)) == broken(7)


async def test_empty_log_is_intact_and_what_waits_for_its_seal_is_no_harm(pool: Pool) -> None:
    await pool.execute("UPDATE event SET sequence = NULL, prevhash = NULL, hash = NULL")
    await pool.execute("UPDATE fleet SET chain_sequence = 0, chain_hash = $1", GENESIS)
    assert await read(Verification(pool, FLEET)) == msgspec.structs.replace(INTACT, events=0)


async def test_run_out_of_time_says_how_far_it_came_and_calls_nothing_intact(pool: Pool) -> None:
    report = await read(Verification(pool, FLEET, budget_s=0.0))
    assert report == msgspec.structs.replace(INTACT, is_intact=False, events=0, is_complete=False)


async def test_callers_share_one_run_and_its_report_which_is_kept_for_a_while(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = 0
    entered, gate = asyncio.Event(), asyncio.Event()
    chain_head = events.chain_head

    async def counted(connection: Connection) -> events.ChainHead:
        nonlocal heads
        heads += 1
        entered.set()
        await gate.wait()
        return await chain_head(connection)

    monkeypatch.setattr(events, "chain_head", counted)
    verification = Verification(pool, FLEET)
    callers = [asyncio.create_task(read(verification)) for _ in range(3)]
    await entered.wait()
    callers.pop().cancel()
    gate.set()
    assert await asyncio.gather(*callers) == [INTACT, INTACT]
    assert heads == 1
    await add(pool, 1)
    assert await verification.report() is await verification.report()
    assert (heads, await read(verification)) == (1, INTACT)
    now = time.monotonic()
    monkeypatch.setattr("manager.verification.time.monotonic", lambda: now + KEPT_S)
    assert (await read(verification)).events == 8
    assert heads == 2


async def test_run_ends_when_nobody_waits_for_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def hang(_connection: Connection) -> events.ChainHead:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    verification = Verification(pool, FLEET)
    with monkeypatch.context() as patch:
        patch.setattr(events, "chain_head", hang)
        caller = asyncio.create_task(verification.report())
        await entered.wait()
        caller.cancel()
        async with asyncio.timeout(5):
            await ended.wait()
    assert await read(verification) == INTACT
