"""Who asks: carried from the edge into the journal and the audit log."""

import enum
from dataclasses import dataclass


class Role(enum.StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Actor:
    """name: `token:<name>` or `system`. idempotency: (token id, key), so that a saga's insert can link its operation."""

    name: str
    request_id: str
    role: Role = Role.VIEWER
    token_id: str = ""
    idempotency: tuple[str, str] | None = None


SYSTEM = Actor(name="system", request_id="", role=Role.ADMIN)
