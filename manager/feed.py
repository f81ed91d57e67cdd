"""The database's notifications, on a connection of their own, turned into what this replica must read again.

A burst is gathered and read in one snapshot. When the connection is lost everything is read again, for
what was notified meanwhile is lost too.
"""

import asyncio
import logging

from manager.changes import Changes
from manager.events import Events
from manager.outbox import Relay
from manager.registry import Registry
from manager.sagas.engine import Engine
from manager.store import operations as journal
from manager.store.pool import DATABASE_FAULTS, Pool, connect, is_alone, say_alive
from manager.tokens import Tokens

log = logging.getLogger(__name__)

CHANNEL = "stowage"
#: First half of the session lock that each living replica holds under its name.
_REPLICA_LOCK = 7_310
_AGAIN_S = 0.5
#: Seconds between two looks whether the connection still carries notifications.
_ALIVE_S = 5.0


class Feed:
    """Runs for ever in `run`; `is_live` says whether this replica hears what the others change."""

    def __init__(
        self,
        database_url: str,
        pool: Pool,
        *,
        replica: str,
        registry: Registry,
        tokens: Tokens,
        engine: Engine,
        events: Events,
        relay: Relay,
        changes: Changes,
    ) -> None:
        self._url = database_url
        self._pool = pool
        self._replica = replica
        self._registry = registry
        self._tokens = tokens
        self._engine = engine
        self._events = events
        self._relay = relay
        self._changes = changes
        self._backends: set[str] = set()
        self._is_hosts_due = False
        self._sealed = 0
        self._work = asyncio.Event()
        self.is_live = False

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except DATABASE_FAULTS as error:
                log.warning("notifications lost", extra={"error": repr(error)})
            except Exception:
                # An edge: whatever could not be read is read again, with everything else.
                log.exception("notifications lost")
            finally:
                self.is_live = False
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self) -> None:
        connection = await connect(self._url)
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._hear)
            # Held as long as we live: whoever gets it knows that an earlier life of this replica is over.
            if await is_alone(connection, _REPLICA_LOCK, self._replica):
                async with self._pool.acquire() as pooled:
                    await journal.disown(pooled, replica=self._replica, owner=self._engine.owner)
            self._tokens.forget()
            await self._registry.load()
            self._relay.wake()
            self._changes.resync()
            self.is_live = True
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_again(), name="feed reader")
                while not lost.is_set():
                    try:
                        async with asyncio.timeout(_ALIVE_S):
                            await lost.wait()
                    except TimeoutError:
                        await say_alive(connection)
                raise ConnectionResetError("the database closed the connection")
        except* DATABASE_FAULTS as group:
            raise ConnectionResetError(str(group.exceptions[0])) from group
        finally:
            connection.terminate()

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        what, _, ident = str(payload).partition(":")
        match what:
            case "backend":
                self._backends.add(ident)
            case "host":
                self._is_hosts_due = True
            case "token":
                self._tokens.forget(ident)
                return
            case "operation":
                self._engine.changed(ident)
                self._changes.operation_written(ident)
                return
            case "outbox":
                self._relay.wake()
                return
            case "event":
                self._sealed = max(self._sealed, int(ident))
            case _:
                return
        self._work.set()

    async def _read_again(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self._is_hosts_due:
                self._is_hosts_due = False
                await self._registry.refresh_hosts()
            ids, self._backends = list(self._backends), set()
            if ids:
                await self._registry.refresh(ids)
            if self._sealed:
                sealed, self._sealed = self._sealed, 0
                await self._events.sealed(sealed)
