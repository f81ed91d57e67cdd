"""Attachments: which host may use which volume, since when, under which epoch."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from manager.store.pool import Connection
from schemas.volume_rpc import AttachMode, HeldVolume
from schemas.volumes import AttachmentState

_COLUMNS = "id, volume_id, host_id, mode, epoch, state, path, type, since"


class AttachmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """An open row of table attachment."""

    id: str
    volume_id: str
    host_id: str
    mode: AttachMode
    epoch: int
    state: AttachmentState
    path: str | None
    type: str | None
    since: dt.datetime


def shown(row: AttachmentRow) -> dict[str, Any]:
    """The attachment as events carry it."""
    return {
        "id": row.id,
        "volume_id": row.volume_id,
        "host_id": row.host_id,
        "mode": row.mode.value,
        "epoch": row.epoch,
        "state": row.state.value,
        "path": row.path,
        "type": row.type,
    }


def _row(record: asyncpg.Record) -> AttachmentRow:
    return msgspec.convert(dict(record), AttachmentRow)


async def of_volumes(connection: Connection, volume_ids: Sequence[str]) -> dict[str, list[AttachmentRow]]:
    """volume id -> its open attachments, the oldest first."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM attachment WHERE volume_id = ANY($1) AND closed_at IS NULL ORDER BY id",
        list(volume_ids),
    )
    found: dict[str, list[AttachmentRow]] = {}
    for record in records:
        found.setdefault(record["volume_id"], []).append(_row(record))
    return found


async def of_volume(connection: Connection, volume_id: str) -> list[AttachmentRow]:
    return (await of_volumes(connection, [volume_id])).get(volume_id, [])


async def insert(
    connection: Connection, *, attachment_id: str, volume_id: str, host_id: str, mode: AttachMode, epoch: int
) -> AttachmentRow | None:
    """The new row; None when a writer has the volume, or this host has it already."""
    record = await connection.fetchrow(
        "INSERT INTO attachment (id, volume_id, host_id, mode, epoch) VALUES ($1, $2, $3, $4, $5)"
        f" ON CONFLICT DO NOTHING RETURNING {_COLUMNS}",
        attachment_id, volume_id, host_id, mode, epoch,
    )  # fmt: skip
    return _row(record) if record else None


async def note_attached(connection: Connection, attachment_id: str, *, path: str, type: str) -> AttachmentRow:
    record = await connection.fetchrow(
        "UPDATE attachment SET state = 'attached', path = $2, type = $3 WHERE id = $1 AND closed_at IS NULL"
        f" RETURNING {_COLUMNS}",
        attachment_id, path, type,
    )  # fmt: skip
    assert record is not None, "the operation has opened it"
    return _row(record)


async def set_state(connection: Connection, attachment_id: str, state: AttachmentState) -> None:
    await connection.execute(
        "UPDATE attachment SET state = $2 WHERE id = $1 AND closed_at IS NULL", attachment_id, state
    )


async def close(connection: Connection, attachment_id: str) -> None:
    await connection.execute(
        "UPDATE attachment SET closed_at = now() WHERE id = $1 AND closed_at IS NULL", attachment_id
    )


async def forget(connection: Connection, attachment_id: str) -> None:
    """It never was."""
    await connection.execute("DELETE FROM attachment WHERE id = $1", attachment_id)


async def close_all_of(connection: Connection, host_id: str) -> list[tuple[str, AttachmentRow]]:
    """(name of the volume, the attachment as it was): those of a host that is out for ever."""
    records = await connection.fetch(
        f"WITH closed AS (UPDATE attachment SET closed_at = now() WHERE host_id = $1 AND closed_at IS NULL RETURNING {_COLUMNS})"
        " SELECT c.*, v.name FROM closed c JOIN volume v ON v.id = c.volume_id ORDER BY c.id",
        host_id,
    )
    return [(r["name"], _row(r)) for r in records]


async def held_by(connection: Connection, host_id: str) -> list[HeldVolume]:
    """What the host may use, or is just being given or asked to give back."""
    records = await connection.fetch(
        "SELECT volume_id, epoch FROM attachment WHERE host_id = $1 AND closed_at IS NULL", host_id
    )
    return [HeldVolume(volume_id=r["volume_id"], epoch=r["epoch"]) for r in records]
