"""The newest observation of every backend, and its way to the manager: at once when it changes, else in batches."""

import asyncio
import datetime as dt
import itertools
import logging
from collections.abc import Awaitable, Callable

import msgspec

from agent.drivers.base import ProbeReport
from agent.errors import SYMPTOMS
from schemas.agent_rpc import Observation, Status
from schemas.backends import HealthStatus
from schemas.bus import BusError
from schemas.command import Target
from schemas.faults import REMEDIES, Fault, FaultCode

log = logging.getLogger(__name__)

NEARLY_FULL = 0.95
#: An observation has at most about a kilobyte; the bus takes 256 KiB a message.
_PER_MESSAGE = 100
_MAX_DETAIL = 600
#: A life's number is a time in ms: two million observations a ms would have to be made for one life to count into the next.
_ORDER_BITS = 21


def assess(target: Target, report: ProbeReport, *, limit_s: float) -> Observation:
    """What a finished probe says: healthy, or degraded for what the driver found, for slowness or for lack of space."""
    code, detail = (FaultCode(report.code), report.detail) if report.code else (None, None)
    capacity = report.capacity
    if code is None and report.latency_ms > limit_s * 500:
        code, detail = FaultCode.SLOW, f"the probe took {report.latency_ms / 1000:.1f} s of at most {limit_s:g} s"
    if code is None and capacity is not None and capacity.total_bytes > 0:
        used = 1 - capacity.available_bytes / capacity.total_bytes
        if used >= NEARLY_FULL:
            code, detail = FaultCode.NEARLY_FULL, f"{used:.0%} of the space is used"
    return Observation(
        backend_id=target.backend_id,
        generation=target.generation,
        credential_version=target.credential_version,
        status=HealthStatus.HEALTHY if code is None else HealthStatus.DEGRADED,
        code=code,
        detail=detail,
        remedy=None if code is None else REMEDIES[code],
        latency_ms=report.latency_ms,
        capacity=capacity,
        capabilities=report.capabilities,
        observed_at=_now(),
    )


def failing(target: Target, what: Fault, *, status: HealthStatus = HealthStatus.UNREACHABLE) -> Observation:
    """What a fault says of the backend on this host."""
    return Observation(
        backend_id=target.backend_id,
        generation=target.generation,
        credential_version=target.credential_version,
        status=status,
        code=what.code,
        detail=what.detail[:_MAX_DETAIL],
        remedy=what.remedy,
        observed_at=_now(),
    )


class Board:
    """The newest observation of each backend. `run` sends them; a lost message is made good by the next probe."""

    def __init__(self, send: Callable[[Status], Awaitable[None]], *, batch_s: float, life: int = 0) -> None:
        """life: higher than in any earlier run of this agent (Journal.begin_life); it comes first in an observation's order."""
        self._orders = itertools.count((life << _ORDER_BITS) + 1)
        self._send = send
        self._batch_s = batch_s
        self._latest: dict[str, Observation] = {}
        self._concerns: dict[str, Fault] = {}
        self._reasons: dict[str, Fault] = {}
        self._unsent: set[str] = set()
        self._urgent = asyncio.Event()

    def latest(self, backend_id: str) -> Observation | None:
        return self._latest.get(backend_id)

    def report(self, observation: Observation) -> Observation:
        """Kept and sent; the answer is it with the backend's concern laid over, when it would have been healthy.

        A symptom is shown as its reason, once that is known; anything else makes the reason void.
        """
        backend_id = observation.backend_id
        if not self._is_symptom(observation):
            self._reasons.pop(backend_id, None)
        elif (reason := self._reasons.get(backend_id)) is not None:
            observation = msgspec.structs.replace(
                observation, code=reason.code, detail=reason.detail[:_MAX_DETAIL], remedy=reason.remedy
            )
        concern = self._concerns.get(backend_id)
        if concern is not None and observation.status is HealthStatus.HEALTHY:
            observation = msgspec.structs.replace(
                observation,
                status=HealthStatus.DEGRADED,
                code=concern.code,
                detail=concern.detail[:_MAX_DETAIL],
                remedy=concern.remedy,
            )
        observation = msgspec.structs.replace(observation, order=next(self._orders))
        before = self._latest.get(backend_id)
        self._latest[backend_id] = observation
        self._unsent.add(backend_id)
        if before is None or _gist(before) != _gist(observation):
            self._urgent.set()
            log.info(
                "backend observed",
                extra={
                    "backend_id": backend_id,
                    "status": observation.status.value,
                    "code": observation.code,
                    "detail": observation.detail,
                },
            )
        return observation

    def set_concern(self, backend_id: str, concern: Fault | None) -> None:
        """What keeps a backend that still works in its old form from taking over the wanted one; None: nothing."""
        if concern is None:
            self._concerns.pop(backend_id, None)
        else:
            self._concerns[backend_id] = concern

    def has_symptom(self, backend_id: str) -> bool:
        """Whether the newest observation may be of a mount that works again only when it is made anew."""
        latest = self._latest.get(backend_id)
        return latest is not None and self._is_symptom(latest)

    def has_reason(self, backend_id: str) -> bool:
        return backend_id in self._reasons

    def set_reason(self, backend_id: str, reason: Fault) -> None:
        """Why what is attached shows a symptom, as an attempt to attach it anew has found."""
        self._reasons[backend_id] = reason

    def forget(self, backend_id: str) -> None:
        self._latest.pop(backend_id, None)
        self._reasons.pop(backend_id, None)
        self._concerns.pop(backend_id, None)
        self._unsent.discard(backend_id)

    def unreachable(self) -> frozenset[str]:
        return frozenset(i for i, o in self._latest.items() if o.status is HealthStatus.UNREACHABLE)

    def forget_all_but(self, kept: frozenset[str]) -> None:
        for backend_id in self._latest.keys() - kept:
            self.forget(backend_id)

    async def resend(self) -> None:
        """Everything is sent once more: after each connection, for the last word may have been lost."""
        self._unsent.update(self._latest)
        self._urgent.set()

    async def run(self) -> None:
        """Sends for ever."""
        while True:
            try:
                async with asyncio.timeout(self._batch_s):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            self._urgent.clear()
            await self._send_unsent()

    def _is_symptom(self, observation: Observation) -> bool:
        """An observation that shows the reason already is one, too."""
        reason = self._reasons.get(observation.backend_id)
        is_known = observation.code in SYMPTOMS or (reason is not None and observation.code == reason.code)
        return observation.status is HealthStatus.UNREACHABLE and is_known

    async def _send_unsent(self) -> None:
        waiting = sorted(self._unsent)
        for first in range(0, len(waiting), _PER_MESSAGE):
            batch = [self._latest[i] for i in waiting[first : first + _PER_MESSAGE] if i in self._latest]
            self._unsent.difference_update(o.backend_id for o in batch)
            try:
                await self._send(Status(sent_at=_now(), observations=tuple(batch)))
            except BusError as error:
                self._unsent.update(o.backend_id for o in batch if o.backend_id in self._latest)
                log.debug("status not sent", extra={"reason": str(error)})
                return


def _gist(observation: Observation) -> tuple[object, ...]:
    return observation.status, observation.code, observation.generation, observation.credential_version


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
