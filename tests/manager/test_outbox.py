"""The relay: each event once and in order in the stream, whoever was killed when; and none that blocks the rest."""

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from manager.event_stream import Ack, EventStream
from manager.outbox import Relay, StreamSettings
from manager.store import events, hosts
from manager.store.migrate import migrate
from manager.store.pool import connect
from schemas import subjects
from schemas.bus import Bus, BusTimeout
from schemas.events import CloudEvent, EventType, chain_hash, verify_chain
from schemas.ids import new_id
from tests.bus.nats_server import NatsServer

_SETTINGS = StreamSettings(max_age_s=3600, max_bytes=2**30, replicas=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path)
    made.start()
    yield made
    made.stop()


class Desk:
    """A database with an outbox, the relay's bus, and what has come into the stream."""

    def __init__(self, url: str, bus: Bus, connection: "asyncpg.Connection[Any]", fleet_id: str) -> None:
        self.url = url
        self.bus = bus
        self.connection = connection
        self.fleet_id = fleet_id

    async def append(self, count: int, **data: Any) -> None:
        for number in range(count):
            await events.append(
                self.connection,
                type=EventType.BACKEND_UPDATED,
                collection="storage_backends",
                subject_id=new_id(),
                actor="test",
                request_id="r",
                data={"number": number, **data},
            )

    @contextlib.asynccontextmanager
    async def relay(self) -> AsyncGenerator[Relay]:
        relay = Relay(self.url, self.bus, self.fleet_id, _SETTINGS)
        task = asyncio.create_task(relay.run(), name="relay")
        try:
            yield relay
        finally:
            while not task.done():
                task.cancel()  # more than once: nats-py may swallow one (manager/app.py)
                await asyncio.wait([task], timeout=0.5)

    async def all_published(self) -> None:
        async with asyncio.timeout(20):
            waiting = "SELECT EXISTS (SELECT FROM event WHERE published_at IS NULL)"
            while await self.connection.fetchval(waiting):  # noqa: ASYNC110  # nothing says when a row is marked
                await asyncio.sleep(0.02)

    async def streamed(self) -> list[CloudEvent]:
        found: list[CloudEvent] = []
        while True:
            wanted = msgspec.json.encode({"seq": len(found) + 1})
            answer = await self.bus.request(f"$JS.API.STREAM.MSG.GET.{subjects.STREAM}", wanted, timeout_s=5)
            message = msgspec.json.decode(answer, type=dict[str, Any]).get("message")
            if message is None:
                return found
            found.append(msgspec.json.decode(base64.b64decode(message["data"]), type=CloudEvent))


@pytest.fixture
async def desk(database: str, server: NatsServer) -> AsyncIterator[Desk]:
    connection = await connect(database)
    await migrate(connection)
    bus = Bus(
        servers=[server.url],
        creds_file=server.creds.relay,
        name="relay",
        inbox_prefix=subjects.manager_inbox("test"),
        fail_fast=True,
        backoff_cap_s=0.3,
    )
    await bus.start(5)
    yield Desk(database, bus, connection, await hosts.fleet_id(connection, new_id()))
    await bus.close()
    await connection.close()


def _numbers(found: list[CloudEvent]) -> list[int]:
    return [int(event.sequence) for event in found]


async def test_relay_killed_before_its_mark_and_away_for_long_stores_nothing_twice(desk: Desk) -> None:
    """The stream does not know the ids any more, for they are older than its window."""
    await desk.append(5)
    await events.seal(desk.connection, desk.fleet_id)
    await EventStream(desk.bus).ensure()
    for sealed in await events.unpublished(desk.connection, desk.fleet_id):
        subject = subjects.event(sealed.event.type, sealed.subject_id)
        await EventStream(desk.bus).publish_one(
            subject, msgspec.json.encode(sealed.event), f"forgotten {sealed.event.id}"
        )
    await desk.append(3)
    async with desk.relay():
        await desk.all_published()
    assert _numbers(await desk.streamed()) == list(range(1, 9))


async def test_relay_one_of_many_under_way_lost_sends_it_and_the_rest_in_order(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.append(300)
    publish = EventStream.publish_one
    lost = 0

    async def lose_one(
        stream: EventStream, subject: str, payload: bytes, message_id: str, *, after: int | None = None
    ) -> Ack:
        nonlocal lost
        if b'"sequence":"40"' in payload and not lost:
            lost += 1
            raise BusTimeout("lost")
        return await publish(stream, subject, payload, message_id, after=after)

    monkeypatch.setattr(EventStream, "publish_one", lose_one)
    async with desk.relay():
        await desk.all_published()
    found = await desk.streamed()
    assert lost == 1
    assert _numbers(found) == list(range(1, 301))
    assert verify_chain(found) is None


async def test_relay_an_answer_lost_though_stored_sends_nothing_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.append(50)
    publish = EventStream.publish_one
    is_lost = False

    async def lose_answer(
        stream: EventStream, subject: str, payload: bytes, message_id: str, *, after: int | None = None
    ) -> Ack:
        nonlocal is_lost
        ack = await publish(stream, subject, payload, f"never seen again {new_id()}", after=after)
        if b'"sequence":"20"' in payload and not is_lost:
            is_lost = True
            raise BusTimeout("lost")
        return ack

    monkeypatch.setattr(EventStream, "publish_one", lose_answer)
    async with desk.relay():
        await desk.all_published()
    assert is_lost
    assert _numbers(await desk.streamed()) == list(range(1, 51))


async def test_relay_an_event_stored_out_of_order_before_stops_nothing(desk: Desk) -> None:
    """What an earlier version could leave: event 2 came before event 1, and the stream still knows its id."""
    await desk.append(3)
    await events.seal(desk.connection, desk.fleet_id)
    await EventStream(desk.bus).ensure()
    sealed = await events.unpublished(desk.connection, desk.fleet_id)
    for each in (sealed[1], sealed[0]):
        subject = subjects.event(each.event.type, each.subject_id)
        await EventStream(desk.bus).publish_one(subject, msgspec.json.encode(each.event), each.event.id)
    async with desk.relay():
        await desk.all_published()
    assert _numbers(await desk.streamed()) == [2, 1, 3]


async def test_relay_of_a_stream_that_ends_with_a_foreign_event_goes_on_behind_it_and_says_so(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """A database restored from a backup: its numbers lie behind the stream's."""
    await desk.append(2)
    async with desk.relay():
        await desk.all_published()
    await desk.connection.execute("DELETE FROM event")
    await desk.connection.execute("UPDATE fleet SET chain_sequence = 0, chain_hash = repeat('0', 64)")
    await desk.append(2)
    with caplog.at_level(logging.ERROR):
        async with desk.relay():
            await desk.all_published()
    assert _numbers(await desk.streamed()) == [1, 2, 1, 2]
    assert "this database does not have" in caplog.text


async def test_relay_an_event_over_the_limit_goes_out_as_a_stub_with_its_place_and_hash(desk: Desk) -> None:
    """Such as an earlier version appended; what follows is not held up."""
    await desk.append(1)
    await desk.connection.execute("UPDATE event SET data = jsonb_build_object('left', repeat('x', 2000000))")
    await desk.append(1)
    async with desk.relay():
        await desk.all_published()
    stub, second = await desk.streamed()
    assert _numbers([stub, second]) == [1, 2]
    assert stub.data["stub"]["bytes"] > 2_000_000
    (whole, _) = await events.page(desk.connection, desk.fleet_id, after=0, limit=2)
    assert (stub.hash, stub.prevhash) == (whole.hash, whole.prevhash) == (chain_hash(whole), whole.prevhash)
    assert second.prevhash == stub.hash


async def test_append_of_much_data_keeps_counts_and_the_operation_that_shows_it(desk: Desk) -> None:
    subject_id, operation_id = new_id(), new_id()
    await desk.connection.execute(
        "INSERT INTO operation (id, kind, version, key, subject, params, step, deadline, fence, actor, request_id)"
        " VALUES ($1, 'backend.delete', 1, $2, $3, '{}', 0, now(), 1, 'test', 'r')",
        operation_id, subject_id, f"storage_backends/{subject_id}",
    )  # fmt: skip
    left = {f"host-{n}": ["a sentence of what was left there " * 9] * 20 for n in range(100)}
    await events.append(
        desk.connection,
        type=EventType.BACKEND_DELETED,
        collection="storage_backends",
        subject_id=subject_id,
        actor="test",
        request_id="r",
        data={"name": "tank", "after": None, "left": left, "pending_hosts": ["hv1"]},
    )
    data = await desk.connection.fetchval("SELECT data FROM event")
    size = len(msgspec.json.encode(left))
    assert data == {
        "name": "tank",
        "after": None,
        "left": {"omitted": 100, "bytes": size},
        "pending_hosts": ["hv1"],
        "operation_id": operation_id,
    }


async def test_append_of_data_below_the_limit_keeps_it_whole(desk: Desk) -> None:
    await desk.append(1, left={"hv1": ["x" * 60_000]})
    assert await desk.connection.fetchval("SELECT data FROM event") == {"number": 0, "left": {"hv1": ["x" * 60_000]}}


async def test_oldest_unpublished_is_the_age_of_the_first_that_waits(desk: Desk) -> None:
    assert await events.oldest_unpublished_s(desk.connection) == 0
    await desk.append(2)
    await desk.connection.execute("UPDATE event SET time = now() - interval '90 seconds' WHERE n = 2")
    assert 90 <= await events.oldest_unpublished_s(desk.connection) < 100
    await events.seal(desk.connection, desk.fleet_id)
    assert 90 <= await events.oldest_unpublished_s(desk.connection) < 100
    async with desk.relay():
        await desk.all_published()
    assert await events.oldest_unpublished_s(desk.connection) == 0
