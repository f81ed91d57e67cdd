"""Where a volume may come to lie, and which host does the work; and why not.

What is refused here is refused before anything is touched, with the host, the reason and the remedy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from manager.agents import Agents, offline_fault
from manager.errors import Refused
from manager.registry import Registry
from manager.store import attachments, leases, volumes
from manager.store.backends import BackendRow
from manager.store.hosts import HostRow
from manager.store.pool import Pool
from manager.store.volumes import VolumeRow
from manager.volume_place import Place
from schemas.backends import BackendState, HealthStatus, HostObservation
from schemas.faults import REMEDIES, Fault, FaultCode
from schemas.kinds import KINDS
from schemas.problems import FieldError, ProblemCode
from schemas.volume_rpc import AttachMode
from schemas.volumes import VolumeState

#: Of a backend's space; beyond it no volume comes to it.
CRITICAL = 0.98
_USABLE = (HealthStatus.HEALTHY, HealthStatus.DEGRADED)
#: Of a backend that is red for want of space what is there can be used all the same, and be deleted or moved away.
_FULL = FaultCode.NO_SPACE


@dataclass(frozen=True)
class Seat:
    """Who works on a volume, and where it lies if that is on one host."""

    worker: HostRow
    host_id: str | None


class Placement:
    """Reads the registry, and the database for what is in use where. Every refusal changes nothing."""

    def __init__(self, pool: Pool, registry: Registry, agents: Agents) -> None:
        self._pool = pool
        self._registry = registry
        self._agents = agents

    def backend(self, ref: str | None) -> BackendRow:
        """The backend of that id or name, or the default. Raises Refused."""
        if ref is None:
            default = next((each for each in self._registry.backends() if each.is_default), None)
            if default is None:
                raise Refused.because(
                    ProblemCode.WRONG_STATE,
                    "there is no default backend: name one in the field backend, or make one the default",
                )
            ref = default.id
        row = self._registry.row(self._registry.require(ref).id)
        assert row is not None, "the registry has just shown it"
        return row

    def named(self, ref: str | None, at: str = "/backend") -> BackendRow:
        """The backend that a field names, or the default. Raises Refused, pointing at the field for one that is not there."""
        if ref is not None and self._registry.find(ref) is None:
            raise Refused.for_fields([FieldError(pointer=at, detail=f"there is no backend {ref[:80]}")])
        return self.backend(ref)

    def host(self, ref: str, at: str = "/host") -> HostRow:
        """The live host that a field names. Raises Refused, pointing at the field."""
        host = next((each for each in self._registry.live_hosts() if ref in (each.id, each.name)), None)
        if host is None:
            raise Refused.for_fields([FieldError(pointer=at, detail=f"there is no host {ref[:64]}")])
        return host

    def place(self, row: BackendRow) -> Place:
        """As a saga's params carry it; with the defaults of fields that are newer than the row."""
        defaults = msgspec.to_builtins(msgspec.convert(row.config, KINDS[row.kind].config))
        return Place(backend_id=row.id, backend=row.name, kind=row.kind, config=defaults)

    def place_of(self, row: VolumeRow) -> Place:
        return self.place(self.backend(row.backend_id))

    async def any_host(self, row: BackendRow) -> HostRow:
        """A host that can use the backend now. Raises Refused."""
        return await self._worker([(row, None)], None, 0)

    def available_bytes(self, row: BackendRow) -> int | None:
        """As the host that sees most of it says; None: nobody has told."""
        found = [cell.capacity.available_bytes for cell in self._registry.cells(row.id) if cell.capacity is not None]
        return max(found, default=None)

    def refuse_new(self, row: BackendRow) -> None:
        """Raises Refused when the backend takes no new volumes."""
        if row.state is BackendState.READY:
            return
        remedy = {
            BackendState.DRAINING: "choose another backend, or set its state to ready",
            BackendState.NEEDS_INITIALIZATION: "initialize it first, or choose another backend",
        }.get(row.state, "choose another backend")
        raise Refused.because(
            ProblemCode.WRONG_STATE, f"{row.name} is {row.state.value} and takes no new volumes: {remedy}"
        )

    async def refuse_unready(self, row: VolumeRow) -> None:
        """Raises Refused unless the volume is ready, with the operation to wait for where there is one."""
        if row.state is VolumeState.READY:
            return
        async with self._pool.acquire() as connection:
            operation_id = await volumes.changing_operation(connection, row.id, None)
        if operation_id is None:
            raise Refused.because(ProblemCode.WRONG_STATE, f"{row.name} is {row.state.value}")
        raise Refused.because(
            ProblemCode.WRONG_STATE,
            f"{row.name} is {row.state.value}: wait for the operation",
            operation=f"/v1/operations/{operation_id}",
            retry_after_s=1,
        )

    async def seat_new(
        self, row: BackendRow, host: str | None, size_bytes: int, *, beside: Sequence[tuple[BackendRow, VolumeRow]] = ()
    ) -> Seat:
        """For a new volume. beside: sources that the worker must be able to read. Raises Refused."""
        self.refuse_new(row)
        needed = [(row, None), *((other, each.host_id) for other, each in beside)]
        worker = await self._worker(needed, host, size_bytes)
        return Seat(worker, None if KINDS[row.kind].is_shared else worker.id)

    async def worker(
        self,
        row: VolumeRow,
        *,
        host: str | None = None,
        beside: Sequence[tuple[BackendRow, VolumeRow]] = (),
        new_bytes: int = 0,
    ) -> HostRow:
        """For work on a volume that is there. new_bytes: what may come to lie beside it. Raises Refused."""
        backend = self.backend(row.backend_id)
        async with self._pool.acquire() as connection:
            held = await attachments.of_volume(connection, row.id)
        writer = next((each.host_id for each in held if each.mode is AttachMode.RW), None)
        alone = None if self._is_revoked(row.worker_id) else row.worker_id
        fixed = row.host_id or writer or alone
        needed = [(backend, fixed), *((other, each.host_id) for other, each in beside)]
        return await self._worker(needed, host, new_bytes)

    async def eraser(self, row: VolumeRow) -> str | None:
        """The id of the host that is to take it away; None: it lies on a host that is out for ever. Raises Refused."""
        if self._is_revoked(row.host_id):
            return None
        return (await self.worker(row)).id

    async def explain(self, row: VolumeRow, host: HostRow, mode: AttachMode) -> list[str]:
        """Each reason why the volume cannot be attached on the host now with that mode; none: it can."""
        backend = self.backend(row.backend_id)
        reasons: list[str] = []
        if row.state is not VolumeState.READY:
            reasons.append(f"the volume is {row.state.value}")
        elif row.worker_id not in (None, host.id) and not self._is_revoked(row.worker_id):
            reasons.append(
                f"{self._registry.host_name(str(row.worker_id))} has not answered since a resize of it that failed"
            )
        async with self._pool.acquire() as connection:
            held = await attachments.of_volume(connection, row.id)
            operation = await volumes.other_operation(connection, row.id, None)
            users = set(await volumes.hosts_in_use(connection, backend.id))
            place = self.place(backend)
            if place.is_one_host and place.lane and (other := await leases.holder(connection, place.lane, but=host.id)):
                users.add(other)
        if operation:
            reasons.append(f"operation {operation} is under way on it")
        for each in held:
            words = f"it is attached to {self._registry.host_name(each.host_id)} ({each.mode.value})"
            if each.host_id != host.id and AttachMode.RW in (mode, each.mode):
                reasons.append(words)
            elif each.host_id == host.id and each.mode is not mode:
                reasons.append(f"{words}, with another mode")
        if row.host_id not in (None, host.id):
            reasons.append(f"it lies on {self._registry.host_name(str(row.host_id))}, and {backend.name} is not shared")
        if place.is_one_host and users - {host.id}:
            names = ", ".join(sorted(map(self._registry.host_name, users - {host.id})))
            reasons.append(f"the thin pool of {backend.name} is in use on {names}, and one host at a time can use it")
        if host.id not in {each.id for each in self._registry.chosen(backend)}:
            reasons.append(f"{backend.name} is not for {host.name}: change its hosts first")
        elif fault := self._objection(backend, host):
            reasons.append(f"{backend.name} cannot be used there: {fault.detail}. {fault.remedy}")
        return reasons

    async def _worker(
        self, needed: Sequence[tuple[BackendRow, str | None]], host: str | None, size_bytes: int
    ) -> HostRow:
        """A host that can use all of the backends now. needed: with the only host that will do, where there is one."""
        if not self._agents.is_connected:
            raise Refused.because(
                ProblemCode.NO_AGENT,
                "this manager has no connection to the bus now, so it reaches no host; nothing was changed",
                retry_after_s=5,
            )
        chosen = self._candidates(needed, host)
        for backend, fixed in needed:
            only = fixed or await self._only_user(backend)
            others = [h for h in chosen if h.id == only] if only else chosen
            if not others:
                name, asked = self._registry.host_name(str(only)), f", not by {host}" if host else ""
                if self._is_revoked(only):
                    name += " (which was revoked)"
                way = "" if KINDS[backend.kind].is_shared else "; migrate it to a shared backend to use it elsewhere"
                raise Refused.because(
                    ProblemCode.WRONG_STATE,
                    f"what lies on {backend.name} can be worked on by {name} alone now{asked}{way}",
                )
            chosen = others
        first = needed[0][0]
        found = {each.id: self._first_objection(needed, each, takes_space=size_bytes > 0) for each in chosen}
        able = [each for each in chosen if found[each.id] is None]
        if not able:
            self._refuse([objection for objection in found.values() if objection is not None], host)
        able.sort(key=lambda each: (self._rank(first, each), -self._available(first, each)))
        self._refuse_full(first, able[0], size_bytes)
        return able[0]

    def _candidates(self, needed: Sequence[tuple[BackendRow, str | None]], host: str | None) -> list[HostRow]:
        chosen = list(self._registry.live_hosts()) if host is None else [self.host(host)]
        for backend, _ in needed:
            ids = {each.id for each in self._registry.chosen(backend)}
            chosen = [each for each in chosen if each.id in ids]
            if not chosen and host is not None:
                raise Refused.for_fields([FieldError(pointer="/host", detail=f"{backend.name} is not for {host[:64]}")])
        if not chosen:
            names = " and ".join(dict.fromkeys(backend.name for backend, _ in needed))
            raise Refused.because(
                ProblemCode.NO_AGENT, f"there is no host that {names} {'are' if len(needed) > 1 else 'is'} for"
            )
        return chosen

    async def _only_user(self, backend: BackendRow) -> str | None:
        """The host that has volumes of the backend in use, or may have, where one host at a time can."""
        place = self.place(backend)
        if not place.is_one_host or place.lane is None:
            return None
        async with self._pool.acquire() as connection:
            used = await volumes.hosts_in_use(connection, backend.id)
            return min(used) if used else await leases.holder(connection, place.lane)

    def _first_objection(
        self, needed: Sequence[tuple[BackendRow, str | None]], host: HostRow, *, takes_space: bool
    ) -> tuple[BackendRow, Fault] | None:
        """takes_space: the first of them is to hold more than before."""
        for number, (backend, _) in enumerate(needed):
            if fault := self._objection(backend, host, takes_space=takes_space and number == 0):
                return backend, fault
        return None

    def _objection(self, backend: BackendRow, host: HostRow, *, takes_space: bool = False) -> Fault | None:
        """Why the host cannot use the backend now, by its last word."""
        if not self._registry.is_online(host.id):
            return offline_fault(host.name)
        cell = self._cell(backend, host)
        if cell is not None and (cell.status in _USABLE or (cell.code is _FULL and not takes_space)):
            return None
        code = (cell.code if cell else None) or FaultCode.CONVERGING
        detail = (cell.detail if cell else None) or f"{host.name} has not taken over {backend.name} yet"
        return Fault(code=code, detail=detail, remedy=(cell.remedy if cell else None) or REMEDIES[code], host=host.name)

    def _refuse(self, found: Sequence[tuple[BackendRow, Fault]], host: str | None) -> None:
        """found: an objection of each host that was thought of. host: the one that was asked for."""
        faults = [fault for _, fault in found]
        is_away = all(fault.code is FaultCode.HOST_OFFLINE for fault in faults)
        names = " and ".join(dict.fromkeys(backend.name for backend, _ in found))
        who = f"{faults[0].host} cannot" if host is not None or len(faults) == 1 else "no host can"
        raise Refused.because(
            ProblemCode.NO_AGENT if is_away else ProblemCode.PROBE_FAILED,
            f"{who} use {names} now; nothing was changed",
            faults=tuple(faults),
            retry_after_s=5 if is_away else None,
        )

    def _refuse_full(self, backend: BackendRow, host: HostRow, size_bytes: int) -> None:
        """Raises Refused when the backend is past its critical line as the host sees it."""
        cell = self._cell(backend, host)
        capacity = cell.capacity if cell else None
        if size_bytes == 0 or capacity is None or capacity.total_bytes == 0:
            return
        if capacity.used_bytes > CRITICAL * capacity.total_bytes:
            share = capacity.used_bytes / capacity.total_bytes
            what = Fault(
                code=FaultCode.NO_SPACE,
                detail=f"{share:.1%} of {backend.name} is used, and nothing new comes to it beyond {CRITICAL:.0%}",
                remedy=REMEDIES[FaultCode.NO_SPACE],
                host=host.name,
            )
            raise Refused.because(
                ProblemCode.PROBE_FAILED, f"{backend.name} is full; nothing was changed", faults=(what,)
            )

    def _cell(self, backend: BackendRow, host: HostRow) -> HostObservation | None:
        return next((cell for cell in self._registry.cells(backend.id) if cell.host_id == host.id), None)

    def _rank(self, backend: BackendRow, host: HostRow) -> int:
        cell = self._cell(backend, host)
        return 0 if cell is not None and cell.status is HealthStatus.HEALTHY else 1

    def _available(self, backend: BackendRow, host: HostRow) -> int:
        cell = self._cell(backend, host)
        return cell.capacity.available_bytes if cell is not None and cell.capacity is not None else 0

    def _is_revoked(self, host_id: str | None) -> bool:
        """Not of one that this replica has not heard of yet: what lies there is not lost."""
        row = self._registry.host_row(host_id) if host_id else None
        return row is not None and row.revoked_at is not None
