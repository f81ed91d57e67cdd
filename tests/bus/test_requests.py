"""Requests and subscriptions over a healthy connection."""

import asyncio
import logging
import time

import pytest

from schemas import subjects
from schemas.bus import Bus, BusRefused, BusTimeout, Message, NoResponders
from schemas.subjects import Uplink
from tests.bus.conftest import MakeBus, agent_bus, until
from tests.bus.nats_server import NatsServer


async def _manager(server: NatsServer, make_bus: MakeBus) -> Bus:
    bus = make_bus(server.url, server.creds.commands)
    await bus.start(5)
    return bus


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
