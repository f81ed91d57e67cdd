"""A world, and rigs on it that are closed when the test ends."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.config import Intervals
from schemas.ids import new_id
from tests.agent.fakes import FAST, Rig, World

MakeRig = Callable[..., Rig]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def make_rig(tmp_path: Path, world: World) -> AsyncIterator[MakeRig]:
    """Each call is one more start of the agent on the same state folder."""
    made: list[Rig] = []

    def make(intervals: Intervals = FAST) -> Rig:
        made.append(Rig(tmp_path, world, intervals=intervals))
        return made[-1]

    yield make
    for rig in made:
        await rig.close()


@pytest.fixture
async def rig(make_rig: MakeRig) -> Rig:
    return make_rig()


@pytest.fixture
def backend_id() -> str:
    return new_id()
