"""What an enrolled agent may send to hurt whoever listens: it costs the sender its own message, and nobody anything."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from schemas import subjects
from schemas.bus import Bus, BusTimeout, Message, NoResponders
from schemas.subjects import Uplink
from tests.bus.conftest import MakeBus, until
from tests.bus.nats_server import Agent, NatsServer, RawPeer, hpub, pub


class _Listener:
    """A manager's uplink, and what it was handed."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.heard: list[Message] = []
        bus.subscribe(subjects.ALL_UPLINKS, self._hear, queue=subjects.UPLINK_QUEUE)

    async def _hear(self, message: Message) -> None:
        self.heard.append(message)


def _poisons(up: bytes) -> dict[str, bytes]:
    """up: a subject that the agent may publish on and the manager listens to, without its last word."""
    return {
        "subject not UTF-8": pub(up + b"\xff\xfe"),
        "reply not UTF-8": pub(up + b"beat", reply=up + b"\xff"),
        "header block is the version only": hpub(up + b"beat", b"NATS/1.0"),
        "header block ends after the version": hpub(up + b"beat", b"NATS/1.0\r\n"),
        "header block is empty": hpub(up + b"beat", b"NATS/1.0\r\n\r\n"),
        "header block of one byte": hpub(up + b"beat", b"N"),
        "header status not UTF-8": hpub(up + b"beat", b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
        "header description not UTF-8": hpub(up + b"beat", b"NATS/1.0 200 \xff\xff\r\n\r\n"),
        "header key not ASCII": hpub(up + b"beat", b"NATS/1.0\r\nk\xff: v\r\n\r\n"),
        "header value not UTF-8": hpub(up + b"beat", b"NATS/1.0\r\nk: \xff\r\n\r\n"),
        "header without a colon": hpub(up + b"beat", b"NATS/1.0\r\nkey\r\n\r\n"),
        "subject of nearly 4 KiB": pub(up + b"a" * 3900),
        "subject and reply of nearly 4 KiB": pub(up + b"a" * 1900, reply=up + b"r" * 1900),
        "control characters": pub(up + b"\x01\x02"),
        "NUL": pub(up + b"\x00"),
        "one vertical tab": pub(up + b"beat\x0b1"),
        "two vertical tabs": pub(up + b"beat\x0b7\x0b8"),
        "form feeds in the reply": pub(up + b"beat", reply=b"a\x0cb\x0cc"),
        "body that looks like the protocol": pub(
            up + b"beat", b"\r\nMSG x 1 5\r\nhello\r\n-ERR 'Authentication Expired'\r\n"
        ),
    }


@pytest.mark.parametrize("poison", _poisons(b""))
async def test_listener_poisoned_goes_on_listening(shared_server: NatsServer, make_bus: MakeBus, poison: str) -> None:
    agent = shared_server.enrol()
    listener = _Listener(make_bus(shared_server.url, shared_server.creds.uplink))
    await listener.bus.start(5)
    peer = await RawPeer.connect(shared_server.port, agent.creds_file)
    up = subjects.uplink(agent.host_id, Uplink.BEAT).removesuffix("beat").encode()

    assert await peer.ask(_poisons(up)[poison]) == []
    await peer.ask(pub(up + b"status", b"after"))

    await until(lambda: any(message.data == b"after" for message in listener.heard), timeout_s=2)
    assert listener.bus.stats.reconnects == 0
    # Whatever else was handed on speaks for that host alone.
    assert all(message.subject.startswith(up.decode()) for message in listener.heard)
    await peer.close()


_POISONED_ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "reply not UTF-8": lambda inbox: pub(inbox, reply=b"x.\xff"),
    "cut header": lambda inbox: hpub(inbox, b"NATS/1.0"),
    "status not UTF-8": lambda inbox: hpub(inbox, b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
    "vertical tabs": lambda inbox: pub(inbox, reply=b"a\x0bb\x0bc\x0bd"),
}


@pytest.mark.parametrize("poison", _POISONED_ANSWERS)
async def test_request_answered_with_poison_costs_that_request_only(
    shared_server: NatsServer, make_bus: MakeBus, poison: str
) -> None:
    agent = shared_server.enrol()
    manager = make_bus(shared_server.url, shared_server.creds.commands)
    await manager.start(5)
    peer = await _serving(shared_server, agent)
    subject = subjects.command(agent.host_id, "probe")

    async def serve(make_reply: Callable[[bytes], bytes]) -> None:
        inbox = (await peer.read_line()).split(b" ")[3]
        await peer.read_line()
        await peer.ask(make_reply(inbox))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(_POISONED_ANSWERS[poison]))
        with contextlib.suppress(BusTimeout):
            await manager.request(subject, b"", timeout_s=0.3)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(lambda inbox: pub(inbox, b"fine")))
        assert await manager.request(subject, b"", timeout_s=2) == b"fine"
    assert manager.stats.reconnects == 0
    await peer.close()


async def test_request_answered_with_forged_503_raises_no_responders(
    shared_server: NatsServer, make_bus: MakeBus
) -> None:
    """Hence NoResponders means offline or unknown, never "did not run"."""
    agent = shared_server.enrol()
    manager = make_bus(shared_server.url, shared_server.creds.commands)
    await manager.start(5)
    peer = await _serving(shared_server, agent)

    async def forge() -> None:
        inbox = (await peer.read_line()).split(b" ")[3]
        await peer.send(hpub(inbox, b"NATS/1.0 503\r\n\r\n"))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(forge())
        with pytest.raises(NoResponders):
            await manager.request(subjects.command(agent.host_id, "probe"), b"", timeout_s=2)
    await peer.close()


async def _serving(server: NatsServer, agent: Agent) -> RawPeer:
    peer = await RawPeer.connect(server.port, agent.creds_file)
    await peer.ask(f"SUB {subjects.commands_of(agent.host_id)} 1\r\n".encode())
    return peer
