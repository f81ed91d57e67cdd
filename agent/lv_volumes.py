"""The volumes of an iscsi_lvm backend: raw, each an LV `sv_<locator>` of its VG with the backend's tag and `stowage_volume`.

An LV has exactly its volume's size: a VM sees all of it, and what it puts at its disk's end a copy of less would lose. So the
manager asks for sizes that every VG's extents divide (volume_groups.py refuses others), and an LV of another size is no volume
until a resize has settled it.

Thick LVs get blocks with what others left in them, so they are filled to their end, and zeroed where they grow. Thin ones read
as zeros where nothing was written, and have snapshots. LVs are active only while something of this host uses them
(lv_mappings.py). What changes metadata the manager sends to one host at a time; thin volumes to one host at all, unless the
VG is a shared one (lv_commands.py says why).

What a resize adds, or is to wipe before it cuts it off, is a *tail*, for which the LV bears a mark in the VG: whoever stops in the
middle of it, and whichever host goes on, nobody gets the volume with others' bytes in it, and nothing but a tail is blanked.

    long ── resize: marked, longer ── blank: the tail zeroed ── resize to what it has now: unmarked
    long ── resize: marked ────────── blank: the tail wiped ─── resize to what it is to have: shorter, unmarked
"""

import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.drivers.base import Workspace
from agent.errors import AgentFault
from agent.lv_commands import VolumeLv
from agent.lv_lookup import LV_PREFIX, LvLookup, LvTools, Seen, lv_name
from agent.lv_mappings import DEV
from agent.lvm import LOCK_LV, PROBE_LV, THIN_POOL_LV
from agent.volume_groups import refuse_extents, refuse_unzeroed
from agent.volumes import Extent
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.kinds import IscsiLvmConfig
from schemas.volume_rpc import AttachedAt, AttachMode, FoundVolume, VolumeFormat, VolumeSpec, Wipe

log = logging.getLogger(__name__)

_LV_NAME = re.compile(rf"{LV_PREFIX}([0-9a-f]{{32}})")
_INNER = frozenset((PROBE_LV, THIN_POOL_LV, LOCK_LV))
_WIPE_JOBS = {Wipe.ZERO: "zero_device", Wipe.DISCARD: "discard_device"}
#: Long work ends when it no longer moves (works.py); this is only not to be without any end.
_WORK_TIMEOUT_S = 7 * 24 * 3600.0


class LvVolumes:
    """Satisfies VolumeStore for one backend that is attached here."""

    def __init__(self, config: IscsiLvmConfig, target: Target, space: Workspace, tools: LvTools) -> None:
        self._config = config
        self._target = target
        self._lookup = LvLookup(config, target, space, tools)
        self._mappings = tools.mappings
        self._workers = tools.workers

    async def make(self, spec: VolumeSpec, origin: VolumeSpec | None) -> bool:
        """See VolumeStore. A thin origin is frozen at once, also in use; whatever else has an origin is left to be filled."""
        if spec.format is not VolumeFormat.RAW:
            raise AgentFault.of(
                FaultCode.UNSUPPORTED, f"{spec.format.value} volumes cannot lie on LVM", "Ask for the format raw"
            )
        seen = await self._lookup.look()
        refuse_extents(seen.at.group)
        if self._config.thin:
            pool = seen.lvs.get(THIN_POOL_LV)
            refuse_unzeroed(seen.at.group, is_unzeroed=pool is not None and pool.is_unzeroed)
        await self._mappings.sweep(seen.at)
        if seen.own(spec) is not None:
            # Made before, if not to its end.
            return await self._fit(seen, spec, origin)
        try:
            await self._create(seen, spec, origin)
            return await self._fit(await self._lookup.again(seen), spec, origin)
        except AgentFault:
            await self._unmake(spec)
            raise

    @asynccontextmanager
    async def opened(self, spec: VolumeSpec, *, is_writable: bool) -> AsyncGenerator[Extent]:
        """See VolumeStore. Raises wrong_size too."""
        seen = await self._lookup.look()
        await self._mappings.sweep(seen.at)
        lv = seen.wanted(spec)
        async with self._mappings.held(seen.at, lv) as mapping:
            # Only an active thin LV tells, and a fill that was killed has written to it.
            is_zero = is_writable and lv.is_thin and (await self._lookup.again(seen)).present(spec).data_percent == 0
            yield Extent(
                folder=Path(DEV),
                name=mapping.name,
                format=VolumeFormat.RAW,
                size_bytes=spec.size_bytes,
                dm_uuid=mapping.dm_uuid,
                is_zero=is_zero,
            )

    async def settle(self, spec: VolumeSpec) -> None:
        """See VolumeStore. Who filled it, to its end, has flushed what it wrote."""
        (await self._lookup.look()).wanted(spec)

    async def wipe(self, spec: VolumeSpec, wipe: Wipe, progress: Path) -> None:
        """See WipeVolume. Raises in_use while it is open: what a VM still uses is not deleted.

        Thin LVs are discarded for ZERO too: blocks that they give back are zeroed before another one of the pool gets them.
        """
        if wipe is Wipe.NONE:
            return
        seen = await self._lookup.look()
        lv = seen.own(spec)
        if lv is None:
            return
        await self._mappings.drop(seen.at, lv.uuid)
        job = _WIPE_JOBS[Wipe.DISCARD if lv.is_thin else wipe]
        await self._overwrite(seen, lv, job, (0, lv.size_bytes), progress)

    async def erase(self, spec: VolumeSpec) -> None:
        """See EraseVolume."""
        seen = await self._lookup.look()
        lv = seen.own(spec)
        if lv is not None:
            await self._mappings.drop(seen.at, lv.uuid)
            await seen.commands.remove(seen.at.device, seen.at.name, lv.uuid, seen.tags[0])
        for left in (*self._lookup.mapped(spec), *self._lookup.dead(spec)):
            # Another host has removed the LV while it was active here.
            await self._mappings.remove(left)

    async def resize(self, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool) -> None:
        """See VolumeStore; the module says how it goes on. From a size to the same: what was to be blanked has been.

        In use it may grow, and a tail be cut off, of which nobody was ever told. Raises wrong_size, with the volume untouched, where
        the LV is longer than spec says and nothing tells why: a database that was restored knows less than is there.
        """
        seen = await self._lookup.look()
        lv = seen.present(spec)
        device, group = seen.at.device, seen.at.name
        if lv.size_bytes < min(spec.size_bytes, size_bytes):
            raise seen.wrong_size(lv, spec)
        was_attached = False
        kept_bytes = min(lv.own_bytes, spec.size_bytes, size_bytes)
        if kept_bytes < lv.own_bytes:
            was_attached = await self._let_cut(seen, lv, spec, size_bytes, may_shrink=may_shrink)
        is_settled = size_bytes == spec.size_bytes
        is_wiped_first = lv.size_bytes > size_bytes and not (is_settled or lv.is_thin or self._wipe is Wipe.NONE)
        has_tail = not lv.is_thin and (size_bytes > kept_bytes or is_wiped_first)
        if has_tail and (lv.tail_bytes is None or lv.tail_bytes > kept_bytes):
            # Before what makes it true; where that fails, the mark of a tail of nothing is in nobody's way.
            await seen.commands.mark_tail(device, group, lv.name, kept_bytes)
        if lv.size_bytes < size_bytes:
            await seen.commands.extend(device, group, lv.name, size_bytes)
        elif lv.size_bytes > size_bytes and not is_wiped_first:
            await seen.commands.reduce(device, group, lv.name, size_bytes)
        if lv.tail_bytes is not None and not is_wiped_first and (is_settled or lv.tail_bytes >= size_bytes):
            await seen.commands.unmark_tail(device, group, lv)
        if was_attached and not has_tail:
            await self._mappings.keep(seen.at, (await self._lookup.again(seen)).present(spec))

    async def blank(self, spec: VolumeSpec, from_bytes: int, progress: Path) -> None:
        """See BlankVolume. By the LV's mark and not from_bytes: what bears none may be a VM's. Of a tail, what lies behind the volume's
        end, and is to be cut off, is wiped as a deleted volume is.
        """
        seen = await self._lookup.look()
        lv = seen.present(spec)
        if lv.size_bytes < spec.size_bytes:
            raise seen.wrong_size(lv, spec)
        await self._overwrite(seen, lv, "zero_device", (lv.own_bytes, spec.size_bytes), progress)
        if self._wipe is not Wipe.NONE:
            await self._overwrite(
                seen, lv, _WIPE_JOBS[self._wipe], (max(lv.own_bytes, spec.size_bytes), lv.size_bytes), progress
            )

    async def attach(self, spec: VolumeSpec, mode: AttachMode) -> AttachedAt:
        """See AttachVolume. The device takes writes in either mode: that nobody writes to a read-only one is the hypervisor's care."""
        seen = await self._lookup.look()
        path = await self._mappings.keep(seen.at, seen.wanted(spec))
        return AttachedAt(path=path, type="block")

    async def detach(self, spec: VolumeSpec) -> None:
        """See DetachVolume. Of a disk that does not answer, raises what that says, for LVM would hang on it."""
        for dead in self._lookup.dead(spec):
            await self._mappings.remove(dead)
        # By the kernel's word and not LVM's: another host may have removed the LV while it was active here.
        uuids = [each.lv_uuid for each in self._lookup.mapped(spec)]
        if not uuids and not self._lookup.has_locks:
            return
        seen = await self._lookup.look()
        lv = seen.own(spec)
        if lv is not None and lv.uuid not in uuids:
            # Its lock may still be ours.
            uuids.append(lv.uuid)
        for uuid in uuids:
            await self._mappings.drop(seen.at, uuid)

    async def fence_off(self, spec: VolumeSpec) -> None:
        """See VolumeStore; who has it open is not killed, but gets I/O errors from now on. Needs no answer of the target.

        Of a thin backend the whole pool goes with the last volume here, for it can be active on one host only.
        """
        for mapping in (*self._lookup.mapped(spec), *self._lookup.dead(spec)):
            await self._mappings.cut_off(mapping)
        if self._config.thin:
            await self._mappings.cut_off_pool(self._lookup.group_mappings(), self._config.vg_name, LV_PREFIX)

    async def list(self) -> tuple[FoundVolume, ...]:
        """See ListVolumes. Sizes are those of LVs, whole extents. What a thin one takes is known where it is active."""
        seen = await self._lookup.look()
        return tuple(_found(seen, lv) for name, lv in sorted(seen.lvs.items()) if name not in _INNER)

    async def _create(self, seen: Seen, spec: VolumeSpec, origin: VolumeSpec | None) -> None:
        device, group, name = seen.at.device, seen.at.name, lv_name(spec)
        source = None if origin is None else seen.present(origin)
        if not self._config.thin:
            await seen.commands.create_thick(device, group, name, spec.size_bytes, seen.tags)
        elif source is None or not source.is_thin:
            await seen.commands.create_thin(device, group, name, spec.size_bytes, seen.tags)
        else:
            await seen.commands.create_thin_snapshot(device, group, name, source.name, seen.tags)

    async def _fit(self, seen: Seen, spec: VolumeSpec, origin: VolumeSpec | None) -> bool:
        """What was made has its size, a snapshot after it was made longer; whether it has the origin's content."""
        lv = seen.present(spec)
        if lv.size_bytes < spec.size_bytes:
            await seen.commands.extend(seen.at.device, seen.at.name, lv.name, spec.size_bytes)
            seen = await self._lookup.again(seen)
        return seen.wanted(spec).is_thin and origin is not None and lv.origin == lv_name(origin)

    async def _unmake(self, spec: VolumeSpec) -> None:
        """After a failure whose fault counts: lvcreate may have come to its end all the same."""
        try:
            seen = await self._lookup.look()
            lv = seen.own(spec)
            if lv is not None:
                await seen.commands.remove(seen.at.device, seen.at.name, lv.uuid, seen.tags[0])
        except AgentFault as error:
            log.warning("volume may stay half made", extra={"lv_name": lv_name(spec), "code": str(error.fault.code)})

    async def _let_cut(self, seen: Seen, lv: VolumeLv, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool) -> bool:
        """Bytes of the LV that may be somebody's may go, and nobody has it open, for a VM would lose what it writes behind the new end.

        Whether it was attached. Raises AgentFault where they may not.
        """
        if lv.own_bytes > spec.size_bytes and not (may_shrink and size_bytes >= spec.size_bytes):
            # Who asks for less than the volume has knows nothing of the rest.
            raise seen.wrong_size(lv, spec)
        if not may_shrink:
            raise AgentFault.of(
                FaultCode.WRONG_SIZE,
                f"the volume has {spec.size_bytes} bytes, and {size_bytes} would cut it",
                "Ask for at least its size, or allow it to shrink (may_shrink)",
            )
        if lv.is_thin and size_bytes < spec.size_bytes:
            raise AgentFault.of(
                FaultCode.UNSUPPORTED,
                "a thin volume that is cut would show again what was behind its end when it grows",
                "Make a smaller volume, and copy into it what is needed",
            )
        was_attached = self._mappings.is_attached(seen.at, lv)
        await self._mappings.drop(seen.at, lv.uuid)
        return was_attached

    @property
    def _wipe(self) -> Wipe:
        """What is done to blocks before others can get them."""
        return Wipe(self._config.wipe_on_delete)

    async def _overwrite(self, seen: Seen, lv: VolumeLv, job: str, span: tuple[int, int], progress: Path) -> None:
        if span[0] >= span[1]:
            return
        async with self._mappings.held(seen.at, lv) as mapping:
            extent = {"folder": DEV, "name": mapping.name, "dm_uuid": mapping.dm_uuid}
            args = {"extent": extent, "from_bytes": span[0], "to_bytes": span[1], "progress": str(progress)}
            key = f"{self._target.backend_id}:{lv.name.removeprefix(LV_PREFIX)}"
            await self._workers.run(job, args, key=key, timeout_s=_WORK_TIMEOUT_S)


def _found(seen: Seen, lv: VolumeLv) -> FoundVolume:
    match = _LV_NAME.fullmatch(lv.name) if seen.is_ours(lv) else None
    allocated: int | None = lv.size_bytes
    if lv.is_thin:
        allocated = None if lv.data_percent is None else int(lv.size_bytes * lv.data_percent / 100)
    return FoundVolume(
        name=lv.name,
        locator=match[1] if match else "",
        format=VolumeFormat.RAW.value if match else "",
        size_bytes=lv.size_bytes,
        allocated_bytes=allocated,
    )
