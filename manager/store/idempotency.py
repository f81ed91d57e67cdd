"""Answers kept for a repeated request: one row a (token, Idempotency-Key), made before the work and filled after it."""

import datetime as dt

import asyncpg
import msgspec

from manager.store.pool import Connection

#: Seconds after which a request without an answer and without an operation counts as crashed.
ABANDONED_S = 60
#: Hours that an answer is kept.
KEPT_H = 24


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of table idempotency. created_at is also the mark of the attempt: a retake moves it."""

    method: str
    path: str
    body_mac: bytes
    operation_id: str | None
    status: int | None
    headers: dict[str, str] | None
    body: bytes | None
    created_at: dt.datetime


def _row(record: asyncpg.Record) -> KeyRow:
    return msgspec.convert(dict(record), KeyRow)


async def start(
    connection: Connection, *, token_id: str, key: str, method: str, path: str, body_mac: bytes
) -> dt.datetime | None:
    """The mark of our attempt when the key was free, else None."""
    mark: dt.datetime | None = await connection.fetchval(
        "INSERT INTO idempotency (token_id, key, method, path, body_mac) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT DO NOTHING RETURNING created_at",
        token_id, key, method, path, body_mac,
    )  # fmt: skip
    return mark


async def get(connection: Connection, *, token_id: str, key: str) -> KeyRow | None:
    record = await connection.fetchrow(
        "SELECT method, path, body_mac, operation_id, status, headers, body, created_at FROM idempotency"
        " WHERE token_id = $1 AND key = $2",
        token_id, key,
    )  # fmt: skip
    return _row(record) if record else None


async def retake(connection: Connection, *, token_id: str, key: str, mark: dt.datetime) -> dt.datetime | None:
    """The mark of our attempt when the one marked `mark` crashed before it began anything, else None."""
    retaken: dt.datetime | None = await connection.fetchval(
        "UPDATE idempotency SET created_at = clock_timestamp() WHERE token_id = $1 AND key = $2 AND created_at = $3"
        " AND status IS NULL AND operation_id IS NULL AND created_at < now() - make_interval(secs => $4)"
        " RETURNING created_at",
        token_id, key, mark, float(ABANDONED_S),
    )  # fmt: skip
    return retaken


async def finish(
    connection: Connection,
    *,
    token_id: str,
    key: str,
    mark: dt.datetime,
    status: int,
    headers: dict[str, str],
    body: bytes,
) -> bool:
    """Whether the answer is kept; not if the attempt was retaken meanwhile."""
    done = await connection.execute(
        "UPDATE idempotency SET status = $4, headers = $5, body = $6"
        " WHERE token_id = $1 AND key = $2 AND created_at = $3 AND status IS NULL",
        token_id, key, mark, status, headers, body,
    )  # fmt: skip
    return bool(done == "UPDATE 1")


async def release(connection: Connection, *, token_id: str, key: str, mark: dt.datetime) -> None:
    """The key is free again, unless an operation of it is under way, stuck or has succeeded: that one is its answer."""
    await connection.execute(
        "DELETE FROM idempotency i WHERE token_id = $1 AND key = $2 AND created_at = $3 AND status IS NULL"
        " AND NOT EXISTS (SELECT FROM operation o WHERE o.id = i.operation_id"
        " AND o.state IN ('running', 'undoing', 'stuck', 'succeeded'))",
        token_id, key, mark,
    )  # fmt: skip


async def prune(connection: Connection) -> None:
    await connection.execute("DELETE FROM idempotency WHERE created_at < now() - make_interval(hours => $1)", KEPT_H)
