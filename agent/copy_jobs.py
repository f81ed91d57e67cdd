"""Worker jobs that copy, blank and compare raw bytes: what is sparse stays sparse, and all of it is on stable storage at the end.

The first way that the storage has is taken: blocks that both files share (FICLONE), a copy that the server makes
(copy_file_range(2) within one network mount), else reading and writing. A file that is written to is emptied first,
so a copy that was killed is simply made once more.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Any

from agent.device_jobs import zero_out
from agent.file_users import refuse_users
from agent.job_io import (
    Job,
    JobFault,
    Progress,
    await_writeback,
    begin_writeback,
    forget_cached,
    naming,
    opened,
    path_of,
    refuse_no_room,
    with_faults,
)

#: Bytes read and written at once.
_CHUNK_BYTES = 4 * 1024 * 1024
#: Bytes that are found to be zero, or not, as one.
_GRAIN_BYTES = 64 * 1024
_ZEROS = bytes(_GRAIN_BYTES)
#: Bytes that a server is asked to copy at once: the answer comes when it has done so.
_SERVER_CHUNK_BYTES = 16 * 1024 * 1024
#: Bytes written before the storage is asked to take them. Waited for one window later, so it always has work and memory is not filled.
_WINDOW_BYTES = 32 * 1024 * 1024
#: Of linux/fs.h: _IOW(0x94, 9, int).
_FICLONE = 0x40049409
#: As mountinfo calls file systems of a server, which can copy by itself.
_SERVERS = frozenset("nfs nfs4 cifs smb3".split())  # noqa: SIM905 - no kind of backend is meant
#: The storage cannot do it in this way.
_UNSUPPORTED = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM))


def copy_bytes(args: dict[str, Any]) -> dict[str, Any]:
    """The target holds the source's bytes and zeros behind them, on stable storage; whatever it held before is gone.

    args: source and target (raw extents), progress. Answers {"done_bytes"}. Faults: wrong_size, in_use, no_space, source_unreadable
    where the source was changed meanwhile.
    """
    source, target, progress = args["source"], args["target"], Progress(args["progress"])
    with opened(source, os.O_RDONLY) as source_fd, opened(target, os.O_RDWR) as target_fd:
        size = length_of(source_fd, source)
        if size > target["size_bytes"]:
            detail = f"{path_of(source)} has {size} bytes, and {path_of(target)} only {target['size_bytes']}"
            raise JobFault("wrong_size", detail)
        end = size
        if is_device(target_fd):
            if not target["is_zero"]:
                end = os.lseek(target_fd, 0, os.SEEK_END)
            _Copy(source_fd, target_fd, args, size, progress, end).run()
            zero_out(target_fd, size, end, lambda at: progress.report(at, end))
        else:
            refuse_users(target, os.fstat(target_fd), only_writers=True)
            os.ftruncate(target_fd, 0)
            if not (stat.S_ISREG(os.fstat(source_fd).st_mode) and clone(source_fd, target_fd)):
                refuse_no_room(target_fd, taken_by(source_fd, size), path_of(target))
                os.ftruncate(target_fd, target["size_bytes"])
                _Copy(source_fd, target_fd, args, size, progress, end).run()
            os.ftruncate(target_fd, target["size_bytes"])
        os.fsync(target_fd)
        os.posix_fadvise(target_fd, 0, 0, os.POSIX_FADV_DONTNEED)
        progress.report(end, end)
    return {"done_bytes": size}


def zero_bytes(args: dict[str, Any]) -> dict[str, Any]:
    """The target, a raw extent, is at its size and reads as zeros from end to end, on stable storage. args: target, progress."""
    target, progress = args["target"], Progress(args["progress"])
    with opened(target, os.O_RDWR) as target_fd:
        if is_device(target_fd):
            end = os.lseek(target_fd, 0, os.SEEK_END)
            zero_out(target_fd, 0, end, lambda at: progress.report(at, end))
        else:
            refuse_users(target, os.fstat(target_fd), only_writers=True)
            os.ftruncate(target_fd, 0)
            os.ftruncate(target_fd, target["size_bytes"])
        os.fsync(target_fd)
    return {}


def compare_bytes(args: dict[str, Any]) -> dict[str, Any]:
    """Both hold the same bytes up to the source's size, and the target zeros behind them; read anew from the storage.

    args: source and target (raw extents), progress. Raises OSError EIO when they differ.
    """
    source, target, progress = args["source"], args["target"], Progress(args["progress"])
    with opened(source, os.O_RDONLY) as source_fd, opened(target, os.O_RDONLY) as target_fd:
        size, end = length_of(source_fd, source), os.lseek(target_fd, 0, os.SEEK_END)
        if size > end:
            raise OSError(errno.EIO, f"is shorter than {path_of(source)}", path_of(target))
        for descriptor in (source_fd, target_fd):
            forget_cached(descriptor)
        ours, theirs = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
        position = 0
        while position < end:
            # Where both have a hole there is nothing to read.
            ours_at = _next_data(source_fd, position, size)
            position = min(ours_at if ours_at < size else end, _next_data(target_fd, position, end))
            count = min(_CHUNK_BYTES, (size if position < size else end) - position)
            if count:
                if position < size:
                    _read_whole(source_fd, ours, position, count, path_of(source))
                else:
                    ours[:count] = bytes(count)
                _read_whole(target_fd, theirs, position, count, path_of(target))
                # Slices, which compare by memcmp(3); of views each byte would be compared as a number.
                if ours[:count] != theirs[:count]:
                    raise OSError(errno.EIO, f"the copy differs from {path_of(source)}", path_of(target))
            position += count
            progress.report(position, end)
    return {"done_bytes": end}


def clone(source_fd: int, target_fd: int) -> bool:
    """The target, an empty file, shares all blocks of the source and has its size; False where the storage cannot, and it is as it was."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def length_of(descriptor: int, extent: dict[str, Any]) -> int:
    """Bytes of a raw extent; of a device no more than the volume has, for an LV may be larger than its volume."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    return min(size, int(extent["size_bytes"])) if is_device(descriptor) else size


def taken_by(source_fd: int, size_bytes: int) -> int:
    """Bytes that a copy of the source takes at most; 0 of a device, which does not tell what of it is nothing but zeros."""
    found = os.fstat(source_fd)
    return min(found.st_blocks * 512, size_bytes) if stat.S_ISREG(found.st_mode) else 0


def is_device(descriptor: int) -> bool:
    return stat.S_ISBLK(os.fstat(descriptor).st_mode)


class _Copy:
    """One copy by reading and writing, or by the server, into a target at its size; a target that is a file is empty."""

    def __init__(
        self, source_fd: int, target_fd: int, args: dict[str, Any], size: int, progress: Progress, total_bytes: int
    ) -> None:
        self._source_fd, self._target_fd = source_fd, target_fd
        self._source, self._target = path_of(args["source"]), path_of(args["target"])
        self._size = size
        self._progress = progress
        self._total_bytes = total_bytes
        self._is_zero = not is_device(target_fd) or bool(args["target"]["is_zero"])
        self._buffer = bytearray(min(_CHUNK_BYTES, max(size, 1)))
        self._window = self._awaited = 0

    def run(self) -> None:
        """All bytes are copied, though not yet flushed."""
        by_server = _mount_of(self._source_fd) == _mount_of(self._target_fd) and _is_on_server(self._target_fd)
        position = 0
        while position < self._size:
            data = _next_data(self._source_fd, position, self._size)
            self._leave_out(position, data)
            position = data
            if position == self._size:
                break
            hole = _next_hole(self._source_fd, position, self._size)
            if by_server:
                position = self._let_server_copy(position, hole)
                by_server = position == hole
            else:
                position = self._copy_chunk(position, min(hole, position + len(self._buffer)))
            self._progress.report(position, self._total_bytes)

    def _let_server_copy(self, begin: int, end: int) -> int:
        """Up to where; before the end where the server will not go on."""
        while begin < end:
            try:
                count = os.copy_file_range(
                    self._source_fd, self._target_fd, min(_SERVER_CHUNK_BYTES, end - begin), begin, begin
                )
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return begin
                raise
            if count == 0:
                return begin
            begin += count
            self._progress.report(begin, self._total_bytes)
        return begin

    def _copy_chunk(self, begin: int, end: int) -> int:
        count = end - begin
        _read_whole(self._source_fd, self._buffer, begin, count, self._source)
        view = memoryview(self._buffer)
        for first, last, is_zeros in self._runs(count):
            if is_zeros:
                self._leave_out(begin + first, begin + last)
            else:
                with naming(self._target):
                    _write_whole(self._target_fd, view[first:last], begin + first)
        self._let_go(end)
        return end

    def _runs(self, count: int) -> Iterator[tuple[int, int, bool]]:
        """The buffer's content as runs of grains: where one begins and ends, and whether it is all zeros."""
        first = position = 0
        was_zeros = False
        while position < count:
            is_zeros = self._is_zeros(position, min(position + _GRAIN_BYTES, count))
            if is_zeros != was_zeros and position > first:
                yield first, position, was_zeros
                first = position
            was_zeros = is_zeros
            position = min(position + _GRAIN_BYTES, count)
        if first < count:
            yield first, count, was_zeros

    def _is_zeros(self, first: int, last: int) -> bool:
        # In place, by memcmp(3).
        return self._buffer.startswith(_ZEROS[: last - first], first)

    def _leave_out(self, begin: int, end: int) -> None:
        if begin < end and not self._is_zero:
            with naming(self._target):
                zero_out(self._target_fd, begin, end, lambda at: self._progress.report(at, self._total_bytes))

    def _let_go(self, end: int) -> None:
        """What was written is taken by the storage while the next is read. The source stays in memory: the next copy of an image is near."""
        if end - self._window < _WINDOW_BYTES and end < self._size:
            return
        with naming(self._target):
            begin_writeback(self._target_fd, self._window, end)
            if self._awaited < self._window:
                await_writeback(self._target_fd, self._awaited, self._window)
                os.posix_fadvise(self._target_fd, self._awaited, self._window - self._awaited, os.POSIX_FADV_DONTNEED)
        self._awaited, self._window = self._window, end


def _next_data(descriptor: int, begin: int, end: int) -> int:
    """Where from `begin` on something else than a hole is; the end where nothing is."""
    if begin >= end:
        return end
    try:
        return min(os.lseek(descriptor, begin, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        if error.errno in _UNSUPPORTED:  # a block device
            return begin
        raise


def _next_hole(descriptor: int, begin: int, end: int) -> int:
    try:
        return min(os.lseek(descriptor, begin, os.SEEK_HOLE), end)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return end
        raise


def _read_whole(descriptor: int, buffer: bytearray, begin: int, count: int, shown: str) -> None:
    view = memoryview(buffer)[:count]
    with naming(shown):
        while view:
            read = os.preadv(descriptor, [view], begin)
            if read == 0:
                raise OSError(errno.EIO, "ended while it was read", shown)
            view, begin = view[read:], begin + read


def _write_whole(descriptor: int, view: memoryview, begin: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, begin)
        view, begin = view[count:], begin + count


def _mount_of(descriptor: int) -> str:
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        return next(line.split()[1] for line in lines if line.startswith("mnt_id:"))


def _is_on_server(descriptor: int) -> bool:
    number = _mount_of(descriptor)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(line.startswith(f"{number} ") and line.rpartition(" - ")[2].split()[0] in _SERVERS for line in lines)


COPY_JOBS: tuple[Job, ...] = tuple(map(with_faults, (copy_bytes, zero_bytes, compare_bytes)))
