"""CloudEvents 1.0 of every committed change, and the hash chain that lets an auditor see a hole."""

import datetime as dt
import enum
import hashlib
from typing import Any

import msgspec


class EventType(enum.StrEnum):
    BACKEND_CREATED = "backend.created"
    BACKEND_UPDATED = "backend.updated"
    BACKEND_DELETED = "backend.deleted"
    BACKEND_DEFAULT_CHANGED = "backend.default_changed"
    BACKEND_CREDENTIALS_ROTATED = "backend.credentials_rotated"
    BACKEND_INITIALIZED = "backend.initialized"
    BACKEND_HEALTH_CHANGED = "backend.health_changed"
    VOLUME_CREATED = "volume.created"
    VOLUME_UPDATED = "volume.updated"
    VOLUME_RESIZED = "volume.resized"
    VOLUME_MIGRATED = "volume.migrated"
    VOLUME_REVERTED = "volume.reverted"
    VOLUME_ADOPTED = "volume.adopted"
    VOLUME_DELETED = "volume.deleted"
    VOLUME_STRAY_DELETED = "volume.stray_deleted"
    SNAPSHOT_CREATED = "snapshot.created"
    SNAPSHOT_MIGRATED = "snapshot.migrated"
    SNAPSHOT_DELETED = "snapshot.deleted"
    IMAGE_CREATED = "image.created"
    IMAGE_UPDATED = "image.updated"
    IMAGE_MIGRATED = "image.migrated"
    IMAGE_DELETED = "image.deleted"
    ATTACHMENT_OPENED = "attachment.opened"
    ATTACHMENT_CLOSED = "attachment.closed"
    HOST_JOINED = "host.joined"
    HOST_LEFT = "host.left"


GENESIS = "0" * 64


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`sequence` counts from 1 without a hole; `prevhash` is the hash of the event before, GENESIS for the first."""

    specversion: str = "1.0"
    id: str
    source: str
    type: EventType
    subject: str
    time: str
    datacontenttype: str = "application/json"
    actor: str
    requestid: str
    sequence: str
    prevhash: str
    hash: str
    data: dict[str, Any]


class ChainReport(msgspec.Struct, frozen=True, kw_only=True):
    """is_intact: all of the log was read, and is as it was sealed. events: how many were found good, from the first on.

    first_broken: the sequence of the first that is altered or missing. is_complete: the time was enough. verified_at: the end of the reading.
    """

    is_intact: bool
    events: int
    first_broken: str | None
    is_complete: bool
    verified_at: dt.datetime


def chain_hash(event: CloudEvent) -> str:
    """SHA-256 (hex) of the event's JSON with sorted keys, no blanks, and without the field `hash`."""
    plain = msgspec.to_builtins(event)
    del plain["hash"]
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def verify_chain(events: list[CloudEvent]) -> str | None:
    """None if each event follows the one before unaltered, else the id of the first that does not."""
    for before, event in zip([None, *events], events, strict=False):
        if chain_hash(event) != event.hash:
            return event.id
        if before is not None and (event.prevhash != before.hash or int(event.sequence) != int(before.sequence) + 1):
            return event.id
    return None
