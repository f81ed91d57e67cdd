"""The relay: one elected replica seals committed events into the chain and publishes them in order.

Elected by a session lock on a connection of its own. A new leader, and one that knows of a failure, first reads the
stream's last event, counts it and all before it as published, and goes on right behind it: each message names the
place that it takes, and the stream refuses any other. So a leader that was paused and comes back stores nothing, and
one that died between the stream's word and its mark stores nothing twice, however long ago that was. It
cannot seal either (the chain's head is locked). NOTIFY wakes it; a poll each second is the fallback.
"""

import asyncio
import logging
import re
from dataclasses import dataclass, replace

import msgspec

from manager.event_stream import EventStream, StreamEnd
from manager.store import events
from manager.store.pool import DATABASE_FAULTS, Connection, connect, is_alone, say_alive
from schemas import subjects
from schemas.bus import Bus, BusError
from schemas.events import CloudEvent
from schemas.ids import is_id

log = logging.getLogger(__name__)

_LEADER_LOCK = 7_310_004
#: Seconds between looks at the outbox when nothing wakes us, and between attempts to be elected.
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    max_age_s: float
    max_bytes: int
    replicas: int


class Relay:
    """Runs for ever in `run`; `wake` when something was committed; `is_leader` for the other duties of a leader."""

    def __init__(self, database_url: str, bus: Bus, fleet_id: str, stream: StreamSettings) -> None:
        """stream: how the stream is made where there is none yet."""
        self._url = database_url
        self._events = EventStream(bus)
        self._fleet_id = fleet_id
        self._stream = stream
        self._wake = asyncio.Event()
        #: Where the stream ends; None when it has to be asked.
        self._end: StreamEnd | None = None
        self.is_leader = False

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Elect, lead, and begin again after any failure of database or bus."""
        while True:
            try:
                await self._campaign()
            except DATABASE_FAULTS as error:
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
            self._end = None
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
            failure: BusError | None = None
            try:
                if self._end is None:
                    self._end = await self._caught_up(connection)
                    continue  # of these the stream may have some
                end = self._end
                messages = [
                    (subjects.event(s.event.type, s.subject_id), _payload(s.event, end.message_bytes), s.event.id)
                    for s in batch
                ]
                published = await self._events.publish(messages, after=end.sequence)
                await events.mark_published(connection, [s.event.id for s in batch[: len(published.acks)]])
                failure = published.failure
                self._end = replace(end, sequence=end.sequence + len(batch))
            except BusError as error:
                failure = error
            if failure is not None:
                self._end = None
                log.warning("events wait for the bus", extra={"error": repr(failure), "waiting": len(batch)})
                return
            if len(batch) < events.BATCH:
                return

    async def _caught_up(self, connection: Connection) -> StreamEnd:
        """Where the stream ends, everything up to its last event being marked as published. Raises BusError."""
        await self._events.ensure(
            max_age_s=self._stream.max_age_s,
            max_bytes=self._stream.max_bytes,
            replicas=self._stream.replicas,
        )
        end = await self._events.end()
        if end.payload is not None:
            last = _place(end.payload)
            if last is None or not await events.mark_published_up_to(
                connection, id=last.id, sequence=int(last.sequence), hash=last.hash
            ):
                # An older database restored, or a stream that another fleet filled: nothing follows for our events.
                log.error(
                    "the stream ends with an event that this database does not have; events go behind it",
                    extra={"stream_sequence": end.sequence, "event": last.id if last else None},
                )
        return end


def _payload(event: CloudEvent, most_bytes: int) -> bytes:
    """The event's JSON; for one that the bus would refuse a stub, for else nothing would ever come after it.

    The stub has the place and the hash of the whole event, which the API shows.
    """
    whole = msgspec.json.encode(event)
    if len(whole) <= most_bytes:
        return whole
    log.error(
        "an event is too large for the bus and goes out as a stub", extra={"event": event.id, "bytes": len(whole)}
    )
    stub = {"stub": {"bytes": len(whole), "read": f"/v1/events?subject={event.subject}"}}
    return msgspec.json.encode(msgspec.structs.replace(event, data=stub))


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    sequence: str
    hash: str


def _place(payload: bytes) -> _Place | None:
    """Which event the message is; None when it is none of ours."""
    try:
        place = msgspec.json.decode(payload, type=_Place)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return place if is_id(place.id) and re.fullmatch(r"[0-9]{1,18}", place.sequence) else None
