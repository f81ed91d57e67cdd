"""A backend's health from its hosts' observations: pure functions, the one place where colours are decided.

A silent host counts as unknown, never as its last word. healthy: every chosen host is. unreachable: none
can use it and at least one says so. pending: nobody has tried yet. unknown: nobody who could say speaks.
degraded: anything between.
"""

import datetime as dt
from collections.abc import Sequence

import msgspec

from schemas.backends import Capability, Capacity, HealthStatus, HostObservation
from schemas.faults import REMEDIES, FaultCode
from schemas.hosts import HostState


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A chosen host and what it last said; `status` None: nothing yet."""

    host_id: str
    host: str
    state: HostState
    status: HealthStatus | None
    code: FaultCode | None = None
    detail: str | None = None
    remedy: str | None = None
    latency_ms: float | None = None
    capacity: Capacity | None = None
    capabilities: tuple[Capability, ...] = ()
    observed_at: dt.datetime | None = None
    generation: int | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    status: HealthStatus
    code: FaultCode | None
    detail: str | None


def observe(seen: Seen, *, generation: int, now: dt.datetime, stale_s: float) -> HostObservation:
    """The cell as it may be believed now."""
    status, code, detail, remedy = seen.status, seen.code, seen.detail, seen.remedy
    if status is None or seen.observed_at is None:
        status, code = HealthStatus.PENDING, None
        is_online = seen.state is HostState.ONLINE
        detail = (
            "not yet taken over by the host" if is_online else "the host is offline and takes it over when it returns"
        )
        remedy = None
    elif seen.state is not HostState.ONLINE:
        status, code = HealthStatus.UNKNOWN, FaultCode.HOST_OFFLINE
        detail, remedy = f"the host is silent; its last probe was at {_clock(seen.observed_at)}", REMEDIES[code]
    elif (now - seen.observed_at).total_seconds() > stale_s:
        status, code = HealthStatus.UNKNOWN, FaultCode.TIMED_OUT
        detail, remedy = f"last probed at {_clock(seen.observed_at)}", REMEDIES[code]
    elif (seen.generation or 0) < generation and status in (HealthStatus.HEALTHY, HealthStatus.DEGRADED):
        behind = f"the host still uses generation {seen.generation} of {generation}"
        if status is HealthStatus.DEGRADED and code not in (None, FaultCode.SLOW, FaultCode.NEARLY_FULL):
            # The host says what is in the way of the newer one.
            detail = f"{behind}: {detail}"
        else:
            status, code = HealthStatus.DEGRADED, FaultCode.CONVERGING
            detail, remedy = behind, REMEDIES[code]
    return HostObservation(
        host=seen.host,
        host_id=seen.host_id,
        status=status,
        code=code,
        detail=detail,
        remedy=remedy,
        latency_ms=seen.latency_ms,
        capacity=seen.capacity,
        observed_at=seen.observed_at,
        desired_generation=generation,
        observed_generation=seen.generation,
    )


def derive(cells: Sequence[HostObservation]) -> Verdict:
    """The backend's health from its cells."""
    if not cells:
        return Verdict(status=HealthStatus.PENDING, code=None, detail="no host is chosen for it")
    statuses = {cell.status for cell in cells}
    if statuses == {HealthStatus.HEALTHY}:
        return Verdict(status=HealthStatus.HEALTHY, code=None, detail=None)
    if len(statuses) == 1 and not statuses & {HealthStatus.DEGRADED, HealthStatus.UNREACHABLE}:
        worst = cells[0]
        return Verdict(status=worst.status, code=worst.code, detail=_sentence(worst, cells))
    worst = min(
        (cell for cell in cells if cell.status is not HealthStatus.HEALTHY), key=lambda cell: _RANK[cell.status]
    )
    is_usable = bool(statuses & {HealthStatus.HEALTHY, HealthStatus.DEGRADED})
    if is_usable:
        status = HealthStatus.DEGRADED
    elif HealthStatus.UNREACHABLE in statuses:
        status = HealthStatus.UNREACHABLE
    else:
        status = HealthStatus.UNKNOWN
    return Verdict(status=status, code=worst.code, detail=_sentence(worst, cells))


def capacity(cells: Sequence[HostObservation], *, is_shared: bool) -> Capacity | None:
    """Of shared storage the newest figure; of local folders the sum, each file system counted once."""
    known = [cell.capacity for cell in cells if cell.capacity is not None and cell.status is not HealthStatus.PENDING]
    if not known:
        return None
    newest = max(known, key=lambda c: c.observed_at)
    if is_shared:
        known = [newest]
    # The newest figure of each file system; where an agent does not name it, each figure is one of its own.
    apart = {c.file_system or str(n): c for n, c in enumerate(sorted(known, key=lambda c: c.observed_at))}
    return Capacity(
        total_bytes=sum(c.total_bytes for c in apart.values()),
        used_bytes=sum(c.used_bytes for c in apart.values()),
        available_bytes=sum(c.available_bytes for c in apart.values()),
        observed_at=newest.observed_at,
    )


_RANK = {
    HealthStatus.UNREACHABLE: 0,
    HealthStatus.DEGRADED: 1,
    HealthStatus.UNKNOWN: 2,
    HealthStatus.PENDING: 3,
}


def _sentence(worst: HostObservation, cells: Sequence[HostObservation]) -> str:
    alike = sum(cell.status is worst.status and cell.code is worst.code for cell in cells)
    what = worst.detail or (worst.code.value.replace("_", " ") if worst.code else f"is {worst.status}")
    return f"{worst.host}: {what}" if alike == 1 else f"{alike} of {len(cells)} hosts, {worst.host} among them: {what}"


def _clock(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
