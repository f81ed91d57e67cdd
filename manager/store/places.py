"""Places in which one saga at a time makes its marks, and who holds them."""

from dataclasses import dataclass

from manager.store.pool import Connection

_CLAIM_LOCK = 7_310_005
#: Seconds for which a place rests after an initialization whose host has not answered: it may be at work still. Longer than all the
#: limits of the tools that one runs, one after the other (agent/lvm.py, agent/iscsiadm.py).
REST_S = 600.0


@dataclass(frozen=True)
class Holder:
    """waits_for: names of hosts that have not confirmed yet that they let go of what was undone; none while its saga runs."""

    backend_id: str
    waits_for: tuple[str, ...]


async def claim(connection: Connection, place: str, *, operation_id: str, backend_id: str) -> Holder | None:
    """None: the place is this operation's until it has ended and, if it was undone, every host has let go. Else who holds it.

    An initialization undoes nothing; one that ended without its host's answer keeps the place for `REST_S` from all other backends.
    Nobody gives a place back: whether its holder still counts is asked of the journal and of the tombstones.
    """
    # The statements below must see every claim that was committed before, and so every operation behind one.
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
    record = await connection.fetchrow(
        "SELECT p.backend_id, o.id IS NOT NULL AS is_under_way, array(SELECT h.name FROM backend_host c"
        " JOIN backend b ON b.id = c.backend_id AND b.state = 'creating' JOIN host h ON h.id = c.host_id"
        " WHERE c.backend_id = p.backend_id AND c.desired = 'absent' AND h.revoked_at IS NULL ORDER BY h.name) AS waits_for"
        " FROM place p LEFT JOIN operation o ON o.id = p.operation_id AND (o.state IN ('running', 'undoing', 'stuck')"
        " OR (o.state = 'failed' AND o.kind = 'backend.initialize' AND o.error->>'code' = 'agent_timeout'"
        " AND p.backend_id <> $3 AND o.updated_at > now() - make_interval(secs => $4)))"
        " WHERE p.name = $1 AND p.operation_id <> $2",
        place, operation_id, backend_id, REST_S,
    )  # fmt: skip
    if record is not None and (record["is_under_way"] or record["waits_for"]):
        return Holder(record["backend_id"], () if record["is_under_way"] else tuple(record["waits_for"]))
    await connection.execute(
        "INSERT INTO place (name, operation_id, backend_id) VALUES ($1, $2, $3)"
        " ON CONFLICT (name) DO UPDATE SET operation_id = excluded.operation_id, backend_id = excluded.backend_id",
        place, operation_id, backend_id,
    )  # fmt: skip
    return None
