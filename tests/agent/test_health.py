"""Probes at their pace, whatever a neighbour does."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec
import pytest

from agent.health import Health
from schemas.backends import HealthStatus
from schemas.faults import FaultCode
from schemas.ids import new_id
from tests.agent.fakes import FAST, Rig, World, target
from tests.agent.waiting import until

QUICK = msgspec.structs.replace(FAST, probe_s=0.1)


@contextlib.asynccontextmanager
async def running(rig: Rig, wakes: list[int]) -> AsyncGenerator[None, None]:
    health = Health(host=rig.host, wake=lambda: wakes.append(1), intervals=QUICK)
    tasks = [asyncio.create_task(health.run()), asyncio.create_task(rig.board.run())]
    yield
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome


@pytest.fixture
def wakes() -> list[int]:
    return []


async def test_health_attached_backend_is_probed_again_and_again(
    rig: Rig, world: World, backend_id: str, wakes: list[int]
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    async with running(rig, wakes):
        await until(lambda: world.calls["probe"] >= 3)
        await until(lambda: len(rig.sent) >= 3)
    assert {seen.status for seen in rig.sent} == {HealthStatus.HEALTHY}
    assert not wakes


async def test_health_change_is_sent_at_once_and_recovery_too(
    rig: Rig, world: World, backend_id: str, wakes: list[int]
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    async with running(rig, wakes):
        world.fail("probe", FaultCode.NO_SPACE)
        await until(lambda: rig.sent and rig.sent[-1].code is FaultCode.NO_SPACE)
        assert rig.sent[-1].remedy
        world.heal()
        await until(lambda: rig.sent[-1].status is HealthStatus.HEALTHY)


async def test_health_dead_servers_cost_the_others_nothing(rig: Rig, world: World, wakes: list[int]) -> None:
    dead, good = [new_id() for _ in range(10)], new_id()
    for backend_id in (*dead, good):
        await rig.host.attach(target(backend_id), establish=True)
    gates = [world.hold("probe", backend_id) for backend_id in dead]
    async with running(rig, wakes):
        await until(lambda: all(world.running["probe" + backend_id] for backend_id in dead))
        before = world.calls["probe" + good]
        # Five probes take half a second; one that waited for the dead would take a second for each.
        await until(lambda: world.calls["probe" + good] >= before + 5, timeout_s=2.0)
        assert all(world.most_running["probe" + backend_id] == 1 for backend_id in dead)
        assert (seen := rig.board.latest(good)) is not None
        assert seen.status is HealthStatus.HEALTHY
        for gate in gates:
            gate.set()


async def test_health_lost_mount_wakes_the_reconciler(
    rig: Rig, world: World, backend_id: str, wakes: list[int]
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.mounted.clear()
    async with running(rig, wakes):
        await until(lambda: wakes)
        assert (seen := rig.board.latest(backend_id)) is not None
        assert seen.status is HealthStatus.UNREACHABLE


async def test_health_lost_server_wakes_the_reconciler(
    rig: Rig, world: World, backend_id: str, wakes: list[int]
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.fail("probe", FaultCode.SERVER_UNREACHABLE)
    async with running(rig, wakes):
        await until(lambda: wakes)


async def test_health_bug_in_a_driver_ends_no_other_probe(rig: Rig, world: World, wakes: list[int]) -> None:
    bad, good = new_id(), new_id()
    for backend_id in (bad, good):
        await rig.host.attach(target(backend_id), establish=True)
    world.faults["probe" + bad] = ValueError("a bug")  # type: ignore[assignment]
    async with running(rig, wakes):
        await until(lambda: world.calls["probe"] >= 6)
        assert (seen := rig.board.latest(good)) is not None
        assert seen.status is HealthStatus.HEALTHY


async def test_health_not_attached_but_wanted_stays_red_with_a_fresh_date(
    rig: Rig, world: World, backend_id: str, wakes: list[int]
) -> None:
    world.fail("attach", FaultCode.SERVER_UNREACHABLE)
    wanted = target(backend_id)
    rig.host.note_failure(wanted, world.faults["attach"].fault)
    first = rig.board.latest(backend_id)
    assert first is not None
    async with running(rig, wakes):
        await until(lambda: (seen := rig.board.latest(backend_id)) and seen.observed_at > first.observed_at)
    assert world.calls["probe"] == 0
    assert not wakes


async def test_health_released_backend_is_no_longer_probed(rig: Rig, world: World, wakes: list[int]) -> None:
    gone, kept = new_id(), new_id()
    for backend_id in (gone, kept):
        await rig.host.attach(target(backend_id), establish=True)
    async with running(rig, wakes):
        await until(lambda: world.calls["probe" + gone] >= 1)
        async with rig.host.lock(gone):
            await rig.host.release(gone, remove_marker=False)
        before, kept_before = world.calls["probe" + gone], world.calls["probe" + kept]
        await until(lambda: world.calls["probe" + kept] >= kept_before + 4)
        assert world.calls["probe" + gone] == before
    assert rig.board.latest(gone) is None
