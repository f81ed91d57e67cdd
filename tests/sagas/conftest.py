"""A fleet for each test."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from manager.embedded.postgres import Postgres
from tests.conftest import MakeDatabase
from tests.fleet.fleet import Fleet, fleet, start_zygote


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
    tmp_path: Path, postgres_server: Postgres, new_database: MakeDatabase, zygote: "subprocess.Popen[str]"
) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, postgres_server.url(await new_database(None)), zygote) as made:
        yield made
