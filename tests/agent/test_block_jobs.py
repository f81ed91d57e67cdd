"""The jobs on real block devices, and on files where a file will do."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from agent import block_jobs
from agent.jobs import JOBS
from tests.agent.loops import loop_device, needs_loop

MIB = 1024 * 1024


def test_write_block_writes_only_its_place_and_reads_it_back(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(bytes(4 * block_jobs.BLOCK_BYTES))
    assert (
        block_jobs.write_block({"device": str(device), "offset_bytes": block_jobs.BLOCK_BYTES, "dm_uuid": ""})[
            "latency_ms"
        ]
        > 0
    )
    content = device.read_bytes()
    assert content[block_jobs.BLOCK_BYTES : 2 * block_jobs.BLOCK_BYTES] != bytes(block_jobs.BLOCK_BYTES)
    assert content[: block_jobs.BLOCK_BYTES] == bytes(block_jobs.BLOCK_BYTES)
    assert content[2 * block_jobs.BLOCK_BYTES :] == bytes(2 * block_jobs.BLOCK_BYTES)
    assert block_jobs.read_block({"device": str(device)})["latency_ms"] > 0


def test_write_block_without_device_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        block_jobs.write_block({"device": str(tmp_path / "gone"), "offset_bytes": 0, "dm_uuid": ""})
    assert os.listdir(tmp_path) == []


@needs_loop
def test_write_block_of_a_device_that_is_not_the_mapping_writes_nothing(tmp_path: Path) -> None:
    """What a stale mapping lay upon may be a stranger's by now."""
    with loop_device(tmp_path / "disk") as device:
        with pytest.raises(OSError, match="no mapping") as caught:
            block_jobs.write_block({"device": device, "offset_bytes": 0, "dm_uuid": "LVM-" + "x" * 64})
        assert caught.value.errno == errno.ENXIO
    assert not any((tmp_path / "disk").read_bytes())


@needs_loop
def test_find_busy_names_the_device_that_somebody_has_for_himself(tmp_path: Path) -> None:
    with loop_device(tmp_path / "a") as free, loop_device(tmp_path / "b") as held:
        assert block_jobs.find_busy({"devices": [free, held, str(tmp_path / "gone")]}) == {"busy": ""}
        descriptor = os.open(held, os.O_RDONLY | os.O_EXCL)
        assert block_jobs.find_busy({"devices": [free, held]}) == {"busy": held}
        os.close(descriptor)
        assert block_jobs.find_busy({"devices": [free, held]}) == {"busy": ""}


@needs_loop
def test_find_busy_names_the_device_of_a_mounted_file_system(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with loop_device(tmp_path / "disk") as device:
        subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True, timeout=30)
        subprocess.run(["mount", device, str(place)], check=True, timeout=10)
        try:
            assert block_jobs.find_busy({"devices": [device]}) == {"busy": device}
        finally:
            subprocess.run(["umount", str(place)], check=True, timeout=10)


def test_write_sysfs_of_a_device_that_is_gone_is_an_answer(tmp_path: Path) -> None:
    attribute = tmp_path / "delete"
    assert block_jobs.write_sysfs({"path": str(attribute), "text": "1"}) == {"is_there": False}
    attribute.touch()
    assert block_jobs.write_sysfs({"path": str(attribute), "text": "1"}) == {"is_there": True}
    assert attribute.read_text() == "1"


def is_zero(path: Path | str, from_bytes: int = 0) -> bool:
    answer = block_jobs.look_for_data({"device": str(path), "from_bytes": from_bytes})
    return bool(answer["is_zero"])


def marked(path: Path, size: int, *places: int) -> Path:
    """A sparse file of this size with one byte that is not zero at each of the places."""
    with path.open("wb") as file:
        file.truncate(size)
        for place in places:
            file.seek(place)
            file.write(b"\x01")
    return path


@pytest.mark.parametrize(
    ("size", "places", "expected"),
    [
        (64 * MIB, (), True),
        (64 * MIB, (0,), False),
        (64 * MIB, (4 * MIB - 1,), False),
        (64 * MIB, (60 * MIB,), False),
        (64 * MIB, (64 * MIB - 1,), False),
        # Between the two ends nothing is looked for.
        (64 * MIB, (32 * MIB,), True),
        # Smaller than both ends together, than one, than a chunk.
        (6 * MIB, (5 * MIB,), False),
        (6 * MIB, (3 * MIB,), False),
        (6 * MIB, (), True),
        (3 * MIB, (3 * MIB - 1,), False),
        (3 * MIB, (), True),
        (8192, (8191,), False),
        (8192, (), True),
    ],
)
def test_look_for_data_finds_one_byte_at_either_end(
    size: int, places: tuple[int, ...], expected: bool, tmp_path: Path
) -> None:
    assert is_zero(marked(tmp_path / "device", size, *places)) is expected


@pytest.mark.parametrize(("place", "expected"), [(MIB - 1, True), (MIB, False), (5 * MIB - 1, False)])
def test_look_for_data_leaves_out_what_is_known(place: int, expected: bool, tmp_path: Path) -> None:
    assert is_zero(marked(tmp_path / "device", 64 * MIB, place), from_bytes=MIB) is expected


def test_look_for_data_of_a_size_that_blocks_do_not_divide_begins_at_a_block(tmp_path: Path) -> None:
    assert not is_zero(marked(tmp_path / "device", 64 * MIB, MIB + 700), from_bytes=MIB + 700)


@pytest.mark.parametrize(("size", "from_bytes"), [(0, 0), (MIB, MIB), (MIB, 2 * MIB)])
def test_look_for_data_where_nothing_can_be_looked_at_is_no_blank(size: int, from_bytes: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bytes long"):
        is_zero(marked(tmp_path / "device", size), from_bytes=from_bytes)


@needs_loop
@pytest.mark.parametrize("size", [6 * MIB, 3 * MIB + 512, 64 * MIB])
def test_look_for_data_reads_a_block_device_to_its_last_byte(size: int, tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk", size) as device:
        assert is_zero(device)
        with open(device, "r+b") as disk:
            disk.seek(size - 1)
            disk.write(b"\x01")
        assert not is_zero(device)


def test_jobs_know_those_on_devices() -> None:
    assert {job.__name__ for job in block_jobs.BLOCK_JOBS} <= JOBS.keys()
