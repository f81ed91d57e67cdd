"""Real block devices for tests, where they run as root and the kernel has loop devices."""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="makes a loop device, for which root is needed"
)


@contextmanager
def loop_device(file: Path, size_bytes: int = 8 * 1024 * 1024) -> Generator[str]:
    """The device whose content the file is."""
    file.write_bytes(bytes(size_bytes))
    made = subprocess.run(
        ["losetup", "--find", "--show", str(file)], check=True, timeout=10, capture_output=True, text=True
    )
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=10)
