"""The zygote: a small process that forks a child for every job and kills it on request.

    python -S -m agent.worker_main CONTROL_FD AGENT_PID JOBS_MODULE

Why: a job that touches a dead mount may hang in the kernel beyond any signal. It hangs in a process
of its own, and since this one is its parent, a kill cannot hit a stranger that got its number. Forking
from here costs about a millisecond; starting a Python costs thirty.

Control socket (SOCK_SEQPACKET), JSON: {"run": id, "job": name, "args": {…}} with the write end of a pipe;
{"kill": id}. The child writes its process id on a line, then one
JSON object, and ends: {"answer": {…}} | {"errno": n, "text": s, "filename": s|null} | {"failed": s}.
This file imports only the standard library: what it holds is copied into every child.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

MAX_REQUEST_BYTES = 128 * 1024
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

Job = Callable[[dict[str, Any]], dict[str, Any]]


def main() -> None:
    control_fd, agent_pid, module = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    die_with_parent(agent_pid)
    jobs: Mapping[str, Job] = importlib.import_module(module).JOBS
    # A collection in a child would write to every object and so copy every page.
    gc.disable()
    gc.freeze()
    with socket.socket(fileno=control_fd) as control:
        serve(control, jobs)


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL when the parent ends (prctl(2)), also if it ended before this call."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def serve(control: socket.socket, jobs: Mapping[str, Job]) -> None:
    """Returns when the agent has closed its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, _noticed)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        _reap(children)
        if control.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            if not message:
                return
            request = json.loads(message)
            if "kill" in request:
                _kill(children, request["kill"])
                continue
            children[request["run"]] = _fork(control, jobs, request, descriptors[0])
            # Closed here at once, so that no later child inherits it: its end is the job's end.
            os.close(descriptors[0])


def _fork(control: socket.socket, jobs: Mapping[str, Job], request: dict[str, Any], result_fd: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    # From here on in the child, which leaves by _exit alone.
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        die_with_parent(parent)
        _write_all(result_fd, f"{os.getpid()}\n".encode())
        _write_all(result_fd, json.dumps(run_job(jobs, request["job"], request["args"])).encode())
    finally:
        os._exit(0)


def run_job(jobs: Mapping[str, Job], name: str, args: dict[str, Any]) -> dict[str, Any]:
    """The job's outcome as it goes over the pipe. This is the child's edge, so every exception ends here."""
    try:
        return {"answer": jobs[name](args)}
    except OSError as error:
        filename = str(error.filename) if error.filename else None
        return {"errno": error.errno, "text": error.strerror or "", "filename": filename}
    except Exception as error:  # noqa: BLE001 - reported to the agent, which logs it
        return {"failed": f"{type(error).__name__}: {error}"}


def _noticed(_number: int, _frame: object) -> None:
    """A signal without a handler would not reach the wake-up descriptor."""


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _kill(children: Mapping[int, int], job_id: int) -> None:
    """Only what is ours and not yet reaped; so the number is still the child's."""
    if job_id in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[job_id], signal.SIGKILL)


def _reap(children: dict[int, int]) -> None:
    for job_id, pid in list(children.items()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            del children[job_id]


if __name__ == "__main__":
    main()
