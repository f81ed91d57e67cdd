"""The jobs on LVs' devices: on a file with the ioctls caught, and on loop devices with what sysfs says of them made up."""

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import device_jobs, job_io
from agent.device_jobs import DEVICE_JOBS
from agent.job_io import read_progress
from tests.agent.loops import loop_device, needs_loop

MIB = 1024 * 1024
JOBS = {job.__name__: job for job in DEVICE_JOBS}
DM_UUID = "LVM-" + "x" * 64


class Ioctls:
    """What was asked of the kernel: request, begin, length. fails_with: the errno of the call of that number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[int, int, int]] = []
        self.fails: dict[int, int] = {}

    def __call__(self, descriptor: int, request: int, argument: bytes) -> int:
        begin, length = struct.unpack("=QQ", argument)
        number = self.fails.get(len(self.calls))
        if number is not None:
            raise OSError(number, os.strerror(number))
        self.calls.append((request, begin, length))
        assert os.fstat(descriptor).st_ino == self.path.stat().st_ino
        os.pwrite(descriptor, bytes(length), begin)
        return 0


def refuse_nothing(*_: object) -> None: ...


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ioctls:
    """A file of 3 MiB without a zero in it, which passes for the mapping."""
    path = tmp_path / "dm-3"
    path.write_bytes(b"\xff" * (3 * MIB))
    ioctls = Ioctls(path)
    monkeypatch.setattr(fcntl, "ioctl", ioctls)
    monkeypatch.setattr(device_jobs, "_ZERO_BYTES", MIB)
    monkeypatch.setattr(device_jobs, "_DISCARD_BYTES", 2 * MIB)
    monkeypatch.setattr(job_io, "refuse_other_mapping", refuse_nothing)
    return ioctls


def args_for(device: Ioctls, begin: int, end: int, progress: str = "") -> dict[str, Any]:
    extent = {"folder": str(device.path.parent), "name": device.path.name, "dm_uuid": DM_UUID}
    return {"extent": extent, "from_bytes": begin, "to_bytes": end, "progress": progress}


def test_zero_device_zeroes_the_range_in_pieces_and_nothing_else(device: Ioctls, tmp_path: Path) -> None:
    progress = str(tmp_path / "progress")
    assert JOBS["zero_device"](args_for(device, 4096, 2 * MIB + 4096, progress)) == {}
    assert device.calls == [(0x127F, 4096, MIB), (0x127F, 4096 + MIB, MIB)]
    content = device.path.read_bytes()
    assert content[:4096].count(0) == 0 and content[2 * MIB + 4096 :].count(0) == 0
    assert not any(content[4096 : 2 * MIB + 4096])
    assert read_progress(progress) == (2 * MIB, 2 * MIB)


@pytest.mark.parametrize(
    ("begin", "end", "calls"),
    [
        (4096 + 512, 3 * 4096 + 512, [(0x127F, 8192, 4096)]),
        (4096 + 512, 2 * 4096 + 512, []),
        (512, 1024, []),
        (100, 4200, []),
        (4096, 4096, []),
    ],
)
def test_zero_device_asks_for_whole_blocks_alone_and_writes_what_is_around_them(
    begin: int, end: int, calls: list[tuple[int, int, int]], device: Ioctls
) -> None:
    """A LUN of 4 KiB blocks takes no other ioctl."""
    JOBS["zero_device"](args_for(device, begin, end))
    assert device.calls == calls
    content = device.path.read_bytes()
    assert content[:begin].count(0) == 0 and content[end:].count(0) == 0 and not any(content[begin:end])


def test_zero_device_that_fails_in_the_middle_says_of_which_device(device: Ioctls) -> None:
    device.fails = {1: errno.EIO}
    with pytest.raises(OSError, match="Input/output") as caught:
        JOBS["zero_device"](args_for(device, 0, 3 * MIB))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(device.path))


def test_discard_device_discards_the_range_in_pieces(device: Ioctls, tmp_path: Path) -> None:
    progress = str(tmp_path / "progress")
    assert JOBS["discard_device"](args_for(device, 0, 3 * MIB, progress)) == {}
    assert device.calls == [(0x1277, 0, 2 * MIB), (0x1277, 2 * MIB, MIB)]
    assert read_progress(progress) == (3 * MIB, 3 * MIB)


def test_discard_device_of_storage_that_takes_none_is_unsupported(device: Ioctls) -> None:
    device.fails = {0: errno.EOPNOTSUPP}
    answer = JOBS["discard_device"](args_for(device, 0, 3 * MIB))
    assert answer["fault"] == "unsupported" and "UNMAP" in answer["remedy"] and str(device.path) in answer["detail"]


def test_discard_device_that_fails_otherwise_raises(device: Ioctls) -> None:
    device.fails = {0: errno.EIO}
    with pytest.raises(OSError, match="Input/output"):
        JOBS["discard_device"](args_for(device, 0, 3 * MIB))


@pytest.mark.parametrize("job", ["zero_device", "discard_device"])
def test_job_on_a_device_that_is_gone_makes_no_file(job: str, device: Ioctls) -> None:
    args = args_for(device, 0, MIB)
    device.path.unlink()
    assert JOBS[job](args)["fault"] == "volume_missing"
    assert not device.path.exists()


@needs_loop
@pytest.mark.parametrize("job", ["zero_device", "discard_device"])
def test_job_on_a_device_that_is_another_touches_nothing(job: str, tmp_path: Path) -> None:
    """Its number has become another LV's since it was looked up."""
    with loop_device(tmp_path / "disk") as name:
        Path(name).write_bytes(b"\xff" * MIB)
        extent = {"folder": str(Path(name).parent), "name": Path(name).name, "dm_uuid": DM_UUID}
        with pytest.raises(OSError, match="no mapping") as caught:
            JOBS[job]({"extent": extent, "from_bytes": 0, "to_bytes": MIB, "progress": ""})
        assert caught.value.errno == errno.ENXIO
        assert Path(name).read_bytes()[:MIB].count(0) == 0


@needs_loop
def test_zero_device_zeroes_a_real_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_io, "refuse_other_mapping", refuse_nothing)
    with loop_device(tmp_path / "disk") as name:
        size = int(subprocess.check_output(["blockdev", "--getsize64", name], timeout=10))
        Path(name).write_bytes(b"\xff" * size)
        extent = {"folder": str(Path(name).parent), "name": Path(name).name, "dm_uuid": DM_UUID}
        assert JOBS["zero_device"]({"extent": extent, "from_bytes": 512, "to_bytes": size, "progress": ""}) == {}
        content = Path(name).read_bytes()
        assert content[:512].count(0) == 0 and not any(content[512:])


class FakeSysfs:
    """What the kernel says of a block device."""

    def __init__(self, folder: Path, device: str) -> None:
        number = os.stat(device).st_rdev
        self.folder = folder / f"{os.major(number)}:{os.minor(number)}"
        (self.folder / "dm").mkdir(parents=True)
        self.say()

    def say(self, dm_uuid: str = DM_UUID, suspended: str = "0") -> None:
        (self.folder / "dm/uuid").write_text(f"{dm_uuid}\n")
        (self.folder / "dm/suspended").write_text(f"{suspended}\n")
        (self.folder / "size").write_text("8192\n")


def node_args(path: Path, timeout_s: float = 0.0) -> dict[str, Any]:
    return {"path": str(path), "dm_uuid": DM_UUID, "timeout_s": timeout_s}


@needs_loop
def test_wait_for_node_tells_what_the_kernel_has_behind_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_jobs, "_SYS_BLOCK", str(tmp_path / "sys"))
    link = tmp_path / "vg-sv_1"
    with loop_device(tmp_path / "disk") as name:
        sysfs = FakeSysfs(tmp_path / "sys", name)
        link.symlink_to(name)
        there = {"is_there": True, "size_bytes": 8192 * 512}
        assert JOBS["wait_for_node"](node_args(link)) == {**there, "is_suspended": False}
        sysfs.say(suspended="1")
        assert JOBS["wait_for_node"](node_args(link)) == {**there, "is_suspended": True}
        sysfs.say(dm_uuid="LVM-another")
        assert JOBS["wait_for_node"](node_args(link)) == {"is_there": False}


@needs_loop
def test_wait_for_node_waits_until_udev_has_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_jobs, "_SYS_BLOCK", str(tmp_path / "sys"))
    link = tmp_path / "vg-sv_1"
    with loop_device(tmp_path / "disk") as name:
        FakeSysfs(tmp_path / "sys", name)

        def make(_: float) -> None:
            link.symlink_to(name)

        with monkeypatch.context() as patch:
            patch.setattr("agent.device_jobs.time.sleep", make)
            assert JOBS["wait_for_node"](node_args(link, timeout_s=60.0))["is_there"]


def nothing(_: Path) -> None: ...


def a_file(path: Path) -> None:
    path.write_text("no device")


@pytest.mark.parametrize("make", [nothing, a_file, Path.mkdir])
def test_wait_for_node_that_never_comes_is_an_answer(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "node")
    assert JOBS["wait_for_node"](node_args(tmp_path / "node")) == {"is_there": False}
