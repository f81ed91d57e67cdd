"""The bus comes back: from a server that restarts, hangs or lies, and from identities that expire or are revoked."""

import asyncio
import signal
import time

import pytest
from nats import errors

from schemas import subjects
from schemas.bus import Bus, BusDown, BusTimeout, Message
from schemas.bus_client import Identity, SafeClient
from schemas.ids import HostId, new_id
from schemas.subjects import Uplink
from tests.bus.conftest import MakeBus, agent_bus, until
from tests.bus.nats_server import Agent, NatsServer
from tests.bus.proxy import Proxy


async def _echoing(bus: Bus, agent: Agent) -> list[Message]:
    """The agent answers its commands with what they hold; the list grows with each."""
    heard: list[Message] = []

    async def answer(message: Message) -> None:
        heard.append(message)
        await bus.publish(message.reply, message.data)

    bus.subscribe(subjects.commands_of(agent.host_id), answer)
    await bus.start(5)
    return heard


async def _asks(manager: Bus, agent: Agent) -> bytes:
    return await manager.request(subjects.command(agent.host_id, "probe"), b"ping", timeout_s=2)


async def test_bus_server_killed_and_restarted_subscriptions_are_back(server: NatsServer, make_bus: MakeBus) -> None:
    agent = server.enrol()
    host, manager = agent_bus(make_bus, server.url, agent), make_bus(server.url, server.creds.commands)
    greetings: list[str] = []

    async def greet() -> None:
        await host.flush()
        greetings.append("hello")

    host.on_connect(greet)
    await _echoing(host, agent)
    await manager.start(5)
    assert await _asks(manager, agent) == b"ping"
    await until(lambda: len(greetings) == 1)

    server.stop(signal.SIGKILL)
    await until(lambda: not host.is_usable and not manager.is_usable)
    server.start()
    await until(lambda: host.is_usable and manager.is_usable)

    assert await _asks(manager, agent) == b"ping"
    await until(lambda: len(greetings) == 2)
    assert (host.stats.reconnects, host.stats.rebuilds) == (1, 0)


async def test_request_server_down_fails_at_once_and_is_never_sent(server: NatsServer, make_bus: MakeBus) -> None:
    agent = server.enrol()
    host, manager = agent_bus(make_bus, server.url, agent), make_bus(server.url, server.creds.commands)
    heard = await _echoing(host, agent)
    await manager.start(5)
    server.stop(signal.SIGKILL)
    await until(lambda: not manager.is_usable)

    began = time.monotonic()
    with pytest.raises(BusDown):
        await _asks(manager, agent)
    with pytest.raises(BusDown):
        await manager.publish(subjects.command(agent.host_id, "nudge"), b"")
    assert time.monotonic() - began < 0.1

    server.start()
    await until(lambda: host.is_usable and manager.is_usable)
    assert await _asks(manager, agent) == b"ping"
    assert len(heard) == 1


async def test_request_connection_lost_while_waiting_raises_timeout_early(
    server: NatsServer, make_bus: MakeBus
) -> None:
    agent = server.enrol()
    host, manager = agent_bus(make_bus, server.url, agent), make_bus(server.url, server.creds.commands)
    asked = asyncio.Event()

    async def never_answer(_: Message) -> None:
        asked.set()

    host.subscribe(subjects.commands_of(agent.host_id), never_answer)
    await host.start(5)
    await manager.start(5)
    request = asyncio.create_task(manager.request(subjects.command(agent.host_id, "probe"), b"", timeout_s=60))
    await asyncio.wait_for(asked.wait(), 5)
    server.stop(signal.SIGKILL)
    with pytest.raises(BusTimeout):
        await asyncio.wait_for(request, 1)


async def test_start_server_away_tries_for_ever_and_is_unusable_meanwhile(
    server: NatsServer, make_bus: MakeBus
) -> None:
    server.stop()
    agent = server.enrol()
    host = agent_bus(make_bus, server.url, agent)
    heard: list[bytes] = []

    async def hear(message: Message) -> None:
        heard.append(message.data)

    host.subscribe(subjects.commands_of(agent.host_id), hear)
    await host.start(wait=False)
    with pytest.raises(BusDown):
        await host.wait_usable(0.5)
    assert not host.is_usable

    server.start()
    await until(lambda: host.is_usable)
    manager = make_bus(server.url, server.creds.commands)
    await manager.start(5)
    await manager.publish(subjects.command(agent.host_id, "nudge"), b"now")
    await until(lambda: heard == [b"now"])


async def test_start_with_wait_server_away_raises_down_and_stops_trying(server: NatsServer, make_bus: MakeBus) -> None:
    server.stop()
    bus = make_bus(server.url, server.creds.commands)
    with pytest.raises(BusDown, match="not usable after"):
        await bus.start(0.2)
    server.start()
    assert not bus.is_usable
    await bus.start(5)  # and it can be started anew
    assert bus.is_usable


async def test_bus_waiting_for_connection_sends_within_its_time(server: NatsServer, make_bus: MakeBus) -> None:
    agent = server.enrol()
    server.stop()
    host = agent_bus(make_bus, server.url, agent)
    await host.start(wait=False)
    uplink = make_bus(server.url, server.creds.uplink)

    async def answer(message: Message) -> None:
        await uplink.publish(message.reply, b"synced")

    uplink.subscribe(subjects.ALL_UPLINKS, answer)
    request = asyncio.create_task(host.request(subjects.uplink(agent.host_id, Uplink.SYNC), b"", timeout_s=0.05))
    with pytest.raises(BusDown):
        await request
    server.start()
    await uplink.start(5)
    assert await host.request(subjects.uplink(agent.host_id, Uplink.SYNC), b"", timeout_s=5) == b"synced"


async def test_bus_jwt_expired_reconnects_with_the_renewed_file(server: NatsServer, make_bus: MakeBus) -> None:
    agent = server.enrol(lifetime_s=2)
    host, manager = agent_bus(make_bus, server.url, agent), make_bus(server.url, server.creds.commands)
    await _echoing(host, agent)
    await manager.start(5)
    expires_at = int(time.time()) + 2
    await until(lambda: time.time() > expires_at + 0.1 and not host.is_usable)  # it expired while connected
    with pytest.raises(BusDown, match="uth"):
        await host.wait_usable(1)  # and is refused at the door

    agent.renew()
    await until(lambda: host.is_usable)
    assert await _asks(manager, agent) == b"ping"


async def test_bus_identity_revoked_dropped_at_once_and_tries_on_without_spinning(
    server: NatsServer, make_bus: MakeBus
) -> None:
    victim, other = server.enrol(), server.enrol()
    system = make_bus(server.url, server.creds.system)
    await system.start(5)
    async with Proxy(server.port).running() as proxy:
        host = agent_bus(make_bus, proxy.url, victim, backoff_cap_s=15.0)
        neighbour = agent_bus(make_bus, server.url, other)
        await _echoing(host, victim)
        await _echoing(neighbour, other)

        await server.auth.push_account(system, {victim.public_key: int(time.time())}, version=2)

        assert await until(lambda: not host.is_usable, timeout_s=1) < 1
        before = proxy.accepted
        with pytest.raises(BusDown):
            await host.wait_usable(2)
        assert 1 <= proxy.accepted - before <= 8
        assert (neighbour.is_usable, neighbour.stats.reconnects) == (True, 0)

        await server.auth.push_account(system, {}, version=3)
        await agent_bus(make_bus, server.url, victim).start(5)


async def test_revocation_server_restarted_with_its_old_preload_still_holds(
    server: NatsServer, make_bus: MakeBus
) -> None:
    victim = server.enrol()
    system = make_bus(server.url, server.creds.system)
    await system.start(5)
    await server.auth.push_account(system, {victim.public_key: int(time.time())}, version=2)
    server.stop(signal.SIGKILL)
    server.start()
    with pytest.raises(BusDown, match="uthorization"):
        await agent_bus(make_bus, server.url, victim).start(1)


async def test_bus_creds_file_missing_or_broken_waits_for_a_good_one(server: NatsServer, make_bus: MakeBus) -> None:
    agent = server.enrol()
    good = agent.creds_file.read_bytes()
    agent.creds_file.write_bytes(b"no creds at all\n")
    host = agent_bus(make_bus, server.url, agent)
    await host.start(wait=False)
    with pytest.raises(BusDown, match="is not a NATS creds file"):
        await host.wait_usable(0.3)
    agent.creds_file.unlink()
    with pytest.raises(BusDown):
        await host.wait_usable(0.3)
    agent.creds_file.write_bytes(good)
    await until(lambda: host.is_usable)


async def test_bus_no_echo_while_pings_are_answered_is_rebuilt(server: NatsServer, make_bus: MakeBus) -> None:
    """What is left when everything else has been thought of: TCP is up and nothing arrives."""
    agent = server.enrol()
    async with Proxy(server.port).running() as proxy:
        host = agent_bus(make_bus, proxy.url, agent, ping_interval_s=60.0, echo_interval_s=0.2)
        await host.start(5)
        proxy.hold_downstream()
        await until(lambda: host.stats.rebuilds == 1)
        assert not host.is_usable
        proxy.release_downstream()
        await until(lambda: host.is_usable)


async def test_bus_server_hangs_is_noticed_by_pings_and_survived(server: NatsServer, make_bus: MakeBus) -> None:
    agent = server.enrol()
    host, manager = (
        agent_bus(make_bus, server.url, agent, ping_interval_s=0.2),
        make_bus(server.url, server.creds.commands),
    )
    await _echoing(host, agent)
    await manager.start(5)
    server.signal(signal.SIGSTOP)
    await until(lambda: not host.is_usable, timeout_s=2)
    server.signal(signal.SIGCONT)
    await until(lambda: host.is_usable)
    assert await _asks(manager, agent) == b"ping"


async def test_client_late_pong_after_cancelled_wait_changes_nothing(server: NatsServer) -> None:
    """Pings given up, then answered all at once (BUS.md 2, bug 2)."""

    async def on_error(error: Exception) -> None:
        pytest.fail(repr(error))

    async with Proxy(server.port).running() as proxy:
        client = SafeClient(on_error)
        await client.open(
            [proxy.url],
            identity=Identity.read(server.creds.commands),
            name="test",
            inbox_prefix=subjects.manager_inbox("test"),
            ping_interval_s=60,
            tls=None,
        )
        proxy.hold_downstream()
        for _ in range(3):
            with pytest.raises(errors.TimeoutError):
                await client.flush(0.05)  # type: ignore[arg-type]  # annotated int, only slept on
        proxy.release_downstream()
        assert await client.hears_itself(2)
        assert not client.lost.is_set()
        await client.discard()


async def test_bus_slow_authentication_server_pings_first_still_works(server: NatsServer, make_bus: MakeBus) -> None:
    """A server that takes over 2 s to authenticate sends its PING before its PONG (BUS.md 2, bug 4)."""
    agent = server.enrol()
    proxy = Proxy(server.port)
    proxy.before_pong = b"PING\r\nINFO {}\r\n"
    async with proxy.running():
        host, manager = agent_bus(make_bus, proxy.url, agent), make_bus(server.url, server.creds.commands)
        await _echoing(host, agent)
        await manager.start(5)
        assert await _asks(manager, agent) == b"ping"
        assert host.stats.reconnects == 0


async def test_bus_server_hangs_up_during_handshake_is_tried_again(make_bus: MakeBus, server: NatsServer) -> None:
    attempts = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.write(b'INFO {"max_payload":1048576}\r\n' if attempts % 2 else b"")
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    bus = make_bus(f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}", server.creds.commands)
    await bus.start(wait=False)
    await until(lambda: attempts >= 3)
    assert not bus.is_usable
    listener.close()


async def test_bus_on_connect_raising_hurts_nothing(server: NatsServer, make_bus: MakeBus) -> None:
    agent = server.enrol(HostId(new_id()))
    host, manager = agent_bus(make_bus, server.url, agent), make_bus(server.url, server.creds.commands)
    calls: list[str] = []

    async def fail() -> None:
        calls.append("fail")
        raise RuntimeError("ours")

    async def succeed() -> None:
        calls.append("succeed")

    host.on_connect(fail)
    host.on_connect(succeed)
    await _echoing(host, agent)
    await manager.start(5)
    await until(lambda: calls == ["fail", "succeed"])
    server.stop(signal.SIGKILL)
    server.start()
    await until(lambda: calls == ["fail", "succeed"] * 2)
    await until(lambda: manager.is_usable)
    assert await _asks(manager, agent) == b"ping"
