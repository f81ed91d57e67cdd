"""The disk of a LUN in an iSCSI session: found in the session's own sysfs folder, known by its WWID; and what lies on it.

Not by /dev/disk/by-path: those names hold the portal as it was typed, and lag behind udev. What sysfs does not tell is a
fault, never "nothing there": on these answers depends what is removed and overwritten.
"""

import asyncio
import contextlib
import errno
from collections.abc import Generator, Iterator
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
#: For 8 MiB, in the time of a command that has 20 s.
_LOOK_TIMEOUT_S = 10.0
_OPEN_TIMEOUT_S = 20.0
_POLL_S = 0.1
_SECTOR_BYTES = 512
_LVM = "LVM-"
_UUID_CHARS = 32
#: LUNs above 255 come in flat addressing, whose method bits the kernel leaves in the number (SAM-5 4.7.7.3).
_FLAT = 0x4000


@dataclass(frozen=True)
class Disk:
    """device: what to open, the multipath device where one has claimed the disk."""

    name: str
    device: str
    block_dir: Path
    scsi_dir: Path
    wwid: str
    size_bytes: int
    is_read_only: bool


@dataclass(frozen=True)
class Mapping:
    """A device upon a disk. dm_name, dm_uuid: empty for what is not of the device mapper (md, bcache)."""

    name: str
    dm_name: str
    dm_uuid: str

    @property
    def device(self) -> str:
        # The kernel makes this node itself, so it needs no wait for udev.
        return f"/dev/{self.name}"

    @property
    def shown(self) -> str:
        return self.dm_name or self.name

    @property
    def is_lvm(self) -> bool:
        """Whether it is an LV, or an inner part of one, of whatever VG."""
        return self.dm_uuid.startswith(_LVM)

    @property
    def lv_uuid(self) -> str:
        """As LVM reports it; empty for what is no LV by itself, as the inner parts of a pool, whose dm_uuid has a suffix."""
        if not self.dm_uuid.startswith(_LVM) or len(self.dm_uuid) != len(_LVM) + 2 * _UUID_CHARS:
            return ""
        word = self.dm_uuid[-_UUID_CHARS:]
        return "-".join((word[:6], *(word[i : i + 4] for i in range(6, 26, 4)), word[26:]))

    def is_of(self, vg_uuids: frozenset[str]) -> bool:
        """Whether it is an LV, or an inner part of one, of one of these VGs (lvm2, lib/activate/dev_manager.c: build_dm_uuid)."""
        return any(self.dm_uuid.startswith(dm_uuid_of(vg_uuid)) for vg_uuid in vg_uuids)


class Disks:
    """Disks of iSCSI sessions. Reads of sysfs answer from the kernel's memory; whatever waits for the device goes to a worker."""

    def __init__(self, workers: Workers, sysfs: Path = Path("/sys")) -> None:
        self._workers = workers
        self._sysfs = sysfs

    def find(self, session: Session, lun: int) -> Disk | None:
        """The LUN's disk, if the session has it. Raises AgentFault io_error."""
        numbers = {str(lun), str(lun | _FLAT)} if lun > 255 else {str(lun)}
        for block_dir in _block_dirs(session):
            scsi_dir = block_dir.parents[1]
            if scsi_dir.name.rpartition(":")[2] in numbers:
                with _told(f"disk {block_dir.name}"):
                    return _disk(block_dir, scsi_dir)
        return None

    def mappings(self, disk: Disk) -> tuple[Mapping, ...]:
        """What lies on the disk and its partitions, the uppermost first; a multipath device is the disk itself. Raises AgentFault io_error."""
        with _told(f"what uses disk {disk.name}"):
            return tuple(dict.fromkeys(_mappings(disk.block_dir)))

    def dead_mappings(self, vg_uuids: frozenset[str]) -> tuple[Mapping, ...]:
        """LVs of these VGs whose disk has gone from beneath them, the uppermost first. Raises AgentFault io_error.

        The session was ended by others, or the target unmapped the LUN; LVM takes them for active.
        """
        with _told("what is mapped"):
            return tuple(dict.fromkeys(self._dead_mappings(vg_uuids)))

    def has_other_path(self, disk: Disk) -> bool:
        """Whether a multipath device reaches the LUN without this disk. Raises AgentFault io_error."""
        with _told(f"what uses disk {disk.name}"):
            return _has_other_path(disk.block_dir)

    async def wait_for(self, session: Session, lun: int, key: str) -> Disk:
        """The LUN's disk, after a scan for it if need be. Raises AgentFault lun_not_found."""
        disk = self._find_if_whole(session, lun)
        if disk is not None:
            return disk
        scan = self._sysfs / "class/scsi_host" / session.host / "scan"
        await self._workers.run(
            "write_sysfs", {"path": str(scan), "text": f"- - {lun}"}, key=key, timeout_s=_SCAN_TIMEOUT_S
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISK_TIMEOUT_S):
                while (disk := self._find_if_whole(session, lun)) is None:  # noqa: ASYNC110 - the kernel gives no other sign
                    await asyncio.sleep(_POLL_S)
                return disk
        if (disk := self.find(session, lun)) is not None:
            return disk
        raise AgentFault.of(FaultCode.LUN_NOT_FOUND, f"the target shows no LUN {lun} to this host")

    async def read(self, disk: Disk, key: str) -> dict[str, Any]:
        """latency_ms of a read past the cache. Asked before LVM is: a dead disk hangs the one worker of the key, not one tool a try."""
        return await self._workers.run("read_block", {"device": disk.device}, key=key, timeout_s=_READ_TIMEOUT_S)

    async def is_zero(self, disk: Disk, key: str, *, from_bytes: int) -> bool:
        """Whether the disk's first and last 4 MiB are zeros; what lies before from_bytes is not looked at."""
        args = {"device": disk.device, "from_bytes": from_bytes}
        answer = await self._workers.run("look_for_data", args, key=key, timeout_s=_LOOK_TIMEOUT_S)
        return answer["is_zero"] is True

    async def remove(self, disk: Disk, key: str) -> None:
        """The kernel has let go of the disk; before the target unmaps it, so that no other LUN ever takes its name unseen."""
        await self._workers.run(
            "write_sysfs", {"path": str(disk.scsi_dir / "delete"), "text": "1"}, key=key, timeout_s=_REMOVE_TIMEOUT_S
        )

    async def refuse_used(self, disk: Disk, key: str, *, but: str = "") -> None:
        """Raises AgentFault in_use while anything of this host lies on the disk or has it open for itself.

        One of several paths of a multipath device is not missed. but: UUID of the one mapping that may lie on it.
        """
        with _told(f"what uses disk {disk.name}"):
            devices = [] if _has_other_path(disk.block_dir) else _devices_of(disk.block_dir, but)
        await self._refuse_busy(devices, key)

    async def refuse_used_session(self, session: Session, key: str, *, but: str = "") -> None:
        """As refuse_used, for every disk of the session: a rescan may have brought more of them than we asked for."""
        with _told(f"what uses {session.name}"):
            disks = [block_dir for block_dir in _block_dirs(session) if not _has_other_path(block_dir)]
            devices = [device for block_dir in disks for device in _devices_of(block_dir, but)]
        await self._refuse_busy(devices, key)

    async def refuse_used_lun(self, disk: Disk, key: str) -> None:
        """As refuse_used, for every way by which this host sees the LUN: all disks of the same WWID, and their partitions."""
        with _told("which disks are the same LUN"):
            found = [block_dir for block_dir in self._all_disks() if _wwid(block_dir) == disk.wwid]
            devices = [device for block_dir in found for device in _devices_of(block_dir)]
        if disk.block_dir.resolve() not in {block_dir.resolve() for block_dir in found}:
            raise AgentFault.of(FaultCode.LUN_NOT_FOUND, f"disk {disk.name} is gone", is_retryable=True)
        await self._refuse_busy(devices, key)

    def _find_if_whole(self, session: Session, lun: int) -> Disk | None:
        """While it comes up it lacks attributes."""
        try:
            return self.find(session, lun)
        except AgentFault:
            return None

    def _dead_mappings(self, vg_uuids: frozenset[str]) -> Iterator[Mapping]:
        for entry in sorted((self._sysfs / "class/block").glob("dm-*")):
            folder = entry.resolve()
            dead: list[Mapping] = []
            with _unless_it_goes():
                mapping = _mapping(folder)
                is_dead = not any(slave.exists() for slave in (folder / "slaves").iterdir())
                dead = [*_mappings(folder), mapping] if mapping.is_of(vg_uuids) and is_dead else []
            yield from dead

    def _all_disks(self) -> list[Path]:
        return [
            entry.resolve() for entry in sorted((self._sysfs / "class/block").iterdir()) if (entry / "device").exists()
        ]

    async def _refuse_busy(self, devices: list[str], key: str) -> None:
        if not devices:
            return
        # A key of its own: a read that hangs on a dead disk must not keep us from ending its session.
        answer = await self._workers.run(
            "find_busy", {"devices": devices}, key=f"{key}/open", timeout_s=_OPEN_TIMEOUT_S
        )
        if answer["busy"]:
            raise _in_use(str(answer["busy"]))


def dm_uuid_of(vg_uuid: str, lv_uuid: str = "") -> str:
    """The device mapper's UUID of an LV; what those of all LVs of the VG begin with."""
    return f"{_LVM}{vg_uuid.replace('-', '')}{lv_uuid.replace('-', '')}"


def refuse_foreign(mappings: tuple[Mapping, ...], vg_uuids: frozenset[str]) -> None:
    """Raises AgentFault in_use when anything but LVs of these VGs is among the mappings."""
    for mapping in mappings:
        if not mapping.is_of(vg_uuids):
            raise _in_use(mapping.shown)


def _in_use(what: str) -> AgentFault:
    return AgentFault.of(FaultCode.IN_USE, f"the LUN is in use on this host: {what}", is_retryable=True)


@contextlib.contextmanager
def _told(what: str) -> Generator[None]:
    """Raises AgentFault io_error for what sysfs does not tell, also because it is just changing."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise AgentFault.of(
            FaultCode.IO_ERROR, f"this host's kernel does not tell {what} ({error})", is_retryable=True
        ) from error


def _block_dirs(session: Session) -> list[Path]:
    return sorted(session.device_dir.glob("target*/*:*:*:*/block/*"))


def _disk(block_dir: Path, scsi_dir: Path) -> Disk:
    claim = _multipath(block_dir)
    wwid = _wwid(block_dir)
    if not wwid:
        raise ValueError("it has no WWID, by which alone a LUN is known")
    return Disk(
        name=block_dir.name,
        # LVM must see one device a LUN, and the path below is locked by the map.
        device=f"/dev/{(claim or block_dir).name}",
        block_dir=block_dir,
        scsi_dir=scsi_dir,
        wwid=wwid,
        size_bytes=int((block_dir / "size").read_text()) * _SECTOR_BYTES,
        is_read_only=(block_dir / "ro").read_text().strip() == "1",
    )


def _wwid(block_dir: Path) -> str:
    """Empty for a disk that has none: it is not SCSI, or too simple (a CD drive)."""
    try:
        return (block_dir / "device/wwid").read_text().strip()
    except OSError as error:
        # The last two: scsi_vpd_lun_id (drivers/scsi/scsi_lib.c) of a device without that page.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENXIO):
            return ""
        raise


def _holders(block_dir: Path) -> list[Path]:
    return [entry.resolve() for entry in sorted((block_dir / "holders").iterdir())]


def _multipath(block_dir: Path) -> Path | None:
    """The multipath device that has claimed the disk."""
    for folder in _holders(block_dir):
        with _unless_it_goes():
            if _dm_word(folder, "uuid").startswith("mpath-"):
                return folder
    return None


def _parts(block_dir: Path) -> list[Path]:
    """The disk and its partitions."""
    return [block_dir, *(entry.parent for entry in sorted(block_dir.glob("*/partition")))]


def _mappings(block_dir: Path) -> Iterator[Mapping]:
    for part in _parts(block_dir):
        for folder in _holders(part):
            found: list[Mapping] = []
            with _unless_it_goes():
                found = [*_mappings(folder), _mapping(folder)]
            yield from (each for each in found if not each.dm_uuid.startswith("mpath-"))


def _mapping(folder: Path) -> Mapping:
    return Mapping(folder.name, _dm_word(folder, "name"), _dm_word(folder, "uuid"))


def _has_other_path(block_dir: Path) -> bool:
    claim = _multipath(block_dir)
    return claim is not None and len(list((claim / "slaves").iterdir())) > 1


def _devices_of(block_dir: Path, but: str = "") -> list[str]:
    """What to open for itself to learn whether the disk is used. Raises AgentFault in_use for what lies on it.

    None of a disk upon which the mapping `but` lies: with it the disk is the device mapper's, and so nobody else's.
    """
    claim = _multipath(block_dir)
    is_mapped = False
    for mapping in _mappings(block_dir):
        if not but or mapping.dm_uuid != but:
            raise _in_use(mapping.shown)
        is_mapped = True
    if is_mapped:
        return []
    return [f"/dev/{part.name}" for part in ([claim] if claim is not None else _parts(block_dir))]


@contextlib.contextmanager
def _unless_it_goes() -> Generator[None]:
    """What is asked of a mapping is left out where it goes at this moment, as LVs of volumes do all the time: the kernel takes its words
    away when it is open nowhere any more, and only then its place among the holders (drivers/md/dm.c, __dm_destroy).
    """
    try:
        yield
    except OSError as error:
        # ENODEV: of an attribute that was opened before and read after (fs/kernfs).
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def _dm_word(folder: Path, name: str) -> str:
    """Empty for what is not of the device mapper."""
    return (folder / "dm" / name).read_text().strip() if folder.name.startswith("dm-") else ""
