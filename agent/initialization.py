"""A VG of ours made on a LUN: what lies there is judged, judged again, and overwritten only in the command's own time.

There is no lock on a LUN between hosts. A host that stands still between its look and its write goes on whenever it is let, and
the manager may meanwhile have had the LUN initialized by another. So the deadline counts the time in which nothing runs, and is
looked at before each tool that overwrites; a tool that has begun is killed at it.
"""

from agent import markers
from agent.drivers.base import Deadline
from agent.errors import AgentFault
from agent.lun_content import LunContents, remedy_for, shown
from agent.lvm import Lvm, VolumeGroup
from agent.scsi import Disks
from agent.volume_groups import Place
from schemas.faults import FaultCode


class Initialization:
    """Makes VGs on LUNs."""

    def __init__(self, lvm: Lvm, disks: Disks, contents: LunContents) -> None:
        self._lvm = lvm
        self._disks = disks
        self._contents = contents

    async def refuse_marked(self, place: Place) -> None:
        """Raises AgentFault marker_mismatch, with the other backend's id, where a VG on the disk bears its tags."""
        _refuse_marked(await self._lvm.volume_groups(place.disk.device), place)

    async def create(self, place: Place, *, force: bool, deadline: Deadline) -> None:
        """Our VG is on the disk. Made by an earlier try: done.

        Raises AgentFault foreign_data or in_use rather than overwrite, and timed_out past the deadline.
        """
        device = place.disk.device
        groups = await self._lvm.volume_groups(device)
        _refuse_marked(groups, place)
        if any(
            group.name == place.config.vg_name and markers.read_tags(group.tags, place.target)["marker"] == "ours"
            for group in groups
        ):
            return
        content = await self._contents.read(place.disk, place.key)
        if not content.is_blank and not force:
            raise AgentFault.of(
                FaultCode.FOREIGN_DATA,
                f"{place} ({place.disk.wwid}) {shown(content)}",
                remedy_for(content, place.config.vg_name),
            )
        await self._disks.refuse_used_lun(place.disk, place.key)
        groups_now, content_now = (
            await self._lvm.volume_groups(device),
            await self._contents.read(place.disk, place.key),
        )
        if (groups_now, content_now) != (groups, content):
            raise AgentFault.of(
                FaultCode.FOREIGN_DATA,
                f"{place} ({place.disk.wwid}) {shown(content_now)}, and was otherwise a moment before: somebody writes to it",
                "Inspect the device again; nothing was written to it",
            )
        place.memory.add(marked="yes")
        if content.signatures:
            await self._lvm.wipe(device, deadline)
        await self._lvm.create_group(device, place.config.vg_name, markers.tags_for(place.target), deadline)


def _refuse_marked(groups: tuple[VolumeGroup, ...], place: Place) -> None:
    for group in groups:
        markers.refuse_other(
            markers.read_tags(group.tags, place.target),
            place.target,
            f"volume group {group.name} on {place}",
            clear_with="remove its stowage tags with vgchange --deltag",
        )
