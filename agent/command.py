"""The one place where tools are started: argv, no shell, own session, a deadline that is kept.

Secrets are never in argv; so argv may be logged, at debug. A tool that does not die of SIGKILL is
stuck in the kernel: it is abandoned and reported, never waited for.

Not asyncio's own subprocesses: until Python 3.13 their wait() also waits for the pipes to close, and a
daemon that a tool started (mount.nfs starts rpc.statd) may hold those for ever (bpo-119710).
"""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from agent.drivers.base import CommandResult
from agent.errors import AgentFault
from agent.packages import how_to_install
from schemas.faults import FaultCode

log = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 64 * 1024
#: Of a failed tool's stderr, in the log at debug level.
MAX_LOGGED_CHARS = 1000
#: After the kill. Longer would only delay the news that the process is stuck.
KILL_GRACE_S = 2.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ToolRunner:
    """Runs tools on this host; satisfies `Commands`."""

    def __init__(self, path: str = _PATH) -> None:
        self._env = {"PATH": path, "LC_ALL": "C", "HOME": "/root"}
        self._abandoned: set[_Child] = set()

    @property
    def abandoned_count(self) -> int:
        """Processes that outlived their kill and still exist."""
        return len(self._abandoned)

    async def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> CommandResult:
        """See `Commands.run`. When the caller is cancelled, the whole group is killed likewise."""
        started = time.monotonic()
        child = _Child(argv, stdin, {**self._env, **(env or {})})
        try:
            if not await child.ends_within(timeout_s):
                raise AgentFault.of(
                    FaultCode.TIMED_OUT, f"{argv[0]} did not end within {timeout_s:g} s", is_retryable=True
                )
        finally:
            if not child.has_ended:
                log.debug("tool killed", extra={"argv": list(argv), "duration_s": round(time.monotonic() - started, 3)})
                child.kill()
                self._abandoned.add(child)
                child.ended.add_done_callback(lambda _: self._abandoned.discard(child))
                if not await child.ends_within(KILL_GRACE_S):
                    log.error("tool abandoned: it does not die", extra={"argv": list(argv), "pid": child.pid})
        duration_s = time.monotonic() - started
        facts: dict[str, object] = {
            "argv": list(argv),
            "exit_code": child.exit_code,
            "duration_s": round(duration_s, 3),
        }
        if child.exit_code != 0:
            facts["stderr"] = child.stderr.text()[:MAX_LOGGED_CHARS]
        log.debug("tool ended", extra=facts)
        return CommandResult(tuple(argv), child.exit_code, child.stdout.text(), child.stderr.text(), duration_s)


class _Child:
    """One started tool; `ended` is done when it has been reaped, whoever still holds its pipes."""

    def __init__(self, argv: Sequence[str], stdin: bytes | None, env: Mapping[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._popen = _start(argv, stdin, env)
        self.pid = self._popen.pid
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.stdout = _Output(self._loop, self._popen.stdout.fileno())
        self.stderr = _Output(self._loop, self._popen.stderr.fileno())
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def has_ended(self) -> bool:
        return self.ended.done()

    @property
    def exit_code(self) -> int:
        """Below 0: the signal that ended it."""
        assert self._popen.returncode is not None
        return self._popen.returncode

    async def ends_within(self, timeout_s: float) -> bool:
        done, _ = await asyncio.wait({self.ended}, timeout=timeout_s)
        return bool(done)

    def kill(self) -> None:
        """SIGKILL to its whole group; it has not been reaped, so the number cannot be another's."""
        os.killpg(self.pid, signal.SIGKILL)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._popen.wait()
        for output, pipe in ((self.stdout, self._popen.stdout), (self.stderr, self._popen.stderr)):
            output.finish()
            assert pipe is not None
            pipe.close()
        self.ended.set_result(None)


class _Output:
    """The first 64 KiB of a pipe; the rest is read and dropped, so that the tool does not block on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor = descriptor
        self._kept = bytearray()
        loop.add_reader(descriptor, self._read)

    def text(self) -> str:
        return self._kept.decode(errors="backslashreplace")

    def finish(self) -> None:
        """What lies in the pipe now is read; what a surviving grandchild may add is not waited for."""
        for _ in range(4):
            if not self._read():
                break
        self._loop.remove_reader(self._descriptor)

    def _read(self) -> bool:
        try:
            chunk = os.read(self._descriptor, MAX_OUTPUT_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._descriptor)
        self._kept += chunk[: MAX_OUTPUT_BYTES - len(self._kept)]
        return bool(chunk)


def _start(argv: Sequence[str], stdin: bytes | None, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    agent_pid = os.getpid()
    # A file in memory instead of a pipe: a tool that does not read its input blocks nobody.
    source = os.memfd_create("stdin", os.MFD_CLOEXEC) if stdin is not None else subprocess.DEVNULL
    try:
        if stdin is not None:
            os.write(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
        return subprocess.Popen(
            list(argv),
            executable=_find(argv[0], env["PATH"]),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            bufsize=0,
            start_new_session=True,
            # After kill -9 of the agent nothing may work on behind its successor's back.
            preexec_fn=lambda: _die_with(agent_pid),
        )
    except (FileNotFoundError, PermissionError) as error:
        raise AgentFault.of(
            FaultCode.TOOL_MISSING, f"{argv[0]} cannot be started on this host", how_to_install(argv[0])
        ) from error
    finally:
        if stdin is not None:
            os.close(source)


def _find(tool: str, path: str) -> str:
    """Popen looks in the agent's own PATH, not in the one that the tool is given."""
    if "/" in tool:
        return tool
    for folder in path.split(":"):
        candidate = f"{folder}/{tool}"
        if os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError(tool)


def _die_with(parent_pid: int) -> None:
    """Runs between fork and exec: SIGKILL when the agent's main thread ends (prctl(2)); too late if it already has."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(127)
