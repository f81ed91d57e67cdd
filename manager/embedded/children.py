"""Processes that die with us: started from the main thread, with a death signal, in a process group of their own."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from manager.embedded.errors import StartError
from manager.embedded.identity import Identity
from manager.embedded.stopping import never

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PARENT_GONE = 111
_POLL_S = 0.002  # both servers are ready within 30 ms (BUS.md 1)
_KILLED_WAIT_S = 2


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    death_signal: signal.Signals,
    identity: Identity | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = "/",
    keep_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """A child whose output goes to the end of `log`. It gets `death_signal` when we die, however we die.

    keep_fds: open in the child too (the lock that shows that it still lives).
    The kernel sends the signal when the *thread* that forked ends, hence the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: the death signal follows the thread")
    uid, gid = (identity.switch if identity else None) or (None, None)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as output:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            preexec_fn=_before_exec(death_signal, identity),
            # A Ctrl-C goes to the terminal's whole group; the children are to be stopped by us, in order.
            process_group=0,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            pass_fds=tuple(keep_fds),
        )


def wait_until(
    is_so: Callable[[], bool],
    *,
    timeout_s: float,
    progress: Callable[[], object] | None = None,
    check: Callable[[], None] = never,
    poll_s: float = _POLL_S,
) -> bool:
    """Whether it came true; the time runs anew whenever what `progress` returns changes. `check` may raise."""
    seen = progress() if progress else None
    deadline = time.monotonic() + timeout_s
    while not is_so():
        check()
        if progress and (now := progress()) != seen:
            seen, deadline = now, time.monotonic() + timeout_s
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def finish(
    process: subprocess.Popen[bytes], *, timeout_s: float, stdin: bytes = b"", check: Callable[[], None] = never
) -> bool:
    """Whether it ended in time by itself; it has ended in any case. stdin: at most what a pipe holds."""
    try:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(stdin)
        return wait_until(lambda: process.poll() is not None, timeout_s=timeout_s, check=check)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]) -> int | None:
    """The exit code after the signals, each with its seconds of patience, then SIGKILL; None if it outlives that."""
    for number, patience_s in (*steps, (signal.SIGKILL, _KILLED_WAIT_S)):
        if process.poll() is not None:
            break
        process.send_signal(number)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
    return process.poll()


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, at most 16 KiB of it; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="backslashreplace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def size(log: Path) -> int:
    """The log's length: a server that recovers shows its progress by writing."""
    return log.stat().st_size if log.exists() else 0


def died(name: str, process: subprocess.Popen[bytes], log: Path) -> StartError:
    return StartError(f"{name} ended with exit code {process.returncode} before it was ready", log=log)


def _before_exec(death_signal: signal.Signals, identity: Identity | None) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    enter = identity.enter() if identity else None

    def before_exec() -> None:
        # Last of all, after setuid and the user namespace: the kernel forgets the signal when credentials change.
        if enter is not None:
            enter()
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(_PARENT_GONE)

    return before_exec
