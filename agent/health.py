"""A probe of every attached backend, every half minute with jitter, all of them beside each other.

Green comes only from the write and fsync of the probe itself. A dead server costs its own backend's
probe and nothing else: each has its own deadline, and no new one starts before the old has ended.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

from agent.config import Intervals
from agent.errors import AgentFault
from agent.host import Host
from schemas.backends import HealthStatus
from schemas.logs import about

log = logging.getLogger(__name__)

#: Probes at once; a hung backend fails at once, so at most this many servers can be dying in the same moment.
PARALLEL = 64
#: How soon a newly attached backend gets its place in the plan.
_LOOK_S = 1.0


class Health:
    """wake: asks the reconciler for a sync, when a backend turns out not to be attached."""

    def __init__(
        self, *, host: Host, wake: Callable[[], None], intervals: Intervals, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host = host
        self._wake = wake
        self._probe_s = intervals.probe_s
        self._clock = clock
        self._slots = asyncio.Semaphore(PARALLEL)
        self._due: dict[str, float] = {}
        self._working: set[str] = set()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Probes for ever. What was attached before the start comes at once, spread over a tenth of the interval."""
        first_s = self._probe_s / 10
        async with asyncio.TaskGroup() as group:
            while True:
                next_due_s = _LOOK_S
                try:
                    next_due_s = self._begin_due(group, first_s)
                except Exception:
                    # The edge of this loop; for one, the host's own disk may be full for a while.
                    log.exception("health raised")
                first_s = self._probe_s
                self._ended.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.01, min(next_due_s, _LOOK_S))):
                        await self._ended.wait()

    def _begin_due(self, group: asyncio.TaskGroup, first_s: float) -> float:
        """Seconds until the next probe is due, after those that are have begun. first_s: how soon a newcomer's is."""
        now = self._clock()
        watched = self._host.watched()
        self._due = {i: self._due.get(i, now + random.uniform(0, first_s)) for i in watched}
        for backend_id in watched - self._working:
            if self._due[backend_id] <= now:
                self._due[backend_id] = now + random.uniform(0.9, 1.1) * self._probe_s
                self._working.add(backend_id)
                group.create_task(self._probe(backend_id), name=f"health {backend_id}")
        return min((due - now for i, due in self._due.items() if i not in self._working), default=_LOOK_S)

    async def _probe(self, backend_id: str) -> None:
        try:
            async with self._slots:
                with about(backend_id=backend_id):
                    await self._probe_once(backend_id)
        finally:
            self._working.discard(backend_id)
            self._ended.set()

    async def _probe_once(self, backend_id: str) -> None:
        try:
            observation = await self._host.probe(backend_id)
            if observation.status is HealthStatus.UNREACHABLE:
                async with self._host.lock(backend_id):
                    needs_sync = await self._host.needs_sync(backend_id)
                if needs_sync:
                    log.warning("no longer attached")
                    self._wake()
        except AgentFault as error:
            log.warning("no probe", extra={"code": error.fault.code.value, "detail": error.fault.detail})
        except Exception:
            # An edge: a bug met with one backend must not end the others' probes.
            log.exception("probe raised")
