"""Real mounts for tests, where they run as root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs, for which root is needed")


@contextmanager
def tmpfs(where: Path, options: str = "size=1m") -> Iterator[None]:
    """A tmpfs is mounted there meanwhile."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True, timeout=10)
