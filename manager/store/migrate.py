"""Brings the schema up to this code's: numbered files, forward only, each in its own transaction."""

import logging
import re
from importlib import resources

from manager.store.pool import Connection

log = logging.getLogger(__name__)

#: Advisory lock: two managers that start at once migrate one after the other.
_LOCK = 7_310_001
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


async def migrate(connection: Connection) -> int:
    """The schema's version afterwards. A newer schema than this code's is left as it is (code N runs on N and N+1)."""
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration"
            " (version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_migration")
        for version, name, text in migrations():
            if version > done:
                async with connection.transaction():
                    await connection.execute(text)
                    await connection.execute(
                        "INSERT INTO schema_migration (version, name) VALUES ($1, $2)", version, name
                    )
                log.info("schema migrated", extra={"version": version, "migration": name})
                done = version
        return int(done)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


def migrations() -> list[tuple[int, str, str]]:
    """(version, file name, SQL) of every migration that ships with this code, in order."""
    found: list[tuple[int, str, str]] = []
    for entry in (resources.files("manager.store") / "migrations").iterdir():
        match = _NAME.fullmatch(entry.name)
        if match:
            found.append((int(match[1]), entry.name, entry.read_text()))
    return sorted(found)


def newest_version() -> int:
    return max(version for version, _, _ in migrations())
