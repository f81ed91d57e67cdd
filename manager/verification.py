"""Whether the audit log is what was sealed: every event is hashed again, from the first to the head that the fleet's row records.

A changed, missing, added or cut-off event is found. Who can rewrite the whole table and that row is not: for this the stream's
consumers have their own copy.
"""

import asyncio
import datetime as dt
import time

from manager.shared_runs import SharedRuns
from manager.store import events as store
from manager.store.pool import Pool
from schemas.events import GENESIS, ChainReport, CloudEvent, chain_hash

#: Seconds that one run may take; a hash takes some 15 µs, so that is a million events.
BUDGET_S = 20.0
#: Seconds for which a report is given to whoever asks; so nobody can keep the manager at hashing.
KEPT_S = 30.0
#: Seconds of hashing between two turns of everybody else.
_HELD_S = 0.005
#: Events of up to 64 KB each that one statement brings.
_PAGE = 50


class Verification:
    """One run at a time, whoever asks, and none soon after the last; it ends when nobody waits for it any more."""

    def __init__(self, pool: Pool, fleet_id: str, *, budget_s: float = BUDGET_S) -> None:
        self._pool = pool
        self._fleet_id = fleet_id
        self._budget_s = budget_s
        self._runs = SharedRuns[None, ChainReport]("verification", self._verify)
        self._last: ChainReport | None = None
        self._kept_until = 0.0

    async def report(self) -> ChainReport:
        """The last one, the one of the run that is under way, or of a new one."""
        if self._last is not None and time.monotonic() < self._kept_until:
            return self._last
        return await self._runs.result(None)

    async def _verify(self, _: None) -> ChainReport:
        report = await self._read()
        self._last, self._kept_until = report, time.monotonic() + KEPT_S
        return report

    async def _read(self) -> ChainReport:
        deadline = time.monotonic() + self._budget_s
        async with self._pool.acquire() as connection:
            head = await store.chain_head(connection)
        at, before = 0, GENESIS
        turned_at = time.monotonic()
        while at < head.sequence:
            if time.monotonic() >= deadline:
                return _report(at, is_complete=False)
            # A connection for each page: sagas need the same few.
            async with self._pool.acquire() as connection:
                page = await store.links(connection, self._fleet_id, after=at, up_to=head.sequence, limit=_PAGE)
            if not page:
                return _broken_after(at)
            for event in page:
                if not _follows(event, at, before):
                    return _broken_after(at)
                at, before = at + 1, event.hash
                if time.monotonic() - turned_at > _HELD_S:
                    await asyncio.sleep(0)
                    turned_at = time.monotonic()
        if before != head.hash:
            return _broken_after(max(at - 1, 0))
        if head.last_sequence > head.sequence:
            return _broken_after(at)
        return _report(at, is_intact=True)


def _follows(event: CloudEvent, at: int, before: str) -> bool:
    return event.sequence == str(at + 1) and event.prevhash == before and event.hash == chain_hash(event)


def _broken_after(at: int) -> ChainReport:
    return _report(at, first_broken=str(at + 1))


def _report(
    events: int, *, is_intact: bool = False, first_broken: str | None = None, is_complete: bool = True
) -> ChainReport:
    return ChainReport(
        is_intact=is_intact,
        events=events,
        first_broken=first_broken,
        is_complete=is_complete,
        verified_at=dt.datetime.now(dt.UTC),
    )
