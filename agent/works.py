"""Long work of this host: begun once, looked at as often as one likes, ended when it no longer moves.

What nobody asks about any more ends by itself: a host that has lost its manager must not go on with what another host may
have been given meanwhile. The work of a key is one task, however many commands ask for it. How it goes is read from a small file on the host's own
disk, which the worker writes (job_io.py). What is known of it lives in this process: after a restart the same command
begins it anew.
"""

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from agent.errors import AgentFault
from agent.job_io import read_progress
from schemas.faults import FaultCode
from schemas.volume_rpc import WorkReport

log = logging.getLogger(__name__)

#: Works that run at once; more would only take the bandwidth of the storage from each other.
PARALLEL = 4
#: Of one backend: those on one that is dead wait until they are ended, and must leave places to the others.
PARALLEL_ON_BACKEND = 2
#: Seconds without a byte moved, after which a work has failed. Above what a server needs to come back from a restart.
STALL_S = 120.0
#: Seconds without anybody asking, after which a work ends: below what a manager waits for a silent host before it gives up on it
#: (manager/sagas/volume_moves.py), and far above the pauses between two looks.
ORPHAN_S = 150.0
#: How often, at most, it is seen whether a work moves; seconds.
_WATCH_S = 1.0
#: How long the end of a work is remembered, and of how many works: a manager that was away has that long to hear of it.
_KEPT_S = 600.0
_KEPT = 1000
#: Seconds that a work has to clean up after it was told to end; what its clean-up calls has a deadline of its own.
_END_S = 30.0

#: Does the work, given the file to write its progress to; answers what size was found (bytes), if it looked for one.
Begin = Callable[[Path], Awaitable[int | None]]


@dataclass(eq=False)
class _Work:
    """One work. moved: bytes done and in all. moved_at: when that was last another number, by the clock; asked_at: when somebody last
    asked about it; ended_at likewise, None while it waits or runs. fault: why it failed.
    """

    key: str
    progress: Path
    task: "asyncio.Task[int | None] | None" = None
    is_told_to_end: bool = False
    moved: tuple[int, int] = (0, 0)
    moved_at: float = 0.0
    asked_at: float = 0.0
    size_bytes: int = 0
    ended_at: float | None = None
    fault: AgentFault | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Works:
    """folder: of the progress files, private, on the host's own disk; nothing else is in it."""

    def __init__(
        self,
        folder: Path,
        *,
        parallel: int = PARALLEL,
        stall_s: float = STALL_S,
        orphan_s: float = ORPHAN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._stall_s = stall_s
        self._orphan_s = orphan_s
        self._clock = clock
        self._slots = asyncio.Semaphore(parallel)
        self._backend_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._works: dict[str, _Work] = {}

    async def look(self, key: str, begin: Begin, wait_s: float) -> WorkReport:
        """How the work is, at its end or after wait_s. Begun if none of the key is known; it waits in turn where too many run.

        Raises AgentFault where it failed, after which it is forgotten: the next look begins it anew. Cancelled: it goes on.
        """
        self._forget_old()
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = _Work(key, self._folder / hashlib.sha256(key.encode()).hexdigest()[:32])
            work.task = asyncio.create_task(self._run(work, begin), name=f"work {key}")
            work.task.add_done_callback(functools.partial(self._on_end, work))
        work.asked_at = self._clock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await work.ended.wait()
        if work.ended_at is None:
            self._see(work)
        elif work.fault is not None:
            self._forget(work)
            raise work.fault
        done_bytes, total_bytes = work.moved
        return WorkReport(
            is_done=work.ended_at is not None,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            size_bytes=work.size_bytes,
        )

    async def cancel(self, prefix: str) -> None:
        """No work whose key begins so is under way, and none is remembered. Raises AgentFault `hung` where one does not end."""
        doomed = [work for key, work in self._works.items() if key.startswith(prefix)]
        await self._end(doomed)
        if any(work.ended_at is None for work in doomed):
            raise AgentFault.of(
                FaultCode.HUNG,
                f"work on the volume did not end within {_END_S:g} s of being told to",
                is_retryable=True,
            )
        for work in doomed:
            self._forget(work)

    async def close(self) -> None:
        """No work is under way, or _END_S have passed."""
        await self._end(list(self._works.values()))

    async def _end(self, doomed: list[_Work]) -> None:
        tasks = [work.task for work in doomed if work.task is not None and work.ended_at is None]
        for work in doomed:
            # Once only: a second cancel would meet it in its clean-up.
            if work.task is not None and not work.is_told_to_end:
                work.is_told_to_end = True
                work.task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_END_S)

    async def _run(self, work: _Work, begin: Begin) -> int | None:
        backend = work.key.partition(":")[0]
        own = self._backend_slots.setdefault(backend, asyncio.Semaphore(PARALLEL_ON_BACKEND))
        async with own, self._slots:
            return await self._run_watched(work, begin)

    async def _run_watched(self, work: _Work, begin: Begin) -> int | None:
        # A task of its own: it is told to end once, and then nothing disturbs its clean-up.
        acting = asyncio.ensure_future(begin(work.progress))
        work.moved_at, why = self._clock(), ""
        try:
            while not acting.done() and not (why := self._why_to_end(work)):
                await asyncio.wait({acting}, timeout=min(_WATCH_S, self._stall_s / 4, self._orphan_s / 4))
                self._see(work)
        finally:
            is_stalled = not acting.done()
            acting.cancel()
            await asyncio.wait({acting})
        try:
            return acting.result()
        except asyncio.CancelledError:
            if not is_stalled:
                raise
            raise AgentFault.of(FaultCode.TIMED_OUT, why, is_retryable=True) from None

    def _why_to_end(self, work: _Work) -> str:
        """Empty: it may go on."""
        if self._clock() - work.moved_at >= self._stall_s:
            return f"no byte was moved in {self._stall_s:g} s"
        if self._clock() - work.asked_at >= self._orphan_s:
            return f"nobody has asked about it in {self._orphan_s:g} s"
        return ""

    def _on_end(self, work: _Work, task: "asyncio.Task[int | None]") -> None:
        """The edge of a work: whatever ended it is kept for who looks at it. Here and not in the task, for one that is cancelled
        before its first step runs nothing of itself.
        """
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            work.fault = AgentFault.of(
                FaultCode.FAILED, "the work was ended before it was done", "Ask for it again", is_retryable=True
            )
        elif isinstance(error, AgentFault):
            work.fault = error
            code, detail = error.fault.code.value, error.fault.detail
            # What the storage or a tool said is in the detail; only of a bug it matters where it was.
            cause = None if isinstance(error.__cause__, (OSError, AgentFault)) else error.__cause__
            log.warning("work failed", extra={"work": work.key, "code": code, "detail": detail}, exc_info=cause)
        elif error is not None:
            work.fault = AgentFault.of(FaultCode.FAILED, "internal error on the host")
            log.error("work raised", extra={"work": work.key}, exc_info=error)
        else:
            work.size_bytes = task.result() or 0
        self._see(work)
        work.progress.unlink(missing_ok=True)
        work.ended_at = self._clock()
        work.ended.set()

    def _see(self, work: _Work) -> None:
        """What is moved is up to date. It may shrink: a work of two parts counts each of them from zero."""
        moved = read_progress(work.progress)
        if moved not in ((0, 0), work.moved):
            work.moved, work.moved_at = moved, self._clock()

    def _forget(self, work: _Work) -> None:
        if self._works.get(work.key) is work:
            del self._works[work.key]

    def _forget_old(self) -> None:
        ended = [work for work in self._works.values() if work.ended_at is not None]
        ended.sort(key=lambda work: work.ended_at or 0.0, reverse=True)
        for place, work in enumerate(ended):
            if place >= _KEPT or self._clock() - (work.ended_at or 0.0) >= _KEPT_S:
                self._forget(work)
