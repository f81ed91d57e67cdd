"""What hosts report, made fit to be believed: an agent is root on its host, not here.

A host's clock may be wrong and its agent may be somebody else's by now. So the age of an observation is what
the host says (sent minus observed, both by its own clock), never its date; numbers are bounded; texts are cut.
"""

import datetime as dt
import math
from collections.abc import Iterable

from msgspec.structs import replace

from schemas.agent_rpc import Observation
from schemas.backends import Capacity

_MAX_BYTES = 2**60
_MAX_TEXT = 1000
_MAX_LATENCY_MS = 24 * 3600 * 1000.0


def believable(observations: Iterable[Observation], *, sent_at: dt.datetime | None) -> list[Observation]:
    """The observations with our times in them; one that makes no sense is left out. sent_at None: they were made just now."""
    now = dt.datetime.now(dt.UTC)
    return [fit for seen in observations if (fit := _fit(seen, now, sent_at)) is not None]


def _fit(seen: Observation, now: dt.datetime, sent_at: dt.datetime | None) -> Observation | None:
    if seen.generation < 0 or seen.credential_version < 0:
        return None
    latency = seen.latency_ms
    if latency is not None and not (math.isfinite(latency) and 0 <= latency <= _MAX_LATENCY_MS):
        return None
    try:
        age = max(dt.timedelta(0), sent_at - seen.observed_at) if sent_at else dt.timedelta(0)
        observed_at = now - age
    except (TypeError, OverflowError):
        # A time without a zone, or at the end of the calendar.
        return None
    return replace(
        seen,
        observed_at=observed_at,
        detail=seen.detail[:_MAX_TEXT] if seen.detail else seen.detail,
        remedy=seen.remedy[:_MAX_TEXT] if seen.remedy else seen.remedy,
        capacity=_fit_capacity(seen.capacity, observed_at) if seen.capacity else None,
    )


def _fit_capacity(found: Capacity, observed_at: dt.datetime) -> Capacity | None:
    figures = (found.total_bytes, found.used_bytes, found.available_bytes)
    if not all(0 <= figure <= _MAX_BYTES for figure in figures):
        return None
    name = found.file_system[:200] if found.file_system else None
    return replace(found, observed_at=observed_at, file_system=name)
