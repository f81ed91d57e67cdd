"""Backends and what each host saw of them. Guards are statements whose row count is checked."""

import datetime as dt
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import asyncpg
import msgspec

from manager.store.pool import Connection
from schemas.agent_rpc import Observation
from schemas.backends import BackendState, Capability, Capacity, HealthStatus
from schemas.faults import FaultCode
from schemas.hosts import HostSelector

log = logging.getLogger(__name__)

StructT = TypeVar("StructT", bound=msgspec.Struct)

#: Advisory lock of the moment in which the default changes hands.
_DEFAULT_LOCK = 7_310_002

_COLUMNS = (
    "id, name, kind, config, credential_version, is_default, labels, selector, state, generation, version,"
    " health_status, health_code, health_detail, health_since, created_at, updated_at"
)

#: Seconds within which a host's own count tells which of two words is the newer: more than a word can be late, less than one
#: is believed. Beyond, time does, so that a count that was too high once (a clock, a lie) holds a column up no longer.
COUNT_S = 60.0


class BackendRow(msgspec.Struct, frozen=True, kw_only=True):
    """A live row of table backend."""

    id: str
    name: str
    kind: str
    config: dict[str, Any]
    credential_version: int
    is_default: bool
    labels: dict[str, str]
    selector: HostSelector
    state: BackendState
    generation: int
    version: int
    health_status: HealthStatus
    health_code: FaultCode | None
    health_detail: str | None
    health_since: dt.datetime
    created_at: dt.datetime
    updated_at: dt.datetime


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """What one host last said of one backend (a row of backend_host)."""

    backend_id: str
    host_id: str
    observed_generation: int | None
    credential_version: int
    status: HealthStatus
    code: FaultCode | None
    detail: str | None
    remedy: str | None
    latency_ms: float | None
    capacity: Capacity | None
    capabilities: tuple[Capability, ...]
    report_order: int
    observed_at: dt.datetime | None

    def is_newer_than(self, other: "Cell") -> bool:
        """As the database judges it (`record`): by the host's own count if they are close in time, else by time."""
        if other.observed_at is None or self.observed_at is None:
            return other.observed_at is None
        is_close = self.observed_at <= other.observed_at + dt.timedelta(seconds=COUNT_S)
        if self.report_order > 0 and other.report_order > 0 and is_close:
            return self.report_order >= other.report_order
        return self.observed_at >= other.observed_at


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot for the registry: the rows asked for that are live, their cells and volume counts, and the one default.

    holders: backend id -> host id -> the version of the credentials that was brought there.
    """

    rows: tuple[BackendRow, ...]
    cells: tuple[Cell, ...]
    live_volumes: dict[str, int]
    holders: dict[str, dict[str, int]]
    default_id: str | None


def shown(row: BackendRow) -> dict[str, Any]:
    """The backend as events carry it: no secret is in a row, and no health, which has events of its own."""
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "config": row.config,
        "has_credentials": row.credential_version > 0,
        "is_default": row.is_default,
        "state": row.state.value,
        "hosts": msgspec.to_builtins(row.selector),
        "labels": row.labels,
        "generation": row.generation,
        "version": row.version,
    }


def _row(record: asyncpg.Record) -> BackendRow:
    return msgspec.convert(dict(record), BackendRow)


async def insert_creating(
    connection: Connection,
    *,
    backend_id: str,
    name: str,
    kind: str,
    config: dict[str, Any],
    credential_version: int,
    labels: dict[str, str],
    selector: HostSelector,
) -> bool:
    """Whether the name was free; if so it is reserved now."""
    done = await connection.execute(
        "INSERT INTO backend (id, name, kind, config, credential_version, labels, selector, state)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, 'creating') ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING",
        backend_id, name, kind, config, credential_version, labels, msgspec.to_builtins(selector),
    )  # fmt: skip
    return bool(done == "INSERT 0 1")


async def find(connection: Connection, ref: str, *, is_id: bool) -> BackendRow | None:
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM backend WHERE {'id' if is_id else 'name'} = $1 AND deleted_at IS NULL", ref
    )
    return _row(record) if record else None


async def lock(connection: Connection, backend_id: str) -> BackendRow | None:
    """The live row, locked against every other change (and every new volume) until the transaction ends."""
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM backend WHERE id = $1 AND deleted_at IS NULL FOR UPDATE", backend_id
    )
    return _row(record) if record else None


async def activate(
    connection: Connection, backend_id: str, *, state: BackendState, health: tuple[HealthStatus, str | None, str | None]
) -> BackendRow | None:
    """From creating or needs_initialization to `state`; None when it was in neither."""
    record = await connection.fetchrow(
        "UPDATE backend SET state = $2, health_status = $3, health_code = $4, health_detail = $5,"
        " health_since = now(), updated_at = now(), version = version + (state <> 'creating')::int"
        " WHERE id = $1 AND state IN ('creating', 'needs_initialization') AND deleted_at IS NULL"
        f" RETURNING {_COLUMNS}",
        backend_id, state, *health,
    )  # fmt: skip
    return _row(record) if record else None


async def change(
    connection: Connection,
    backend_id: str,
    *,
    name: str,
    config: dict[str, Any],
    credential_version: int,
    labels: dict[str, str],
    selector: HostSelector,
    state: BackendState,
    is_reconfigured: bool,
) -> BackendRow:
    """The row with its new words; generation rises when hosts must take it over. The caller holds its lock.

    Raises asyncpg.UniqueViolationError when the name is another live backend's.
    """
    record = await connection.fetchrow(
        "UPDATE backend SET name = $2, config = $3, credential_version = $4, labels = $5, selector = $6, state = $7,"
        " generation = generation + $8, version = version + 1, updated_at = now() WHERE id = $1 AND deleted_at IS NULL"
        f" RETURNING {_COLUMNS}",
        backend_id, name, config, credential_version, labels, msgspec.to_builtins(selector), state,
        int(is_reconfigured),
    )  # fmt: skip
    assert record is not None, "the caller holds the lock of a live row"
    return _row(record)


async def hold_default(connection: Connection) -> None:
    """The default stays as it is until the transaction ends. To be called before any backend's row is locked:
    two that each lock their own backend first and then want the other's would wait for each other for ever.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _DEFAULT_LOCK)


async def set_default(connection: Connection, backend_id: str, *, is_new: bool) -> tuple[str | None, bool]:
    """(id of the default before, whether it changed). The caller is in a transaction; readers see both rows change at once.

    is_new: the backend becomes visible in this very transaction, so being the default is part of its first version.
    Raises LookupError when the backend is not ready.
    """
    await hold_default(connection)
    before = await connection.fetchval("SELECT id FROM backend WHERE is_default AND deleted_at IS NULL")
    if before == backend_id:
        return before, False
    await connection.execute(
        "UPDATE backend SET is_default = false, version = version + 1, updated_at = now()"
        " WHERE is_default AND deleted_at IS NULL"
    )
    done = await connection.execute(
        "UPDATE backend SET is_default = true, version = version + (NOT $2)::int, updated_at = now()"
        " WHERE id = $1 AND state = 'ready' AND deleted_at IS NULL",
        backend_id, is_new,
    )  # fmt: skip
    if done != "UPDATE 1":
        raise LookupError(backend_id)
    return before, True


async def next_credential_version(connection: Connection) -> int:
    """A version that no rotation, undone or not, has had before; higher than all of them."""
    return int(await connection.fetchval("SELECT nextval('credential_version_seq')"))


async def note_holders(connection: Connection, backend_id: str, version: int, host_ids: Sequence[str]) -> None:
    """The manager has brought this version of the backend's credentials to these hosts."""
    await connection.execute(
        "INSERT INTO credential_holder AS held (backend_id, host_id, version) SELECT $1, id, $2 FROM host WHERE id = ANY($3)"
        " ON CONFLICT (backend_id, host_id) DO UPDATE SET version = excluded.version WHERE held.version < excluded.version",
        backend_id, version, list(host_ids),
    )  # fmt: skip


async def mark_deleting(connection: Connection, backend_id: str) -> bool:
    """Whether the removal may go on: not the default, no live volume. The caller holds the row's lock (see `lock`)."""
    done = await connection.execute(
        "UPDATE backend SET state = 'deleting', version = version + 1, updated_at = now()"
        " WHERE id = $1 AND deleted_at IS NULL AND NOT is_default"
        " AND NOT EXISTS (SELECT FROM volume WHERE backend_id = $1 AND deleted_at IS NULL)",
        backend_id,
    )
    return bool(done == "UPDATE 1")


async def mark_stuck(connection: Connection, backend_id: str) -> None:
    """Its add could not be undone; the row stays for a person to see."""
    await connection.execute("UPDATE backend SET state = 'stuck', updated_at = now() WHERE id = $1", backend_id)


async def live_volumes(
    connection: Connection, backend_id: str, *, limit: int = 100
) -> tuple[int, list[dict[str, str]]]:
    """(how many, the first `limit` as {type, id, name}, with a reason where nobody can do anything about it); type: the volume's role."""
    records = await connection.fetch(
        "SELECT id, name, role, state, count(*) OVER () AS n FROM volume WHERE backend_id = $1 AND deleted_at IS NULL"
        " ORDER BY created_at LIMIT $2",
        backend_id, limit,
    )  # fmt: skip
    live = [{"type": r["role"], "id": r["id"], "name": r["name"], **_waits(r["state"])} for r in records]
    return (records[0]["n"] if records else 0), live


def _waits(state: str) -> dict[str, str]:
    words = "its bytes wait for their deletion and go by themselves as soon as the storage lets them: try again later"
    return {"reason": words} if state == "deleting" else {}


async def finish_removal(
    connection: Connection, backend_id: str, *, unconfirmed: Sequence[str], keep_row: bool
) -> None:
    """The backend is gone; hosts that did not confirm keep a tombstone until they do.

    keep_row False (an add that was undone): the row goes too, if need be when its last tombstone has gone (`prune`).
    """
    if not unconfirmed and not keep_row:
        await connection.execute("DELETE FROM backend WHERE id = $1", backend_id)
        return
    await connection.execute(
        "UPDATE backend SET state = $2, is_default = false, deleted_at = now(), updated_at = now() WHERE id = $1",
        backend_id, BackendState.DELETING if keep_row else BackendState.CREATING,
    )  # fmt: skip
    await connection.execute("DELETE FROM backend_host WHERE backend_id = $1", backend_id)
    await connection.execute("DELETE FROM credential_holder WHERE backend_id = $1", backend_id)
    await connection.execute(
        "INSERT INTO backend_host (backend_id, host_id, desired)"
        " SELECT $1, id, 'absent' FROM host WHERE id = ANY($2) AND revoked_at IS NULL",
        backend_id, list(unconfirmed),
    )  # fmt: skip


async def touched_hosts(connection: Connection, backend_id: str) -> list[str]:
    """Live hosts that may hold something of the backend or have left its marker, also those that it is no longer for."""
    records = await connection.fetch(
        "SELECT id FROM host h WHERE revoked_at IS NULL AND (EXISTS"
        " (SELECT FROM backend_host c WHERE c.backend_id = $1 AND c.host_id = h.id) OR EXISTS (SELECT FROM operation o"
        " WHERE o.key = 'backend:' || $1::uuid AND o.kind = 'backend.initialize' AND o.params->>'first' = h.id::text))"
        " ORDER BY id",
        backend_id,
    )
    return [r["id"] for r in records]


async def prune(connection: Connection) -> None:
    """Rows of undone adds, which nothing refers to, are gone once every host has let go."""
    await connection.execute(
        "DELETE FROM backend b WHERE deleted_at IS NOT NULL AND state = 'creating'"
        " AND NOT EXISTS (SELECT FROM backend_host WHERE backend_id = b.id)"
    )


async def record(connection: Connection, host_id: str, observations: Sequence[Observation]) -> None:
    """What the host saw, unless something newer is there or the backend is no longer live. Tombstones stay."""
    await connection.execute(
        "INSERT INTO backend_host AS cell (backend_id, host_id, observed_generation, credential_version, status, code, detail,"
        " remedy, latency_ms, capacity, capabilities, report_order, observed_at)"
        " SELECT o.backend_id, $1, o.generation, o.credential_version, o.status, o.code, o.detail, o.remedy, o.latency_ms, o.capacity,"
        " ARRAY(SELECT jsonb_array_elements_text(o.capabilities)), o.\"order\", o.observed_at"
        " FROM jsonb_to_recordset($2::jsonb) AS o (backend_id uuid, generation bigint, credential_version int, status text, code text,"
        " detail text, remedy text, latency_ms double precision, capacity jsonb, capabilities jsonb, \"order\" bigint,"
        " observed_at timestamptz)"
        " JOIN backend b ON b.id = o.backend_id AND b.deleted_at IS NULL"
        " ON CONFLICT (backend_id, host_id) DO UPDATE SET observed_generation = excluded.observed_generation,"
        " credential_version = excluded.credential_version, status = excluded.status, code = excluded.code, detail = excluded.detail,"
        " remedy = excluded.remedy, latency_ms = excluded.latency_ms, capacity = excluded.capacity,"
        " capabilities = excluded.capabilities, report_order = excluded.report_order, observed_at = excluded.observed_at"
        " WHERE cell.desired = 'attached' AND (cell.observed_at IS NULL"
        " OR CASE WHEN cell.report_order > 0 AND excluded.report_order > 0"
        " AND excluded.observed_at <= cell.observed_at + make_interval(secs => $3) THEN cell.report_order <= excluded.report_order"
        " ELSE cell.observed_at <= excluded.observed_at END)",
        host_id, [msgspec.to_builtins(o) for o in observations], COUNT_S,
    )  # fmt: skip


async def set_health(
    connection: Connection,
    backend_id: str,
    *,
    before: HealthStatus,
    after: HealthStatus,
    code: str | None,
    detail: str | None,
) -> bool:
    """Whether this caller is the one that turned the recorded health; of several at most one is."""
    done = await connection.execute(
        "UPDATE backend SET health_status = $3, health_code = $4, health_detail = $5, health_since = now()"
        " WHERE id = $1 AND health_status = $2 AND deleted_at IS NULL AND state NOT IN ('creating', 'deleting')",
        backend_id, before, after, code, detail,
    )  # fmt: skip
    return bool(done == "UPDATE 1")


async def load(connection: Connection, ids: Sequence[str] | None) -> Loaded:
    """The given backends (None: all) as of one moment, with the default of the same moment."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        default_id = await connection.fetchval("SELECT id FROM backend WHERE is_default AND deleted_at IS NULL")
        wanted = None if ids is None else list({*ids, *([default_id] if default_id else [])})
        records = await connection.fetch(
            f"SELECT {_COLUMNS} FROM backend WHERE deleted_at IS NULL AND ($1::uuid[] IS NULL OR id = ANY($1))", wanted
        )
        cells = await connection.fetch(
            "SELECT backend_id, host_id, observed_generation, credential_version, status, code, detail, remedy,"
            " latency_ms, capacity, capabilities, report_order, observed_at"
            " FROM backend_host WHERE desired = 'attached' AND ($1::uuid[] IS NULL OR backend_id = ANY($1))",
            wanted,
        )
        volumes = await connection.fetch(
            "SELECT backend_id, count(*) AS n FROM volume WHERE deleted_at IS NULL"
            " AND ($1::uuid[] IS NULL OR backend_id = ANY($1)) GROUP BY backend_id",
            wanted,
        )
        held = await connection.fetch(
            "SELECT backend_id, host_id, version FROM credential_holder WHERE $1::uuid[] IS NULL OR backend_id = ANY($1)",
            wanted,
        )
    holders: dict[str, dict[str, int]] = {}
    for record in held:
        holders.setdefault(record["backend_id"], {})[record["host_id"]] = record["version"]
    return Loaded(
        rows=_readable(records, BackendRow),
        cells=_readable(cells, Cell),
        live_volumes={r["backend_id"]: r["n"] for r in volumes},
        holders=holders,
        default_id=default_id,
    )


def _readable(records: Sequence[asyncpg.Record], type_: type[StructT]) -> tuple[StructT, ...]:
    """The rows that this code understands; one written by a newer manager, or damaged, must not hide the others."""
    found: list[StructT] = []
    for record in records:
        try:
            found.append(msgspec.convert(dict(record), type_))
        except msgspec.ValidationError as error:
            log.error("row not understood", extra={"row": type_.__name__, "error": str(error)})
    return tuple(found)


class WantedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A backend as `wanted_by` sees it for one host; operation_fence is set while a saga works on it.

    is_marks_turn: of the hosts with tombstones this is the one that removes marks which one host at a time may write: that may
    have made them, in an add that was undone, else the first.
    """

    id: str
    kind: str
    config: dict[str, Any]
    credential_version: int
    generation: int
    state: BackendState
    selector: HostSelector
    operation_fence: int | None
    is_deleted: bool
    is_tombstone: bool
    is_marks_turn: bool


async def wanted_by(connection: Connection, host_id: str) -> tuple[int, list[WantedRow]]:
    """(a fence, every backend that may concern the host as of that fence).

    The advisory lock waits for the inserts of sagas that drew a lower fence and are not yet committed
    (store/operations.insert holds it shared), so a backend that is missing here was touched by nobody at
    or below the fence. The caller is in a transaction and ends it at once.
    """
    await connection.execute("SET LOCAL lock_timeout = '5s'")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", INSERT_LOCK)
    fence = await connection.fetchval("SELECT nextval('fence_seq')")
    records = await connection.fetch(
        "SELECT b.id, b.kind, b.config, b.credential_version, b.generation, b.state, b.selector, o.fence AS operation_fence,"
        " b.deleted_at IS NOT NULL AS is_deleted, coalesce(h.desired = 'absent', false) AS is_tombstone,"
        " CASE WHEN h.desired IS DISTINCT FROM 'absent' THEN false WHEN b.state = 'creating' THEN EXISTS (SELECT FROM operation a"
        " WHERE a.key = 'backend:' || b.id AND a.kind = 'backend.add' AND a.params->>'first' = $1::uuid::text)"
        " ELSE NOT EXISTS (SELECT FROM backend_host t WHERE t.backend_id = b.id AND t.desired = 'absent' AND t.host_id < $1)"
        " END AS is_marks_turn"
        # Two halves, for with OR every backend that ever was is read.
        " FROM (SELECT * FROM backend WHERE deleted_at IS NULL UNION ALL"
        " SELECT d.* FROM backend d JOIN backend_host t ON t.backend_id = d.id AND t.host_id = $1 AND t.desired = 'absent'"
        " WHERE d.deleted_at IS NOT NULL) b"
        " LEFT JOIN operation o ON o.key = 'backend:' || b.id AND o.state IN ('running', 'undoing', 'stuck')"
        " LEFT JOIN backend_host h ON h.backend_id = b.id AND h.host_id = $1",
        host_id,
    )
    return fence, [msgspec.convert(dict(r), WantedRow) for r in records]


async def confirm_absent(connection: Connection, host_id: str, backend_ids: Sequence[str]) -> None:
    """The host holds nothing of these any more: their tombstones are done with."""
    await connection.execute(
        "DELETE FROM backend_host WHERE host_id = $1 AND desired = 'absent' AND backend_id = ANY($2)",
        host_id, list(backend_ids),
    )  # fmt: skip


#: Advisory lock: shared by every insert of a saga, exclusive for the moment in which a host's list is drawn up.
INSERT_LOCK = 7_310_003
