"""LVs that are active on this host: for a worker as long as it needs one, or for a hypervisor until it is detached.

What is activated for a worker is noted on this host's disk before, so that what a kill leaves active is found again: a
volume of which another host has changed the metadata must not stay mapped here as it was. One for the process, for of two
copies that read one LV the first must not take it from the other.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from agent.drivers.base import Workers
from agent.errors import AgentFault
from agent.lv_commands import LvCommands, VolumeLv
from agent.lvm import THIN_POOL_LV, VolumeGroup, mapper_name
from agent.memory import Memory
from agent.scsi import Disks, Mapping, dm_uuid_of
from agent.volume_groups import Place
from schemas.faults import FaultCode

log = logging.getLogger(__name__)

DEV = "/dev"
#: Seconds for udev to make the name of a new mapping; LVM itself waits for it, so it is there at once as a rule.
NODE_TIMEOUT_S = 10.0
#: What the worker needs besides.
_START_S = 5.0
_OPENED_MEMORY = "opened-lvs"


@dataclass(frozen=True)
class FoundGroup:
    """A backend's VG as it was just found on its disk, known for ours."""

    place: Place
    group: VolumeGroup

    @property
    def device(self) -> str:
        return self.place.disk.device

    @property
    def name(self) -> str:
        return self.group.name

    def dm_uuid(self, lv_uuid: str) -> str:
        return dm_uuid_of(self.group.uuid, lv_uuid)


class LvMappings:
    """Activates and deactivates LVs of volumes. Asks LVM only of disks that answered just before."""

    def __init__(self, disks: Disks, commands: LvCommands, workers: Workers) -> None:
        self._disks = disks
        self._commands = commands
        self._workers = workers
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        #: By dm UUID: blocks of `held` that run.
        self._holders: dict[str, int] = {}

    def is_attached(self, at: FoundGroup, lv: VolumeLv) -> bool:
        """Whether it is mapped here by an attachment, and not only for a worker."""
        return self._find(at, lv.uuid) is not None and lv.uuid not in self._memory(at).read()

    @asynccontextmanager
    async def held(self, at: FoundGroup, lv: VolumeLv) -> AsyncGenerator[Mapping]:
        """The LV is active for as long as the block lasts, and stays so only where it is attached.

        Raises AgentFault in_use behind the block where a thin one stays active all the same: with it does the whole pool, which
        no other host may have meanwhile, so what was done here must not count as done.
        """
        dm_uuid = at.dm_uuid(lv.uuid)
        async with self._lock(dm_uuid):
            holders = self._holders.get(dm_uuid, 0)
            if self._find(at, lv.uuid) is None:
                self._note(at, lv.uuid)
            try:
                mapping = await self._bring_up(at, lv, is_refreshed=False)
                await self._check(at, lv, mapping, mapping.device)
            except AgentFault:
                if holders == 0:
                    await self._let_go(at, lv.uuid)
                raise
            self._holders[dm_uuid] = holders + 1
        is_inactive = True
        try:
            yield mapping
        finally:
            async with self._lock(dm_uuid):
                self._holders[dm_uuid] -= 1
                if self._holders[dm_uuid] == 0:
                    del self._holders[dm_uuid]
                    is_inactive = await self._let_go(at, lv.uuid)
        if lv.is_thin and not is_inactive:
            raise AgentFault.of(
                FaultCode.IN_USE,
                f"{at.name}/{lv.name} could not be deactivated after it was used",
                f"See who has it open, and run lvchange --activate n {at.name}/{lv.name} on this host",
            )

    async def keep(self, at: FoundGroup, lv: VolumeLv) -> str:
        """The LV is active until it is dropped, mapped as the metadata says now; the stable path of its device."""
        async with self._lock(at.dm_uuid(lv.uuid)):
            was_there = self._find(at, lv.uuid) is not None
            try:
                mapping = await self._bring_up(at, lv, is_refreshed=True)
                # The name dm-N is another LV's after the next boot, or sooner.
                path = f"{DEV}/mapper/{mapping.dm_name}"
                await self._check(at, lv, mapping, path)
            except AgentFault:
                if not was_there:
                    await self._end_quietly(at, lv.uuid)
                raise
            self._forget(at, lv.uuid)
            return path

    async def drop(self, at: FoundGroup, lv_uuid: str) -> None:
        """The LV is not active here. Raises AgentFault in_use while it is open, or held for a worker."""
        dm_uuid = at.dm_uuid(lv_uuid)
        async with self._lock(dm_uuid):
            if dm_uuid in self._holders:
                raise AgentFault.of(
                    FaultCode.IN_USE,
                    "the volume is being read or written by a copy on this host",
                    "Wait for the copy, or cancel it",
                    is_retryable=True,
                )
            await self._end(at, lv_uuid)
            self._forget(at, lv_uuid)

    async def sweep(self, at: FoundGroup) -> None:
        """What was active only for a worker of an agent that was killed is inactive, unless something else has opened it since."""
        for lv_uuid in self._memory(at).read():
            async with self._lock(at.dm_uuid(lv_uuid)):
                if at.dm_uuid(lv_uuid) not in self._holders:
                    await self._let_go(at, lv_uuid)

    async def remove(self, mapping: Mapping) -> None:
        """The mapping is gone, without a look at the disk below. Raises AgentFault in_use while it is open."""
        try:
            await self._commands.remove_mapping(mapping.dm_name)
        except AgentFault as error:
            # ENXIO of the device mapper: it went meanwhile.
            if error.fault.code is not FaultCode.LUN_NOT_FOUND:
                raise

    async def cut_off(self, mapping: Mapping) -> None:
        """Nothing of this host can write through the mapping any more: it is gone, or fails whoever has it open.

        Without LVM, which may hang on the disk, and which knows only what another host has made of the LV.
        """
        try:
            await self.remove(mapping)
        except AgentFault as error:
            if error.fault.code is not FaultCode.IN_USE:
                raise
            log.warning("open volume is cut off", extra={"dm_name": mapping.dm_name})
            await self._commands.fail_mapping(mapping.dm_name)
            await self._commands.remove_mapping_when_closed(mapping.dm_name)

    async def cut_off_pool(self, mappings: Iterable[Mapping], vg_name: str, lv_prefix: str) -> None:
        """The thin pool is not active here, unless another volume of it is. mappings: all of the VG; lv_prefix: of volumes' names.

        Its metadata fails first: what an active pool writes there when it goes would destroy that of the other host.
        """
        mapped = {each.dm_name: each for each in mappings}
        pool = mapper_name(vg_name, THIN_POOL_LV)
        parts = [name for name in (pool, f"{pool}-tpool", f"{pool}_tmeta", f"{pool}_tdata") if name in mapped]
        if not parts or any(name.startswith(mapper_name(vg_name, lv_prefix)) for name in mapped):
            return
        if f"{pool}_tmeta" in parts:
            await self._commands.fail_mapping(f"{pool}_tmeta")
        for name in parts:
            await self.cut_off(mapped[name])

    async def _bring_up(self, at: FoundGroup, lv: VolumeLv, *, is_refreshed: bool) -> Mapping:
        """is_refreshed: what is mapped already is made anew from the metadata, which another host may have changed."""
        dm_uuid = at.dm_uuid(lv.uuid)
        for dead in self._disks.dead_mappings(frozenset((at.group.uuid,))):
            if dead.dm_uuid == dm_uuid:
                # LVM would take the LV for active.
                await self.remove(dead)
        commands = self._for(at)
        is_there = self._find(at, lv.uuid) is not None
        if not is_there or at.group.lock_type:
            await commands.activate(at.device, at.name, lv.name)
        if is_there and is_refreshed:
            await commands.refresh(at.device, at.name, lv.name)
        mapping = self._find(at, lv.uuid)
        if mapping is None:
            raise AgentFault.of(
                FaultCode.IN_USE,
                f"{at.name}/{lv.name} is active on this host by another way than this backend's session",
                f"Run lvchange --activate n {at.name}/{lv.name} on this host",
                is_retryable=True,
            )
        return mapping

    async def _check(self, at: FoundGroup, lv: VolumeLv, mapping: Mapping, path: str) -> None:
        """The path leads to the mapping, which has the LV's size and lets I/O through."""
        node = await self._node(at, lv, mapping, path)
        if (node["size_bytes"], node["is_suspended"]) != (lv.size_bytes, False):
            await self._for(at).refresh(at.device, at.name, lv.name)
            node = await self._node(at, lv, mapping, path)
        if (node["size_bytes"], node["is_suspended"]) != (lv.size_bytes, False):
            raise AgentFault.of(
                FaultCode.WRONG_SIZE,
                f"{path} has {node['size_bytes']} bytes on this host, and {at.name}/{lv.name} has {lv.size_bytes}",
                f"Run lvchange --refresh {at.name}/{lv.name} on this host",
            )

    async def _node(self, at: FoundGroup, lv: VolumeLv, mapping: Mapping, path: str) -> dict[str, Any]:
        args = {"path": path, "dm_uuid": mapping.dm_uuid, "timeout_s": NODE_TIMEOUT_S}
        # A key of its own: it must not wait behind a copy.
        key = f"{at.place.target.backend_id}:{lv.name}/node"
        answer = await self._workers.run("wait_for_node", args, key=key, timeout_s=NODE_TIMEOUT_S + _START_S)
        if not answer["is_there"]:
            raise AgentFault.of(
                FaultCode.TIMED_OUT,
                f"{path} is not the device of {at.name}/{lv.name} {NODE_TIMEOUT_S:g} s after its activation",
                "Check that udev runs on this host",
                is_retryable=True,
            )
        return answer

    async def _let_go(self, at: FoundGroup, lv_uuid: str) -> bool:
        """Whether it is inactive, or attached; inactive if it was active only for workers. A failure is logged, and the next sweep
        tries again.
        """
        if lv_uuid not in self._memory(at).read():
            return True
        if not await self._end_quietly(at, lv_uuid):
            return False
        self._forget(at, lv_uuid)
        return True

    async def _end_quietly(self, at: FoundGroup, lv_uuid: str) -> bool:
        try:
            await self._end(at, lv_uuid)
        except AgentFault as error:
            log.warning("volume stays active", extra={"vg_name": at.name, "code": str(error.fault.code)})
            return False
        return True

    async def _end(self, at: FoundGroup, lv_uuid: str) -> None:
        if self._find(at, lv_uuid) is not None or at.group.lock_type:
            # The lock goes with the activation, also where that has ended already.
            await self._for(at).deactivate(at.device, lv_uuid)
        left = self._find(at, lv_uuid)
        if left is not None:
            # LVM finds nothing to deactivate where another host has removed the LV.
            await self.remove(left)

    def _find(self, at: FoundGroup, lv_uuid: str) -> Mapping | None:
        wanted = at.dm_uuid(lv_uuid)
        return next((each for each in self._disks.mappings(at.place.disk) if each.dm_uuid == wanted), None)

    def _for(self, at: FoundGroup) -> LvCommands:
        return self._commands.for_locks(at.group.lock_type)

    def _memory(self, at: FoundGroup) -> Memory:
        """UUIDs of LVs that are active only for workers, or are just about to be."""
        return Memory(at.place.space.dir, _OPENED_MEMORY)

    def _note(self, at: FoundGroup, lv_uuid: str) -> None:
        memory = self._memory(at)
        memory.write(**{**memory.read(), lv_uuid: "opened"})

    def _forget(self, at: FoundGroup, lv_uuid: str) -> None:
        memory = self._memory(at)
        words = memory.read()
        if words.pop(lv_uuid, None) is None:
            return
        if words:
            memory.write(**words)
        else:
            memory.forget()

    def _lock(self, dm_uuid: str) -> asyncio.Lock:
        """Bounded: every step within has its deadline."""
        return self._locks.setdefault(dm_uuid, asyncio.Lock())
