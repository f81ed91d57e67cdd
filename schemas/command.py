"""What every command to an agent begins with, and a backend as an agent needs to know it."""

from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backend as an agent needs to know it; `config` is validated again by the agent against its own struct.

    credential_version 0: guest or anonymous access, nothing is kept for it.
    """

    backend_id: str
    fleet_id: str
    kind: str
    config: dict[str, Any]
    generation: int
    credential_version: int = 0


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb"):
    """The head of every command.

    command_id is the same when a step is retried, so the agent answers a repeat from its journal.
    fence: see docs/architecture.md; an agent refuses a fence below the highest it has seen for the
    backend. ttl_ms: the agent's budget from receipt; past it the manager has stopped listening.
    """

    command_id: str
    backend_id: str
    fence: int
    ttl_ms: int
    request_id: str = ""
