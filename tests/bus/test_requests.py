"""Requests, subscriptions and events over a healthy connection."""

import asyncio
import logging
import signal
import time
from typing import Any

import msgspec
import pytest

from schemas import subjects
from schemas.bus import Ack, Bus, BusRefused, BusTimeout, Message, NoResponders, Published, StreamEnd
from schemas.subjects import Uplink
from tests.bus.conftest import MakeBus, agent_bus, until
from tests.bus.nats_server import NatsServer


async def _manager(server: NatsServer, make_bus: MakeBus) -> Bus:
    bus = make_bus(server.url, server.creds.commands)
    await bus.start(5)
    return bus


async def _relay(server: NatsServer, make_bus: MakeBus, **settings: Any) -> Bus:
    bus = make_bus(server.url, server.creds.relay)
    await bus.start(5)
    await bus.ensure_stream(subjects.STREAM, [subjects.EVENTS], **settings)
    return bus


def _events(count: int) -> list[tuple[str, bytes, str]]:
    return [("stowage.event.backend.created.x", str(n).encode(), f"id-{n}") for n in range(count)]


async def _info(relay: Bus) -> Any:
    return msgspec.json.decode(await relay.request(f"$JS.API.STREAM.INFO.{subjects.STREAM}", b"", timeout_s=5))


async def test_request_agent_answers_reply_returned(shared_server: NatsServer, make_bus: MakeBus) -> None:
    agent = shared_server.enrol()
    host = agent_bus(make_bus, shared_server.url, agent)

    async def answer(message: Message) -> None:
        await host.publish(message.reply, message.subject.encode() + b":" + message.data)

    host.subscribe(subjects.commands_of(agent.host_id), answer)
    await host.start(5)
    manager = await _manager(shared_server, make_bus)
    subject = subjects.command(agent.host_id, "probe")
    assert await manager.request(subject, b"hello", timeout_s=2) == f"{subject}:hello".encode()


async def test_request_nobody_listens_raises_no_responders_at_once(
    shared_server: NatsServer, make_bus: MakeBus
) -> None:
    manager = await _manager(shared_server, make_bus)
    began = time.monotonic()
    with pytest.raises(NoResponders):
        await manager.request(subjects.command(shared_server.enrol().host_id, "probe"), b"", timeout_s=5)
    assert time.monotonic() - began < 0.5


async def test_request_no_answer_raises_timeout(shared_server: NatsServer, make_bus: MakeBus) -> None:
    agent = shared_server.enrol()
    host = agent_bus(make_bus, shared_server.url, agent)

    async def ignore(_: Message) -> None:
        return

    host.subscribe(subjects.commands_of(agent.host_id), ignore)
    await host.start(5)
    manager = await _manager(shared_server, make_bus)
    with pytest.raises(BusTimeout):
        await manager.request(subjects.command(agent.host_id, "probe"), b"", timeout_s=0.1)


@pytest.mark.parametrize("subject", ["stowage.cmd.a b", "stowage.cmd.a\r\nPUB x 0", ""])
async def test_publish_subject_out_of_form_refused(shared_server: NatsServer, make_bus: MakeBus, subject: str) -> None:
    manager = await _manager(shared_server, make_bus)
    with pytest.raises(BusRefused):
        await manager.publish(subject, b"")
    with pytest.raises(BusRefused):
        await manager.request(subject, b"", timeout_s=0.2)
    assert manager.is_usable


async def test_publish_too_large_refused_and_connection_kept(shared_server: NatsServer, make_bus: MakeBus) -> None:
    manager = await _manager(shared_server, make_bus)
    with pytest.raises(BusRefused):
        await manager.publish("stowage.cmd.x.y", b"x" * (1024 * 1024 + 1))
    await manager.flush()
    assert manager.stats.reconnects == 0


async def test_handler_raising_is_logged_and_next_message_handled(
    shared_server: NatsServer, make_bus: MakeBus, caplog: pytest.LogCaptureFixture
) -> None:
    agent = shared_server.enrol()
    host = agent_bus(make_bus, shared_server.url, agent)
    heard: list[bytes] = []

    async def fail_first(message: Message) -> None:
        heard.append(message.data)
        if len(heard) == 1:
            raise RuntimeError("ours")

    host.subscribe(subjects.commands_of(agent.host_id), fail_first)
    await host.start(5)
    manager = await _manager(shared_server, make_bus)
    with caplog.at_level(logging.ERROR):
        await manager.publish(subjects.command(agent.host_id, "nudge"), b"1")
        await manager.publish(subjects.command(agent.host_id, "nudge"), b"2")
        await until(lambda: heard == [b"1", b"2"])
    assert [record.getMessage() for record in caplog.records] == ["bus handler failed"]


async def test_handlers_slow_run_beside_one_another_up_to_their_bound(
    shared_server: NatsServer, make_bus: MakeBus
) -> None:
    agent = shared_server.enrol()
    host = agent_bus(make_bus, shared_server.url, agent)
    running = 0
    most = 0
    done = 0
    go_on = asyncio.Event()

    async def work(_: Message) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        done += 1

    host.subscribe(subjects.commands_of(agent.host_id), work, concurrency=3)
    await host.start(5)
    manager = await _manager(shared_server, make_bus)
    for _ in range(10):
        await manager.publish(subjects.command(agent.host_id, "nudge"), b"")
    await until(lambda: running == 3)
    await host.flush()
    assert running == 3
    go_on.set()
    await until(lambda: done == 10)
    assert most == 3


async def test_subscribe_after_start_hears(shared_server: NatsServer, make_bus: MakeBus) -> None:
    agent = shared_server.enrol()
    host = agent_bus(make_bus, shared_server.url, agent)
    heard: list[bytes] = []

    async def hear(message: Message) -> None:
        heard.append(message.data)

    await host.start(5)
    host.subscribe(subjects.commands_of(agent.host_id), hear)
    await host.flush()
    manager = await _manager(shared_server, make_bus)
    await manager.publish(subjects.command(agent.host_id, "nudge"), b"x")
    await manager.flush()
    await until(lambda: heard == [b"x"])


async def test_subscribe_queue_each_message_to_one_replica(shared_server: NatsServer, make_bus: MakeBus) -> None:
    agent = shared_server.enrol()
    heard: list[list[bytes]] = [[], []]

    async def note(into: list[bytes], message: Message) -> None:
        into.append(message.data)

    for into in heard:
        replica = make_bus(shared_server.url, shared_server.creds.uplink)

        async def hear(message: Message, into: list[bytes] = into) -> None:
            await note(into, message)

        replica.subscribe(subjects.ALL_UPLINKS, hear, queue=subjects.UPLINK_QUEUE)
        await replica.start(5)
    host = agent_bus(make_bus, shared_server.url, agent)
    await host.start(5)
    sent = [str(n).encode() for n in range(40)]
    for body in sent:
        await host.publish(subjects.uplink(agent.host_id, Uplink.BEAT), body)
    await until(lambda: len(heard[0]) + len(heard[1]) == len(sent))
    assert sorted(heard[0] + heard[1]) == sorted(sent)
    assert heard[0] and heard[1]


async def test_events_published_in_order_right_behind_the_end(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    assert await relay.stream_end(subjects.STREAM) == StreamEnd(0, None, 2**20 - 1024)
    published = await relay.publish_events(_events(600), after=0)
    assert published == Published([Ack(sequence=n + 1, is_duplicate=False) for n in range(600)], None)
    assert await relay.stream_end(subjects.STREAM) == StreamEnd(600, b"599", 2**20 - 1024)
    again = await relay.publish_event("stowage.event.backend.created.x", b"", "id-0")
    assert again == Ack(sequence=1, is_duplicate=True)


async def test_events_published_behind_an_older_end_are_refused(server: NatsServer, make_bus: MakeBus) -> None:
    """As a relay does that was paused while its successor worked."""
    relay = await _relay(server, make_bus)
    await relay.publish_events(_events(3), after=0)
    late = await relay.publish_events([("stowage.event.a.b", b"late", "late")], after=1)
    assert late.acks == []
    assert isinstance(late.failure, BusRefused)
    assert (await relay.stream_end(subjects.STREAM)).payload == b"2"


async def test_events_one_of_many_under_way_lost_keeps_back_all_after_it(
    server: NatsServer, make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = await _relay(server, make_bus)
    publish = Bus.publish_event

    async def lose_one(bus: Bus, subject: str, payload: bytes, message_id: str, *, after: int | None = None) -> Ack:
        if message_id == "id-40":
            raise BusTimeout("lost")
        return await publish(bus, subject, payload, message_id, after=after)

    monkeypatch.setattr(Bus, "publish_event", lose_one)
    published = await relay.publish_events(_events(300), after=0)
    assert [ack.sequence for ack in published.acks] == list(range(1, 41))
    assert isinstance(published.failure, BusTimeout)
    assert (await relay.stream_end(subjects.STREAM)).payload == b"39"


async def test_events_of_many_bytes_are_not_under_way_at_once(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    events = [("stowage.event.a.b", b"x" * 500_000, str(n)) for n in range(40)]
    published = await relay.publish_events(events, after=0)
    assert (len(published.acks), published.failure) == (40, None)


async def test_stream_end_of_a_stream_without_its_messages_is_its_sequence(
    server: NatsServer, make_bus: MakeBus
) -> None:
    relay = await _relay(server, make_bus, max_bytes=1_000)
    await relay.publish_events(_events(3), after=0)
    await relay.publish_event("stowage.event.a.b", b"x" * 2_000, "larger than the stream, so all goes")
    end = await relay.stream_end(subjects.STREAM)
    assert (end.sequence, end.payload) == (4, None)
    assert (await relay.publish_events([("stowage.event.a.b", b"", "next")], after=4)).failure is None


async def test_events_acked_survive_server_killed(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    await relay.publish_event("stowage.event.a.b", b"one", "1")
    server.stop(signal.SIGKILL)
    server.start()
    await until(lambda: relay.stats.reconnects == 1)
    assert await relay.publish_event("stowage.event.a.b", b"one", "1") == Ack(sequence=1, is_duplicate=True)


async def test_events_one_too_large_none_is_sent(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    with pytest.raises(BusRefused):
        await relay.publish_events([("stowage.event.a.b", b"", "1"), ("stowage.event.a.b", b"x" * 2**21, "2")], after=0)
    assert (await relay.publish_event("stowage.event.a.b", b"", "3")).sequence == 1


async def test_ensure_stream_that_exists_keeps_its_operators_settings(server: NatsServer, make_bus: MakeBus) -> None:
    """Somebody gave it more room and a longer life, by other means; a manager that starts must not take them away."""
    relay = await _relay(server, make_bus)
    await relay.publish_event("stowage.event.a.b", b"", "1")
    config = (await _info(relay))["config"]
    changed = config | {"max_age": 7 * 24 * 3600 * 10**9, "max_bytes": 2**34, "max_msg_size": 100_000}
    await relay.request(f"$JS.API.STREAM.UPDATE.{subjects.STREAM}", msgspec.json.encode(changed), timeout_s=5)
    before = (await _info(relay))["config"]
    await relay.ensure_stream(subjects.STREAM, [subjects.EVENTS], max_age_s=60, max_bytes=1_000_000)
    assert (await _info(relay))["config"] == before
    assert (await relay.stream_end(subjects.STREAM)).message_bytes == 100_000 - 1024
    assert (await relay.publish_event("stowage.event.a.b", b"", "2")).sequence == 2


async def test_ensure_stream_that_exists_gets_our_subjects_and_window(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus)
    config = (await _info(relay))["config"]
    changed = config | {"max_age": 3600 * 10**9, "duplicate_window": 10**9, "subjects": ["stowage.event.old.>"]}
    await relay.request(f"$JS.API.STREAM.UPDATE.{subjects.STREAM}", msgspec.json.encode(changed), timeout_s=5)
    await relay.ensure_stream(subjects.STREAM, [subjects.EVENTS])
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
    await relay.ensure_stream(subjects.STREAM, [subjects.EVENTS])
    assert (await _info(relay))["config"]["duplicate_window"] == 60 * 10**9


async def test_ensure_stream_that_is_missing_is_made_as_asked(server: NatsServer, make_bus: MakeBus) -> None:
    relay = await _relay(server, make_bus, max_age_s=3600, max_bytes=10**6, duplicate_window_s=60)
    config = (await _info(relay))["config"]
    assert (config["max_age"], config["max_bytes"], config["num_replicas"]) == (3600 * 10**9, 10**6, 1)


async def test_publish_event_without_a_stream_raises_no_responders(server: NatsServer, make_bus: MakeBus) -> None:
    relay = make_bus(server.url, server.creds.relay)
    await relay.start(5)
    with pytest.raises(NoResponders):
        await relay.publish_event("stowage.event.a.b", b"", "1")


async def test_ensure_stream_out_of_form_refused_with_reason(server: NatsServer, make_bus: MakeBus) -> None:
    relay = make_bus(server.url, server.creds.relay)
    await relay.start(5)
    with pytest.raises(BusRefused, match=r"STOWAGE_EVENTS: .+"):
        await relay.ensure_stream(subjects.STREAM, [subjects.EVENTS], replicas=3)
