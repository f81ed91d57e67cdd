"""The disk of a LUN in an iSCSI session: found in the session's own sysfs folder, known by its WWID.

Not by /dev/disk/by-path: those names hold the portal as it was typed, and lag behind udev.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.drivers.base import Workers
from agent.errors import AgentFault
from agent.iscsiadm import Session
from schemas.faults import FaultCode

#: Seconds for a new disk to appear after the scan; 1 to 4 s on an emulated host (lab, 2026-11-23).
DISK_TIMEOUT_S = 15.0
_SCAN_TIMEOUT_S = 20.0
_REMOVE_TIMEOUT_S = 20.0
_READ_TIMEOUT_S = 10.0
_POLL_S = 0.1
_SECTOR_BYTES = 512
#: LUNs above 255 come in flat addressing, whose method bits the kernel leaves in the number (SAM-5 4.7.7.3).
_FLAT = 0x4000


@dataclass(frozen=True)
class Disk:
    """device: what to open, the multipath device where one has claimed the disk. holders: names of dm devices upon it."""

    name: str
    device: str
    scsi_dir: Path
    wwid: str
    size_bytes: int
    is_read_only: bool
    holders: tuple[str, ...]


class Disks:
    """Disks of iSCSI sessions. Reads of sysfs answer from the kernel's memory; writes wait for the device, so they go to a worker."""

    def __init__(self, workers: Workers, sysfs: Path = Path("/sys")) -> None:
        self._workers = workers
        self._sysfs = sysfs

    def find(self, session: Session, lun: int) -> Disk | None:
        """The LUN's disk, if the session has it."""
        numbers = {str(lun), str(lun | _FLAT)} if lun > 255 else {str(lun)}
        for block_dir in sorted(session.device_dir.glob("target*/*:*:*:*/block/*")):
            scsi_dir = block_dir.parents[1]
            if scsi_dir.name.rpartition(":")[2] in numbers:
                # It may vanish while we read.
                with contextlib.suppress(OSError, ValueError):
                    return self._disk(block_dir, scsi_dir)
        return None

    def holders(self, disk: Disk) -> tuple[str, ...]:
        """The dm devices upon the disk as they are now."""
        with contextlib.suppress(OSError, ValueError):
            return self._disk(disk.scsi_dir / "block" / disk.name, disk.scsi_dir).holders
        return ()

    async def wait_for(self, session: Session, lun: int, key: str) -> Disk:
        """The LUN's disk, after a scan for it if need be. Raises AgentFault lun_not_found."""
        disk = self.find(session, lun)
        if disk is not None:
            return disk
        scan = self._sysfs / "class/scsi_host" / session.host / "scan"
        await self._workers.run(
            "write_sysfs", {"path": str(scan), "text": f"- - {lun}"}, key=key, timeout_s=_SCAN_TIMEOUT_S
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISK_TIMEOUT_S):
                while (disk := self.find(session, lun)) is None:  # noqa: ASYNC110 - the kernel gives no other sign
                    await asyncio.sleep(_POLL_S)
                return disk
        raise AgentFault.of(FaultCode.LUN_NOT_FOUND, f"the target shows no LUN {lun} to this host")

    async def read(self, disk: Disk, key: str) -> dict[str, Any]:
        """latency_ms of a read past the cache. Asked before LVM is: a dead disk hangs the one worker of the key, not one tool a try."""
        return await self._workers.run("read_block", {"device": disk.device}, key=key, timeout_s=_READ_TIMEOUT_S)

    async def remove(self, disk: Disk, key: str) -> None:
        """The kernel has let go of the disk; before the target unmaps it, so that no other LUN ever takes its name unseen."""
        await self._workers.run(
            "write_sysfs", {"path": str(disk.scsi_dir / "delete"), "text": "1"}, key=key, timeout_s=_REMOVE_TIMEOUT_S
        )

    def _disk(self, block_dir: Path, scsi_dir: Path) -> Disk:
        holders = {holder.name: holder.resolve() for holder in sorted((block_dir / "holders").glob("dm-*"))}
        device = f"/dev/{block_dir.name}"
        for name, folder in holders.items():
            if (folder / "dm/uuid").read_text().startswith("mpath-"):
                # LVM must see one device a LUN, and the path below is locked by the map.
                device = f"/dev/{name}"
                holders = {upper.name: upper.resolve() for upper in sorted((folder / "holders").glob("dm-*"))}
                break
        return Disk(
            name=block_dir.name,
            device=device,
            scsi_dir=scsi_dir,
            wwid=(scsi_dir / "wwid").read_text().strip(),
            size_bytes=int((block_dir / "size").read_text()) * _SECTOR_BYTES,
            is_read_only=(block_dir / "ro").read_text().strip() == "1",
            holders=tuple((folder / "dm/name").read_text().strip() for folder in holders.values()),
        )
