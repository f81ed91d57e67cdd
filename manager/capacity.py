"""How full backends were, and when they will be full at the pace of the last week."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from manager.registry import Registry
from manager.shared_runs import SharedRuns
from manager.store import capacity as store
from manager.store.capacity import HourlyMean, Sample
from manager.store.pool import Pool

#: Seconds for which what was read is given to whoever asks; a sample comes every quarter of an hour.
KEPT_S = 60.0
#: Backends whose history one statement brings: 4 ms of decoding and lines, then it is the others' turn (200 took 30 ms; 2026-11-29).
_AT_ONCE = 5
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


@dataclass(frozen=True)
class _Read:
    samples: tuple[Sample, ...]
    full_in_days: float | None


class Capacities:
    """Reads what the leader's watch has written: once for all who ask meanwhile, and not again for a minute."""

    def __init__(self, pool: Pool, registry: Registry) -> None:
        self._pool = pool
        self._registry = registry
        self._readings = SharedRuns[None, Mapping[str, _Read]]("capacities", self._read)
        self._last: Mapping[str, _Read] = {}
        self._kept_until = -math.inf

    async def list(self) -> Sequence[CapacityHistory]:
        """One a live backend, the oldest backend first; one that has come since the reading has no samples yet."""
        is_kept = time.monotonic() < self._kept_until
        found = self._last if is_kept else await self._readings.result(None)
        rows = (self._registry.row(backend_id) for backend_id in sorted(self._registry.backend_ids()))
        return [
            CapacityHistory(
                backend_id=row.id,
                backend=row.name,
                full_in_days=found[row.id].full_in_days if row.id in found else None,
                samples=found[row.id].samples if row.id in found else (),
            )
            for row in rows
            if row is not None
        ]

    async def _read(self, _: None) -> Mapping[str, _Read]:
        """By backend. Read and reckoned a few at a time, so that nobody else waits for all of them."""
        ids = self._registry.backend_ids()
        found: dict[str, _Read] = {}
        for first in range(0, len(ids), _AT_ONCE):
            async with self._pool.acquire() as connection:
                histories = await store.histories(connection, ids[first : first + _AT_ONCE])
            for backend_id, history in histories.items():
                found[backend_id] = _Read(history.samples, full_in_days(history.means))
            await asyncio.sleep(0)
        self._last, self._kept_until = found, time.monotonic() + KEPT_S
        return found


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
