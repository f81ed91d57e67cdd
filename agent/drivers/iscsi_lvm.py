"""iscsi_lvm: a volume group on one LUN of an iSCSI target (luns.py is the way to it, volume_groups.py what is made in it,
lv_volumes.py the volumes).

The marker is two tags of the VG. A write is proven in the LV `stowage_probe`, in which every host has a block of its own. Once
attached, the LUN is known by its WWID and the VG by its UUID, and another of either is a wrong device.

The VG's metadata is written by attach with establish (on a VG that the operator made), by initialize, and by release with
remove_marker. A plain VG has no lock between hosts, so the manager must send each of these to one host at a time, and the
first two to one backend of a LUN at a time. A shared VG (vgcreate --shared, lvmlockd) is changed and
activated under its own locks too; its lockspace is started by attach and stopped by release.
"""

import logging
from collections.abc import Mapping
from typing import Any

from agent import markers
from agent.configs import decode_config, decode_partial, held_config
from agent.drivers.base import Commands, Deadline, ProbeReport, Workers, Workspace
from agent.errors import AgentFault
from agent.initialization import Initialization
from agent.iscsiadm import Iscsi
from agent.lun_content import LunContents
from agent.lun_memory import LunMemory
from agent.luns import Luns
from agent.lv_commands import LvCommands
from agent.lv_lookup import LvTools
from agent.lv_mappings import LvMappings
from agent.lv_volumes import LvVolumes
from agent.lvm import Lvm
from agent.portals import Portal
from agent.probes import PROBE_TIMEOUT_S, job_key
from agent.reach import server_checks, tool_check
from agent.scsi import Disk, Disks, dm_uuid_of
from agent.volume_groups import Place, VolumeGroups
from schemas.agent_rpc import Check, Discovered, Inspection, ReleaseReport
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.kinds import ISCSI_LVM, IscsiLvmConfig

log = logging.getLogger(__name__)


class IscsiLvm:
    """The driver of iscsi_lvm. iscsi, disks, lvm: given, so that all backends of the host share their locks."""

    def __init__(
        self,
        commands: Commands,
        workers: Workers,
        iscsi: Iscsi,
        disks: Disks,
        lvm: Lvm,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self._commands = commands
        self._iscsi = iscsi
        self._disks = disks
        self._lvm = lvm
        self._luns = Luns(iscsi, disks, lvm)
        self._contents = LunContents(lvm, disks)
        self._groups = VolumeGroups(lvm, disks, self._contents, workers, probe_timeout_s)
        self._initialization = Initialization(lvm, disks, self._contents)
        lv_commands = LvCommands(lvm)
        self._volumes = LvTools(
            luns=self._luns,
            groups=self._groups,
            disks=disks,
            commands=lv_commands,
            mappings=LvMappings(disks, lv_commands, workers),
            workers=workers,
        )

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        """Only the credentials changed: the session stays, a login beside it proves them, and the next one takes them."""
        config = _config(target)
        link = await self._luns.connect(config, target, credentials, space)
        try:
            await self._disks.read(link.disk, job_key(target))
            return await self._groups.attach(Place(config, target, space, link.disk), establish=establish)
        except BaseException as error:
            # A lockspace that is starting goes on with it; whoever gives up waiting for it releases the backend.
            is_starting = isinstance(error, AgentFault) and error.fault.code is FaultCode.CONVERGING
            if link.is_new and not is_starting:
                await self._luns.detach_quietly(target, space)
            raise

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        config = _config(target)
        disk = self._luns.live(space)
        # The read first: on a dead LUN it hangs in the one worker of this backend, and no LVM command is started to hang too.
        await self._disks.read(disk, job_key(target))
        return await self._groups.probe(Place(config, target, space, disk))

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        """The VG and what is in it stay; with remove_marker its tags go."""
        config = held_config(IscsiLvmConfig, target)
        await self._luns.end_trial(target, space)
        words = LunMemory(space.dir).read()
        left: tuple[str, ...] = ()
        is_unmarked = False
        disk = self._luns.found(space)
        if disk is not None and (remove_marker or words.get("making")):
            try:
                # Of a dead disk LVM would be asked in vain, for 45 s and by tools that cannot be killed (lab, 2026-11-25).
                place = Place(config, target, space, self._luns.live(space))
                await self._disks.read(place.disk, place.key)
                await self._luns.free(target, space, place.disk)
                left = await self._groups.give_back(place, remove_marker=remove_marker)
                is_unmarked = remove_marker
            except AgentFault as error:
                if error.fault.code is FaultCode.IN_USE:
                    raise
                log.warning("tags stay", extra={"vg_name": config.vg_name, "code": str(error.fault.code)})
                left = (_unreached(config, f"could not be reached ({error.fault.code})"),)
        elif remove_marker and disk is None and (words.get("marked") or words.get("vg_uuid")):
            left = (_unreached(config, "is not attached on this host"),)
        await self._luns.detach(target, space)
        LunMemory(space.dir).forget()
        return ReleaseReport(left=left, is_unmarked=is_unmarked)

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        """A login of its own, through an iface of its own, beside the session in use; proves reads, as the LV is writable through one path only."""
        config = _config(target)
        try:
            disk = await self._luns.begin_trial(config, target, credentials, space)
            answer = await self._disks.read(disk, job_key(target, is_trial=True))
            place = Place(config, target, space, disk, is_trial=True)
            group = await self._groups.find(place)
            self._luns.note_trial(space, group.uuid)
            return await self._groups.look(place, group, answer)
        finally:
            await self.clean_trial(target, space)

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        await self._luns.end_trial(target, space)

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        config = held_config(IscsiLvmConfig, target)
        words = LunMemory(space.dir).read()
        wanted = {
            "portal": config.portal,
            "iqn": config.target_iqn,
            "credential_version": str(target.credential_version),
        }
        if not words.get("probe_uuid") or any(words.get(name) != word for name, word in wanted.items()):
            return False
        try:
            mappings = self._disks.mappings(self._luns.live(space))
        except AgentFault:
            return False
        dm_uuid = dm_uuid_of(words["vg_uuid"], words["probe_uuid"])
        return any(mapping.dm_uuid == dm_uuid for mapping in mappings)

    async def checks(self, target: Target) -> tuple[Check, ...]:
        portal = Portal.parse(_config(target).portal)
        tools = [await tool_check(self._commands, [tool, "--version"]) for tool in ("iscsiadm", "vgs")]
        return (*tools, *await server_checks(portal.host, portal.port))

    async def discover(
        self, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> tuple[Discovered, ...]:
        """The targets that the portal offers to this host's initiator. The credentials are a target's own: the list is asked for
        without them, and a portal that gives it to nobody else says auth_failed with a remedy of its own (Iscsi.discover).
        """
        portal = Portal.parse(decode_partial(ISCSI_LVM, config, "portal"))
        names = dict.fromkeys(node.iqn for node in await self._iscsi.discover(portal, deadline))
        return tuple(Discovered(title=iqn, config={"target_iqn": iqn}) for iqn in names)

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        config = _config(target)
        link = await self._luns.connect(config, target, credentials, space)
        try:
            return await self._look(target, space, link.disk)
        finally:
            if link.is_new:
                await self._luns.detach_quietly(target, space)

    async def initialize(
        self,
        target: Target,
        credentials: Credentials,
        space: Workspace,
        *,
        wwid: str,
        force: bool,
        deadline: Deadline,
    ) -> ProbeReport:
        """A failure leaves what was made: it bears our tags, and the next try goes on with it."""
        config = _config(target)
        link = await self._luns.connect(config, target, credentials, space)
        try:
            if link.disk.wwid != wwid:
                raise AgentFault.of(
                    FaultCode.WRONG_DEVICE, f"LUN {config.lun} is {link.disk.wwid}, but {wwid} was confirmed"
                )
            place = Place(config, target, space, link.disk)
            await self._disks.read(place.disk, place.key)
            if force:
                await self._free(place)
            await self._initialization.create(place, force=force, deadline=deadline)
            return await self._groups.attach(place, establish=True)
        except BaseException:
            if link.is_new:
                await self._luns.detach_quietly(target, space)
            raise

    def volumes(self, target: Target, space: Workspace, *, is_to_fence: bool = False) -> LvVolumes:
        """See Driver. What is mapped is known by the VG's UUID, without the target."""
        config = held_config(IscsiLvmConfig, target)
        if not is_to_fence and not LunMemory(space.dir).read().get("vg_uuid"):
            raise AgentFault.of(FaultCode.CONVERGING, "the LUN is not attached on this host yet", is_retryable=True)
        return LvVolumes(config, target, space, self._volumes)

    async def _free(self, place: Place) -> None:
        """Raises AgentFault in_use, or marker_mismatch where the disk bears the marks of the backend that uses it."""
        try:
            await self._luns.free(place.target, place.space, place.disk)
        except AgentFault as error:
            if error.fault.code is FaultCode.IN_USE:
                await self._initialization.refuse_marked(place)
            raise

    async def _look(self, target: Target, space: Workspace, disk: Disk) -> Inspection:
        await self._disks.read(disk, job_key(target))
        content = await self._contents.read(disk, job_key(target))
        groups = await self._lvm.volume_groups(disk.device)
        is_ours = any(markers.read_tags(group.tags, target)["marker"] == "ours" for group in groups)
        return Inspection(
            wwid=disk.wwid,
            size_bytes=disk.size_bytes,
            signatures=content.signatures,
            partition_table=content.partition_table,
            foreign_vg=None if is_ours else content.vg_name,
            is_blank=content.is_blank,
            is_used=not is_ours and await self._is_used(target, space, disk),
        )

    async def _is_used(self, target: Target, space: Workspace, disk: Disk) -> bool:
        try:
            # What was activated only because the disk came is nobody's use of it.
            await self._luns.free(target, space, disk)
            await self._disks.refuse_used_lun(disk, job_key(target))
        except AgentFault as error:
            if error.fault.code is not FaultCode.IN_USE:
                raise
            return True
        return False


def _unreached(config: IscsiLvmConfig, why: str) -> str:
    return f"volume group {config.vg_name} with its tags on LUN {config.lun} of {config.target_iqn}, which {why}"


def _config(target: Target) -> IscsiLvmConfig:
    return decode_config(ISCSI_LVM, IscsiLvmConfig, target)
