"""Events as callers see them: pages of the audit log, the live stream, and whether the chain is whole, all from the database."""

import asyncio
import datetime as dt
import re
from collections.abc import AsyncGenerator

from manager.operations import bad_cursor
from manager.store import events as store
from manager.store.pool import Pool
from manager.verification import Verification
from schemas.events import ChainReport, CloudEvent

#: Seconds between the stream's signs of life.
KEEP_ALIVE_S = 15.0
_PAGE = 200


class Events:
    """`sealed` is called when the chain grew; subscribers then read on from where they are."""

    def __init__(self, pool: Pool, fleet_id: str) -> None:
        self._pool = pool
        self._fleet_id = fleet_id
        self._grown = asyncio.Condition()
        self._last = 0
        self._verification = Verification(pool, fleet_id)

    async def page(
        self,
        *,
        subject: str | None = None,
        type: str | None = None,
        actor: str | None = None,
        since: dt.datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
        is_newest_first: bool = False,
    ) -> tuple[list[CloudEvent], str | None]:
        """(those that follow on the cursor, which is a sequence, in that order; the cursor of the next page or None)."""
        if cursor is not None and not re.fullmatch(r"[0-9]{1,18}", cursor):
            raise bad_cursor()
        async with self._pool.acquire() as connection:
            found = await store.page(
                connection,
                self._fleet_id,
                after=None if cursor is None else int(cursor),
                limit=limit + 1,
                is_newest_first=is_newest_first,
                subject=subject,
                type=type,
                actor=actor,
                since=since,
            )
        if len(found) <= limit:
            return found, None
        return found[:limit], found[limit - 1].sequence

    async def verified(self) -> ChainReport:
        """Whether the audit log is what was sealed, or was half a minute ago."""
        return await self._verification.report()

    async def newest(self) -> int:
        """The sequence of the last event; 0 before the first."""
        async with self._pool.acquire() as connection:
            return await store.last_sequence(connection)

    async def sealed(self, sequence: int) -> None:
        """The chain reaches up to `sequence` now."""
        async with self._grown:
            self._last = max(self._last, sequence)
            self._grown.notify_all()

    async def subscribe(self, last_event_sequence: int) -> AsyncGenerator[CloudEvent | None]:
        """Every event after the given sequence, in order, without a hole; None is a sign of life."""
        at = last_event_sequence
        self._last = max(self._last, await self.newest())
        while True:
            async with self._pool.acquire() as connection:
                found = await store.page(connection, self._fleet_id, after=at, limit=_PAGE)
            for event in found:
                at = int(event.sequence)
                yield event
            if len(found) == _PAGE:
                continue
            try:
                async with asyncio.timeout(KEEP_ALIVE_S), self._grown:
                    while self._last <= at:
                        await self._grown.wait()
            except TimeoutError:
                yield None
