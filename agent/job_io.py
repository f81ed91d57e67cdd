"""What worker jobs have in common: opening the right file or device and no other, faults with a code, and progress.

Standard library only, as all that a worker runs. A path is walked so that a link which a server or another tenant has
planted leads nowhere; where that is refused, nothing behind the link is touched.
"""

import contextlib
import ctypes
import errno
import functools
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Generator
from typing import Any, cast

Job = Callable[[dict[str, Any]], dict[str, Any]]

#: Two unsigned numbers of 64 bits: bytes done, bytes in all.
_PROGRESS = struct.Struct("<QQ")
#: Seconds between two writes of progress.
_REPORT_EVERY_S = 0.1
#: Of sync_file_range(2).
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
#: What open(2) says of what is no regular file: a link, a folder, a socket.
_NO_FILE = frozenset((errno.ELOOP, errno.EISDIR, errno.ENXIO))
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
#: What copies leave of a file system to the volumes that are on it already: bytes, or if that is less, a part of it.
_RESERVE_BYTES = 256 * 1024 * 1024
_RESERVE_PART = 50
#: Bytes; a marker is 200, and whatever is larger is not one.
_MARKER_MAX_BYTES = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class JobFault(Exception):
    """A failure with a code of schemas/faults.py; `with_faults` makes it the job's answer. tool: a missing one, for the remedy."""

    def __init__(self, code: str, detail: str, *, remedy: str = "", tool: str = "", is_retryable: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self._answer = {
            "fault": code,
            "detail": detail,
            "remedy": remedy,
            "tool": tool,
            "is_retryable": is_retryable,
        }

    def answer(self) -> dict[str, Any]:
        """What workers.py makes an AgentFault of."""
        return self._answer


def with_faults(job: Job) -> Job:
    """The job under its name; a JobFault that leaves it becomes its answer."""

    @functools.wraps(job)
    def run(args: dict[str, Any]) -> dict[str, Any]:
        try:
            return job(args)
        except JobFault as error:
            return error.answer()

    return run


def path_of(extent: dict[str, Any]) -> str:
    """The extent's place as it is shown."""
    return f"{extent['folder']}/{extent['name']}"


def is_in_mount(directory: str, root: str) -> bool:
    """Whether something is mounted at root; raises PermissionError where a link of the server leads the folder out of it.

    Asked here and not in the agent: between its look and this write the mount may have gone, and root may write to the
    empty folder beneath.
    """
    if os.stat(root).st_dev == os.stat(os.path.dirname(root)).st_dev:
        return False
    _refuse_outside(os.path.realpath(directory), root, directory)
    return True


def open_base(args: dict[str, Any]) -> int:
    """A descriptor of the folder that args["folder"] lies in, for *at() calls. Links on the way there are followed, but with
    args["mount_root"] not out of that mount, and with args["is_resolved"] not at all, for none was there when the path was found.

    Raises JobFault: not_a_mountpoint where nothing is mounted there, path_not_found, foreign_data for a link that was put there since.
    """
    base, root = os.path.dirname(str(args["folder"]).rstrip("/")) or "/", str(args.get("mount_root", ""))
    try:
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if root:
            _refuse_unmounted(os.stat(root) if os.path.exists(root) else None, root, base)
        # None of what shall be in it is gone for that: it is elsewhere, on a disk or a share that is not here now.
        raise JobFault("path_not_found", f"{base} is not there") from None
    try:
        if root:
            # By the descriptor and not by the path: what is opened stays what it is, whoever mounts or links meanwhile.
            _refuse_unmounted(os.fstat(descriptor), root, base)
            _refuse_outside(os.readlink(f"/proc/self/fd/{descriptor}"), root, base)
        if args.get("is_resolved"):
            _refuse_elsewhere(os.readlink(f"/proc/self/fd/{descriptor}"), base)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_folder(args: dict[str, Any]) -> int:
    """A descriptor of args["folder"], which is no link; see open_base for what leads to it."""
    base = open_base(args)
    try:
        return open_folder_in(base, args)
    finally:
        os.close(base)


def open_folder_in(base_fd: int, args: dict[str, Any]) -> int:
    """The same, where the folder that it lies in is open already."""
    folder = str(args["folder"]).rstrip("/")
    return _open_at(base_fd, os.path.basename(folder) or ".", os.O_RDONLY | os.O_DIRECTORY, folder)


def open_file(folder_fd: int, name: str, flags: int, *, shown: str = "") -> int:
    """A descriptor of the regular file of that name in the folder; made with 0600 where flags say O_CREAT.

    Raises JobFault foreign_data: a link, what is no regular file, and one that has another name too, for whoever planted that
    name would have us read or write the file behind the other. OSError has the file's name.
    """
    try:
        # O_NONBLOCK: a pipe that somebody planted must not be waited for. For a regular file it means nothing.
        descriptor = _open_at(folder_fd, name, flags | os.O_NONBLOCK, shown or name)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        refuse_foreign(os.stat(name, dir_fd=folder_fd, follow_symlinks=False), shown or name)
        raise
    try:
        refuse_foreign(os.fstat(descriptor), shown or name)
    except JobFault:
        os.close(descriptor)
        raise
    return descriptor


def refuse_foreign(found: os.stat_result, shown: str) -> None:
    """Raises JobFault foreign_data for what none of us has made: anything but a regular file with one name."""
    if is_plain(found):
        return
    if stat.S_ISREG(found.st_mode):
        detail = f"{shown} is also known by another name (a hard link)"
    else:
        detail = f"{_KINDS.get(stat.S_IFMT(found.st_mode), 'no regular file')} lies at {shown}"
    raise JobFault("foreign_data", detail, remedy=f"Look who made it, and move away what lies at {shown}")


def is_plain(found: os.stat_result) -> bool:
    """Whether it is a regular file that is known by one name alone. Some servers count none."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def open_device(extent: dict[str, Any], flags: int) -> int:
    """A descriptor of the block device, which is the mapping that extent["dm_uuid"] names. Raises OSError ENXIO for another."""
    # Never O_CREAT: a device node that is missing must not become a file in /dev.
    descriptor = os.open(path_of(extent), flags | os.O_CLOEXEC)
    try:
        refuse_other_mapping(descriptor, str(extent["dm_uuid"]), path_of(extent))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_extent(extent: dict[str, Any], flags: int) -> int:
    """A descriptor of the extent's file or device. Raises JobFault volume_missing where it is not there."""
    try:
        if extent.get("dm_uuid"):
            return open_device(extent, flags)
        folder = open_folder(extent)
        try:
            return open_file(folder, str(extent["name"]), flags, shown=path_of(extent))
        finally:
            os.close(folder)
    except FileNotFoundError:
        raise JobFault("volume_missing", f"{path_of(extent)} is not there") from None


@contextlib.contextmanager
def opened(extent: dict[str, Any], flags: int) -> Generator[int]:
    """See open_extent; closed behind the block. An OSError in it that names nothing names the extent.

    With extent["identity"] the file must be that one, before the block and behind it. Raises JobFault source_unreadable.
    """
    descriptor = open_extent(extent, flags)
    try:
        with naming(path_of(extent)):
            refuse_changed(descriptor, extent)
            yield descriptor
            refuse_changed(descriptor, extent)
    finally:
        os.close(descriptor)


def identity_of(descriptor: int) -> list[int]:
    """What the open file is by the kernel's word: another file has another, and so has this one after a write, or under another owner."""
    found = os.fstat(descriptor)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def refuse_changed(descriptor: int, extent: dict[str, Any]) -> None:
    """Raises JobFault source_unreadable where the open file is not, or is no longer, what extent["identity"] says. Without one any is right."""
    if extent.get("identity") and identity_of(descriptor) != extent["identity"]:
        raise JobFault(
            "source_unreadable",
            f"{path_of(extent)} was changed or replaced while it was read",
            remedy="Register it again, and let nobody write to it meanwhile",
        )


@contextlib.contextmanager
def naming(path: str) -> Generator[None]:
    """An OSError of a call that knows only a descriptor names the path."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def marker_in(folder_fd: int, name: str, ours: dict[str, Any]) -> dict[str, Any]:
    """{"marker": ours | other | missing}: whose lies in the folder; of one that is there "found", what is readable of it. ours: our ids."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    except FileNotFoundError:
        return {"marker": "missing"}
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            return {"marker": "other", "found": {}}
        raise
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        found: Any = json.loads(os.pread(descriptor, _MARKER_MAX_BYTES, 0)) if is_file else None
    except (ValueError, RecursionError):
        found = None
    finally:
        os.close(descriptor)
    if not isinstance(found, dict):
        return {"marker": "other", "found": {}}
    words = cast("dict[str, Any]", found)
    ids = {key: str(words[key])[:64] for key in ("backend_id", "fleet_id") if key in words}
    is_ours = all(ids.get(key) == ours[key] for key in ("backend_id", "fleet_id"))
    return {"marker": "ours" if is_ours else "other", "found": ids}


def refuse_other_mapping(descriptor: int, dm_uuid: str, shown: str) -> None:
    """Raises ENXIO unless the open device is the mapping of that UUID."""
    number = os.fstat(descriptor).st_rdev
    try:
        with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/dm/uuid", encoding="ascii") as text:
            found = text.read().strip()
    except FileNotFoundError:
        found = ""
    if found != dm_uuid:
        raise OSError(errno.ENXIO, f"is {found or 'no mapping'}, not {dm_uuid}", shown)


def refuse_no_room(descriptor: int, needed_bytes: int, shown: str) -> None:
    """Raises JobFault no_space where so many more bytes than the file has would eat into what is kept free for others.

    Guests whose volumes are sparse files there would stop with the file system's last byte.
    """
    found = os.fstatvfs(descriptor)
    kept_bytes = min(_RESERVE_BYTES, found.f_blocks * found.f_frsize // _RESERVE_PART)
    # What is in the file goes first; counted here, for some file systems give it back only later.
    free_bytes = found.f_bavail * found.f_frsize + os.fstat(descriptor).st_blocks * 512
    # Some servers do not tell what they have.
    if found.f_blocks and 0 < needed_bytes > free_bytes - kept_bytes:
        detail = (
            f"{shown} needs about {needed_bytes} bytes, and {free_bytes} are free, "
            f"of which {kept_bytes} are kept for what is there"
        )
        raise JobFault("no_space", detail)


def fsync_folder(descriptor: int) -> None:
    """The folder's names are on stable storage; SMB and a few others refuse, and have nothing better to offer."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
            raise


def forget_cached(descriptor: int) -> None:
    """What is read next comes from the storage, as far as the kernel can let go of what it remembers."""
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def begin_writeback(descriptor: int, begin: int, end: int) -> None:
    """What is dirty in the range is on its way to the storage; not waited for."""
    _sync_range(descriptor, begin, end, _WRITE)


def await_writeback(descriptor: int, begin: int, end: int) -> None:
    """What was dirty in the range has been written, though not yet flushed by the storage. Raises OSError."""
    _sync_range(descriptor, begin, end, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)


class Progress:
    """How far a job is, in a file of the agent's own; no path: nobody asks."""

    def __init__(self, path: str) -> None:
        self._descriptor = -1
        self._next_s = 0.0
        if path:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def report(self, done_bytes: int, total_bytes: int) -> None:
        """At most ten times a second, but always the end."""
        now_s = time.monotonic()
        if self._descriptor < 0 or (now_s < self._next_s and done_bytes < total_bytes):
            return
        self._next_s = now_s + _REPORT_EVERY_S
        os.pwrite(self._descriptor, _PROGRESS.pack(done_bytes, total_bytes), 0)


def read_progress(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Bytes done and in all; zeros where nothing was reported yet."""
    try:
        with open(path, "rb") as file:
            content = file.read(_PROGRESS.size)
    except FileNotFoundError:
        return 0, 0
    if len(content) < _PROGRESS.size:
        return 0, 0
    done_bytes, total_bytes = _PROGRESS.unpack(content)
    return done_bytes, total_bytes


def _open_at(folder_fd: int, name: str, flags: int, shown: str) -> int:
    if "/" in name or name in ("", ".."):
        raise OSError(errno.EINVAL, "is no name of a file in a folder", shown)
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
    except OSError as error:
        error.filename = shown
        raise


def _refuse_unmounted(found: os.stat_result | None, root: str, shown: str) -> None:
    """found: what is in the mount or is its root, None for nothing."""
    if found is None or found.st_dev == os.stat(os.path.dirname(root)).st_dev:
        raise JobFault(
            "not_a_mountpoint",
            f"{shown} is not mounted on this host",
            remedy="Wait: the agent mounts it again",
            is_retryable=True,
        )


def _refuse_outside(real: str, root: str, shown: str) -> None:
    real_root = os.path.realpath(root)
    if real != real_root and not real.startswith(f"{real_root}/"):
        raise PermissionError(errno.EACCES, "a symbolic link leads out of the mount", shown)


def _refuse_elsewhere(real: str, base: str) -> None:
    if real != base:
        raise JobFault(
            "foreign_data",
            f"a symbolic link was put into the way to {base}",
            remedy=f"Look who made it: {base} was there without one a moment ago",
        )


def _sync_range(descriptor: int, begin: int, end: int, flags: int) -> None:
    offset, count = ctypes.c_int64(begin), ctypes.c_int64(end - begin)
    if _libc.sync_file_range(descriptor, offset, count, ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
