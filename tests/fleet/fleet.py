"""A whole fleet for one test: real PostgreSQL, real NATS, real managers, real agents over the pretend estate."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec

from agent.app import facts_of
from agent.app import run as run_agent
from agent.config import AgentConfig, Intervals, StateDir, load_config
from agent.join import Invitation, join
from manager.agents import COMMAND_TTL_S
from manager.app import running
from manager.config import Config
from manager.sagas.catalog import SAGAS
from manager.sagas.steps import SagaDef
from schemas.bus import Bus
from tests.bus.nats_server import NatsServer
from tests.fleet.world import World
from tests.processes import runs

#: Seconds a condition may take on a busy machine before the test has failed.
PATIENCE_S = 30.0


#: A fleet that notices silence and death sooner than one that an operator runs.
_QUICK: dict[str, Any] = {"host_silent_s": 3.0, "lease_s": 2.0}


async def until(is_so: Callable[[], Awaitable[bool]], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Waits for a condition. Fails the test with `what` when it does not come."""
    deadline = time.monotonic() + patience_s
    while not await is_so():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        await asyncio.sleep(0.02)


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: Any
    headers: Mapping[str, str]


class Api:
    """A client of one manager with one token. images: the folder from which hosts take images."""

    def __init__(self, url: str, token: str, images: Path = Path()) -> None:
        self.url = url
        self.token = token
        self.images = images

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {self.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, json=body, headers=sent) as response,
        ):
            raw = await response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            return Answer(response.status, json.loads(raw) if is_json else raw, dict(response.headers))


class Fleet:
    """Start managers and agents, ask the API, and at the end `settle`. make_bus: how agents make theirs."""

    def __init__(self, folder: Path, database_url: str, nats: NatsServer, zygote: "subprocess.Popen[str]") -> None:
        self.folder = folder
        self.database_url = database_url
        self.nats = nats
        self.world = World(folder / "world")
        self.world.folder.mkdir()
        #: From which every host may take images.
        self.images = folder / "images"
        self.states: dict[str, StateDir] = {}
        self.api = Api("", "")
        self.make_bus: Callable[..., Bus] = Bus
        self._zygote = zygote
        self._agents: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._stack = AsyncExitStack()
        self._children: dict[str, int] = {}

    # ---- managers

    def config(self, replica: str, **changes: Any) -> Config:
        return Config(
            database_url=self.database_url,
            nats_urls=(self.nats.url,),
            keys_dir=self.folder / "keys",
            state_dir=self.folder / replica,
            listen="127.0.0.1:0",
            replica=replica,
            **(_QUICK | changes),
        )

    async def manager(
        self,
        replica: str = "manager-1",
        *,
        definitions: Mapping[str, SagaDef] = SAGAS,
        command_ttl_s: float = COMMAND_TTL_S,
        **changes: Any,
    ) -> Api:
        """A manager in this process, until the fleet ends; `api` is its client."""
        config = self.config(replica, **changes)
        url = await self._stack.enter_async_context(
            running(config, definitions=definitions, command_ttl_s=command_ttl_s)
        )
        self.api = self._client(url)
        return self.api

    async def child_manager(
        self,
        replica: str = "manager-1",
        *,
        kill_at: str | None = None,
        fail_at: tuple[str, str] | None = None,
        command_ttl_s: float = COMMAND_TTL_S,
        abandoned_s: float | None = None,
        level: str = "INFO",
        **changes: Any,
    ) -> Api:
        """A manager in a process of its own, killed at that journal line."""
        ready = self.folder / f"{replica}.url"
        ready.unlink(missing_ok=True)
        config = msgspec.to_builtins(self.config(replica, **changes), enc_hook=str)
        order = {
            "config": config,
            "kill_at": kill_at,
            "fail_at": fail_at,
            "ready": str(ready),
            "log": str(self.log_of(replica)),
            "command_ttl_s": command_ttl_s,
            "abandoned_s": abandoned_s,
            "level": level,
        }
        assert self._zygote.stdin and self._zygote.stdout
        self._zygote.stdin.write(json.dumps(order) + "\n")
        self._zygote.stdin.flush()
        self._children[replica] = int(self._zygote.stdout.readline())

        async def is_ready() -> bool:
            return ready.exists()

        await until(is_ready, f"{replica} to serve")
        self.api = self._client(ready.read_text())
        return self.api

    def signal(self, replica: str, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._children[replica], number)

    def log_of(self, replica: str) -> Path:
        """Where a child manager writes its log."""
        return self.folder / f"{replica}.log"

    def is_dead(self, replica: str) -> bool:
        return not runs(self._children[replica])

    def _client(self, url: str) -> Api:
        tokens = sorted(self.folder.glob("*/admin.token"))
        return Api(url, tokens[0].read_text().strip(), self.images)

    # ---- agents

    async def agent(self, name: str, *, labels: dict[str, str] | None = None) -> None:
        """A host that has joined and is online."""
        state = StateDir(self.folder / "hosts" / name)
        self.states[name] = state
        if not state.config_file.exists():
            answer = await self.api("POST", "/v1/hosts/join_tokens", {"ttl_s": 600})
            assert answer.status == 201, answer
            invitation = Invitation.read(self.api.url, answer.body["token"])
            facts = facts_of(labels or {})
            await asyncio.to_thread(join, state, invitation, name=name, facts=facts, say=lambda _: None)
        await self.start_agent(name)

        async def is_online() -> bool:
            hosts = (await self.api("GET", "/v1/hosts")).body["items"]
            return any(host["name"] == name and host["state"] == "online" for host in hosts)

        await until(is_online, f"{name} to be online")

    async def start_agent(self, name: str) -> None:
        state = self.states[name]
        config: AgentConfig = load_config(state, {})
        intervals = Intervals(beat_s=0.5, probe_s=1.0, reconcile_s=2.0)
        self.images.mkdir(exist_ok=True)
        config = msgspec.structs.replace(config, intervals=intervals, image_dirs=(str(self.images),))
        stop = asyncio.Event()
        task = asyncio.create_task(
            run_agent(config, state, stop=stop, drivers=self.world.drivers(name), make_bus=self.make_bus),
            name=f"agent {name}",
        )
        self._agents[name] = (task, stop)

    def end_agent(self, name: str) -> None:
        """The agent is told to stop; `stop_agent` waits for its end. May be called from inside its driver."""
        self._agents[name][1].set()

    async def stop_agent(self, name: str) -> None:
        """The agent's process is over, in order or not: what it holds stays."""
        task, stop = self._agents.pop(name)
        stop.set()
        await asyncio.wait_for(task, PATIENCE_S)

    # ---- the end

    async def close(self) -> None:
        for name in list(self._agents):
            await self.stop_agent(name)
        await self._stack.aclose()
        for replica in self._children:
            self.signal(replica, signal.SIGKILL)

    async def sql(self, query: str, *args: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch(query, *args)
        finally:
            await connection.close()

    def credentials(self, host: str) -> dict[str, list[int]]:
        """backend id -> versions of credentials that the host keeps."""
        found: dict[str, list[int]] = {}
        for path in self.states[host].credentials.iterdir():
            backend_id, version, _ = path.name.rsplit(".", 2)
            found.setdefault(backend_id, []).append(int(version))
        return found

    async def settle(self, *, patience_s: float = PATIENCE_S) -> None:
        """Every saga has ended and every host does what is wanted of it."""

        async def is_quiet() -> bool:
            rows = await self.sql("SELECT count(*) AS n FROM operation WHERE state IN ('running', 'undoing')")
            return bool(rows[0]["n"] == 0)

        await until(is_quiet, "the sagas to end", patience_s=patience_s)

        async def is_even() -> bool:
            return await self.disagreement() is None

        try:
            await until(is_even, "hosts and database to agree", patience_s=patience_s)
        except AssertionError:
            raise AssertionError(await self.disagreement()) from None

    async def disagreement(self) -> str | None:
        """What keeps database, mounts and credentials from agreeing; None when they do."""
        rows = await self.sql(
            "SELECT id::text, name, state, config, credential_version FROM backend WHERE deleted_at IS NULL"
        )
        odd = [f"{r['name']} is {r['state']}" for r in rows if r["state"] in ("creating", "deleting", "stuck")]
        if odd:
            return "; ".join(odd)
        if await self.sql("SELECT FROM backend_host WHERE desired = 'absent'"):
            return "a tombstone is left"
        if odd_volume := await self._volume_disagreement():
            return odd_volume
        for host, state in self.states.items():
            if host not in self._agents:
                continue
            mounts, credentials = self.world.mounts(host), self.credentials(host)
            # One that needs initialization is attached from the moment on which its device is found to be ours.
            maybe = {r["id"] for r in rows if r["state"] == "needs_initialization"}
            wanted = {r["id"] for r in rows} - maybe
            if set(mounts) - maybe != wanted:
                return f"{host} has mounted {sorted(mounts)}, wanted is {sorted(wanted)}"
            secret = {r["id"]: [r["credential_version"]] for r in rows if r["credential_version"]}
            if credentials != secret:
                return f"{host} keeps credentials {credentials}, wanted is {secret}"
            for row in rows:
                if row["id"] in mounts and mounts[row["id"]]["config"] != json.loads(row["config"]):
                    return f"{host} has {row['name']} mounted with an older config"
            left = [path.name for path in (*state.run.iterdir(), *state.works.iterdir()) if path != state.works]
            if left:
                return f"{host} left {left} in its run folder"
        return None

    async def _volume_disagreement(self) -> str | None:
        """What keeps the rows of volumes from agreeing with what lies on storages and is attached to hosts."""
        rows = await self.sql(
            "SELECT id::text, name, role, state, backend_id::text, locator, worker_id FROM volume WHERE deleted_at IS NULL"
        )
        for row in rows:
            if row["state"] != "ready" or row["worker_id"] is not None:
                return f"{row['role']} {row['name']} is {row['state']}, its worker {row['worker_id']}"
        known = {(row["backend_id"], row["locator"]) for row in rows}
        places = [path.name for path in (self.world.folder / "volumes").glob("*")]
        there = {(backend_id, locator) for backend_id in places for locator in self.world.contents(backend_id)}
        if known != there:
            return f"volumes {sorted(known - there)} have no bytes, bytes {sorted(there - known)} have no volume"
        held = await self.sql(
            "SELECT h.name AS host, v.locator, a.state FROM attachment a JOIN host h ON h.id = a.host_id"
            " JOIN volume v ON v.id = a.volume_id WHERE a.closed_at IS NULL"
        )
        for host in self.states:
            wanted = {row["locator"] for row in held if row["host"] == host}
            if host in self._agents and self.world.attached(host) != wanted:
                return f"{host} has {self.world.attached(host)} attached, wanted is {wanted}"
        return next((f"an attachment is {row['state']}" for row in held if row["state"] != "attached"), None)


@contextlib.asynccontextmanager
async def fleet(folder: Path, database_url: str, zygote: "subprocess.Popen[str]") -> AsyncGenerator[Fleet]:
    """A fleet without managers or agents yet; everything it starts is gone afterwards."""
    nats = NatsServer(folder)
    nats.start()
    made = Fleet(folder, database_url, nats, zygote)
    try:
        yield made
    finally:
        await made.close()
        nats.stop()


def start_zygote() -> "subprocess.Popen[str]":
    """The process that forks child managers."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fleet.child_manager"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
