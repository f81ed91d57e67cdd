"""Volumes' files for tests: a backend's folder, extents as a worker takes them, images, and a file system that shares blocks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.job_io import Job, JobFault
from agent.jobs import MARKER_NAME

MIB = 1024 * 1024
#: No other test process's: who has a volume open is told by its name, and in earnest no two have the same.
LOCATOR = f"{os.getpid():032x}"
OTHER = "f" * 24 + f"{os.getpid():08x}"
#: The ids of the backend whose folder it is.
MARKER = {"backend_id": "01900000-0000-7000-8000-000000000001", "fleet_id": "f-1"}
needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="runs qemu-img")
needs_xfs = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.xfs") is None or not Path("/dev/loop-control").exists(),
    reason="mounts an XFS, for which root, loop devices and mkfs.xfs are needed",
)


def backend_folder(place: Path) -> Path:
    """A folder that bears the backend's marker; the volumes are below it."""
    place.mkdir(exist_ok=True)
    (place / MARKER_NAME).write_text(json.dumps(MARKER))
    return place


def extent(
    backend: Path, locator: str = LOCATOR, size_bytes: int = MIB, image_format: str = "raw", **more: Any
) -> dict[str, Any]:
    return {
        "folder": str(backend / "volumes"),
        "name": f"{locator}.{image_format}",
        "format": image_format,
        "size_bytes": size_bytes,
        "dm_uuid": "",
        "mount_root": "",
        "is_zero": False,
        **more,
    }


def fault_of(job: Job, args: dict[str, Any]) -> JobFault:
    with pytest.raises(JobFault) as caught:
        job(args)
    return caught.value


def path_of(of: dict[str, Any]) -> Path:
    return Path(str(of["folder"]), str(of["name"]))


def write_file(of: dict[str, Any], content: bytes = b"") -> Path:
    """The extent's file with that content, in a folder made for it."""
    path = path_of(of)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def qemu(*argv: object) -> str:
    return subprocess.run(["qemu-img", *map(str, argv)], check=True, timeout=60, capture_output=True, text=True).stdout


def qcow2_of(path: Path, content: bytes, folder: Path) -> None:
    """The path is a qcow2 with that content."""
    raw = folder / "content.raw"
    raw.write_bytes(content)
    qemu("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()


def content_of(path: Path, image_format: str, folder: Path) -> bytes:
    """What a VM would read."""
    if image_format == "raw":
        return path.read_bytes()
    raw = folder / "read.raw"
    qemu("convert", "-f", image_format, "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


@contextmanager
def holder(path: Path, mode: str = "r+b") -> Generator["subprocess.Popen[bytes]"]:
    """A process has the file open meanwhile."""
    words = "import sys; file = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", words, str(path), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


@contextmanager
def xfs(where: Path, image: Path) -> Generator[None]:
    """A file system whose files can share blocks is mounted there meanwhile."""
    image.touch()
    os.truncate(image, 512 * MIB)
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True, timeout=30)
