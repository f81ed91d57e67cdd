"""What the API shows of a backend: its row, its health, its capacity, each host's observation; the matrix of all, and what changed in it."""

import datetime as dt
import enum
from typing import Any

import msgspec

from schemas.faults import FaultCode
from schemas.hosts import Host, HostSelector, HostState


class BackendState(enum.StrEnum):
    CREATING = "creating"
    NEEDS_INITIALIZATION = "needs_initialization"
    READY = "ready"
    DRAINING = "draining"
    DELETING = "deleting"
    STUCK = "stuck"


class HealthStatus(enum.StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"
    PENDING = "pending"
    UNKNOWN = "unknown"


class Capability(enum.StrEnum):
    EXTERNAL = "external"
    CLONE_FROM_IMAGE = "clone_from_image"
    SNAPSHOT = "snapshot"


class Capacity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """file_system: the same text means the same space, seen twice (two agents on one machine)."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    observed_at: dt.datetime
    file_system: str | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: HealthStatus
    code: FaultCode | None
    detail: str | None
    since: dt.datetime


class HostSummary(msgspec.Struct, frozen=True, kw_only=True):
    total: int
    healthy: int


class HostObservation(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the matrix: a backend as one host last saw it."""

    host: str
    host_id: str
    status: HealthStatus
    code: FaultCode | None = None
    detail: str | None = None
    remedy: str | None = None
    latency_ms: float | None = None
    capacity: Capacity | None = None
    observed_at: dt.datetime | None = None
    desired_generation: int | None = None
    observed_generation: int | None = None


class ProbeNote(msgspec.Struct, frozen=True, kw_only=True):
    """What one probe of a backend by one host found."""

    observed_at: dt.datetime
    status: HealthStatus
    code: FaultCode | None
    detail: str | None
    remedy: str | None
    latency_ms: float | None


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    kind: str
    config: dict[str, Any]
    has_credentials: bool
    is_default: bool
    state: BackendState
    health: Health
    capabilities: tuple[Capability, ...]
    capacity: Capacity | None
    hosts: HostSelector
    host_summary: HostSummary
    live_volumes: int
    labels: dict[str, str]
    generation: int
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime


class MatrixCell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a small square can show of an observation."""

    status: HealthStatus
    code: FaultCode | None = None
    detail: str | None = None
    latency_ms: float | None = None


class MatrixHost(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    state: HostState


class MatrixRow(msgspec.Struct, frozen=True, kw_only=True):
    """cells: one a host, in the order of the hosts; None: the backend is not for it."""

    backend_id: str
    backend: str
    cells: tuple[MatrixCell | None, ...]


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """hosts: the live ones, in the order of joining. rows: every backend, oldest first."""

    hosts: tuple[MatrixHost, ...]
    rows: tuple[MatrixRow, ...]


class CellChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A cell as it is now. status None: the backend is for this host no longer."""

    backend_id: str
    host_id: str
    status: HealthStatus | None
    code: FaultCode | None = None
    detail: str | None = None
    latency_ms: float | None = None


class ChangeSet(msgspec.Struct, frozen=True, kw_only=True):
    """What looks different now: backends and hosts whole, cells, ids of backends that are gone and of operations that were written."""

    backends: tuple[Backend, ...] = ()
    gone: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    cells: tuple[CellChange, ...] = ()
    operations: tuple[str, ...] = ()
