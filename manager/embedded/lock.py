"""One `stowage up` a data folder, and none begins before the last child of the one before has gone.

Two files are locked with flock(2). `lock` is held by `stowage up` alone and says its pid. `lock.children`
is inherited by every child, so it stays held until the last of them has ended, also after a `kill -9`
of the parent: a nats-server, unlike PostgreSQL, would start happily on the files of another (BUS.md 1).
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from manager.embedded import children
from manager.embedded.errors import AlreadyRunning, StartError
from manager.embedded.stopping import never

_LEFTOVERS_TIMEOUT_S = 30  # a NATS with 3,000 consumers takes that long to stop (BUS.md 4)
_PID_TIMEOUT_S = 1


class DataLock:
    """The hold on a data folder, from construction to `release`."""

    def __init__(self, folder: Path, *, check: Callable[[], None] = never) -> None:
        """Raises AlreadyRunning with the holder's pid, StartError if children of an earlier run do not end."""
        self._fd = _open(folder / "lock", os.O_CREAT)
        self._children_fd = -1
        try:
            while not _try(self._fd):
                pid = holder(folder)
                if pid is not None:  # else it was only somebody's look at who holds it
                    raise AlreadyRunning(folder, pid)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
            self._children_fd = _open(folder / "lock.children", os.O_CREAT)
            is_free = children.wait_until(lambda: _try(self._children_fd), timeout_s=_LEFTOVERS_TIMEOUT_S, check=check)
            if not is_free:
                pids = ", ".join(map(str, _users_of(folder / "lock.children") - {os.getpid()}))
                raise StartError(f"processes of an earlier run on {folder} have not ended: {pids or 'unknown'}")
        except BaseException:
            self.release()
            raise

    @property
    def children_fd(self) -> int:
        """To be left open in every child."""
        return self._children_fd

    def release(self) -> None:
        for fd in (self._children_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._children_fd = -1


def holder(folder: Path) -> int | None:
    """The pid of the `stowage up` that holds the folder now; None if nobody does. 0: somebody we may not look at."""
    try:
        fd = _open(folder / "lock")
    except FileNotFoundError:
        return None
    with contextlib.closing(os.fdopen(fd, "rb")) as file:
        pids: set[int] = set()

        def is_known() -> bool:
            # It locks first and writes its pid next, so the pid of the one before may be read for a moment.
            if _try(fd):
                return True
            pids.clear()
            file.seek(0)
            text = file.read().strip()
            if text.isdigit() and int(text) in _users_of(folder / "lock"):
                pids.add(int(text))
            return bool(pids)

        is_found = children.wait_until(is_known, timeout_s=_PID_TIMEOUT_S)
        return next(iter(pids), None) if is_found else 0


def _open(path: Path, flags: int = 0) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}") from error


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _users_of(path: Path) -> set[int]:
    """The processes that have the file open, as far as we may look."""
    wanted = str(path.resolve())
    found: set[int] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                for fd in (process / "fd").iterdir():
                    # The link's text alone: stat would follow it, and hang on a file of a dead NFS server.
                    with contextlib.suppress(OSError):
                        if os.readlink(fd) == wanted:
                            found.add(int(process.name))
    return found
