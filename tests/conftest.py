"""Fixtures that many tests share: a real PostgreSQL for the session, a fresh database or a whole fleet for the test."""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from manager.embedded import identity, postgres
from manager.embedded.postgres import Postgres
from manager.store.migrate import migrate
from manager.store.pool import connect
from tests.browser.chromium import MISSING, chromium, must_be_there
from tests.fleet.fleet import Fleet, fleet, start_zygote

#: The lab's tests need its guests; `scripts/lab test` runs them.
collect_ignore = [] if "STOWAGE_LAB" in os.environ else ["lab"]
#: Makes a database, from a template if one is named, and returns its name.
MakeDatabase = Callable[[str | None], Awaitable[str]]

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}


def pytest_configure(config: pytest.Config) -> None:
    """In CI nothing runs before what the run needs is installed."""
    folder = Path(__file__).parent / "browser"
    asked = [Path(arg.partition("::")[0]).resolve() for arg in config.args]
    is_asked = any(folder.is_relative_to(path) or path.is_relative_to(folder) for path in asked)
    if is_asked and must_be_there() and chromium() is None:
        raise pytest.UsageError(MISSING)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says once, and in a quiet run too, why the page's tests were skipped."""
    if any(MISSING in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(f"skipped: {MISSING}", yellow=True)


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """A folder that other users may pass through, with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="stowage-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(server_dir: Path) -> Iterator[Postgres]:
    """The session's server, without fsync."""
    folder = server_dir / "postgres"
    folder.mkdir(mode=0o700)
    who = identity.choose(folder, [postgres.binaries() / "postgres"])
    server = Postgres(
        folder, password_file=server_dir / "password", log=server_dir / "postgres.log", identity=who, settings=FAST
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def new_database(postgres_server: Postgres) -> AsyncIterator[MakeDatabase]:
    """Makes databases that go when the test ends."""
    made: list[str] = []
    numbers = itertools.count()
    admin = await asyncpg.connect(postgres_server.url())

    async def make(template: str | None = None) -> str:
        name = f"test_{os.urandom(6).hex()}_{next(numbers)}"
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template0"}" STRATEGY FILE_COPY')
        made.append(name)
        return name

    yield make
    with contextlib.suppress(asyncpg.PostgresConnectionError):  # a test may have killed the server
        for name in made:
            await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await admin.close()


@pytest.fixture(scope="session")
def migrated(postgres_server: Postgres) -> str:
    """The name of a database of our schema, for a template: each test's manager would take 0.1 s to make it anew."""

    async def make() -> str:
        admin = await asyncpg.connect(postgres_server.url())
        await admin.execute("CREATE DATABASE migrated TEMPLATE template0 STRATEGY FILE_COPY")
        await admin.close()
        connection = await connect(postgres_server.url("migrated"))
        await migrate(connection)
        await connection.close()
        return "migrated"

    return asyncio.run(make())


@pytest.fixture
async def database(postgres_server: Postgres, new_database: MakeDatabase) -> str:
    """The DSN of a fresh, empty database."""
    return postgres_server.url(await new_database(None))


@pytest.fixture(scope="session")
def zygote() -> "Iterator[subprocess.Popen[str]]":
    process = start_zygote()
    yield process
    assert process.stdin and process.stdout
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
async def stowage(
    tmp_path: Path,
    postgres_server: Postgres,
    new_database: MakeDatabase,
    migrated: str,
    zygote: "subprocess.Popen[str]",
) -> AsyncIterator[Fleet]:
    """A fleet without managers or agents yet."""
    async with fleet(tmp_path, postgres_server.url(await new_database(migrated)), zygote) as made:
        yield made
