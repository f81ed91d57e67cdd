"""mountinfo is parsed as the kernel writes it, and no tool's exit is believed without it."""

from pathlib import Path

import pytest

from agent.errors import AgentFault
from agent.mounts import ALWAYS, Mount, MountPlan, Mounts, SecretFile, parse_mountinfo
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.fake_kernel import FLAGS, NFS4, FakeKernel
from tests.agent.recorded_commands import RecordedCommands, Step, replay

PLAN = MountPlan(
    helper_type="nfs",
    source="10.0.0.5:/tank/vms",
    options=(*ALWAYS, "hard"),
    shown_fstypes=frozenset(("nfs", "nfs4")),
    shown_version=r"4\.2",
)
TIMED_OUT = AgentFault.of(FaultCode.TIMED_OUT, "umount did not end")


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "mount point"


def mount_argv(where: Path) -> tuple[str, ...]:
    return ("mount", "-t", "nfs", "-o", "nosuid,nodev,noexec,hard", "--", "10.0.0.5:/tank/vms", str(where))


def umount_argv(where: Path, *ways: str) -> tuple[str, ...]:
    return ("umount", "-c", *(("-i", *ways) if ways else ()), "--", str(where))


def test_parse_mountinfo_reads_escapes_optional_fields_and_skips_what_it_cannot_read() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt\\0402\\011x rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n"
        "garbage\n37 35 0:3 / /a rw\n x y - z\n"
        "38 35 0:50 / /b rw - cifs //nas/my\\040share rw,vers=3.1.1\n"
    )
    first, second = parse_mountinfo(text)
    assert first == Mount(
        36,
        "98:0",
        Path("/mnt 2\tx"),
        "ext3",
        "/dev/root",
        frozenset(("rw", "noatime")),
        frozenset(("rw", "errors=continue")),
    )
    assert (second.source, second.fstype) == ("//nas/my share", "cifs")


def test_parse_mountinfo_of_this_kernel_finds_proc() -> None:
    found = Mounts(RecordedCommands()).at(Path("/proc"))
    assert found is not None and found.fstype == "proc"


def test_at_with_two_mounts_on_each_other_shows_the_upper(kernel: FakeKernel, where: Path) -> None:
    kernel.mount(where)
    kernel.mount(where, "tmpfs tmpfs rw")
    found = Mounts(RecordedCommands(), kernel.file).at(where)
    assert found is not None and found.fstype == "tmpfs"


@pytest.mark.parametrize(
    ("words", "flags", "difference"),
    [
        (NFS4, FLAGS, None),
        (NFS4.replace("/vms rw", "/vms/ rw"), FLAGS, None),
        (NFS4.replace("nfs4 ", "tmpfs "), FLAGS, "file system type tmpfs"),
        (NFS4.replace("10.0.0.5:/tank", "10.0.0.6:/tank", 1), FLAGS, "source 10.0.0.6:/tank/vms"),
        (NFS4, "rw,nosuid,nodev,relatime", "no noexec"),
        (NFS4.replace("vers=4.2", "vers=4.1"), FLAGS, "version vers=4.1"),
        (NFS4.replace("vers=4.2", "vers=4x2"), FLAGS, "version vers=4x2"),
    ],
)
def test_mismatch_names_what_the_kernel_shows_otherwise(
    words: str, flags: str, difference: str | None, kernel: FakeKernel, where: Path
) -> None:
    kernel.mount(where, words, flags)
    found = Mounts(RecordedCommands(), kernel.file).at(where)
    assert found is not None
    assert PLAN.mismatch(found) == difference


async def test_mount_with_the_kernels_word_succeeds(kernel: FakeKernel, where: Path) -> None:
    commands = RecordedCommands(Step(mount_argv(where), effect=lambda: kernel.mount(where)))
    await Mounts(commands, kernel.file).mount(PLAN, where)
    commands.assert_done()
    assert where.stat().st_mode & 0o777 == 0


async def test_mount_that_exits_0_and_mounts_nothing_fails_and_leaves_no_folder(
    kernel: FakeKernel, where: Path
) -> None:
    with pytest.raises(AgentFault, match="nothing is mounted"):
        await Mounts(RecordedCommands(Step(mount_argv(where))), kernel.file).mount(PLAN, where)
    assert not where.exists()


async def test_mount_that_mounts_something_else_fails_and_is_undone(kernel: FakeKernel, where: Path) -> None:
    commands = RecordedCommands(
        Step(mount_argv(where), effect=lambda: kernel.mount(where, NFS4.replace("vers=4.2", "vers=3"))),
        Step(umount_argv(where), effect=lambda: kernel.unmount(where)),
    )
    with pytest.raises(AgentFault, match="vers=3"):
        await Mounts(commands, kernel.file).mount(PLAN, where)
    commands.assert_done()
    assert not where.exists()


async def test_mount_that_fails_becomes_its_fault(kernel: FakeKernel, where: Path) -> None:
    with pytest.raises(AgentFault) as caught:
        await Mounts(RecordedCommands(replay("mount_nfs", "v3_unexported", mount_argv(where))), kernel.file).mount(
            PLAN, where
        )
    assert caught.value.fault.code is FaultCode.EXPORT_NOT_FOUND
    assert not where.exists()


async def test_mount_that_times_out_after_the_kernel_mounted_is_undone(kernel: FakeKernel, where: Path) -> None:
    commands = RecordedCommands(
        Step(
            mount_argv(where),
            effect=lambda: kernel.mount(where),
            fault=AgentFault.of(FaultCode.TIMED_OUT, "mount did not end"),
        ),
        Step(umount_argv(where), effect=lambda: kernel.unmount(where)),
    )
    with pytest.raises(AgentFault) as caught:
        await Mounts(commands, kernel.file).mount(PLAN, where)
    assert caught.value.fault.code is FaultCode.TIMED_OUT
    commands.assert_done()


@pytest.mark.parametrize("exit_code", [0, 32])
async def test_mount_with_a_secret_file_shows_it_to_the_tool_only(
    kernel: FakeKernel, where: Path, tmp_path: Path, exit_code: int
) -> None:
    secret = SecretFile(
        path=tmp_path / "secret", credentials=Credentials({"password": "pw-canary"}), content=b"password=pw-canary\n"
    )
    seen: list[tuple[bytes, int]] = []

    def effect() -> None:
        seen.append((secret.path.read_bytes(), secret.path.stat().st_mode & 0o777))
        if exit_code == 0:
            kernel.mount(where)

    mounts = Mounts(
        RecordedCommands(Step(mount_argv(where), exit_code, stderr="mount.nfs: pw-canary\n", effect=effect)),
        kernel.file,
    )
    if exit_code == 0:
        await mounts.mount(PLAN, where, secret)
    else:
        with pytest.raises(AgentFault) as caught:
            await mounts.mount(PLAN, where, secret)
        assert "pw-canary" not in str(caught.value)
    assert seen == [(b"password=pw-canary\n", 0o600)]
    assert not secret.path.exists()
    assert "pw-canary" not in repr(secret)


async def test_unmount_idle_of_nothing_runs_nothing(kernel: FakeKernel, where: Path) -> None:
    await Mounts(RecordedCommands(), kernel.file).unmount_idle(where)


async def test_unmount_idle_of_stacked_mounts_removes_all(kernel: FakeKernel, where: Path) -> None:
    kernel.mount(where)
    kernel.mount(where)
    step = Step(umount_argv(where), effect=lambda: kernel.unmount(where))
    commands = RecordedCommands(step, step)
    await Mounts(commands, kernel.file).unmount_idle(where)
    commands.assert_done()


async def test_unmount_idle_while_in_use_is_in_use_and_forces_nothing(kernel: FakeKernel, where: Path) -> None:
    kernel.mount(where)
    with pytest.raises(AgentFault) as caught:
        await Mounts(RecordedCommands(replay("umount", "busy", umount_argv(where))), kernel.file).unmount_idle(where)
    assert caught.value.fault.code is FaultCode.IN_USE


async def test_unmount_idle_that_says_not_mounted_is_success(kernel: FakeKernel, where: Path) -> None:
    kernel.mount(where)
    step = Step(umount_argv(where), 32, stderr=f"umount: {where}: not mounted.\n", effect=lambda: kernel.unmount(where))
    await Mounts(RecordedCommands(step), kernel.file).unmount_idle(where)


async def test_unmount_anyhow_while_busy_goes_straight_to_lazy(kernel: FakeKernel, where: Path) -> None:
    where.mkdir()
    kernel.mount(where)
    commands = RecordedCommands(
        replay("umount", "busy", umount_argv(where)),
        Step(umount_argv(where, "-l"), effect=lambda: kernel.unmount(where)),
    )
    assert await Mounts(commands, kernel.file).unmount_anyhow(where) is True
    commands.assert_done()
    assert not where.exists()


async def test_unmount_anyhow_of_a_dead_server_goes_from_plain_to_forced_to_lazy(
    kernel: FakeKernel, where: Path
) -> None:
    kernel.mount(where)
    commands = RecordedCommands(
        Step(umount_argv(where), fault=TIMED_OUT),
        Step(umount_argv(where, "-f"), fault=TIMED_OUT),
        Step(umount_argv(where, "-l"), effect=lambda: kernel.unmount(where)),
    )
    assert await Mounts(commands, kernel.file).unmount_anyhow(where) is True
    commands.assert_done()


async def test_unmount_anyhow_never_forces_a_file_system_that_is_mounted_elsewhere_too(
    kernel: FakeKernel, where: Path, tmp_path: Path
) -> None:
    kernel.mount(where, device="0:7")
    kernel.mount(tmp_path / "neighbour", device="0:7")
    commands = RecordedCommands(
        Step(umount_argv(where), fault=TIMED_OUT),
        Step(umount_argv(where, "-l"), effect=lambda: kernel.unmount(where)),
    )
    assert await Mounts(commands, kernel.file).unmount_anyhow(where) is True
    commands.assert_done()


async def test_unmount_anyhow_that_needs_force_only_was_not_lazy(kernel: FakeKernel, where: Path) -> None:
    kernel.mount(where)
    commands = RecordedCommands(
        Step(umount_argv(where), fault=TIMED_OUT), Step(umount_argv(where, "-f"), effect=lambda: kernel.unmount(where))
    )
    assert await Mounts(commands, kernel.file).unmount_anyhow(where) is False
    commands.assert_done()


async def test_unmount_anyhow_that_nothing_helps_fails(kernel: FakeKernel, where: Path) -> None:
    kernel.mount(where)
    commands = RecordedCommands(*(Step(umount_argv(where, *way), fault=TIMED_OUT) for way in ((), ("-f",), ("-l",))))
    with pytest.raises(AgentFault) as caught:
        await Mounts(commands, kernel.file).unmount_anyhow(where)
    assert caught.value.fault.code is FaultCode.TIMED_OUT
