"""Identifiers: time-ordered UUIDs (RFC 9562, version 7) as text, and the names that hosts may bear."""

import re
from typing import NewType

import uuid_utils

BackendId = NewType("BackendId", str)
HostId = NewType("HostId", str)
OperationId = NewType("OperationId", str)
EventId = NewType("EventId", str)
TokenId = NewType("TokenId", str)
VolumeId = NewType("VolumeId", str)
CommandId = NewType("CommandId", str)

#: A host's name is a DNS label: it appears in subjects' logs, in folder names and in marker files.
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_id() -> str:
    """A fresh UUIDv7, 36 characters; ids made later in one process compare greater."""
    return str(uuid_utils.uuid7())


def is_id(text: str) -> bool:
    """Whether the text has the form of an id, so that `{ref}` can be told from a name."""
    return UUID_TEXT.fullmatch(text) is not None
