"""Real mounts for tests, where they run as root."""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs, for which root is needed")


@contextmanager
def tmpfs(where: Path, options: str = "size=1m") -> Generator[None]:
    """A tmpfs is mounted there meanwhile."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True, timeout=10)


def fill(path: Path) -> None:
    """The file has taken all the space there was."""
    with open(path, "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return
