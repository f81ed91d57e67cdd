"""A backend that is a folder of a network file system: what nfs and smb have in common, which is all but their words.

Remembered in the workspace: how the present mount was made (the kernel shows only some of the options), and whether the
backend was ever attached here (then its marker must be there).
"""

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from agent.drivers.base import Commands, ProbeReport, Workers, Workspace
from agent.errors import AgentFault
from agent.file_volumes import FileVolumes
from agent.memory import Memory
from agent.mounts import MountPlan, Mounts, SecretFile
from agent.probes import PROBE_TIMEOUT_S, FolderProbes, OnMissing, unmounted, unreached
from schemas.agent_rpc import ReleaseReport
from schemas.backends import Capability
from schemas.command import Target
from schemas.faults import FaultCode

log = logging.getLogger(__name__)

_MEMORY = "mount"
_ATTACHED = "attached"
_HARDNESS = ("hard", "soft", "softerr")
#: A qcow2 volume can be cloned and frozen on any file system.
_CAPABILITIES = (Capability.EXTERNAL, Capability.CLONE_FROM_IMAGE, Capability.SNAPSHOT)


@dataclass(frozen=True)
class Place:
    """Where a backend's folder is: a mount and, below it, perhaps a sub-folder that must exist."""

    plan: MountPlan
    subdir: str = ""

    @property
    def shown_as(self) -> str:
        """What the operator knows the place by, for example 10.0.0.5:/tank/vms."""
        return f"{self.plan.source.rstrip('/')}/{self.subdir}".rstrip("/") if self.subdir else self.plan.source

    def below(self, mount_dir: Path) -> Path:
        return mount_dir / self.subdir.strip("/") if self.subdir else mount_dir


class MountedFolders:
    """The verbs of a driver for a place that is mounted. mounts: shared by all, so that a test may replace mountinfo."""

    def __init__(
        self,
        commands: Commands,
        workers: Workers,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
        mounts: Mounts | None = None,
    ) -> None:
        self._mounts = mounts or Mounts(commands)
        self._workers = workers
        self._probes = FolderProbes(workers, probe_timeout_s)

    async def attach(
        self, place: Place, target: Target, space: Workspace, secret: SecretFile | None, *, establish: bool
    ) -> ProbeReport:
        """See Driver.attach. Only the credentials changed and it is in use: the mount is kept, and the next mount takes the new ones."""
        on_missing = OnMissing.MAKE if establish else OnMissing.REFUSE
        is_new = await self._mount_if_needed(place, target, space, secret)
        try:
            report = await self._prove(place, target, space, on_missing)
        except AgentFault as error:
            if is_new or error.fault.code is not FaultCode.STALE_HANDLE:
                await self._unmount_if(is_new, space)
                raise
            # What the server gave us a handle of is no more; only a new mount asks for a new one.
            await self._mounts.unmount_idle(space.mount_dir)
            return await self.attach(place, target, space, secret, establish=establish)
        except BaseException:
            await self._unmount_if(is_new, space)
            raise
        Memory(space.dir, _ATTACHED).write(source=place.plan.source)
        return report

    async def renew(
        self, place: Place, target: Target, space: Workspace, secret: SecretFile | None, *, establish: bool
    ) -> ProbeReport:
        """What is mounted is mounted anew and proven. Raises AgentFault in_use where something uses it."""
        await self._mounts.unmount_idle(space.mount_dir)
        return await self.attach(place, target, space, secret, establish=establish)

    async def probe(self, place: Place, target: Target, space: Workspace) -> ProbeReport:
        """See Driver.probe."""
        present = self._mounts.at(space.mount_dir)
        if present is None or present.fstype not in place.plan.shown_fstypes:
            raise AgentFault.of(
                FaultCode.NOT_A_MOUNTPOINT,
                f"{place.plan.source} is not mounted on this host",
                "Wait: the agent mounts it again",
                is_retryable=True,
            )
        return await self._prove(place, target, space, OnMissing.REFUSE)

    async def release(self, place: Place, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        """See Driver.release. A place that is not mounted or does not answer keeps its marker, which the report says."""
        left: tuple[str, ...] = ()
        is_mounted = self._mounts.at(space.mount_dir) is not None
        was_attached = bool(Memory(space.dir, _ATTACHED).read())
        if remove_marker and not is_mounted and was_attached:
            left = (unmounted(place.shown_as),)
        if remove_marker and is_mounted:
            try:
                report = await self._probes.clear(
                    place.below(space.mount_dir), target, space, shown_as=place.shown_as, mount_root=space.mount_dir
                )
                left = report.left
            except AgentFault as error:
                log.warning("marker stays", extra={"place": place.shown_as, "code": str(error.fault.code)})
                left = (unreached(place.shown_as, error.fault.code),)
        was_lazy = await self._mounts.unmount_anyhow(space.mount_dir)
        for name in (_MEMORY, _ATTACHED):
            Memory(space.dir, name).forget()
        return ReleaseReport(left=left, was_lazy=was_lazy)

    async def trial(
        self, place: Place, target: Target, space: Workspace, secret: SecretFile | None, *own: str
    ) -> ProbeReport:
        """See Driver.trial. own: options by which the trial shares no connection or cache with the mount in use, and how it gives up.

        Soft, whatever the mount will be: nobody's disk is on it, and a server that dies beneath it must not keep the probe for ever.
        """
        await self.clean_trial(place, target, space)
        options = (*(option for option in place.plan.options if option not in (*_HARDNESS, *own)), "soft", *own)
        await self._mounts.mount(replace(place.plan, options=options), space.trial_dir, secret)
        # Once attached here, the place must bear the marker, also after a change of server; a preflight's has none yet.
        on_missing = OnMissing.REFUSE if Memory(space.dir, _ATTACHED).read() else OnMissing.IGNORE
        try:
            return await self._prove(place, target, space, on_missing, is_trial=True)
        finally:
            await self.clean_trial(place, target, space)

    async def clean_trial(self, place: Place, target: Target, space: Workspace) -> None:
        """See Driver.clean_trial. A server that does not answer may keep the probe's one file; the next trial removes it."""
        if self._mounts.at(space.trial_dir) is not None:
            with contextlib.suppress(AgentFault):
                await self._probes.clear_trial(place.below(space.trial_dir), target, space, mount_root=space.trial_dir)
        await self._mounts.unmount_anyhow(space.trial_dir)

    def volumes(self, place: Place, target: Target, space: Workspace, *, is_to_fence: bool) -> FileVolumes:
        """See Driver.volumes. Every verb of them finds out anew whether it is still mounted."""
        if not is_to_fence and not self.is_mounted(space):
            raise AgentFault.of(
                FaultCode.CONVERGING, f"{place.shown_as} is not attached on this host yet", is_retryable=True
            )
        return FileVolumes(
            self._workers, place.below(space.mount_dir), space.mount_dir, target, shown_as=place.shown_as
        )

    def is_mounted(self, space: Workspace) -> bool:
        """Whether anything is, by the kernel's word."""
        return self._mounts.at(space.mount_dir) is not None

    def is_attached(self, place: Place, target: Target, space: Workspace) -> bool:
        """The kernel shows the plan, and this very mount was made with all of its options and the wanted credentials."""
        present = self._mounts.at(space.mount_dir)
        return (
            present is not None
            and place.plan.mismatch(present) is None
            and Memory(space.dir, _MEMORY).read() == _words(place, target)
        )

    async def _unmount_if(self, is_new: bool, space: Workspace) -> None:
        if is_new:
            await self._mounts.unmount_anyhow(space.mount_dir)

    async def _mount_if_needed(self, place: Place, target: Target, space: Workspace, secret: SecretFile | None) -> bool:
        """Whether it was mounted by this call."""
        if self.is_attached(place, target, space):
            return False
        present = self._mounts.at(space.mount_dir)
        if present is not None:
            try:
                await self._mounts.unmount_idle(space.mount_dir)
            except AgentFault as error:
                words, wanted = Memory(space.dir, _MEMORY).read(), _words(place, target)
                only_credentials = {**words, "credential_version": wanted["credential_version"]} == wanted
                if error.fault.code is FaultCode.IN_USE and only_credentials and place.plan.mismatch(present) is None:
                    log.info("in use, new credentials wait for the next mount", extra={"source": place.plan.source})
                    return False
                raise
        Memory(space.dir, _MEMORY).write(**_words(place, target))
        await self._mounts.mount(place.plan, space.mount_dir, secret)
        return True

    async def _prove(
        self, place: Place, target: Target, space: Workspace, on_missing: OnMissing, *, is_trial: bool = False
    ) -> ProbeReport:
        mount_root = space.trial_dir if is_trial else space.mount_dir
        return await self._probes.prove(
            place.below(mount_root), target, space, _CAPABILITIES, on_missing,
            mount_root=mount_root, shown_as=place.shown_as, is_trial=is_trial,
        )  # fmt: skip


def _words(place: Place, target: Target) -> dict[str, str]:
    return {
        "source": place.plan.source,
        "options": ",".join(place.plan.options),
        "credential_version": str(target.credential_version),
    }
