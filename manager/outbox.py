"""The relay: one elected replica seals committed events into the chain and publishes them in order.

Elected by a session lock on a connection of its own. A leader that was paused and comes back can only
send again what was sent (the stream drops it by its id) and cannot seal (the chain's head is locked),
so order holds whatever is killed. NOTIFY wakes it; a poll each second is the fallback.
"""

import asyncio
import logging

import asyncpg
import msgspec

from manager.store import events
from manager.store.pool import Connection, connect, is_alone, say_alive
from schemas import subjects
from schemas.bus import Bus, BusError

log = logging.getLogger(__name__)

_LEADER_LOCK = 7_310_004
#: Seconds between looks at the outbox when nothing wakes us, and between attempts to be elected.
POLL_S = 1.0


class Relay:
    """Runs for ever in `run`; `wake` when something was committed; `is_leader` for the other duties of a leader."""

    def __init__(self, database_url: str, bus: Bus, fleet_id: str) -> None:
        self._url = database_url
        self._bus = bus
        self._fleet_id = fleet_id
        self._wake = asyncio.Event()
        self._has_stream = False
        self.is_leader = False

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Elect, lead, and begin again after any failure of database or bus."""
        while True:
            try:
                await self._campaign()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                log.warning("relay lost the database", extra={"error": repr(error)})
            except Exception:
                # An edge: the events wait in the outbox, whatever it is that stands in their way.
                log.exception("relay failed")
            finally:
                self.is_leader = False
            await asyncio.sleep(POLL_S)

    async def _campaign(self) -> None:
        connection = await connect(self._url)
        try:
            while not await is_alone(connection, _LEADER_LOCK):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)  # the lock is another process's; there is no event to wait for
            log.info("relay elected")
            self.is_leader = True
            while True:
                self._wake.clear()
                while await events.seal(connection, self._fleet_id):
                    pass
                await self._publish(connection)
                try:
                    # Not wait_for: in Python 3.11 it can swallow a cancellation that meets the event.
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    await say_alive(connection)
        finally:
            connection.terminate()

    async def _publish(self, connection: Connection) -> None:
        """All sealed events are in the stream, or the bus is away and they wait for the next round."""
        while batch := await events.unpublished(connection, self._fleet_id):
            messages = [
                (
                    subjects.event(sealed.event.type, sealed.subject_id),
                    msgspec.json.encode(sealed.event),
                    sealed.event.id,
                )
                for sealed in batch
            ]
            try:
                if not self._has_stream:
                    await self._bus.ensure_stream(subjects.STREAM, [subjects.EVENTS])
                    self._has_stream = True
                await self._bus.publish_events(messages)
            except BusError as error:
                self._has_stream = False  # somebody may have lost it, with its disk
                log.warning("events wait for the bus", extra={"error": repr(error), "waiting": len(batch)})
                return
            await events.mark_published(connection, [sealed.event.id for sealed in batch])
            if len(batch) < events.BATCH:
                return
