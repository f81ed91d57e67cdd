"""The worker's jobs on the devices of LVs: zeroed, discarded, waited for; what holds for jobs.py holds here.

An extent is a dict of agent.volumes.Extent; a device that is not the mapping of its dm_uuid is refused (job_io.py).
"""

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

from agent.job_io import JobFault, Progress, opened, path_of, with_faults

#: ioctls of linux/fs.h: _IO(0x12, 119) and _IO(0x12, 127); their argument is where to begin and how many bytes, 64 bits each.
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_RANGE = struct.Struct("=QQ")
#: Bytes of one call, so that progress moves and a kill is heeded. The kernel writes real zeros where the target has no command for it.
_ZERO_BYTES = 32 * 1024 * 1024
_DISCARD_BYTES = 256 * 1024 * 1024
#: The largest block that a LUN has, of which the ioctls want whole ones.
_BLOCK_BYTES = 4096
_SECTOR_BYTES = 512
_POLL_S = 0.05
_SYS_BLOCK = "/sys/dev/block"


def zero_device(args: dict[str, Any]) -> dict[str, Any]:
    """The range reads as zeros, on stable storage. args: extent, from_bytes, to_bytes (the device's end, or in whole blocks), progress."""
    progress, begin, end = _range(args)
    with opened(args["extent"], os.O_RDWR) as descriptor:
        zero_out(descriptor, begin, end, lambda at: progress.report(at - begin, end - begin))
        os.fsync(descriptor)
    return {}


def discard_device(args: dict[str, Any]) -> dict[str, Any]:
    """The storage was told that it may forget the range. args: as for zero_device, in whole blocks. Raises JobFault unsupported."""
    progress, begin, end = _range(args)
    with opened(args["extent"], os.O_RDWR) as descriptor:
        try:
            _in_pieces(
                descriptor,
                _BLKDISCARD,
                (begin, end),
                _DISCARD_BYTES,
                lambda at: progress.report(at - begin, end - begin),
            )
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise JobFault(
                "unsupported",
                f"the storage below {path_of(args['extent'])} takes no discards",
                remedy="Let the target offer UNMAP for the LUN, or choose zero or none as the way to wipe",
            ) from error
        os.fsync(descriptor)
    return {}


def wait_for_node(args: dict[str, Any]) -> dict[str, Any]:
    """{"is_there"}: whether the path leads to the mapping of that UUID, or has begun to within timeout_s (udev makes the names).

    args: path, dm_uuid, timeout_s. Of one that is there also size_bytes, as the kernel has it, and is_suspended.
    """
    ends_s = time.monotonic() + float(args["timeout_s"])
    while True:
        folder = _folder_of(str(args["path"]))
        if folder and _word(folder, "dm/uuid") == args["dm_uuid"]:
            return {
                "is_there": True,
                "size_bytes": int(_word(folder, "size") or 0) * _SECTOR_BYTES,
                "is_suspended": _word(folder, "dm/suspended") == "1",
            }
        if time.monotonic() >= ends_s:
            return {"is_there": False}
        time.sleep(_POLL_S)


def zero_out(device_fd: int, begin: int, end: int, moved: Callable[[int], None]) -> None:
    """The device reads as zeros from `begin` to `end`, though not yet flushed; the kernel writes them where the device has no
    command for it. moved: called with where it has come to, piece by piece.
    """
    # A volume ends at a sector, which may lie within a block.
    head_end = min(end, -(-begin // _BLOCK_BYTES) * _BLOCK_BYTES)
    tail = max(head_end, end // _BLOCK_BYTES * _BLOCK_BYTES)
    _write_zeros(device_fd, begin, head_end)
    _in_pieces(device_fd, _BLKZEROOUT, (head_end, tail), _ZERO_BYTES, moved)
    _write_zeros(device_fd, tail, end)


def _range(args: dict[str, Any]) -> tuple[Progress, int, int]:
    return Progress(str(args["progress"])), int(args["from_bytes"]), int(args["to_bytes"])


def _in_pieces(device_fd: int, request: int, span: tuple[int, int], piece: int, moved: Callable[[int], None]) -> None:
    begin, end = span
    for position in range(begin, end, piece):
        count = min(piece, end - position)
        fcntl.ioctl(device_fd, request, _RANGE.pack(position, count))
        moved(position + count)


def _write_zeros(device_fd: int, begin: int, end: int) -> None:
    while begin < end:
        begin += os.pwrite(device_fd, bytes(end - begin), begin)


def _folder_of(path: str) -> str:
    """The device's folder in sysfs; empty while there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ""
    if not stat.S_ISBLK(found.st_mode):
        return ""
    return f"{_SYS_BLOCK}/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def _word(folder: str, name: str) -> str:
    """Empty for what is just going."""
    try:
        with open(f"{folder}/{name}", encoding="ascii") as text:
            return text.read().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


#: What jobs.py adds to its own.
DEVICE_JOBS = (with_faults(zero_device), with_faults(discard_device), wait_for_node)
