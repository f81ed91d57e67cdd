"""nfs: the exact command lines, and the life of a mount against a server that is a tmpfs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.base import Workspace
from agent.drivers.nfs import Nfs
from agent.errors import AgentFault
from agent.jobs import MARKER_NAME
from agent.mounts import Mounts
from agent.workers import WorkerPool
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.fake_kernel import FakeKernel, FakeServer
from tests.agent.mounting import needs_root
from tests.agent.recorded_commands import RecordedCommands, Step, replay
from tests.agent.spaces import SOON, make_space

BACKEND = "01900000-0000-7000-8000-000000000001"
OTHER_BACKEND = "01900000-0000-7000-8000-000000000002"
FLEET = "01900000-0000-7000-8000-00000000ffff"
NONE = Credentials({})
SHOWN = "nfs4 10.0.0.5:/tank/vms rw,vers=4.2,hard,proto=tcp,addr=10.0.0.5"


def target_for(backend_id: str = BACKEND, **config: Any) -> Target:
    config = {"server": "10.0.0.5", "export": "/tank/vms", **config}
    return Target(backend_id=backend_id, fleet_id=FLEET, kind="nfs", config=config, generation=1)


def mount_argv(
    where: Path, options: str = "nosuid,nodev,noexec,hard,retry=0", source: str = "10.0.0.5:/tank/vms"
) -> tuple[str, ...]:
    return ("mount", "-t", "nfs", "-o", options, "--", source, str(where))


def umount_argv(where: Path, *ways: str) -> tuple[str, ...]:
    return ("umount", "-c", *(("-i", *ways) if ways else ()), "--", str(where))


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


@pytest.fixture
def server(tmp_path: Path, kernel: FakeKernel) -> Iterator[FakeServer]:
    server = FakeServer(tmp_path / "server", kernel)
    yield server
    server.close()


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return make_space(tmp_path / "state", BACKEND)


@pytest.fixture
def commands() -> Iterator[RecordedCommands]:
    commands = RecordedCommands()
    yield commands
    commands.assert_done()


@pytest.fixture
def driver(commands: RecordedCommands, workers: WorkerPool, kernel: FakeKernel) -> Nfs:
    return Nfs(commands, workers, mounts=Mounts(commands, kernel.file))


async def fault_of(awaitable: Any) -> Any:
    with pytest.raises(AgentFault) as caught:
        await awaitable
    return caught.value.fault


def mounts_it(server: FakeServer, where: Path, *, shown: str = SHOWN, **words: str) -> Step:
    return Step(mount_argv(where, **words), effect=lambda: server.mount(where, shown))


def unmounts_it(server: FakeServer, where: Path, *ways: str) -> Step:
    return Step(umount_argv(where, *ways), effect=lambda: server.unmount(where))


@pytest.mark.parametrize(
    ("config", "options", "source"),
    [
        ({}, "nosuid,nodev,noexec,hard,retry=0", "10.0.0.5:/tank/vms"),
        ({"nfs_version": "3"}, "nosuid,nodev,noexec,hard,retry=0,vers=3", "10.0.0.5:/tank/vms"),
        ({"nfs_version": "4"}, "nosuid,nodev,noexec,hard,retry=0,vers=4", "10.0.0.5:/tank/vms"),
        ({"nfs_version": "4.1"}, "nosuid,nodev,noexec,hard,retry=0,vers=4.1", "10.0.0.5:/tank/vms"),
        (
            {"nfs_version": "4.2", "options": "noatime,nconnect=4"},
            "nosuid,nodev,noexec,hard,retry=0,vers=4.2,noatime,nconnect=4",
            "10.0.0.5:/tank/vms",
        ),
        ({"options": "soft,timeo=50"}, "nosuid,nodev,noexec,retry=0,soft,timeo=50", "10.0.0.5:/tank/vms"),
        ({"options": "hard"}, "nosuid,nodev,noexec,hard,retry=0", "10.0.0.5:/tank/vms"),
        ({"server": "fd00::5"}, "nosuid,nodev,noexec,hard,retry=0", "[fd00::5]:/tank/vms"),
        ({"server": "[fd00::5]", "export": "/"}, "nosuid,nodev,noexec,hard,retry=0", "[fd00::5]:/"),
        ({"export": "/with blank/"}, "nosuid,nodev,noexec,hard,retry=0", "10.0.0.5:/with blank"),
    ],
)
async def test_attach_calls_mount_with_exactly(
    config: dict[str, Any], options: str, source: str, driver: Nfs, commands: RecordedCommands, space: Workspace
) -> None:
    commands.then(replay("mount_nfs", "dead_address", mount_argv(space.mount_dir, options, source)))
    fault = await fault_of(driver.attach(target_for(**config), NONE, space, establish=True))
    assert fault.code is FaultCode.SERVER_UNREACHABLE
    assert not space.mount_dir.exists()


@pytest.mark.parametrize(
    ("helper", "code"),
    [
        (Step(("mount.nfs", "-V")), FaultCode.KIND_UNSUPPORTED),
        (
            Step(("mount.nfs", "-V"), fault=AgentFault.of(FaultCode.TOOL_MISSING, "mount.nfs cannot be started")),
            FaultCode.TOOL_MISSING,
        ),
    ],
)
async def test_attach_without_the_helper_is_told_from_a_kernel_without_nfs(
    helper: Step, code: FaultCode, driver: Nfs, commands: RecordedCommands, space: Workspace
) -> None:
    commands.then(replay("mount_nfs", "kernel_without_nfs", mount_argv(space.mount_dir)), helper)
    assert (await fault_of(driver.attach(target_for(), NONE, space, establish=True))).code is code
    assert not space.mount_dir.exists()


@pytest.mark.parametrize(
    "config",
    [
        {"server": "-o"}, {"server": "nas,exec"}, {"server": "nas\n"}, {"server": "nas:/x"}, {"server": "nas exec"},
        {"export": "--bind"}, {"export": "/a,suid"}, {"export": "/a\nb"}, {"export": "/a/../b"}, {"export": "relative"},
        {"options": "suid"}, {"options": "noatime,exec"}, {"options": "noatime,,dev"}, {"options": "rsize=1 ,suid"}, {"options": "timeo=5\nsuid"},
        {"options": "noatime=x"}, {"options": "vers=3"}, {"subdir": "../x"}, {"subdir": "/etc"}, {"nfs_version": "5"}, {"unknown": 1},
    ],
)  # fmt: skip
async def test_attach_with_words_that_could_reach_argv_runs_nothing(
    config: dict[str, Any], driver: Nfs, commands: RecordedCommands, space: Workspace
) -> None:
    assert (
        await fault_of(driver.attach(target_for(**config), NONE, space, establish=True))
    ).code is FaultCode.KIND_UNSUPPORTED
    assert commands.calls == []


@needs_root
async def test_attach_proves_the_mount_and_makes_the_marker(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(mounts_it(server, space.mount_dir))
    report = await driver.attach(target_for(), NONE, space, establish=True)
    assert report.latency_ms > 0 and report.capacity is not None
    assert os.listdir(server.folder) == [MARKER_NAME]
    assert await driver.is_attached(target_for(), space)
    assert (await driver.attach(target_for(), NONE, space, establish=False)).latency_ms > 0
    assert (await driver.probe(target_for(), space)).latency_ms > 0


@needs_root
async def test_attach_that_cannot_be_proven_is_unmounted_again(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(mounts_it(server, space.mount_dir), unmounts_it(server, space.mount_dir))
    assert (await fault_of(driver.attach(target_for(), NONE, space, establish=False))).code is FaultCode.MARKER_MISSING
    assert os.listdir(server.folder) == []
    assert not space.mount_dir.exists()


@needs_root
async def test_attach_of_another_backend_on_the_same_export_is_marker_mismatch(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer, tmp_path: Path
) -> None:
    other_space = make_space(tmp_path / "state", OTHER_BACKEND)
    other_dir = other_space.mount_dir
    commands.then(mounts_it(server, space.mount_dir), mounts_it(server, other_dir), unmounts_it(server, other_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    fault = await fault_of(driver.attach(target_for(OTHER_BACKEND), NONE, other_space, establish=True))
    assert fault.code is FaultCode.MARKER_MISMATCH
    assert BACKEND in fault.detail and "10.0.0.5:/tank/vms" in fault.detail and str(other_dir) not in fault.detail
    assert os.listdir(server.folder) == [MARKER_NAME]


@needs_root
async def test_attach_to_a_subfolder_needs_it_to_exist(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    target = target_for(subdir="vms/prod")
    commands.then(mounts_it(server, space.mount_dir), unmounts_it(server, space.mount_dir))
    fault = await fault_of(driver.attach(target, NONE, space, establish=True))
    assert fault.code is FaultCode.PATH_NOT_FOUND
    assert "10.0.0.5:/tank/vms/vms/prod" in fault.detail and str(space.mount_dir) not in fault.detail
    (server.folder / "vms/prod").mkdir(parents=True)
    commands.then(mounts_it(server, space.mount_dir))
    await driver.attach(target, NONE, space, establish=True)
    assert os.listdir(server.folder / "vms/prod") == [MARKER_NAME]


@needs_root
async def test_attach_with_another_config_mounts_anew(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    where = space.mount_dir
    changed = target_for(options="noatime")
    commands.then(mounts_it(server, where))
    await driver.attach(target_for(), NONE, space, establish=True)
    assert not await driver.is_attached(changed, space)
    commands.then(
        unmounts_it(server, where), mounts_it(server, where, options="nosuid,nodev,noexec,hard,retry=0,noatime")
    )
    await driver.attach(changed, NONE, space, establish=False)
    assert await driver.is_attached(changed, space)
    assert not await driver.is_attached(target_for(), space)


@needs_root
async def test_attach_with_another_config_while_in_use_is_in_use_and_keeps_the_mount(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(mounts_it(server, space.mount_dir), replay("umount", "busy", umount_argv(space.mount_dir)))
    await driver.attach(target_for(), NONE, space, establish=True)
    fault = await fault_of(driver.attach(target_for(options="noatime"), NONE, space, establish=False))
    assert fault.code is FaultCode.IN_USE
    assert await driver.is_attached(target_for(), space)


@needs_root
async def test_probe_after_the_mount_went_away_writes_nothing_into_the_folder_beneath(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer, kernel: FakeKernel
) -> None:
    commands.then(mounts_it(server, space.mount_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    shown = list(kernel.lines)
    server.unmount(space.mount_dir)
    assert (await fault_of(driver.probe(target_for(), space))).code is FaultCode.NOT_A_MOUNTPOINT
    assert not await driver.is_attached(target_for(), space)
    # Even if it goes between the look at mountinfo and the write:
    kernel.lines = shown
    kernel.file.write_text("\n".join(shown) + "\n")
    assert (await fault_of(driver.probe(target_for(), space))).code is FaultCode.NOT_A_MOUNTPOINT
    assert os.listdir(space.mount_dir) == []


@needs_root
async def test_attach_of_a_stale_handle_mounts_anew(
    commands: RecordedCommands, workers: WorkerPool, kernel: FakeKernel, space: Workspace, server: FakeServer
) -> None:
    is_stale = False

    class Restarted:
        async def run(self, job: str, args: Any, *, key: str, timeout_s: float) -> dict[str, Any]:
            if is_stale:
                raise AgentFault.of(FaultCode.STALE_HANDLE, "Stale file handle")
            return await workers.run(job, args, key=key, timeout_s=timeout_s)

    def mounts_anew() -> None:
        nonlocal is_stale
        is_stale = False
        server.mount(space.mount_dir, SHOWN)

    driver = Nfs(commands, Restarted(), mounts=Mounts(commands, kernel.file))
    commands.then(mounts_it(server, space.mount_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    is_stale = True
    commands.then(unmounts_it(server, space.mount_dir), Step(mount_argv(space.mount_dir), effect=mounts_anew))
    assert (await driver.attach(target_for(), NONE, space, establish=False)).latency_ms > 0
    # Where something still uses it, it stays, and is tried again later.
    is_stale = True
    commands.then(replay("umount", "busy", umount_argv(space.mount_dir)))
    assert (await fault_of(driver.attach(target_for(), NONE, space, establish=False))).code is FaultCode.IN_USE
    assert kernel.lines[1:]


@needs_root
async def test_release_while_not_mounted_says_what_it_could_not_reach(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(mounts_it(server, space.mount_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    server.unmount(space.mount_dir)
    report = await driver.release(target_for(), space, remove_marker=True)
    assert MARKER_NAME in report.left[0] and "10.0.0.5:/tank/vms" in report.left[0]


@needs_root
async def test_release_of_what_a_newer_agent_would_not_accept_lets_go(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(mounts_it(server, space.mount_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    commands.then(unmounts_it(server, space.mount_dir))
    await driver.release(target_for(options="oddopt", unknown=1, nfs_version="4.0"), space, remove_marker=True)
    assert not space.mount_dir.exists() and os.listdir(server.folder) == []


@needs_root
async def test_release_removes_marker_mount_and_folder_and_says_what_is_left(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(mounts_it(server, space.mount_dir), unmounts_it(server, space.mount_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    (server.folder / "a.qcow2").touch()
    report = await driver.release(target_for(), space, remove_marker=True)
    assert report.left == ("1 entry in 10.0.0.5:/tank/vms",) and not report.was_lazy
    assert os.listdir(server.folder) == ["a.qcow2"]
    assert not space.mount_dir.exists() and os.listdir(space.dir) == []
    assert await driver.release(target_for(), space, remove_marker=True) == type(report)()


@needs_root
async def test_release_of_a_busy_mount_is_lazy_and_says_so(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(
        mounts_it(server, space.mount_dir),
        replay("umount", "busy", umount_argv(space.mount_dir)),
        unmounts_it(server, space.mount_dir, "-l"),
    )
    await driver.attach(target_for(), NONE, space, establish=True)
    report = await driver.release(target_for(), space, remove_marker=False)
    assert report.was_lazy
    assert os.listdir(server.folder) == [MARKER_NAME]


@needs_root
async def test_release_with_a_server_that_hangs_unmounts_all_the_same(
    commands: RecordedCommands, workers: WorkerPool, kernel: FakeKernel, space: Workspace, server: FakeServer
) -> None:
    asked: list[str] = []

    class Hanging:
        async def run(self, job: str, args: Any, *, key: str, timeout_s: float) -> dict[str, Any]:
            asked.append(job)
            if job == "clear_place":
                raise AgentFault.of(FaultCode.TIMED_OUT, "the storage did not answer")
            return await workers.run(job, args, key=key, timeout_s=timeout_s)

    driver = Nfs(commands, Hanging(), mounts=Mounts(commands, kernel.file))
    commands.then(mounts_it(server, space.mount_dir), unmounts_it(server, space.mount_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    report = await driver.release(target_for(), space, remove_marker=True)
    assert "timed_out" in report.left[0] and "10.0.0.5:/tank/vms" in report.left[0]
    assert asked.count("clear_place") == 1, "who is silent is not asked again"


@needs_root
@pytest.mark.parametrize(("failures", "left"), [(2, []), (3, [MARKER_NAME])])
async def test_release_over_a_connection_that_was_just_broken_is_tried_again(
    failures: int, left: list[str], commands: RecordedCommands, workers: WorkerPool, kernel: FakeKernel,
    space: Workspace, server: FakeServer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Breaking:
        def __init__(self) -> None:
            self.failures = failures

        async def run(self, job: str, args: Any, *, key: str, timeout_s: float) -> dict[str, Any]:
            if job == "clear_place" and self.failures:
                self.failures -= 1
                raise AgentFault.of(FaultCode.SERVER_UNREACHABLE, "Resource temporarily unavailable (EAGAIN)")
            return await workers.run(job, args, key=key, timeout_s=timeout_s)

    monkeypatch.setattr("agent.probes._CLEAR_PAUSE_S", 0.0)
    driver = Nfs(commands, Breaking(), mounts=Mounts(commands, kernel.file))
    commands.then(mounts_it(server, space.mount_dir), unmounts_it(server, space.mount_dir))
    await driver.attach(target_for(), NONE, space, establish=True)
    report = await driver.release(target_for(), space, remove_marker=True)
    assert os.listdir(server.folder) == left
    assert bool(report.left) == bool(left)


@needs_root
async def test_trial_stands_beside_the_mount_and_leaves_nothing(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    options = "nosuid,nodev,noexec,retry=0,noatime,soft,nosharecache,timeo=50,retrans=1"
    commands.then(
        mounts_it(server, space.mount_dir),
        mounts_it(server, space.trial_dir, options=options),
        unmounts_it(server, space.trial_dir),
    )
    await driver.attach(target_for(), NONE, space, establish=True)
    assert (await driver.trial(target_for(options="noatime"), NONE, space)).latency_ms > 0
    assert not space.trial_dir.exists()
    assert await driver.is_attached(target_for(), space)
    assert os.listdir(server.folder) == [MARKER_NAME]


@needs_root
async def test_trial_of_a_new_backend_needs_no_marker_and_makes_none(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    options = "nosuid,nodev,noexec,retry=0,soft,nosharecache,timeo=50,retrans=1"
    commands.then(mounts_it(server, space.trial_dir, options=options), unmounts_it(server, space.trial_dir))
    await driver.trial(target_for(), NONE, space)
    assert os.listdir(server.folder) == []


@needs_root
async def test_trial_of_another_place_for_a_known_backend_needs_its_marker(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    commands.then(
        mounts_it(server, space.mount_dir),
        mounts_it(server, space.trial_dir, options="nosuid,nodev,noexec,retry=0,soft,nosharecache,timeo=50,retrans=1", source="10.0.0.6:/tank/vms",
                  shown=SHOWN.replace("10.0.0.5", "10.0.0.6")),
        unmounts_it(server, space.trial_dir),
    )  # fmt: skip
    await driver.attach(target_for(), NONE, space, establish=True)
    (server.folder / MARKER_NAME).unlink()
    assert (await fault_of(driver.trial(target_for(server="10.0.0.6"), NONE, space))).code is FaultCode.MARKER_MISSING


@needs_root
async def test_clean_trial_after_a_kill_unmounts_what_was_left(
    driver: Nfs, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    space.trial_dir.mkdir()
    server.mount(space.trial_dir, SHOWN)
    (server.folder / f".stowage-trial-{space.host_id}-{space.dir.name}").touch()
    commands.then(unmounts_it(server, space.trial_dir))
    await driver.clean_trial(target_for(), space)
    assert not space.trial_dir.exists() and os.listdir(server.folder) == []


async def test_discover_lists_the_exports(driver: Nfs, commands: RecordedCommands, space: Workspace) -> None:
    commands.then(replay("successes", "showmount", ("showmount", "--no-headers", "-e", "--", "fd00::5")))
    items = await driver.discover({"server": "[fd00::5]"}, NONE, SOON)
    assert [item.config for item in items] == [
        {"export": "/srv/nfs-other"},
        {"export": "/srv/nfs"},
        {"export": "/srv/with a blank"},
    ]
    assert items[1].title == "/srv/nfs (10.77.0.0/24,10.78.0.0/24)"


@pytest.mark.parametrize(
    "config", [{}, {"server": "-h"}, {"server": "nas\n"}, {"server": "a b"}, {"server": 7}, {"portal": "x"}]
)
async def test_discover_with_a_wrong_field_runs_nothing(
    driver: Nfs, commands: RecordedCommands, space: Workspace, config: dict[str, Any]
) -> None:
    assert (await fault_of(driver.discover(config, NONE, SOON))).code is FaultCode.OPTION_REJECTED
    assert commands.calls == []


async def test_discover_of_a_version_4_server_is_kind_unsupported(
    driver: Nfs, commands: RecordedCommands, space: Workspace
) -> None:
    commands.then(replay("other_tools", "showmount_v4_only", ("showmount", "--no-headers", "-e", "--", "10.0.0.5")))
    assert (await fault_of(driver.discover({"server": "10.0.0.5"}, NONE, SOON))).code is FaultCode.KIND_UNSUPPORTED
