"""Where a volume of one backend is, looked for anew by every verb: its VG, its LV `sv_<locator>`, what is mapped of it here.

Nothing is taken for ours by its name alone: the VG by its UUID and tags, an LV by its tags, a mapping by the VG's UUID.
"""

from dataclasses import dataclass, replace

from agent import markers
from agent.drivers.base import Workers, Workspace
from agent.errors import AgentFault
from agent.lun_memory import LunMemory
from agent.luns import Luns
from agent.lv_commands import VOLUME_TAG, LvCommands, VolumeLv
from agent.lv_mappings import FoundGroup, LvMappings
from agent.lvm import mapper_name
from agent.scsi import Disks, Mapping
from agent.volume_groups import Place, VolumeGroups
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.kinds import IscsiLvmConfig
from schemas.volume_rpc import VolumeSpec

#: Of the names of volumes' LVs; the locator follows.
LV_PREFIX = "sv_"


@dataclass(frozen=True)
class LvTools:
    """What the volumes of all backends of the process share."""

    luns: Luns
    groups: VolumeGroups
    disks: Disks
    commands: LvCommands
    mappings: LvMappings
    workers: Workers


@dataclass(frozen=True)
class Seen:
    """The VG as it was just found, with its LVs by name. tags: of our LVs; commands: as the VG's locks need them."""

    at: FoundGroup
    lvs: dict[str, VolumeLv]
    tags: tuple[str, str]
    commands: LvCommands

    def is_ours(self, lv: VolumeLv) -> bool:
        return set(self.tags) <= set(lv.tags)

    def own(self, spec: VolumeSpec) -> VolumeLv | None:
        """The volume's LV, if there is one. Raises AgentFault foreign_data where one of its name does not bear our tags."""
        lv = self.lvs.get(lv_name(spec))
        if lv is not None and not self.is_ours(lv):
            marks = " ".join(f"--addtag {tag}" for tag in self.tags)
            raise AgentFault.of(
                FaultCode.FOREIGN_DATA,
                f"{self.at.name}/{lv.name} has lost its tags, or is another's",
                f"Look who made it; if it is this backend's, run lvchange {marks} {self.at.name}/{lv.name} on one host",
            )
        return lv

    def present(self, spec: VolumeSpec) -> VolumeLv:
        """The volume's LV, whatever its size. Raises AgentFault volume_missing."""
        lv = self.own(spec)
        if lv is None:
            raise AgentFault.of(FaultCode.VOLUME_MISSING, f"{self.at.name} on {self.at.place} has no {lv_name(spec)}")
        return lv

    def wanted(self, spec: VolumeSpec) -> VolumeLv:
        """The volume's LV, which has exactly its size, for a VM sees all of it and a copy has no more than the volume. Raises
        AgentFault volume_missing, wrong_size; that also where a resize has not come to its end, so that others' bytes are in it.
        """
        lv = self.present(spec)
        if lv.size_bytes != spec.size_bytes:
            raise self.wrong_size(lv, spec)
        if lv.own_bytes < lv.size_bytes:
            raise AgentFault.of(
                FaultCode.WRONG_SIZE,
                f"a resize of {self.at.name}/{lv.name} has not come to its end: what lies behind {lv.own_bytes} bytes is not the volume's",
                f"Resize the volume to its {spec.size_bytes} bytes, which zeroes that, or to another size",
            )
        return lv

    def wrong_size(self, lv: VolumeLv, spec: VolumeSpec) -> AgentFault:
        return AgentFault.of(
            FaultCode.WRONG_SIZE,
            f"{self.at.name}/{lv.name} has {lv.size_bytes} bytes, and the volume {spec.size_bytes}",
            _remedy(lv, spec),
        )


class LvLookup:
    """Looks for the volumes of one backend that is attached here."""

    def __init__(self, config: IscsiLvmConfig, target: Target, space: Workspace, tools: LvTools) -> None:
        self._config = config
        self._target = target
        self._space = space
        self._tools = tools

    async def look(self) -> Seen:
        """The VG and its LVs. The disk itself is asked first, for on a dead one LVM would hang beyond any signal.

        Raises AgentFault as the disk, its session or the VG's marks have it.
        """
        place = Place(self._config, self._target, self._space, self._tools.luns.live(self._space))
        await self._tools.disks.read(place.disk, place.key)
        group = await self._tools.groups.find(place)
        markers.refuse_missing(markers.read_tags(group.tags, self._target), f"volume group {group.name} on {place}")
        tags = (markers.tags_for(self._target)[0], VOLUME_TAG)
        return await self.again(
            Seen(FoundGroup(place, group), {}, tags, self._tools.commands.for_locks(group.lock_type))
        )

    async def again(self, seen: Seen) -> Seen:
        """The same VG with its LVs as they are after a change of this verb."""
        lvs = await seen.commands.volumes(seen.at.device, seen.at.name)
        return replace(seen, lvs={lv.name: lv for lv in lvs})

    def mapped(self, spec: VolumeSpec) -> tuple[Mapping, ...]:
        """What is mapped of the volume upon this backend's disk, by the kernel's word, whatever LVM knows. Raises AgentFault io_error."""
        return self._of_volume(self.group_mappings(), spec)

    def dead(self, spec: VolumeSpec) -> tuple[Mapping, ...]:
        """What is mapped of the volume upon a disk that has gone from beneath, or was cut off. Raises AgentFault io_error."""
        return self._of_volume(self._tools.disks.dead_mappings(self._vg_uuids), spec) if self._vg_uuids else ()

    def group_mappings(self) -> tuple[Mapping, ...]:
        """What is mapped of the VG upon this backend's disk, inner parts of a pool too. Raises AgentFault io_error."""
        disk = self._tools.luns.found(self._space)
        mapped = () if disk is None else self._tools.disks.mappings(disk)
        return tuple(each for each in mapped if each.is_of(self._vg_uuids))

    @property
    def has_locks(self) -> bool:
        """Whether the VG is a shared one whose lockspace this host is in."""
        return bool(self._words.get("locked_vg"))

    def _of_volume(self, mappings: tuple[Mapping, ...], spec: VolumeSpec) -> tuple[Mapping, ...]:
        dm_name = mapper_name(self._config.vg_name, lv_name(spec))
        return tuple(each for each in mappings if each.dm_name == dm_name)

    @property
    def _vg_uuids(self) -> frozenset[str]:
        """None before the backend was ever attached here."""
        return frozenset(filter(None, (self._words.get("vg_uuid"),)))

    @property
    def _words(self) -> dict[str, str]:
        return LunMemory(self._space.dir).read()


def _remedy(lv: VolumeLv, spec: VolumeSpec) -> str:
    """For an LV that has not the volume's size."""
    if lv.size_bytes < spec.size_bytes:
        return (
            "Look who has cut it, for what lay behind its end is gone;"
            f" a resize to {lv.size_bytes} with may_shrink takes it as it is"
        )
    if lv.own_bytes <= spec.size_bytes:
        return f"A resize has not come to its end: one to {spec.size_bytes} takes back what it added"
    return (
        f"Look who has made it longer: a resize to {spec.size_bytes} with may_shrink cuts off what is too much, for good. To keep it,"
        f" rename the LV on one host to {LV_PREFIX} and 32 other hexadecimal digits (lvrename), adopt that, and delete this volume"
    )


def lv_name(spec: VolumeSpec) -> str:
    return f"{LV_PREFIX}{spec.locator}"
