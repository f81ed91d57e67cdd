"""Requests, subscriptions and events over a healthy connection."""

import asyncio

import pytest

from schemas import subjects
from schemas.bus import Bus, BusDown, BusRefused, BusTimeout, Message, NoResponders
from tests.bus.conftest import MakeBus, agent_bus, until
from tests.bus.nats_server import NatsServer


async def test_request_agent_answers_reply_returned(shared_server: NatsServer, make_bus: MakeBus) -> None:
    agent = shared_server.enrol()
    host = agent_bus(make_bus, shared_server.url, agent)

    async def answer(message: Message) -> None:
        await host.publish(message.reply, message.subject.encode() + b":" + message.data)

    host.subscribe(subjects.commands_of(agent.host_id), answer)
    await host.start(5)
    manager = make_bus(shared_server.url, shared_server.creds.commands)
    await manager.start(5)
    subject = subjects.command(agent.host_id, "probe")
    assert await manager.request(subject, b"hello", timeout_s=2) == f"{subject}:hello".encode()
