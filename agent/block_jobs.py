"""The worker's jobs on block devices and sysfs; what holds for jobs.py holds here."""

import errno
import mmap
import os
import time
from typing import Any

from agent.job_io import refuse_other_mapping

#: Bytes; one page, so that it is also a legal O_DIRECT transfer.
BLOCK_BYTES = 4096
#: Bytes at either end of a device where whatever uses it has something: headers, superblocks, the first pages of a database.
_END_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024


def write_block(args: dict[str, Any]) -> dict[str, Any]:
    """A block of a shared device written, read back past every cache and compared. args: device, offset_bytes, dm_uuid.

    dm_uuid: what the opened device must be by the kernel's word; its name may have become another's since it was looked up.
    O_DIRECT and O_DSYNC, so that neither direction is answered by memory. Two hosts may have been given the same
    place in rare cases, hence a few tries before bytes that differ count as an error.
    """
    started = time.monotonic()
    with mmap.mmap(-1, BLOCK_BYTES) as page, mmap.mmap(-1, BLOCK_BYTES) as read:
        # Not O_CREAT: a device node that is missing must not become a file in /dev.
        descriptor = os.open(args["device"], os.O_RDWR | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC)
        try:
            refuse_other_mapping(descriptor, args["dm_uuid"], args["device"])
            for _ in range(3):
                page[:] = os.urandom(BLOCK_BYTES)
                if os.pwritev(descriptor, [page], args["offset_bytes"]) != BLOCK_BYTES:
                    raise OSError(errno.EIO, "short write", args["device"])
                if os.preadv(descriptor, [read], args["offset_bytes"]) == BLOCK_BYTES and read[:] == page[:]:
                    return {"latency_ms": round((time.monotonic() - started) * 1000, 3)}
        finally:
            os.close(descriptor)
    raise OSError(errno.EIO, "the storage gave back other bytes than were written", args["device"])


def read_block(args: dict[str, Any]) -> dict[str, Any]:
    """The device's first block is readable past the cache, within latency_ms. args: device."""
    started = time.monotonic()
    with mmap.mmap(-1, BLOCK_BYTES) as page:
        descriptor = os.open(args["device"], os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            if os.preadv(descriptor, [page], 0) != BLOCK_BYTES:
                raise OSError(errno.EIO, "short read", args["device"])
        finally:
            os.close(descriptor)
    return {"latency_ms": round((time.monotonic() - started) * 1000, 3)}


def look_for_data(args: dict[str, Any]) -> dict[str, Any]:
    """{"is_zero"}: whether the device holds nothing but zeros in its first and last 4 MiB, or anywhere if it is smaller than both.

    args: device, from_bytes (what lies before it is known and not looked at). Past the cache: another host may have written.
    """
    with mmap.mmap(-1, _CHUNK_BYTES) as chunk:
        descriptor = os.open(args["device"], os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            begin = int(args["from_bytes"]) // BLOCK_BYTES * BLOCK_BYTES
            if size <= begin:
                # What cannot be looked at must not pass for blank.
                raise OSError(errno.EIO, f"is {size} bytes long", args["device"])
            head_end = min(begin + _END_BYTES, size)
            spans = ((begin, head_end), (max(head_end, size - _END_BYTES), size))
            return {"is_zero": all(_is_zero(descriptor, *span, chunk, args["device"]) for span in spans)}
        finally:
            os.close(descriptor)


def write_sysfs(args: dict[str, Any]) -> dict[str, Any]:
    """The text is written to a sysfs attribute in one write; scans and removals wait for the device. args: path, text."""
    try:
        descriptor = os.open(args["path"], os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {"is_there": False}
    try:
        os.write(descriptor, args["text"].encode())
    finally:
        os.close(descriptor)
    return {"is_there": True}


def find_busy(args: dict[str, Any]) -> dict[str, Any]:
    """{"busy"}: the first of the block devices that somebody has open for himself, as a mount, a mapping or an array does; empty for none.

    args: devices. Read-only, so that closing it is no sign to udev to read it anew; a device that is gone or dead is not used.
    """
    for device in args["devices"]:
        try:
            descriptor = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return {"busy": device}
            if error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                raise
        else:
            os.close(descriptor)
    return {"busy": ""}


def _is_zero(descriptor: int, begin: int, end: int, chunk: mmap.mmap, device: str) -> bool:
    while begin < end:
        count = os.preadv(descriptor, [chunk], begin)
        if count == 0:
            raise OSError(errno.EIO, "short read", device)
        if chunk[:count] != bytes(count):
            return False
        begin += count
    return True


#: What jobs.py adds to its own.
BLOCK_JOBS = (write_block, read_block, look_for_data, write_sysfs, find_busy)
