"""What the API shows of a saga: its state, its steps, its progress, its end."""

import datetime as dt
import enum
from typing import Any

import msgspec

from schemas.problems import Problem


class OperationState(enum.StrEnum):
    RUNNING = "running"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STUCK = "stuck"
    CANCELLED = "cancelled"


class StepState(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"
    FAILED = "failed"


class OperationStep(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: StepState
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    error: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Of the long step that is under way, or was last. total_bytes 0: not known. rate, eta: by the last seconds; null before."""

    done_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_s: int | None = None
    eta_s: int | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    subject: str
    state: OperationState
    steps: tuple[OperationStep, ...]
    progress: Progress
    is_cancelled: bool
    error: Problem | None
    result: dict[str, Any] | None
    actor: str
    created_at: dt.datetime
    updated_at: dt.datetime
