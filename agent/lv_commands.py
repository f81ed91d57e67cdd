"""LVM commands about the LVs of volumes; agent/lvm.py has what they run by, and those about VGs.

Sizes are asked for in whole extents; LVM rounds up what is not. Thin LVs lie in the backend's pool, which commands that make, resize or
remove one activate on this host for as long as they take: two hosts with an active pool destroy it, which in a VG without
locks (lvmlockd) nothing of LVM prevents. Messages, exit codes and reports were seen with lvm2 2.03.16 on a loop device
without a device mapper (2026-11-29); what needs one is by its source (v2_03_16).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.lvm import THIN_POOL_LV, Lvm

#: Besides the backend's own tag.
VOLUME_TAG = "stowage_volume"
#: Of an LV; how many bytes of it are the volume's follows. What lies behind them is a tail: added and not zeroed yet, so that others'
#: bytes are in it, or given up and to be wiped before it is cut off.
_TAIL_TAG = "stowage_tail_"
_TAIL = re.compile(rf"{_TAIL_TAG}([0-9]{{1,19}})")
_COLUMNS = "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,origin,data_percent,zero"
#: lvm2 refuses sizes in bytes that are no multiple of it.
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class VolumeLv:
    """An LV as volumes need to know it. origin: the LV's name that it was frozen from, while that is there.

    data_percent: how much of a thin one is its own or shared, while it is active here; else None. is_unzeroed: a thin pool, or a volume
    of one, that shows in the blocks that it gets what others left there.
    """

    name: str
    uuid: str
    size_bytes: int
    tags: tuple[str, ...]
    is_thin: bool
    origin: str
    data_percent: float | None
    is_unzeroed: bool = False

    @property
    def tail_tags(self) -> tuple[str, ...]:
        """What marks its tail. Several, after a kill: the lowest counts."""
        return tuple(tag for tag in self.tags if _TAIL.fullmatch(tag))

    @property
    def tail_bytes(self) -> int | None:
        """Where the mark says that the tail begins, which may be the LV's end; None without one."""
        return min((int(tag.removeprefix(_TAIL_TAG)) for tag in self.tail_tags), default=None)

    @property
    def own_bytes(self) -> int:
        """How many bytes of it may be the volume's: all but a tail."""
        return self.size_bytes if self.tail_bytes is None else min(self.tail_bytes, self.size_bytes)


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
        # `zero` is a segment's, so an LV has a row for each of its segments.
        of_each = {row["lv_uuid"]: row for row in rows}
        return tuple(
            VolumeLv(
                name=row["lv_name"],
                uuid=row["lv_uuid"],
                size_bytes=int(row["lv_size"]),
                tags=tuple(filter(None, row["lv_tags"].split(","))),
                is_thin=row["pool_lv"] != "",
                origin=row["origin"],
                data_percent=float(row["data_percent"]) if row["data_percent"] else None,
                is_unzeroed=row["zero"] == "",
            )
            for row in of_each.values()
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

    async def mark_tail(self, device: str, vg_name: str, lv_name: str, own_bytes: int) -> None:
        """What lies behind so many bytes of the LV is its tail; marked before is success (seen with 2.03.16)."""
        tag = f"{_TAIL_TAG}{own_bytes}"
        await self._lvm.change("lvchange", device, "--addtag", tag, "--", f"{vg_name}/{lv_name}")

    async def unmark_tail(self, device: str, vg_name: str, lv: VolumeLv) -> None:
        """All of the LV is the volume's."""
        marks = [word for tag in lv.tail_tags for word in ("--deltag", tag)]
        await self._lvm.change("lvchange", device, *marks, "--", f"{vg_name}/{lv.name}")

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
