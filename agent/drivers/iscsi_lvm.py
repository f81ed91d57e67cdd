"""iscsi_lvm: a volume group on one LUN of an iSCSI target (iscsiadm.py, scsi.py, lvm.py).

The marker is two tags of the VG. A write is proven in the LV `stowage_probe`, in which every host has a block of its own. Once
attached, the LUN is known by its WWID and the VG by its UUID, and another of either is a wrong device.

The VG's metadata is written by attach with establish (on a VG that the operator made), by initialize, and by release with
remove_marker on the host that did either. LVM has no lock between hosts here, so the manager must send the first two to
one host before any other.
"""

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from agent import markers
from agent.configs import decode_config, decode_partial
from agent.drivers.base import Commands, ProbeReport, Workers, Workspace
from agent.errors import AgentFault
from agent.iscsiadm import Iscsi, Portal, trial_node
from agent.jobs import BLOCK_BYTES
from agent.luns import LUN_MEMORY, LunLink, Luns, node_of, node_words, refuse_wrong_disk, remembered_node
from agent.lvm import PROBE_LV, THIN_POOL_LV, Lvm, VolumeGroup, mapper_name
from agent.memory import Memory
from agent.probes import PROBE_TIMEOUT_S, job_key, report_of
from agent.reach import server_checks, tool_check
from agent.scsi import Disk, Disks
from schemas.agent_rpc import Check, Discovered, Inspection, ReleaseReport, Target
from schemas.backends import Capability
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.kinds import ISCSI_LVM, IscsiLvmConfig

log = logging.getLogger(__name__)

_CAPABILITIES = (Capability.EXTERNAL, Capability.CLONE_FROM_IMAGE, Capability.SNAPSHOT)
#: Blocks of the probe LV: one extent of 4 MiB, vgcreate's default.
_PROBE_BLOCKS = 4 * 1024 * 1024 // BLOCK_BYTES
_TRIAL_MEMORY = "iscsi-trial"


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
        self._workers = workers
        self._iscsi = iscsi
        self._disks = disks
        self._lvm = lvm
        self._luns = Luns(iscsi, disks, lvm)
        self._timeout_s = probe_timeout_s

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        """Only the credentials changed: the session stays, and the next login takes the new ones, which a trial has proven."""
        config = _config(target)
        link = await self._luns.connect(config, target, credentials, space)
        try:
            await self._disks.read(link.disk, job_key(target))
            group = await self._our_group(config, target, space, link.disk, establish=establish)
            return await self._settle(config, target, space, link, group)
        except BaseException:
            if link.is_new:
                with contextlib.suppress(AgentFault):
                    # What this attach wrote on the LUN must go now: without the session, release could not reach it.
                    await self._unmark_if_marked(config, target, space, link.disk)
                await self._luns.detach_quietly(config, target, space)
            raise

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        config = _config(target)
        node = remembered_node(Memory(space.dir, LUN_MEMORY), config)
        if node is None:
            raise AgentFault.of(
                FaultCode.CONVERGING, f"{config.target_iqn} is not attached on this host yet", is_retryable=True
            )
        disk = self._luns.live(node, config, space)
        # The write first: on a dead LUN it hangs in the one worker of this backend, and no LVM command is started to hang too.
        answer = await self._write(config, target, space)
        group = await self._our_group(config, target, space, disk, establish=False)
        return report_of({**answer, **await self._space(config, disk, group)}, _CAPABILITIES)

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        """The VG and what is in it stay; with remove_marker its tags and the probe LV go."""
        config = _config(target)
        left: tuple[str, ...] = ()
        node = remembered_node(Memory(space.dir, LUN_MEMORY), config)
        session = None if node is None else self._iscsi.session(node)
        disk = None if session is None else self._disks.find(session, config.lun)
        if remove_marker and disk is not None:
            try:
                left = await self._unmark(config, target, space, disk)
            except AgentFault as error:
                if error.fault.code is FaultCode.IN_USE:
                    raise
                log.warning("tags stay", extra={"vg_name": config.vg_name, "code": str(error.fault.code)})
                left = (
                    f"volume group {config.vg_name} with its tags on {_place(config)}, which could not be reached ({error.fault.code})",
                )
        await self._luns.detach(config, target, space)
        Memory(space.dir, LUN_MEMORY).forget()
        return ReleaseReport(left=left)

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        """A login of its own, through an iface of its own, beside the session in use; proves reads, as the LV is writable through one path only."""
        config = _config(target)
        await self.clean_trial(target, space)
        node = await self._iscsi.find_target(config.target_iqn, Portal.parse(config.portal))
        node = trial_node(node, _trial_iface(target))
        Memory(space.dir, _TRIAL_MEMORY).write(**node_words(node))
        try:
            await self._iscsi.make_iface(node.iface)
            await self._iscsi.login(node, credentials)
            session = self._luns.session(node)
            disk = await self._disks.wait_for(session, config.lun, job_key(target, is_trial=True))
            refuse_wrong_disk(disk, Memory(space.dir, LUN_MEMORY).read())
            answer = await self._disks.read(disk, job_key(target, is_trial=True))
            group = await self._group(config, target, disk)
            is_known = Memory(space.dir, LUN_MEMORY).read().get("vg_uuid", "") != ""
            if is_known:
                markers.refuse_missing(markers.read_tags(group.tags, target), f"volume group {group.name}")
            return report_of({**answer, **await self._space(config, disk, group)}, _CAPABILITIES)
        finally:
            await self.clean_trial(target, space)

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        memory = Memory(space.dir, _TRIAL_MEMORY)
        words = memory.read()
        if not words:
            return
        node = node_of(words)
        if self._iscsi.session(node) is not None:
            await self._iscsi.logout(node)
        await self._iscsi.delete_record(node)
        await self._iscsi.delete_iface(node.iface)
        memory.forget()

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        config = _config(target)
        memory = Memory(space.dir, LUN_MEMORY)
        words = memory.read()
        node = remembered_node(memory, config)
        if (
            node is None
            or not words.get("vg_uuid")
            or words.get("credential_version") != str(target.credential_version)
        ):
            return False
        try:
            disk = self._luns.live(node, config, space)
        except AgentFault:
            return False
        return words["portal"] == config.portal and mapper_name(config.vg_name, PROBE_LV) in disk.holders

    async def checks(self, target: Target) -> tuple[Check, ...]:
        portal = Portal.parse(_config(target).portal)
        tools = [await tool_check(self._commands, [tool, "--version"]) for tool in ("iscsiadm", "vgs")]
        return (*tools, *await server_checks(portal.host, portal.port))

    async def discover(self, config: Mapping[str, Any]) -> tuple[Discovered, ...]:
        """The targets that the portal offers to this host's initiator."""
        portal = Portal.parse(decode_partial(ISCSI_LVM, config, "portal"))
        names = dict.fromkeys(node.iqn for node in await self._iscsi.discover(portal))
        return tuple(Discovered(title=iqn, config={"target_iqn": iqn}) for iqn in names)

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        config = _config(target)
        link = await self._luns.connect(config, target, credentials, space)
        try:
            content = await self._lvm.content(link.disk.device)
            groups = await self._lvm.volume_groups(link.disk.device)
            is_ours = any(markers.read_tags(group.tags, target)["marker"] == "ours" for group in groups)
            return Inspection(
                wwid=link.disk.wwid,
                size_bytes=link.disk.size_bytes,
                signatures=content.signatures,
                partition_table=content.partition_table,
                foreign_vg=None if is_ours else content.vg_name,
                is_blank=content.is_blank,
            )
        finally:
            if link.is_new:
                await self._luns.detach_quietly(config, target, space)

    async def initialize(
        self, target: Target, credentials: Credentials, space: Workspace, *, wwid: str, force: bool
    ) -> ProbeReport:
        config = _config(target)
        link = await self._luns.connect(config, target, credentials, space)
        try:
            if link.disk.wwid != wwid:
                raise AgentFault.of(
                    FaultCode.WRONG_DEVICE, f"LUN {config.lun} is {link.disk.wwid}, but {wwid} was confirmed"
                )
            await self._make_group(config, target, space, link.disk, force=force)
            group = await self._our_group(config, target, space, link.disk, establish=True)
            return await self._settle(config, target, space, link, group)
        except BaseException:
            if link.is_new:
                await self._luns.detach_quietly(config, target, space)
            raise

    # The volume group.

    async def _group(self, config: IscsiLvmConfig, target: Target, disk: Disk) -> VolumeGroup:
        """The configured VG on the disk, not another backend's. Raises AgentFault needs_initialization with what is there instead."""
        group = next(
            (group for group in await self._lvm.volume_groups(disk.device) if group.name == config.vg_name), None
        )
        if group is None:
            content = await self._lvm.content(disk.device)
            found = f"volume group {content.vg_name}" if content.vg_name else ", ".join(content.signatures)
            raise AgentFault.of(
                FaultCode.NEEDS_INITIALIZATION,
                f"{_place(config)} ({disk.wwid}) {'is blank' if content.is_blank else f'holds {found}'}; there is no volume group {config.vg_name}",
            )
        if group.pv_count != 1:
            raise AgentFault.of(FaultCode.WRONG_DEVICE, f"volume group {group.name} spans {group.pv_count} devices, and a backend is one LUN",
                                "Choose a volume group that lies on this LUN alone")  # fmt: skip
        tags = " ".join(
            f"--deltag {tag}"
            for tag in group.tags
            if tag.startswith("stowage_") and tag.replace("_", "-").replace("-", "").isalnum()
        )
        answer = markers.read_tags(group.tags, target)
        markers.refuse_other(
            answer,
            target,
            f"volume group {group.name} on {_place(config)}",
            clear_with=f"run vgchange {tags} {group.name}",
        )
        return group

    async def _our_group(
        self, config: IscsiLvmConfig, target: Target, space: Workspace, disk: Disk, *, establish: bool
    ) -> VolumeGroup:
        """The VG, with our tags and the probe LV; both are made with `establish`, tags last."""
        group = await self._group(config, target, disk)
        known_uuid = Memory(space.dir, LUN_MEMORY).read().get("vg_uuid", "")
        if known_uuid not in ("", group.uuid):
            raise AgentFault.of(
                FaultCode.WRONG_DEVICE,
                f"volume group {group.name} on {_place(config)} is not the one that was attached before",
            )
        volumes = {volume.name for volume in await self._lvm.logical_volumes(disk.device, group.name)}
        is_tagged = markers.read_tags(group.tags, target)["marker"] == "ours"
        if not establish:
            if not is_tagged or PROBE_LV not in volumes:
                lost = f"the volume {PROBE_LV}" if is_tagged else "its tags"
                raise AgentFault.of(
                    FaultCode.MARKER_MISSING, f"volume group {group.name} on {_place(config)} has lost {lost}"
                )
            return group
        if PROBE_LV not in volumes:
            await self._lvm.create_probe_volume(disk.device, group.name)
        if config.thin and THIN_POOL_LV not in volumes:
            await self._lvm.create_thin_pool(disk.device, group.name)
        if not is_tagged:
            _remember_marking(space)
            await self._lvm.add_tags(disk.device, group.name, markers.tags_for(target))
        return group

    async def _make_group(
        self, config: IscsiLvmConfig, target: Target, space: Workspace, disk: Disk, *, force: bool
    ) -> None:
        """The VG is on the disk. Raises AgentFault foreign_data or in_use rather than overwrite."""
        groups = await self._lvm.volume_groups(disk.device)
        for group in groups:
            markers.refuse_other(markers.read_tags(group.tags, target), target, f"volume group {group.name} on {_place(config)}",
                                 clear_with="remove its stowage tags with vgchange --deltag")  # fmt: skip
            if group.name == config.vg_name and markers.read_tags(group.tags, target)["marker"] == "ours":
                return
        content = await self._lvm.content(disk.device)
        if not content.is_blank:
            found = f"volume group {content.vg_name}" if content.vg_name else ", ".join(content.signatures)
            if not force:
                raise AgentFault.of(FaultCode.FOREIGN_DATA, f"{_place(config)} ({disk.wwid}) holds {found}")
            if disk.holders:
                raise AgentFault.of(
                    FaultCode.IN_USE, f"{_place(config)} is in use on this host by {', '.join(disk.holders)}"
                )
        if content.signatures:
            await self._lvm.wipe(disk.device)
        _remember_marking(space)
        await self._lvm.create_group(disk.device, config.vg_name, markers.tags_for(target))

    async def _unmark(self, config: IscsiLvmConfig, target: Target, space: Workspace, disk: Disk) -> tuple[str, ...]:
        """Our tags and the probe LV are gone from the VG if this host made them; what is left on the LUN.

        Only that host: all hosts release at once, and of two that write a VG's metadata one destroys the other's.
        """
        group = next(
            (group for group in await self._lvm.volume_groups(disk.device) if group.name == config.vg_name), None
        )
        if group is None or markers.read_tags(group.tags, target)["marker"] == "other":
            return ()
        await self._luns.deactivate(config, disk)
        volumes = {volume.name for volume in await self._lvm.logical_volumes(disk.device, group.name)}
        if Memory(space.dir, LUN_MEMORY).read().get("marked") == "yes":
            if PROBE_LV in volumes:
                await self._lvm.remove_volume(disk.device, group.name, PROBE_LV)
            if markers.read_tags(group.tags, target)["marker"] == "ours":
                await self._lvm.remove_tags(disk.device, group.name, markers.tags_for(target))
        count = len(volumes - {PROBE_LV})
        what = f"volume group {group.name}" + (
            f" with {count} logical {'volume' if count == 1 else 'volumes'}" if count else ""
        )
        return (f"{what} on {_place(config)}",)

    async def _unmark_if_marked(self, config: IscsiLvmConfig, target: Target, space: Workspace, disk: Disk) -> None:
        if Memory(space.dir, LUN_MEMORY).read().get("marked") == "yes":
            await self._unmark(config, target, space, disk)

    # The proof.

    async def _settle(
        self, config: IscsiLvmConfig, target: Target, space: Workspace, link: LunLink, group: VolumeGroup
    ) -> ProbeReport:
        """Active, proven and remembered."""
        await self._lvm.activate(link.disk.device, group.name, PROBE_LV)
        answer = await self._write(config, target, space)
        report = report_of({**answer, **await self._space(config, link.disk, group)}, _CAPABILITIES)
        memory = Memory(space.dir, LUN_MEMORY)
        memory.write(**{**memory.read(), "wwid": link.disk.wwid, "vg_uuid": group.uuid})
        return report

    async def _write(self, config: IscsiLvmConfig, target: Target, space: Workspace) -> dict[str, Any]:
        """latency_ms of a block written to this host's place in the probe LV, read back and compared."""
        block = int.from_bytes(hashlib.sha256(space.host_id.encode()).digest()[:8], "big") % _PROBE_BLOCKS
        args = {"device": f"/dev/mapper/{mapper_name(config.vg_name, PROBE_LV)}", "offset_bytes": block * BLOCK_BYTES}
        return await self._workers.run("write_block", args, key=job_key(target), timeout_s=self._timeout_s)

    async def _space(self, config: IscsiLvmConfig, disk: Disk, group: VolumeGroup) -> dict[str, int]:
        """The VG's numbers; what is unused in a thin pool counts as free. Nothing while the pool is inactive here and cannot tell."""
        available = group.free_bytes
        if config.thin:
            pool = next(
                (v for v in await self._lvm.logical_volumes(disk.device, group.name) if v.name == THIN_POOL_LV), None
            )
            if pool is None or pool.data_percent is None:
                return {}
            available += int(pool.size_bytes * (1 - pool.data_percent / 100))
        return {
            "total_bytes": group.size_bytes,
            "used_bytes": group.size_bytes - available,
            "available_bytes": available,
        }


def _config(target: Target) -> IscsiLvmConfig:
    return decode_config(ISCSI_LVM, IscsiLvmConfig, target)


def _place(config: IscsiLvmConfig) -> str:
    return f"LUN {config.lun} of {config.target_iqn}"


def _trial_iface(target: Target) -> str:
    # The last 12 digits of a UUIDv7 are random.
    return f"stowage-{target.backend_id[-12:]}"


def _remember_marking(space: Workspace) -> None:
    """This host is the one that wrote our tags, or is about to."""
    memory = Memory(space.dir, LUN_MEMORY)
    memory.write(**{**memory.read(), "marked": "yes"})
