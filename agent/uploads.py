"""Images that clients send to this host, chunk by chunk, into the agent's own folder.

`<volume id>.part` while it comes, `<volume id>.upload` once it is whole; the saga that fills an image from it makes it
`<volume id>.image` (sources.py). What nobody goes on with is swept away. All of it is on the host's own disk, so it is
written in threads: no chunk is worth the fork of a worker.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from agent.download_jobs import IMAGE_SUFFIX, PART_SUFFIX, UPLOAD_SUFFIX
from agent.errors import AgentFault
from agent.sources import RESERVE_BYTES
from agent.workers import FAULT_OF_ERRNO
from schemas.faults import FaultCode
from schemas.volume_rpc import MAX_AHEAD_BYTES

log = logging.getLogger(__name__)

#: Seconds after which what nobody has gone on with is gone, as where the manager that received it has died: a manager gives up on a
#: client that sends no chunk for 60 s, and on a host that takes none for 180 s.
ABANDONED_S = 600.0
#: The same of one that is whole, and that a saga is to take: it may wait for its turn among other work.
WHOLE_S = 3600.0
#: The same of an image that a saga has taken; no copy of one takes so long.
TAKEN_S = 24 * 3600.0
_SWEEP_EVERY_S = 60.0
#: After so many bytes they are brought to the disk, and dropped from the page cache: the end must not wait for all of them.
_FLUSH_BYTES = 64 * 1024 * 1024
_LIFETIMES_S = {PART_SUFFIX: ABANDONED_S, UPLOAD_SUFFIX: WHOLE_S, IMAGE_SUFFIX: TAKEN_S}


class Uploads:
    """folder: StateDir.downloads. clock: seconds, of any beginning; not that of the wall, which may be set."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        #: name -> (when the file was written last, by its own word; when that was seen first, by the clock)
        self._seen: dict[str, tuple[int, float]] = {}

    async def begin(self, volume_id: str, size_bytes: int) -> None:
        """See BeginUpload."""
        await _in_thread(self._begin, volume_id, size_bytes)

    async def receive(self, volume_id: str, offset: int, content: bytes) -> None:
        """See ReceiveChunk."""
        await _in_thread(self._receive, volume_id, offset, content)

    async def end(self, volume_id: str, size_bytes: int) -> None:
        """See EndUpload."""
        await _in_thread(self._end, volume_id, size_bytes)

    async def run(self) -> None:
        """Sweeps for ever."""
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except OSError:
                log.warning("sweep of uploads failed", exc_info=True)
            await asyncio.sleep(_SWEEP_EVERY_S)

    def sweep(self) -> None:
        """What nobody has gone on with for its time is gone, of downloads too."""
        now, seen = self._clock(), self._seen
        self._seen = {}
        for path in self._folder.iterdir():
            try:
                written_at = path.lstat().st_mtime_ns
            except FileNotFoundError:
                continue
            before, since = seen.get(path.name, (written_at, now))
            since = since if before == written_at else now
            if now - since >= _LIFETIMES_S.get(path.suffix, ABANDONED_S):
                log.warning("an upload was given up", extra={"file": path.name})
                path.unlink(missing_ok=True)
            else:
                self._seen[path.name] = (written_at, since)

    def _begin(self, volume_id: str, size_bytes: int) -> None:
        if any(self._path(volume_id, suffix).exists() for suffix in (UPLOAD_SUFFIX, IMAGE_SUFFIX)):
            raise AgentFault.of(FaultCode.IN_USE, "an image was uploaded under this id already")
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path(volume_id, PART_SUFFIX), flags, 0o600)
        try:
            if os.fstat(descriptor).st_size:
                raise AgentFault.of(FaultCode.IN_USE, "an upload is under way under this id already")
            self._refuse_full(descriptor, size_bytes)
        except AgentFault as error:
            if error.fault.code is FaultCode.NO_SPACE:
                self._path(volume_id, PART_SUFFIX).unlink()
            raise
        finally:
            os.close(descriptor)

    def _receive(self, volume_id: str, offset: int, content: bytes) -> None:
        descriptor = self._opened(volume_id)
        try:
            length = os.fstat(descriptor).st_size
            if offset > length + MAX_AHEAD_BYTES:
                raise AgentFault.of(
                    FaultCode.FAILED, f"a chunk for byte {offset} came, and only {length} bytes are here"
                )
            end = offset + len(content)
            self._refuse_full(descriptor, end - length)
            rest, at = memoryview(content), offset
            while rest:
                written = os.pwrite(descriptor, rest, at)
                rest, at = rest[written:], at + written
            if end // _FLUSH_BYTES > offset // _FLUSH_BYTES:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, end, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def _end(self, volume_id: str, size_bytes: int) -> None:
        whole = self._path(volume_id, UPLOAD_SUFFIX)
        if whole.exists() and whole.stat().st_size == size_bytes:
            return
        descriptor = self._opened(volume_id)
        try:
            length = os.fstat(descriptor).st_size
            if length != size_bytes:
                raise AgentFault.of(FaultCode.WRONG_SIZE, f"{size_bytes} bytes were sent, and {length} are here")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(self._path(volume_id, PART_SUFFIX), whole)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _opened(self, volume_id: str) -> int:
        """A descriptor of what has come so far; never makes the file, so that a chunk that was late finds nothing to write to."""
        try:
            return os.open(self._path(volume_id, PART_SUFFIX), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise AgentFault.of(
                FaultCode.SOURCE_UNREADABLE,
                "this host knows of no such upload: its agent was started again meanwhile, or it was given up",
                "Upload the image once more",
                is_retryable=True,
            ) from None

    def _refuse_full(self, descriptor: int, more_bytes: int) -> None:
        """Raises no_space where so many more would eat into the reserve: the host's own journal lies on that disk."""
        found = os.fstatvfs(descriptor)
        room = max(0, found.f_bavail * found.f_frsize - RESERVE_BYTES)
        if more_bytes > room:
            raise AgentFault.of(
                FaultCode.NO_SPACE,
                f"the upload needs {more_bytes} bytes more, and {self._folder} has room for {room}",
                "Free space on the disk of this host's agent, or choose another host",
            )

    def _path(self, volume_id: str, suffix: str) -> Path:
        return self._folder / f"{volume_id}{suffix}"


async def _in_thread(act: Callable[..., None], *args: object) -> None:
    """Done, in a thread. Raises AgentFault, of an OSError too."""
    acting: Coroutine[object, object, None] = asyncio.to_thread(act, *args)
    try:
        await acting
    except OSError as error:
        code = FAULT_OF_ERRNO.get(error.errno or 0, FaultCode.FAILED)
        raise AgentFault.of(code, f"the upload cannot be written: {error.strerror} ({error.filename})") from error
