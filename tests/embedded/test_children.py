"""Children die with their parent, however it dies, and are stopped in time."""

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manager.embedded import children
from tests.embedded.conftest import killed_at_the_end

_PARENT = """
import signal, sys
from pathlib import Path
from manager.embedded import children, identity
folder = Path(sys.argv[1])
who = identity.choose(folder, [Path("/bin/true")])
child = children.spawn(["sleep", "600"], log=folder.parent / "log", death_signal=signal.SIGTERM, identity=who)
print(child.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("mode", [0o711, 0o700])
def test_child_whose_parent_is_killed_ends(mode: int, open_dir: Path) -> None:
    """0700 makes root use a user namespace, where the kernel might forget the death signal."""
    open_dir.chmod(mode)
    folder = open_dir / "folder"
    folder.mkdir(mode=0o700)
    with subprocess.Popen([sys.executable, "-c", _PARENT, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with killed_at_the_end(pid):
            child = os.pidfd_open(pid)
            parent.kill()
            ended = select.select([child], [], [], 5)[0]
            os.close(child)
            assert ended


def test_child_deaf_to_the_asked_signals_is_killed(tmp_path: Path) -> None:
    deaf = 'trap "" TERM; echo deaf; while :; do sleep 0.1; done'
    process = children.spawn(["/bin/sh", "-c", deaf], log=tmp_path / "log", death_signal=signal.SIGKILL)
    assert children.wait_until(lambda: "deaf" in children.tail(tmp_path / "log"), timeout_s=5)
    assert children.stop(process, (signal.SIGTERM, 0.05)) == -signal.SIGKILL


def test_child_started_from_another_thread_is_refused(tmp_path: Path) -> None:
    raised: list[RuntimeError] = []

    def start() -> None:
        try:
            children.spawn(["true"], log=tmp_path / "log", death_signal=signal.SIGTERM)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


def test_wait_without_progress_ends_and_with_progress_goes_on() -> None:
    assert not children.wait_until(lambda: False, timeout_s=0.02)
    looks = iter(range(10_000))
    assert children.wait_until(lambda: next(looks) > 50, timeout_s=0.02, progress=lambda: next(looks))
