"""One `stowage up` a data folder, and not before the last child of the one before has ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manager.embedded import children, lock
from manager.embedded.errors import AlreadyRunning, StartError
from manager.embedded.lock import DataLock, holder
from tests.embedded.conftest import killed_at_the_end

_HOLDER = """
import signal, sys
from pathlib import Path
from manager.embedded import children
from manager.embedded.lock import DataLock
folder = Path(sys.argv[1])
lock = DataLock(folder)
child = children.spawn(["sh", "-c", 'trap "" TERM; echo up; while :; do sleep 0.05; done'], log=folder / "log",
    death_signal=signal.SIGTERM, keep_fds=(lock.children_fd,))
children.wait_until(lambda: children.size(folder / "log") > 0, timeout_s=5)
print(child.pid, flush=True)
signal.pause()
"""


def test_lock_on_a_held_folder_names_the_holder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        with killed_at_the_end(pid):
            with pytest.raises(AlreadyRunning, match=rf"process {other.pid}\b") as refused:
                DataLock(tmp_path)
            assert refused.value.pid == other.pid
            assert holder(tmp_path) == other.pid
            other.kill()
            other.wait()
            assert holder(tmp_path) is None


def test_lock_while_a_child_of_a_killed_holder_lives_waits_for_it_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        with killed_at_the_end(pid):
            other.kill()
            other.wait()
            monkeypatch.setattr(lock, "_LEFTOVERS_TIMEOUT_S", 0.05)
            with pytest.raises(StartError, match=rf"have not ended: .*\b{pid}\b"):
                DataLock(tmp_path)
            os.kill(pid, signal.SIGKILL)
            monkeypatch.setattr(lock, "_LEFTOVERS_TIMEOUT_S", 10)
            DataLock(tmp_path).release()


def test_lock_released_is_free_again_at_once(tmp_path: Path) -> None:
    DataLock(tmp_path).release()
    began = time.monotonic()
    DataLock(tmp_path).release()
    assert time.monotonic() - began < 1
    assert holder(tmp_path) is None


def test_holder_of_a_folder_never_used_is_nobody(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert children.tail(tmp_path / "log") == ""


@pytest.mark.parametrize("name", ["lock", "lock.children"])
def test_lock_that_is_a_link_is_refused_and_what_it_names_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / name).symlink_to("victim")
    with pytest.raises(StartError, match=f"cannot open .*/{name}"):
        DataLock(tmp_path)
    assert (tmp_path / "victim").read_text() == "kept"
    (tmp_path / name).unlink()
    DataLock(tmp_path).release()
