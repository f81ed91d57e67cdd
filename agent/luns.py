"""The way from a target to a LUN's disk and back, for one backend; what it must remember of it is in lun_memory.py.

All sessions are of our own iface, and the backends of this host share one by node. The last that uses it ends it; the last
that uses a LUN removes its disk. Whatever else of the host uses either, or might, keeps it: fault in_use.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from agent.drivers.base import Workspace
from agent.errors import AgentFault
from agent.iscsiadm import Iscsi, Session, trial_node
from agent.lun_memory import LunMemory, active_vgs, neighbours, node_of, node_words, remembered_node
from agent.lvm import LOCK_LV, Lvm, mapper_name
from agent.memory import Memory
from agent.portals import Node, Portal
from agent.probes import job_key
from agent.scsi import Disk, Disks, dm_uuid_of, refuse_foreign
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.kinds import IscsiLvmConfig

log = logging.getLogger(__name__)

_TRIAL_MEMORY = "iscsi-trial"
_ALIVE = "LOGGED_IN"
#: For a worker to come back from a disk that has gone, and be reaped: 5 s in all.
_DEAD_TRIES = 20
_DEAD_PAUSE_S = 0.25


@dataclass(frozen=True)
class LunLink:
    """The LUN as it is here. is_new: by the call that gave it this backend has come to the session, so its failure leaves it again."""

    disk: Disk
    is_new: bool


class Luns:
    """Connects and detaches LUNs. One for the process: of two backends of one target, one goes after the other."""

    def __init__(self, iscsi: Iscsi, disks: Disks, lvm: Lvm) -> None:
        self._iscsi = iscsi
        self._disks = disks
        self._lvm = lvm
        self._nodes: WeakValueDictionary[tuple[str, Portal], asyncio.Lock] = WeakValueDictionary()

    async def connect(
        self, config: IscsiLvmConfig, target: Target, credentials: Credentials, space: Workspace
    ) -> LunLink:
        """A session at the configured portal, which has accepted these credentials, and the LUN's disk.

        Raises AgentFault and leaves what was there before.
        """
        if target.credential_version > 0 and not credentials:
            raise AgentFault.of(FaultCode.NEEDS_CREDENTIALS, "this host holds no CHAP credentials for the target")
        await self.end_trial(target, space)
        words = LunMemory(space.dir).read()
        node = remembered_node(words)
        if node is not None and (node.iqn, words.get("portal")) != (config.target_iqn, config.portal):
            # The LUN must be the same one behind the new portal, so what was proven stays known.
            await self.detach(target, space)
            node = None
        if node is not None and self._is_lost_for(node, words, target):
            await self.detach(target, space)
        if node is None or self._iscsi.session(node) is None:
            found = await self._iscsi.find_target(config.target_iqn, Portal.parse(config.portal))
            if node not in (None, found):
                await self.detach(target, space)
            node = found
        async with self._lock(node):
            return await self._join(node, config, target, credentials, space)

    async def detach(self, target: Target, space: Workspace) -> None:
        """Our volumes inactive, disk gone, session ended and record deleted, each unless another backend uses it.

        Raises AgentFault in_use, or that it cannot be told, and goes no further then.
        """
        node = remembered_node(LunMemory(space.dir).read())
        if node is not None:
            async with self._lock(node):
                await self._leave(node, target, space)

    async def detach_quietly(self, target: Target, space: Workspace) -> None:
        """After a failure whose fault counts. What stays is remembered, so release finds it."""
        with _quietly(target):
            await self.detach(target, space)

    async def free(self, target: Target, space: Workspace, disk: Disk) -> str:
        """None of our volumes lies on the disk. Raises AgentFault in_use while one is open, or something of others lies there.

        Of a disk that is dead the probe LV may stay, for a probe of ours hangs in it: its dm UUID is returned.
        """
        words = LunMemory(space.dir).read()
        node, lun, ours = remembered_node(words), int(words["lun"]), active_vgs(words)
        sharing = [other for other in neighbours(space) if (other.node, other.lun) == (node, lun)]
        if not sharing and not self._disks.has_other_path(disk):
            if not ours:
                await self._unmap_strangers(disk)
            refuse_foreign(self._disks.mappings(disk), ours)
        ours = ours.difference(*(other.vg_uuids for other in sharing))
        # Of those upon this disk alone: the operator may have others of the VG in use by a session of his own.
        lock_lv = _lock_lv(words)
        uuids = [m.lv_uuid for m in self._disks.mappings(disk) if m.is_of(ours) and m.lv_uuid and m.dm_name != lock_lv]
        probe_uuid = words.get("probe_uuid", "")
        is_dead = not (await self._answers(node, disk, target) if uuids else self._is_alive(node))
        # The probe LV last: while another is open, the backend stays as it was.
        for chosen in ([uuid for uuid in uuids if uuid != probe_uuid], [uuid for uuid in uuids if uuid == probe_uuid]):
            if chosen and not is_dead:
                await self._deactivate(disk, chosen, is_locked=lock_lv != "")
        # Of a dead disk, or of volumes that another host has meanwhile deleted from the metadata.
        is_going = is_dead and all(other.node != node for other in neighbours(space))
        hung = dm_uuid_of(words["vg_uuid"], probe_uuid) if is_going and probe_uuid else ""
        return await self._unmap(disk, ours, may_stay=hung, lock_lv=lock_lv)

    def found(self, space: Workspace) -> Disk | None:
        """The LUN's disk if it is here, in whatever state. Raises AgentFault io_error when that cannot be told."""
        words = LunMemory(space.dir).read()
        node = remembered_node(words)
        session = None if node is None else self._iscsi.session(node)
        return None if session is None else self._disks.find(session, int(words["lun"]))

    def live(self, space: Workspace) -> Disk:
        """The LUN's disk in a session that works, asked of nobody but the kernel's memory. Raises AgentFault."""
        words = LunMemory(space.dir).read()
        node = remembered_node(words)
        if node is None:
            raise AgentFault.of(FaultCode.CONVERGING, "the LUN is not attached on this host yet", is_retryable=True)
        session = self._iscsi.session(node)
        if session is None or session.state != _ALIVE:
            state = "gone" if session is None else session.state.lower()
            raise AgentFault.of(
                FaultCode.SERVER_UNREACHABLE, f"the session to {node.portal} is {state}", is_retryable=True
            )
        disk = self._disks.find(session, int(words["lun"]))
        if disk is None:
            raise AgentFault.of(FaultCode.LUN_NOT_FOUND, f"the session to {node.portal} has no LUN {words['lun']}")
        refuse_wrong_disk(disk, space)
        return disk

    async def begin_trial(
        self, config: IscsiLvmConfig, target: Target, credentials: Credentials, space: Workspace
    ) -> Disk:
        """The LUN's disk in a session of its own, made with these credentials; end_trial must follow."""
        await self.end_trial(target, space)
        node = await self._iscsi.find_target(config.target_iqn, Portal.parse(config.portal))
        session = await self._log_in_beside(node, config, target, credentials, space)
        disk = await self._disks.wait_for(session, config.lun, job_key(target, is_trial=True))
        refuse_wrong_disk(disk, space)
        return disk

    def note_trial(self, space: Workspace, vg_uuid: str) -> None:
        """The VG that the trial found: what of it is mapped upon the trial's own disk goes with the trial."""
        memory = Memory(space.dir, _TRIAL_MEMORY)
        memory.write(**{**memory.read(), "vg_uuid": vg_uuid})

    async def end_trial(self, target: Target, space: Workspace) -> None:
        """No session or record of a trial is left."""
        memory = Memory(space.dir, _TRIAL_MEMORY)
        words = memory.read()
        if not words:
            return
        node = node_of(words)
        session = self._iscsi.session(node)
        if session is not None:
            disk = self._disks.find(session, int(words["lun"]))
            if disk is not None and not self._disks.has_other_path(disk):
                # Activated where our udev rule does not hold. Not by LVM, which would take those of the session in use.
                if words.get("vg_uuid"):
                    await self._unmap(disk, frozenset((words["vg_uuid"],)))
                else:
                    await self._unmap_strangers(disk)
            await self._disks.refuse_used_session(session, job_key(target, is_trial=True))
            await self._iscsi.logout(node)
        await self._iscsi.delete_record(node)
        memory.forget()

    async def _join(
        self, node: Node, config: IscsiLvmConfig, target: Target, credentials: Credentials, space: Workspace
    ) -> LunLink:
        memory = LunMemory(space.dir)
        words = memory.read()
        is_known = remembered_node(words) == node
        has_session = self._iscsi.session(node) is not None
        is_new = not (is_known and has_session)
        version = str(target.credential_version)
        # Before the login: whatever a kill leaves of it, release knows of.
        memory.add(**node_words(node), lun=str(config.lun), portal=config.portal)
        try:
            if not has_session:
                await self._iscsi.login(node, credentials)
                memory.add(login_version=version)
            elif not is_known or words.get("credential_version") != version:
                # A session that is there says nothing of these credentials.
                await self._prove_credentials(node, config, target, credentials, space)
                await self._iscsi.write_record(node, credentials)
            memory.add(credential_version=version)
            disk = await self._disks.wait_for(self._session(node), config.lun, job_key(target))
            refuse_wrong_disk(disk, space)
        except BaseException:
            if is_new:
                with _quietly(target):
                    await self._leave(node, target, space)
            raise
        return LunLink(disk, is_new)

    async def _leave(self, node: Node, target: Target, space: Workspace) -> None:
        memory = LunMemory(space.dir)
        lun = int(memory.read()["lun"])
        sharing = [other for other in neighbours(space) if other.node == node]
        for mapping in self._disks.dead_mappings(active_vgs(memory.read())):
            await self._lvm.remove_mapping(mapping.dm_name)
        session = self._iscsi.session(node)
        disk = None if session is None else self._disks.find(session, lun)
        hung = ""
        if disk is not None:
            hung = await self.free(target, space, disk)
            await self._leave_lockspace(disk, memory.read(), target)
            if all(other.lun != lun for other in sharing):
                await self._disks.refuse_used(disk, job_key(target), but=hung)
                # A dead target hangs this; ending the session removes the disk all the same.
                if sharing or self._is_alive(node):
                    with contextlib.suppress(AgentFault):
                        await self._disks.remove(disk, job_key(target))
        if not sharing:
            if session is not None:
                await self._disks.refuse_used_session(session, job_key(target), but=hung)
                await self._iscsi.logout(node)
            await self._iscsi.delete_record(node)
        if hung:
            await self._remove_dead(active_vgs(memory.read()))
        memory.forget_way()

    async def _prove_credentials(
        self, node: Node, config: IscsiLvmConfig, target: Target, credentials: Credentials, space: Workspace
    ) -> None:
        try:
            await self._log_in_beside(node, config, target, credentials, space)
        finally:
            await self.end_trial(target, space)

    async def _log_in_beside(
        self, node: Node, config: IscsiLvmConfig, target: Target, credentials: Credentials, space: Workspace
    ) -> Session:
        """A session through an iface of its own, beside the one in use."""
        trial = trial_node(node, _trial_iface(target))
        Memory(space.dir, _TRIAL_MEMORY).write(**node_words(trial), lun=str(config.lun))
        await self._iscsi.login(trial, credentials)
        return self._session(trial)

    async def _leave_lockspace(self, disk: Disk, words: Mapping[str, str], target: Target) -> None:
        """The lockspace that lies on this disk is stopped; one that the operator started by a session of his own is his."""
        lock_lv = _lock_lv(words)
        if lock_lv and any(mapping.dm_name == lock_lv for mapping in self._disks.mappings(disk)):
            if not await self._answers(remembered_node(words), disk, target):
                # vgchange would hang on the dead disk, unkillable, and another one with each try.
                raise AgentFault.of(
                    FaultCode.SERVER_UNREACHABLE,
                    f"the lockspace of {words['locked_vg']} cannot be stopped while the target is away",
                    f"Bring the target back, or run lvmlockctl --kill {words['locked_vg']} on this host",
                    is_retryable=True,
                )
            await self._lvm.for_locks("any").stop_locking(disk.device, words["locked_vg"])

    def _is_lost_for(self, node: Node, words: Mapping[str, str], target: Target) -> bool:
        """Whether the session is down and was made with other credentials: iscsid tries those again for ever, whatever the record says.

        Only what this backend knows to be so: of a session that another one made it lets the other judge.
        """
        session = self._iscsi.session(node)
        is_down = session is not None and session.state != _ALIVE
        return is_down and words.get("login_version") not in (None, str(target.credential_version))

    async def _answers(self, node: Node | None, disk: Disk, target: Target) -> bool:
        """Whether LVM may be asked of the disk: on a dead one each of its tools would hang beyond any signal.

        The session tells of that late, or never: not of a target that answers pings and no reads.
        """
        if not self._is_alive(node):
            return False
        try:
            await self._disks.read(disk, job_key(target))
        except AgentFault as error:
            log.warning("disk does not answer", extra={"device": disk.device, "code": str(error.fault.code)})
            return False
        return True

    def _is_alive(self, node: Node | None) -> bool:
        session = None if node is None else self._iscsi.session(node)
        return session is not None and session.state == _ALIVE

    async def _deactivate(self, disk: Disk, lv_uuids: list[str], *, is_locked: bool) -> None:
        """Raises AgentFault in_use; of a dead disk nothing else can be expected than that it fails."""
        try:
            await self._lvm.for_locks("any" if is_locked else "").deactivate(disk.device, lv_uuids)
        except AgentFault as error:
            if error.fault.code is FaultCode.IN_USE:
                raise
            log.warning("deactivation failed", extra={"device": disk.device, "code": str(error.fault.code)})

    async def _unmap(self, disk: Disk, vg_uuids: frozenset[str], *, may_stay: str = "", lock_lv: str = "") -> str:
        """may_stay, if that one was open. lock_lv: name of the one that goes with its lockspace."""
        stays = ""
        for mapping in self._disks.mappings(disk):
            if not mapping.is_of(vg_uuids) or (lock_lv and mapping.dm_name == lock_lv):
                continue
            try:
                await self._lvm.remove_mapping(mapping.dm_name)
            except AgentFault as error:
                if error.fault.code is not FaultCode.IN_USE or mapping.dm_uuid != may_stay:
                    raise
                stays = may_stay
        return stays

    async def _unmap_strangers(self, disk: Disk) -> None:
        """Of a LUN of which no VG is known for ours: where our udev rule does not hold, what LVM finds on a disk is activated when
        that comes, and with it neither could our session end nor the LUN be initialized. Raises AgentFault in_use for what is open.
        """
        for mapping in self._disks.mappings(disk):
            if mapping.is_lvm:
                await self._lvm.remove_mapping(mapping.dm_name)

    async def _remove_dead(self, vg_uuids: frozenset[str]) -> None:
        """With its session gone, what hung in the probe LV has failed, and lets go within a moment. Raises AgentFault in_use."""
        tries = _DEAD_TRIES
        while dead := self._disks.dead_mappings(vg_uuids):
            tries -= 1
            try:
                for mapping in dead:
                    await self._lvm.remove_mapping(mapping.dm_name)
            except AgentFault as error:
                if error.fault.code is not FaultCode.IN_USE or tries <= 0:
                    raise
                await asyncio.sleep(_DEAD_PAUSE_S)

    def _session(self, node: Node) -> Session:
        """The node's session. Raises AgentFault server_unreachable without one."""
        session = self._iscsi.session(node)
        if session is None:
            raise AgentFault.of(
                FaultCode.SERVER_UNREACHABLE, f"the session to {node.portal} ended at once", is_retryable=True
            )
        return session

    @asynccontextmanager
    async def _lock(self, node: Node) -> AsyncGenerator[None]:
        """No other backend comes to the node's session or leaves it meanwhile. Bounded: every step within has its deadline."""
        lock = self._nodes.setdefault((node.iqn, node.portal), asyncio.Lock())
        async with lock:
            yield


def refuse_wrong_disk(disk: Disk, space: Workspace) -> None:
    """Raises AgentFault wrong_device when the disk is not the one that was proven before."""
    known = LunMemory(space.dir).read().get("wwid", "")
    if known not in ("", disk.wwid):
        raise AgentFault.of(FaultCode.WRONG_DEVICE, f"the LUN is {disk.wwid}, but {known} was attached before")


def _lock_lv(words: Mapping[str, str]) -> str:
    """The device mapper's name of the LV with the locks of a shared VG; empty for any other VG."""
    return mapper_name(words["locked_vg"], LOCK_LV) if words.get("locked_vg") else ""


def _trial_iface(target: Target) -> str:
    # The last 12 digits of a UUIDv7 are random.
    return f"stowage-{target.backend_id[-12:]}"


@contextlib.contextmanager
def _quietly(target: Target) -> Generator[None]:
    try:
        yield
    except AgentFault as error:
        log.warning("could not detach", extra={"backend_id": target.backend_id, "code": str(error.fault.code)})
