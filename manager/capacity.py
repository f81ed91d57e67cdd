"""How full backends were, and when they will be full at the pace of the last week."""

from collections.abc import Sequence

import msgspec

from manager.registry import Registry
from manager.store import capacity as store
from manager.store.capacity import HourlyMean, Sample
from manager.store.pool import Pool

_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S
#: Hours; less says nothing about a week.
_LEAST_SPAN_H = 12
#: Of the total: a change of it beyond this begins another history, and growth over the span below this is none.
_OTHER_TOTAL = 0.01
_NO_GROWTH = 0.001
#: Days; whoever is told of eleven years is told nothing.
_FARTHEST_DAYS = 3650


class CapacityHistory(msgspec.Struct, frozen=True, kw_only=True):
    """One backend's last 24 h, the oldest first. full_in_days None: it does not grow, or nobody can tell."""

    backend_id: str
    backend: str
    full_in_days: float | None
    samples: tuple[Sample, ...]


class Capacities:
    """Reads what the leader's watch has written."""

    def __init__(self, pool: Pool, registry: Registry) -> None:
        self._pool = pool
        self._registry = registry

    async def list(self) -> Sequence[CapacityHistory]:
        """One a live backend, the oldest backend first."""
        backends = [(backend.id, backend.name) for backend in self._registry.backends()]
        async with self._pool.acquire() as connection:
            found = await store.histories(connection, [backend_id for backend_id, _ in backends])
        return [
            CapacityHistory(
                backend_id=backend_id,
                backend=name,
                full_in_days=full_in_days(found[backend_id].means),
                samples=found[backend_id].samples,
            )
            for backend_id, name in backends
        ]


def full_in_days(means: Sequence[HourlyMean]) -> float | None:
    """Days until nothing is available any more, at the pace of the means (the oldest first); None where nobody can tell.

    The pace is the slope of least squares; it is what takes away from what is available now. Available, not total less used:
    what a file system keeps for root fills no volume. After a change of the total only the part since then counts.
    """
    means = _since_last_change(means)
    if not means or means[-1].at_s - means[0].at_s < _LEAST_SPAN_H * _HOUR_S:
        return None
    span_s = means[-1].at_s - means[0].at_s
    loss_per_s = -_slope(means)
    if loss_per_s <= 0 or loss_per_s * span_s < _NO_GROWTH * means[-1].most_total_bytes:
        return None
    days = max(0.0, means[-1].available_bytes) / loss_per_s / _DAY_S
    return round(days, 1) if days <= _FARTHEST_DAYS else None


def _since_last_change(means: Sequence[HourlyMean]) -> Sequence[HourlyMean]:
    """The end of the means in which the total is what it is now. An hour with a change in it is not in it, for its mean is of both."""
    if not means:
        return means
    now_bytes = means[-1].most_total_bytes
    tolerated = _OTHER_TOTAL * now_bytes
    for index in range(len(means) - 1, -1, -1):
        mean = means[index]
        if max(mean.most_total_bytes - now_bytes, now_bytes - mean.least_total_bytes) > tolerated:
            return means[index + 1 :]
    return means


def _slope(means: Sequence[HourlyMean]) -> float:
    """Bytes a second by which what is available grows: least squares."""
    mean_at_s = sum(mean.at_s for mean in means) / len(means)
    mean_bytes = sum(mean.available_bytes for mean in means) / len(means)
    shared = sum((mean.at_s - mean_at_s) * (mean.available_bytes - mean_bytes) for mean in means)
    return shared / sum((mean.at_s - mean_at_s) ** 2 for mean in means)
