"""A secret is found where agents keep their credentials and nowhere else, whatever is done with it."""

import asyncio
import base64
import contextlib
import functools
import json
import logging
import secrets
import signal
import stat
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from manager.bus_auth import sign_claims
from schemas import nkey
from schemas.bus import Handler, Message
from schemas.logs import JsonFormatter
from tests.bus.nats_server import RawPeer
from tests.fleet.fleet import Answer, Api, Fleet, until
from tests.fleet.lossy_bus import LossyBus, Weather

_BACKENDS = "/v1/storage_backends"
#: No secret: a search that does not find this either is no search.
_PUBLIC = "office"


class Canaries:
    """Secrets made for the test; `found_in` says which lie in some bytes, plain or in a usual coat."""

    def __init__(self) -> None:
        self._all: dict[str, str] = {}

    def new(self, what: str) -> str:
        self._all[what] = f"Canary{secrets.token_hex(12)}"
        return self._all[what]

    def found_in(self, haystack: bytes) -> list[str]:
        return [what for what, text in self._all.items() if any(coat in haystack for coat in _coats(text))]


def _coats(text: str) -> Iterator[bytes]:
    raw = text.encode()
    yield raw
    yield raw.hex().encode()
    for shift in range(3):
        # What base64 makes of it at each place in a longer text, without the ends that its neighbours decide.
        yield base64.b64encode(b"x" * shift + raw)[4:-4]


class _Watched(LossyBus):
    """Looks at every process's argv and environment whenever a command arrives."""

    def __init__(self, *, seen: set[bytes], **settings: Any) -> None:
        super().__init__(weather=Weather(), **settings)
        self._seen = seen

    async def _arrive(self, handler: Handler, message: Message) -> None:
        sample_processes(self._seen)
        await handler(message)
        sample_processes(self._seen)


def sample_processes(seen: set[bytes]) -> None:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    seen.add((process / name).read_bytes())


class Spy:
    """Hears every word on the bus, inboxes and JetStream included, with an identity minted for it from the account's key."""

    def __init__(self, peer: RawPeer) -> None:
        self.heard = bytearray()
        self._peer = peer
        self._task = asyncio.create_task(self._listen(), name="spy")

    @classmethod
    async def enter(cls, fleet: Fleet) -> "Spy":
        seed = nkey.new_seed(nkey.Role.USER)
        limits = {"subs": -1, "data": -1, "payload": -1}
        rights = {"type": "user", "pub": {"deny": [">"]}, "sub": {"allow": [">"]}, **limits}
        user_jwt = sign_claims(fleet.nats.keys.account, nkey.public_key(seed), rights, name="spy")
        peer = await RawPeer.connect_as(fleet.nats.port, user_jwt, seed)
        assert await peer.ask(b"SUB > 1\r\n") == []
        return cls(peer)

    async def _listen(self) -> None:
        while True:
            try:
                line = await self._peer.read_line()
            except TimeoutError:
                continue
            if line.startswith(b"PING"):
                await self._peer.send(b"PONG\r\n")
            if not line:
                return
            self.heard += line

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._peer.close()


@pytest.fixture
def agent_log(tmp_path: Path) -> Iterator[Path]:
    """Everything that is logged in this process, the agents' words, down to DEBUG."""
    path = tmp_path / "agents.log"
    root = logging.getLogger()
    level = root.level
    with path.open("a") as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter({"process": "agents"}))
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        yield path
        root.setLevel(level)
        root.removeHandler(handler)


class Caller:
    """Asks the API and keeps every answer."""

    def __init__(self) -> None:
        self.answers = bytearray()

    async def __call__(self, api: Api, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        answer = await api(method, path, body, **headers)
        self.answers += json.dumps([answer.status, _plain(answer.body), dict(answer.headers)]).encode()
        return answer

    async def raw(self, api: Api, path: str, body: bytes) -> int:
        headers = {"Authorization": f"Bearer {api.token}", "Content-Type": "application/json"}
        async with aiohttp.ClientSession() as session, session.post(api.url + path, data=body, headers=headers) as got:
            self.answers += await got.read()
            return got.status


def _plain(body: Any) -> Any:
    return body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else body


def _smb(name: str, password: str, **more: Any) -> dict[str, Any]:
    credentials = {"username": "svc", "password": password}
    return {
        "name": name,
        "kind": "smb",
        "config": {"server": "nas", "share": "vms"},
        "credentials": credentials,
        **more,
    }


async def _tables(fleet: Fleet) -> bytes:
    """Every row of every table as PostgreSQL writes it."""
    tables = await fleet.sql(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname = 'public'"
    )
    dump = bytearray()
    connection = await asyncpg.connect(fleet.database_url)
    try:
        for table in tables:
            for row in await connection.fetch(f"SELECT t::text AS line FROM {table['name']} t"):
                dump += f"{table['name']} {row['line']}\n".encode()
    finally:
        await connection.close()
    return bytes(dump)


@contextlib.asynccontextmanager
async def _stream(api: Api) -> AsyncGenerator[bytearray]:
    """What the server-sent stream says from the first event on."""
    heard = bytearray()
    headers = {"Authorization": f"Bearer {api.token}", "Last-Event-ID": "0"}

    async def listen() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.get(api.url + "/v1/events/stream", headers=headers) as got,
        ):
            async for chunk in got.content.iter_any():
                heard.extend(chunk)

    task = asyncio.create_task(listen(), name="event stream")
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_secret_is_found_in_the_agents_stores_and_nowhere_else(
    stowage: Fleet, agent_log: Path, server_dir: Path
) -> None:
    canaries, call, processes = Canaries(), Caller(), set[bytes]()
    stowage.make_bus = functools.partial(_Watched, seen=processes)
    accepted = stowage.world.passwords
    spy = await Spy.enter(stowage)

    async def is_dead() -> bool:
        return stowage.is_dead("manager-1")

    async def knows_hosts() -> bool:
        hosts = (await stowage.api("GET", "/v1/hosts")).body["items"]
        return [host["state"] for host in hosts] == ["online", "online"]

    # The manager that was told the secret dies before it has delivered it, and after.
    in_crash: list[str] = []
    for step in ("reserve", "deliver"):
        api = await stowage.child_manager(kill_at=f"after backend.add {step} done", level="DEBUG")
        if step == "reserve":
            await stowage.agent("hv1")
            await stowage.agent("hv2")
        await until(knows_hosts, "the manager to know both hosts")
        accepted.add(crashed := canaries.new(f"add, crash after {step}"))
        with contextlib.suppress(aiohttp.ClientError):
            await call(api, "POST", _BACKENDS, _smb(f"crashed-{step}", crashed), Idempotency_Key=step)
        await until(is_dead, "the manager to die in the middle of the add")
        in_crash += canaries.found_in(await _tables(stowage))
    api = await stowage.child_manager(level="DEBUG")
    await until(knows_hosts, "the manager to know both hosts")
    await stowage.settle()

    accepted.add(first := canaries.new("add"))
    added = await call(api, "POST", _BACKENDS, _smb(_PUBLIC, first), Idempotency_Key="add")
    assert added.status == 201, added
    stored = [file.read_text() for host in ("hv1", "hv2") for file in stowage.states[host].credentials.iterdir()]
    assert sum(first in text for text in stored) == 2, "the search does not find what is there"

    wrong = await call(api, "POST", _BACKENDS, _smb("wrong", canaries.new("add, refused")), Idempotency_Key="wrong")
    assert (wrong.status, wrong.body["code"]) == (422, "credentials_rejected")
    stowage.world.fail("hv2", "attach")
    accepted.add(unproven := canaries.new("add, probe failed"))
    failed = await call(api, "POST", _BACKENDS, _smb("failed", unproven))
    assert (failed.status, failed.body["code"]) == (422, "probe_failed")
    stowage.world.script.clear()

    accepted.add(second := canaries.new("rotate"))
    office = f"{_BACKENDS}/{_PUBLIC}"
    assert (await call(api, "PATCH", office, {"credentials": {"password": second}})).status == 200
    refused = await call(api, "PATCH", office, {"credentials": {"password": canaries.new("rotate, refused")}})
    assert (refused.status, refused.body["code"]) == (422, "credentials_rejected")

    accepted.add(third := canaries.new("preflight"))
    assert (await call(api, "POST", f"{_BACKENDS}/preflight", _smb("flight", third))).status == 200
    bad_flight = _smb("flight", canaries.new("preflight, refused"))
    assert (await call(api, "POST", f"{_BACKENDS}/preflight", bad_flight)).status == 200

    looks = {"kind": "smb", "config": {"server": "nas"}}
    accepted.add(fourth := canaries.new("discover"))
    for password, status in ((fourth, 200), (canaries.new("discover, refused"), 422)):
        looks["credentials"] = {"username": "svc", "password": password}
        assert (
            await call(api, "POST", "/v1/hosts/hv1/discover", looks, Idempotency_Key=f"look-{status}")
        ).status == status
    looks["kind"] = "nfs"
    looks["credentials"] = {"password": canaries.new("discover, kind without credentials")}
    assert (await call(api, "POST", "/v1/hosts/hv1/discover", looks)).status == 400

    invalid = _smb("not valid!", canaries.new("invalid body"))
    invalid["credentials"]["passwort"] = canaries.new("misspelt field")
    invalid["config"]["password"] = canaries.new("secret in config")
    invalid["password"] = canaries.new("secret beside")
    assert (await call(api, "POST", _BACKENDS, invalid, Idempotency_Key="invalid")).status == 400
    long = _smb("long", canaries.new("too long") * 100)
    assert (await call(api, "POST", _BACKENDS, long)).status == 400
    control = _smb("control", canaries.new("control character") + "\n")
    assert (await call(api, "POST", _BACKENDS, control)).status == 400
    number = _smb("number", "")
    number["credentials"]["password"] = [canaries.new("wrong type")]
    assert (await call(api, "POST", _BACKENDS, number)).status == 400
    broken = json.dumps(_smb("broken", canaries.new("broken JSON"))).encode()[:-1]
    assert await call.raw(api, _BACKENDS, broken) == 400
    assert (await call(api, "PATCH", office, {"credentials": {"pin": canaries.new("edit, unknown")}})).status == 400
    guest = {"name": "guest", "kind": "nfs", "config": {"server": "nas", "export": "/x"}}
    guest["credentials"] = {"password": canaries.new("kind without credentials")}
    assert (await call(api, "POST", _BACKENDS, guest)).status == 400

    async with _stream(api) as streamed:
        for path in (
            _BACKENDS,
            office,
            f"{office}/hosts",
            "/v1/operations?limit=200",
            "/v1/events?limit=200",
            "/v1/hosts",
        ):
            assert (await call(api, "GET", path)).status == 200
        (newest,) = await stowage.sql("SELECT max(n) AS n FROM event")

        async def is_streamed() -> bool:
            return f"id: {newest['n']}\n".encode() in streamed

        await until(is_streamed, "the stream to bring every event")
    await stowage.settle()
    tables = await _tables(stowage)
    for host in ("hv1", "hv2"):
        await stowage.stop_agent(host)
    stowage.signal("manager-1", signal.SIGTERM)
    await until(is_dead, "the manager to end")
    await spy.leave()

    holders = [file for host in ("hv1", "hv2") for file in stowage.states[host].credentials.iterdir()]
    assert sorted(what for file in holders for what in canaries.found_in(file.read_bytes())) == [
        *["add, crash after deliver"] * 2,
        *["rotate"] * 2,
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in holders} == {0o600}
    assert {stat.S_IMODE(file.parent.stat().st_mode) for file in holders} == {0o700}

    # The rest of what lies on disk: logs of managers, agents and servers, journals, JetStream, keys, whatever else.
    stores = {stowage.states[host].credentials for host in ("hv1", "hv2")} | {stowage.world.folder}
    files = [path for path in stowage.folder.rglob("*") if path.is_file() and not stores & set(path.parents)]
    haystacks = {
        "tables": tables,
        "server-sent events": bytes(streamed),
        "answers": bytes(call.answers),
        "bus": bytes(spy.heard),
        **{str(path): path.read_bytes() for path in files},
    }
    found = {name: canaries.found_in(hay) for name, hay in haystacks.items()}
    found["processes"] = canaries.found_in(b"\0".join(processes))
    found["PostgreSQL's log"] = canaries.found_in((server_dir / "postgres.log").read_bytes())
    found["tables in the crash"] = in_crash
    assert {name: what for name, what in found.items() if what} == {}

    # The control: each place was really looked into.
    journals = [str(stowage.states[host].journal_file) for host in ("hv1", "hv2")]
    public = ["tables", "server-sent events", "answers", "bus"]
    for name in public:
        assert _PUBLIC.encode() in haystacks[name], f"{name} was not searched"
    backend_id = added.body["id"].encode()
    (request_id,) = (value.encode() for name, value in added.headers.items() if name.lower() == "x-request-id")
    for name in journals:
        assert backend_id in haystacks[name] + haystacks.get(f"{name}-wal", b""), f"{name} was not searched"
    for log in (agent_log, stowage.log_of("manager-1")):
        assert request_id in haystacks[str(log)], f"{log} was not searched"
    assert any(b"tests.fleet.child_manager" in argv for argv in processes)
    assert len(files) > 10
