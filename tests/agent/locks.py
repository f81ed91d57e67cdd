"""Open-iscsi's lock as processes leave it."""

import os
import subprocess
import sys
from pathlib import Path

_HOLD = """
import asyncio, os, sys
from pathlib import Path
from agent.node_records import NodeRecords
folder = Path(sys.argv[1])

async def hold():
    async with NodeRecords((folder,), folder)._lock():
        os._exit(0)

asyncio.run(hold())
"""


def leave_lock(lock_dir: Path) -> None:
    """An agent was killed while it held the lock."""
    lock_dir.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", _HOLD, str(lock_dir)], check=True, timeout=30, cwd=Path(__file__).parents[2])
    assert (lock_dir / "lock.write").exists()


def take_lock(lock_dir: Path) -> None:
    """iscsiadm holds it: a hard link to its empty file."""
    lock_dir.mkdir(parents=True, exist_ok=True)
    (lock_dir / "lock").touch()
    os.link(lock_dir / "lock", lock_dir / "lock.write")
