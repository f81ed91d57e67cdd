"""The session locks by which living replicas hold their names, and who holds one."""

import datetime as dt

import msgspec

from manager.store.pool import Connection, is_alone

#: First half of the session lock of a name. (7_310 is the feed's, by which an earlier life is known to be over.)
_NAME_LOCK = 7_311


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A session that holds a name. program: HOST:PID as it says itself; address: None for one on this machine."""

    program: str
    address: str | None
    since: dt.datetime


async def hold_name(connection: Connection, name: str, *, program: str) -> bool:
    """Whether this session holds the name now, until it ends; `program` is what others see of it."""
    await connection.execute("SELECT set_config('application_name', $1, false)", f"stowage-manager {program}")
    return await is_alone(connection, _NAME_LOCK, name)


async def holder_of(connection: Connection, name: str) -> Holder | None:
    """Who holds the name; None when nobody does at this moment."""
    record = await connection.fetchrow(
        "SELECT application_name AS program, host(client_addr) AS address, backend_start AS since"
        " FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND classid = $1 AND objid = (hashtext($2)::bigint & 4294967295) AND objsubid = 2",
        _NAME_LOCK, name,
    )  # fmt: skip
    return msgspec.convert(dict(record), Holder) if record else None
