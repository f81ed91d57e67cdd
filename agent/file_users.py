"""Who on this host has a volume's file open, by the kernel's word: found without a look at the file, so no dead server can hang it.

A file is known by its name, for a locator is never used twice, and, while it is there, by the device of its mount, in whatever
mount namespace it was opened; one that was bound to another place is known by where its mount begins (proc(5), mountinfo).
Who has it open by another name, a hard link as of Firecracker's jailer, is found by the file's inode, where the caller has seen
that. What no process has open but a loop device has, is found by sysfs.
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

from agent.job_io import Job, JobFault, path_of, with_faults

#: Users that are named one by one.
MAX_NAMED = 20
#: What to do about one that is in use.
STOP_USER = "Stop the VM, or what else uses the volume on this host, then try again"
#: What to do about processes that cannot be looked into.
_LET_IT_SEE = (
    "Run the agent as root with CAP_SYS_PTRACE, and let no security module (AppArmor, SELinux) keep processes from it"
)
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

    args: extent; file (its device and inode, or None); any_device (as of users_of). The file may be absent, and its server dead. Raises JobFault
    permission_denied where none is found and a process cannot be looked into.
    """
    users, hidden = users_of(args["extent"], _file_in(args), any_device=bool(args["any_device"]))
    return _answer(users, hidden)


def kill_file_users(args: dict[str, Any]) -> dict[str, Any]:
    """{"killed", "users", "count"}: every process that had the file open for writing was sent SIGKILL; who still writes.

    args: as above. Waits up to 5 s for them to be gone. Who only reads is left. Raises JobFault permission_denied
    where nobody else was found and a process cannot be looked into.
    """
    extent, file, any_device, killed = args["extent"], _file_in(args), bool(args["any_device"]), 0
    ends_at_s = time.monotonic() + _GONE_WITHIN_S
    for _ in range(_ROUNDS):
        writers = [user for user in users_of(extent, file, any_device=any_device)[0] if user.is_writer]
        # Nobody kills the first process: the kernel would stop with it.
        doomed = [user.pid for user in writers if user.pid > 1]
        if not doomed:
            break
        killed += _kill(extent, file, doomed, ends_at_s, any_device=any_device)
    users, hidden = users_of(extent, file, any_device=any_device)
    return {"killed": killed, **_answer([user for user in users if user.is_writer], hidden)}


def users_of(
    extent: dict[str, Any], file: tuple[int, int] | None, *, any_device: bool = False
) -> tuple[list[User], list[int]]:
    """Everything of this host that has the extent's file open, this process left out, in the order of process ids; and those that
    this process, though it is root, may not look into. Others than root see their own processes, and are content with that.

    file: its device and inode, where they are known. any_device: its name alone decides, for that the storage is not seen here, or
    another one in its place, says nothing of a process that has mounts of its own.
    """
    name, device = str(extent["name"]), "" if any_device else _device_of(extent)
    mounts: dict[str, dict[str, _Mount]] = {}
    users: list[User] = []
    pids = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    unseen: list[int] = [pid for pid in pids if pid != os.getpid()]
    # Twice: that it may not be looked into is also said of one that just begins or ends.
    for _ in range(2):
        looked_at = unseen.copy()
        unseen.clear()
        for pid in looked_at:
            try:
                flags = [flags for flags in _opened(pid, name, device, file, mounts) if not flags & _O_PATH]
            except PermissionError:
                unseen.append(pid)
                continue
            if flags:
                users.append(User(pid, _command(pid), any(flags & os.O_ACCMODE != os.O_RDONLY for flags in flags)))
    return [*sorted(users), *_loops(name)], _hidden(pids, unseen)


def refuse_users(extent: dict[str, Any], found: os.stat_result, *, only_writers: bool = False) -> None:
    """Raises JobFault in_use while another process of this host has the extent's file open, permission_denied where that can't be told.

    found: what the storage says of the file.
    """
    users, hidden = users_of(extent, (found.st_dev, found.st_ino))
    users = [user for user in users if user.is_writer or not only_writers]
    if users:
        how = "open for writing" if only_writers else "open"
        detail = f"{path_of(extent)} is {how} in {shown(users, len(users))}"
        raise JobFault("in_use", detail, remedy=STOP_USER, is_retryable=True)
    _refuse_hidden(hidden)


def shows_inodes() -> bool:
    """Whether the kernel tells the inodes of open files, as it does from Linux 5.14 on."""
    descriptor = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        return "ino" in _facts(f"/proc/self/fdinfo/{descriptor}")
    finally:
        os.close(descriptor)


def shown(users: list[User], count: int) -> str:
    """A few of them, as a fault names them."""
    more = f" and {count - 3} more" if count > 3 else ""
    return ", ".join(user.shown for user in users[:3]) + more


def _file_in(args: dict[str, Any]) -> tuple[int, int] | None:
    return (int(args["file"][0]), int(args["file"][1])) if args["file"] else None


def _answer(users: list[User], hidden: list[int]) -> dict[str, Any]:
    if not users:
        _refuse_hidden(hidden)
    return {"users": [list(user) for user in users[:MAX_NAMED]], "count": len(users)}


def _hidden(pids: list[int], unseen: list[int]) -> list[int]:
    """Those of this host's processes that may have anything open, for all that this one can tell."""
    if os.geteuid() != 0:
        return []
    # There is always a first process, and where it is not shown (hidepid, proc(5)) others are not either. It opens no volume; and
    # where it guards a sandbox nobody may look into it (seen 2026-11-29, by a root with CAP_SYS_PTRACE).
    return [pid for pid in unseen if pid != 1] if 1 in pids else [1, *unseen]


def _refuse_hidden(hidden: list[int]) -> None:
    if hidden:
        unseen = [User(pid, _command(pid), is_writer=False) for pid in hidden[:3]]
        detail = f"what {shown(unseen, len(hidden))} may have open cannot be seen by the agent"
        raise JobFault("permission_denied", detail, remedy=_LET_IT_SEE)


def _opened(
    pid: int, name: str, device: str, file: tuple[int, int] | None, mounts: dict[str, dict[str, _Mount]]
) -> Iterator[int]:
    """The flags of each descriptor by which the process has the file open; none of one that is gone meanwhile. Raises PermissionError.

    device: of its mount; empty where its name alone decides.
    """
    with _gone_meanwhile():
        bound: set[str] | None = None
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                path = f"/proc/{pid}/fd/{number}"
                link = os.readlink(path).removesuffix(_DELETED)
                if not link.startswith(("/", "(")):
                    continue
                if bound is None:
                    bound = {mount.where for mount in _mounts_of(pid, mounts).values() if _last(mount.root) == name}
                is_named = _last(link) == name or link in bound
                if not is_named and file is None:
                    continue
                facts = _facts(f"/proc/{pid}/fdinfo/{number}")
                if not is_named and (file is None or facts.get("ino") != str(file[1])):
                    continue
                mount = _mounts_of(pid, mounts).get(facts.get("mnt_id", ""))
                # One that is mounted nowhere any more, for it was unmounted lazily, has no device to be known by.
                if mount is not None and device and mount.device != device:
                    continue
                # By its inode alone it may be another file: the subvolumes of a btrfs count each for itself. Whoever calls has just
                # asked the storage for that inode, so a file on it can be asked, too.
                if is_named or _is(file, path):
                    yield int(facts.get("flags", "0"), 8)


def _is(file: tuple[int, int] | None, path: str) -> bool:
    found = os.stat(path)
    return (found.st_dev, found.st_ino) == file


@contextlib.contextmanager
def _gone_meanwhile() -> Generator[None]:
    """A process that ends while it is looked at has nothing open; the kernel says EINVAL of the mounts of one that is just ending."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
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
    """The device of the mount that the extent's folder lies in, by its path alone; empty if that cannot be told, as where the mount
    that it must lie in is gone from here, though not from who has files of it open.

    Links are resolved outside the mount only: what lies in it may hang.
    """
    folder, root = str(extent["folder"]), str(extent.get("mount_root", ""))
    if root:
        above = os.path.dirname(root)
        folder, root = (os.path.realpath(above) + path.removeprefix(above) for path in (folder, root))
    else:
        folder = os.path.realpath(folder)
    inside = [
        mount
        for mount in _read_mounts("/proc/self/mountinfo").values()
        if _is_in(folder, mount.where) and (not root or _is_in(mount.where, root))
    ]
    # Of several at one place the last is the visible one.
    return max(enumerate(inside), key=lambda item: (len(item[1].where), item[0]))[1].device if inside else ""


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


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


def _kill(
    extent: dict[str, Any], file: tuple[int, int] | None, pids: list[int], ends_at_s: float, *, any_device: bool
) -> int:
    """How many were killed; returns when they are gone, or at the end."""
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        # Looked at once more: a number may be another process's by now, but what a handle is of stays what it is.
        writers = {user.pid for user in users_of(extent, file, any_device=any_device)[0] if user.is_writer}
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


USER_JOBS: tuple[Job, ...] = tuple(map(with_faults, (find_file_users, kill_file_users)))
