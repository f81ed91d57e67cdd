"""Puts the manager together: the only place that wires; and runs it until it is told to stop."""

import asyncio
import contextlib
import hashlib
import logging
import math
import ssl
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from pathlib import Path

import asyncpg
from aiohttp import web

from manager import address
from manager.agents import COMMAND_TTL_S, Agents
from manager.api.application import create_api
from manager.api.idempotency import Idempotency
from manager.api.server import ApiRunner
from manager.backends import Backends
from manager.bus_auth import BusAuth
from manager.capacity import Capacities
from manager.changes import Changes
from manager.config import Config
from manager.drift import Drift
from manager.errors import ConfigError
from manager.evacuations import Evacuations
from manager.events import Events
from manager.feed import Feed
from manager.hosts import Hosts
from manager.keys import Keys
from manager.leftovers import Leftovers
from manager.matrix import Matrices
from manager.operations import Operations
from manager.outbox import Relay, StreamSettings
from manager.placement import Placement
from manager.probing import Probing
from manager.registry import Registry
from manager.replica import ReplicaName
from manager.revocations import Revocations
from manager.sagas.catalog import SAGAS
from manager.sagas.engine import Engine
from manager.sagas.steps import SagaDef
from manager.sessions import Sessions
from manager.store import events as event_store
from manager.store import hosts as host_store
from manager.store.migrate import migrate, newest_version
from manager.store.pool import DATABASE_AWAY, DATABASE_FAULTS, Connection, Pool, connect, open_pool
from manager.tokens import Tokens
from manager.uplink import UplinkListener
from manager.uploads import Uploads
from manager.vault import Vault
from manager.volume_reads import VolumeReads
from manager.volumes import Volumes
from manager.watch import Watch
from schemas import subjects
from schemas.bus import Bus
from schemas.ids import new_id

log = logging.getLogger(__name__)

#: Seconds an unanswering database may take at the start before the manager gives up with a message.
_DATABASE_S = 30.0
#: Seconds that a duty has to end before it is asked again.
_CANCEL_AGAIN_S = 0.5
#: Seconds after which an event that is not in the stream makes the manager not ready, and for the question itself.
_EVENTS_LATE_S = 60.0
_EVENTS_ASKED_S = 2.0
_EVENTS_FRESH_S = 1.0


@contextlib.asynccontextmanager
async def running(
    config: Config,
    *,
    definitions: Mapping[str, SagaDef] = SAGAS,
    command_ttl_s: float = COMMAND_TTL_S,
    on_line: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[str]:
    """A manager that serves; yields its URL. Everything it started is gone when the block ends.

    definitions and on_line are for tests of the sagas. Raises ConfigError before anything listens.
    """
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state_dir: cannot make {config.state_dir}: {error.strerror}") from error
    fleet_id, keys = await _prepared_database(config)
    async with contextlib.AsyncExitStack() as stack:
        name = await stack.enter_async_context(ReplicaName(config.database_url, config.replica))
        pool = await open_pool(config.database_url)
        stack.push_async_callback(_close_pool, pool)
        bus_auth = BusAuth(keys)
        creds = bus_auth.write_creds(config.state_dir / "bus")

        def bus(user: str, creds_file: Path) -> Bus:
            made = Bus(
                servers=config.nats_urls,
                creds_file=creds_file,
                name=f"{config.replica} {user}",
                inbox_prefix=subjects.manager_inbox(uuid.uuid4().hex),
                fail_fast=True,
                tls_ca=config.nats_tls_ca,
            )
            stack.push_async_callback(made.close)
            return made

        commands, uplink = bus("commands", creds.commands), bus("uplink", creds.uplink)
        relay_bus, system = bus("relay", creds.relay), bus("system", creds.system)

        registry = Registry(pool, host_silent_s=config.host_silent_s, observation_stale_s=config.observation_stale_s)
        await registry.load()
        agents = Agents(commands, registry, ttl_s=command_ttl_s)
        vault = Vault(agents, registry, keys.sealing)
        placement = Placement(pool, registry, agents)
        engine = Engine(
            pool,
            definitions,
            agents=agents,
            registry=registry,
            placement=placement,
            vault=vault,
            fleet_id=fleet_id,
            owner=f"{config.replica}:{uuid.uuid4().hex}",
            lease_s=config.lease_s,
            on_line=on_line,
        )
        operations = Operations(pool, engine)
        tls, fingerprint = _tls(config)
        sockets = address.bound(config)
        for bound in sockets:
            stack.callback(bound.close)
        port = int(sockets[0].getsockname()[1])
        revocations = Revocations(pool, bus_auth, system)
        hosts = Hosts(
            pool,
            registry,
            agents,
            bus_auth,
            revocations,
            vault,
            fleet_id=fleet_id,
            manager_key=keys.sealing.verify_key,
            nats_urls=config.agent_nats_urls or config.nats_urls,
            public_url=address.public_url(config, port),
            fingerprint=fingerprint,
        )
        backends = Backends(pool, registry, engine, operations, agents)
        volume_reads = VolumeReads(pool, registry, placement)
        volumes = Volumes(pool, registry, engine, operations, placement, volume_reads)
        uploads = Uploads(pool, registry, agents, volumes)
        evacuations = Evacuations(pool, registry, engine, operations, placement)
        drift = Drift(pool, registry, agents, engine, operations, placement)
        probing = Probing(pool, registry, agents, vault, fleet_id=fleet_id)
        events, tokens = Events(pool, fleet_id), Tokens(pool)
        stream = StreamSettings(
            max_age_s=config.event_stream_max_age_s,
            max_bytes=config.event_stream_max_bytes,
            replicas=config.event_stream_replicas,
        )
        relay = Relay(config.database_url, relay_bus, fleet_id, stream)
        watch = Watch(pool, registry, relay, settle_s=config.host_silent_s, stale_s=config.observation_stale_s)
        listener = UplinkListener(uplink, pool, registry, hosts, agents, vault, fleet_id=fleet_id)
        stack.push_async_callback(listener.stop)
        changes = Changes(registry)
        feed = Feed(
            config.database_url,
            pool,
            replica=config.replica,
            registry=registry,
            tokens=tokens,
            engine=engine,
            events=events,
            relay=relay,
            changes=changes,
        )

        events_wait = _EventsWait(pool)

        async def missing() -> dict[str, str]:
            lacks: dict[str, str] = {}
            if not feed.is_live:
                lacks["database"] = "notifications are not heard; the database may be away"
            if not all(each.is_usable for each in (commands, uplink, relay_bus)):
                lacks["bus"] = "no usable connection to NATS"
            waiting_s = await events_wait() if feed.is_live else None
            if waiting_s is None:
                lacks.setdefault("database", "it does not answer")
            elif waiting_s > _EVENTS_LATE_S:
                lacks["events"] = f"the oldest has waited for {waiting_s:.0f} s to come into the stream"
            return lacks

        system.on_connect(revocations.connected)
        # Agents answer a nudge with a sync: a manager that starts knows within milliseconds who is there.
        commands.on_connect(agents.nudge_all)
        for each in (system, relay_bus, uplink, commands):
            await each.start(None, wait=False)

        duties = {
            "replica name": name.keep(),
            "feed": feed.run(),
            "relay": relay.run(),
            "sagas": engine.run(),
            "watch": watch.run(),
            "changes": changes.run(),
            "leftovers": Leftovers(pool, engine, placement).run(),
            "revocations": revocations.run(),
        }
        stack.push_async_callback(engine.stop)
        await stack.enter_async_context(_kept_running(duties))

        await tokens.ensure_admin(config.state_dir / "admin.token")
        runner = ApiRunner(
            create_api(
                backends=backends,
                probing=probing,
                volume_reads=volume_reads,
                volumes=volumes,
                uploads=uploads,
                evacuations=evacuations,
                drift=drift,
                hosts=hosts,
                capacities=Capacities(pool, registry),
                matrices=Matrices(registry),
                changes=changes,
                operations=operations,
                events=events,
                tokens=tokens,
                sessions=Sessions(keys.mac, fleet_id=fleet_id, public_url=config.public_url),
                idempotency=Idempotency(pool, keys.mac),
                readiness=missing,
            )
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        for bound in sockets:
            await web.SockSite(runner, bound, ssl_context=tls).start()
        url = address.own_url(config, port)
        log.info("manager serves", extra={"url": url, "replica": config.replica, "fleet_id": fleet_id})
        yield url


async def _prepared_database(config: Config) -> tuple[str, Keys]:
    """The fleet's id and its keys, the schema being this code's.

    Raises ConfigError with the database's own words, and for keys that are not the fleet's.
    """
    deadline = asyncio.get_running_loop().time() + _DATABASE_S
    while True:
        try:
            connection = await connect(config.database_url)
            break
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidCatalogNameError, ValueError) as error:
            raise ConfigError(f"database_url: {error}") from error
        except DATABASE_FAULTS as error:
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigError(f"database_url: no connection in {_DATABASE_S:.0f} s: {error}") from error
            await asyncio.sleep(0.2)
    try:
        version = await _migrated(connection)
        log.info("database ready", extra={"schema": version, "code_schema": newest_version()})
        fleet_id = await host_store.fleet_id(connection, new_id())
        is_known = await host_store.trusted_keys(connection) is not None
        keys = Keys.load(config.keys_dir) if is_known else Keys.load_or_create(config.keys_dir)
        trusted = await host_store.trust_keys(connection, keys.trusted)
        wrong = sorted(name for name in trusted.keys() | keys.trusted if trusted.get(name) != keys.trusted.get(name))
        if wrong:
            raise ConfigError(
                f"keys_dir: the keys in {config.keys_dir} are not those of this database's fleet: {', '.join(wrong)} differ"
                f" (its operator is {trusted.get('operator')}). Restore its keys.json from a backup, or copy it from"
                " another manager; for a new fleet take an empty database"
            )
        return fleet_id, keys
    finally:
        await connection.close()


async def _migrated(connection: Connection) -> int:
    """The schema's version, which is this code's or newer. Raises ConfigError where somebody's lock kept it from becoming that."""
    try:
        return await migrate(connection)
    except DATABASE_AWAY as error:
        raise ConfigError(
            f"database_url: the schema could not be brought to version {newest_version()}: {str(error) or 'no answer in time'}."
            " Nothing of that step is left; see who holds a lock there (pg_locks: a backup, another manager), and start again"
        ) from error


class _EventsWait:
    """Seconds for which the oldest event that the stream may not have has waited; None when the database does not say.

    Asked at most once a second, however many ask: /readyz is open to all, and sagas need the same connections.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = asyncio.Lock()
        self._asked_at = -math.inf
        self._wait_s: float | None = None

    async def __call__(self) -> float | None:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now >= self._asked_at + _EVENTS_FRESH_S:
                self._wait_s, self._asked_at = await self._ask(), now
            return self._wait_s

    async def _ask(self) -> float | None:
        try:
            async with asyncio.timeout(_EVENTS_ASKED_S), self._pool.acquire() as connection:
                return await event_store.oldest_unpublished_s(connection)
        except DATABASE_AWAY:
            return None


@contextlib.asynccontextmanager
async def _kept_running(duties: Mapping[str, Coroutine[object, object, None]]) -> AsyncGenerator[None]:
    """The duties run until the block ends; one that dies ends the block with its error."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(duty, name=name) for name, duty in duties.items()]
        try:
            yield
        finally:
            pending = set(tasks)
            while pending:
                # Again and again: nats-py waits with asyncio.wait_for, which on Python 3.11 swallows a cancel that meets
                # a result (seen 2026-11-25: a duty that went on, and a stop that never ended).
                for task in pending:
                    task.cancel()
                _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


async def _close_pool(pool: Pool) -> None:
    """Closed in order if that takes no time, else cut: a dead server must not hold up a stop."""
    try:
        async with asyncio.timeout(2.0):
            await pool.close()
    except TimeoutError:
        pool.terminate()


def _tls(config: Config) -> tuple[ssl.SSLContext | None, str | None]:
    """(context, SHA-256 of the certificate in hex), or (None, None) for plain HTTP."""
    if config.tls_cert is None or config.tls_key is None:
        return None, None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
        first, end, _ = config.tls_cert.read_text().partition("-----END CERTIFICATE-----")
        certificate = ssl.PEM_cert_to_DER_cert(first + end)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls_cert, tls_key: {error}") from error
    return context, hashlib.sha256(certificate).hexdigest()
