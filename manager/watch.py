"""The leader's watch: a turn of a backend's health becomes one event, and hosts' last signs of life and backends' capacities are kept.

Every replica derives health from the same reports; the leader alone records a turn, with a guarded
update, so that several who think themselves leader still make one event.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

from manager import health
from manager.actor import SYSTEM
from manager.outbox import Relay
from manager.pace import Pace
from manager.registry import Registry
from manager.store import backends as store
from manager.store import capacity, events, hosts, operations
from manager.store.backends import BackendRow
from manager.store.pool import DATABASE_AWAY, Pool, transaction
from schemas.backends import BackendState, Capacity, HealthStatus
from schemas.events import EventType
from schemas.faults import FaultCode

log = logging.getLogger(__name__)

#: Seconds between looks for hosts that fell silent.
SWEEP_S = 1.0
#: Turns of one backend's health that become events at once, and the seconds between those after them: a backend that flaps,
#: or a host that says so, must not fill the audit log.
TURNS_AT_ONCE = 6
TURN_EVERY_S = 30.0
MOST_BACKENDS = 100_000
#: Seconds between two clearings of what has ended long ago.
PRUNE_S = 3600.0
#: Seconds between writes of last_seen_at.
TOUCH_S = 30.0


class Watch:
    """`run` sweeps the registry, records turns of health, touches hosts and samples capacities.

    settle_s: seconds after the start in which silence is no news, for nobody has had the time to speak. stale_s: seconds after
    which an observation is too old to be a sample.
    """

    def __init__(self, pool: Pool, registry: Registry, relay: Relay, *, settle_s: float, stale_s: float) -> None:
        self._pool = pool
        self._registry = registry
        self._relay = relay
        self._settled_at = time.monotonic() + settle_s
        self._stale_s = stale_s
        self._touched_at = time.monotonic()
        self._pruned_at = -math.inf
        #: The slot that is being sampled, and the backends of which it has a sample.
        self._slot = 0
        self._sampled: set[str] = set()
        self._pace = Pace(burst=TURNS_AT_ONCE, per_s=1 / TURN_EVERY_S, most_keys=MOST_BACKENDS)
        self._due: set[str] = set()
        self._wake = asyncio.Event()
        registry.watch(self._note)

    async def run(self) -> None:
        swept_at = 0.0
        while True:
            has_swept = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._wake.wait()
            self._wake.clear()
            # By the clock, not by the time-out: hosts that report all the time must not keep a silent one online.
            if time.monotonic() - swept_at >= SWEEP_S:
                swept_at = time.monotonic()
                has_swept = True
                self._registry.sweep()
                self._due |= set(self._registry.backend_ids())
            due, self._due = self._due, set()
            if not self._relay.is_leader:
                continue
            try:
                for backend_id in due:
                    await self._record_alone(backend_id)
                await self._touch_hosts()
                await self._prune()
                if has_swept:
                    await self._sample()
            except DATABASE_AWAY as error:
                log.warning("health was not recorded", extra={"error": repr(error)})

    def _note(self, ids: Iterable[str]) -> None:
        self._due |= set(ids)
        self._wake.set()

    async def _record_alone(self, backend_id: str) -> None:
        """An edge: one odd row must not end the watch over all the others."""
        try:
            await self._record(backend_id)
        except DATABASE_AWAY:
            raise
        except Exception:
            log.exception("health was not recorded", extra={"backend_id": backend_id})

    async def _record(self, backend_id: str) -> None:
        found = self._registry.recorded_health(backend_id)
        if found is None:
            return
        row, verdict = found
        if not self._is_turn(row, verdict) or self._pace.take(row.id) is not None:
            return  # every sweep looks again
        async with transaction(self._pool) as connection:
            is_ours = await store.set_health(
                connection,
                backend_id,
                before=row.health_status,
                after=verdict.status,
                code=verdict.code,
                detail=verdict.detail,
            )
            if not is_ours:
                return
            await events.append(
                connection,
                type=EventType.BACKEND_HEALTH_CHANGED,
                collection="storage_backends",
                subject_id=row.id,
                actor=SYSTEM.name,
                request_id="",
                data={
                    "name": row.name,
                    "kind": row.kind,
                    "before": _with_health(row, row.health_status, row.health_code, row.health_detail),
                    "after": _with_health(row, verdict.status, verdict.code, verdict.detail),
                },
            )
        log.info(
            "health changed",
            extra={"backend_id": row.id, "backend": row.name, "before": row.health_status, "after": verdict.status},
        )
        await self._registry.refresh([backend_id])

    def _is_turn(self, row: BackendRow, verdict: health.Verdict) -> bool:
        if row.state in (BackendState.CREATING, BackendState.DELETING) or verdict.status is row.health_status:
            return False
        if verdict.code is FaultCode.CONVERGING:
            return False  # it passes by itself, or turns into something with a name
        return time.monotonic() >= self._settled_at or all(
            self._registry.is_online(host.id) for host in self._registry.chosen(row)
        )

    async def _prune(self) -> None:
        """Once at the start, then now and again; several leaders at once do each other no harm."""
        if time.monotonic() < self._pruned_at + PRUNE_S:
            return
        self._pruned_at = time.monotonic()
        async with self._pool.acquire() as connection:
            await operations.prune(connection)
            await store.prune(connection)
            await capacity.prune(connection)

    async def _sample(self) -> None:
        """Each backend's capacity is kept once a slot, as soon in it as there is a fresh one."""
        slot = int(time.time()) // capacity.SLOT_S
        if slot != self._slot:
            self._slot = slot
            self._sampled.clear()
        seen: dict[str, Capacity] = {}
        oldest = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=self._stale_s)
        for backend_id in self._registry.backend_ids():
            if backend_id in self._sampled:
                continue
            backend = self._registry.find(backend_id)
            if backend is not None and backend.capacity is not None and backend.capacity.observed_at >= oldest:
                seen[backend_id] = backend.capacity
        if seen:
            async with self._pool.acquire() as connection:
                await capacity.insert(connection, slot, seen)
            self._sampled |= seen.keys()

    async def _touch_hosts(self) -> None:
        if time.monotonic() - self._touched_at < TOUCH_S:
            return
        self._touched_at = time.monotonic()
        online = [host.id for host in self._registry.live_hosts() if self._registry.is_online(host.id)]
        async with self._pool.acquire() as connection:
            await hosts.touch(connection, online)


def _with_health(row: BackendRow, status: HealthStatus, code: FaultCode | None, detail: str | None) -> dict[str, Any]:
    return {**store.shown(row), "health": {"status": status, "code": code, "detail": detail}}
