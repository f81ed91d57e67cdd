"""Managers killed and paused, messages lost, doubled and late: what clients were told is what is there."""

import functools
import os

import pytest

from agent.rpc import CommandServer
from schemas.agent_rpc import AnyCommand
from schemas.bus import Handler, Message
from tests.fleet.chaos import weather_a_storm
from tests.fleet.fleet import Fleet, until
from tests.fleet.lossy_bus import LossyBus, Weather

pytestmark = pytest.mark.slow

OPERATIONS = int(os.environ.get("STOWAGE_CHAOS_ADDS", "32"))
SEED = int(os.environ.get("STOWAGE_CHAOS_SEED", "7"))

NFS = {"name": "tank", "kind": "nfs", "config": {"server": "nas", "export": "/tank/vms"}}


@pytest.mark.timeout(60 + 2 * OPERATIONS)
async def test_storm_over_three_managers_leaves_what_clients_were_told(stowage: Fleet) -> None:
    storm, wrong = await weather_a_storm(stowage, operations=OPERATIONS, clients=12, seed=SEED)

    assert wrong == [], f"seed {SEED}"
    figures = storm.figures()
    assert figures["kills"] + figures["pauses"] > 0, "there was no storm"
    assert figures["lost"] > 0
    assert figures["repeated"] > 0


class _Catching(LossyBus):
    """Keeps the first attach for later, as a network may."""

    def __init__(self, *, caught: list[tuple[Handler, Message]], **settings: object) -> None:
        super().__init__(weather=Weather(), **settings)
        self._caught = caught

    async def _arrive(self, handler: Handler, message: Message) -> None:
        if message.subject.endswith(".attach") and not self._caught:
            self._caught.append((handler, message))
        else:
            await handler(message)


async def _attach_late(stowage: Fleet) -> str:
    """An add fails on hv1 and is undone on both hosts; then hv2's attach arrives. The backend's id."""
    caught: list[tuple[Handler, Message]] = []
    await stowage.manager(command_ttl_s=0.5)
    await stowage.agent("hv1")
    stowage.make_bus = functools.partial(_Catching, caught=caught)
    await stowage.agent("hv2")
    stowage.world.closed.add(("hv1", "nas"))
    answer = await stowage.api("POST", "/v1/storage_backends", NFS)
    assert (answer.status, answer.body["code"]) == (422, "probe_failed")
    (created,) = await stowage.sql("SELECT params ->> 'backend_id' AS id FROM operation")
    await stowage.settle()
    assert caught, "hv2 was never asked to attach"
    handler, message = caught[0]
    await handler(message)
    return str(created["id"])


async def test_attach_that_comes_after_its_undo_is_refused(stowage: Fleet) -> None:
    await _attach_late(stowage)

    assert stowage.world.mounts("hv2") == {}
    assert await stowage.disagreement() is None


async def test_attach_that_comes_after_its_undo_mounts_where_no_fence_is_checked(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the agent's check the test above would fail. (The next sync would let go of it.)"""

    def let_all_in(server: CommandServer, command: AnyCommand) -> None:
        return

    monkeypatch.setattr(CommandServer, "_stale", let_all_in)

    backend_id = await _attach_late(stowage)

    assert backend_id in stowage.world.mounts("hv2")

    async def is_released() -> bool:
        return stowage.world.mounts("hv2") == {}

    await until(is_released, "the sync to let go of what nobody wants")
