"""Outbox and audit log: appended in the transaction of the change, sealed into the chain and published by the relay."""

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from manager.store.pool import Connection
from schemas.events import CloudEvent, EventType, chain_hash
from schemas.ids import is_id, new_id

#: Bytes of an event's data. A message on the bus may have 1 MB, and nobody shall have to look at each event's size.
DATA_MAX_BYTES = 64 * 1024

#: How many events one sealing transaction and one publishing round take.
BATCH = 200
_MOST_SEQUENCE = 2**63 - 1

_COLUMNS = "id, type, subject, subject_id, actor, request_id, time, data, sequence, prevhash, hash"


class SealedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed event and the id that its NATS subject ends in."""

    subject_id: str
    event: CloudEvent


class ChainHead(msgspec.Struct, frozen=True, kw_only=True):
    """sequence, hash: of the last event that was sealed; 0 and GENESIS before the first. last_sequence: the highest in the table."""

    sequence: int
    hash: str
    last_sequence: int


async def append(
    connection: Connection,
    *,
    type: EventType,
    collection: str,
    subject_id: str,
    actor: str,
    request_id: str,
    data: dict[str, Any],
) -> None:
    """The event, in the caller's transaction: it exists if and only if the change does. collection: "storage_backends" or "hosts".

    Data over DATA_MAX_BYTES has counts in the place of its largest parts, and the id of the operation that shows them whole.
    """
    subject = f"{collection}/{subject_id}"
    if len(msgspec.json.encode(data)) > DATA_MAX_BYTES:
        operation_id = await connection.fetchval(
            "SELECT id FROM operation WHERE subject = $1 ORDER BY created_at DESC LIMIT 1", subject
        )
        data = _bounded(data) | {"operation_id": operation_id}
    await connection.execute(
        "INSERT INTO event (id, type, subject, subject_id, actor, request_id, data) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        new_id(), type, subject, subject_id, actor, request_id, data,
    )  # fmt: skip


async def seal(connection: Connection, fleet_id: str) -> int:
    """How many events joined the chain, in the order of insertion.

    The fleet's row is locked first, so a stale leader waits and then sees the chain's new head; two
    relays can never seal the same place twice.
    """
    async with connection.transaction():
        head = await connection.fetchrow("SELECT chain_sequence, chain_hash FROM fleet FOR UPDATE")
        assert head is not None, "the fleet's row is made at start"
        records = await connection.fetch(
            f"SELECT {_COLUMNS} FROM event WHERE sequence IS NULL ORDER BY n LIMIT $1", BATCH
        )
        if not records:
            return 0
        sequence, previous = head["chain_sequence"], head["chain_hash"]
        sealed: list[tuple[str, int, str, str]] = []
        for record in records:
            sequence += 1
            event = _event(dict(record) | {"sequence": sequence, "prevhash": previous, "hash": ""}, fleet_id)
            digest = chain_hash(event)
            sealed.append((record["id"], sequence, previous, digest))
            previous = digest
        await connection.executemany("UPDATE event SET sequence = $2, prevhash = $3, hash = $4 WHERE id = $1", sealed)
        await connection.execute("UPDATE fleet SET chain_sequence = $1, chain_hash = $2", sequence, previous)
        await connection.execute("SELECT pg_notify('stowage', 'event:' || $1::text)", str(sequence))
    return len(sealed)


async def unpublished(connection: Connection, fleet_id: str) -> list[SealedEvent]:
    """Sealed events that the stream may not have yet, in order."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM event WHERE published_at IS NULL AND sequence IS NOT NULL ORDER BY sequence LIMIT $1",
        BATCH,
    )
    return [SealedEvent(subject_id=r["subject_id"], event=_event(dict(r), fleet_id)) for r in records]


async def mark_published(connection: Connection, ids: Sequence[str]) -> None:
    await connection.execute("UPDATE event SET published_at = now() WHERE id = ANY($1)", list(ids))


async def mark_published_up_to(connection: Connection, *, id: str, sequence: int, hash: str) -> bool:
    """Whether this sealed event is one of ours; it and all before it count as published then."""
    is_ours = await connection.fetchval(
        "SELECT true FROM event WHERE id = $1 AND sequence = $2 AND hash = $3", id, sequence, hash
    )
    if is_ours is None:
        return False
    await connection.execute(
        "UPDATE event SET published_at = now() WHERE published_at IS NULL AND sequence <= $1", sequence
    )
    return True


async def oldest_unpublished_s(connection: Connection) -> float:
    """Seconds since the oldest event that the stream may not have; 0 when it has all."""
    age_s = await connection.fetchval(
        "SELECT extract(epoch FROM clock_timestamp() - min(time))::float8 FROM event WHERE published_at IS NULL"
    )
    return max(0.0, float(age_s or 0.0))


async def page(
    connection: Connection,
    fleet_id: str,
    *,
    after: int | None,
    limit: int,
    is_newest_first: bool = False,
    subject: str | None = None,
    type: str | None = None,
    actor: str | None = None,
    since: dt.datetime | None = None,
) -> list[CloudEvent]:
    """Sealed events that follow on the sequence `after` (None: from the beginning), oldest or newest first.

    subject: "storage_backends/<id>" or the bare id. Without a filter, and by the subject's id, by type or by actor, an index gives
    either order; by `since` alone the log is read until enough are found, which is at once for the newest first.
    """
    # By the id, which has an index, whenever the subject ends in one.
    last = (subject or "").rpartition("/")[2]
    subject_id, whole = (last, subject if subject != last else None) if is_id(last) else (None, subject)
    if is_newest_first:
        place, order, start = "sequence < $1", "sequence DESC", _MOST_SEQUENCE
    else:
        place, order, start = "sequence > $1", "sequence", 0
    async with contextlib.AsyncExitStack() as stack:
        if subject is not None or type is not None or actor is not None:
            await stack.enter_async_context(connection.transaction())
            # Else this connection may keep one plan for all filters, which walks the log and leaves the indexes alone (seen with
            # PostgreSQL 18: 45 ms of 200 000 events instead of 1).
            await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        records = await connection.fetch(
            f"SELECT {_COLUMNS} FROM event WHERE {place}"
            " AND ($3::uuid IS NULL OR subject_id = $3) AND ($7::text IS NULL OR subject = $7) AND ($4::text IS NULL OR type = $4)"
            " AND ($5::text IS NULL OR actor = $5) AND ($6::timestamptz IS NULL OR time >= $6)"
            f" ORDER BY {order} LIMIT $2",
            start if after is None else after, limit, subject_id, type, actor, since, whole,
        )  # fmt: skip
    return [_event(dict(r), fleet_id) for r in records]


async def last_sequence(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT chain_sequence FROM fleet"))


async def chain_head(connection: Connection) -> ChainHead:
    """Where the chain ends, by the fleet's row and by the events themselves, as of one moment."""
    record = await connection.fetchrow(
        "SELECT chain_sequence AS sequence, chain_hash AS hash,"
        " coalesce((SELECT max(sequence) FROM event), 0) AS last_sequence FROM fleet"
    )
    return msgspec.convert(dict(record or {}), ChainHead)


async def links(connection: Connection, fleet_id: str, *, after: int, up_to: int, limit: int) -> list[CloudEvent]:
    """Sealed events as they are in the table, whatever has been done to it: nothing of them is believed."""
    records = await connection.fetch(
        f"SELECT {_COLUMNS} FROM event WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3",
        after, up_to, limit,
    )  # fmt: skip
    return [_event(dict(r), fleet_id, is_believed=False) for r in records]


def _bounded(data: dict[str, Any]) -> dict[str, Any]:
    """The data with {"omitted": count, "bytes": size} in the place of its largest parts."""
    sizes = {key: len(msgspec.json.encode(value)) for key, value in data.items()}
    bounded = dict(data)
    for key in sorted(sizes, key=lambda key: sizes[key], reverse=True):
        if len(msgspec.json.encode(bounded)) <= DATA_MAX_BYTES:
            break
        value = data[key]
        count = len(value) if isinstance(value, list | dict | tuple) else 1  # pyright: ignore[reportUnknownArgumentType]
        bounded[key] = {"omitted": count, "bytes": sizes[key]}
    return bounded


def _event(record: dict[str, Any], fleet_id: str, *, is_believed: bool = True) -> CloudEvent:
    """is_believed: the type is one that we know."""
    return CloudEvent(
        id=record["id"],
        source=f"/stowage/{fleet_id}",
        type=EventType(record["type"]) if is_believed else cast("EventType", record["type"]),
        subject=record["subject"],
        time=record["time"].astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        actor=record["actor"],
        requestid=record["request_id"],
        sequence=str(record["sequence"]),
        prevhash=record["prevhash"],
        hash=record["hash"],
        data=record["data"],
    )
