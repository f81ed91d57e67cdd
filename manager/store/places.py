"""Places in which one saga at a time makes its marks, and who holds them."""

from dataclasses import dataclass

from manager.store.pool import Connection

_CLAIM_LOCK = 7_310_005
#: Seconds for which a place is kept for a host that has not answered an initialization, where nothing else frees it: it may be at
#: work still. Longer than all the limits of the tools that one runs, one after the other (agent/lvm.py, agent/iscsiadm.py).
REST_S = 600.0
#: In the output of a failed initialization: its host answered the last command that it was sent, so nothing of it is under way.
ANSWERED = "is_answered"

#: The host that has not answered an initialization of the backend `p.backend_id`: by the latest that came to its step `initialize`.
#: A removal asks that host too, and its tombstone goes when it has let go; on one host the commands of a backend go one by one.
_OWING = (
    "SELECT h.id, h.name FROM (SELECT o.* FROM operation o WHERE o.kind = 'backend.initialize' AND o.key = 'backend:' || p.backend_id"
    " AND EXISTS (SELECT FROM operation_step s WHERE s.operation_id = o.id AND s.name = 'initialize')"
    " ORDER BY o.created_at DESC LIMIT 1) i"
    " JOIN host h ON h.id::text = i.params->>'first' AND h.revoked_at IS NULL"
    " JOIN backend b ON b.id = p.backend_id AND (b.deleted_at IS NULL OR EXISTS"
    " (SELECT FROM backend_host t WHERE t.backend_id = b.id AND t.host_id = h.id AND t.desired = 'absent'))"
    f" WHERE i.state = 'failed' AND NOT i.output ? '{ANSWERED}' AND i.updated_at > now() - make_interval(secs => $2)"
)


@dataclass(frozen=True)
class Holder:
    """waits_for: names of hosts that may be writing there still; none while its saga runs.

    is_initialized: what they have not answered is an initialization; else they have not let go of an add that was undone.
    """

    backend_id: str
    waits_for: tuple[str, ...] = ()
    is_initialized: bool = False


@dataclass(frozen=True)
class Owing:
    """The host that has not answered an initialization."""

    host_id: str
    host_name: str


async def claim(
    connection: Connection, place: str, *, operation_id: str, backend_id: str, first: str | None
) -> Holder | None:
    """None: the place is this operation's until it has ended and, if it was undone, every host has let go. Else who holds it.

    An initialization undoes nothing: one that began and ended without its host's answer keeps the place for the same backend through
    the same host (first) alone. Everybody else waits until that host has answered a later command (the same tried again, or
    the backend's removal), is revoked, or `REST_S` have passed.
    Nobody gives a place back: whether its holder still counts is asked of the journal and of the tombstones.
    """
    # The statements below must see every claim that was committed before, and so every operation behind one.
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
    record = await connection.fetchrow(
        "SELECT p.backend_id, o.id IS NOT NULL AS is_under_way, array(SELECT h.name FROM backend_host c"
        " JOIN backend b ON b.id = c.backend_id AND b.state = 'creating' JOIN host h ON h.id = c.host_id"
        " WHERE c.backend_id = p.backend_id AND c.desired = 'absent' AND h.revoked_at IS NULL ORDER BY h.name)"
        " AS not_gone, array(SELECT w.name"
        f" FROM ({_OWING}) w WHERE NOT (p.backend_id = $4 AND w.id::text IS NOT DISTINCT FROM $5)) AS unanswered"
        " FROM place p LEFT JOIN operation o ON o.id = p.operation_id AND o.id <> $3 AND o.state IN ('running', 'undoing', 'stuck')"
        " WHERE p.name = $1",
        place, REST_S, operation_id, backend_id, first,
    )  # fmt: skip
    if record is not None and record["is_under_way"]:
        return Holder(record["backend_id"])
    if record is not None and (names := record["not_gone"] or record["unanswered"]):
        return Holder(record["backend_id"], tuple(names), is_initialized=not record["not_gone"])
    await connection.execute(
        "INSERT INTO place (name, operation_id, backend_id) VALUES ($1, $2, $3)"
        " ON CONFLICT (name) DO UPDATE SET operation_id = excluded.operation_id, backend_id = excluded.backend_id",
        place, operation_id, backend_id,
    )  # fmt: skip
    return None


async def owing(connection: Connection, backend_id: str) -> Owing | None:
    """The host through which alone the backend may be initialized now; None: any."""
    record = await connection.fetchrow(
        f"SELECT w.id, w.name FROM (SELECT $1::uuid AS backend_id) p, LATERAL ({_OWING}) w", backend_id, REST_S
    )
    return Owing(record["id"], record["name"]) if record else None
