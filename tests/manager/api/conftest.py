"""The API served on loopback: real tokens and kept answers on a real PostgreSQL, use cases in memory."""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import asyncpg
import msgspec
import pytest
from aiohttp import web

from manager.actor import SYSTEM, Role
from manager.api.application import create_api
from manager.api.idempotency import Idempotency
from manager.api.page import Page
from manager.api.server import ApiRunner
from manager.backends import Backends
from manager.capacity import Capacities
from manager.changes import Changes
from manager.drift import Drift
from manager.embedded.postgres import Postgres
from manager.evacuations import Evacuations
from manager.events import Events
from manager.hosts import Hosts
from manager.matrix import Matrices
from manager.operations import Operations
from manager.pace import Pace
from manager.probing import Probing
from manager.registry import Registry
from manager.sessions import Sessions
from manager.store.migrate import migrate
from manager.store.pool import Pool, connect, open_pool
from manager.tokens import Tokens
from manager.uploads import Uploads
from manager.volume_reads import VolumeReads
from manager.volumes import Volumes
from schemas.requests import CreateToken
from tests.manager.api.stand_ins import (
    BackendsInMemory,
    CapacitiesInMemory,
    EventsInMemory,
    HostsInMemory,
    OperationsInMemory,
    ProbingInMemory,
)
from tests.manager.api.volume_stand_ins import DriftInMemory, EvacuationsInMemory, UploadsInMemory, VolumesInMemory

FLEET_ID = "01a20a7c-5b8b-7040-9cb3-f3c33d30d1ea"


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; TimeoutError when it does not within 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event to wait on)
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    def problem(self, status: int, code: str) -> Any:
        """The problem document, which must be this one."""
        assert (self.status, self.json["code"]) == (status, code), self.body
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.json["request_id"]
        assert self.json["title"]
        return self.json

    def pointers(self) -> list[str]:
        return [error["pointer"] for error in self.json["errors"]]


@dataclass
class Api:
    """A client, and everything behind the server that it talks to."""

    url: str
    port: int
    client: aiohttp.ClientSession
    runner: ApiRunner
    pool: Pool
    tokens: Tokens
    sessions: Sessions = field(default_factory=lambda: Sessions(b"k" * 32, fleet_id=FLEET_ID))
    backends: BackendsInMemory = field(default_factory=BackendsInMemory)
    volumes: VolumesInMemory = field(default_factory=VolumesInMemory)
    uploads: UploadsInMemory = field(default_factory=UploadsInMemory)
    hosts: HostsInMemory = field(default_factory=HostsInMemory)
    #: Empty: what its rows do is for tests with a database.
    registry: Registry = field(
        default_factory=lambda: Registry(cast("Pool", None), host_silent_s=60, observation_stale_s=60)
    )
    changes: Changes = field(init=False)
    capacities: CapacitiesInMemory = field(default_factory=CapacitiesInMemory)
    operations: OperationsInMemory = field(default_factory=OperationsInMemory)
    events: EventsInMemory = field(default_factory=EventsInMemory)
    missing: dict[str, str] = field(default_factory=dict[str, str])
    by_role: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    def __post_init__(self) -> None:
        self.changes = Changes(self.registry)

    async def call(
        self,
        method: str,
        path: str,
        json: object = None,
        *,
        role: str | None = "operator",
        token: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent: dict[str, str] = {}
        if json is not None:
            body = msgspec.json.encode(json)
        if body is not None:
            sent["Content-Type"] = "application/json"
        if token is None and role is not None:
            token = self.by_role[role]
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        sent |= headers or {}
        content = io.BytesIO(body) if body is not None and len(body) > 100_000 else body
        async with self.client.request(method, self.url + path, data=content, headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())

    async def token(self, name: str, role: str) -> str:
        made = await self.tokens.create(CreateToken(name=name, role=role, expires_at=None), SYSTEM)
        assert made.token is not None
        return made.token


@pytest.fixture(scope="session")
def api_database(postgres_server: Postgres) -> str:
    """The DSN of one database with our schema for all tests here: making one takes longer than most of them."""

    async def make() -> str:
        name = f"api_{os.urandom(6).hex()}"
        admin = await asyncpg.connect(postgres_server.url())
        await admin.execute(f'CREATE DATABASE "{name}"')
        await admin.close()
        connection = await connect(postgres_server.url(name))
        await migrate(connection)
        await connection.close()
        return postgres_server.url(name)

    return asyncio.run(make())


@pytest.fixture
async def pool(api_database: str) -> AsyncIterator[Pool]:
    """On that database, empty."""
    pool = await open_pool(api_database, size=8)
    await pool.execute("TRUNCATE api_token, idempotency, operation CASCADE")
    yield pool
    await pool.close()


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """A page of a few files, with some beside it that are nobody's business."""
    folder = tmp_path / "ui"
    (folder / "js").mkdir(parents=True)
    (folder / "index.html").write_text('<link href="{{base}}/app.css"><script src="{{base}}/js/main.js"></script>\n')
    (folder / "js" / "main.js").write_text('export const words = "größer";\n')
    (folder / "app.css").write_text("a {}\n")
    (folder / "icon.svg").write_text("<svg/>\n")
    (folder / "notes.txt").write_text("c4n4ry\n")
    (tmp_path / "beside.js").write_text("c4n4ry\n")
    return Page.read(folder)


@pytest.fixture
async def api(pool: Pool, page: Page) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as client:
        api = Api(url="", port=0, client=client, runner=cast("ApiRunner", None), pool=pool, tokens=Tokens(pool))

        async def readiness() -> Mapping[str, str]:
            return api.missing

        app = create_api(
            backends=cast("Backends", api.backends),
            probing=cast("Probing", ProbingInMemory(api.backends)),
            volume_reads=cast("VolumeReads", api.volumes),
            volumes=cast("Volumes", api.volumes),
            uploads=cast("Uploads", api.uploads),
            evacuations=cast("Evacuations", EvacuationsInMemory(api.volumes)),
            drift=cast("Drift", DriftInMemory(api.volumes)),
            hosts=cast("Hosts", api.hosts),
            matrices=Matrices(api.registry),
            changes=api.changes,
            capacities=cast("Capacities", api.capacities),
            operations=cast("Operations", api.operations),
            events=cast("Events", api.events),
            tokens=api.tokens,
            sessions=api.sessions,
            idempotency=Idempotency(pool, b"k" * 32),
            readiness=readiness,
            # Its time stands still: a slow machine must not forgive anything.
            failures=Pace(burst=30, per_s=1.0, clock=lambda: 0.0),
            page=page,
        )
        api.runner = ApiRunner(app)
        await api.runner.setup()
        await web.TCPSite(api.runner, "127.0.0.1", 0).start()
        api.port = api.runner.addresses[0][1]
        api.url = f"http://127.0.0.1:{api.port}"
        for role in Role:
            api.by_role[role] = await api.token(role, role)
        yield api
        await api.runner.cleanup()
