"""Worker jobs on the files of volumes: made, looked at, settled, resized, listed and erased.

They lie in the folder `volumes` of a backend as `<locator>.<format>`. An extent is a dict of agent.volumes.Extent, whose
folder is that one. A locator is never used twice, so what bears a name is one volume's for ever. marker_name is what must
lie in the backend's folder where something is to be made, or is not found, and marker the ids that it must say: without it the
disk of that folder is not mounted now, so what was made would be hidden beneath it, and what is missing is not gone; and what bears
other ids is another backend's disk.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Generator
from typing import Any

from agent.copy_jobs import clone
from agent.file_users import refuse_users, shows_inodes
from agent.job_io import (
    Job,
    JobFault,
    forget_cached,
    fsync_folder,
    is_plain,
    marker_in,
    naming,
    open_base,
    open_file,
    open_folder,
    open_folder_in,
    opened,
    path_of,
    refuse_foreign,
    with_faults,
)
from agent.qcow2 import header_size, is_qcow2, refuse_cut, refuse_references, refuse_snapshots
from agent.qemu_jobs import change_size, checked_size, make_empty

#: A VM's process, of another user, may pass through the folder, but not list it.
_FOLDER_MODE = 0o711
_NAME = re.compile(r"([0-9a-f]{32})\.(raw|qcow2)")
_SHOWN_ID = re.compile(r"[0-9a-f-]{1,36}")
#: What to do about a volume that has lost its size.
RESTORE = "Look at the backend's drift report; restore the volume from a copy or a snapshot"
#: What to do where another backend's marker is.
_LOOK_WHOSE = "See what is mounted there: the disk or share is another backend's, and this one's is elsewhere"
_ASK_FOR_LESS = "Ask for less: this file system allows no file of that size"
#: Names in a listing that are not ours; those behind are left out.
_MAX_FOREIGN = 10_000
#: Bytes of one listing, as JSON; below what a worker may answer (workers.py).
_MAX_PAGE_BYTES = 128 * 1024


def make_volume_file(args: dict[str, Any]) -> dict[str, Any]:
    """The file is there, at its size, on stable storage: {"is_filled"}: whether it has the origin's content.

    args: extent; origin (an extent of the same format, or None); marker_name, marker. Without an origin, one that is there at its
    size is left as it is. With one, it is cloned once more; storage that cannot makes it empty, to be filled by a copy. After a
    failure there is no file.
    """
    extent, origin = args["extent"], args["origin"]
    _refuse_name(extent)
    folder = _open_marked(args, extent, is_made=True)
    try:
        descriptor, is_new = _open_or_make(folder, extent)
        try:
            if not is_new:
                if origin is None and _has_size(descriptor, extent):
                    return {"is_filled": False}
                refuse_users(extent, os.fstat(descriptor))
            is_filled = _make(folder, descriptor, extent, origin)
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)
    return {"is_filled": is_filled}


def look_at_volume_file(args: dict[str, Any]) -> dict[str, Any]:
    """{"size_bytes"}: what a VM would see, by length or header. args: extent, is_writable, is_source (optional).

    Faults: volume_missing, backing_file; wrong_size, also of a qcow2 that was cut short; with is_source in_use, while another
    process writes to it, and unsupported where it has what no copy would have. With is_writable it is only there, and 0 is
    answered: it is about to be filled anew, and a kill may have left half a header.
    """
    extent = args["extent"]
    with opened(extent, os.O_RDONLY) as descriptor:
        if args["is_writable"]:
            return {"size_bytes": 0}
        if args.get("is_source"):
            refuse_users(extent, os.fstat(descriptor), only_writers=True)
            if extent["format"] == "qcow2":
                refuse_snapshots(descriptor, path_of(extent), "wrong_size")
        return {"size_bytes": _whole_size(descriptor, extent)}


def identify_volume_file(args: dict[str, Any]) -> dict[str, Any]:
    """{"file"}: its device and inode, by which file_users.py knows it under other names too; None where it is not there. args: extent.

    Raises JobFault foreign_data where it has another name and this kernel does not tell who has it open by that.
    """
    extent = args["extent"]
    try:
        folder = open_folder(extent)
    except FileNotFoundError:
        return {"file": None}
    try:
        found = os.stat(str(extent["name"]), dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return {"file": None}
    finally:
        os.close(folder)
    if not stat.S_ISREG(found.st_mode):
        return {"file": None}
    if not shows_inodes():
        refuse_foreign(found, path_of(extent))
    return {"file": [found.st_dev, found.st_ino]}


def settle_volume_file(args: dict[str, Any]) -> dict[str, Any]:
    """On stable storage, whole and readable: {"size_bytes"}, as a VM would see it. args: extent."""
    extent = args["extent"]
    with opened(extent, os.O_RDONLY) as descriptor:
        forget_cached(descriptor)
        if extent["format"] == "qcow2":
            return {"size_bytes": checked_size(descriptor, path_of(extent), "wrong_size")}
        return {"size_bytes": os.fstat(descriptor).st_size}


def resize_volume_file(args: dict[str, Any]) -> dict[str, Any]:
    """It has the new size, on stable storage, and what was added reads as zeros. args: extent, size_bytes, may_shrink.

    Already so: success. Faults: in_use, for a shrink while another process has it open; unsupported, where it may not shrink.
    """
    extent, size_bytes = args["extent"], int(args["size_bytes"])
    with opened(extent, os.O_RDWR) as descriptor:
        size = _size(descriptor, extent)
        if size_bytes < size:
            if not args["may_shrink"]:
                detail = f"{path_of(extent)} has {size} bytes, and {size_bytes} would cut it short"
                how = "Allow the shrink (may_shrink), after the guest has shrunk what is in it"
                raise JobFault("unsupported", detail, remedy=how)
            refuse_users(extent, os.fstat(descriptor))
        if size != size_bytes:
            with _refusing_size(extent, size_bytes):
                change_size(descriptor, extent, size_bytes)
        os.fsync(descriptor)
    return {}


def erase_volume_file(args: dict[str, Any]) -> dict[str, Any]:
    """The file is gone, and that is on stable storage; absent is success. args: extent, marker_name, marker.

    Faults: in_use, while another process has it open.
    """
    extent = args["extent"]
    _refuse_name(extent)
    try:
        folder = _open_marked(args, extent)
    except FileNotFoundError:
        return {}
    try:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(str(extent["name"]), dir_fd=folder, follow_symlinks=False)
            # None of ours stays.
            refuse_foreign(found, path_of(extent))
            refuse_users(extent, found)
            os.unlink(str(extent["name"]), dir_fd=folder)
        # Also where it was absent: a kill may have come between the two.
        fsync_folder(folder)
    except OSError as error:
        # Of *at() calls it is the name alone.
        error.filename = path_of(extent)
        raise
    finally:
        os.close(folder)
    return {}


def list_volume_files(args: dict[str, Any]) -> dict[str, Any]:
    """{"items", "is_whole"}: what is in the folder behind the name args["after"], in the order of names, as
    [name, size_bytes, allocated_bytes, is_ours]; the size is what a VM would see of ours. A folder that is not there is empty.
    Ours is a regular file with one name, which is one that we give.

    args: folder, mount_root, marker_name, marker, after. Of names that are not ours those behind the first 10,000 are left out.
    """
    try:
        folder = _open_marked(args, args)
    except FileNotFoundError:
        return {"items": [], "is_whole": True}
    items: list[list[Any]] = []
    room = _MAX_PAGE_BYTES
    try:
        for name in _names(folder):
            if name <= args["after"]:
                continue
            item = _listed(folder, name)
            if item is None:
                continue
            room -= len(json.dumps(item))
            if room < 0 and items:
                return {"items": items, "is_whole": False}
            items.append(item)
    finally:
        os.close(folder)
    return {"items": items, "is_whole": True}


def _names(folder: int) -> list[str]:
    names = sorted(os.listdir(folder))
    foreign = [name for name in names if not _NAME.fullmatch(name)]
    left_out = set(foreign[_MAX_FOREIGN:])
    return [name for name in names if name not in left_out]


def _listed(folder: int, name: str) -> list[Any] | None:
    """None for what went meanwhile."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        size, is_ours = found.st_size, bool(_NAME.fullmatch(name)) and is_plain(found)
        if is_ours and name.endswith(".qcow2"):
            descriptor = open_file(folder, name, os.O_RDONLY)
            try:
                # One that was cut off within its header is shown at the size it has.
                size = header_size(descriptor, name, "wrong_size") if is_qcow2(descriptor) else size
            finally:
                os.close(descriptor)
    except FileNotFoundError:
        return None
    return [name, size, found.st_blocks * 512, is_ours]


def _open_marked(args: dict[str, Any], extent: dict[str, Any], *, is_made: bool = False) -> int:
    """A descriptor of the folder `volumes`, made first with is_made. Raises JobFault marker_missing, marker_mismatch."""
    base = open_base(extent)
    try:
        shown = os.path.dirname(str(extent["folder"]))
        with naming(shown):
            _refuse_unmarked(base, str(args["marker_name"]), args["marker"], shown)
        if is_made:
            _make_folder(base, extent)
        return open_folder_in(base, extent)
    finally:
        os.close(base)


def _refuse_unmarked(base: int, marker_name: str, ours: dict[str, str], shown: str) -> None:
    answer = marker_in(base, marker_name, ours)
    if answer["marker"] == "missing":
        raise JobFault("marker_missing", f"{shown} has no marker of this backend any more")
    if answer["marker"] == "other":
        # What lies on a share was written by anybody: only what looks like an id is repeated.
        other = answer["found"].get("backend_id", "")
        whose = f"is that of backend {other}" if _SHOWN_ID.fullmatch(other) else "cannot be read"
        raise JobFault("marker_mismatch", f"the marker in {shown} {whose}", remedy=_LOOK_WHOSE)


def _make_folder(base: int, extent: dict[str, Any]) -> None:
    name = os.path.basename(str(extent["folder"]))
    with naming(str(extent["folder"])), contextlib.suppress(FileExistsError):
        os.mkdir(name, _FOLDER_MODE, dir_fd=base)
        fsync_folder(base)
    folder = open_folder_in(base, extent)
    try:
        # mkdir's mode is less what the umask takes away. Some servers refuse the change, and have modes of their own.
        if stat.S_IMODE(os.fstat(folder).st_mode) & _FOLDER_MODE != _FOLDER_MODE:
            with contextlib.suppress(PermissionError):
                os.fchmod(folder, _FOLDER_MODE)
    finally:
        os.close(folder)


def _make(folder: int, descriptor: int, extent: dict[str, Any], origin: dict[str, Any] | None) -> bool:
    """Whether the file, whatever was in it, has the origin's content now; else it is empty. It is gone after a failure."""
    try:
        with naming(path_of(extent)), _refusing_size(extent, int(extent["size_bytes"])):
            is_filled = origin is not None and _clone(descriptor, extent, origin)
            if not is_filled:
                make_empty(descriptor, extent)
            os.fsync(descriptor)
            fsync_folder(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(extent["name"]), dir_fd=folder)
        raise
    return is_filled


def _open_or_make(folder: int, extent: dict[str, Any]) -> tuple[int, bool]:
    """A descriptor of the file, and whether it was made by this call."""
    name, shown = str(extent["name"]), path_of(extent)
    try:
        return open_file(folder, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, shown=shown), True
    except FileExistsError:
        return open_file(folder, name, os.O_RDWR, shown=shown), False


def _clone(descriptor: int, extent: dict[str, Any], origin: dict[str, Any]) -> bool:
    """The file has the origin's content at its own size; False, and it is anything, where the storage cannot share blocks."""
    with opened(origin, os.O_RDONLY) as origin_fd:
        size = _whole_size(origin_fd, origin)
        if size != origin["size_bytes"]:
            detail = f"{path_of(origin)} has {size} bytes, and {origin['size_bytes']} is its size"
            raise JobFault("wrong_size", detail, remedy=RESTORE)
        os.ftruncate(descriptor, 0)
        if not clone(origin_fd, descriptor):
            return False
    size = _size(descriptor, extent)
    if size > extent["size_bytes"]:
        detail = f"{path_of(origin)} has {size} bytes, and {path_of(extent)} only {extent['size_bytes']}"
        raise JobFault("wrong_size", detail)
    if size < extent["size_bytes"]:
        change_size(descriptor, extent, extent["size_bytes"])
    return True


def _has_size(descriptor: int, extent: dict[str, Any]) -> bool:
    if extent["format"] == "qcow2" and not is_qcow2(descriptor):
        return False
    return _size(descriptor, extent) == int(extent["size_bytes"])


def _size(descriptor: int, extent: dict[str, Any]) -> int:
    if extent["format"] == "raw":
        return os.fstat(descriptor).st_size
    refuse_references(descriptor, path_of(extent), "wrong_size")
    return header_size(descriptor, path_of(extent), "wrong_size")


def _whole_size(descriptor: int, extent: dict[str, Any]) -> int:
    """See _size. Raises JobFault wrong_size for a qcow2 that was cut short, too."""
    size = _size(descriptor, extent)
    if extent["format"] == "qcow2":
        refuse_cut(descriptor, path_of(extent), "wrong_size")
    return size


@contextlib.contextmanager
def _refusing_size(extent: dict[str, Any], size_bytes: int) -> Generator[None]:
    """Raises JobFault unsupported where the file system has no file of that size."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        detail = f"{path_of(extent)} cannot have {size_bytes} bytes"
        raise JobFault("unsupported", detail, remedy=_ASK_FOR_LESS) from None


def _refuse_name(extent: dict[str, Any]) -> None:
    match = _NAME.fullmatch(str(extent["name"]))
    if match is None or match[2] != extent["format"]:
        raise ValueError(f"{extent['name']} is no name of a volume's file")


FILE_JOBS: tuple[Job, ...] = tuple(
    map(
        with_faults,
        (
            make_volume_file,
            look_at_volume_file,
            identify_volume_file,
            settle_volume_file,
            resize_volume_file,
            erase_volume_file,
            list_volume_files,
        ),
    )
)
