"""What lies on a LUN: what LVM and libblkid know of it, and whether there is anything besides; how it is told to the operator."""

from dataclasses import replace

from agent.lvm import DeviceContent, Lvm
from agent.scsi import Disk, Disks

#: Among the signatures, for what has none: plain dm-crypt, a raw database, what is left of a file system.
UNKNOWN_DATA = "unknown data"


class LunContents:
    """Looks at LUNs, and writes nothing."""

    def __init__(self, lvm: Lvm, disks: Disks) -> None:
        self._lvm = lvm
        self._disks = disks

    async def read(self, disk: Disk, key: str) -> DeviceContent:
        """What is on the disk. Blank is only what nothing is known of and what is zero at both ends, or behind the header of a bare PV."""
        content = await self._lvm.content(disk.device)
        if not content.is_blank or await self._disks.is_zero(disk, key, from_bytes=content.begins_at):
            return content
        return replace(content, is_blank=False, signatures=(*content.signatures, UNKNOWN_DATA))


def shown(content: DeviceContent) -> str:
    """What the LUN does, in a sentence whose subject it is."""
    if content.is_blank:
        return "is blank"
    return f"holds {f'volume group {content.vg_name}' if content.vg_name else ', '.join(content.signatures)}"


def remedy_for(content: DeviceContent, vg_name: str) -> str | None:
    """What to do about a VG of another name than the configured one; None for the standing remedy."""
    if content.vg_name in (None, vg_name):
        return None
    return (
        f"Correct vg_name if volume group {content.vg_name} is the one that is meant;"
        " initialize only if what it holds may be destroyed"
    )
