"""The one place where colours are decided, over every mix of what hosts can say."""

import datetime as dt

import pytest
from msgspec.structs import replace

from manager.health import Seen, capacity, derive, observe
from schemas.backends import Capacity, HealthStatus, HostObservation
from schemas.faults import FaultCode
from schemas.hosts import HostState

_NOW = dt.datetime(2026, 11, 23, 12, 0, tzinfo=dt.UTC)
_STALE_S = 100.0


def _seen(
    status: HealthStatus | None = HealthStatus.HEALTHY,
    *,
    state: HostState = HostState.ONLINE,
    age_s: float = 1.0,
    generation: int = 1,
    code: FaultCode | None = None,
) -> Seen:
    observed_at = None if status is None else _NOW - dt.timedelta(seconds=age_s)
    return Seen(
        host_id="h", host="hv1", state=state, status=status, code=code, observed_at=observed_at, generation=generation
    )


def _cell(seen: Seen, generation: int = 1) -> HostObservation:
    return observe(seen, generation=generation, now=_NOW, stale_s=_STALE_S)


H, D, U, P, X = (
    HealthStatus.HEALTHY,
    HealthStatus.DEGRADED,
    HealthStatus.UNREACHABLE,
    HealthStatus.PENDING,
    HealthStatus.UNKNOWN,
)


def _of(status: HealthStatus) -> HostObservation:
    return HostObservation(host=f"hv-{status}", host_id=status, status=status, code=None)


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ((), P),
        ((H, H), H),
        ((H, X), D),
        ((H, P), D),
        ((H, U), D),
        ((D, U), D),
        ((D,), D),
        ((U, U), U),
        ((U, X), U),
        ((U, P), U),
        ((X, X), X),
        ((P, P), P),
        ((P, X), X),
    ],
)
def test_health_of_a_mix_of_hosts(cells: tuple[HealthStatus, ...], wanted: HealthStatus) -> None:
    assert derive([_of(cell) for cell in cells]).status is wanted


def test_silent_host_is_unknown_whatever_it_said_last() -> None:
    cell = _cell(_seen(H, state=HostState.OFFLINE))
    assert (cell.status, cell.code) == (X, FaultCode.HOST_OFFLINE)
    assert cell.detail is not None
    assert "2026-11-23 11:59:59 UTC" in cell.detail


def test_observation_that_grew_old_is_unknown() -> None:
    assert _cell(_seen(H, age_s=_STALE_S - 1)).status is H
    assert _cell(_seen(H, age_s=_STALE_S + 1)).status is X


def test_host_on_an_older_generation_is_converging() -> None:
    cell = _cell(_seen(H, generation=1), generation=2)
    assert (cell.status, cell.code) == (D, FaultCode.CONVERGING)
    assert _cell(_seen(U, generation=1, code=FaultCode.IO_ERROR), generation=2).code is FaultCode.IO_ERROR


def test_host_that_never_said_anything_is_pending_even_when_offline() -> None:
    assert _cell(_seen(None)).status is P
    assert _cell(_seen(None, state=HostState.OFFLINE)).status is P


def test_worst_host_is_named_with_its_words() -> None:
    bad = HostObservation(host="hv2", host_id="2", status=U, code=FaultCode.READ_ONLY, detail="Read-only file system")
    verdict = derive([_of(H), bad])
    assert (verdict.status, verdict.code, verdict.detail) == (D, FaultCode.READ_ONLY, "hv2: Read-only file system")


def test_capacity_of_shared_storage_is_one_figure_and_of_local_folders_the_sum() -> None:
    def cell(used: int, age_s: float) -> HostObservation:
        figures = Capacity(
            total_bytes=100, used_bytes=used, available_bytes=100 - used, observed_at=_NOW - dt.timedelta(seconds=age_s)
        )
        return HostObservation(host="h", host_id="h", status=H, capacity=figures)

    cells = [cell(10, 5.0), cell(20, 1.0)]
    same_disk = [replace(c, capacity=replace(c.capacity, file_system="boot:1")) for c in cells if c.capacity]
    once = capacity(same_disk, is_shared=False)
    assert once is not None
    assert (once.total_bytes, once.used_bytes) == (100, 20), (
        "two agents on one machine see one disk, the newer figure counts"
    )
    shared, local = capacity(cells, is_shared=True), capacity(cells, is_shared=False)
    assert shared is not None
    assert local is not None
    assert (shared.total_bytes, shared.used_bytes) == (100, 20)
    assert (local.total_bytes, local.used_bytes, local.available_bytes) == (200, 30, 170)
    assert capacity([_of(P)], is_shared=True) is None
