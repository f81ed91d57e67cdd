"""The live registry: what every GET reads, in memory, kept current by PostgreSQL's notifications and hosts' reports.

Rows come from the database (`refresh`), observations and signs of life also straight from the bus, so
that every replica sees them at once; of two observations the newer one stands. The default is one
variable read in the same snapshot as the rows, so a reader never sees two, nor none in between.
"""

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from manager import health
from manager.errors import Refused
from manager.store import backends as backend_store
from manager.store import hosts as host_store
from manager.store.backends import BackendRow, Cell
from manager.store.hosts import HostRow
from manager.store.pool import Pool
from schemas.agent_rpc import Observation
from schemas.backends import (
    Backend,
    BackendState,
    Capability,
    Health,
    HealthStatus,
    HostObservation,
    HostSummary,
    ProbeNote,
)
from schemas.hosts import Host, HostState
from schemas.kinds import KINDS
from schemas.problems import ProblemCode

#: Probes of one backend by one host that are remembered: enough to see whether it flaps, and 200 × 60 of them are some 15 MB.
KEPT_PROBES = 6


class Registry:
    """Reads answer at once and touch nothing; `load` before the first of them."""

    def __init__(self, pool: Pool, *, host_silent_s: float, observation_stale_s: float) -> None:
        self._pool = pool
        self._host_silent_s = host_silent_s
        self._stale_s = observation_stale_s
        self._rows: dict[str, BackendRow] = {}
        self._by_name: dict[str, str] = {}
        self._volumes: dict[str, int] = {}
        self._cells: dict[str, dict[str, Cell]] = {}
        self._probes: dict[str, dict[str, deque[ProbeNote]]] = {}
        self._default_id: str | None = None
        self._hosts: dict[str, HostRow] = {}
        self._alive_at: dict[str, float] = {}
        self._held: dict[str, dict[str, int]] = {}
        self._brought: dict[str, dict[str, int]] = {}
        self._online: set[str] = set()
        self._turns: dict[str, int] = {}
        self._views: dict[str, Backend] = {}
        self._one_refresh = asyncio.Lock()
        self._watchers: list[Callable[[Iterable[str]], None]] = []

    # ---- what others read

    def backends(self) -> Sequence[Backend]:
        """Every live backend, oldest first."""
        return [self._view(backend_id) for backend_id in sorted(self._rows)]

    def find(self, ref: str) -> Backend | None:
        """The backend of that id or name."""
        backend_id = ref if ref in self._rows else self._by_name.get(ref)
        return self._view(backend_id) if backend_id else None

    def require(self, ref: str) -> Backend:
        """The backend of that id or name. Raises Refused when there is none."""
        backend = self.find(ref)
        if backend is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {ref[:80]}")
        return backend

    def row(self, backend_id: str) -> BackendRow | None:
        return self._rows.get(backend_id)

    def cells(self, backend_id: str) -> tuple[HostObservation, ...]:
        """One observation a chosen host, in the order of joining, as it is shown."""
        return tuple(_shown(cell) for cell in self._observations(self._rows[backend_id]))

    def with_cells(self, backend_id: str) -> tuple[Backend, tuple[HostObservation, ...]] | None:
        """The backend and its cells as of one moment; None when there is none. Their capacity is not for callers: see `cells`."""
        row = self._rows.get(backend_id)
        if row is None:
            return None
        cells = self._observations(row)
        view = self._views[backend_id] = self._make_view(row, cells)
        return view, cells

    def default_id(self) -> str | None:
        return self._default_id

    def probes(self, backend_id: str, host_id: str) -> tuple[ProbeNote, ...]:
        """What the host's last probes found, the newest first."""
        return tuple(self._probes.get(backend_id, {}).get(host_id, ()))

    def holders(self, backend_id: str, version: int) -> list[str]:
        """Online hosts that hold this version of the backend's credentials, chosen for it or not."""
        return [host_id for host_id in self._online if self._holds(host_id, backend_id, version)]

    def has_lost_credentials(self, backend_id: str) -> bool:
        """Whether no online host holds the backend's credentials, by the word of all that are chosen for it."""
        row = self._rows.get(backend_id)
        if row is None:
            return False
        asked = [host.id for host in self.chosen(row) if self.is_online(host.id)]
        is_known = bool(asked) and all(host_id in self._held for host_id in asked)
        return is_known and not self.holders(backend_id, row.credential_version)

    def is_last_holder(self, host_id: str, row_id: str, version: int) -> bool:
        """Whether the credentials would be lost to the hosts chosen for the backend if this one let go of them now."""
        row = self._rows.get(row_id)
        if row is None or version == 0:
            return False
        return not any(
            host.id != host_id and self.is_online(host.id) and self._holds(host.id, row_id, version)
            for host in self.chosen(row)
        )

    def chosen(self, row: BackendRow) -> list[HostRow]:
        return [
            host
            for host in self._hosts.values()
            if not host.revoked_at and row.selector.matches(host.name, host.labels)
        ]

    def hosts(self) -> Sequence[Host]:
        """Every host in the order of joining, revoked ones last known as they were."""
        return [self._host_view(row) for row in self._hosts.values()]

    def find_host(self, ref: str) -> Host | None:
        """By id; by name only the live one."""
        row = self._hosts.get(ref)
        if row is None:
            row = next((h for h in self._hosts.values() if h.name == ref and not h.revoked_at), None)
        return self._host_view(row) if row else None

    def host_row(self, host_id: str) -> HostRow | None:
        return self._hosts.get(host_id)

    def host_name(self, host_id: str) -> str:
        row = self._hosts.get(host_id)
        return row.name if row else host_id

    def live_hosts(self) -> list[HostRow]:
        return [host for host in self._hosts.values() if not host.revoked_at]

    def is_online(self, host_id: str) -> bool:
        """As of the last sweep, so that a backend's colour and its cells tell the same story."""
        return host_id in self._online

    def turns(self, host_id: str) -> int:
        """How often the host has come and gone here: of two looks that find it online, it tells whether it was away between."""
        return self._turns.get(host_id, 0)

    def recorded_health(self, backend_id: str) -> tuple[BackendRow, health.Verdict] | None:
        """The row with the health it records, and the health that is seen now."""
        row = self._rows.get(backend_id)
        return (row, health.derive(self.cells(backend_id))) if row else None

    def backend_ids(self) -> list[str]:
        return list(self._rows)

    # ---- what keeps it live

    def watch(self, watcher: Callable[[Iterable[str]], None]) -> None:
        """Call the watcher, soon and cheaply, with the ids of backends whose health may have changed."""
        self._watchers.append(watcher)

    async def load(self) -> None:
        await self.refresh_hosts()
        await self.refresh(None)

    async def refresh(self, ids: Sequence[str] | None) -> None:
        """These backends (None: all) are as the database has them now. One at a time, so an older read never lands last."""
        async with self._one_refresh, self._pool.acquire() as connection:
            loaded = await backend_store.load(connection, ids)
            rows = {row.id: row for row in loaded.rows}
            gone = (set(self._rows) if ids is None else set(ids)) - set(rows)
            for backend_id in gone:
                self._rows.pop(backend_id, None)
                self._cells.pop(backend_id, None)
                self._probes.pop(backend_id, None)
                self._volumes.pop(backend_id, None)
                self._brought.pop(backend_id, None)
            self._rows.update(rows)
            for backend_id in rows:
                self._volumes[backend_id] = loaded.live_volumes.get(backend_id, 0)
                self._brought[backend_id] = loaded.holders.get(backend_id, {})
            for cell in loaded.cells:
                self._keep_newer(cell)
            self._default_id = loaded.default_id
            self._by_name = {row.name: row.id for row in self._rows.values()}
            # All views: is_default of rows that were not asked for may have changed with _default_id.
            self._views.clear()
        self._tell(list(rows))

    async def refresh_hosts(self) -> None:
        async with self._pool.acquire() as connection:
            self._hosts = {row.id: row for row in await host_store.load(connection)}
        for host in self._hosts.values():
            if host.revoked_at:
                self._alive_at.pop(host.id, None)
                self._online.discard(host.id)
                self._held.pop(host.id, None)
                for cells in self._cells.values():
                    cells.pop(host.id, None)
                for probes in self._probes.values():
                    probes.pop(host.id, None)
        self._views.clear()
        self._tell(list(self._rows))

    def alive(self, host_id: str) -> bool:
        """Whether the host, which said something just now, was silent before."""
        host = self._hosts.get(host_id)
        if host is None or host.revoked_at:
            return False
        self._alive_at[host_id] = time.monotonic()
        if host_id in self._online:
            return False
        self._online.add(host_id)
        self._touch_host(host_id)
        return True

    def sweep(self) -> None:
        """Hosts that fell silent are offline; call it every second or so."""
        oldest = time.monotonic() - self._host_silent_s
        for host_id in [h for h in self._online if self._alive_at.get(h, 0.0) < oldest]:
            self._online.discard(host_id)
            self._touch_host(host_id)
        self._views.clear()  # an observation may have become stale

    def silence(self, host_id: str) -> None:
        """The bus says that nobody answers for this host: offline until its next word."""
        self._alive_at.pop(host_id, None)
        self.sweep()

    def observe(self, host_id: str, observations: Iterable[Observation]) -> None:
        """What the host saw, if we know the backend and nothing newer."""
        changed: list[str] = []
        for seen in observations:
            if seen.backend_id not in self._rows or host_id not in self._hosts:
                continue
            self._keep_newer(
                Cell(
                    backend_id=seen.backend_id,
                    host_id=host_id,
                    observed_generation=seen.generation,
                    credential_version=seen.credential_version,
                    status=seen.status,
                    code=seen.code,
                    detail=seen.detail,
                    remedy=seen.remedy,
                    latency_ms=seen.latency_ms,
                    capacity=seen.capacity,
                    capabilities=seen.capabilities,
                    report_order=seen.order,
                    observed_at=seen.observed_at,
                )
            )
            self._views.pop(seen.backend_id, None)
            changed.append(seen.backend_id)
        self._tell(changed)

    def note_held(self, host_id: str, versions: dict[str, int]) -> None:
        """What the host itself says that it keeps: backend id -> version of the credentials."""
        if host_id in self._hosts:
            self._held[host_id] = versions

    # ---- inside

    def _holds(self, host_id: str, backend_id: str, version: int) -> bool:
        """Brought there by us, and there still: by its own list, or because it works with them. What a failing host reports is
        the version that it wants; what a host says that we never brought it is not asked for.
        """
        if self._brought.get(backend_id, {}).get(host_id) != version:
            return False
        if self._held.get(host_id, {}).get(backend_id) == version:
            return True
        cell = self._cells.get(backend_id, {}).get(host_id)
        is_working = cell is not None and cell.status in (HealthStatus.HEALTHY, HealthStatus.DEGRADED)
        return cell is not None and is_working and cell.credential_version == version

    def _observations(self, row: BackendRow) -> tuple[HostObservation, ...]:
        now = dt.datetime.now(dt.UTC)
        return tuple(
            health.observe(self._seen(host, row.id), generation=row.generation, now=now, stale_s=self._stale_s)
            for host in self.chosen(row)
        )

    def _tell(self, ids: Sequence[str]) -> None:
        if ids:
            for watcher in self._watchers:
                watcher(ids)

    def _touch_host(self, host_id: str) -> None:
        host = self._hosts[host_id]
        self._turns[host_id] = self.turns(host_id) + 1
        ids = [row.id for row in self._rows.values() if row.selector.matches(host.name, host.labels)]
        for backend_id in ids:
            self._views.pop(backend_id, None)
        self._tell(ids)

    def _keep_newer(self, cell: Cell) -> None:
        cells = self._cells.setdefault(cell.backend_id, {})
        have = cells.get(cell.host_id)
        if have is not None and not cell.is_newer_than(have):
            return
        cells[cell.host_id] = cell
        notes = self._probes.setdefault(cell.backend_id, {}).setdefault(cell.host_id, deque(maxlen=KEPT_PROBES))
        if cell.observed_at is not None and (not notes or notes[0].observed_at != cell.observed_at):
            notes.appendleft(_note(cell, cell.observed_at))

    def _seen(self, host: HostRow, backend_id: str) -> health.Seen:
        cell = self._cells.get(backend_id, {}).get(host.id)
        state = HostState.ONLINE if self.is_online(host.id) else HostState.OFFLINE
        if cell is None:
            return health.Seen(host_id=host.id, host=host.name, state=state, status=None)
        return health.Seen(
            host_id=host.id,
            host=host.name,
            state=state,
            status=cell.status,
            code=cell.code,
            detail=cell.detail,
            remedy=cell.remedy,
            latency_ms=cell.latency_ms,
            capacity=cell.capacity,
            capabilities=cell.capabilities,
            observed_at=cell.observed_at,
            generation=cell.observed_generation,
        )

    def _view(self, backend_id: str) -> Backend:
        view = self._views.get(backend_id)
        if view is None:
            row = self._rows[backend_id]
            view = self._views[backend_id] = self._make_view(row, self._observations(row))
        return view

    def _make_view(self, row: BackendRow, cells: tuple[HostObservation, ...]) -> Backend:
        verdict = health.derive(cells)
        # A row of a kind that only a newer manager knows is shown as far as it goes.
        spec = KINDS.get(row.kind)
        possible = spec.capabilities if spec else tuple(Capability)
        seen = self._cells.get(row.id, {})
        found = {c for host in self.chosen(row) if host.id in seen for c in seen[host.id].capabilities}
        capabilities = tuple(c for c in possible if c in found or (spec and c is Capability.EXTERNAL))
        return Backend(
            id=row.id,
            name=row.name,
            kind=row.kind,
            config=row.config,
            has_credentials=row.credential_version > 0,
            is_default=row.id == self._default_id,
            state=row.state,
            health=Health(
                status=verdict.status,
                code=verdict.code,
                detail=verdict.detail,
                since=row.health_since if verdict.status is row.health_status else dt.datetime.now(dt.UTC),
            ),
            capabilities=capabilities,
            capacity=health.capacity(cells, is_shared=spec is None or spec.is_shared),
            hosts=row.selector,
            host_summary=HostSummary(
                total=len(cells), healthy=sum(cell.status is HealthStatus.HEALTHY for cell in cells)
            ),
            live_volumes=self._volumes.get(row.id, 0),
            labels=row.labels,
            generation=row.generation,
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def _host_view(self, row: HostRow) -> Host:
        state = HostState.ONLINE if self.is_online(row.id) else HostState.OFFLINE
        if row.revoked_at:
            state = HostState.REVOKED
        seen = self._alive_at.get(row.id)
        last_seen = row.last_seen_at
        if seen is not None:
            last_seen = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=time.monotonic() - seen)
        return Host(
            id=row.id,
            name=row.name,
            state=state,
            kinds=row.kinds,
            labels=row.labels,
            agent_version=row.agent_version,
            joined_at=row.joined_at,
            last_seen_at=last_seen,
        )


def _note(cell: Cell, observed_at: dt.datetime) -> ProbeNote:
    return ProbeNote(
        observed_at=observed_at,
        status=cell.status,
        code=cell.code,
        detail=cell.detail,
        remedy=cell.remedy,
        latency_ms=cell.latency_ms,
    )


def _shown(cell: HostObservation) -> HostObservation:
    """Without the file system's name, which serves to count it once and means nothing to a caller."""
    if cell.capacity is None:
        return cell
    return replace(cell, capacity=replace(cell.capacity, file_system=None))


def is_settled(state: BackendState) -> bool:
    """Whether a backend in this state is for the hosts to converge to (no saga is at its beginning or end)."""
    return state in (BackendState.READY, BackendState.DRAINING, BackendState.NEEDS_INITIALIZATION)
