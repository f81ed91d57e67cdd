"""What the volumes of one backend are to the agent: files in its folder, or LVs in its VG.

A `VolumeStore` is bound to one backend that is attached here, and keeps nothing between calls. Like a driver
it touches storage only through `Workers` and `Commands`; every verb is idempotent.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from schemas.volume_rpc import AttachedAt, AttachMode, FoundVolume, VolumeFormat, VolumeSpec, Wipe

#: The folder of a file backend's volumes, below its own.
VOLUMES_FOLDER = "volumes"
#: Sizes are whole sectors: no hypervisor shows a disk of another size.
SECTOR_BYTES = 512


@dataclass(frozen=True)
class Extent:
    """Where bytes lie on this host, for a worker to open: `name` in `folder`, no link followed.

    dm_uuid: of an LV, what the opened device must be by the kernel's word; empty for a file. mount_root: of a file
    that lies in a mount, where something must be mounted, or empty. is_zero: nothing was ever written to it, so zeros need not be.
    identity: of a file that others may write to, what it must be from before it is read until after (job_io.identity_of); empty: any.
    is_resolved: no link leads to the folder, and one that does has been put there since.
    """

    folder: Path
    name: str
    format: VolumeFormat
    size_bytes: int
    dm_uuid: str = ""
    mount_root: str = ""
    is_zero: bool = False
    identity: tuple[int, ...] = ()
    is_resolved: bool = False


class VolumeStore(Protocol):
    """The volumes of one backend. All verbs raise AgentFault."""

    async def make(self, spec: VolumeSpec, origin: VolumeSpec | None) -> bool:
        """It exists at its size; whether it has the origin's content already. Made before by the same command: the same answer,
        but is_filled may be False though it was True (it is filled once more then).
        """
        ...

    def opened(self, spec: VolumeSpec, *, is_writable: bool) -> AbstractAsyncContextManager[Extent]:
        """The incarnation for a worker to read or write; an LV is active for as long as the block lasts. Raises volume_missing."""
        ...

    async def settle(self, spec: VolumeSpec) -> None:
        """After it was filled: it is whole, at its size, on stable storage. Raises wrong_size."""
        ...

    async def wipe(self, spec: VolumeSpec, wipe: Wipe, progress: Path) -> None:
        """See WipeVolume; files are always NONE, for no other file sees their blocks."""
        ...

    async def erase(self, spec: VolumeSpec) -> None:
        """See EraseVolume."""
        ...

    async def resize(self, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool) -> None:
        """See ResizeVolume. spec: with the size before."""
        ...

    async def blank(self, spec: VolumeSpec, from_bytes: int, progress: Path) -> None:
        """See BlankVolume; nothing to do where what is added to a volume reads as zeros by itself."""
        ...

    async def attach(self, spec: VolumeSpec, mode: AttachMode) -> AttachedAt:
        """See AttachVolume."""
        ...

    async def detach(self, spec: VolumeSpec) -> None:
        """See DetachVolume."""
        ...

    async def fence_off(self, spec: VolumeSpec) -> None:
        """Another host has been given the volume: nothing here can write to it any more. Who has it open is killed."""
        ...

    async def list(self) -> tuple[FoundVolume, ...]:
        """See ListVolumes; in the order of names."""
        ...
