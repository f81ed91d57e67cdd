"""Hosts and the one-time tokens with which they join."""

import datetime as dt

import asyncpg
import msgspec

from manager.store.pool import Connection
from schemas.hosts import AgentFacts

#: Seconds in which a lost enrolment reply may be asked for again with the same keys.
REPLAY_S = 600

_COLUMNS = (
    "id, name, identity_key, sealing_key, labels, kinds, agent_version, protocol_min, protocol_max,"
    " joined_at, last_seen_at, revoked_at"
)


class HostRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of table host; sealing_key is the raw X25519 public key (32 bytes)."""

    id: str
    name: str
    identity_key: str
    sealing_key: bytes
    labels: dict[str, str]
    kinds: tuple[str, ...]
    agent_version: str
    protocol_min: int
    protocol_max: int
    joined_at: dt.datetime
    last_seen_at: dt.datetime | None
    revoked_at: dt.datetime | None


def _row(record: asyncpg.Record) -> HostRow:
    return msgspec.convert(dict(record), HostRow)


async def load(connection: Connection) -> list[HostRow]:
    """Every host, revoked ones too, in the order of joining."""
    return [_row(r) for r in await connection.fetch(f"SELECT {_COLUMNS} FROM host ORDER BY id")]


async def get(connection: Connection, host_id: str) -> HostRow | None:
    record = await connection.fetchrow(f"SELECT {_COLUMNS} FROM host WHERE id = $1", host_id)
    return _row(record) if record else None


async def is_live(connection: Connection, host_id: str) -> bool:
    """Whether it is not revoked; nor is it before the caller's transaction has ended."""
    return bool(await connection.fetchval("SELECT revoked_at IS NULL FROM host WHERE id = $1 FOR SHARE", host_id))


async def by_identity(connection: Connection, identity_key: str) -> HostRow | None:
    record = await connection.fetchrow(f"SELECT {_COLUMNS} FROM host WHERE identity_key = $1", identity_key)
    return _row(record) if record else None


async def insert(
    connection: Connection, *, host_id: str, name: str, identity_key: str, sealing_key: bytes, facts: AgentFacts
) -> HostRow | None:
    """The new host, or None when a live host has the name or the key."""
    record = await connection.fetchrow(
        "INSERT INTO host (id, name, identity_key, sealing_key, labels, kinds, agent_version, protocol_min, protocol_max)"
        f" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING {_COLUMNS}",
        host_id, name, identity_key, sealing_key, facts.labels, list(facts.kinds), facts.agent_version,
        facts.protocol_min, facts.protocol_max,
    )  # fmt: skip
    return _row(record) if record else None


async def update_facts(connection: Connection, host_id: str, facts: AgentFacts) -> None:
    """What the agent says of its software, where it differs. Not its labels: they decide which backends and so which
    credentials come to the host, and were settled when it joined.
    """
    await connection.execute(
        "UPDATE host SET kinds = $2, agent_version = $3, protocol_min = $4, protocol_max = $5"
        " WHERE id = $1 AND (kinds, agent_version, protocol_min, protocol_max)"
        " IS DISTINCT FROM ($2::text[], $3, $4::int, $5::int)",
        host_id, list(facts.kinds), facts.agent_version, facts.protocol_min, facts.protocol_max,
    )  # fmt: skip


async def touch(connection: Connection, host_ids: list[str]) -> None:
    """The hosts were seen just now. (The notify trigger ignores this column.)"""
    await connection.execute("UPDATE host SET last_seen_at = now() WHERE id = ANY($1)", host_ids)


async def revoke(connection: Connection, host_id: str) -> HostRow | None:
    """The host as it is now, revoked with all its cells and credentials noted gone; None when it was revoked before.

    The bus account has a newer version, by the database's clock if that is ahead of the last one.
    """
    record = await connection.fetchrow(
        f"UPDATE host SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING {_COLUMNS}", host_id
    )
    if record is None:
        return None
    for table in ("backend_host", "credential_holder"):
        await connection.execute(f"DELETE FROM {table} WHERE host_id = $1", host_id)
    await connection.execute(
        "UPDATE fleet SET account_version = greatest(account_version + 1, extract(epoch FROM clock_timestamp())::bigint)"
    )
    return _row(record)


async def account(connection: Connection, *, newer_than_s: int) -> tuple[int, dict[str, int]]:
    """(the version of the bus account, identity key -> when it was revoked in Unix seconds), of one moment.

    newer_than_s: older revocations are left out.
    """
    record = await connection.fetchrow(
        "SELECT account_version, (SELECT coalesce("
        " jsonb_object_agg(identity_key, ceil(extract(epoch FROM revoked_at))::bigint), '{}') FROM host"
        " WHERE revoked_at > now() - make_interval(secs => $1)) AS revoked FROM fleet",
        float(newer_than_s),
    )
    assert record is not None, "the fleet's row is made at start"
    return record["account_version"], record["revoked"]


async def insert_join_token(
    connection: Connection, *, token_id: str, secret_hash: bytes, created_by: str, ttl_s: int
) -> dt.datetime:
    """When it expires."""
    expires_at: dt.datetime = await connection.fetchval(
        "INSERT INTO join_token (id, secret_hash, created_by, expires_at)"
        " VALUES ($1, $2, $3, now() + make_interval(secs => $4)) RETURNING expires_at",
        token_id, secret_hash, created_by, float(ttl_s),
    )  # fmt: skip
    return expires_at


async def use_join_token(connection: Connection, token_id: str, secret_hash: bytes) -> bool:
    """Whether it was good; it is used up now. Comparing digests of 256-bit secrets leaks nothing through time."""
    done = await connection.execute(
        "UPDATE join_token SET used_at = now()"
        " WHERE id = $1 AND secret_hash = $2 AND used_at IS NULL AND expires_at > now()",
        token_id, secret_hash,
    )  # fmt: skip
    return bool(done == "UPDATE 1")


async def link_join_token(connection: Connection, token_id: str, host_id: str) -> None:
    await connection.execute("UPDATE join_token SET used_by = $2 WHERE id = $1", token_id, host_id)


async def may_replay(connection: Connection, token_id: str, secret_hash: bytes, host_id: str) -> bool:
    """Whether this host joined with this token a short while ago, so that its reply may be given again."""
    found = await connection.fetchval(
        "SELECT true FROM join_token WHERE id = $1 AND secret_hash = $2 AND used_by = $3"
        " AND used_at > now() - make_interval(secs => $4)",
        token_id, secret_hash, host_id, float(REPLAY_S),
    )  # fmt: skip
    return found is not None


async def fleet_id(connection: Connection, fresh: str) -> str:
    """The fleet's id; `fresh` becomes it where there is none yet."""
    await connection.execute("INSERT INTO fleet (id) VALUES ($1) ON CONFLICT DO NOTHING", fresh)
    return str(await connection.fetchval("SELECT id FROM fleet"))


async def trusted_keys(connection: Connection) -> dict[str, str] | None:
    """The public keys that this fleet trusts, by name; None when no manager has said yet."""
    found: dict[str, str] | None = await connection.fetchval("SELECT trusted_keys FROM fleet")
    return found


async def trust_keys(connection: Connection, keys: dict[str, str]) -> dict[str, str]:
    """The keys that this fleet trusts; these become them where there are none yet."""
    await connection.execute("UPDATE fleet SET trusted_keys = $1 WHERE trusted_keys IS NULL", keys)
    found = await trusted_keys(connection)
    assert found is not None, "the fleet's row is made at start"
    return found
