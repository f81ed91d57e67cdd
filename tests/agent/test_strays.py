"""Mounts that nobody knows of go; what is recorded, or worked on, or not ours stays."""

import asyncio
from pathlib import Path

import pytest

from agent.journal import Record, RecordState
from agent.mounts import Mounts
from agent.strays import Strays
from schemas.ids import new_id
from tests.agent.fake_kernel import FakeKernel
from tests.agent.fakes import Rig, target
from tests.agent.recorded_commands import RecordedCommands, Step


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def strays_of(rig: Rig, kernel: FakeKernel, commands: RecordedCommands) -> Strays:
    mounts = Mounts(commands, kernel.file)
    return Strays(state=rig.state, journal=rig.journal, mounts=mounts, lock=rig.host.lock, interval_s=60.0)


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
