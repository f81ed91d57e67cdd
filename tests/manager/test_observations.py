"""What an odd or hostile agent may report, and what is left of it."""

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace

from manager.observations import believable
from schemas.agent_rpc import Observation
from schemas.backends import Capacity, HealthStatus

_NOW = dt.datetime.now(dt.UTC)
_GOOD = Observation(
    backend_id="01a20a7c-5b8b-7040-9cb3-f3c33d30d1ea",
    generation=1,
    status=HealthStatus.HEALTHY,
    latency_ms=1.5,
    capacity=Capacity(total_bytes=10, used_bytes=4, available_bytes=6, observed_at=_NOW),
    observed_at=_NOW,
)


def _age_s(seen: Observation) -> float:
    return (dt.datetime.now(dt.UTC) - seen.observed_at).total_seconds()


@pytest.mark.parametrize("wrong_by", [dt.timedelta(days=-400), dt.timedelta(0), dt.timedelta(days=400)])
def test_age_is_told_by_the_hosts_own_clock_however_wrong_it_is(wrong_by: dt.timedelta) -> None:
    host_now = dt.datetime.now(dt.UTC) + wrong_by
    seen = replace(_GOOD, observed_at=host_now - dt.timedelta(seconds=30))
    (fit,) = believable([seen], sent_at=host_now)
    assert 29 < _age_s(fit) < 35
    assert fit.capacity is not None
    assert fit.capacity.observed_at == fit.observed_at


def test_observation_from_the_hosts_future_is_from_now_at_best() -> None:
    (fit,) = believable([replace(_GOOD, observed_at=_NOW + dt.timedelta(days=300))], sent_at=_NOW)
    assert 0 <= _age_s(fit) < 5


def test_answer_to_a_command_is_from_now() -> None:
    (fit,) = believable([replace(_GOOD, observed_at=dt.datetime(1999, 1, 1, tzinfo=dt.UTC))], sent_at=None)
    assert 0 <= _age_s(fit) < 5


@pytest.mark.parametrize(
    "changes",
    [
        {"observed_at": dt.datetime(2026, 11, 23, 12, 0)},  # noqa: DTZ001  (that is what is refused)
        {"observed_at": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))},
        {"generation": -1},
        {"credential_version": -1},
        {"latency_ms": float("nan")},
        {"latency_ms": -1.0},
    ],
)
def test_nonsense_is_left_out_and_the_rest_stays(changes: dict[str, Any]) -> None:
    assert believable([replace(_GOOD, **changes), _GOOD], sent_at=_NOW + dt.timedelta(seconds=1)) != []
    assert len(believable([replace(_GOOD, **changes), _GOOD], sent_at=_NOW + dt.timedelta(seconds=1))) == 1


@pytest.mark.parametrize("figures", [{"total_bytes": -5}, {"used_bytes": 2**63 - 1}])
def test_capacity_out_of_bounds_is_none(figures: dict[str, int]) -> None:
    assert _GOOD.capacity is not None
    (fit,) = believable([replace(_GOOD, capacity=replace(_GOOD.capacity, **figures))], sent_at=_NOW)
    assert fit.capacity is None


def test_long_texts_are_cut() -> None:
    (fit,) = believable([replace(_GOOD, detail="x" * 100_000)], sent_at=_NOW)
    assert fit.detail is not None
    assert len(fit.detail) == 1000
