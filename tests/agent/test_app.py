"""The whole agent, in this process and as a process, against a real nats-server and a small manager on it."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import msgspec
import nacl.public
import nacl.signing
import pytest

from agent import app
from agent.config import AgentConfig, StateDir, save_config
from agent.drivers.base import Commands, Driver, Workers
from agent.private_files import write_private
from schemas import sealing, subjects
from schemas.agent_rpc import (
    AnyCommand,
    Attach,
    Beat,
    CredentialNonce,
    Failed,
    Intent,
    Nonce,
    Nudge,
    Observation,
    Ok,
    Release,
    RenewReply,
    Reply,
    Stale,
    Status,
    StoreCredentials,
    SyncReply,
    SyncRequest,
    Wanted,
)
from schemas.backends import HealthStatus
from schemas.bus import Bus, Message
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.ids import new_id
from schemas.subjects import Uplink
from tests.agent.fakes import FAST, FLEET, FakeDriver, World, target
from tests.agent.waiting import until
from tests.bus.nats_server import Agent, NatsServer

ROOT = Path(__file__).parents[2]


class Manager:
    """The manager's side of the bus: answers syncs and renewals, keeps what it hears, sends commands."""

    def __init__(self, server: NatsServer) -> None:
        def bus(creds: Path) -> Bus:
            inbox = subjects.manager_inbox("test")
            return Bus(servers=[server.url], creds_file=creds, name=creds.stem, inbox_prefix=inbox, fail_fast=True)

        self.key = nacl.signing.SigningKey.generate()
        self.lines: list[Wanted] = []
        self.fence = 100
        self.syncs: list[SyncRequest] = []
        self.seen: dict[str, Observation] = {}
        self.beats = 0
        self.fresh_jwt = ""
        self._commands, self._uplink = bus(server.creds.commands), bus(server.creds.uplink)
        self._uplink.subscribe(subjects.ALL_UPLINKS, self._hear)

    async def start(self) -> None:
        await self._commands.start(5)
        await self._uplink.start(5)

    async def stop(self) -> None:
        await self._commands.close()
        await self._uplink.close()

    async def ask(self, agent: Agent, command: AnyCommand) -> Reply:
        return await self.ask_raw(agent, str(command.__struct_config__.tag), msgspec.json.encode(command))

    async def ask_raw(self, agent: Agent, verb: str, body: bytes) -> Reply:
        answer = await self._commands.request(subjects.command(agent.host_id, verb), body, timeout_s=10)
        reply: Reply = msgspec.json.decode(answer, type=Reply)
        return reply

    async def nudge(self, agent: Agent) -> None:
        command = Nudge(command_id=new_id(), backend_id="", fence=0, ttl_ms=0)
        await self._commands.publish(subjects.command(agent.host_id, "nudge"), msgspec.json.encode(command))

    async def _hear(self, message: Message) -> None:
        speaker = subjects.parse_uplink(message.subject)
        assert speaker is not None
        match speaker[1]:
            case Uplink.BEAT:
                msgspec.json.decode(message.data, type=Beat)
                self.beats += 1
            case Uplink.STATUS:
                for seen in msgspec.json.decode(message.data, type=Status).observations:
                    self.seen[seen.backend_id] = seen
            case Uplink.SYNC:
                self.syncs.append(msgspec.json.decode(message.data, type=SyncRequest))
                self.fence += 1
                reply = SyncReply(fence=self.fence, host_name="hv1", wanted=tuple(self.lines))
                await self._uplink.publish(message.reply, msgspec.json.encode(reply))
            case Uplink.RENEW:
                await self._uplink.publish(message.reply, msgspec.json.encode(RenewReply(user_jwt=self.fresh_jwt)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    (tmp_path / "nats").mkdir()
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def manager(server: NatsServer) -> AsyncIterator[Manager]:
    manager = Manager(server)
    await manager.start()
    yield manager
    await manager.stop()


@pytest.fixture
def agent(server: NatsServer) -> Agent:
    return server.enrol()


@pytest.fixture
def state(tmp_path: Path, server: NatsServer, agent: Agent, manager: Manager) -> StateDir:
    """A state folder as `join` leaves it."""
    state = StateDir(tmp_path / "state")
    state.prepare()
    write_private(state.identity_file, agent.seed.encode())
    write_private(state.sealing_file, bytes(nacl.public.PrivateKey.generate()).hex().encode())
    write_private(state.bus_creds_file, agent.creds_file.read_bytes())
    save_config(state, config_of(server, agent, manager))
    return state


def config_of(server: NatsServer, agent: Agent, manager: Manager) -> AgentConfig:
    return AgentConfig(
        host_id=agent.host_id,
        host_name="hv1",
        fleet_id=FLEET,
        manager_url="http://127.0.0.1:1",
        nats_urls=(server.url,),
        manager_key=bytes(manager.key.verify_key).hex(),
        intervals=FAST,
    )


def fake_drivers(world: World) -> app.DriversOf:
    def make(commands: Commands, workers: Workers, probe_timeout_s: float) -> dict[str, Driver]:
        return {"nfs": FakeDriver(world), "smb": FakeDriver(world)}

    return make


@pytest.fixture
async def running(
    state: StateDir, server: NatsServer, agent: Agent, manager: Manager, world: World
) -> AsyncIterator[StateDir]:
    """The agent in this process, over the fake driver."""
    stop = asyncio.Event()
    serving = asyncio.create_task(
        app.run(
            config_of(server, agent, manager),
            state,
            stop=stop,
            drivers=fake_drivers(world),
            jobs_module="tests.agent.jobs_for_tests",
        )
    )
    await until(lambda: manager.syncs or serving.done(), timeout_s=10)
    yield state
    stop.set()
    await asyncio.wait_for(serving, 5)


@contextlib.contextmanager
def process(state: StateDir) -> Generator["subprocess.Popen[bytes]", None, None]:
    """`python -m agent run` on the state folder, with the real drivers; killed at the end if it still runs."""
    environ = {"STOWAGE_AGENT_PROBE_S": "0.3", "STOWAGE_AGENT_BEAT_S": "0.1", "PATH": os.environ["PATH"]}
    child = subprocess.Popen(
        [sys.executable, "-m", "agent", "run", "--state-dir", state.root],
        cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def head(backend_id: str, fence: int) -> dict[str, object]:
    return {"command_id": new_id(), "backend_id": backend_id, "fence": fence, "ttl_ms": 5000}


def attach(wanted: Target, fence: int) -> Attach:
    return msgspec.convert(
        head(wanted.backend_id, fence) | {"verb": "attach", "target": wanted, "establish": True}, Attach
    )


def release(backend_id: str, fence: int) -> Release:
    return msgspec.convert(head(backend_id, fence) | {"verb": "release", "remove_marker": True}, Release)


async def test_agent_serves_commands_syncs_beats_and_reports(
    running: StateDir, manager: Manager, agent: Agent, world: World, backend_id: str
) -> None:
    assert manager.syncs[0].facts.kinds == ("nfs", "smb")
    assert isinstance(await manager.ask(agent, attach(target(backend_id), 5)), Stale), "the floor is above it"
    assert isinstance(await manager.ask(agent, attach(target(backend_id), 1000)), Ok)
    await until(lambda: backend_id in manager.seen and manager.beats > 2)
    assert manager.seen[backend_id].status is HealthStatus.HEALTHY
    assert isinstance(await manager.ask(agent, release(backend_id, 1001)), Ok)
    assert world.mounted == {}


async def test_agent_converges_on_a_nudge(
    running: StateDir, manager: Manager, agent: Agent, world: World, backend_id: str
) -> None:
    world.markers.add(backend_id)
    manager.lines.append(Wanted(target=target(backend_id), intent=Intent.ATTACHED, fence=50))
    await manager.nudge(agent)
    await until(lambda: backend_id in world.mounted)
    await until(lambda: [held.generation for held in manager.syncs[-1].held] == [1])


async def test_agent_hears_on_after_garbage(running: StateDir, manager: Manager, agent: Agent, backend_id: str) -> None:
    for body in (b"", b"\xff\x00", b"[" * 10_000, b'{"verb":"attach"}'):
        assert isinstance(await manager.ask_raw(agent, "attach", body), Failed)
    assert isinstance(await manager.ask_raw(agent, "explode", b"{}"), Failed)
    assert isinstance(await manager.ask(agent, attach(target(backend_id), 1000)), Ok)


async def test_agent_takes_credentials_sealed_for_it_alone(
    running: StateDir, manager: Manager, agent: Agent, world: World, caplog: pytest.LogCaptureFixture, backend_id: str
) -> None:
    caplog.set_level(logging.DEBUG)
    world.password = "canary"
    nonce_command = msgspec.convert(
        head(backend_id, 1000) | {"verb": "credential_nonce", "version": 1}, CredentialNonce
    )
    reply = await manager.ask(agent, nonce_command)
    assert isinstance(reply, Ok)
    key = nacl.public.PrivateKey(bytes.fromhex(running.sealing_file.read_text()))
    box = sealing.box(
        Credentials({"username": "u", "password": "canary"}),
        host_id=agent.host_id,
        host_key=bytes(key.public_key),
        backend_id=backend_id,
        version=1,
        nonce=msgspec.json.decode(reply.result, type=Nonce).nonce,
    )
    sealed = sealing.sign(box, manager.key)
    store = StoreCredentials(
        command_id=new_id(), backend_id=backend_id, fence=1000, ttl_ms=5000, version=1, sealed=sealed
    )
    assert isinstance(await manager.ask(agent, store), Ok)
    assert isinstance(await manager.ask(agent, attach(target(backend_id, version=1), 1001)), Ok)
    assert [path.name for path in running.credentials.iterdir()] == [f"{backend_id}.1.json"]
    assert "canary" not in caplog.text


async def test_agent_syncs_again_when_the_bus_returns(
    running: StateDir, server: NatsServer, manager: Manager, agent: Agent, world: World, backend_id: str
) -> None:
    world.markers.add(backend_id)
    server.stop(signal.SIGKILL)
    manager.lines.append(Wanted(target=target(backend_id), intent=Intent.ATTACHED, fence=50))
    server.start()
    await until(lambda: backend_id in world.mounted, timeout_s=20)
    manager.seen.clear()
    await until(lambda: backend_id in manager.seen)


async def test_agent_renews_its_identity_before_it_expires(
    server: NatsServer, state: StateDir, manager: Manager, agent: Agent, world: World
) -> None:
    agent.renew(2)
    write_private(state.bus_creds_file, agent.creds_file.read_bytes())
    manager.fresh_jwt = server.auth.mint_agent(agent.host_id, agent.public_key, 3600)
    stop = asyncio.Event()
    serving = asyncio.create_task(
        app.run(
            config_of(server, agent, manager),
            state,
            stop=stop,
            drivers=fake_drivers(world),
            jobs_module="tests.agent.jobs_for_tests",
        )
    )
    await until(lambda: manager.fresh_jwt in state.bus_creds_file.read_text())
    expired_at = time.time() + 2
    await until(lambda: time.time() > expired_at)
    before = manager.beats
    await until(lambda: manager.beats > before + 3)
    stop.set()
    await asyncio.wait_for(serving, 5)


async def test_agent_process_ends_within_two_seconds_of_sigterm_and_keeps_what_it_attached(
    state: StateDir, manager: Manager, agent: Agent, tmp_path: Path, backend_id: str
) -> None:
    wanted = target(backend_id, kind="local_file")
    wanted = msgspec.structs.replace(wanted, config={"root_dir": str(tmp_path / "vms")})
    with process(state) as child:
        await until(lambda: manager.syncs, timeout_s=10)
        reply = await manager.ask(agent, attach(wanted, 1000))
        assert isinstance(reply, Ok), reply
        await until(lambda: backend_id in manager.seen)
        assert manager.seen[backend_id].status is HealthStatus.HEALTHY
        assert manager.seen[backend_id].capacity is not None
        started = time.monotonic()
        child.terminate()
        assert child.wait(5) == 0
        assert time.monotonic() - started < 2
    assert (tmp_path / "vms").is_dir()


async def test_agent_process_killed_is_right_after_its_return(
    state: StateDir, manager: Manager, agent: Agent, tmp_path: Path, backend_id: str
) -> None:
    wanted = msgspec.structs.replace(target(backend_id, kind="local_file"), config={"root_dir": str(tmp_path / "vms")})
    with process(state) as child:
        await until(lambda: manager.syncs, timeout_s=10)
        assert isinstance(await manager.ask(agent, attach(wanted, 1000)), Ok)
        child.kill()
        child.wait()
    manager.fence = 2000
    manager.lines.append(Wanted(target=wanted, intent=Intent.ABSENT, fence=2000, remove_marker=True))
    manager.syncs.clear()
    # What a write leaves that is killed too.
    halves = [state.root / ".new-0", state.backends / new_id() / ".new-0"]
    for half in halves:
        half.parent.mkdir(exist_ok=True)
        half.write_text("half of")
    with process(state):
        await until(lambda: manager.syncs and manager.syncs[-1].held == (), timeout_s=10)
        assert not any(half.exists() for half in halves)
        assert manager.syncs[0].held[0].backend_id == backend_id
        assert isinstance(await manager.ask(agent, attach(wanted, 1500)), Stale)
    assert not (tmp_path / "vms").exists()


async def test_agent_process_second_on_one_state_folder_is_refused(state: StateDir, manager: Manager) -> None:
    with process(state):
        await until(lambda: manager.syncs, timeout_s=10)
        with process(state) as second:
            _, stderr = await asyncio.to_thread(second.communicate, timeout=10)
            assert second.returncode == 1
            assert b"another agent uses" in stderr


async def test_agent_process_leaves_no_child_behind_when_killed(
    state: StateDir, manager: Manager, agent: Agent, tmp_path: Path, backend_id: str
) -> None:
    wanted = msgspec.structs.replace(target(backend_id, kind="local_file"), config={"root_dir": str(tmp_path / "vms")})
    with process(state) as child:
        await until(lambda: manager.syncs, timeout_s=10)
        assert isinstance(await manager.ask(agent, attach(wanted, 1000)), Ok)
        zygotes = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
        assert zygotes
        child.kill()
        child.wait()
    await until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in zygotes))
