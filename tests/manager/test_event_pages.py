"""The audit log's filters on a real database."""

import datetime as dt
from collections.abc import AsyncIterator

import pytest

from manager.events import Events
from manager.store import events
from manager.store.migrate import migrate
from manager.store.pool import Connection, connect, open_pool
from schemas.events import EventType

FLEET, ONE, OTHER, NONE = (f"01900000-0000-7000-8000-00000000000{n}" for n in range(4))


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    """With three sealed events: of one backend, of another, and of a host that has the first one's id."""
    connection = await connect(database)
    await migrate(connection)
    await connection.execute("INSERT INTO fleet (id) VALUES ($1)", FLEET)
    for type_, collection, subject_id in (
        (EventType.BACKEND_CREATED, "storage_backends", ONE),
        (EventType.BACKEND_CREATED, "storage_backends", OTHER),
        (EventType.HOST_JOINED, "hosts", ONE),
    ):
        async with connection.transaction():
            await events.append(
                connection, type=type_, collection=collection, subject_id=subject_id, actor="token:a", request_id="r", data={}
            )  # fmt: skip
    assert await events.seal(connection, FLEET) == 3
    yield connection
    await connection.close()


@pytest.mark.parametrize(
    ("subject", "sequences"),
    [
        (None, ["1", "2", "3"]),
        (ONE, ["1", "3"]),
        (f"storage_backends/{ONE}", ["1"]),
        (f"hosts/{ONE}", ["3"]),
        (NONE, []),
        ("storage_backends", []),
        ("storage_backends/tank", []),
        ("", []),
    ],
)
async def test_events_are_filtered_by_id_or_by_whole_subject(
    connection: Connection, subject: str | None, sequences: list[str]
) -> None:
    found = await events.page(connection, FLEET, after=None, limit=10, subject=subject)
    assert [event.sequence for event in found] == sequences
    found = await events.page(connection, FLEET, after=None, limit=10, subject=subject, is_newest_first=True)
    assert [event.sequence for event in found] == sequences[::-1]


async def test_pages_of_either_order_follow_on_their_cursor_without_hole_or_repeat(
    database: str, connection: Connection
) -> None:
    pool = await open_pool(database, size=2)
    for is_newest_first, whole in ((False, ["1", "2", "3"]), (True, ["3", "2", "1"])):
        seen: list[str] = []
        cursor: str | None = None
        while cursor is not None or not seen:
            items, cursor = await Events(pool, FLEET).page(limit=1, cursor=cursor, is_newest_first=is_newest_first)
            seen += [event.sequence for event in items]
        assert seen == whole
    await pool.close()


@pytest.mark.parametrize("is_newest_first", [False, True])
@pytest.mark.parametrize(
    ("type_", "actor", "sequence"),
    [("host.left", None, "2000"), (None, "token:rare", "3000"), ("backend.updated", "token:rare", "3000")],
)
async def test_rare_events_are_found_without_reading_the_log(
    connection: Connection, type_: str | None, actor: str | None, sequence: str, is_newest_first: bool
) -> None:
    """Also after others have asked the same connection by a time, for which there is but the walk through the log."""
    await connection.execute(
        "INSERT INTO event (id, type, subject, subject_id, actor, request_id, data, sequence, prevhash, hash)"
        " SELECT gen_random_uuid(), CASE WHEN g = 2000 THEN 'host.left' ELSE 'backend.updated' END, 'hosts/x', $1,"
        " CASE WHEN g = 3000 THEN 'token:rare' ELSE 'token:' || g % 5 END, 'r', '{}', g, '', '' FROM generate_series(4, 5000) g",
        ONE,
    )  # fmt: skip
    await connection.execute("ANALYZE event")

    async def found(type_: str | None, actor: str | None, since: dt.datetime | None = None) -> list[str]:
        page = await events.page(
            connection,
            FLEET,
            after=None,
            limit=3,
            is_newest_first=is_newest_first,
            type=type_,
            actor=actor,
            since=since,
        )
        return [event.sequence for event in page]

    async def read_rows() -> int:
        """Of the log, by this transaction so far."""
        return int(
            await connection.fetchval(
                "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'event'"
            )
        )

    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    for _ in range(8):
        assert await found(None, None, later) == []
    async with connection.transaction():
        before = await read_rows()
        assert await found(type_, actor) == [sequence]
        assert await read_rows() - before < 20
