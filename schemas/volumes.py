"""What the API shows of volumes, images, snapshots and attachments."""

import datetime as dt
import enum

import msgspec

from schemas.volume_rpc import AttachMode, VolumeFormat


class VolumeState(enum.StrEnum):
    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


class VolumeRole(enum.StrEnum):
    """transient: what an operation makes before it changes hands, or could not take away yet; it goes as soon as the storage lets it."""

    VOLUME = "volume"
    IMAGE = "image"
    SNAPSHOT = "snapshot"
    TRANSIENT = "transient"


class AttachmentState(enum.StrEnum):
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One host's right to a volume. path, type: once attached, what to give to the hypervisor."""

    host: str
    host_id: str
    mode: AttachMode
    state: AttachmentState
    epoch: int
    path: str | None
    type: str | None
    since: dt.datetime


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """host: where it lies, of a backend that is not shared. locator: its name on the storage, relative to the backend.

    source: what it was made from, in words: `image NAME`, `volume NAME`, `snapshot NAME of NAME`.
    operation: the path of what is under way on it.
    """

    id: str
    name: str
    backend: str
    backend_id: str
    host: str | None
    locator: str
    format: VolumeFormat
    size_bytes: int
    state: VolumeState
    source: str | None
    labels: dict[str, str]
    attachments: tuple[Attachment, ...]
    snapshots: int
    operation: str | None
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that is never written again. sha256: of the source as it was given, which was checked. size_bytes: null while it
    is being made, for its source tells it.
    """

    id: str
    name: str
    backend: str
    backend_id: str
    host: str | None
    locator: str
    format: VolumeFormat
    size_bytes: int | None
    state: VolumeState
    source: str | None
    sha256: str | None
    labels: dict[str, str]
    operation: str | None
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen volume. It stands alone on the storage, so it outlives whatever happens to the volume's own bytes."""

    id: str
    name: str
    volume: str
    volume_id: str
    backend: str
    backend_id: str
    host: str | None
    locator: str
    format: VolumeFormat
    size_bytes: int
    state: VolumeState
    labels: dict[str, str]
    operation: str | None
    created_at: dt.datetime


class AttachAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Ready for the hypervisor: path of a file or block device on that host."""

    path: str
    type: str
    epoch: int
    host: str
    mode: AttachMode


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the volume can be attached on the host now, and each reason why not, in words."""

    host: str
    is_usable: bool
    reasons: tuple[str, ...]
