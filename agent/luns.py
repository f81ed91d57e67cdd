"""The way from a target to a LUN's disk and back, with what must be remembered of it across kill -9.

Remembered in the workspace: the node logged in to, whether the session is ours to end, the LUN's WWID and the VG's UUID
once they were proven. Two backends of this host may share a session; the last of them ends it.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from agent.drivers.base import Workspace
from agent.errors import AgentFault
from agent.iscsiadm import Iscsi, Node, Portal, Session
from agent.lvm import Lvm
from agent.memory import Memory
from agent.probes import job_key
from agent.scsi import Disk, Disks
from schemas.agent_rpc import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.kinds import IscsiLvmConfig

log = logging.getLogger(__name__)

#: iqn, host, port, tpgt, iface: the node. portal: as configured. is_ours, credential_version; wwid and vg_uuid once proven.
#: marked: this host wrote our tags.
LUN_MEMORY = "iscsi"


@dataclass(frozen=True)
class LunLink:
    """The LUN as it is here. is_new: the call that gave it has logged in."""

    node: Node
    session: Session
    disk: Disk
    is_new: bool


class Luns:
    """Connects and detaches one LUN for one backend."""

    def __init__(self, iscsi: Iscsi, disks: Disks, lvm: Lvm) -> None:
        self._iscsi = iscsi
        self._disks = disks
        self._lvm = lvm

    async def connect(
        self, config: IscsiLvmConfig, target: Target, credentials: Credentials, space: Workspace
    ) -> LunLink:
        """A session at the configured portal and the LUN's disk. Raises AgentFault and leaves no session that was not there."""
        if target.credential_version > 0 and not credentials:
            raise AgentFault.of(FaultCode.NEEDS_CREDENTIALS, "this host holds no CHAP credentials for the target")
        memory = Memory(space.dir, LUN_MEMORY)
        words = memory.read()
        node = remembered_node(memory, config)
        known = _proven(words)
        if node is not None and words.get("portal") != config.portal:
            await self.detach(config, target, space)
            # The LUN must be the same one behind the new portal, so what was proven stays known.
            node, words = None, known
        if node is None:
            node = await self._iscsi.find_target(config.target_iqn, Portal.parse(config.portal))
        is_new = self._iscsi.session(node) is None
        is_ours = (
            is_new
            or words.get("is_ours") == "yes"
            or any(other.get("is_ours") == "yes" for other in _sharers(node, space))
        )
        version = str(target.credential_version)
        if is_ours and not is_new and words.get("credential_version", version) != version:
            await self._iscsi.write_record(node, credentials)
        # Before the login: whatever a kill leaves of it, release knows of.
        memory.write(
            **{
                **words,
                **node_words(node),
                "credential_version": version,
                "portal": config.portal,
                "is_ours": "yes" if is_ours else "no",
            }
        )
        try:
            if is_new:
                await self._iscsi.login(node, credentials)
            session = self.session(node)
            disk = await self._disks.wait_for(session, config.lun, job_key(target))
            refuse_wrong_disk(disk, words)
        except BaseException:
            if is_new:
                await self.detach_quietly(config, target, space)
            raise
        return LunLink(node, session, disk, is_new)

    async def detach(self, config: IscsiLvmConfig, target: Target, space: Workspace) -> None:
        """Volumes inactive, disk gone, session ended and record deleted unless another backend or person uses them."""
        memory = Memory(space.dir, LUN_MEMORY)
        words = memory.read()
        node = remembered_node(memory, config)
        if node is None:
            return
        session = self._iscsi.session(node)
        disk = None if session is None else self._disks.find(session, config.lun)
        if disk is not None:
            await self.deactivate(config, disk)
            with contextlib.suppress(AgentFault):
                # A dead target hangs this; ending the session removes the disk all the same.
                await self._disks.remove(disk, job_key(target))
        if words.get("is_ours") == "yes" and not _sharers(node, space):
            if session is not None:
                await self._iscsi.logout(node)
            await self._iscsi.delete_record(node)
        known = _proven(words)
        memory.write(**known)

    async def detach_quietly(self, config: IscsiLvmConfig, target: Target, space: Workspace) -> None:
        """After a failure whose fault counts. What stays is remembered, so release finds it."""
        try:
            await self.detach(config, target, space)
        except AgentFault as error:
            log.warning("could not detach", extra={"target_iqn": config.target_iqn, "code": str(error.fault.code)})

    async def deactivate(self, config: IscsiLvmConfig, disk: Disk) -> None:
        """No dm device lies on the disk. Raises AgentFault in_use while one is open."""
        if not self._disks.holders(disk):
            return
        try:
            await self._lvm.deactivate_group(disk.device, config.vg_name)
        except AgentFault as error:
            if error.fault.code is FaultCode.IN_USE:
                raise
            log.warning("deactivation failed", extra={"vg_name": config.vg_name, "code": str(error.fault.code)})
        # Of a dead disk, or of volumes that another host has meanwhile deleted from the metadata.
        for name in self._disks.holders(disk):
            await self._lvm.remove_mapping(name)

    def session(self, node: Node) -> Session:
        """The node's session. Raises AgentFault server_unreachable without one."""
        session = self._iscsi.session(node)
        if session is None:
            raise AgentFault.of(
                FaultCode.SERVER_UNREACHABLE, f"the session to {node.portal} ended at once", is_retryable=True
            )
        return session

    def live(self, node: Node, config: IscsiLvmConfig, space: Workspace) -> Disk:
        """The LUN's disk in a session that works, asked of nobody but the kernel's memory. Raises AgentFault."""
        session = self._iscsi.session(node)
        if session is None or session.state != "LOGGED_IN":
            state = "gone" if session is None else session.state.lower()
            raise AgentFault.of(
                FaultCode.SERVER_UNREACHABLE, f"the session to {node.portal} is {state}", is_retryable=True
            )
        disk = self._disks.find(session, config.lun)
        if disk is None:
            raise AgentFault.of(FaultCode.LUN_NOT_FOUND, f"the session to {node.portal} has no LUN {config.lun}")
        refuse_wrong_disk(disk, Memory(space.dir, LUN_MEMORY).read())
        return disk


def node_words(node: Node) -> dict[str, str]:
    return {
        "iqn": node.iqn,
        "host": node.portal.host,
        "port": str(node.portal.port),
        "tpgt": str(node.tpgt),
        "iface": node.iface,
    }


def node_of(words: Mapping[str, str]) -> Node:
    return Node(words["iqn"], Portal(words["host"], int(words["port"])), int(words["tpgt"]), words["iface"])


def remembered_node(memory: Memory, config: IscsiLvmConfig) -> Node | None:
    """The node of an earlier login of this backend, if there was one."""
    words = memory.read()
    return node_of(words) if words.get("iqn") == config.target_iqn else None


def refuse_wrong_disk(disk: Disk, words: Mapping[str, str]) -> None:
    """Raises AgentFault wrong_device when the disk is not the one that was proven before."""
    known = words.get("wwid", "")
    if known not in ("", disk.wwid):
        raise AgentFault.of(FaultCode.WRONG_DEVICE, f"the LUN is {disk.wwid}, but {known} was attached before")


def _proven(words: Mapping[str, str]) -> dict[str, str]:
    """What stays true of the LUN, whichever way leads to it."""
    return {key: value for key, value in words.items() if key in ("wwid", "vg_uuid", "marked")}


def _sharers(node: Node, space: Workspace) -> list[dict[str, str]]:
    """What other backends of this host remember of the same session; their workspaces lie beside ours."""
    others = (
        Memory(folder, LUN_MEMORY).read()
        for folder in sorted(space.dir.parent.iterdir())
        if folder != space.dir and folder.is_dir()
    )
    return [words for words in others if words.get("iqn") and node_of(words) == node]
