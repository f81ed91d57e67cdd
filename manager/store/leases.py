"""Leases on places whose metadata one host at a time may change (the VG of a LUN): who has them, and until when.

An operation takes the lease for one command through one host, and gives it back when that host has answered, with
success or with a fault. Where no answer came nobody knows what the host still does, so the lease outlives the
command: until the host has answered a later one, is revoked, or `REST_S` have passed. Operations through the
same host stand beside each other: on one host the commands of a backend go one after the other, so what it
has answered also tells that nothing is under way there of an operation that has ended before.

Where one host alone may have anything open (a thin pool), no time ends a lease, for what is open there stays open;
and what the host answers tells of an operation that has ended only when its long work must have ended too.
"""

from manager.store.pool import Connection

_LOCK = 7_310_006
#: Seconds; longer than all the limits of the tools of one command, one after the other (agent/lvm.py).
REST_S = 600.0
#: Seconds after which long work that nobody asks about has ended on its host, and what it had open is closed: above agent/works.py's
#: own limit and the time that a host takes to obey it.
_WORK_ENDS_S = 300.0


async def take(
    connection: Connection, place: str, *, operation_id: str, host_id: str, is_one_host: bool = False
) -> str | None:
    """None: the lease is the operation's, for that host. Else the id of the host that has it. The caller is in a transaction."""
    await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK, place)
    if other := await holder(connection, place, but=host_id):
        return other
    await connection.execute(
        "INSERT INTO lease AS l (place, operation_id, host_id, until)"
        " VALUES ($1, $2, $3, CASE WHEN $5 THEN 'infinity' ELSE now() + make_interval(secs => $4) END)"
        " ON CONFLICT (place, operation_id) DO UPDATE SET host_id = excluded.host_id, until = excluded.until",
        place, operation_id, host_id, REST_S, is_one_host,
    )  # fmt: skip
    return None


async def holder(connection: Connection, place: str, *, but: str | None = None) -> str | None:
    """The id of a host that has the lease, other than that one."""
    found = await connection.fetchval(
        "SELECT l.host_id FROM lease l JOIN host h ON h.id = l.host_id AND h.revoked_at IS NULL"
        " WHERE l.place = $1 AND l.host_id IS DISTINCT FROM $2 AND l.until > now() ORDER BY l.host_id LIMIT 1",
        place, but,
    )  # fmt: skip
    return str(found) if found else None


async def give_back(
    connection: Connection, place: str, *, operation_id: str, host_id: str, is_one_host: bool = False
) -> None:
    """The host has answered the operation: its lease is free, and those of operations through this host that have ended."""
    await connection.execute(
        "DELETE FROM lease l WHERE place = $1 AND (operation_id = $2 OR host_id = $3 AND NOT EXISTS"
        " (SELECT FROM operation o WHERE o.id = l.operation_id AND (o.state IN ('running', 'undoing', 'stuck')"
        " OR $4 AND o.updated_at > now() - make_interval(secs => $5))))",
        place, operation_id, host_id, is_one_host, _WORK_ENDS_S,
    )  # fmt: skip


async def prune(connection: Connection) -> None:
    """Those that count no more are forgotten: their time is over, or their host was revoked."""
    await connection.execute(
        "DELETE FROM lease WHERE until < now() OR host_id IN (SELECT id FROM host WHERE revoked_at IS NOT NULL)"
    )
