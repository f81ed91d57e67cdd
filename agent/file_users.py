"""Who on this host has a volume's file open, by the kernel's word: found without a look at the file, so no dead server can hang it.

A file is known by its name, for a locator is never used twice, and by the device of its mount, in whatever mount
namespace it was opened; one that was bound to another place is known by where its mount begins (proc(5), mountinfo).
What no process has open but a loop device has, is found by sysfs.
"""

import contextlib
import errno
import glob
import os
import re
import select
import signal
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from agent.job_io import Job, JobFault, path_of

#: Users that are named one by one.
MAX_NAMED = 20
#: What to do about one that is in use.
STOP_USER = "Stop the VM, or what else uses the volume on this host, then try again"
#: Seconds for killed processes to be gone: one that waits for a dead disk does not die, and nobody may wait for it.
_GONE_WITHIN_S = 5.0
#: After a kill another process may have got the descriptor from the first meanwhile.
_ROUNDS = 3
_O_PATH = 0o10000000
_DELETED = " (deleted)"
_OCTAL = re.compile(r"\\([0-7]{3})")


class User(NamedTuple):
    """A process that has the file open, or, with pid 0, a device of the kernel. command: what it calls itself."""

    pid: int
    command: str
    is_writer: bool

    @property
    def shown(self) -> str:
        return f"{self.command} ({self.pid})" if self.pid else self.command


class _Mount(NamedTuple):
    device: str
    root: str
    where: str


def find_file_users(args: dict[str, Any]) -> dict[str, Any]:
    """{"users", "count"}: how many others than this worker have the file open, and up to 20 as [pid, command, is_writer].

    args: extent. The file may be absent, and its server dead.
    """
    users = users_of(args["extent"])
    return {"users": [list(user) for user in users[:MAX_NAMED]], "count": len(users)}


def kill_file_users(args: dict[str, Any]) -> dict[str, Any]:
    """{"killed", "users", "count"}: every process that had the file open for writing was sent SIGKILL; who still writes.

    args: extent. Waits up to 5 s for them to be gone. Who only reads is left.
    """
    extent, killed = args["extent"], 0
    ends_at_s = time.monotonic() + _GONE_WITHIN_S
    for _ in range(_ROUNDS):
        writers = [user for user in users_of(extent) if user.is_writer]
        # Nobody kills the first process: the kernel would stop with it.
        doomed = [user.pid for user in writers if user.pid > 1]
        if not doomed:
            break
        killed += _kill(extent, doomed, ends_at_s)
    left = [user for user in users_of(extent) if user.is_writer]
    return {"killed": killed, "users": [list(user) for user in left[:MAX_NAMED]], "count": len(left)}


def users_of(extent: dict[str, Any]) -> list[User]:
    """Everything of this host that has the extent's file open, this process left out; in the order of process ids."""
    name, device = str(extent["name"]), _device_of(extent)
    mounts: dict[str, dict[str, _Mount]] = {}
    users: list[User] = []
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        if pid == os.getpid():
            continue
        flags = [flags for flags in _opened(pid, name, device, mounts) if not flags & _O_PATH]
        if flags:
            users.append(User(pid, _command(pid), any(flags & os.O_ACCMODE != os.O_RDONLY for flags in flags)))
    return [*users, *_loops(name)]


def refuse_users(extent: dict[str, Any], *, only_writers: bool = False) -> None:
    """Raises JobFault in_use while another process of this host has the extent's file open."""
    users = [user for user in users_of(extent) if user.is_writer or not only_writers]
    if users:
        how = "open for writing" if only_writers else "open"
        detail = f"{path_of(extent)} is {how} in {shown(users, len(users))}"
        raise JobFault("in_use", detail, remedy=STOP_USER, is_retryable=True)


def shown(users: list[User], count: int) -> str:
    """A few of them, as a fault names them."""
    more = f" and {count - 3} more" if count > 3 else ""
    return ", ".join(user.shown for user in users[:3]) + more


def _opened(pid: int, name: str, device: str, mounts: dict[str, dict[str, _Mount]]) -> Iterator[int]:
    """The flags of each descriptor by which the process has the file open; none of one that is gone meanwhile."""
    with _gone_meanwhile():
        bound: set[str] | None = None
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                link = os.readlink(f"/proc/{pid}/fd/{number}").removesuffix(_DELETED)
                if not link.startswith(("/", "(")):
                    continue
                if bound is None:
                    bound = {mount.where for mount in _mounts_of(pid, mounts).values() if _last(mount.root) == name}
                if _last(link) != name and link not in bound:
                    continue
                facts = _facts(f"/proc/{pid}/fdinfo/{number}")
                mount = _mounts_of(pid, mounts).get(facts.get("mnt_id", ""))
                # One that is mounted nowhere any more, for it was unmounted lazily, has no device to be known by.
                if mount is None or not device or mount.device == device:
                    yield int(facts.get("flags", "0"), 8)


@contextlib.contextmanager
def _gone_meanwhile() -> Generator[None]:
    """A process that ends while it is looked at has nothing open; the kernel says EINVAL of the mounts of one that is just ending."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _mounts_of(pid: int, known: dict[str, dict[str, _Mount]]) -> dict[str, _Mount]:
    """The mounts that the process sees, by number; read once for each namespace."""
    namespace = os.readlink(f"/proc/{pid}/ns/mnt")
    if namespace not in known:
        known[namespace] = _read_mounts(f"/proc/{pid}/mountinfo")
    return known[namespace]


def _read_mounts(path: str) -> dict[str, _Mount]:
    found: dict[str, _Mount] = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            number, _, device, root, where, _ = line.split(" ", 5)
            found[number] = _Mount(device, _plain(root), _plain(where))
    return found


def _device_of(extent: dict[str, Any]) -> str:
    """The device of the mount that the extent's folder lies in, by its path alone; empty if that cannot be told.

    Links are resolved outside the mount only: what lies in it may hang.
    """
    folder, root = str(extent["folder"]), str(extent.get("mount_root", ""))
    if root:
        above = os.path.dirname(root)
        folder = os.path.realpath(above) + folder.removeprefix(above)
    else:
        folder = os.path.realpath(folder)
    inside = [
        mount
        for mount in _read_mounts("/proc/self/mountinfo").values()
        if folder == mount.where or folder.startswith(f"{mount.where.rstrip('/')}/")
    ]
    # Of several at one place the last is the visible one.
    return max(enumerate(inside), key=lambda item: (len(item[1].where), item[0]))[1].device if inside else ""


def _facts(path: str) -> dict[str, str]:
    with open(path, encoding="ascii", errors="replace") as lines:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _command(pid: int) -> str:
    """Anybody may call his process anything: what is no plain character is left out."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as text:
        return "".join(char for char in text.read() if char.isascii() and char.isprintable()) or "unnamed"
    return "unnamed"


def _loops(name: str) -> Iterator[User]:
    for path in sorted(glob.glob("/sys/block/loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            with open(path, encoding="utf-8", errors="surrogateescape") as text:
                backing = text.read().rstrip("\n").removesuffix(_DELETED)
            with open(f"{path.removesuffix('/loop/backing_file')}/ro", encoding="ascii") as text:
                is_read_only = text.read().strip() == "1"
            if _last(backing) == name:
                yield User(0, path.split("/")[3], not is_read_only)


def _kill(extent: dict[str, Any], pids: list[int], ends_at_s: float) -> int:
    """How many were killed; returns when they are gone, or at the end."""
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        # Looked at once more: a number may be another process's by now, but what a handle is of stays what it is.
        writers = {user.pid for user in users_of(extent) if user.is_writer}
        gone = select.poll()
        waiting: set[int] = set()
        for pid, handle in handles.items():
            if pid in writers:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    gone.register(handle, select.POLLIN)
                    waiting.add(handle)
        killed = len(waiting)
        while waiting and (left_s := ends_at_s - time.monotonic()) > 0:
            for handle, _ in gone.poll(left_s * 1000):
                gone.unregister(handle)
                waiting.discard(handle)
        return killed
    finally:
        for handle in handles.values():
            os.close(handle)


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


USER_JOBS: tuple[Job, ...] = (find_file_users, kill_file_users)
