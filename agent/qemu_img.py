"""Runs qemu-img from within a worker: it dies with the worker, tells how far it is, and its words become an errno.

It is given descriptors, under the same numbers here and there, and opens them as `/proc/self/fd/N`: so it reads and writes
what was opened and looked at before, whatever a name has become since.
"""

import contextlib
import errno
import json
import os
import re
import select
import stat
from collections.abc import Generator
from typing import IO, Any, NamedTuple

from agent.job_io import JobFault, Progress
from agent.worker_main import die_with_parent

_TOOL = "qemu-img"
_PATH = "/usr/local/bin:/usr/bin:/bin"
#: Bytes of what it says that are read, from the end.
_MAX_OUTPUT_BYTES = 64 * 1024
#: Characters of its own words in an error.
_MAX_WORDS = 300
#: How often a long run is looked at; milliseconds.
_LOOK_EVERY_MS = 100
#: Bytes that it may read and write before what it wrote is brought to the storage: so the flush at the end is short, and what
#: is told of its progress is true.
_FLUSH_EVERY_BYTES = 256 * 1024 * 1024
_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")
#: What it says, and the errno that it had: the words of strerror(3) in the C locale, and of its locks (QEMU 7.2).
_ERRNOS = (
    (re.compile(r"No locks available"), errno.ENOLCK),
    (re.compile(r"Failed to (get|lock)|Is another process using the image"), errno.EBUSY),
    (re.compile(r"No space left on device"), errno.ENOSPC),
    (re.compile(r"Disk quota exceeded"), errno.EDQUOT),
    (re.compile(r"File too large"), errno.EFBIG),
    (re.compile(r"Input/output error"), errno.EIO),
    (re.compile(r"Read-only file system"), errno.EROFS),
    (re.compile(r"Stale file handle"), errno.ESTALE),
    (re.compile(r"Permission denied|Operation not permitted"), errno.EACCES),
    (re.compile(r"Host is down"), errno.EHOSTDOWN),
    (re.compile(r"Device or resource busy"), errno.EBUSY),
    (re.compile(r"Cannot allocate memory"), errno.ENOMEM),
)
#: How it names what it was given; nobody knows these names.
_NAMES = re.compile(r"'?(json:\{.*\}|/proc/self/fd/\d+)'?:? ?")


class Limits(NamedTuple):
    """What a run may take whose input may be anybody's."""

    memory_bytes: int
    processor_s: int


class Run(NamedTuple):
    """How it ended. exit_code below 0: the signal that ended it."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """Its last line of complaint."""
        lines = self.stderr.strip().splitlines()
        if self.exit_code < 0 or not lines:
            return f"it ended with {self.exit_code}"
        return _NAMES.sub("the image ", lines[-1].removeprefix(f"{_TOOL}: ")).strip()[:_MAX_WORDS]

    @property
    def errno(self) -> int | None:
        """What its words mean; None where they mean none. The last ones count: before them it may tell of a clean-up that failed too."""
        lines = reversed(self.stderr.splitlines())
        return next((number for line in lines for pattern, number in _ERRNOS if pattern.search(line)), None)

    def refuse_failure(self, shown: str) -> None:
        """Raises OSError: with the errno that its words mean, else EINVAL and its words. shown: what it worked on."""
        if self.exit_code == 0:
            return
        if self.errno is not None:
            raise OSError(self.errno, os.strerror(self.errno), shown)
        raise OSError(errno.EINVAL, f"{_TOOL} failed: {self.words}", shown)


def node(descriptor: int, extent: dict[str, Any]) -> str:
    """The extent as an argument, to be opened as its format and as nothing else, without a backing file.

    Of a device no more than the volume has: an LV may be larger than its volume.
    """
    is_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
    protocol = {"driver": "host_device" if is_device else "file", "filename": f"/proc/self/fd/{descriptor}"}
    words: dict[str, Any] = {"driver": extent["format"], "file": protocol}
    if extent["format"] == "qcow2":
        words["backing"] = None
    elif is_device:
        words["size"] = min(int(extent["size_bytes"]), os.lseek(descriptor, 0, os.SEEK_END))
    return f"json:{json.dumps(words)}"


def run(
    arguments: list[str],
    descriptors: tuple[int, ...],
    *,
    progress: Progress | None = None,
    total_bytes: int = 0,
    flushed_fd: int = -1,
    limits: Limits | None = None,
) -> Run:
    """How it ended, whatever the exit code. Raises JobFault tool_missing, and OSError of a flush.

    progress, total_bytes: of a run with -p. flushed_fd: what it writes to.
    """
    # Heavy imports are the job's: the zygote's own memory is copied into every worker.
    import resource
    import subprocess

    parent = os.getpid()

    def prepare() -> None:
        die_with_parent(parent)
        if limits is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
            resource.setrlimit(resource.RLIMIT_CPU, (limits.processor_s, limits.processor_s))

    with _memory_file("stdout") as stdout, _memory_file("stderr") as stderr:
        try:
            process = subprocess.Popen(
                [_TOOL, *arguments], executable=_find(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                pass_fds=descriptors, env={"PATH": _PATH, "LC_ALL": "C", "HOME": "/root"}, preexec_fn=prepare,
            )  # fmt: skip
        except (FileNotFoundError, PermissionError):
            raise JobFault("tool_missing", f"{_TOOL} cannot be started on this host", tool=_TOOL) from None
        try:
            _watch(process.pid, stdout, progress, total_bytes, flushed_fd)
        except BaseException:
            process.kill()
            raise
        finally:
            exit_code = process.wait()
        if progress is not None and exit_code == 0:
            progress.report(total_bytes, total_bytes)
        return Run(exit_code, _text(stdout), _text(stderr))


def _watch(pid: int, stdout: IO[bytes], progress: Progress | None, total_bytes: int, flushed_fd: int) -> None:
    """Returns when the process has ended."""
    handle = os.pidfd_open(pid)
    try:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        estimate, next_flush_bytes = _Estimate(total_bytes), _FLUSH_EVERY_BYTES
        while not ended.poll(_LOOK_EVERY_MS):
            moved_bytes = _moved(pid)
            if progress is not None:
                progress.report(estimate.done_bytes(_tail(stdout), moved_bytes), total_bytes)
            if flushed_fd >= 0 and moved_bytes >= next_flush_bytes:
                os.fdatasync(flushed_fd)
                os.posix_fadvise(flushed_fd, 0, 0, os.POSIX_FADV_DONTNEED)
                next_flush_bytes = moved_bytes + _FLUSH_EVERY_BYTES
    finally:
        os.close(handle)


class _Estimate:
    """How far a run with -p is. It tells whole percents, and one of a large image is longer than anybody's patience: between
    two of them what it has read and written is believed, up to the next.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._told_bytes = 0
        self._moved_then = 0

    def done_bytes(self, stdout: bytes, moved_bytes: int) -> int:
        """Below the total: that it is done, its end alone says."""
        told = [float(number) for number in _PERCENT.findall(stdout)]
        told_bytes = int(min(told[-1] if told else 0.0, 100.0) / 100 * self._total_bytes)
        if told_bytes > self._told_bytes:
            self._told_bytes, self._moved_then = told_bytes, moved_bytes
        since_bytes = min((moved_bytes - self._moved_then) // 2, self._total_bytes // 100)
        return max(0, min(self._told_bytes + since_bytes, self._total_bytes - 1))


def _moved(pid: int) -> int:
    """Bytes that the process has read and written by calls (proc(5), io); 0 where the kernel does not count them."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as lines:
            counts = dict(line.split(": ") for line in lines)
        return int(counts["rchar"]) + int(counts["wchar"])
    except (OSError, ValueError, KeyError):
        return 0


def _find() -> str:
    for folder in _PATH.split(":"):
        if os.access(f"{folder}/{_TOOL}", os.X_OK):
            return f"{folder}/{_TOOL}"
    raise FileNotFoundError(_TOOL)


@contextlib.contextmanager
def _memory_file(name: str) -> Generator[IO[bytes]]:
    """For a tool's output: it blocks nobody, and is read when it is wanted."""
    with os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "r+b", buffering=0) as file:
        yield file


def _tail(file: IO[bytes]) -> bytes:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), _MAX_OUTPUT_BYTES, max(0, size - _MAX_OUTPUT_BYTES))


def _text(file: IO[bytes]) -> str:
    return _tail(file).decode(errors="backslashreplace")
