"""What a driver is given in tests: real worker processes, and for iscsi_lvm a SAN of recordings."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.workers import WorkerPool
from tests.agent.san import San


@pytest.fixture
async def workers() -> AsyncIterator[WorkerPool]:
    async with WorkerPool() as pool:
        yield pool


@pytest.fixture
def san(tmp_path: Path, workers: WorkerPool) -> Iterator[San]:
    """A test that ends before every step was asked for fails."""
    san = San(tmp_path, workers)
    yield san
    san.commands.assert_done()
