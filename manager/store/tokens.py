"""API tokens: a digest of the secret, a role, a name; the secret itself is nowhere."""

import datetime as dt

import asyncpg
import msgspec

from manager.actor import Role
from manager.store.pool import Connection

#: Advisory lock: two revocations never each take the other's token for the last admin's, nor do two managers that start
#: each make a first one.
_LAST_ADMIN_LOCK = 7_310_010

_COLUMNS = "id, name, role, secret_hash, created_by, created_at, expires_at, last_used_at, revoked_at"
_LIVE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of table api_token. secret_hash: SHA-256 of the secret part."""

    id: str
    name: str
    role: Role
    secret_hash: bytes
    created_by: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    last_used_at: dt.datetime | None
    revoked_at: dt.datetime | None


def _row(record: asyncpg.Record) -> TokenRow:
    return msgspec.convert(dict(record), TokenRow)


async def insert(
    connection: Connection,
    *,
    token_id: str,
    name: str,
    role: Role,
    secret_hash: bytes,
    created_by: str,
    expires_at: dt.datetime | None,
) -> TokenRow | None:
    """The new token, or None when a live one has the name, or any one the id."""
    record = await connection.fetchrow(
        "INSERT INTO api_token (id, name, role, secret_hash, created_by, expires_at) VALUES ($1, $2, $3, $4, $5, $6)"
        f" ON CONFLICT DO NOTHING RETURNING {_COLUMNS}",
        token_id, name, role, secret_hash, created_by, expires_at,
    )  # fmt: skip
    return _row(record) if record else None


async def get(connection: Connection, token_id: str) -> TokenRow | None:
    """The token, revoked and expired ones too."""
    record = await connection.fetchrow(f"SELECT {_COLUMNS} FROM api_token WHERE id = $1", token_id)
    return _row(record) if record else None


async def page(connection: Connection, *, after: str | None, limit: int) -> list[TokenRow]:
    """Those not revoked, in the order of their making, from behind the id `after`."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM api_token WHERE revoked_at IS NULL AND ($1::uuid IS NULL OR id > $1)"
        " ORDER BY id LIMIT $2",
        after, limit,
    )  # fmt: skip
    return [_row(r) for r in records]


async def hold_admins(connection: Connection) -> None:
    """Nobody else takes away or makes up the last admin token until the transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LAST_ADMIN_LOCK)


async def has_live_admin(connection: Connection) -> bool:
    return bool(await connection.fetchval(f"SELECT EXISTS (SELECT FROM api_token WHERE role = 'admin' AND {_LIVE})"))


async def revoke(connection: Connection, token_id: str) -> bool:
    """Whether it was revoked just now. Not if no other admin token would be left that never expires: somebody must be
    able to come in, also next month. One that has expired already opens nothing, and goes.

    Must run in a transaction of its own: the lock is held to its end.
    """
    await hold_admins(connection)
    done = await connection.execute(
        "UPDATE api_token SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL"
        " AND (role <> 'admin' OR expires_at <= now() OR EXISTS (SELECT FROM api_token other"
        " WHERE other.id <> $1 AND other.role = 'admin' AND other.revoked_at IS NULL AND other.expires_at IS NULL))",
        token_id,
    )
    return bool(done == "UPDATE 1")


async def touch(connection: Connection, token_id: str) -> None:
    """It was used just now; written at most once a minute, whoever asks."""
    await connection.execute(
        "UPDATE api_token SET last_used_at = now() WHERE id = $1"
        " AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')",
        token_id,
    )
