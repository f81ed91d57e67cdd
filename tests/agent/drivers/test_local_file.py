"""local_file on real folders, in real worker processes."""

import asyncio
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.base import Deadline, Workspace
from agent.drivers.local_file import LocalFile
from agent.errors import AgentFault
from agent.jobs import MARKER_NAME
from agent.workers import WorkerPool
from schemas.backends import Capability
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.mounting import fill, needs_root, tmpfs
from tests.agent.spaces import SOON, make_space

BACKEND = "01900000-0000-7000-8000-000000000001"
OTHER_BACKEND = "01900000-0000-7000-8000-000000000002"
FLEET = "01900000-0000-7000-8000-00000000ffff"
NONE = Credentials({})


def target_for(folder: Path, backend_id: str = BACKEND, **config: Any) -> Target:
    return Target(
        backend_id=backend_id,
        fleet_id=FLEET,
        kind="local_file",
        config={"root_dir": str(folder), **config},
        generation=1,
    )


@pytest.fixture
def driver(workers: WorkerPool) -> LocalFile:
    return LocalFile(workers)


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return make_space(tmp_path / "state", BACKEND)


async def fault_of(awaitable: Any) -> Any:
    with pytest.raises(AgentFault) as caught:
        await awaitable
    return caught.value.fault


async def test_attach_makes_the_folder_and_proves_it(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    report = await driver.attach(target_for(folder), NONE, space, establish=True)
    assert report.latency_ms > 0
    assert report.capacity is not None and report.capacity.total_bytes > 0
    assert report.capabilities == (Capability.CLONE_FROM_IMAGE, Capability.SNAPSHOT)
    assert os.listdir(folder) == [MARKER_NAME]
    assert await driver.is_attached(target_for(folder), space)
    assert (await driver.probe(target_for(folder), space)).latency_ms > 0


async def test_attach_twice_is_once(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    target = target_for(tmp_path / "vms")
    await driver.attach(target, NONE, space, establish=True)
    await driver.attach(target, NONE, space, establish=True)
    assert await driver.release(target, space, remove_marker=True) is not None
    assert not (tmp_path / "vms").exists()


async def test_attach_on_a_host_that_joins_later_makes_its_own_folder(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    await driver.attach(target_for(tmp_path / "vms"), NONE, space, establish=False)
    assert (tmp_path / "vms" / MARKER_NAME).exists()


async def test_attach_without_parent_is_path_not_found(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    fault = await fault_of(driver.attach(target_for(tmp_path / "no/such"), NONE, space, establish=True))
    assert fault.code is FaultCode.PATH_NOT_FOUND
    assert str(tmp_path / "no") in fault.detail


async def test_attach_on_a_file_is_not_a_directory(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (
        await fault_of(driver.attach(target_for(tmp_path / "file"), NONE, space, establish=True))
    ).code is FaultCode.NOT_A_DIRECTORY


async def test_attach_on_another_backends_folder_is_marker_mismatch_and_touches_nothing(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "vms"
    await driver.attach(target_for(folder), NONE, space, establish=True)
    other_space = make_space(tmp_path / "state", OTHER_BACKEND)
    fault = await fault_of(driver.attach(target_for(folder, OTHER_BACKEND), NONE, other_space, establish=True))
    assert fault.code is FaultCode.MARKER_MISMATCH
    assert BACKEND in fault.detail and str(folder) in fault.detail
    assert str(folder / MARKER_NAME) in fault.remedy
    await driver.release(target_for(folder, OTHER_BACKEND), other_space, remove_marker=True)
    assert (await driver.probe(target_for(folder), space)).latency_ms > 0


@pytest.mark.parametrize(
    ("first", "second"), [("vms", "vms/b"), ("vms", "vms/b/c"), ("vms/b", "vms"), ("vms/b/c", "vms")]
)
async def test_attach_in_or_around_another_backends_folder_is_refused_and_touches_nothing(
    first: str, second: str, driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "vms/b").mkdir(parents=True)
    await driver.attach(target_for(tmp_path / first), NONE, space, establish=True)
    other_space = make_space(tmp_path / "state", OTHER_BACKEND)
    before = sorted(tmp_path.glob("vms/**/*"))
    for act in (
        driver.attach(target_for(tmp_path / second, OTHER_BACKEND), NONE, other_space, establish=True),
        driver.trial(target_for(tmp_path / second, OTHER_BACKEND), NONE, other_space),
    ):
        fault = await fault_of(act)
        assert fault.code is FaultCode.MARKER_MISMATCH
        assert str(tmp_path / first) in fault.detail
    assert sorted(tmp_path.glob("vms/**/*")) == before
    assert (await driver.probe(target_for(tmp_path / first), space)).latency_ms > 0


@pytest.mark.parametrize("place", ["state", "state/credentials", ".", "keys", "keys/x"])
async def test_attach_in_or_around_a_reserved_folder_is_refused(
    place: str, driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    space = dataclasses.replace(space, reserved=(*space.reserved, tmp_path / "keys"))
    fault = await fault_of(driver.attach(target_for((tmp_path / place).resolve()), NONE, space, establish=True))
    assert fault.code is FaultCode.PERMISSION_DENIED
    assert list(tmp_path.rglob(MARKER_NAME)) == []


async def test_release_of_a_folder_that_does_not_answer_ends_and_says_what_stays(
    space: Workspace, tmp_path: Path, workers: WorkerPool
) -> None:
    class Dying:
        async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
            if job == "clear_place":
                raise AgentFault.of(FaultCode.IO_ERROR, "input/output error")
            return await workers.run(job, args, key=key, timeout_s=timeout_s)

    driver = LocalFile(Dying())
    await driver.attach(target_for(tmp_path / "vms"), NONE, space, establish=True)
    report = await driver.release(target_for(tmp_path / "vms"), space, remove_marker=True)
    assert MARKER_NAME in report.left[0] and str(tmp_path / "vms") in report.left[0] and "io_error" in report.left[0]
    assert os.listdir(space.dir) == []


async def test_probe_after_the_marker_is_gone_is_marker_missing(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    target = target_for(tmp_path / "vms")
    await driver.attach(target, NONE, space, establish=True)
    (tmp_path / "vms" / MARKER_NAME).unlink()
    for awaitable in (
        driver.probe(target, space),
        driver.attach(target, NONE, space, establish=False),
        driver.trial(target, NONE, space),
    ):
        assert (await fault_of(awaitable)).code is FaultCode.MARKER_MISSING


async def test_attach_after_the_folder_vanished_does_not_make_it_anew(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    target = target_for(tmp_path / "vms")
    await driver.attach(target, NONE, space, establish=True)
    (tmp_path / "vms" / MARKER_NAME).unlink()
    (tmp_path / "vms").rmdir()
    assert (await fault_of(driver.attach(target, NONE, space, establish=False))).code is FaultCode.PATH_NOT_FOUND
    assert not await driver.is_attached(target, space)
    assert not (tmp_path / "vms").exists()


async def test_probe_before_attach_is_converging(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    assert (await fault_of(driver.probe(target_for(tmp_path), space))).code is FaultCode.CONVERGING


async def test_attach_that_is_cancelled_leaves_no_folder(space: Workspace, tmp_path: Path, workers: WorkerPool) -> None:
    proving = asyncio.Event()

    class Stalling:
        async def run(self, job: str, args: Any, *, key: str, timeout_s: float) -> dict[str, Any]:
            if job == "prove":
                proving.set()
                await asyncio.Event().wait()
            return await workers.run(job, args, key=key, timeout_s=timeout_s)

    task = asyncio.create_task(LocalFile(Stalling()).attach(target_for(tmp_path / "vms"), NONE, space, establish=True))
    await asyncio.wait_for(proving.wait(), 10)
    assert (tmp_path / "vms").exists()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (tmp_path / "vms").exists()


async def test_release_with_data_keeps_it_and_says_where(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    target = target_for(folder)
    await driver.attach(target, NONE, space, establish=True)
    for name in ("a.qcow2", "b.qcow2", "c.qcow2"):
        (folder / name).write_text("disk")
    report = await driver.release(target, space, remove_marker=True)
    assert report.left == (f"3 entries in {folder}",)
    assert sorted(os.listdir(folder)) == ["a.qcow2", "b.qcow2", "c.qcow2"]


async def test_release_keeps_a_folder_that_was_there_before(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    await driver.attach(target_for(folder), NONE, space, establish=True)
    report = await driver.release(target_for(folder), space, remove_marker=True)
    assert report.left == ()
    assert os.listdir(folder) == []


async def test_release_without_remove_marker_leaves_the_marker(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    target = target_for(tmp_path / "vms")
    await driver.attach(target, NONE, space, establish=True)
    await driver.release(target, space, remove_marker=False)
    assert (tmp_path / "vms" / MARKER_NAME).exists()
    assert not await driver.is_attached(target, space)


async def test_release_of_what_never_was_is_success_twice(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    for _ in range(2):
        assert (await driver.release(target_for(tmp_path / "no/such"), space, remove_marker=True)).left == ()


async def test_release_after_a_kill_between_mkdir_and_marker_removes_the_folder(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    """The words are on disk before the mkdir, so what a killed agent made is known to its successor."""
    await driver.attach(target_for(tmp_path / "vms"), NONE, space, establish=True)
    memory = (space.dir / "local_file.json").read_text()
    (space.dir / "local_file.json").write_text(memory.replace('"attached":"yes"', '"attached":"no"'))
    (tmp_path / "vms" / MARKER_NAME).unlink()
    await driver.release(target_for(tmp_path / "vms"), space, remove_marker=True)
    assert not (tmp_path / "vms").exists()


async def test_trial_of_a_new_folder_leaves_nothing(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    assert (await driver.trial(target_for(folder), NONE, space)).latency_ms > 0
    assert not folder.exists()
    folder.mkdir()
    await driver.trial(target_for(folder), NONE, space)
    assert os.listdir(folder) == []
    assert os.listdir(space.dir) == []


async def test_clean_trial_after_a_kill_removes_the_folder_that_the_trial_made(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "vms").mkdir()
    (space.dir / "local_file-trial.json").write_text(f'{{"root_dir": "{tmp_path}/vms"}}')
    await driver.clean_trial(target_for(tmp_path / "vms"), space)
    assert not (tmp_path / "vms").exists()
    assert os.listdir(space.dir) == []


async def test_attach_through_a_link_keeps_to_what_it_pointed_at_first(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    await driver.attach(target_for(link), NONE, space, establish=True)
    link.unlink()
    link.symlink_to(tmp_path / "two")
    await driver.attach(target_for(link), NONE, space, establish=False)
    assert (os.listdir(tmp_path / "one"), os.listdir(tmp_path / "two")) == ([MARKER_NAME], [])


@pytest.mark.parametrize(
    "place", ["/etc", "/etc/vms", "/usr/local/vms", "/proc", "/dev/vms", "/sys/kernel", "/boot", "/bin/vms"]
)
async def test_attach_on_a_system_folder_is_refused(driver: LocalFile, space: Workspace, place: str) -> None:
    fault = await fault_of(driver.attach(target_for(Path(place)), NONE, space, establish=True))
    assert fault.code in (FaultCode.PERMISSION_DENIED, FaultCode.NOT_A_DIRECTORY)
    assert not Path(place, MARKER_NAME).exists()


@pytest.mark.parametrize("pointed_at", ["/", "/etc", "{state}/backends", "{state}/mounts", "{state}/run"])
async def test_attach_through_a_link_to_a_forbidden_folder_is_refused(
    driver: LocalFile, space: Workspace, tmp_path: Path, pointed_at: str
) -> None:
    (tmp_path / "link").symlink_to(pointed_at.format(state=tmp_path / "state"))
    fault = await fault_of(driver.attach(target_for(tmp_path / "link"), NONE, space, establish=True))
    assert fault.code is FaultCode.PERMISSION_DENIED


@needs_root
async def test_require_mountpoint_is_refused_until_something_is_mounted(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    target = target_for(folder, require_mountpoint=True)
    assert (await fault_of(driver.attach(target, NONE, space, establish=True))).code is FaultCode.NOT_A_MOUNTPOINT
    assert os.listdir(folder) == []
    assert not (await driver.checks(target))[0].is_ok
    with tmpfs(folder):
        await driver.attach(target, NONE, space, establish=True)
        assert (await driver.checks(target))[0].is_ok
    assert not await driver.is_attached(target, space)
    assert (await fault_of(driver.probe(target, space))).code is FaultCode.NOT_A_MOUNTPOINT


@needs_root
async def test_attach_on_a_read_only_file_system_is_read_only_and_can_be_undone(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    with tmpfs(folder, "ro"):
        for place in (folder, folder / "below"):
            assert (
                await fault_of(driver.attach(target_for(place), NONE, space, establish=True))
            ).code is FaultCode.READ_ONLY
            assert (await driver.release(target_for(place), space, remove_marker=True)).left == ()


@needs_root
async def test_probe_on_a_full_file_system_is_no_space(driver: LocalFile, space: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    with tmpfs(folder, "size=1m"):
        await driver.attach(target_for(folder), NONE, space, establish=True)
        report = await driver.probe(target_for(folder), space)
        assert report.capacity is not None and report.capacity.total_bytes == 1024 * 1024
        fill(folder / "more")
        assert (await fault_of(driver.probe(target_for(folder), space))).code is FaultCode.NO_SPACE


async def test_checks_name_what_is_wrong(driver: LocalFile, tmp_path: Path) -> None:
    assert [check.is_ok for check in await driver.checks(target_for(tmp_path / "vms"))] == [True]
    (check,) = await driver.checks(target_for(tmp_path / "no/such"))
    assert not check.is_ok and check.detail and check.remedy


async def test_attach_with_a_config_that_this_agent_does_not_know_is_kind_unsupported(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    for config in (
        {"root_dir": "relative"},
        {"root_dir": "/srv/../etc"},
        {"root_dir": str(tmp_path), "new_field": 1},
        {},
    ):
        target = Target(backend_id=BACKEND, fleet_id=FLEET, kind="local_file", config=config, generation=1)
        assert (await fault_of(driver.attach(target, NONE, space, establish=True))).code is FaultCode.KIND_UNSUPPORTED


async def test_verbs_of_devices_and_servers_are_kind_unsupported(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    target = target_for(tmp_path)
    for awaitable in (
        driver.discover({}, NONE, SOON),
        driver.inspect(target, NONE, space),
        driver.initialize(target, NONE, space, wwid="x", force=True, deadline=Deadline(0.0)),
    ):
        assert (await fault_of(awaitable)).code is FaultCode.KIND_UNSUPPORTED


@pytest.mark.parametrize("second", ["the same", "inside", "by a link"])
async def test_two_adds_on_one_new_folder_one_gets_it_and_nothing_is_left(
    driver: LocalFile, space: Workspace, tmp_path: Path, second: str
) -> None:
    other = make_space(tmp_path / "state", OTHER_BACKEND)
    (tmp_path / "link").symlink_to(tmp_path)
    for number in range(8):
        folder = tmp_path / f"vms{number}"
        if second == "inside":
            folder.mkdir()
        others = {"the same": folder, "inside": folder / "b", "by a link": tmp_path / "link" / folder.name}[second]
        pairs = [(target_for(folder), space), (target_for(others, OTHER_BACKEND), other)]

        async def add(target: Target, own: Workspace) -> None:
            if second != "inside":  # they would come one after the other by themselves
                await driver.trial(target, NONE, own)
            await driver.attach(target, NONE, own, establish=True)

        results = await asyncio.gather(*(add(*pair) for pair in pairs), return_exceptions=True)
        lost = [result.fault.code for result in results if isinstance(result, AgentFault)]
        assert (results.count(None), lost) == (1, [FaultCode.MARKER_MISMATCH]), results
        for target, own in pairs:
            await driver.release(target, own, remove_marker=True)
        assert (os.listdir(folder) if folder.exists() else []) == []
        assert folder.exists() == (second == "inside")


@needs_root
async def test_release_of_a_disk_that_is_not_mounted_says_that_its_marker_stays(
    driver: LocalFile, space: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    with tmpfs(folder):
        await driver.attach(target_for(folder), NONE, space, establish=True)
    report = await driver.release(target_for(folder), space, remove_marker=True)
    assert report.left == (f"{MARKER_NAME} and whatever else is in {folder}, which was not mounted",)
    assert await driver.release(target_for(folder), space, remove_marker=True) == type(report)()


@pytest.mark.parametrize("path", ["/proc/self/cwd/x", "/dev/shm/x", "/sys/x"])
async def test_folder_below_a_file_system_of_the_kernel_refused_before_it_is_resolved(
    driver: LocalFile, space: Workspace, path: str
) -> None:
    fault = await fault_of(driver.attach(target_for(Path(path)), NONE, space, establish=True))
    assert fault.code == FaultCode.PERMISSION_DENIED
