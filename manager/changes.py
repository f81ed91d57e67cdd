"""What changes before the eyes of those who look: compared once a second for all of them, while there is one.

A subscriber may read the lists as soon as `subscribed` has let it in: what is different from then on is told, and
also what was different for less than a second, while it may have been reading. What it is told twice is the same twice.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from manager.matrix import cell_of
from manager.registry import Registry
from schemas.backends import Backend, Capacity, CellChange, ChangeSet, HostObservation
from schemas.hosts import Host

log = logging.getLogger(__name__)

#: Seconds between two comparisons, and so between two frames.
TICK_S = 1.0
#: Every backend is looked at once in so many ticks: an observation that becomes stale does so without a word.
ALL_IN_TICKS = 5
#: Seconds in which a new subscriber reads the lists; what moves meanwhile is told even if it came back to what it was.
READING_S = 10.0
#: Frames that may wait for one slow client.
QUEUE_FRAMES = 64
#: Ticks at most between two RESYNCs while one tick after the other fails.
_RESYNC_TICKS = 60
#: Used bytes that move by less than one part in so many of the total look the same.
_CAPACITY_PARTS = 1000

RESYNC = b"event: resync\ndata: {}\n\n"


@dataclass
class _Told:
    """What the subscribers know, and what may differ from it.

    hosts: with the count of their turns. due: backends that the registry has marked. operations: ids, in order, as a set.
    odd: backends that could not be looked at.
    """

    backends: dict[str, Backend] = field(default_factory=lambda: dict[str, Backend]())
    cells: dict[str, dict[str, HostObservation]] = field(
        default_factory=lambda: dict[str, dict[str, HostObservation]]()
    )
    hosts: dict[str, tuple[Host, int]] = field(default_factory=lambda: dict[str, tuple[Host, int]]())
    default_id: str | None = None
    due: set[str] = field(default_factory=lambda: set[str]())
    odd: set[str] = field(default_factory=lambda: set[str]())
    operations: dict[str, None] = field(default_factory=lambda: dict[str, None]())
    ticks: int = 0
    read_until: float = 0.0


@dataclass
class _Found:
    """What one tick found; a backend that is looked at twice is told as it was found last."""

    backends: dict[str, Backend] = field(default_factory=lambda: dict[str, Backend]())
    cells: dict[tuple[str, str], CellChange] = field(default_factory=lambda: dict[tuple[str, str], CellChange]())


class Changes:
    """`run` compares; each subscriber has a queue of frames as they go over the wire, the same bytes for all."""

    def __init__(self, registry: Registry, *, tick_s: float = TICK_S) -> None:
        self._registry = registry
        self._tick_s = tick_s
        self._queues: set[asyncio.Queue[bytes]] = set()
        self._told: _Told | None = None
        #: One comparison at a time, and nobody comes in amid one.
        self._turn = asyncio.Lock()
        self._has_subscribers = asyncio.Event()
        registry.watch(self._mark)

    # ---- for those who look

    @contextlib.asynccontextmanager
    async def subscribed(self) -> AsyncGenerator[asyncio.Queue[bytes]]:
        """The queue of what changes from now on. Who is too slow for it finds `RESYNC` there, and what changed after that."""
        queue = asyncio.Queue[bytes](QUEUE_FRAMES)
        async with self._turn:
            if self._told is None:
                self._told = await self._snapshot()
            self._told.read_until = time.monotonic() + READING_S
            self._queues.add(queue)
            self._has_subscribers.set()
        try:
            yield queue
        finally:
            self._queues.discard(queue)
            if not self._queues:
                self._told = None
                self._has_subscribers.clear()

    # ---- what is told to us

    def operation_written(self, operation_id: str) -> None:
        """The journal has a new line of it, whoever wrote that."""
        if self._told is not None:
            self._told.operations[operation_id] = None

    def resync(self) -> None:
        """Something may have been missed: everybody is to read everything again."""
        for queue in self._queues:
            self._give(queue, RESYNC)

    def _mark(self, ids: Iterable[str]) -> None:
        if self._told is not None:
            self._told.due.update(ids)

    # ---- comparing

    async def run(self) -> None:
        failures = told_at = 0
        while True:
            await self._has_subscribers.wait()
            await asyncio.sleep(self._tick_s)
            try:
                await self.tick()
            except Exception:
                # An edge: what could not be compared is read again by everybody; ever more rarely while it lasts, for that costs.
                failures += 1
                if failures >= told_at + min(told_at, _RESYNC_TICKS):
                    log.exception("changes could not be told", extra={"failures": failures})
                    told_at = failures
                    self.resync()
            else:
                if failures > told_at:
                    self.resync()
                failures = told_at = 0

    async def tick(self) -> None:
        """Everybody has what changed since the last tick, in one frame; none when nothing did."""
        async with self._turn:
            told = self._told
            if told is None:
                return
            found = await self._compare(told)
            if self._told is not told or found is None:
                return
            frame = b"event: changes\ndata: %s\n\n" % msgspec.json.encode(found)
            for queue in self._queues:
                self._give(queue, frame)

    async def _snapshot(self) -> _Told:
        told = _Told()
        # Kept before it is whole, so that what is marked meanwhile is looked at again.
        self._told = told
        try:
            told.hosts = {host.id: (host, self._registry.turns(host.id)) for host in self._registry.hosts()}
            told.default_id = self._registry.default_id()
            for backend_id in self._registry.backend_ids():
                self._look_alone(told, _Found(), backend_id, set(), is_anyway=False)
                await asyncio.sleep(0)
        except BaseException:
            self._told = None
            raise
        return told

    async def _compare(self, told: _Told) -> ChangeSet | None:
        """What looks different from what was told, which is what it is now; None: nothing. Others have their turn in between."""
        due, told.due = told.due, set()
        ids = self._registry.backend_ids()
        told.ticks += 1
        wanted = due | set(ids[told.ticks % ALL_IN_TICKS :: ALL_IN_TICKS]) | (set(ids) - told.backends.keys())
        is_being_read = time.monotonic() < told.read_until
        # Counted before anything is looked at: who comes or goes meanwhile has moved at the next tick too.
        turns = {host.id: self._registry.turns(host.id) for host in self._registry.hosts()}
        moved = {key for key, count in turns.items() if key in told.hosts and told.hosts[key][1] != count}
        found = _Found()
        for backend_id in sorted(wanted):
            self._look_alone(told, found, backend_id, moved, is_anyway=is_being_read and backend_id in due)
            await asyncio.sleep(0)
        # From here to the end in one go: nobody sees two defaults, nor a cell of a backend that is gone.
        default_id = self._registry.default_id()
        if default_id != told.default_id:
            for either in (told.default_id, default_id):
                if either is not None:
                    self._look_alone(told, found, either, moved, is_anyway=False)
            told.default_id = default_id
        gone = tuple(sorted(told.backends.keys() - set(self._registry.backend_ids())))
        for backend_id in gone:
            told.backends.pop(backend_id)
            told.cells.pop(backend_id)
        operations, told.operations = tuple(told.operations), {}
        changes = ChangeSet(
            backends=tuple(found.backends[key] for key in sorted(found.backends.keys() - set(gone))),
            gone=gone,
            hosts=self._changed_hosts(told, turns),
            cells=tuple(cell for (backend_id, _), cell in found.cells.items() if backend_id not in gone),
            operations=operations,
        )
        return changes if changes != ChangeSet() else None

    def _look_alone(self, told: _Told, found: _Found, backend_id: str, moved: set[str], *, is_anyway: bool) -> None:
        """An edge: one odd backend must not keep all the others from being told. The log has it once."""
        try:
            self._look(told, found, backend_id, moved, is_anyway=is_anyway)
            told.odd.discard(backend_id)
        except Exception:
            if backend_id not in told.odd:
                told.odd.add(backend_id)
                log.exception("changes of a backend could not be told", extra={"backend_id": backend_id})

    def _look(self, told: _Told, found: _Found, backend_id: str, moved: set[str], *, is_anyway: bool) -> None:
        """moved: hosts that came or went. is_anyway: what has been seen anew is told also when it looks as before."""
        seen = self._registry.with_cells(backend_id)
        if seen is None:
            return
        backend, observations = seen
        before = told.backends.get(backend_id)
        if before is None or is_anyway or not _is_backend_alike(before, backend):
            told.backends[backend_id] = found.backends[backend_id] = backend
        known = told.cells.get(backend_id, {})
        told.cells[backend_id] = cells = {cell.host_id: cell for cell in observations}
        for host_id, cell in cells.items():
            last = known.get(host_id)
            has_moved = host_id in moved or (is_anyway and (last is None or last.observed_at != cell.observed_at))
            if last is None or has_moved or not _is_cell_alike(last, cell):
                shown = cell_of(cell)
                found.cells[backend_id, host_id] = CellChange(
                    backend_id=backend_id,
                    host_id=host_id,
                    status=shown.status,
                    code=shown.code,
                    detail=shown.detail,
                    latency_ms=shown.latency_ms,
                )
        for host_id in known.keys() - cells.keys():
            found.cells[backend_id, host_id] = CellChange(backend_id=backend_id, host_id=host_id, status=None)

    def _changed_hosts(self, told: _Told, turns: dict[str, int]) -> tuple[Host, ...]:
        before = told.hosts
        told.hosts = {host.id: (host, turns.get(host.id, 0)) for host in self._registry.hosts()}
        return tuple(
            host
            for host, count in told.hosts.values()
            if (known := before.get(host.id)) is None or known[1] != count or not _is_host_alike(known[0], host)
        )

    def _give(self, queue: asyncio.Queue[bytes], frame: bytes) -> None:
        """The frame waits for the client, or RESYNC in the place of all when there are too many."""
        if queue.full():
            while not queue.empty():
                queue.get_nowait()
            frame = RESYNC
        if frame is RESYNC and self._told is not None:
            self._told.read_until = time.monotonic() + READING_S
        queue.put_nowait(frame)


def _is_backend_alike(told: Backend, now: Backend) -> bool:
    """`since` goes with the status, and moves while a turn is not recorded yet."""
    like = replace(now, health=replace(now.health, since=told.health.since), capacity=told.capacity)
    return like == told and _is_capacity_alike(told.capacity, now.capacity)


def _is_capacity_alike(told: Capacity | None, now: Capacity | None) -> bool:
    if told is None or now is None:
        return told is now
    moved = max(abs(told.used_bytes - now.used_bytes), abs(told.available_bytes - now.available_bytes))
    return told.total_bytes == now.total_bytes and moved * _CAPACITY_PARTS < max(told.total_bytes, 1)


def _is_cell_alike(told: HostObservation, now: HostObservation) -> bool:
    return (
        told.status is now.status
        and told.code is now.code
        and told.detail == now.detail
        and _coarse(told.latency_ms) == _coarse(now.latency_ms)
    )


def _is_host_alike(told: Host, now: Host) -> bool:
    return replace(now, last_seen_at=told.last_seen_at) == told


def _coarse(latency_ms: float | None) -> int | None:
    """In whole milliseconds; above 100 in two digits."""
    if latency_ms is None:
        return None
    whole = round(latency_ms)
    return round(whole, 2 - len(str(whole))) if whole > 100 else whole
