"""Connections to PostgreSQL with our codecs: jsonb as Python values, uuid as text."""

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
import msgspec

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Record: TypeAlias = asyncpg.Record
    Connection: TypeAlias = asyncpg.Connection[Record] | PoolConnectionProxy[Record]
    Pool: TypeAlias = asyncpg.Pool[Record]
else:
    Connection = Pool = object

#: Seconds; every statement of ours is short, so a longer one is a fault.
COMMAND_TIMEOUT_S = 10.0


async def open_pool(url: str, *, size: int = 16) -> Pool:
    """A pool of at most `size` connections. Raises OSError or asyncpg.PostgresError when the server cannot be reached."""
    return await asyncpg.create_pool(
        url,
        min_size=2,
        max_size=size,
        command_timeout=COMMAND_TIMEOUT_S,
        init=prepare,
        server_settings={"application_name": "stowage-manager", **_SESSION},
    )


async def connect(url: str) -> "asyncpg.Connection[Record]":
    """A connection of its own: listeners and session locks must not live on pooled ones (BUS.md 4).

    Whoever holds it says something every few seconds, or the server takes him for dead and frees his locks.
    """
    settings = {"application_name": "stowage-manager", **_SESSION, "idle_session_timeout": "15s"}
    connection = await asyncpg.connect(url, command_timeout=COMMAND_TIMEOUT_S, server_settings=settings)
    await prepare(connection)
    return connection


async def prepare(connection: Connection) -> None:
    """Our codecs on a fresh connection."""
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_json_text, decoder=msgspec.json.decode, format="text"
    )
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=str, decoder=str, format="text")


#: What a database that restarts, is overloaded or picks a victim raises: the same statement may succeed later.
DATABASE_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    OSError,
    TimeoutError,
)

#: All that a statement can raise, for loops that go on whatever it was. asyncpg raises InternalClientError, too, for a
#: statement on a connection whose last word (57P01, say) it has read, before it has read the end of it.
DATABASE_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

#: A replica that is frozen or loses its power in a transaction must not stop the others: the server ends its
#: session, and with that its locks, after this long.
_SESSION = {
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}


async def is_alone(connection: Connection, key: int, name: str = "") -> bool:
    """Whether this session holds the advisory lock (key, name) now; it keeps it until the connection ends."""
    return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1, hashtext($2))", key, name))


async def say_alive(connection: Connection) -> None:
    """Raises what a lost connection raises; with it went the session's locks."""
    await connection.execute("SELECT 1")


@contextlib.asynccontextmanager
async def transaction(pool: Pool) -> AsyncGenerator[Connection]:
    """A pooled connection in a transaction; it commits when the block ends without an error."""
    async with pool.acquire() as connection, connection.transaction():
        yield connection


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()
