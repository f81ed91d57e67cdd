"""What hosts report, made fit to be believed: an agent is root on its host, not here.

A host's clock may be wrong and its agent may be somebody else's by now. So the age of an observation is what
the host says (sent minus observed, both by its own clock), never its date; numbers are bounded; texts are cut.
"""

import datetime as dt
import math
from collections.abc import Iterable

from msgspec.structs import replace

from schemas.agent_rpc import Observation
from schemas.backends import Capacity, HealthStatus
from schemas.faults import Fault
from schemas.ids import is_id

_MAX_BYTES = 2**60
_MAX_TEXT = 1000
#: What the database's columns hold.
_MAX_BIGINT, _MAX_INT = 2**63 - 1, 2**31 - 1
_MAX_LATENCY_MS = 24 * 3600 * 1000.0


def believable(observations: Iterable[Observation], *, sent_at: dt.datetime | None) -> list[Observation]:
    """The observations with our times in them; one that makes no sense is left out. sent_at None: they were made just now."""
    now = dt.datetime.now(dt.UTC)
    return [fit for seen in observations if (fit := _fit(seen, now, sent_at)) is not None]


def answered(observation: Observation, backend_id: str) -> list[Observation]:
    """What a host answered of the backend that it was asked about; nothing if it speaks of another."""
    return [seen for seen in believable([observation], sent_at=None) if seen.backend_id == backend_id]


def failed(backend_id: str, generation: int, what: Fault) -> Observation:
    """What a host's refusal says of the backend there, until its own next word. what: as agents.fit_fault has made it fit."""
    return Observation(
        backend_id=backend_id,
        generation=generation,
        status=HealthStatus.UNREACHABLE,
        code=what.code,
        detail=what.detail,
        remedy=what.remedy,
        observed_at=dt.datetime.now(dt.UTC),
    )


def _fit(seen: Observation, now: dt.datetime, sent_at: dt.datetime | None) -> Observation | None:
    if not is_id(seen.backend_id) or not 0 <= seen.order <= _MAX_BIGINT:
        return None
    if not 0 <= seen.generation <= _MAX_BIGINT or not 0 <= seen.credential_version <= _MAX_INT:
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
        detail=_text(seen.detail),
        remedy=_text(seen.remedy),
        capacity=_fit_capacity(seen.capacity, observed_at) if seen.capacity else None,
    )


def _text(words: str | None) -> str | None:
    """Cut, and without NUL, which the database does not take."""
    return words.replace("\0", "")[:_MAX_TEXT] if words else words


def _fit_capacity(found: Capacity, observed_at: dt.datetime) -> Capacity | None:
    figures = (found.total_bytes, found.used_bytes, found.available_bytes)
    if not all(0 <= figure <= _MAX_BYTES for figure in figures):
        return None
    name = _text(found.file_system)
    return replace(found, observed_at=observed_at, file_system=name)
