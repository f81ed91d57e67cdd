"""Convergence: what the manager wants of this host is fetched and made true, each backend on its own.

A sync happens after each connection, on a nudge, after each change that it made itself (so that the
manager sees what is held), when an attach that failed is due again, and every few minutes. The rules for
fences are those of schemas/agent_rpc.py: a line that a newer command has overtaken is left alone.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from agent.config import Intervals
from agent.errors import AgentFault
from agent.held_volumes import HeldVolumes
from agent.host import Host
from agent.journal import Journal
from schemas.agent_rpc import Intent, SyncReply, SyncRequest, Wanted
from schemas.bus import BusError
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.hosts import AgentFacts
from schemas.ids import is_id
from schemas.logs import about

log = logging.getLogger(__name__)

#: Backends that are changed at once; a dead server keeps its place for a mount's time-out.
PARALLEL = 16
#: Of those whose server did not answer the last time: however many die, the others keep their places.
PARALLEL_SLOW = 4
_SLOW = (FaultCode.TIMED_OUT, FaultCode.HUNG, FaultCode.SERVER_UNREACHABLE)
SYNC_TIMEOUT_S = 5.0
#: Between two syncs, whatever wakes us: many changes are told in one, and each sync voids the fences of the one before.
_MIN_GAP_S = 0.2
_RETRY_CAP_S = 30.0


@dataclass(frozen=True)
class _Line:
    """What to do with one backend. target None: it is not wanted, and released with or without its marker."""

    fence: int
    target: Target | None
    remove_marker: bool = False


@dataclass(frozen=True)
class _Attempt:
    """The last attach or release that a sync made; not before `due_at` is the same tried again."""

    target: Target | None
    number: int
    due_at: float
    code: FaultCode | None = None


class Reconciler:
    """ask: sends the encoded SyncRequest and returns the reply's bytes."""

    def __init__(
        self,
        *,
        host: Host,
        held: HeldVolumes,
        journal: Journal,
        ask: Callable[[bytes], Awaitable[bytes]],
        facts: AgentFacts,
        intervals: Intervals,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._held = held
        self._journal = journal
        self._ask = ask
        self._facts = facts
        self._intervals = intervals
        self._clock = clock
        self._is_woken = False
        self._news = asyncio.Event()
        self._slots = asyncio.Semaphore(PARALLEL)
        self._slow_slots = asyncio.Semaphore(PARALLEL_SLOW)
        self._waiting: dict[str, _Line] = {}
        self._working: set[str] = set()
        self._attempts: dict[str, _Attempt] = {}
        self._must_fence_off = False
        self._is_fencing_off = False

    def wake(self) -> None:
        """A sync follows soon; any number of calls before it count as one."""
        self._is_woken = True
        self._news.set()

    async def run(self) -> None:
        """Converges for ever; a backend whose driver takes its time delays neither the next sync nor the others."""
        failures = 0
        async with asyncio.TaskGroup() as group:
            while True:
                self._is_woken = False
                try:
                    self._take(await self._sync(), group)
                except (BusError, msgspec.DecodeError, UnicodeDecodeError) as error:
                    failures += 1
                    log.warning("sync failed", extra={"reason": str(error)[:300]})
                except Exception:
                    # The edge of this loop; for one, the host's own disk may be full for a while.
                    failures += 1
                    log.exception("sync raised")
                else:
                    failures = 0
                    await self._pause(random.uniform(0.8, 1.2) * self._intervals.reconcile_s, is_plan_known=True)
                    continue
                pause_s = random.uniform(0.5, 1) * min(_RETRY_CAP_S, 2.0 ** min(failures, 10))
                await self._pause(pause_s, is_plan_known=False)

    async def _sync(self) -> SyncReply:
        request = SyncRequest(facts=self._facts, held=self._host.held())
        return msgspec.json.decode(await self._ask(msgspec.json.encode(request)), type=SyncReply)

    async def _pause(self, pause_s: float, *, is_plan_known: bool) -> None:
        """For pause_s, or until woken, or until an attempt is due, but never for no time at all."""
        until = self._clock() + pause_s
        await asyncio.sleep(_MIN_GAP_S)
        while not self._is_woken:
            self._news.clear()
            rest_s = min(until - self._clock(), self._due_in_s() if is_plan_known else math.inf)
            if rest_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._news.wait()

    def _due_in_s(self) -> float:
        """Seconds until the next attempt may be made; those under way do not count."""
        due_at: list[float] = [attempt.due_at for i, attempt in self._attempts.items() if i not in self._working]
        return min(due_at) - self._clock() if due_at else math.inf

    def _take(self, reply: SyncReply, group: asyncio.TaskGroup) -> None:
        """Every fence is remembered before anything is done; then each backend that needs it gets a line and a task."""
        wanted = {line.target.backend_id: line for line in reply.wanted if is_id(line.target.backend_id)}
        fences = {i: line.fence for i, line in wanted.items() if line.fence > (self._journal.fence(i) or 0)}
        self._journal.remember_fences(fences)
        if reply.attachments is not None:
            # Before any backend is attached anew: with it come back the volumes that this word leaves.
            self._held.hear(reply.attachments, reply.fence)
            self._fence_off_soon(group)
        held = {line.backend_id: line for line in self._host.held()}
        # A newer reply replaces what is still waiting of an older one.
        self._waiting = {i: _line(line) for i, line in wanted.items() if _needs_work(line, is_held=i in held)}
        for backend_id, line in held.items():
            if backend_id not in wanted and line.fence <= reply.fence:
                # Its marker may by now be needed by others, so it stays.
                self._waiting[backend_id] = _Line(reply.fence, None)
        if reply.fence > self._journal.floor():
            self._journal.raise_floor(reply.fence, keep=frozenset(wanted))
        self._host.forget_all_but(frozenset(wanted))
        self._attempts = {i: attempt for i, attempt in self._attempts.items() if i in self._waiting}
        for backend_id in self._waiting.keys() - self._working:
            self._working.add(backend_id)
            group.create_task(self._work(backend_id), name=f"converge {backend_id}")

    def _fence_off_soon(self, group: asyncio.TaskGroup) -> None:
        """By the newest word, in one task, which no backend waits for."""
        self._must_fence_off = True
        if not self._is_fencing_off:
            self._is_fencing_off = True
            group.create_task(self._fence_off(), name="fence off")

    async def _fence_off(self) -> None:
        try:
            while self._must_fence_off:
                self._must_fence_off = False
                await self._held.fence_off()
        except Exception:
            # An edge, as of the loop itself: the next sync tries again.
            log.exception("fencing raised")
        finally:
            self._is_fencing_off = False

    async def _work(self, backend_id: str) -> None:
        """Applies the backend's lines until none is waiting."""
        try:
            while (line := self._waiting.pop(backend_id, None)) is not None:
                with about(backend_id=backend_id):
                    await self._apply(backend_id, line)
        finally:
            self._working.discard(backend_id)
            # Not a reason to sync, but perhaps something will be due earlier than we planned.
            self._news.set()

    async def _apply(self, backend_id: str, line: _Line) -> None:
        # Who waits for a lock, behind a probe that hangs perhaps, must hold no place; who waits for a place must hold no
        # lock, or probes and commands of that backend would queue behind other backends' dead servers.
        async with self._host.lock(backend_id):
            pass
        async with self._place(backend_id), self._host.lock(backend_id):
            if (self._journal.fence(backend_id) or 0) > line.fence:
                self._attempts.pop(backend_id, None)
                return
            try:
                if line.target is None:
                    await self._release(backend_id, line)
                else:
                    await self._attach(line.target)
            except AgentFault as error:
                self._note(backend_id, line.target, error)
            except Exception:
                # An edge: a bug met with one backend must not stop the others' convergence.
                log.exception("convergence raised")
                self._note(backend_id, line.target, AgentFault.of(FaultCode.FAILED, "internal error on the host"))

    def _place(self, backend_id: str) -> asyncio.Semaphore:
        last = self._attempts.get(backend_id)
        return self._slow_slots if last is not None and last.code in _SLOW else self._slots

    async def _attach(self, wanted: Target) -> None:
        backend_id = wanted.backend_id
        target = self._host.checked(wanted)
        self._host.drop_staged(target)
        if await self._host.is_current(target):
            self._attempts.pop(backend_id, None)
            if self._host.adopt(target):
                self.wake()
            return
        if self._begin(backend_id, wanted):
            await self._host.attach(target, establish=self._host.may_establish(target))
            await self._held.restore(backend_id)
            self.wake()

    async def _release(self, backend_id: str, line: _Line) -> None:
        if self._begin(backend_id, None):
            await self._held.refuse_release(backend_id)
            await self._host.release(backend_id, remove_marker=line.remove_marker)
            self._attempts.pop(backend_id, None)
            self.wake()

    def _begin(self, backend_id: str, target: Target | None) -> bool:
        """Whether an attempt may be made now. It counts even when it succeeds: what has to be attached
        again and again is not attached hotter than what fails."""
        last = self._attempts.get(backend_id)
        if last is None or last.target != target:
            number = 1
        elif self._clock() >= last.due_at or last.code is FaultCode.NEEDS_CREDENTIALS:
            number = last.number + 1
        else:
            return False
        self._attempts[backend_id] = _Attempt(target, number, self._due_at(number))
        return True

    def _note(self, backend_id: str, target: Target | None, error: AgentFault) -> None:
        """The failure is reported, and tried again when it is due."""
        code = error.fault.code
        log.warning(
            "backend not converged", extra={"code": code.value, "detail": error.fault.detail}, exc_info=error.__cause__
        )
        number = self._attempts[backend_id].number if backend_id in self._attempts else 1
        self._attempts[backend_id] = _Attempt(target, number, self._due_at(number), code)
        if target is not None:
            self._host.note_failure(target, error.fault)

    def _due_at(self, number: int) -> float:
        pause_s = min(self._intervals.probe_s * 2.0 ** min(number - 1, 3), self._intervals.reconcile_s)
        return self._clock() + random.uniform(0.8, 1.2) * pause_s


def _needs_work(line: Wanted, *, is_held: bool) -> bool:
    match line.intent:
        case Intent.ATTACHED:
            return True
        case Intent.ABSENT:
            return is_held
        case Intent.HOLD:
            return False


def _line(wanted: Wanted) -> _Line:
    if wanted.intent is Intent.ATTACHED:
        return _Line(wanted.fence, wanted.target)
    return _Line(wanted.fence, None, wanted.remove_marker)
