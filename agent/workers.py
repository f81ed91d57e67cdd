"""Jobs in worker processes: at most one a key, with a deadline, abandoned and counted when they hang.

A job that waits in the kernel at its deadline is `hung`, one that does anything else `timed_out`. The first may die of the kill
all the same (NFS lets it, a dead disk does not); it hangs again with the next probe.

The processes are children of a zygote (worker_main.py), which is started again when it dies. What is
touched in a job may hang; what is here never does.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import AgentFault
from agent.packages import how_to_install
from agent.worker_main import MAX_REQUEST_BYTES
from schemas.faults import FaultCode

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 256 * 1024
#: How long a killed child is given to go, so that a plain time-out is not called hung.
KILL_GRACE_S = 0.25
#: State of a process that waits in the kernel; killable waits are shown so, too (proc(5), stat, 3).
_UNINTERRUPTIBLE = "D"

FAULT_OF_ERRNO: dict[int, FaultCode] = {
    errno.ENOSPC: FaultCode.NO_SPACE,
    errno.EDQUOT: FaultCode.NO_SPACE,
    errno.EROFS: FaultCode.READ_ONLY,
    errno.ESTALE: FaultCode.STALE_HANDLE,
    errno.EACCES: FaultCode.PERMISSION_DENIED,
    errno.EPERM: FaultCode.PERMISSION_DENIED,
    errno.EIO: FaultCode.IO_ERROR,
    errno.ENOENT: FaultCode.PATH_NOT_FOUND,
    errno.ELOOP: FaultCode.PATH_NOT_FOUND,
    errno.ENAMETOOLONG: FaultCode.PATH_NOT_FOUND,
    errno.ENOTDIR: FaultCode.NOT_A_DIRECTORY,
    errno.EBUSY: FaultCode.IN_USE,
    errno.EFBIG: FaultCode.UNSUPPORTED,
    errno.EHOSTDOWN: FaultCode.SERVER_UNREACHABLE,
    errno.EHOSTUNREACH: FaultCode.SERVER_UNREACHABLE,
    errno.ENETUNREACH: FaultCode.SERVER_UNREACHABLE,
    errno.ECONNREFUSED: FaultCode.SERVER_UNREACHABLE,
    errno.ECONNRESET: FaultCode.SERVER_UNREACHABLE,
    errno.ECONNABORTED: FaultCode.SERVER_UNREACHABLE,
    errno.ENOTCONN: FaultCode.SERVER_UNREACHABLE,
    errno.ETIMEDOUT: FaultCode.SERVER_UNREACHABLE,
    # Of the kernel's cifs client: the share was withdrawn while it was mounted, at first and from then on (lab, 2026-11-28).
    errno.EREMCHG: FaultCode.SHARE_NOT_FOUND,
    errno.EAGAIN: FaultCode.SERVER_UNREACHABLE,
}


@dataclass
class _Slot:
    """What a key has going on. users: callers that run a job or wait. hung: the abandoned job's end."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    hung: "asyncio.Future[bytes] | None" = None


class WorkerPool:
    """Satisfies `Workers`. Use as an async context manager: leaving it ends the zygote and, with it, every child."""

    def __init__(self, jobs_module: str = "agent.jobs", *, state_of: Callable[[int], str] | None = None) -> None:
        """state_of: a process's state by proc(5); given by tests, for no test can make a process hang."""
        self._jobs_module = jobs_module
        self._state_of = state_of or _state_of
        self._zygote: _Zygote | None = None
        self._slots: dict[str, _Slot] = {}
        self._last_id = 0
        self._starting = asyncio.Lock()
        self._outstanding: dict[int, asyncio.Future[bytes]] = {}

    async def __aenter__(self) -> "WorkerPool":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._zygote is not None:
            await self._zygote.end()
        for answer in list(self._outstanding.values()):
            answer.cancel()

    @property
    def hung_count(self) -> int:
        """Jobs that outlived their deadline and still exist."""
        return sum(slot.hung is not None for slot in self._slots.values())

    @property
    def key_count(self) -> int:
        """Keys of which a job runs, waits or hangs."""
        return len(self._slots)

    @property
    def zygote_pid(self) -> int | None:
        """None until the first job."""
        return None if self._zygote is None else self._zygote.pid

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        """See `Workers.run`. timeout_s includes the wait for the key's earlier job. Cancelled: the job is killed."""
        slot = self._slots.setdefault(key, _Slot())
        slot.users += 1
        waits_in_kernel = False

        def on_abandoned(pid: int | None) -> None:
            nonlocal waits_in_kernel
            waits_in_kernel = pid is not None and self._state_of(pid) == _UNINTERRUPTIBLE

        try:
            async with asyncio.timeout(timeout_s), slot.lock:
                if slot.hung is not None:
                    raise AgentFault.of(
                        FaultCode.HUNG, "an earlier job on this storage is still stuck in the kernel", is_retryable=True
                    )
                return _outcome(job, await self._run_alone(job, args, key, on_abandoned))
        except TimeoutError as error:
            if waits_in_kernel:
                raise AgentFault.of(
                    FaultCode.HUNG, f"the storage did not answer within {timeout_s:g} s", is_retryable=True
                ) from error
            raise AgentFault.of(
                FaultCode.TIMED_OUT, f"the storage did not answer within {timeout_s:g} s", is_retryable=True
            ) from error
        finally:
            slot.users -= 1
            self._drop_if_idle(key)

    async def _run_alone(
        self, job: str, args: Mapping[str, Any], key: str, on_abandoned: Callable[[int | None], None]
    ) -> bytes:
        job_id, pipe = await self._launch(job, args)
        try:
            await asyncio.wait({pipe.ended})
        except asyncio.CancelledError:
            on_abandoned(pipe.pid)
            await self._abandon(job_id, pipe.ended, key)
            raise
        return pipe.ended.result()

    async def _launch(self, job: str, args: Mapping[str, Any]) -> "tuple[int, _Pipe]":
        self._last_id += 1
        job_id = self._last_id
        request = json.dumps({"run": job_id, "job": job, "args": dict(args)}).encode()
        if len(request) > MAX_REQUEST_BYTES:
            raise ValueError(f"the arguments of job {job} are too long")
        for is_last_try in (False, True):
            zygote = await self._living_zygote()
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                # The child gets a blocking pipe: an answer may be longer than a pipe's buffer.
                os.set_blocking(write_end, True)
                zygote.send(request, write_end)
            except OSError:
                os.close(read_end)
                zygote.kill()
                if is_last_try:
                    raise AgentFault.of(
                        FaultCode.FAILED, "the worker process cannot be reached", is_retryable=True
                    ) from None
            else:
                pipe = _Pipe(read_end)
                self._outstanding[job_id] = pipe.ended
                pipe.ended.add_done_callback(lambda _: self._outstanding.pop(job_id, None))
                return job_id, pipe
            finally:
                os.close(write_end)
        raise AssertionError("the second try returns or raises")

    async def _living_zygote(self) -> "_Zygote":
        async with self._starting:
            if self._zygote is None or self._zygote.has_ended:
                self._zygote = await _Zygote.start(self._jobs_module)
            return self._zygote

    async def _abandon(self, job_id: int, answer: "asyncio.Future[bytes]", key: str) -> None:
        """The child is killed; until its pipe closes, the key counts as hung."""
        self._slots[key].hung = answer
        answer.add_done_callback(lambda _: self._on_hung_end(key))
        if self._zygote is not None:
            with contextlib.suppress(OSError):
                self._zygote.send(json.dumps({"kill": job_id}).encode())
        done, _ = await asyncio.wait({answer}, timeout=KILL_GRACE_S)
        if not done:
            log.warning("worker hangs", extra={"hung_workers": self.hung_count})

    def _on_hung_end(self, key: str) -> None:
        self._slots[key].hung = None
        self._drop_if_idle(key)

    def _drop_if_idle(self, key: str) -> None:
        """Every preflight and every backend that is gone again had keys of its own, and none may stay for ever."""
        slot = self._slots[key]
        if slot.users == 0 and slot.hung is None:
            del self._slots[key]


class _Zygote:
    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self.has_ended = False
        # It never writes: readable means that it is gone.
        self._loop.add_reader(control, self._on_end)

    @classmethod
    async def start(cls, jobs_module: str) -> "_Zygote":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            # -S: without site, it stays small; so the path to our packages is given in the environment.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-S", "-m", "agent.worker_main", str(theirs.fileno()), str(os.getpid()), jobs_module,
                stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True,
                env={"PYTHONPATH": str(Path(__file__).parents[1]), "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        log.info("worker zygote started", extra={"pid": process.pid})
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: bytes, descriptor: int | None = None) -> None:
        """Raises OSError: it is gone, or has not read for a long time."""
        socket.send_fds(self._control, [message], [] if descriptor is None else [descriptor])

    def kill(self) -> None:
        """It ends, and so do its children (PDEATHSIG)."""
        self._close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        self.kill()
        await self._process.wait()

    def _on_end(self) -> None:
        log.error("worker zygote died", extra={"pid": self.pid})
        self._close()

    def _close(self) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        self._loop.remove_reader(self._control)
        self._control.close()


class _Pipe:
    """All that a child writes; `ended` has what follows its first line once every writer is gone. Closed then, or on cancel."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._content = bytearray()
        self.ended: asyncio.Future[bytes] = self._loop.create_future()
        self.ended.add_done_callback(self._close)
        self._loop.add_reader(descriptor, self._read)

    @property
    def pid(self) -> int | None:
        """The child's; None before it runs."""
        line, newline, _ = self._content.partition(b"\n")
        return int(line) if newline else None

    def _read(self) -> None:
        try:
            chunk = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        self._content.extend(chunk[: MAX_ANSWER_BYTES - len(self._content)])
        if not chunk:
            # Not left to the callback: until that runs, the pipe would go on reporting its end.
            self._loop.remove_reader(self._descriptor)
            self.ended.set_result(bytes(self._content.partition(b"\n")[2]))

    def _close(self, _: object) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)


def _state_of(pid: int) -> str:
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _outcome(job: str, content: bytes) -> dict[str, Any]:
    try:
        outcome: dict[str, Any] = json.loads(content)
    except ValueError:
        detail = "the worker process died before it could answer"
        raise AgentFault.of(FaultCode.FAILED, detail, is_retryable=True) from None
    if "answer" in outcome:
        answer = dict(outcome["answer"])
        if "fault" in answer:
            raise _fault_of(answer)
        return answer
    if "errno" in outcome:
        code = FAULT_OF_ERRNO.get(outcome["errno"], FaultCode.FAILED)
        name = errno.errorcode.get(outcome["errno"], str(outcome["errno"]))
        where = f"{outcome['filename']}: " if outcome["filename"] else ""
        raise AgentFault.of(code, f"{where}{outcome['text'] or name} ({name})")
    log.error("job raised", extra={"job": job, "error": outcome.get("failed")})
    raise AgentFault.of(FaultCode.FAILED, "internal error in a worker on the host")


def _fault_of(answer: Mapping[str, Any]) -> AgentFault:
    """What a job says went wrong (job_io.py, JobFault)."""
    tool = answer.get("tool")
    remedy = how_to_install(tool) if tool else answer.get("remedy")
    is_retryable = bool(answer.get("is_retryable"))
    return AgentFault.of(FaultCode(answer["fault"]), answer["detail"], remedy, is_retryable=is_retryable)
