"""What an auditor of a fleet finds: the events of the stream beside those of the database, and the chain."""

import json
from typing import Any

import msgspec
import nats
from nats.errors import TimeoutError as NatsTimeout

from schemas import subjects
from schemas.events import CloudEvent, verify_chain
from tests.fleet.fleet import Fleet, until

_AUDITOR_INBOX = b"_INBOX_e"


async def streamed(fleet: Fleet) -> list[CloudEvent]:
    """Every event that the stream holds, in its order, read with the auditor's identity."""
    client: Any = await nats.connect(  # pyright: ignore[reportUnknownMemberType]
        fleet.nats.url, user_credentials=str(fleet.nats.creds.auditor), inbox_prefix=_AUDITOR_INBOX
    )
    found: list[CloudEvent] = []
    try:
        reader: Any = await client.jetstream().pull_subscribe(subjects.EVENTS, stream=subjects.STREAM)
        wanted = (await reader.consumer_info()).num_pending
        while len(found) < wanted:
            try:
                messages: Any = await reader.fetch(batch=200, timeout=5)
            except NatsTimeout:
                break
            for message in messages:
                found.append(msgspec.json.decode(message.data, type=CloudEvent))
                await message.ack()
    finally:
        await client.close()
    return found


async def event_violations(fleet: Fleet) -> list[str]:
    """What is wrong with the events once all are published: order, repeats, holes, the chain."""

    async def is_published() -> bool:
        rows = await fleet.sql("SELECT count(*) AS n FROM event WHERE published_at IS NULL")
        return bool(rows[0]["n"] == 0)

    await until(is_published, "all events to be published")
    least = (await fleet.sql("SELECT count(*) AS n FROM event"))[0]["n"]
    found = await streamed(fleet)
    # Read after the stream, for a turn of health may become an event at any moment; what is behind its end came since.
    rows = await fleet.sql("SELECT id::text, sequence FROM event WHERE sequence IS NOT NULL ORDER BY sequence")
    wrong: list[str] = []
    ids = [event.id for event in found]
    if len(ids) < least or [row["id"] for row in rows[: len(ids)]] != ids:
        wrong.append(f"database has {len(rows)} events, the stream {len(ids)}, {len(set(ids))} of them different")
    if [row["sequence"] for row in rows] != list(range(1, len(rows) + 1)):
        wrong.append("the sequence has holes")
    if broken := verify_chain(found):
        wrong.append(f"the chain breaks at event {broken}")
    return wrong


async def backend_event_violations(fleet: Fleet, *, added: set[str], removed: set[str]) -> list[str]:
    """Each backend that was ever added (by name) has one created event, one deleted event if removed, and no other has."""
    rows = await fleet.sql(
        "SELECT type, data::text AS data FROM event WHERE type IN ('backend.created', 'backend.deleted') ORDER BY n"
    )
    names: dict[str, list[str]] = {"backend.created": [], "backend.deleted": []}
    for row in rows:
        names[row["type"]].append(json.loads(row["data"])["name"])
    wrong: list[str] = []
    for type_, wanted in (("backend.created", added), ("backend.deleted", removed)):
        if sorted(names[type_]) != sorted(wanted):
            odd = sorted(set(names[type_]) ^ wanted)[:5]
            wrong.append(f"{len(names[type_])} {type_} events for {len(wanted)} backends; odd: {odd}")
    return wrong
