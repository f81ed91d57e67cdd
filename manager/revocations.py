"""Tells the bus who is revoked, again and again until it knows.

A revocation raises the account's version in its own transaction. One task a replica pushes what the database says
now, and afterwards looks whether that is still so: an older list that comes late, from here or from another replica,
is overtaken by a newer push of whoever sent it. Nothing is held in the database meanwhile.
"""

import asyncio
import contextlib
import logging
import random

from manager.bus_auth import AGENT_LIFETIME_S, BusAuth
from manager.store import hosts as store
from manager.store.pool import DATABASE_FAULTS, Pool
from schemas.bus import Bus, BusError

log = logging.getLogger(__name__)

#: Seconds between pushes that nobody asked for: of a replica that died before it told, to a server that lost its disk.
_AGAIN_S = 60.0
_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 15.0
#: Seconds by which a revocation is dated ahead.
_FOR_GOOD_S = 10 * 365 * 24 * 3600


class Revocations:
    """`run` for ever; `told` after a change."""

    def __init__(self, pool: Pool, bus_auth: BusAuth, system_bus: Bus) -> None:
        self._pool = pool
        self._bus_auth = bus_auth
        self._system_bus = system_bus
        #: How often somebody asked, and up to which of these the bus has been told.
        self._asked = 0
        self._answered = 0
        self._wake = asyncio.Event()
        self._told = asyncio.Condition()

    async def told(self, timeout_s: float) -> bool:
        """Whether the bus knows, in time, every revocation committed before this call; it is told in any case."""
        self._asked += 1
        mine = self._asked
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s), self._told:
                await self._told.wait_for(lambda: self._answered >= mine)
        except TimeoutError:
            return False
        return True

    async def connected(self) -> None:
        """For the bus's on_connect: it may be another server, which knows nothing yet."""
        self._wake.set()

    async def run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            asked = self._asked
            try:
                await self._push()
            except (BusError, *DATABASE_FAULTS) as error:
                log.warning("revocations not pushed yet", extra={"error": repr(error), "attempt": failures + 1})
                pause_s = random.uniform(0, min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2 ** min(failures, 10)))
                failures += 1
            else:
                failures = 0
                async with self._told:
                    self._answered = asked
                    self._told.notify_all()
                pause_s = _AGAIN_S * random.uniform(0.5, 1.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _push(self) -> None:
        """The bus has what the database says now."""
        found = await self._read()
        while True:
            version, revoked = found
            # A revoked key never returns, so whatever was or will be minted for it is refused, whichever clock dated it.
            dated = {key: at + _FOR_GOOD_S for key, at in revoked.items()}
            await self._bus_auth.push_account(self._system_bus, dated, version=version)
            found, before = await self._read(), found
            if found == before:
                return

    async def _read(self) -> tuple[int, dict[str, int]]:
        async with self._pool.acquire() as connection:
            # After two lifetimes nothing minted for a key can be valid, and its entry goes.
            return await store.account(connection, newer_than_s=2 * AGENT_LIFETIME_S)
