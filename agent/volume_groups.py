"""The VG of a backend: whose it is, what an add makes in it, and the proof of a write in its LV `stowage_probe`.

The marker is two tags of the VG. An add makes, in this order, probe LV, thin pool, a proven write, and the tags last: until
they are there, no other host can have come to it, so what this very call made it takes back when it fails. From then on
other hosts may use the probe LV, and it is never removed: a host whose mapping of it is stale would write into whatever
lies there by then.

    untagged ── making noted ── LVs made ── write proven ── tags noted ── tagged        kill: found by the note, undone if untagged
"""

import hashlib
import logging
import math
from dataclasses import dataclass
from typing import Any

from agent import markers
from agent.block_jobs import BLOCK_BYTES
from agent.drivers.base import ProbeReport, Workers, Workspace
from agent.errors import AgentFault
from agent.lun_content import LunContents, remedy_for, shown
from agent.lun_memory import LunMemory
from agent.lvm import (
    LOCK_LV,
    PROBE_LV,
    PROBE_LV_BYTES,
    THIN_POOL_LV,
    LogicalVolume,
    Lvm,
    VolumeGroup,
    mapper_name,
)
from agent.probes import PROBE_TIMEOUT_S, job_key, report_of
from agent.scsi import Disk, Disks, Mapping, dm_uuid_of
from schemas.backends import Capability
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.kinds import EXTENT_BYTES, IscsiLvmConfig

log = logging.getLogger(__name__)

CAPABILITIES = (Capability.EXTERNAL, Capability.CLONE_FROM_IMAGE, Capability.SNAPSHOT)
_PROBE_BLOCKS = PROBE_LV_BYTES // BLOCK_BYTES
_TAGS = "tags"
_AUTOACTIVATION = "autoactivation"


@dataclass(frozen=True)
class Place:
    """A backend's VG as one call sees it. is_trial: by the session of a trial."""

    config: IscsiLvmConfig
    target: Target
    space: Workspace
    disk: Disk
    is_trial: bool = False

    def __str__(self) -> str:
        return f"LUN {self.config.lun} of {self.config.target_iqn}"

    @property
    def memory(self) -> LunMemory:
        return LunMemory(self.space.dir)

    @property
    def key(self) -> str:
        """Of the worker that touches the disk."""
        return job_key(self.target, is_trial=self.is_trial)


@dataclass(frozen=True)
class _Proof:
    """answer: of the write into the probe LV."""

    probe: LogicalVolume
    volumes: tuple[LogicalVolume, ...]
    answer: dict[str, Any]


class VolumeGroups:
    """Looks for, makes, proves and gives back VGs."""

    def __init__(
        self, lvm: Lvm, disks: Disks, contents: LunContents, workers: Workers, timeout_s: float = PROBE_TIMEOUT_S
    ) -> None:
        self._lvm = lvm
        self._disks = disks
        self._contents = contents
        self._workers = workers
        self._timeout_s = timeout_s

    async def find(self, place: Place) -> VolumeGroup:
        """The configured VG on the disk, not another backend's. Raises AgentFault needs_initialization with what is there instead."""
        group = await self._named(place)
        if group is None:
            content = await self._contents.read(place.disk, place.key)
            if place.memory.read().get("vg_uuid"):
                # Of a LUN that the target swapped beneath the session the kernel still tells the WWID of the one before.
                raise AgentFault.of(
                    FaultCode.MARKER_MISSING,
                    f"{place} {shown(content)}; volume group {place.config.vg_name} is gone from it",
                    "Check that the target maps the right LUN; nothing was written to it",
                )
            raise AgentFault.of(
                FaultCode.NEEDS_INITIALIZATION,
                f"{place} ({place.disk.wwid}) {shown(content)}; there is no volume group {place.config.vg_name}",
                remedy_for(content, place.config.vg_name),
            )
        if group.pv_count != 1:
            raise AgentFault.of(FaultCode.WRONG_DEVICE, f"volume group {group.name} spans {group.pv_count} devices, and a backend is one LUN",
                                "Choose a volume group that lies on this LUN alone")  # fmt: skip
        known_uuid = place.memory.read().get("vg_uuid", "")
        if known_uuid not in ("", group.uuid):
            raise AgentFault.of(
                FaultCode.WRONG_DEVICE, f"volume group {group.name} on {place} is not the one that was attached before"
            )
        tags = " ".join(
            f"--deltag {tag}"
            for tag in group.tags
            if tag.startswith("stowage_")
            # Ours beside another's are of two that came at once; the other may be a backend that works.
            and tag not in markers.tags_for(place.target)
            and tag.replace("_", "-").replace("-", "").isalnum()
        )
        markers.refuse_other(
            markers.read_tags(group.tags, place.target),
            place.target,
            f"volume group {group.name} on {place}",
            clear_with=f"run vgchange {tags} {group.name}",
        )
        return group

    async def attach(self, place: Place, *, establish: bool) -> ProbeReport:
        """The probe LV is active, proven and remembered; with `establish` a VG without tags is made ours."""
        group = await self.find(place)
        if not self._is_ours(place, group) and not establish:
            raise _lost_tags(place, group)
        refuse_extents(group)
        if group.lock_type:
            # Before it is started, for a kill must leave a trace of what release has to stop; and that the VG is ours to let go
            # of, or release would take the volume with the leases for a stranger's.
            place.memory.add(locked_vg=group.name, active_vg=group.uuid)
            await self._for(group).start_locking(place.disk.device, group.name)
        if not self._is_ours(place, group):
            return await self._take_over(place, group)
        # The tags are made last, so an add that was killed had come to its end.
        place.memory.add(making="")
        if establish:
            group = await self._complete(place, group)
        elif group.is_autoactivated:
            raise AgentFault.of(
                FaultCode.FAILED,
                f"every host would activate the volumes of {group.name} by itself",
                f"Run vgchange --setautoactivation n {group.name} on one host",
            )
        proof = await self._bring_up(place, group)
        self._remember(place, group, proof.probe)
        return self._report(place, group, proof.volumes, proof.answer)

    async def probe(self, place: Place) -> ProbeReport:
        """The proof on what is attached; nothing is written before VG, LV and mapping are known for ours."""
        group = await self.find(place)
        if not self._is_ours(place, group):
            raise _lost_tags(place, group)
        refuse_extents(group)
        volumes = await self._lvm.logical_volumes(place.disk.device, group.name)
        _refuse_unzeroed_pool(place, group, volumes)
        mapping = self._mapping(place, group, _probe_volume(place, group, volumes))
        if mapping is None:
            raise AgentFault.of(
                FaultCode.CONVERGING, f"the volume {PROBE_LV} is not active on this host", is_retryable=True
            )
        return self._report(place, group, volumes, await self._write(place, mapping))

    async def look(self, place: Place, group: VolumeGroup, answer: dict[str, Any]) -> ProbeReport:
        """The report of a trial that read the disk (answer): the LV is writable by one way at a time only."""
        if place.memory.read().get("vg_uuid", "") != "":
            markers.refuse_missing(markers.read_tags(group.tags, place.target), f"volume group {group.name}")
        refuse_extents(group)
        volumes = await self._lvm.logical_volumes(place.disk.device, group.name) if place.config.thin else ()
        _refuse_unzeroed_pool(place, group, volumes)
        return self._report(place, group, volumes, answer)

    async def give_back(self, place: Place, *, remove_marker: bool) -> tuple[str, ...]:
        """What an add that was killed had made is gone, and with remove_marker our unused pool and our tags, whoever wrote them.

        Returns what is left on the LUN.

        The manager asks one host at a time for that: of two that write a VG's metadata one destroys the other's.
        """
        group = await self._named(place)
        if group is None:
            return ()
        if self._is_anothers(place, group):
            # Which keeps it; what an add of ours wrote beside is still ours to take back.
            await self._undo(place)
            return ()
        if not self._is_ours(place, group):
            await self._undo(place)
        elif remove_marker:
            # The pool first, while the tags keep others off the VG. Not the probe LV: other hosts may have it mapped still.
            await self._give_back_pool(place, group)
            await self._for(group).unmark_group(
                place.disk.device, group, markers.tags_for(place.target), autoactivate=False
            )
        names = [volume.name for volume in await self._lvm.logical_volumes(place.disk.device, group.name)]
        return _left(place, group, names) if remove_marker else ()

    # An add.

    async def _take_over(self, place: Place, group: VolumeGroup) -> ProbeReport:
        """A VG without tags is ours, or as it was before."""
        await self._undo(place)
        try:
            await self._complete_volumes(place, group, is_noted=True)
            proof = await self._bring_up(place, group)
            self._note(place, group, _TAGS, *((_AUTOACTIVATION,) if group.is_autoactivated else ()))
            place.memory.add(marked="yes")
            await self._for(group).mark_group(place.disk.device, group, markers.tags_for(place.target))
            # The manager sends one host at a time to a LUN; where it knows one LUN by two targets, it could not.
            marked = await self.find(place)
            if not self._is_ours(place, marked):
                raise _lost_tags(place, group)
        except BaseException:
            try:
                await self._undo(place)
            except AgentFault as error:
                log.warning("what an add made stays", extra={"vg_name": group.name, "code": str(error.fault.code)})
            raise
        place.memory.add(making="")
        self._remember(place, group, proof.probe)
        if group.is_autoactivated:
            await self._quiet(place, group, proof.probe)
        return self._report(place, marked, proof.volumes, proof.answer)

    async def _quiet(self, place: Place, group: VolumeGroup, probe: LogicalVolume) -> None:
        """What was activated when the disk came, where our udev rule does not hold and the VG's autoactivation was still on, is
        inactive again, unless somebody has it open.
        """
        mappings = [each for each in self._disks.mappings(place.disk) if each.is_of(frozenset((group.uuid,)))]
        lock_lv = mapper_name(group.name, LOCK_LV)
        for uuid in [m.lv_uuid for m in mappings if m.lv_uuid not in ("", probe.uuid) and m.dm_name != lock_lv]:
            try:
                await self._for(group).deactivate(place.disk.device, [uuid])
            except AgentFault as error:
                log.warning("volume stays active", extra={"vg_name": group.name, "code": str(error.fault.code)})

    async def _complete(self, place: Place, group: VolumeGroup) -> VolumeGroup:
        """A VG with our tags has all that belongs to it: after initialize, or an add that is repeated. Nothing of it is taken back."""
        is_changed = await self._complete_volumes(place, group, is_noted=False)
        await self._for(group).mark_group(place.disk.device, group, ())
        return await self.find(place) if is_changed else group

    async def _complete_volumes(self, place: Place, group: VolumeGroup, *, is_noted: bool) -> bool:
        """Whether anything was missing."""
        device, tag = place.disk.device, markers.tags_for(place.target)[0]
        # Making a pool activates it.
        place.memory.add(active_vg=group.uuid)
        volumes = await self._lvm.logical_volumes(device, group.name)
        _refuse_unzeroed_pool(place, group, volumes)
        there = {volume.name for volume in volumes}
        if PROBE_LV not in there:
            if is_noted:
                self._note(place, group, PROBE_LV)
            await self._for(group).create_probe_volume(device, group.name, tag)
        if place.config.thin and THIN_POOL_LV not in there:
            if is_noted:
                self._note(place, group, THIN_POOL_LV)
            await self._for(group).create_thin_pool(device, group.name, tag)
        return PROBE_LV not in there or (place.config.thin and THIN_POOL_LV not in there)

    async def _undo(self, place: Place) -> None:
        """What the note says is gone from the VG, and so is the note: LVs that bear this backend's tag, and the VG's tags."""
        uuid, *made = place.memory.read().get("making", "").split() or [""]
        if not made:
            return
        device, tags = place.disk.device, markers.tags_for(place.target)
        # What failed may have failed because the disk is dead.
        await self._disks.read(place.disk, place.key)
        group = await self._named(place)
        if group is not None and self._is_ours(place, group) and _TAGS not in made:
            # Another host has made this backend of it while this one stood still, and what lies there is in use.
            group = None
        if group is not None and group.uuid == uuid:
            if _TAGS in made:
                turns_on = _AUTOACTIVATION in made and not self._is_anothers(place, group)
                await self._for(group).unmark_group(device, group, tags, autoactivate=turns_on)
            for volume in await self._lvm.logical_volumes(device, group.name):
                # Noted before it was made: if that failed, one of this name is somebody else's.
                if volume.name == THIN_POOL_LV and volume.name in made:
                    await self._remove_pool(place, group, volume)
                elif volume.name in made and tags[0] in volume.tags:
                    await self._for(group).remove_volume(device, group.name, volume.name)
        place.memory.add(making="", marked="")

    async def _give_back_pool(self, place: Place, group: VolumeGroup) -> None:
        """Nor may a pool that does not go keep the tags from going; what stays is reported."""
        for volume in await self._lvm.logical_volumes(place.disk.device, group.name):
            if volume.name == THIN_POOL_LV:
                try:
                    await self._remove_pool(place, group, volume)
                except AgentFault as error:
                    log.warning("thin pool stays", extra={"vg_name": group.name, "code": str(error.fault.code)})

    async def _remove_pool(self, place: Place, group: VolumeGroup, pool: LogicalVolume) -> None:
        """A pool that this backend made and nobody uses is gone."""
        if markers.tags_for(place.target)[0] in pool.tags and pool.is_unused_pool:
            await self._for(group).remove_unused_pool(place.disk.device, group.name, pool)

    def _note(self, place: Place, group: VolumeGroup, *made: str) -> None:
        before = place.memory.read().get("making", group.uuid)
        place.memory.add(making=" ".join((before, *made)))

    def _remember(self, place: Place, group: VolumeGroup, probe: LogicalVolume) -> None:
        place.memory.add(wwid=place.disk.wwid, vg_uuid=group.uuid, probe_uuid=probe.uuid)

    # The proof.

    async def _bring_up(self, place: Place, group: VolumeGroup) -> _Proof:
        """The probe LV is active upon this disk, and a write was proven."""
        volumes = await self._lvm.logical_volumes(place.disk.device, group.name)
        probe = _probe_volume(place, group, volumes)
        _refuse_unzeroed_pool(place, group, volumes)
        place.memory.add(active_vg=group.uuid)
        name, dm_uuid = mapper_name(group.name, PROBE_LV), dm_uuid_of(group.uuid, probe.uuid)
        for mapping in self._disks.mappings(place.disk):
            if mapping.is_of(frozenset((group.uuid,))) and mapping.dm_name == name and mapping.dm_uuid != dm_uuid:
                # Of a probe LV that somebody removed and made anew; it would keep the new one from its name.
                await self._lvm.remove_mapping(mapping.dm_name)
        for mapping in self._disks.dead_mappings(frozenset((group.uuid,))):
            await self._lvm.remove_mapping(mapping.dm_name)
        await self._for(group).activate(place.disk.device, group.name, PROBE_LV)
        found = self._mapping(place, group, probe)
        if found is None:
            raise AgentFault.of(
                FaultCode.IN_USE,
                f"volume group {group.name} is active on this host by another way than this backend's session",
                f"Run vgchange --activate n {group.name} on this host",
                is_retryable=True,
            )
        return _Proof(probe, volumes, await self._write(place, found))

    def _for(self, group: VolumeGroup) -> Lvm:
        return self._lvm.for_locks(group.lock_type)

    def _is_anothers(self, place: Place, group: VolumeGroup) -> bool:
        return bool(markers.read_tags(group.tags, place.target)["marker"] == "other")

    def _is_ours(self, place: Place, group: VolumeGroup) -> bool:
        return bool(markers.read_tags(group.tags, place.target)["marker"] == "ours")

    def _mapping(self, place: Place, group: VolumeGroup, probe: LogicalVolume) -> Mapping | None:
        """The kernel's device of this very LV of this very VG, upon this disk."""
        wanted = dm_uuid_of(group.uuid, probe.uuid)
        return next((mapping for mapping in self._disks.mappings(place.disk) if mapping.dm_uuid == wanted), None)

    async def _named(self, place: Place) -> VolumeGroup | None:
        groups = await self._lvm.volume_groups(place.disk.device)
        return next((group for group in groups if group.name == place.config.vg_name), None)

    async def _write(self, place: Place, mapping: Mapping) -> dict[str, Any]:
        """latency_ms of a block written to this host's place in the probe LV, read back and compared."""
        block = int.from_bytes(hashlib.sha256(place.space.host_id.encode()).digest()[:8], "big") % _PROBE_BLOCKS
        args = {"device": mapping.device, "offset_bytes": block * BLOCK_BYTES, "dm_uuid": mapping.dm_uuid}
        return await self._workers.run("write_block", args, key=job_key(place.target), timeout_s=self._timeout_s)

    def _report(
        self, place: Place, group: VolumeGroup, volumes: tuple[LogicalVolume, ...], answer: dict[str, Any]
    ) -> ProbeReport:
        return report_of({**answer, **_space(place, group, volumes)}, CAPABILITIES)


def refuse_extents(group: VolumeGroup) -> None:
    """Raises AgentFault unsupported for a VG in which LVM would round the sizes up that the manager asks for: a VM would see more than
    the volume has, and what it put there no copy of it would have.
    """
    if EXTENT_BYTES % group.extent_bytes == 0:
        return
    # A divisor of what the extents are now: LVM takes it whatever lies there, in use or not.
    fitting_bytes = math.gcd(EXTENT_BYTES, group.extent_bytes)
    raise AgentFault.of(
        FaultCode.UNSUPPORTED,
        f"volume group {group.name} has extents of {group.extent_bytes // 1024} KiB, and sizes are multiples of {EXTENT_BYTES // 1024}",
        f"Run vgchange --physicalextentsize {fitting_bytes // 1024}k {group.name} on one host: no volume changes by that",
    )


def refuse_unzeroed(group: VolumeGroup, *, is_unzeroed: bool) -> None:
    """Raises AgentFault unsupported for a thin pool that shows, in the blocks that it gives out, what was there before."""
    if is_unzeroed:
        raise AgentFault.of(
            FaultCode.UNSUPPORTED,
            f"the thin pool {group.name}/{THIN_POOL_LV} does not zero its blocks, so volumes would show what lay there before",
            f"Run lvchange --zero y {group.name}/{THIN_POOL_LV} on the host that has it active, or on one host",
        )


def _refuse_unzeroed_pool(place: Place, group: VolumeGroup, volumes: tuple[LogicalVolume, ...]) -> None:
    is_unzeroed = any(volume.name == THIN_POOL_LV and volume.is_unzeroed_pool for volume in volumes)
    refuse_unzeroed(group, is_unzeroed=place.config.thin and is_unzeroed)


def _probe_volume(place: Place, group: VolumeGroup, volumes: tuple[LogicalVolume, ...]) -> LogicalVolume:
    """Raises AgentFault marker_missing without one, wrong_device for one in which hosts would write beyond the end."""
    probe = next((volume for volume in volumes if volume.name == PROBE_LV), None)
    if probe is None:
        raise _lost(
            place,
            group,
            f"the volume {PROBE_LV}",
            # As an add makes it: with --wipesignatures or --zero it would have to be active.
            f"lvcreate --activate n --zero n --wipesignatures n --size 4m --name {PROBE_LV} {group.name}",
        )
    if probe.size_bytes < PROBE_LV_BYTES:
        raise AgentFault.of(
            FaultCode.WRONG_DEVICE,
            f"the volume {PROBE_LV} of {group.name} has {probe.size_bytes} bytes and must have {PROBE_LV_BYTES}",
            f"Run lvextend --size 4m {group.name}/{PROBE_LV} on one host",
        )
    return probe


def _lost_tags(place: Place, group: VolumeGroup) -> AgentFault:
    tags = " ".join(f"--addtag {tag}" for tag in markers.tags_for(place.target))
    return _lost(place, group, "its tags", f"vgchange {tags} {group.name}")


def _lost(place: Place, group: VolumeGroup, what: str, restored_with: str) -> AgentFault:
    return AgentFault.of(
        FaultCode.MARKER_MISSING,
        f"volume group {group.name} on {place} has lost {what}",
        f"Look who has changed the volume group; if it is the right one and no other backend's, run {restored_with} on one host",
    )


def _space(place: Place, group: VolumeGroup, volumes: tuple[LogicalVolume, ...]) -> dict[str, int]:
    """The VG's numbers; what is unused in a thin pool counts as free. Nothing while the pool is inactive here and cannot tell."""
    available = group.free_bytes
    if place.config.thin:
        pool = next((volume for volume in volumes if volume.name == THIN_POOL_LV), None)
        if pool is None or pool.data_percent is None:
            return {}
        available += int(pool.size_bytes * (1 - pool.data_percent / 100))
    return {
        "total_bytes": group.size_bytes,
        "used_bytes": group.size_bytes - available,
        "available_bytes": available,
    }


def _left(place: Place, group: VolumeGroup, names: list[str]) -> tuple[str, ...]:
    """The release report's sentences; several, for the manager cuts long ones."""
    count = len([name for name in names if name not in (PROBE_LV, THIN_POOL_LV)])
    what = f" with {count} logical {'volume' if count == 1 else 'volumes'}" if count else ""
    left = [f"volume group {group.name}{what} on {place}"]
    if not group.is_autoactivated:
        left.append(
            f"autoactivation of {group.name} is off, and vgchange --setautoactivation y {group.name} turns it on again"
        )
    if THIN_POOL_LV in names:
        left.append(f"the thin pool {group.name}/{THIN_POOL_LV}")
    if PROBE_LV in names:
        left.append(f"the 4 MiB volume {group.name}/{PROBE_LV}, which may be removed when no host uses it")
    return tuple(left)
