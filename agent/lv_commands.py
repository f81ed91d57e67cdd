"""LVM commands about the LVs of volumes; agent/lvm.py has what they run by, and those about VGs.

An LV is whole extents, so LVM rounds every size up. Thin LVs lie in the backend's pool, which commands that make, resize or
remove one activate on this host for as long as they take: two hosts with an active pool destroy it, which in a VG without
locks (lvmlockd) nothing of LVM prevents. Messages, exit codes and reports were seen with lvm2 2.03.16 on a loop device
without a device mapper (2026-11-29); what needs one is by its source (v2_03_16).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.lvm import THIN_POOL_LV, Lvm

#: Besides the backend's own tag.
VOLUME_TAG = "stowage_volume"
_COLUMNS = "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,origin,data_percent,vg_extent_size"
#: lvm2 refuses sizes in bytes that are no multiple of it.
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class VolumeLv:
    """An LV as volumes need to know it. origin: the LV's name that it was frozen from, while that is there.

    data_percent: how much of a thin one is its own or shared, while it is active here; else None.
    """

    name: str
    uuid: str
    size_bytes: int
    tags: tuple[str, ...]
    extent_bytes: int
    is_thin: bool
    origin: str
    data_percent: float | None

    def rounded(self, size_bytes: int) -> int:
        """What LVM makes of a size in this VG."""
        return -(-size_bytes // self.extent_bytes) * self.extent_bytes

    def has_size(self, size_bytes: int) -> bool:
        """Whether it is what LVM makes of that size."""
        return self.size_bytes == self.rounded(size_bytes)


class LvCommands:
    """Makes, resizes, activates and removes LVs; all commands see one device alone."""

    def __init__(self, lvm: Lvm) -> None:
        self._lvm = lvm

    def for_locks(self, lock_type: str) -> "LvCommands":
        """These commands as a VG of that lock type needs them."""
        return LvCommands(self._lvm.for_locks(lock_type))

    async def volumes(self, device: str, vg_name: str) -> tuple[VolumeLv, ...]:
        """All LVs of the VG, whoever's; inner ones of a pool left out."""
        rows = await self._lvm.report("lvs", device, "lv", _COLUMNS, "--", vg_name)
        return tuple(
            VolumeLv(
                name=row["lv_name"],
                uuid=row["lv_uuid"],
                size_bytes=int(row["lv_size"]),
                tags=tuple(filter(None, row["lv_tags"].split(","))),
                extent_bytes=int(row["vg_extent_size"]),
                is_thin=row["pool_lv"] != "",
                origin=row["origin"],
                data_percent=float(row["data_percent"]) if row["data_percent"] else None,
            )
            for row in rows
        )

    async def create_thick(self, device: str, vg_name: str, lv_name: str, size_bytes: int, tags: Sequence[str]) -> None:
        """The LV exists, inactive; what its blocks held before is still there."""
        size = ("--size", _bytes(size_bytes))
        await self._create(device, vg_name, lv_name, tags, "--zero", "n", "--wipesignatures", "n", *size)

    async def create_thin(self, device: str, vg_name: str, lv_name: str, size_bytes: int, tags: Sequence[str]) -> None:
        """The LV exists in the backend's pool, inactive, and reads as zeros."""
        size = ("--virtualsize", _bytes(size_bytes), "--thinpool", THIN_POOL_LV)
        await self._create(device, vg_name, lv_name, tags, "--setactivationskip", "n", "--thin", *size)

    async def create_thin_snapshot(
        self, device: str, vg_name: str, lv_name: str, origin: str, tags: Sequence[str]
    ) -> None:
        """The LV exists, inactive, with the size and the content that the thin LV `origin` has now, also while that is in use."""
        # Snapshots would be skipped by every later activation that does not say otherwise (lvmthin(7)).
        words = ("--setactivationskip", "n", "--snapshot")
        await self._create(device, f"{vg_name}/{origin}", lv_name, tags, *words)

    async def extend(self, device: str, vg_name: str, lv_name: str, size_bytes: int) -> None:
        """The LV is longer, here at once if it is active here. It must be shorter before, or lvextend ends with 5."""
        await self._lvm.change("lvextend", device, "--size", _bytes(size_bytes), "--", f"{vg_name}/{lv_name}")

    async def reduce(self, device: str, vg_name: str, lv_name: str, size_bytes: int) -> None:
        """The LV is shorter, and what lay behind is lost. It must be longer before, or lvreduce ends with 5."""
        # --yes: of an active one it asks.
        await self._lvm.change("lvreduce", device, "--yes", "--size", _bytes(size_bytes), "--", f"{vg_name}/{lv_name}")

    async def remove(self, device: str, vg_name: str, lv_uuid: str, tag: str) -> None:
        """The LV of that UUID is gone if it bears the tag; gone before is success. Raises AgentFault in_use while it is open."""
        chosen = f"lv_uuid={lv_uuid} && lv_tags={tag}"
        await self._lvm.change("lvremove", device, "--yes", "--select", chosen, "--", vg_name)

    async def activate(self, device: str, vg_name: str, lv_name: str) -> None:
        """The LV is active here; under locks here alone. Raises AgentFault in_use while another host holds the lock."""
        how = "ey" if self._lvm.is_locked else "y"
        await self._lvm.change("lvchange", device, "--activate", how, "--", f"{vg_name}/{lv_name}")

    async def refresh(self, device: str, vg_name: str, lv_name: str) -> None:
        """The mapping of an active LV is what the metadata says now, and is not suspended."""
        await self._lvm.change("lvchange", device, "--refresh", "--", f"{vg_name}/{lv_name}")

    async def deactivate(self, device: str, lv_uuid: str) -> None:
        """See Lvm.deactivate. One that the metadata does not know any more stays mapped."""
        await self._lvm.deactivate(device, [lv_uuid])

    async def remove_mapping(self, dm_name: str) -> None:
        """See Lvm.remove_mapping. Raises AgentFault in_use while it is open."""
        await self._lvm.remove_mapping(dm_name)

    async def fail_mapping(self, dm_name: str) -> None:
        """All I/O of the dm device fails from now on, whoever has it open, and it lets go of what was below.

        What is dirty above is not flushed first: it must not be written any more.
        """
        await self._lvm.change_mapping("wipe_table", "--noflush", "--nolockfs", "--", dm_name)

    async def remove_mapping_when_closed(self, dm_name: str) -> None:
        """The dm device is gone, or goes with the last who closes it (since Linux 3.13)."""
        await self._lvm.change_mapping("remove", "--deferred", "--", dm_name)

    async def _create(self, device: str, where: str, lv_name: str, tags: Sequence[str], *words: str) -> None:
        marks = [word for tag in tags for word in ("--addtag", tag)]
        await self._lvm.change(
            "lvcreate", device, "--yes", "--activate", "n", *words, *marks, "--name", lv_name, "--", where
        )


def _bytes(size_bytes: int) -> str:
    return f"{-(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES}b"
