"""Who asks: carried from the edge into the journal and the audit log."""

import datetime as dt
import enum
from dataclasses import dataclass


class Role(enum.StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Actor:
    """name: `token:<name>` or `system`. idempotency: (token id, key), so that a saga's insert can link its operation.

    expires_at: when what it came in with ends, its token or its session; None: not by itself.
    """

    name: str
    request_id: str
    role: Role = Role.VIEWER
    token_id: str = ""
    expires_at: dt.datetime | None = None
    idempotency: tuple[str, str] | None = None

    @property
    def is_expired(self) -> bool:
        """For who keeps a connection open: a session ends though its token lives."""
        return self.expires_at is not None and self.expires_at <= dt.datetime.now(dt.UTC)


SYSTEM = Actor(name="system", request_id="", role=Role.ADMIN)
