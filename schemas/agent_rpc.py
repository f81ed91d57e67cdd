"""Messages between manager and agent: commands with their fence, replies, the sync of what is wanted, status.

Commands and replies are JSON. Commands forbid unknown fields (a dropped field would mount something
else than was asked); replies, syncs and reports tolerate them (the peer may be newer).
"""

import datetime as dt
import enum
from typing import Any

import msgspec

from schemas.backends import Capability, Capacity, HealthStatus
from schemas.command import Command, Target
from schemas.faults import Fault, FaultCode
from schemas.hosts import AgentFacts
from schemas.volume_rpc import AnyVolumeCommand, HeldVolume

#: Bytes; the bus refuses an agent's message beyond it (permission `payload`).
MAX_MESSAGE_BYTES = 256 * 1024


class Attach(Command, frozen=True, kw_only=True, tag="attach"):
    """Make the backend usable on this host, prove it (write, fsync, read back, unlink), keep it. Result: Observation.

    establish: this is an add, so the marker may be created; else a missing marker is a fault.
    """

    target: Target
    establish: bool = False


class Release(Command, frozen=True, kw_only=True, tag="release"):
    """Hold nothing of the backend here: unmount, log out, drop credentials. Absent is success. Result: ReleaseReport.

    remove_marker: the backend is being removed (or its add undone), so our marker goes too, and a
    folder that we made and that is empty. Data is never touched. Where marks are made by one host at
    a time (KindSpec.marks_alone_at) one host at a time is told so.
    """

    remove_marker: bool = False


class Trial(Command, frozen=True, kw_only=True, tag="trial"):
    """Prove a config and credentials beside what is attached, and leave nothing behind. Result: Observation.

    The target's credential_version may be a staged one. With credential_version > 0 and none held: needs_credentials.
    """

    target: Target


class Probe(Command, frozen=True, kw_only=True, tag="probe"):
    """Probe what is attached, now. Result: Observation."""


class CredentialNonce(Command, frozen=True, kw_only=True, tag="credential_nonce"):
    """A fresh nonce for one delivery of the given version; 60 s. Result: Nonce."""

    version: int


class StoreCredentials(Command, frozen=True, kw_only=True, tag="store_credentials"):
    """Keep the sealed credentials as that version beside any older one. Result: nothing.

    base_version: the sealed fields are laid over that held version (a new password, the user name kept);
    0: they are the whole set. Base not held: needs_credentials.
    """

    version: int
    sealed: bytes
    base_version: int = 0


class DropCredentials(Command, frozen=True, kw_only=True, tag="drop_credentials"):
    """Forget every version from `from_version` on (undo of a delivery: 0 drops all). Result: nothing."""

    from_version: int = 0


class ResealCredentials(Command, frozen=True, kw_only=True, tag="reseal_credentials"):
    """Seal the version held here for another host's key (unsigned; the manager signs). Result: Sealed."""

    version: int
    to_host: str
    to_key: str
    nonce: bytes


class Discover(Command, frozen=True, kw_only=True, tag="discover", omit_defaults=True):
    """What a server offers to this host. config may be partial. Result: Discovery.

    sealed credentials travel in the command itself (nonce first, version 1, under a backend_id made for this one question, which
    is empty without them). Absent where there are none: an older agent, which refuses the field, still answers the others.
    """

    kind: str
    config: dict[str, Any]
    sealed: bytes = b""


class Inspect(Command, frozen=True, kw_only=True, tag="inspect"):
    """What is on the device of a backend that needs initialization. Result: Inspection."""

    target: Target


class Initialize(Command, frozen=True, kw_only=True, tag="initialize"):
    """Write our structures on the device whose WWID was confirmed. Ours already: success. Result: Observation."""

    target: Target
    wwid: str
    force: bool = False


class Preflight(Command, frozen=True, kw_only=True, tag="preflight"):
    """Run an add's checks on this host and leave nothing behind. Result: PreflightReport.

    sealed credentials travel in the command itself (nonce first, under the same backend_id, version 1).
    """

    target: Target
    sealed: bytes = b""


class Nudge(Command, frozen=True, kw_only=True, tag="nudge"):
    """Something changed for this host: sync now. No reply."""


AnyCommand = (
    Attach
    | Release
    | Trial
    | Probe
    | CredentialNonce
    | StoreCredentials
    | DropCredentials
    | ResealCredentials
    | Discover
    | Inspect
    | Initialize
    | Preflight
    | Nudge
    | AnyVolumeCommand
)


class Ok(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="ok"):
    result: msgspec.Raw = msgspec.Raw(b"null")


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="failed"):
    """The command ran and did not succeed; is_retryable: the same command may succeed later."""

    fault: Fault
    is_retryable: bool = False


class Stale(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="stale"):
    """Refused: the agent has seen a higher fence for the backend. Nothing was done."""

    fence: int


Reply = Ok | Failed | Stale


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What one host saw of one backend; every number is of one probe.

    order: grows with every word of this host, over its restarts too; 0 where it does not say. Its clock may be set back, and a
    message may come late, so of two observations of one host this tells the newer.
    """

    backend_id: str
    order: int = 0
    generation: int
    credential_version: int = 0
    status: HealthStatus
    code: FaultCode | None = None
    detail: str | None = None
    remedy: str | None = None
    latency_ms: float | None = None
    capacity: Capacity | None = None
    capabilities: tuple[Capability, ...] = ()
    observed_at: dt.datetime


class ReleaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """left: sentences that say what stays on the storage and where; was_lazy: unmounted lazily as the last resort.

    is_unmarked: asked to remove our marker, the host has seen that the storage bears none, so no other host needs to.
    """

    left: tuple[str, ...] = ()
    was_lazy: bool = False
    is_unmarked: bool = False


class Nonce(msgspec.Struct, frozen=True, kw_only=True):
    nonce: bytes


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    sealed: bytes


class Discovered(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    config: dict[str, Any]


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[Discovered, ...]


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """signatures: what wipefs would list, as "type at offset", or "unknown data"; foreign_vg: the VG on it that is not ours.

    is_used: something of this host other than the backend lies on it or has it open; None: an agent that cannot tell.
    """

    wwid: str
    size_bytes: int
    signatures: tuple[str, ...] = ()
    partition_table: str | None = None
    foreign_vg: str | None = None
    is_blank: bool = False
    is_used: bool | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One question of a preflight; code: the fault that it met."""

    name: str
    is_ok: bool
    code: FaultCode | None = None
    detail: str = ""
    remedy: str = ""


class PreflightReport(msgspec.Struct, frozen=True, kw_only=True):
    checks: tuple[Check, ...]
    observation: Observation | None = None


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One backend of which the agent holds anything (mount, session, record, credentials)."""

    backend_id: str
    generation: int
    credential_version: int
    fence: int


class SyncRequest(msgspec.Struct, frozen=True, kw_only=True):
    facts: AgentFacts
    held: tuple[Held, ...] = ()


class Intent(enum.StrEnum):
    """attached: converge to it. absent: release it (a tombstone). hold: a saga works on it, hands off."""

    ATTACHED = "attached"
    ABSENT = "absent"
    HOLD = "hold"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """fence: what the agent must remember for the backend before it acts on this line."""

    target: Target
    intent: Intent
    fence: int
    remove_marker: bool = False


class SyncReply(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that concerns the host, as of `fence`: what is not in it and was last touched at or
    below that fence is to be released; a backend never heard of is refused below it.

    attachments: the volumes that the host may use, likewise as of `fence`. None: the manager is too old to know of any.
    """

    fence: int
    host_name: str
    wanted: tuple[Wanted, ...] = ()
    attachments: tuple[HeldVolume, ...] | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """Every few seconds. hung_workers: worker processes that outlived their deadline and still exist."""

    sequence: int
    hung_workers: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """sent_at: by the clock that the observations are dated by, so that their age can be told whatever it shows."""

    sent_at: dt.datetime
    observations: tuple[Observation, ...]


class RenewReply(msgspec.Struct, frozen=True, kw_only=True):
    user_jwt: str
