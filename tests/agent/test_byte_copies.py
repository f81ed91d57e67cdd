"""Copies, blanks and comparisons of raw bytes, and which job is chosen for which formats."""

import asyncio
import errno
import fcntl
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import byte_copies, copy_jobs, device_jobs
from agent.errors import AgentFault
from agent.job_io import identity_of, opened, read_progress
from agent.jobs import JOBS
from agent.volumes import Extent
from agent.workers import WorkerPool
from schemas.faults import FaultCode
from schemas.volume_rpc import VolumeFormat
from tests.agent.loops import loop_device, needs_loop
from tests.agent.mounting import needs_root, tmpfs
from tests.agent.volume_files import (
    LOCATOR,
    MIB,
    OTHER,
    content_of,
    extent,
    fault_of,
    holder,
    needs_qemu,
    needs_xfs,
    path_of,
    qcow2_of,
    write_file,
    xfs,
)
from tests.agent.waiting import until

#: Holes, zeros that take space, odd lengths of data, and an end amid a grain.
_UNEVEN = (
    b"a" * 5000 + bytes(3 * MIB) + b"b" * 100_000 + bytes(64 * 1024) + b"c" * (5 * MIB) + bytes(200_000) + b"d" * 700
)
CONTENT = _UNEVEN[: len(_UNEVEN) // 512 * 512]


def copy(source: dict[str, Any], target: dict[str, Any], progress: Path | None = None) -> dict[str, Any]:
    return copy_jobs.copy_bytes({"source": source, "target": target, "progress": str(progress or "")})


def compare(source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    return copy_jobs.compare_bytes({"source": source, "target": target, "progress": ""})


def source_of(place: Path, content: bytes = CONTENT) -> dict[str, Any]:
    of = extent(place, OTHER, len(content))
    write_file(of, content)
    return of


def target_of(place: Path, size_bytes: int = len(CONTENT), content: bytes = b"") -> dict[str, Any]:
    of = extent(place, size_bytes=size_bytes)
    write_file(of, content)
    return of


@pytest.mark.parametrize("more", [0, 512, 3 * MIB])
@pytest.mark.parametrize("left", [b"", b"y" * 20 * MIB, b"y" * MIB])
def test_copy_bytes_is_the_source_and_zeros_and_takes_no_space_for_them(more: int, left: bytes, tmp_path: Path) -> None:
    """left: what a copy that was killed, or another content, had in the target."""
    source, target = source_of(tmp_path), target_of(tmp_path, len(CONTENT) + more, left)
    assert copy(source, target, tmp_path / "progress") == {"done_bytes": len(CONTENT)}
    assert path_of(target).read_bytes() == CONTENT + bytes(more)
    assert path_of(target).stat().st_blocks * 512 < 6 * MIB
    assert read_progress(tmp_path / "progress") == (len(CONTENT), len(CONTENT))
    assert compare(source, target) == {"done_bytes": len(CONTENT) + more}


def test_copy_bytes_of_a_sparse_file_reads_no_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = extent(tmp_path, OTHER, 1 << 40)
    with open(write_file(source), "r+b") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x" * 4096)
    target = target_of(tmp_path, 1 << 40)
    copy(source, target)
    with open(path_of(target), "rb") as file:
        file.seek(1 << 39)
        assert file.read(5000) == b"x" * 4096 + bytes(904)
    assert path_of(target).stat().st_blocks * 512 <= MIB
    assert compare(source, target) == {"done_bytes": 1 << 40}


def test_copy_bytes_in_several_windows_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_jobs, "_WINDOW_BYTES", MIB)
    monkeypatch.setattr(copy_jobs, "_CHUNK_BYTES", 256 * 1024)
    source, target = source_of(tmp_path), target_of(tmp_path)
    copy(source, target)
    assert path_of(target).read_bytes() == CONTENT


def test_copy_bytes_that_can_share_blocks_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(target: int, request: int, source: int) -> None:
        assert request == 0x40049409
        assert os.fstat(target).st_size == 0
        os.pwrite(target, os.pread(source, len(CONTENT), 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(copy_jobs, "_Copy", None)
    source, target = source_of(tmp_path), target_of(tmp_path, len(CONTENT) + MIB, b"y" * 20 * MIB)
    copy(source, target)
    assert path_of(target).read_bytes() == CONTENT + bytes(MIB)


@needs_xfs
def test_copy_bytes_on_storage_that_shares_blocks_takes_none(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with xfs(place, tmp_path / "image"):
        source = source_of(place, b"x" * 32 * MIB)
        target = target_of(place, 40 * MIB)
        os.sync()
        # To share its blocks changes nothing of the source.
        source["identity"] = seen(source)
        before = os.statvfs(place).f_bfree
        copy(source, target)
        assert (before - os.statvfs(place).f_bfree) * os.statvfs(place).f_bsize < 8 * MIB
        assert path_of(target).read_bytes() == b"x" * 32 * MIB + bytes(8 * MIB)


def yes(_: int) -> bool:
    return True


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, 0])
def test_copy_bytes_by_a_server_that_gives_up_midway_is_whole(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """number 0: it copies nothing more and says no word."""
    copies, counts = os.copy_file_range, itertools.count()

    def give_up(source: int, target: int, count: int, at: int, to: int) -> int:
        if next(counts) < 2:
            return copies(source, target, min(count, 4096), at, to)
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(copy_jobs, "_is_on_server", yes)
    monkeypatch.setattr("os.copy_file_range", give_up)
    source, target = source_of(tmp_path), target_of(tmp_path)
    copy(source, target)
    assert next(counts) == 3
    assert path_of(target).read_bytes() == CONTENT


def test_copy_bytes_by_a_server_asks_it_for_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_jobs, "_is_on_server", yes)
    monkeypatch.setattr("os.preadv", None)
    source = extent(tmp_path, OTHER, 64 * MIB)
    with open(write_file(source), "r+b") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"x" * 20 * MIB)
    target = target_of(tmp_path, 64 * MIB)
    copy(source, target)
    assert path_of(target).read_bytes() == path_of(source).read_bytes()
    assert path_of(target).stat().st_blocks * 512 < 21 * MIB


def test_copy_bytes_of_a_larger_source_is_wrong_size_and_leaves_the_target(tmp_path: Path) -> None:
    source, target = source_of(tmp_path), target_of(tmp_path, MIB, b"as it was")
    fault = fault_of(copy_jobs.copy_bytes, {"source": source, "target": target, "progress": ""})
    assert fault.code == "wrong_size"
    assert path_of(target).read_bytes() == b"as it was"


def test_copy_bytes_into_a_file_that_another_process_writes_is_in_use(tmp_path: Path) -> None:
    source, target = source_of(tmp_path), target_of(tmp_path, content=b"as it was")
    with holder(path_of(target), "rb"), holder(path_of(target)):
        fault = fault_of(copy_jobs.copy_bytes, {"source": source, "target": target, "progress": ""})
    assert fault.code == "in_use"
    assert path_of(target).read_bytes() == b"as it was"


@pytest.mark.parametrize("is_shorter", [False, True])
def test_copy_bytes_of_another_source_than_was_seen_is_refused_and_leaves_the_target(
    is_shorter: bool, tmp_path: Path
) -> None:
    source, target = source_of(tmp_path), target_of(tmp_path, content=b"as it was")
    source["identity"] = seen(source)
    (tmp_path / "next").write_bytes(CONTENT[::-1][: 512 if is_shorter else None])
    os.rename(tmp_path / "next", path_of(source))
    fault = fault_of(copy_jobs.copy_bytes, {"source": source, "target": target, "progress": ""})
    assert (fault.code, str(path_of(source)) in str(fault)) == ("source_unreadable", True)
    assert path_of(target).read_bytes() == b"as it was"


def test_copy_bytes_of_a_source_that_is_written_to_meanwhile_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = source_of(tmp_path), target_of(tmp_path)
    os.utime(path_of(source), ns=(0, 0))
    source["identity"] = seen(source)
    reads = os.preadv

    def write(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        with open(path_of(source), "r+b") as file:
            file.write(b"!")
        return reads(descriptor, buffers, offset)

    assert copy(source, target) == {"done_bytes": len(CONTENT)}
    monkeypatch.setattr("os.preadv", write)
    fault = fault_of(copy_jobs.copy_bytes, {"source": source, "target": target, "progress": ""})
    assert (fault.code, fault.answer()["is_retryable"]) == ("source_unreadable", False)


def seen(of: dict[str, Any]) -> list[int]:
    with opened(of, os.O_RDONLY) as descriptor:
        return identity_of(descriptor)


def test_copy_bytes_of_a_source_that_is_cut_off_meanwhile_fails_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = source_of(tmp_path), target_of(tmp_path)
    reads = os.preadv

    def cut(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(path_of(source), 100)
        return reads(descriptor, buffers, offset)

    monkeypatch.setattr("os.preadv", cut)
    with pytest.raises(OSError, match="ended while") as caught:
        copy(source, target)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path_of(source)))


@needs_root
def test_copy_bytes_onto_a_full_file_system_is_no_space_and_names_the_target(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with tmpfs(place, "size=2m"):
        source, target = source_of(tmp_path), target_of(place)
        fault = fault_of(copy_jobs.copy_bytes, {"source": source, "target": target, "progress": ""})
        assert (fault.code, str(path_of(target)) in str(fault)) == ("no_space", True)
        assert path_of(target).stat().st_blocks == 0


@needs_root
def test_copy_bytes_leaves_what_is_kept_for_the_volumes_that_are_there(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with tmpfs(place, "size=100m"):
        (place / "filler").write_bytes(b"x" * 90 * MIB)
        for size, fits in ((7 * MIB, True), (9 * MIB, False)):
            source = source_of(tmp_path, b"x" * size)
            target = target_of(place, size)
            args = {"source": source, "target": target, "progress": ""}
            if fits:
                copy_jobs.copy_bytes(args)
            else:
                assert "are kept for what is there" in str(fault_of(copy_jobs.copy_bytes, args))
            path_of(target).unlink()
        # A sparse one takes nothing, however long it is.
        os.truncate(path_of(source_of(tmp_path, b"")), 500 * MIB)
        sparse = extent(tmp_path, OTHER, 500 * MIB)
        copy_jobs.copy_bytes({"source": sparse, "target": target_of(place, 500 * MIB), "progress": ""})


def device_extent(device: str, size_bytes: int, **more: Any) -> dict[str, Any]:
    folder, _, name = device.rpartition("/")
    return {**extent(Path(folder), size_bytes=size_bytes), "folder": folder, "name": name, "dm_uuid": "LVM-x", **more}


@pytest.fixture
def no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop device stands for an LV, which has a UUID."""

    def accept(*_: object) -> None:
        pass

    monkeypatch.setattr("agent.job_io.refuse_other_mapping", accept)


@needs_loop
@pytest.mark.parametrize("is_zero", [False, True])
@pytest.mark.usefixtures("no_mapping")
def test_copy_bytes_onto_a_device_zeros_what_was_there_to_its_end(is_zero: bool, tmp_path: Path) -> None:
    """is_zero: a thin LV, in which nothing was written yet; it is not written to where the source has nothing."""
    source = source_of(tmp_path)
    with loop_device(tmp_path / "disk", 16 * MIB) as device:
        if not is_zero:
            Path(device).write_bytes(b"z" * 16 * MIB)
        target = device_extent(device, len(CONTENT) + 512, is_zero=is_zero)
        copy(source, target, tmp_path / "progress")
        assert Path(device).read_bytes() == CONTENT + bytes(16 * MIB - len(CONTENT))
        end = len(CONTENT) if is_zero else 16 * MIB
        assert read_progress(tmp_path / "progress") == (end, end)
        assert compare(source, target) == {"done_bytes": 16 * MIB}
        with open(device, "r+b") as disk:
            disk.seek(16 * MIB - 1)
            disk.write(b"!")
        with pytest.raises(OSError, match="differs"):
            compare(source, target)


@needs_loop
@pytest.mark.usefixtures("no_mapping")
def test_copy_bytes_of_a_device_is_as_long_as_its_volume(tmp_path: Path) -> None:
    """An LV is whole extents, so it may be longer; what lies behind the volume is nobody's."""
    with loop_device(tmp_path / "disk", 16 * MIB) as device:
        Path(device).write_bytes(CONTENT + b"z" * (16 * MIB - len(CONTENT)))
        source, target = device_extent(device, len(CONTENT)), target_of(tmp_path, len(CONTENT) + 512)
        copy(source, target)
        assert path_of(target).read_bytes() == CONTENT + bytes(512)
        assert path_of(target).stat().st_blocks * 512 < 6 * MIB
        assert compare(source, target) == {"done_bytes": len(CONTENT) + 512}


@needs_loop
@needs_qemu
@pytest.mark.parametrize("is_zero", [False, True])
@pytest.mark.usefixtures("no_mapping")
def test_convert_image_onto_a_device_and_back(is_zero: bool, tmp_path: Path) -> None:
    source = extent(tmp_path, OTHER, len(CONTENT), "qcow2")
    back = extent(tmp_path, size_bytes=len(CONTENT), image_format="qcow2")
    write_file(back)
    qcow2_of(path_of(source), CONTENT, tmp_path)
    with loop_device(tmp_path / "disk", 16 * MIB) as device:
        if not is_zero:
            Path(device).write_bytes(b"z" * 16 * MIB)
        target = device_extent(device, len(CONTENT), is_zero=is_zero)
        JOBS["convert_image"]({"source": source, "target": target, "progress": ""})
        assert Path(device).read_bytes() == CONTENT + bytes(16 * MIB - len(CONTENT))
        answer = JOBS["compare_images"]({"source": source, "target": target, "progress": ""})
        assert answer == {"done_bytes": len(CONTENT)}
        # Behind the volume, where nobody looks.
        with open(device, "r+b") as disk:
            disk.seek(15 * MIB)
            disk.write(b"z" * 100)
        JOBS["convert_image"]({"source": target, "target": back, "progress": ""})
        assert content_of(path_of(back), "qcow2", tmp_path) == CONTENT


@needs_loop
@pytest.mark.usefixtures("no_mapping")
def test_zero_bytes_of_a_device_is_zeros_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_jobs, "_ZERO_BYTES", 3 * MIB)
    with loop_device(tmp_path / "disk", 8 * MIB) as device:
        Path(device).write_bytes(b"z" * 8 * MIB)
        args = {"target": device_extent(device, MIB), "progress": str(tmp_path / "progress")}
        assert copy_jobs.zero_bytes(args) == {}
        assert Path(device).read_bytes() == bytes(8 * MIB)
        assert read_progress(tmp_path / "progress") == (8 * MIB, 8 * MIB)


def test_zero_bytes_of_a_file_is_at_its_size_and_takes_no_space(tmp_path: Path) -> None:
    target = target_of(tmp_path, 8 * MIB, b"z" * 20 * MIB)
    assert copy_jobs.zero_bytes({"target": target, "progress": ""}) == {}
    assert path_of(target).read_bytes() == bytes(8 * MIB)
    assert path_of(target).stat().st_blocks == 0


@pytest.mark.parametrize("at", [0, 5000, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + MIB - 1])
def test_compare_bytes_that_differ_is_an_io_error(at: int, tmp_path: Path) -> None:
    """Also where the source has a hole, and behind its end, where zeros must be."""
    source, target = source_of(tmp_path), target_of(tmp_path, len(CONTENT) + MIB)
    copy(source, target)
    with open(path_of(target), "r+b") as file:
        file.seek(at)
        file.write(b"!")
    with pytest.raises(OSError, match="differs") as caught:
        compare(source, target)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path_of(target)))


def test_compare_bytes_of_which_the_copy_lacks_something_is_an_io_error(tmp_path: Path) -> None:
    source, target = source_of(tmp_path), target_of(tmp_path)
    write_file(target, CONTENT[:-512])
    with pytest.raises(OSError, match="shorter"):
        compare(source, target)
    write_file(target, bytes(len(CONTENT)))
    with pytest.raises(OSError, match="differs"):
        compare(source, target)


def test_jobs_that_copy_are_among_the_workers_jobs() -> None:
    assert all(JOBS[job.__name__] is job for job in copy_jobs.COPY_JOBS)


class Recorder:
    """Workers that only say what they were asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], str]] = []

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        assert timeout_s > 24 * 3600
        self.calls.append((job, dict(args), key))
        return {}


def as_extent(place: Path, locator: str, image_format: str = "raw", *, is_zero: bool = False) -> Extent:
    return Extent(
        folder=place / "volumes",
        name=f"{locator}.{image_format}",
        format=VolumeFormat(image_format),
        size_bytes=len(CONTENT),
        is_zero=is_zero,
    )


@pytest.mark.parametrize(
    ("source", "target", "copied_by", "compared_by"),
    [
        ("raw", "raw", "copy_bytes", "compare_bytes"),
        ("raw", "qcow2", "convert_image", "compare_images"),
        ("qcow2", "raw", "convert_image", "compare_images"),
        ("qcow2", "qcow2", "convert_image", "compare_images"),
    ],
)
async def test_copy_and_compare_choose_the_job_that_fits_the_formats(
    source: str, target: str, copied_by: str, compared_by: str, tmp_path: Path
) -> None:
    recorder = Recorder()
    extents = (as_extent(tmp_path, OTHER, source), as_extent(tmp_path, LOCATOR, target))
    await byte_copies.copy(recorder, *extents, key="k", progress=tmp_path / "p")
    await byte_copies.compare(recorder, *extents, key="k", progress=tmp_path / "p")
    args = {
        "source": byte_copies.extent_args(extents[0]),
        "target": byte_copies.extent_args(extents[1]),
        "progress": str(tmp_path / "p"),
    }
    assert recorder.calls == [(copied_by, args, "k"), (compared_by, args, "k")]
    assert {copied_by, compared_by} <= set(JOBS)


async def test_blank_writes_nothing_where_nothing_was_written(tmp_path: Path) -> None:
    recorder = Recorder()
    for image_format, is_zero in (("raw", True), ("raw", False), ("qcow2", False)):
        target = as_extent(tmp_path, LOCATOR, image_format, is_zero=is_zero)
        await byte_copies.blank(recorder, target, key="k", progress=tmp_path / "p")
    assert [job for job, _, _ in recorder.calls] == ["zero_bytes", "blank_image"]
    assert {"zero_bytes", "blank_image"} <= set(JOBS)


@pytest.fixture
async def workers() -> AsyncIterator[WorkerPool]:
    async with WorkerPool() as pool:
        yield pool


@needs_qemu
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_copy_compare_and_blank_in_real_workers(image_format: str, workers: WorkerPool, tmp_path: Path) -> None:
    source_of(tmp_path)
    source, target = as_extent(tmp_path, OTHER), as_extent(tmp_path, LOCATOR, image_format)
    path = target.folder / target.name
    path.touch()
    progress = tmp_path / "progress"
    await byte_copies.copy(workers, source, target, key="k", progress=progress)
    assert content_of(path, image_format, tmp_path) == CONTENT
    await byte_copies.compare(workers, source, target, key="k", progress=progress)
    await byte_copies.blank(workers, target, key="k", progress=progress)
    assert content_of(path, image_format, tmp_path) == bytes(len(CONTENT))
    with pytest.raises(AgentFault) as caught:
        await byte_copies.compare(workers, source, target, key="k", progress=progress)
    assert caught.value.fault.code is FaultCode.IO_ERROR


async def test_copy_of_a_source_that_is_larger_or_gone_is_a_fault(workers: WorkerPool, tmp_path: Path) -> None:
    source_of(tmp_path)
    source, target = as_extent(tmp_path, OTHER), replace(as_extent(tmp_path, LOCATOR), size_bytes=MIB)
    (target.folder / target.name).touch()
    for name, code in ((source.name, FaultCode.WRONG_SIZE), (f"{'1' * 32}.raw", FaultCode.VOLUME_MISSING)):
        wanted = replace(source, name=name)
        with pytest.raises(AgentFault) as caught:
            await byte_copies.copy(workers, wanted, target, key="k", progress=tmp_path / "p")
        assert caught.value.fault.code is code


async def test_copy_that_is_cancelled_midway_succeeds_when_it_is_made_again(
    workers: WorkerPool, tmp_path: Path
) -> None:
    content = os.urandom(256 * MIB)
    source = replace(as_extent(tmp_path, OTHER), size_bytes=len(content))
    target = replace(as_extent(tmp_path, LOCATOR), size_bytes=len(content))
    source_of(tmp_path, content)
    path, progress = target.folder / target.name, tmp_path / "progress"
    path.touch()
    task = asyncio.create_task(byte_copies.copy(workers, source, target, key="k", progress=progress))
    await until(lambda: read_progress(progress)[0] > 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert workers.hung_count == 0
    await byte_copies.copy(workers, source, target, key="k", progress=progress)
    assert path.read_bytes() == content
