"""The stream of events: published in order behind its end, and its operator's settings left to him."""

import signal
from typing import Any

import msgspec
import pytest

from manager.event_stream import Ack, EventStream, Published, StreamEnd
from schemas import subjects
from schemas.bus import Bus, BusRefused, BusTimeout, NoResponders
from tests.bus.conftest import MakeBus, until
from tests.bus.nats_server import NatsServer


async def _relay(server: NatsServer, make_bus: MakeBus, **settings: Any) -> Bus:
    bus = make_bus(server.url, server.creds.relay)
    await bus.start(5)
    await EventStream(bus).ensure(**settings)
    return bus


def _events(count: int) -> list[tuple[str, bytes, str]]:
    return [("stowage.event.backend.created.x", str(n).encode(), f"id-{n}") for n in range(count)]


async def _info(relay: Bus) -> Any:
    return msgspec.json.decode(await relay.request(f"$JS.API.STREAM.INFO.{subjects.STREAM}", b"", timeout_s=5))


async def test_events_published_in_order_right_behind_the_end(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    assert await EventStream(relay).end() == StreamEnd(0, None, 2**20 - 1024)
    published = await EventStream(relay).publish(_events(600), after=0)
    assert published == Published([Ack(sequence=n + 1, is_duplicate=False) for n in range(600)], None)
    assert await EventStream(relay).end() == StreamEnd(600, b"599", 2**20 - 1024)
    again = await EventStream(relay).publish_one("stowage.event.backend.created.x", b"", "id-0")
    assert again == Ack(sequence=1, is_duplicate=True)


async def test_events_published_behind_an_older_end_are_refused(server: NatsServer, make_bus: MakeBus) -> None:
    """As a relay does that was paused while its successor worked."""
    relay = await _relay(server, make_bus)
    await EventStream(relay).publish(_events(3), after=0)
    late = await EventStream(relay).publish([("stowage.event.a.b", b"late", "late")], after=1)
    assert late.acks == []
    assert isinstance(late.failure, BusRefused)
    assert (await EventStream(relay).end()).payload == b"2"


async def test_events_one_of_many_under_way_lost_keeps_back_all_after_it(
    server: NatsServer, make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = await _relay(server, make_bus)
    publish = EventStream.publish_one

    async def lose_one(
        stream: EventStream, subject: str, payload: bytes, message_id: str, *, after: int | None = None
    ) -> Ack:
        if message_id == "id-40":
            raise BusTimeout("lost")
        return await publish(stream, subject, payload, message_id, after=after)

    monkeypatch.setattr(EventStream, "publish_one", lose_one)
    published = await EventStream(relay).publish(_events(300), after=0)
    assert [ack.sequence for ack in published.acks] == list(range(1, 41))
    assert isinstance(published.failure, BusTimeout)
    assert (await EventStream(relay).end()).payload == b"39"


async def test_events_of_many_bytes_are_not_under_way_at_once(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    events = [("stowage.event.a.b", b"x" * 500_000, str(n)) for n in range(40)]
    published = await EventStream(relay).publish(events, after=0)
    assert (len(published.acks), published.failure) == (40, None)


async def test_stream_end_of_a_stream_without_its_messages_is_its_sequence(
    server: NatsServer, make_bus: MakeBus
) -> None:
    relay = await _relay(server, make_bus, max_bytes=1_000)
    await EventStream(relay).publish(_events(3), after=0)
    await EventStream(relay).publish_one("stowage.event.a.b", b"x" * 2_000, "larger than the stream, so all goes")
    end = await EventStream(relay).end()
    assert (end.sequence, end.payload) == (4, None)
    assert (await EventStream(relay).publish([("stowage.event.a.b", b"", "next")], after=4)).failure is None


async def test_events_acked_survive_server_killed(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    await EventStream(relay).publish_one("stowage.event.a.b", b"one", "1")
    server.stop(signal.SIGKILL)
    server.start()
    await until(lambda: relay.stats.reconnects == 1)
    assert await EventStream(relay).publish_one("stowage.event.a.b", b"one", "1") == Ack(sequence=1, is_duplicate=True)


async def test_events_one_too_large_none_is_sent(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    with pytest.raises(BusRefused):
        await EventStream(relay).publish(
            [("stowage.event.a.b", b"", "1"), ("stowage.event.a.b", b"x" * 2**21, "2")], after=0
        )
    assert (await EventStream(relay).publish_one("stowage.event.a.b", b"", "3")).sequence == 1


async def test_ensure_stream_that_exists_keeps_its_operators_settings(server: NatsServer, make_bus: MakeBus) -> None:
    """Somebody gave it more room and a longer life, by other means; a manager that starts must not take them away."""
    relay = await _relay(server, make_bus)
    await EventStream(relay).publish_one("stowage.event.a.b", b"", "1")
    config = (await _info(relay))["config"]
    changed = config | {"max_age": 7 * 24 * 3600 * 10**9, "max_bytes": 2**34, "max_msg_size": 100_000}
    await relay.request(f"$JS.API.STREAM.UPDATE.{subjects.STREAM}", msgspec.json.encode(changed), timeout_s=5)
    before = (await _info(relay))["config"]
    await EventStream(relay).ensure(max_age_s=60, max_bytes=1_000_000)
    assert (await _info(relay))["config"] == before
    assert (await EventStream(relay).end()).message_bytes == 100_000 - 1024
    assert (await EventStream(relay).publish_one("stowage.event.a.b", b"", "2")).sequence == 2


async def test_ensure_stream_that_exists_gets_our_subjects_and_window(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    config = (await _info(relay))["config"]
    changed = config | {"max_age": 3600 * 10**9, "duplicate_window": 10**9, "subjects": ["stowage.event.old.>"]}
    await relay.request(f"$JS.API.STREAM.UPDATE.{subjects.STREAM}", msgspec.json.encode(changed), timeout_s=5)
    await EventStream(relay).ensure()
    after = (await _info(relay))["config"]
    assert (after["subjects"], after["duplicate_window"]) == ([subjects.EVENTS], 600 * 10**9)
    assert after["max_age"] == 3600 * 10**9


async def test_ensure_stream_that_keeps_events_for_less_than_the_window_still_works(
    server: NatsServer, make_bus: MakeBus
) -> None:
    relay = await _relay(server, make_bus)
    config = (await _info(relay))["config"]
    changed = config | {"max_age": 60 * 10**9, "duplicate_window": 10**9}
    await relay.request(f"$JS.API.STREAM.UPDATE.{subjects.STREAM}", msgspec.json.encode(changed), timeout_s=5)
    await EventStream(relay).ensure()
    assert (await _info(relay))["config"]["duplicate_window"] == 60 * 10**9


async def test_ensure_stream_that_is_missing_is_made_as_asked(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus, max_age_s=3600, max_bytes=10**6, duplicate_window_s=60)
    config = (await _info(relay))["config"]
    assert (config["max_age"], config["max_bytes"], config["num_replicas"]) == (3600 * 10**9, 10**6, 1)


async def test_publish_event_without_a_stream_raises_no_responders(server: NatsServer, make_bus: MakeBus) -> None:
    relay = make_bus(server.url, server.creds.relay)
    await relay.start(5)
    with pytest.raises(NoResponders):
        await EventStream(relay).publish_one("stowage.event.a.b", b"", "1")


async def test_ensure_stream_out_of_form_refused_with_reason(server: NatsServer, make_bus: MakeBus) -> None:
    relay = make_bus(server.url, server.creds.relay)
    await relay.start(5)
    with pytest.raises(BusRefused, match=r"STOWAGE_EVENTS: .+"):
        await EventStream(relay).ensure(replicas=3)
