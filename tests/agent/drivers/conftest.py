"""What a driver is given in tests: a workspace like the agent's, and real worker processes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.drivers.base import Workspace
from agent.workers import WorkerPool

HOST_ID = "01900000-0000-7000-8000-00000000aaaa"


def make_space(state: Path, backend_id: str) -> Workspace:
    """A workspace laid out as the agent does: state/{backends,mounts,trials}/<id>, state/run."""
    for name in ("backends", "mounts", "trials", "run"):
        (state / name).mkdir(parents=True, exist_ok=True)
    folder = state / "backends" / backend_id
    folder.mkdir(exist_ok=True)
    return Workspace(
        host_id=HOST_ID,
        host_name="hv1",
        dir=folder,
        mount_dir=state / "mounts" / backend_id,
        trial_dir=state / "trials" / backend_id,
        run_dir=state / "run",
        reserved=(state,),
    )


@pytest.fixture
async def workers() -> AsyncIterator[WorkerPool]:
    async with WorkerPool() as pool:
        yield pool
