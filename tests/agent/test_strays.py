"""Mounts that nobody knows of go; what is recorded, or worked on, or not ours stays."""

import asyncio
from pathlib import Path

import pytest

from agent.journal import Record, RecordState
from agent.mounts import Mounts
from agent.strays import Strays
from schemas.faults import FaultCode
from schemas.ids import new_id
from tests.agent.fake_kernel import FakeKernel
from tests.agent.fakes import Rig, World, target
from tests.agent.recorded_commands import RecordedCommands, Step


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def strays_of(rig: Rig, kernel: FakeKernel, commands: RecordedCommands) -> Strays:
    mounts = Mounts(commands, kernel.file)
    return Strays(state=rig.state, journal=rig.journal, mounts=mounts, lock=rig.host.lock,
                  clean_trials=rig.host.clean_trials, interval_s=60.0)  # fmt: skip


def unmounts(kernel: FakeKernel, where: Path) -> Step:
    return Step(("umount", "-c", "--", str(where)), effect=lambda: kernel.unmount(where))


@pytest.mark.parametrize("folder", ["mounts", "trials"])
async def test_mount_that_no_record_knows_is_unmounted(rig: Rig, kernel: FakeKernel, folder: str) -> None:
    where = rig.state.root / folder / new_id()
    where.mkdir()
    kernel.mount(where)
    commands = RecordedCommands(unmounts(kernel, where))
    await strays_of(rig, kernel, commands).sweep()
    commands.assert_done()
    assert not where.exists()


async def test_mount_that_is_recorded_or_not_below_our_folders_stays(rig: Rig, kernel: FakeKernel) -> None:
    attached, tried = target(new_id()), target(new_id())
    rig.journal.put_record(Record(attached, RecordState.ATTACHING))
    rig.journal.begin_trial(tried)
    kernel.mount(rig.state.mounts / attached.backend_id)
    kernel.mount(rig.state.trials / tried.backend_id)
    kernel.mount(Path("/srv/mounts") / new_id())
    async with rig.host.lock(tried.backend_id):  # the trial is under way
        await strays_of(rig, kernel, RecordedCommands()).sweep()
    assert len(kernel.lines) == 4


async def test_mount_of_a_backend_that_is_worked_on_stays(rig: Rig, kernel: FakeKernel) -> None:
    backend_id = new_id()
    kernel.mount(rig.state.mounts / backend_id)
    async with rig.host.lock(backend_id):
        await strays_of(rig, kernel, RecordedCommands()).sweep()
    assert len(kernel.lines) == 2


async def test_stray_that_does_not_go_keeps_no_other_and_is_tried_again(rig: Rig, kernel: FakeKernel) -> None:
    stuck, other = (rig.state.mounts / name for name in ("a", "b"))
    for where in (stuck, other):
        where.mkdir()
        kernel.mount(where)
    refusal = [Step(("umount", "-c", *way, "--", str(stuck)), 32, stderr="umount: device not ready") for way in
               ((), ("-i", "-f"), ("-i", "-l"))]  # fmt: skip
    commands = RecordedCommands(*refusal, unmounts(kernel, other), unmounts(kernel, stuck))
    strays = strays_of(rig, kernel, commands)
    await strays.sweep()
    assert (stuck.exists(), other.exists()) == (True, False)
    await strays.sweep()
    commands.assert_done()
    assert not stuck.exists()


async def test_sweep_goes_on_after_a_failure(rig: Rig, kernel: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    strays = strays_of(rig, kernel, RecordedCommands())
    kernel.file.unlink()
    running = asyncio.create_task(strays.run())
    await asyncio.sleep(0)
    assert not running.done()
    assert "sweep raised" in caplog.text
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_stray_in_use_is_left_to_who_uses_it(rig: Rig, kernel: FakeKernel) -> None:
    """After a lost journal every live mount is a stray until the next sync."""
    where = rig.state.mounts / new_id()
    where.mkdir()
    kernel.mount(where)
    commands = RecordedCommands(Step(("umount", "-c", "--", str(where)), 32, stderr="umount: target is busy."))
    await strays_of(rig, kernel, commands).sweep()
    commands.assert_done()
    assert where.exists() and len(kernel.lines) == 2


async def test_trial_whose_clean_up_failed_is_ended_by_a_later_sweep(
    rig: Rig, world: World, kernel: FakeKernel, backend_id: str
) -> None:
    rig.journal.begin_trial(target(backend_id))
    world.fail("clean_trial", FaultCode.SERVER_UNREACHABLE)
    strays = strays_of(rig, kernel, RecordedCommands())
    await strays.sweep()
    assert rig.journal.trials()
    world.heal()
    async with rig.host.lock(backend_id):
        await strays.sweep()  # it is worked on, which is not waited for
    assert rig.journal.trials()
    await strays.sweep()
    assert not rig.journal.trials()
