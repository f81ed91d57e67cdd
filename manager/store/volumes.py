"""Volumes, images, snapshots and what operations make in between: one row for each thing that lies on a storage."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from manager.store.pool import Connection
from schemas.volume_rpc import VolumeFormat, VolumeSpec
from schemas.volumes import VolumeRole, VolumeState

_COLUMNS = (
    "v.id, v.name, v.backend_id, v.size_bytes, v.state, v.role, v.parent_id, v.locator, v.format, v.host_id, v.worker_id,"
    " v.source, v.sha256, v.labels, v.epoch, v.version, v.created_at, v.updated_at"
)
#: Stands for a size that the source is to tell yet: the table has no row without a size, and no disk has this one.
_NO_SIZE = 1
#: Operations of which the volume is the subject, or that read it while it must not change.
_BUSY = "SELECT id FROM operation WHERE state IN ('running', 'undoing', 'stuck')"


class VolumeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A live row of table volume."""

    id: str
    name: str
    backend_id: str
    size_bytes: int
    state: VolumeState
    role: VolumeRole
    parent_id: str | None
    locator: str
    format: VolumeFormat
    host_id: str | None
    worker_id: str | None
    source: str | None
    sha256: str | None
    labels: dict[str, str]
    epoch: int
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime

    @property
    def spec(self) -> VolumeSpec:
        return VolumeSpec(locator=self.locator, format=self.format, size_bytes=self.size_bytes)

    @property
    def has_size(self) -> bool:
        """Whether its size is known; not of one that is being made from a source that nobody has looked into yet."""
        return self.size_bytes != _NO_SIZE


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a list. operation_id: of what is under way on it. snapshots: how many are alive."""

    row: VolumeRow
    snapshots: int
    operation_id: str | None


def shown(row: VolumeRow) -> dict[str, Any]:
    """The volume as events carry it."""
    return {
        "id": row.id,
        "name": row.name,
        "backend_id": row.backend_id,
        "host_id": row.host_id,
        "locator": row.locator,
        "format": row.format.value,
        "size_bytes": row.size_bytes,
        "state": row.state.value,
        "source": row.source,
        "sha256": row.sha256,
        "labels": row.labels,
        "parent_id": row.parent_id,
        "version": row.version,
    }


def _row(record: asyncpg.Record) -> VolumeRow:
    return msgspec.convert(dict(record), VolumeRow)


async def insert(
    connection: Connection,
    *,
    volume_id: str,
    name: str,
    backend_id: str,
    size_bytes: int,
    role: VolumeRole,
    locator: str,
    format: VolumeFormat,
    state: VolumeState = VolumeState.CREATING,
    parent_id: str | None = None,
    host_id: str | None = None,
    worker_id: str | None = None,
    source: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> bool:
    """Whether the name was free; if so the row is there. size_bytes 0: told by the source, which is not known yet.

    Raises asyncpg.CheckViolationError (volume_needs_ready_backend) when the backend takes none.
    """
    done = await connection.execute(
        "INSERT INTO volume (id, name, backend_id, size_bytes, role, locator, format, state, parent_id, host_id, worker_id, source, labels)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING",
        volume_id, name, backend_id, size_bytes or _NO_SIZE, role, locator, format, state, parent_id, host_id, worker_id, source,
        dict(labels or {}),
    )  # fmt: skip
    return bool(done == "INSERT 0 1")


async def lock(connection: Connection, volume_id: str) -> VolumeRow | None:
    """The live row, locked until the transaction ends."""
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM volume v WHERE id = $1 AND deleted_at IS NULL FOR UPDATE", volume_id
    )
    return _row(record) if record else None


async def get(connection: Connection, volume_id: str) -> VolumeRow | None:
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM volume v WHERE id = $1 AND deleted_at IS NULL", volume_id
    )
    return _row(record) if record else None


async def find(
    connection: Connection, ref: str, *, is_id: bool, role: VolumeRole, parent_id: str | None = None
) -> VolumeRow | None:
    """The live one of that role by id or name; a snapshot's name is its volume's to give."""
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM volume v WHERE {'id' if is_id else 'name'} = $1 AND role = $2 AND deleted_at IS NULL"
        " AND ($3::uuid IS NULL OR parent_id = $3)",
        ref, role, parent_id,
    )  # fmt: skip
    return _row(record) if record else None


async def other_operation(connection: Connection, volume_id: str, operation_id: str | None) -> str | None:
    """The id of an operation on the volume, or that reads it, other than this one."""
    found = await connection.fetchval(
        f"{_BUSY} AND key = 'volume:' || $1::uuid AND id IS DISTINCT FROM $2 UNION ALL"
        f" {_BUSY} AND params ->> 'source_id' = $1::uuid::text AND id IS DISTINCT FROM $2 LIMIT 1",
        volume_id, operation_id,
    )  # fmt: skip
    return str(found) if found else None


async def changing_operation(connection: Connection, volume_id: str, operation_id: str | None) -> str | None:
    """The same of operations on the volume alone: any number may read it."""
    found = await connection.fetchval(
        f"{_BUSY} AND key = 'volume:' || $1::uuid AND id IS DISTINCT FROM $2", volume_id, operation_id
    )
    return str(found) if found else None


async def change(connection: Connection, volume_id: str, *, name: str, labels: Mapping[str, str]) -> VolumeRow:
    """New words. The caller holds the lock. Raises asyncpg.UniqueViolationError when the name is taken."""
    return await _update(connection, "name = $2, labels = $3", volume_id, name, dict(labels))


async def finish(connection: Connection, volume_id: str, *, size_bytes: int, sha256: str | None) -> VolumeRow:
    """What was being made is ready, in its first version, and no host works on it."""
    record = await connection.fetchrow(
        "UPDATE volume v SET state = 'ready', size_bytes = $2, sha256 = $3, worker_id = NULL, updated_at = now()"
        f" WHERE id = $1 AND state = 'creating' AND deleted_at IS NULL RETURNING {_COLUMNS}",
        volume_id, size_bytes, sha256,
    )  # fmt: skip
    assert record is not None, "the operation that makes it holds it"
    return _row(record)


async def mark_deleting(connection: Connection, volume_id: str) -> None:
    """No new version, for it may be given back."""
    await connection.execute("UPDATE volume SET state = 'deleting', updated_at = now() WHERE id = $1", volume_id)


async def give_back(connection: Connection, volume_id: str) -> None:
    """It was to be deleted, and nothing of it was touched."""
    await connection.execute(
        "UPDATE volume SET state = 'ready', worker_id = NULL, updated_at = now() WHERE id = $1", volume_id
    )


async def set_size(connection: Connection, volume_id: str, size_bytes: int) -> VolumeRow:
    return await _update(connection, "size_bytes = $2", volume_id, size_bytes)


async def set_worker(connection: Connection, volume_id: str, host_id: str | None) -> None:
    """The host that may have it active from now on, or none."""
    await connection.execute("UPDATE volume SET worker_id = $2 WHERE id = $1", volume_id, host_id)


async def raise_epoch(connection: Connection, volume_id: str) -> int:
    """A number that no attachment of the volume has had."""
    epoch = await connection.fetchval("UPDATE volume SET epoch = epoch + 1 WHERE id = $1 RETURNING epoch", volume_id)
    return int(epoch)


async def exchange(connection: Connection, volume_id: str, transient_id: str, *, size_bytes: int) -> VolumeRow:
    """The volume has the transient's bytes, and the transient has the volume's and is to be deleted. The caller holds both locks."""
    one, other = await lock(connection, volume_id), await lock(connection, transient_id)
    assert one is not None, "an operation holds both"
    assert other is not None, "an operation holds both"
    # A locator is unique on its backend at every statement's end, so the transient's is out of the way first.
    await connection.execute("UPDATE volume SET locator = '' WHERE id = $1", transient_id)
    row = await _update(
        connection,
        "backend_id = $2, locator = $3, format = $4, host_id = $5, size_bytes = $6",
        volume_id, other.backend_id, other.locator, other.format, other.host_id, size_bytes,
    )  # fmt: skip
    await _update(
        connection,
        "backend_id = $2, locator = $3, format = $4, host_id = $5, size_bytes = $6, state = 'deleting', worker_id = $7",
        transient_id, one.backend_id, one.locator, one.format, one.host_id, one.size_bytes, other.worker_id,
    )  # fmt: skip
    return row


async def remove(connection: Connection, volume_id: str) -> None:
    """Nothing of it is on the storage any more."""
    await connection.execute(
        "UPDATE volume SET deleted_at = now(), updated_at = now() WHERE id = $1 AND deleted_at IS NULL", volume_id
    )


async def make_transient(connection: Connection, volume_id: str) -> None:
    """It has no name any more, and goes as soon as the storage lets it."""
    await connection.execute(
        "UPDATE volume SET role = 'transient', parent_id = NULL, state = 'deleting', updated_at = now(), version = version + 1"
        " WHERE id = $1 AND deleted_at IS NULL",
        volume_id,
    )


async def touch(connection: Connection, volume_id: str) -> None:
    """It was looked at now; no new version."""
    await connection.execute("UPDATE volume SET updated_at = now() WHERE id = $1", volume_id)


async def forget(connection: Connection, volume_id: str) -> None:
    """It never was."""
    await connection.execute("DELETE FROM volume WHERE id = $1", volume_id)


async def snapshots_of(connection: Connection, volume_id: str) -> list[VolumeRow]:
    """The oldest first."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM volume v WHERE parent_id = $1 AND role = 'snapshot' AND deleted_at IS NULL ORDER BY id",
        volume_id,
    )
    return [_row(r) for r in records]


async def on_backend(connection: Connection, backend_id: str) -> list[VolumeRow]:
    """Everything that lies there, the smallest first."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM volume v WHERE backend_id = $1 AND deleted_at IS NULL ORDER BY size_bytes, id",
        backend_id,
    )
    return [_row(r) for r in records]


async def next_to_move(connection: Connection, backend_id: str, *, but: Sequence[str]) -> VolumeRow | None:
    """The smallest that lies there, other than those; what only waits for its deletion is left out."""
    record = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM volume v WHERE backend_id = $1 AND deleted_at IS NULL AND role <> 'transient' AND id <> ALL($2)"
        " ORDER BY size_bytes, id LIMIT 1",
        backend_id, list(but),
    )  # fmt: skip
    return _row(record) if record else None


async def hosts_in_use(connection: Connection, backend_id: str) -> dict[str, int]:
    """host id -> how many volumes of the backend lie on that host, are attached there or worked on there. Revoked hosts use none."""
    records = await connection.fetch(
        "SELECT host_id, count(DISTINCT id) AS n FROM ("
        " SELECT id, host_id FROM volume WHERE backend_id = $1 AND deleted_at IS NULL AND host_id IS NOT NULL UNION ALL"
        " SELECT id, worker_id FROM volume WHERE backend_id = $1 AND deleted_at IS NULL AND worker_id IS NOT NULL UNION ALL"
        " SELECT v.id, a.host_id FROM volume v JOIN attachment a ON a.volume_id = v.id AND a.closed_at IS NULL"
        " WHERE v.backend_id = $1 AND v.deleted_at IS NULL) used"
        " WHERE host_id IN (SELECT id FROM host WHERE revoked_at IS NULL) GROUP BY host_id",
        backend_id,
    )
    return {r["host_id"]: r["n"] for r in records}


async def to_delete(connection: Connection, *, rest_s: float, limit: int) -> list[VolumeRow]:
    """Rows that wait for their deletion and that no operation is under way on, nor was within rest_s."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM volume v WHERE deleted_at IS NULL AND state = 'deleting'"
        " AND NOT EXISTS (SELECT FROM operation o WHERE o.key = 'volume:' || v.id AND (o.state IN ('running', 'undoing', 'stuck')"
        " OR o.updated_at > now() - make_interval(secs => $1))) ORDER BY updated_at LIMIT $2",
        rest_s, limit,
    )  # fmt: skip
    return [_row(r) for r in records]


async def to_settle(connection: Connection, *, rest_s: float, limit: int) -> list[VolumeRow]:
    """Ready ones of which a host has not answered since a resize that failed, with no operation under way, nor within rest_s."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM volume v WHERE deleted_at IS NULL AND state = 'ready' AND worker_id IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM operation o WHERE o.key = 'volume:' || v.id AND (o.state IN ('running', 'undoing', 'stuck')"
        " OR o.updated_at > now() - make_interval(secs => $1))) ORDER BY updated_at LIMIT $2",
        rest_s, limit,
    )  # fmt: skip
    return [_row(r) for r in records]


async def page(
    connection: Connection,
    role: VolumeRole,
    *,
    backend_id: str | None = None,
    host_id: str | None = None,
    state: VolumeState | None = None,
    is_attached: bool | None = None,
    is_unused: bool | None = None,
    labels: Mapping[str, str] | None = None,
    parent_id: str | None = None,
    after: str | None = None,
    limit: int,
    volume_id: str | None = None,
) -> list[Listed]:
    """Live rows of one role in the order of their making, those behind the id `after`.

    host_id: that it lies on or is attached to. is_unused: neither attached nor source of a snapshot.
    """
    attached = "EXISTS (SELECT FROM attachment a WHERE a.volume_id = v.id AND a.closed_at IS NULL"
    records = await connection.fetch(
        f"SELECT {_COLUMNS}, (SELECT count(*) FROM volume s WHERE s.parent_id = v.id AND s.role = 'snapshot' AND s.deleted_at IS NULL)"
        f" AS snapshots, ({_BUSY} AND key = 'volume:' || v.id) AS operation_id"
        " FROM volume v WHERE role = $1 AND deleted_at IS NULL AND ($2::uuid IS NULL OR backend_id = $2)"
        f" AND ($3::uuid IS NULL OR host_id = $3 OR {attached} AND a.host_id = $3))"
        f" AND ($4::text IS NULL OR state = $4) AND ($5::boolean IS NULL OR {attached}) = $5)"
        f" AND ($6::boolean IS NULL OR (NOT {attached}) AND NOT EXISTS (SELECT FROM volume s WHERE s.parent_id = v.id"
        " AND s.role = 'snapshot' AND s.deleted_at IS NULL)) = $6) AND labels @> $7 AND ($8::uuid IS NULL OR parent_id = $8)"
        " AND ($9::uuid IS NULL OR id > $9) AND ($11::uuid IS NULL OR id = $11) ORDER BY id LIMIT $10",
        role, backend_id, host_id, state, is_attached, is_unused, dict(labels or {}), parent_id, after, limit, volume_id,
    )  # fmt: skip
    return [Listed(row=_row(r), snapshots=r["snapshots"], operation_id=r["operation_id"]) for r in records]


async def _update(connection: Connection, words: str, volume_id: str, *values: Any) -> VolumeRow:
    """words: a literal of the caller's, `$1` being the id."""
    record = await connection.fetchrow(
        f"UPDATE volume v SET {words}, version = version + 1, updated_at = now() WHERE id = $1 AND deleted_at IS NULL"
        f" RETURNING {_COLUMNS}",
        volume_id, *values,
    )  # fmt: skip
    assert record is not None, "the caller holds the lock of a live row"
    return _row(record)
