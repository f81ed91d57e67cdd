"""What a command about a volume must be like before any part of it becomes a name or a size on storage."""

import re
from collections.abc import Iterator

from agent.volumes import SECTOR_BYTES
from schemas.ids import is_id
from schemas.volume_rpc import (
    MAX_CHUNK_BYTES,
    AnyUploadCommand,
    AnyVolumeCommand,
    AttachVolume,
    BeginUpload,
    BlankVolume,
    CompareVolume,
    DetachVolume,
    EndUpload,
    FileSource,
    FillVolume,
    ListVolumes,
    MakeVolume,
    PathSource,
    PrepareSource,
    ReceiveChunk,
    ResizeVolume,
    Source,
    UploadSource,
    VolumeSource,
    VolumeSpec,
)

_LOCATOR = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Bytes, and epochs: beyond it sums would leave the 64 bits of those who get them.
_MAX = 2**62


def objection(command: AnyVolumeCommand) -> str:
    """Why it may not be obeyed; empty when it may. The backend's id was looked at before."""
    if isinstance(command, ListVolumes):
        return ""
    if not is_id(command.volume_id):
        return "the volume id is none"
    for spec in _specs(command):
        if _LOCATOR.fullmatch(spec.locator) is None:
            return "a locator is none"
        if not _is_size(spec.size_bytes):
            return "a size is out of range or no whole sectors"
    if isinstance(command, ResizeVolume) and not _is_size(command.size_bytes):
        return "the new size is out of range or no whole sectors"
    if isinstance(command, BlankVolume) and not 0 <= command.from_bytes <= command.spec.size_bytes:
        return "what is to be blanked is out of range"
    if isinstance(command, AttachVolume | DetachVolume) and not 1 <= command.epoch <= _MAX:
        return "the epoch is out of range"
    if isinstance(command, BeginUpload) and not 0 <= command.size_bytes <= _MAX:
        return "the size is out of range"
    if isinstance(command, EndUpload) and not 1 <= command.size_bytes <= _MAX:
        return "the size is out of range"
    if isinstance(command, ReceiveChunk) and not (
        0 <= command.offset <= _MAX and 1 <= len(command.content) <= MAX_CHUNK_BYTES
    ):
        return "a chunk is out of range"
    return _objection_to_source(_source(command))


def _objection_to_source(source: Source | None) -> str:
    if isinstance(source, VolumeSource) and source.backend_id and not is_id(source.backend_id):
        return "the source's backend id is none"
    if isinstance(source, UploadSource) and not 1 <= source.size_bytes <= _MAX:
        return "the source's size is out of range"
    is_optional = isinstance(source, PathSource)
    if isinstance(source, FileSource) and not (source.sha256 == "" and is_optional):
        return "" if _SHA256.fullmatch(source.sha256) else "the source's sha256 is none"
    return ""


def _specs(command: AnyVolumeCommand) -> Iterator[VolumeSpec]:
    if not isinstance(command, PrepareSource | ListVolumes | AnyUploadCommand):
        yield command.spec
    if isinstance(command, MakeVolume) and command.origin is not None:
        yield command.origin
    source = _source(command)
    if isinstance(source, VolumeSource):
        yield source.spec


def _source(command: AnyVolumeCommand) -> Source | None:
    return command.source if isinstance(command, PrepareSource | FillVolume | CompareVolume) else None


def _is_size(size_bytes: int) -> bool:
    return 1 <= size_bytes <= _MAX and size_bytes % SECTOR_BYTES == 0
