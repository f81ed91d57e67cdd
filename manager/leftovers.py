"""What waits for its deletion is deleted as soon as its storage lets it: failed deletions, and bytes that an operation had to leave.

And a volume of which a host has not answered since a resize that failed is resized to its own size as soon as the host can be asked,
which tells what became of it.
"""

import asyncio
import logging
import random

from manager.actor import SYSTEM, Actor
from manager.errors import Refused
from manager.placement import Placement
from manager.replacements import key_of, subject_of
from manager.sagas.delete_volume import deletion_params
from manager.sagas.engine import Engine
from manager.sagas.resize_volume import resize_params
from manager.store import leases, operations, volumes
from manager.store.pool import DATABASE_AWAY, Pool
from manager.store.volumes import VolumeRow
from schemas.volumes import VolumeState

log = logging.getLogger(__name__)

#: Seconds between looks, and since the last try of one of them.
LOOK_S = 5.0
REST_S = 30.0
_AT_ONCE = 16


class Leftovers:
    """Any number of replicas may run it: an operation's key lets one of them in."""

    def __init__(self, pool: Pool, engine: Engine, placement: Placement) -> None:
        self._pool = pool
        self._engine = engine
        self._placement = placement
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(LOOK_S * random.uniform(0.8, 1.2))
            try:
                await self.look()
            except DATABASE_AWAY as error:
                log.warning("leftovers not looked for", extra={"error": repr(error)})
            except Exception:
                # The edge of this loop: one odd row must not keep the others for ever.
                log.exception("leftovers not looked for")

    async def look(self) -> None:
        """Something is started for each that can be reached now."""
        async with self._pool.acquire() as connection:
            await leases.prune(connection)
            rows = await volumes.to_delete(connection, rest_s=REST_S, limit=_AT_ONCE)
            rows += await volumes.to_settle(connection, rest_s=REST_S, limit=_AT_ONCE)
        self._told = {row.id: self._told[row.id] for row in rows if row.id in self._told}
        for row in rows:
            try:
                await self._begin(row)
            except Refused as error:
                self._tell(row, error.problem.detail)
                await self._put_off(row)
            except DATABASE_AWAY:
                raise
            except Exception:
                # An edge, too: one odd row must not keep those behind it.
                log.exception("leftover not taken up", extra={"volume_id": row.id})
                await self._put_off(row)

    async def _begin(self, row: VolumeRow) -> None:
        place = self._placement.place_of(row)
        if row.state is VolumeState.READY:
            host = await self._placement.worker(row)
            params = resize_params(row, place, host.id, row.size_bytes)
            await self._engine.start(
                "volume.resize", key=key_of(row), subject=subject_of(row), params=params, actor=SYSTEM
            )
            return
        worker = await self._placement.eraser(row)
        await self._engine.start(
            "volume.delete",
            key=key_of(row),
            subject=subject_of(row),
            params=deletion_params(row, place, worker, None),
            actor=await self._asked_by(row),
        )

    async def _put_off(self, row: VolumeRow) -> None:
        """The others are before it from now on: those that nobody can reach must not be all that is ever looked at."""
        async with self._pool.acquire() as connection:
            await volumes.touch(connection, row.id)

    async def _asked_by(self, row: VolumeRow) -> Actor:
        """Whoever asked for the deletion first: what happens later is still his doing."""
        async with self._pool.acquire() as connection:
            asked = await operations.first_on(connection, key_of(row), "volume.delete")
        return Actor(name=asked.actor, request_id=asked.request_id) if asked else SYSTEM

    def _tell(self, row: VolumeRow, reason: str) -> None:
        """Once for each reason: a host may be away for days."""
        if self._told.get(row.id) != reason:
            self._told[row.id] = reason
            where = {"name": row.name, "role": row.role.value, "locator": row.locator, "backend_id": row.backend_id}
            log.info("leftover stays for now", extra={"volume_id": row.id, **where, "reason": reason})
