"""The agent: its parts put together, run until told to stop."""

import asyncio
import importlib.metadata
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import nacl.public
import nacl.signing

from agent import private_files
from agent.catalog import drivers as catalog_drivers
from agent.command import ToolRunner
from agent.config import AgentConfig, StateDir
from agent.credentials import CredentialStore, Deliveries
from agent.drivers.base import Commands, Driver, Workers
from agent.errors import ConfigError
from agent.health import Health
from agent.held_volumes import HeldVolumes
from agent.host import Host
from agent.journal import Journal
from agent.mounts import Mounts
from agent.reconcile import SYNC_TIMEOUT_S, Reconciler
from agent.rpc import CommandServer
from agent.sources import Sources
from agent.status import Board
from agent.strays import Strays
from agent.uplink import Renewal, beat_for_ever
from agent.uploads import Uploads
from agent.volume_host import VolumeHost
from agent.workers import WorkerPool
from agent.works import Works
from schemas import subjects
from schemas.agent_rpc import Status
from schemas.bus import Bus
from schemas.bus_client import CredsError, Identity
from schemas.hosts import AgentFacts
from schemas.ids import HostId
from schemas.kinds import KINDS
from schemas.subjects import Uplink

log = logging.getLogger(__name__)

#: From the signal to the end, whatever hangs; the journal makes every moment a good one to stop.
STOP_S = 1.5
_RENEW_TIMEOUT_S = 10.0
_CANCEL_AGAIN_S = 0.2
_COMMANDS_AT_ONCE = 256

DriversOf = Callable[[Commands, Workers, float], Mapping[str, Driver]]


def facts_of(labels: Mapping[str, str], kinds: tuple[str, ...] = tuple(KINDS)) -> AgentFacts:
    """What this agent says of itself."""
    try:
        version = importlib.metadata.version("stowage")
    except importlib.metadata.PackageNotFoundError:
        version = "0+source"
    return AgentFacts(agent_version=version, kinds=kinds, labels=dict(labels))


def drivers_of(commands: Commands, workers: Workers, probe_timeout_s: float) -> Mapping[str, Driver]:
    return catalog_drivers(commands, workers, probe_timeout_s=probe_timeout_s)


async def run(
    config: AgentConfig,
    state: StateDir,
    *,
    stop: asyncio.Event,
    drivers: DriversOf = drivers_of,
    make_bus: Callable[..., Bus] = Bus,
    jobs_module: str = "agent.jobs",
) -> None:
    """Serves until `stop` is set. The caller holds the state folder's lock. Waits for no storage and no bus."""
    state.prepare()
    state.remove_left_overs()
    for folder in (state.root, *state.backends.iterdir()):
        private_files.purge_temp(folder)
    host_id = HostId(config.host_id)
    key, manager_key = _keys(config, state)
    identity_seed = state.identity_file.read_text().strip()
    store = CredentialStore(state.credentials)
    deliveries = Deliveries(host_id=host_id, key=key, manager_key=manager_key)
    journal = Journal(state.journal_file)
    bus = make_bus(
        servers=config.nats_urls,
        creds_file=state.bus_creds_file,
        name=f"agent {config.host_name}",
        inbox_prefix=subjects.agent_inbox(host_id),
        fail_fast=False,
        tls_ca=Path(config.nats_ca) if config.nats_ca else None,
    )

    async def send_status(status: Status) -> None:
        await bus.publish(subjects.uplink(host_id, Uplink.STATUS), msgspec.json.encode(status))

    async def send_beat(payload: bytes) -> None:
        await bus.publish(subjects.uplink(host_id, Uplink.BEAT), payload)

    async def ask_sync(payload: bytes) -> bytes:
        return await bus.request(subjects.uplink(host_id, Uplink.SYNC), payload, timeout_s=SYNC_TIMEOUT_S)

    async def ask_renewal() -> bytes:
        return await bus.request(subjects.uplink(host_id, Uplink.RENEW), b"{}", timeout_s=_RENEW_TIMEOUT_S)

    async def on_connect() -> None:
        reconciler.wake()
        await board.resend()

    intervals = config.intervals
    tools = ToolRunner()
    board = Board(send_status, batch_s=min(5.0, intervals.probe_s / 4), life=journal.begin_life())
    async with WorkerPool(jobs_module) as workers:
        known = drivers(tools, workers, intervals.probe_timeout_s)
        host = Host(config=config, state=state, journal=journal, store=store, drivers=known, board=board)
        facts = facts_of(config.labels, tuple(known))
        held = HeldVolumes(host=host, journal=journal)
        works = Works(state.works)
        uploads = Uploads(state.downloads)
        sources = Sources(workers=workers, state=state, image_dirs=config.image_dirs)
        reconciler = Reconciler(host=host, held=held, journal=journal, ask=ask_sync, facts=facts, intervals=intervals)
        server = CommandServer(
            host=host,
            volumes=VolumeHost(host=host, works=works, workers=workers, sources=sources, uploads=uploads, held=held),
            held=held,
            journal=journal,
            store=store,
            deliveries=deliveries,
            send=bus.publish,
            nudge=reconciler.wake,
        )
        renewal = Renewal(
            ask=ask_renewal, creds_file=state.bus_creds_file, user_jwt=_user_jwt(state), seed=identity_seed
        )
        strays = Strays(
            state=state,
            journal=journal,
            mounts=Mounts(tools),
            lock=host.lock,
            clean_trials=host.clean_trials,
            interval_s=intervals.probe_s,
        )
        health = Health(host=host, wake=reconciler.wake, intervals=intervals)
        bus.subscribe(subjects.commands_of(host_id), server.handle, concurrency=_COMMANDS_AT_ONCE)
        bus.on_connect(on_connect)
        try:
            await bus.start(wait=False)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(board.run(), name="status"),
                    group.create_task(reconciler.run(), name="reconcile"),
                    group.create_task(health.run(), name="health"),
                    group.create_task(strays.run(), name="strays"),
                    group.create_task(uploads.run(), name="uploads"),
                    group.create_task(renewal.run(), name="renew"),
                    group.create_task(
                        beat_for_ever(
                            send_beat, lambda: workers.hung_count + tools.abandoned_count, interval_s=intervals.beat_s
                        ),
                        name="beat",
                    ),
                ]
                log.info("agent started", extra={"host": config.host_name, "agent_version": facts.agent_version})
                try:
                    await stop.wait()
                    log.info("agent stops")
                finally:
                    await _cancel(tasks)
        finally:
            await bus.close()
            await works.close()
            await host.close()
            journal.close()


async def run_until_signalled(config: AgentConfig, state: StateDir) -> None:
    """`run` until SIGTERM or SIGINT; over after STOP_S even if something hangs."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        loop.call_later(STOP_S, _leave)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await run(config, state, stop=stop)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """All of them have ended. More than once, for asyncio.wait_for swallows a cancel that meets a result (Python 3.11)."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


def _leave() -> None:
    log.warning("agent left with work unfinished; the next start takes it up")
    logging.shutdown()
    os._exit(0)


def _keys(config: AgentConfig, state: StateDir) -> tuple[nacl.public.PrivateKey, nacl.signing.VerifyKey]:
    try:
        key = nacl.public.PrivateKey(bytes.fromhex(state.sealing_file.read_text().strip()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{state.sealing_file} cannot be read as a key; join this host again") from error
    try:
        return key, nacl.signing.VerifyKey(bytes.fromhex(config.manager_key))
    except ValueError as error:
        raise ConfigError(f"{state.config_file}: manager_key is not a key; join this host again") from error


def _user_jwt(state: StateDir) -> str:
    """The JWT in bus.creds. Raises ConfigError."""
    try:
        return Identity.read(state.bus_creds_file).jwt().decode()
    except CredsError as error:
        raise ConfigError(f"{error}; join this host again") from error
