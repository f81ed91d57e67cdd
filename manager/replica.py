"""One living replica a name: each holds the session lock of its own, on a connection of its own.

Two of one name would each take the other's sagas for those of its own former life.
"""

import asyncio
import contextlib
import logging
import os
import socket
from types import TracebackType

import asyncpg

from manager.errors import ConfigError
from manager.store.pool import DATABASE_FAULTS, connect, say_alive
from manager.store.replicas import hold_name, holder_of

log = logging.getLogger(__name__)

#: Seconds that a predecessor has to be gone. One killed is at once; of one whose machine lost its power, or that is
#: frozen, the server ends the session after 15 s (store/pool.py).
_PREDECESSOR_S = 20.0
_TRY_S = 0.1
_ALIVE_S = 5.0
_AGAIN_S = 0.5


class ReplicaName:
    """Held inside the `async with`; `keep` runs meanwhile."""

    def __init__(self, database_url: str, name: str) -> None:
        self._url = database_url
        self._name = name
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def __aenter__(self) -> "ReplicaName":
        """Raises ConfigError naming the other, and what a database raises that is away."""
        try:
            await self._take()
        except BaseException:
            self._let_go()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    async def keep(self) -> None:
        """For ever. The lock ends with its connection: then it is taken again. Raises ConfigError if another has it by now."""
        while True:
            try:
                if self._connection is None:
                    await self._take()
                    log.info("replica name taken again", extra={"name_taken": self._name})
                else:
                    await asyncio.sleep(_ALIVE_S)
                    await say_alive(self._connection)
            except DATABASE_FAULTS as error:
                log.warning("replica name lost", extra={"error": repr(error)})
                self._let_go()
                await asyncio.sleep(_AGAIN_S)

    async def _take(self) -> None:
        self._connection = connection = await connect(self._url)
        program = f"{socket.gethostname()}:{os.getpid()}"
        deadline = asyncio.get_running_loop().time() + _PREDECESSOR_S
        is_told = False
        while not await hold_name(connection, self._name, program=program):
            found = await holder_of(connection, self._name)
            if found is not None and not is_told:
                log.warning("another replica has this name; waiting for its end", extra={"other": found.program})
                is_told = True
            if found is not None and asyncio.get_running_loop().time() > deadline:
                raise ConfigError(
                    f"replica: a manager named {self._name!r} runs already ({found.program}"
                    f"{f' at {found.address}' if found.address else ''}, since {found.since:%Y-%m-%d %H:%M:%S} UTC);"
                    " give each replica a name of its own"
                )
            await asyncio.sleep(_TRY_S)

    def _let_go(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(asyncpg.InterfaceError):
                self._connection.terminate()
            self._connection = None
