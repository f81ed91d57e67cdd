"""Watches the children of `stowage up`: what ends unasked starts again, later each time, and the logs stay small."""

import logging
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manager.embedded import children
from manager.embedded.errors import StartError
from manager.embedded.stopping import StopSignals

log = logging.getLogger(__name__)

_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 30.0
_SOUND_AFTER_S = 60.0  # a child that lived this long begins again with the shortest wait
_LOG_CHECK_S = 5.0
_LOG_MAX_BYTES = 10 * 1024 * 1024
_TERM_PATIENCE_S = 1.0
_POLL_MAX_MS = 60_000


@dataclass(kw_only=True, eq=False)
class Service:
    """One kind of child: how it is started, and what runs of it now.

    stop: its own way of stopping (the servers), when SIGTERM and a second of patience are not it.
    rest_after_kill_s: the least pause after an end by a signal. Somebody who kills an agent wants to see what a fleet
    does without it, so it comes back late; one that ended by itself comes back at once.
    """

    name: str
    log: Path
    spawn: Callable[[], subprocess.Popen[bytes]]
    stop: Callable[[], None] | None = None
    rest_after_kill_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff_s: float = _BACKOFF_FIRST_S
    restart_at: float | None = field(default=None)

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def start(self) -> subprocess.Popen[bytes]:
        """Its process, fresh."""
        self.restart_at = None
        self.started_at = time.monotonic()
        self.process = self.spawn()
        return self.process


class Supervisor:
    """Knows the services in the order in which they were started; lives in the main thread."""

    def __init__(self, logs: Path, *, stop_signals: StopSignals, on_restart: Callable[[], None]) -> None:
        """on_restart: called when a child has got a new pid."""
        self._logs = logs
        self._stop_signals = stop_signals
        self._services: list[Service] = []
        self._on_restart = on_restart

    def adopt(self, service: Service) -> None:
        """Watched from now on, and stopped by `stop`. The name's first word is its stage; a stage stops as one."""
        self._services.append(service)

    def first_dead(self) -> Service | None:
        """A service whose process has ended, while a start waits for something else."""
        return next((s for s in self._services if s.process and s.process.poll() is not None), None)

    def run(self) -> None:
        """Watches until a signal comes: then raises StopRequested."""
        next_log_check = time.monotonic()
        while True:
            self._stop_signals.check()
            now = time.monotonic()
            if now >= next_log_check:
                for path in self._logs.glob("*.log"):
                    trim(path, _LOG_MAX_BYTES)
                next_log_check = now + _LOG_CHECK_S
            for service in self._services:
                self._look_after(service, now)
            due = [s.restart_at for s in self._services if s.restart_at is not None]
            self._wait(min([next_log_check, *due]))

    def stop(self) -> None:
        """Every child is gone: agents, managers, NATS, PostgreSQL; those of one stage at once. Takes under 5 s."""
        while self._services:
            stage = _stage(self._services[-1])
            together = [service for service in self._services if _stage(service) == stage]
            self._services = [service for service in self._services if service not in together]
            _stop_together(together)

    def _look_after(self, service: Service, now: float) -> None:
        process = service.process
        if process is not None and process.poll() is not None:
            service.process = None
            if now - service.started_at > _SOUND_AFTER_S:
                service.backoff_s = _BACKOFF_FIRST_S
            is_killed = process.returncode is not None and process.returncode < 0
            pause_s = max(service.backoff_s, service.rest_after_kill_s if is_killed else 0.0)
            service.restart_at = now + pause_s
            facts = {"child": service.name, "exit_code": process.returncode, "restart_in_s": pause_s}
            log.warning("a child ended unasked and will be started again", extra=facts)
            service.backoff_s = min(service.backoff_s * 2, _BACKOFF_MAX_S)
        if service.restart_at is not None and now >= service.restart_at:
            try:
                service.start()
            except (OSError, StartError, subprocess.SubprocessError) as error:
                service.restart_at = now + service.backoff_s
                service.backoff_s = min(service.backoff_s * 2, _BACKOFF_MAX_S)
                log.error("a child could not be started again", extra={"child": service.name, "reason": str(error)})
            else:
                log.info("a child was started again", extra={"child": service.name, "pid": service.pid})
                self._on_restart()

    def _wait(self, until: float) -> None:
        """Until then, or until a child ends or a signal comes."""
        poll = select.poll()
        poll.register(self._stop_signals, select.POLLIN)
        fds: list[int] = []
        try:
            for service in self._services:
                if service.process is not None:
                    # Not reaped yet, so its pid cannot have become somebody else's.
                    fds.append(os.pidfd_open(service.process.pid))
                    poll.register(fds[-1], select.POLLIN)
            poll.poll(min(_POLL_MAX_MS, max(0, int((until - time.monotonic()) * 1000) + 1)))
        finally:
            for fd in fds:
                os.close(fd)


def trim(path: Path, max_bytes: int) -> None:
    """A log that has grown beyond the limit begins anew, what it held is beside it as `.1`.

    Copied and cut, not renamed: the child goes on writing to the same file, at its end (O_APPEND). The
    lines of the moment between are lost.
    """
    if children.size(path) > max_bytes:
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def _stage(service: Service) -> str:
    return service.name.partition(" ")[0]


def _stop_together(services: Sequence[Service]) -> None:
    alive = [service for service in services if service.process is not None]
    for service in alive:
        if service.process is not None and service.stop is None and service.process.poll() is None:
            service.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _TERM_PATIENCE_S
    for service in alive:
        if service.stop is not None:
            service.stop()
        elif service.process is not None:
            try:
                service.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("a child did not end when asked and is killed", extra={"child": service.name})
            children.stop(service.process)
