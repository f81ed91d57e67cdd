"""Commands about volumes, from manager to agent, and their results.

A volume's bytes lie in an incarnation: one file or LV that bears a locator, which is never used again. A
migration or a revert makes another incarnation and then changes hands, so a worker that woke up late
can only hurt what is going away. Fences of these commands are counted by volume, not by backend.

Long ones (prepare, fill, compare, wipe, blank) begin the work or look at it: the same command again joins what is under way,
and begins it anew where this agent knows nothing of it. They answer within wait_ms, ended or not.
"""

import enum

import msgspec

from schemas.command import Command

#: Bytes of an upload in one message; as JSON carries them, a third more, below agent_rpc.MAX_MESSAGE_BYTES with their head.
MAX_CHUNK_BYTES = 128 * 1024
#: How far behind the end of what has come a chunk may lie: chunks under way at once are written in any order.
MAX_AHEAD_BYTES = 4 * 1024 * 1024


class VolumeFormat(enum.StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


class AttachMode(enum.StrEnum):
    RW = "rw"
    RO = "ro"


class Wipe(enum.StrEnum):
    """What is done to the blocks of a deleted LV before others can get them."""

    NONE = "none"
    DISCARD = "discard"
    ZERO = "zero"


class VolumeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One incarnation. locator: 32 hexadecimal digits. size_bytes: what a VM sees."""

    locator: str
    format: VolumeFormat
    size_bytes: int


class VolumeSource(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="from", tag="volume"
):
    """Another incarnation, on this backend (target None) or on another one that is attached here."""

    spec: VolumeSpec
    backend_id: str = ""


class PathSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="from", tag="path"):
    """A file of this host, in one of the folders that its config names (image_dirs)."""

    path: str
    format: VolumeFormat
    sha256: str = ""


class UrlSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="from", tag="url"):
    """What a server gives this host; kept in the agent's own folder until the volume is filled."""

    url: str
    format: VolumeFormat
    sha256: str


class UploadSource(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="from", tag="upload"
):
    """What a client has sent to this host under the volume's id (BeginUpload and what follows it); size_bytes: as it was sent."""

    format: VolumeFormat
    sha256: str
    size_bytes: int


FileSource = PathSource | UrlSource | UploadSource
Source = VolumeSource | FileSource


class VolumeCommand(Command, frozen=True, kw_only=True):
    """The head of every command about one volume."""

    volume_id: str


class MakeVolume(VolumeCommand, frozen=True, kw_only=True, tag="make_volume"):
    """The incarnation exists, at its size, and holds nothing yet. Result: Made.

    origin: an incarnation of the same backend whose content it is to have, which storage that can shares or
    copies at once. is_instant: storage that cannot must refuse (unsupported); else it is left to be filled.
    """

    spec: VolumeSpec
    origin: VolumeSpec | None = None
    is_instant: bool = False


class PrepareSource(VolumeCommand, frozen=True, kw_only=True, tag="prepare_source"):
    """The source can be read here, has its digest and refers to no other file; what its size is. Long. Result: WorkReport."""

    source: FileSource
    wait_ms: int


class FillVolume(VolumeCommand, frozen=True, kw_only=True, tag="fill_volume"):
    """The incarnation holds the source's content and zeros behind it, all on stable storage. Long. Result: WorkReport.

    source None: nothing but zeros.
    """

    spec: VolumeSpec
    source: Source | None = None
    wait_ms: int


class CompareVolume(VolumeCommand, frozen=True, kw_only=True, tag="compare_volume"):
    """The incarnation, read anew from the storage, holds what the source holds. Long. Result: WorkReport.

    Raises io_error when they differ.
    """

    spec: VolumeSpec
    source: VolumeSource
    wait_ms: int


class WipeVolume(VolumeCommand, frozen=True, kw_only=True, tag="wipe_volume"):
    """Nobody who gets its blocks can read what was there. Absent is success. Long. Result: WorkReport."""

    spec: VolumeSpec
    wipe: Wipe
    wait_ms: int


class EraseVolume(VolumeCommand, frozen=True, kw_only=True, tag="erase_volume"):
    """The incarnation is gone, with what was under way on it and what was fetched for it. Absent is success. Result: nothing.

    Raises in_use while something on this host has it open.
    """

    spec: VolumeSpec


class ResizeVolume(VolumeCommand, frozen=True, kw_only=True, tag="resize_volume"):
    """It has the new size; what was added may hold anything until it is blanked. Already so: success. Result: nothing."""

    spec: VolumeSpec
    size_bytes: int
    may_shrink: bool = False


class BlankVolume(VolumeCommand, frozen=True, kw_only=True, tag="blank_volume"):
    """What was added to it behind from_bytes, its size before, reads as zeros. Long. Result: WorkReport."""

    spec: VolumeSpec
    from_bytes: int
    wait_ms: int


class AttachVolume(VolumeCommand, frozen=True, kw_only=True, tag="attach_volume"):
    """Ready for a hypervisor of this host. An epoch below the highest seen is refused (fenced_off). Result: AttachedAt."""

    spec: VolumeSpec
    epoch: int
    mode: AttachMode


class DetachVolume(VolumeCommand, frozen=True, kw_only=True, tag="detach_volume"):
    """This host may not use it any more: LVs are inactive. Absent is success. Raises in_use. Result: nothing."""

    spec: VolumeSpec
    epoch: int


class ListVolumes(Command, frozen=True, kw_only=True, tag="list_volumes"):
    """Everything in the place where this backend's volumes are. after: names behind this one. Result: VolumeListing."""

    after: str = ""


class BeginUpload(VolumeCommand, frozen=True, kw_only=True, tag="begin_upload"):
    """There is room for the image, and a place for its bytes; they may come now. Result: nothing.

    size_bytes: of the image, 0 where nobody knows yet. This and the next three bear fence 0 as long as no saga knows the volume:
    they touch nothing but a file of the agent's own, under an id that nobody else has. From a saga's first command on they are stale.
    Raises no_space, in_use where bytes of it have come already.
    """

    size_bytes: int = 0


class ReceiveChunk(VolumeCommand, frozen=True, kw_only=True, tag="receive_chunk"):
    """The bytes lie at that offset; on stable storage only after EndUpload. Result: nothing.

    content: 1 to MAX_CHUNK_BYTES. Chunks may come in any order, but none further than MAX_AHEAD_BYTES behind the end of those that
    have come. Raises no_space, and source_unreadable (retryable) where nothing was begun, or an agent that was started again has
    thrown it away.
    """

    offset: int
    content: bytes


class EndUpload(VolumeCommand, frozen=True, kw_only=True, tag="end_upload"):
    """The upload is whole, of that size, on stable storage, and can be a source. Result: nothing.

    To be sent when every chunk has been answered. Raises as ReceiveChunk, and wrong_size.
    """

    size_bytes: int


class ForgetUpload(VolumeCommand, frozen=True, kw_only=True, tag="forget_upload"):
    """Nothing that was sent here for the volume is left. Absent is success. Result: nothing."""


AnyUploadCommand = BeginUpload | ReceiveChunk | EndUpload | ForgetUpload
AnyVolumeCommand = (
    MakeVolume
    | PrepareSource
    | FillVolume
    | CompareVolume
    | WipeVolume
    | EraseVolume
    | ResizeVolume
    | BlankVolume
    | AttachVolume
    | DetachVolume
    | ListVolumes
    | AnyUploadCommand
)


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """is_filled: the origin's content is in it."""

    is_filled: bool = False


class WorkReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far the work is. total_bytes 0: not known yet. size_bytes: of a prepared source, as a VM would see it."""

    is_done: bool
    done_bytes: int = 0
    total_bytes: int = 0
    size_bytes: int = 0


class AttachedAt(msgspec.Struct, frozen=True, kw_only=True):
    """path: what to give to the hypervisor; type: file or block."""

    path: str
    type: str


class FoundVolume(msgspec.Struct, frozen=True, kw_only=True):
    """One file or LV. locator: of ours, else empty. size_bytes: what a VM sees; of what is not ours, what the storage shows."""

    name: str
    locator: str = ""
    format: str = ""
    size_bytes: int
    allocated_bytes: int | None = None


class VolumeListing(msgspec.Struct, frozen=True, kw_only=True):
    """In the order of names. is_whole: nothing is behind the last."""

    items: tuple[FoundVolume, ...]
    is_whole: bool = True


class HeldVolume(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment that is open on a host, by the manager's word: what is not among them there is closed by its agent."""

    volume_id: str
    epoch: int
