"""`stowage up` in the background, and the end of the one that runs on a data folder, in whichever ground."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from manager.embedded import children
from manager.embedded.errors import AlreadyRunning, StartError
from manager.embedded.layout import Layout, rotate
from manager.embedded.lock import holder

_READY_TIMEOUT_S = 300  # a recovery of PostgreSQL may take its time; a start that fails ends by itself
_POLL_S = 0.02
_STOP_TIMEOUT_S = 15
_KILLED_TIMEOUT_S = 5


def start(layout: Layout, arguments: Sequence[str]) -> dict[str, Any]:
    """The content of ready.json once a `stowage up` with these arguments runs by itself. Raises StartError."""
    layout.create()
    running = holder(layout.data)
    if running is not None:
        raise AlreadyRunning(layout.data, running)
    rotate(layout.own_log)
    with open(os.open(layout.own_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "manager.cli", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        ready = read_ready(layout)
        if ready is not None and ready["pids"]["supervisor"] == process.pid:
            return ready
        time.sleep(_POLL_S)
    children.stop(process, (signal.SIGTERM, _STOP_TIMEOUT_S))
    raise StartError("stowage did not start", log=layout.own_log)


def read_ready(layout: Layout) -> dict[str, Any] | None:
    """ready.json, or None where nothing is ready."""
    try:
        ready: dict[str, Any] = json.loads(layout.ready.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return ready


def stop(layout: Layout) -> int | None:
    """Nothing runs on the folder any more; the pid of what did, None if nothing did. Raises StartError."""
    pid = holder(layout.data)
    if pid is None:
        if (layout.data / "lock").exists():  # else the folder is not ours
            layout.ready.unlink(missing_ok=True)  # of one that was killed
        return None
    if pid == 0:
        raise StartError(f"{layout.data} is held by a process of somebody else; stop it as that user")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        # The pid was looked up before the handle was made: only now is it certain that they are one.
        if holder(layout.data) != pid:
            return pid
        for number, patience_s in ((signal.SIGTERM, _STOP_TIMEOUT_S), (signal.SIGKILL, _KILLED_TIMEOUT_S)):
            signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], patience_s)[0]:
                return pid
    except ProcessLookupError:
        return pid
    except PermissionError as error:
        raise StartError(f"process {pid} belongs to somebody else; stop it as that user") from error
    finally:
        os.close(process)
    raise StartError(f"process {pid} does not end")
