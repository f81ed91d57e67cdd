"""What runs in a forked worker process: everything that may touch a mount and hang in the kernel; jobs on devices are in block_jobs.py.

Standard library only and few imports, for the worker is forked for each job. A job takes and returns
plain values; an OSError simply leaves it, and the worker maps its errno to a fault. Every job is
idempotent, and one that is killed leaves at most a file of a known name that the next run removes.
"""

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from agent.block_jobs import BLOCK_BYTES, BLOCK_JOBS
from agent.copy_jobs import COPY_JOBS
from agent.device_jobs import DEVICE_JOBS
from agent.download_jobs import DOWNLOAD_JOBS
from agent.file_jobs import FILE_JOBS
from agent.file_users import USER_JOBS
from agent.image_jobs import IMAGE_JOBS
from agent.job_io import is_in_mount, marker_in
from agent.qemu_jobs import QEMU_JOBS

MARKER_NAME = ".stowage-backend.json"
#: Where a file backend's volumes are, below its folder (agent/volumes.py says it for the agent's own process).
VOLUMES_FOLDER = "volumes"
#: Bytes; a marker is 200, and whatever is larger is not one.
#: ioctl of linux/fs.h: _IOW(0x94, 9, int).
_FICLONE = 0x40049409
#: ioctl of the kernel's cifs client (fs/smb/client/cifs_ioctl.h): _IOR(0xCF, 5, struct smb_mnt_fs_info), what is read by it,
#: and where in that the rights are that the server gives to the user on the share.
_CIFS_GET_MNT_INFO = 0x8040CF05
_CIFS_MNT_INFO_BYTES = 64
_CIFS_RIGHTS_AT = 52
#: The right to write a file's data (FILE_WRITE_DATA; MS-SMB2 2.2.13.1).
_WRITE_DATA = 0x2


def prove(args: dict[str, Any]) -> dict[str, Any]:
    """A backend's folder is the right one and takes writes. args: dir, mount_root, file_name, marker (what ours says), on_missing.

    Answers {"marker": ours | other | missing | unmounted, ...}: with `other` its fields under "found"; where the place is
    usable the numbers of write_probe too. mount_root: the mount that `dir` must lie in (`unmounted` if nothing is mounted
    there), or empty where any folder will do. on_missing: `refuse` stops there; `ignore` proves all the same; `make` makes the marker,
    after the write was proven, so that a place that takes no writes never gets one.
    """
    directory = str(args["dir"])
    if not stat.S_ISDIR(os.stat(directory).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory)
    if args["mount_root"] and not is_in_mount(directory, str(args["mount_root"])):
        return {"marker": "unmounted"}
    answer = read_marker(args)
    if answer["marker"] == "other" or (answer["marker"] == "missing" and args["on_missing"] == "refuse"):
        return answer
    answer |= write_probe(args)
    if answer["marker"] == "missing" and args["on_missing"] == "make":
        answer |= create_marker(args)
    return answer


def write_probe(args: dict[str, Any]) -> dict[str, Any]:
    """4 KiB written, fsynced, read back through a new descriptor, compared and removed; the file system's space.

    args: dir, file_name. The name is the same at every probe of a backend by a host: a kill leaves at most one such
    file and the next probe removes it. latency_ms spans create to unlink.
    """
    path = _place(args, args["file_name"])
    _unlink_if_there(path)
    written = os.urandom(BLOCK_BYTES)
    started = time.monotonic()
    try:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            if not _is_read_only_share(str(args["dir"])):
                raise
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path) from error
        try:
            _write_all(descriptor, written)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            read = _read_all(descriptor, BLOCK_BYTES + 1)
        finally:
            os.close(descriptor)
    finally:
        _unlink_if_there(path)
    latency_ms = (time.monotonic() - started) * 1000
    if read != written:
        raise OSError(errno.EIO, "the storage gave back other bytes than were written", path)
    return {"latency_ms": round(latency_ms, 3), **space(args)}


def _is_read_only_share(directory: str) -> bool:
    """Whether it is a share of an SMB server that lets this user write nowhere: cifs mounts such a one as if it were writable."""
    rights = bytearray(_CIFS_MNT_INFO_BYTES)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Before the first entry is read, the client has nothing behind the descriptor and answers ENOTTY.
        with os.scandir(descriptor) as listing:
            next(listing, None)
        fcntl.ioctl(descriptor, _CIFS_GET_MNT_INFO, rights)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    granted = int.from_bytes(rights[_CIFS_RIGHTS_AT : _CIFS_RIGHTS_AT + 4], "little")
    return granted != 0 and not granted & _WRITE_DATA


def space(args: dict[str, Any]) -> dict[str, Any]:
    """total, used and available bytes of the file system that holds args["dir"], as df counts them, and which one it is:
    the device number, and the boot of this kernel, so that another machine's device of that number is another.
    """
    found = os.statvfs(args["dir"])
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as boot:
        kernel = boot.read().strip()
    return {
        "file_system": f"{kernel}:{os.stat(args['dir']).st_dev}",
        "total_bytes": found.f_blocks * found.f_frsize,
        "used_bytes": (found.f_blocks - found.f_bfree) * found.f_frsize,
        "available_bytes": found.f_bavail * found.f_frsize,
    }


def read_marker(args: dict[str, Any]) -> dict[str, Any]:
    """{"marker": ours | other | missing}; of another its fields as far as they are readable. args: dir, marker."""
    folder = os.open(os.path.dirname(_place(args, MARKER_NAME)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return marker_in(folder, MARKER_NAME, args["marker"])
    finally:
        os.close(folder)


def create_marker(args: dict[str, Any]) -> dict[str, Any]:
    """Our marker is there, whole and on stable storage; of two hosts that race, one makes it and the other reads it.

    A half-written marker is never seen: the text goes to a file of this host's name, which is then linked
    to the marker's, and a link refuses to replace (as O_EXCL does, and on NFS more reliably). File systems
    without hard links (some SMB servers) get O_EXCL on the name itself. args: dir, file_name, marker.
    """
    path = _place(args, MARKER_NAME)
    draft = _place(args, args["file_name"], ".marker")
    text = (json.dumps(args["marker"]) + "\n").encode()
    _unlink_if_there(draft)
    try:
        _write_new_file(draft, text)
        try:
            os.link(draft, path)
        except FileExistsError:
            return read_marker(args)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EINVAL):
                raise
            return _create_marker_exclusively(path, text, args)
    finally:
        _unlink_if_there(draft)
    _fsync_dir(args["dir"])
    return {"marker": "ours", "made_marker": True}


def _create_marker_exclusively(path: str, text: bytes, args: dict[str, Any]) -> dict[str, Any]:
    try:
        _write_new_file(path, text)
    except FileExistsError:
        # The other host may be between its open and its write for a moment.
        for _ in range(20):
            answer = read_marker(args)
            if answer["marker"] == "ours" or answer["found"]:
                return answer
            time.sleep(0.05)
        return read_marker(args)
    except OSError:
        _unlink_if_there(path)
        raise
    _fsync_dir(args["dir"])
    return {"marker": "ours", "made_marker": True}


def clear_place(args: dict[str, Any]) -> dict[str, Any]:
    """Our marker, our probe files and our folder of volumes, where it is empty, are gone; another's stay.

    args: dir, mount_root (as for `prove`), file_names, marker, rmdir.
    Answers marker (what it was, as `prove` says it), is_removed (the folder itself, only asked for with `rmdir`, only when
    empty) and entries, the number of names left in it. A folder that is not there is an answer, not an error.
    """
    directory, marker = str(args["dir"]), "missing"
    try:
        if args["mount_root"] and not is_in_mount(directory, str(args["mount_root"])):
            return {"marker": "unmounted", "is_removed": False, "entries": 0}
        marker = read_marker(args)["marker"]
        doomed = [f"{name}{suffix}" for name in args["file_names"] for suffix in ("", ".marker")]
        if marker == "ours":
            _remove_volumes_folder(directory)
            # The last: where this fails midway, what stays still says whose it is.
            doomed.append(MARKER_NAME)
        for name in doomed:
            _unlink_if_there(os.path.join(directory, name))
        if args["rmdir"] and remove_dir_if_empty(args)["is_removed"]:
            return {"marker": marker, "is_removed": True, "entries": 0}
        # "Not there" may come from what the kernel remembers of a moment ago, beside what a killed worker still did (cifs, 1 s):
        # what is listed is there.
        listed = set(os.listdir(directory))
        for name in listed.intersection(doomed):
            _unlink_if_there(os.path.join(directory, name))
        return {"marker": marker, "is_removed": False, "entries": len(listed.difference(doomed))}
    except (FileNotFoundError, NotADirectoryError):
        return {"marker": marker, "is_removed": True, "entries": 0}


def _remove_volumes_folder(directory: str) -> None:
    """What is in it keeps it, and so does its being a link or a file: it counts among what is left, then."""
    path = os.path.join(directory, VOLUMES_FOLDER)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR) and _is_there(path):
            raise


def look_at_dir(args: dict[str, Any]) -> dict[str, Any]:
    """Where args["dir"] really is, and what is there: path (links resolved), exists, is_mountpoint, and inside: the
    nearest folder above that bears a backend's marker, empty if none does.

    Raises FileNotFoundError when not even the parent exists, NotADirectoryError when it is something else.
    """
    path = os.path.realpath(args["dir"])
    try:
        found = os.stat(path)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if not stat.S_ISDIR(os.stat(parent).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent) from None
        return {"path": path, "exists": False, "is_mountpoint": False, "inside": _marked_above(path)}
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    is_mount = is_mountpoint({"dir": path})["is_mountpoint"]
    return {"path": path, "exists": True, "is_mountpoint": is_mount, "inside": _marked_above(path)}


def _marked_above(path: str) -> str:
    above = os.path.dirname(path)
    while not _is_there(os.path.join(above, MARKER_NAME)):
        if above == os.path.dirname(above):
            return ""
        above = os.path.dirname(above)
    return above


def make_dir(args: dict[str, Any]) -> dict[str, Any]:
    """The folder exists, mode 0711 when made here (a VM process of another user may pass); its parent must exist."""
    try:
        os.mkdir(args["dir"], 0o711)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(args["dir"]).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), args["dir"]) from None
        return {"is_made": False}
    _fsync_dir(os.path.dirname(args["dir"]))
    return {"is_made": True}


def remove_dir_if_empty(args: dict[str, Any]) -> dict[str, Any]:
    """{"is_removed"}: false when something is in it or it is in use as a mount point; a missing one counts as removed."""
    try:
        os.rmdir(args["dir"])
    except FileNotFoundError:
        return {"is_removed": True}
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            return {"is_removed": False}
        if _is_there(args["dir"]):
            raise
    return {"is_removed": True}


def is_mountpoint(args: dict[str, Any]) -> dict[str, Any]:
    """Whether a mount begins at the folder; bind mounts within one file system too, so by mountinfo, not by st_dev."""
    path = os.path.realpath(args["dir"])
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        points = {line.split(" ", 5)[4] for line in lines}
    escaped = path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    return {"is_mountpoint": escaped in points}


def reflink_test(args: dict[str, Any]) -> dict[str, Any]:
    """{"can_reflink"}: whether the file system shares blocks between files (FICLONE). args: dir, file_name."""
    paths = [_place(args, args["file_name"], suffix) for suffix in (".from", ".to")]
    for path in paths:
        _unlink_if_there(path)
    try:
        _write_new_file(paths[0], bytes(BLOCK_BYTES), is_synced=False)
        source = os.open(paths[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            target = os.open(paths[1], os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.ioctl(target, _FICLONE, source)
            finally:
                os.close(target)
        finally:
            os.close(source)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM):
            return {"can_reflink": False}
        raise
    finally:
        for path in paths:
            _unlink_if_there(path)
    return {"can_reflink": True}


def _unlink_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:
        if _is_there(path):
            raise


def _place(args: dict[str, Any], name: str, suffix: str = "") -> str:
    return f"{args['dir']}/{name}{suffix}"


def _is_there(path: str) -> bool:
    """On a read-only file system unlink(2) and rmdir(2) say EROFS before they have looked whether the name is there."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _write_new_file(path: str, text: bytes, *, is_synced: bool = True) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, text)
        if is_synced:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, text: bytes) -> None:
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read_all(descriptor: int, limit: int) -> bytes:
    parts: list[bytes] = []
    while limit > 0 and (part := os.read(descriptor, limit)):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def _fsync_dir(path: str) -> None:
    """The folder's names are on stable storage; SMB and a few others refuse, and have nothing better to offer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


#: Every job by its name; Workers.run accepts no other.
JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    job.__name__: job
    for job in (
        prove,
        clear_place,
        look_at_dir,
        make_dir,
        remove_dir_if_empty,
        reflink_test,
        *BLOCK_JOBS,
        *FILE_JOBS,
        *COPY_JOBS,
        *QEMU_JOBS,
        *USER_JOBS,
        *DEVICE_JOBS,
        *DOWNLOAD_JOBS,
        *IMAGE_JOBS,
    )
}
