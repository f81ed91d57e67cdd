"""local_file: a folder of this host, made when it is missing, proven by writing.

Each host has a folder of its own, so each host makes its own marker the first time that it attaches the backend; from then
on a missing marker is a fault here as with every kind (a disk that is not mounted, a folder that somebody replaced).
root_dir may be a symbolic link: it is resolved at the first attach and the resolved path is kept, so that turning the link
later moves nothing; what it resolves to must not be a folder of the system or of the agent.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.configs import decode_config, held_config, refuse_verb
from agent.drivers.base import Deadline, ProbeReport, Workers, Workspace
from agent.errors import AgentFault
from agent.file_volumes import FileVolumes
from agent.jobs import MARKER_NAME
from agent.memory import Memory
from agent.probes import PROBE_TIMEOUT_S, FolderProbes, OnMissing, job_key, unreached
from agent.reach import failed_check
from schemas.agent_rpc import Check, Discovered, Inspection, ReleaseReport
from schemas.backends import Capability
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.kinds import LOCAL_FILE, LocalFileConfig

log = logging.getLogger(__name__)

#: Nobody keeps VM disks there, and a marker or an image in them may stop a host from booting.
_SYSTEM_DIRS = tuple(map(Path, ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")))
#: A qcow2 volume can be frozen on any file system, so both always hold; reflinks only make them cheaper.
_CAPABILITIES = (Capability.CLONE_FROM_IMAGE, Capability.SNAPSHOT)
_MEMORY = "local_file"
_TRIAL_MEMORY = "local_file-trial"


class LocalFile:
    """The driver of local_file. Remembers, beside the workspace's other files, the resolved path and whether we made it."""

    def __init__(self, workers: Workers, probe_timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._workers = workers
        self._timeout_s = probe_timeout_s
        self._probes = FolderProbes(workers, probe_timeout_s)
        #: Held while a folder is claimed, made or removed: of two backends that want the same one, or one in the other, the
        #: later finds it marked. Every step within ends by a worker's deadline.
        self._claims = asyncio.Lock()

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        config = decode_config(LOCAL_FILE, LocalFileConfig, target)
        async with contextlib.nullcontext() if _is_attached(space) else self._claims:
            return await self._attach(config, target, space, establish=establish)

    async def _attach(
        self, config: LocalFileConfig, target: Target, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        memory = Memory(space.dir, _MEMORY)
        remembered = memory.read()
        was_attached = remembered.get("attached") == "yes"
        folder, exists = await self._resolve(
            remembered.get("root_dir", config.root_dir), config, target, space, is_trial=False
        )
        if not exists and was_attached and not establish:
            raise AgentFault.of(
                FaultCode.PATH_NOT_FOUND,
                f"{folder} was there and is gone",
                "Mount or restore the folder on this host; it is not made anew",
            )
        made = remembered.get("made", "no")
        try:
            if not exists:
                made = "yes"
                memory.write(root_dir=str(folder), made=made, attached="no")
                if not (await self._run("make_dir", folder, target))["is_made"]:
                    # Another agent of this machine was faster, so the folder is its to remove.
                    made = "no"
            on_missing = OnMissing.REFUSE if was_attached and not establish else OnMissing.MAKE
            report = await self._probes.prove(folder, target, space, _CAPABILITIES, on_missing)
        except BaseException:
            if not exists and made == "yes":
                await self._clear_made(folder, target, space, memory)
            raise
        memory.write(root_dir=str(folder), made=made, attached="yes")
        return report

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        config = decode_config(LOCAL_FILE, LocalFileConfig, target)
        folder = _attached_folder(config, space)
        if config.require_mountpoint:
            await self._resolve(str(folder), config, target, space, is_trial=False)
        return await self._probes.prove(folder, target, space, _CAPABILITIES, OnMissing.REFUSE)

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        async with self._claims:
            return await self._release(target, space, remove_marker=remove_marker)

    async def _release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        memory = Memory(space.dir, _MEMORY)
        remembered = memory.read()
        if not remove_marker:
            memory.forget()
            return ReleaseReport()
        root_dir = remembered.get("root_dir") or held_config(LocalFileConfig, target).root_dir
        try:
            report = await self._probes.clear(
                Path(root_dir),
                target,
                space,
                shown_as=root_dir,
                is_own_folder=remembered.get("made") == "yes",
                was_attached=remembered.get("attached") == "yes",
            )
        except AgentFault as error:
            # A disk that is dead must not be held for ever: nothing of it is in the kernel, only our marker is on it.
            log.warning("marker stays", extra={"root_dir": root_dir, "code": str(error.fault.code)})
            report = ReleaseReport(left=(unreached(root_dir, error.fault.code),))
        memory.forget()
        return report

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        config = decode_config(LOCAL_FILE, LocalFileConfig, target)
        async with self._claims:
            return await self._trial(config, target, space)

    async def _trial(self, config: LocalFileConfig, target: Target, space: Workspace) -> ProbeReport:
        await self._clean_trial(target, space)
        remembered = Memory(space.dir, _MEMORY).read()
        folder, exists = await self._resolve(
            remembered.get("root_dir", config.root_dir), config, target, space, is_trial=True
        )
        if not exists:
            Memory(space.dir, _TRIAL_MEMORY).write(root_dir=str(folder))
            await self._run("make_dir", folder, target, is_trial=True)
        # What was attached here before must still bear its marker; a preflight's place has none yet.
        on_missing = OnMissing.REFUSE if remembered.get("attached") == "yes" else OnMissing.IGNORE
        try:
            return await self._probes.prove(folder, target, space, _CAPABILITIES, on_missing, is_trial=True)
        finally:
            await self._clean_trial(target, space)

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        async with self._claims:
            await self._clean_trial(target, space)

    async def _clean_trial(self, target: Target, space: Workspace) -> None:
        memory = Memory(space.dir, _TRIAL_MEMORY)
        folder = memory.read().get("root_dir")
        if folder is None:
            return
        await self._probes.clear_trial(Path(folder), target, space, is_own_folder=True)
        memory.forget()

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        """Whether its folder is where it was attached, and a mount point if it has to be."""
        config = held_config(LocalFileConfig, target)
        remembered = Memory(space.dir, _MEMORY).read()
        if remembered.get("attached") != "yes":
            return False
        found = await self._run("look_at_dir", Path(remembered["root_dir"]), target)
        return bool(found["exists"]) and (bool(found["is_mountpoint"]) or not config.require_mountpoint)

    async def checks(self, target: Target) -> tuple[Check, ...]:
        config = decode_config(LOCAL_FILE, LocalFileConfig, target)
        try:
            _refuse_system_dir(Path(config.root_dir), ())
            found = await self._run("look_at_dir", Path(config.root_dir), target, is_trial=True)
            _refuse_system_dir(Path(found["path"]), ())
            _refuse_unmounted(config, found)
        except AgentFault as error:
            return (failed_check("folder", error.fault),)
        return (
            Check(
                name="folder", is_ok=True, detail=f"{found['path']} {'exists' if found['exists'] else 'can be made'}"
            ),
        )

    async def discover(
        self, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> tuple[Discovered, ...]:
        raise refuse_verb(LOCAL_FILE, "discovery")

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        raise refuse_verb(LOCAL_FILE, "inspection")

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
        raise refuse_verb(LOCAL_FILE, "initialization")

    def volumes(self, target: Target, space: Workspace, *, is_to_fence: bool = False) -> FileVolumes:
        config = held_config(LocalFileConfig, target)
        folder = _last_folder(config, space) if is_to_fence else _attached_folder(config, space)
        return FileVolumes(self._workers, folder, None, target, shown_as=str(folder))

    async def _resolve(
        self, root_dir: str, config: LocalFileConfig, target: Target, space: Workspace, *, is_trial: bool
    ) -> tuple[Path, bool]:
        """The folder with links resolved, and whether it exists; refuses what must not be used."""
        # Before links are resolved too: below /proc they lead to wherever the process that looks happens to be.
        _refuse_system_dir(Path(root_dir), ())
        found = await self._run("look_at_dir", Path(root_dir), target, is_trial=is_trial)
        folder = Path(found["path"])
        _refuse_system_dir(folder, space.reserved)
        _refuse_unmounted(config, found)
        if not _is_attached(space):
            _refuse_nested(folder, found["inside"], space)
        return folder, bool(found["exists"])

    async def _clear_made(self, folder: Path, target: Target, space: Workspace, memory: Memory) -> None:
        """After a failed attach: the folder that it made goes. If even that fails, the memory stays and release does it."""
        with contextlib.suppress(AgentFault):
            await self._probes.clear(folder, target, space, shown_as=str(folder), is_own_folder=True)
            memory.forget()

    async def _run(self, job: str, folder: Path, target: Target, *, is_trial: bool = False) -> dict[str, Any]:
        return await self._workers.run(
            job, {"dir": str(folder)}, key=job_key(target, is_trial=is_trial), timeout_s=self._timeout_s
        )


def _attached_folder(config: LocalFileConfig, space: Workspace) -> Path:
    """The folder that was resolved when it was attached. Raises AgentFault converging: it is not."""
    remembered = Memory(space.dir, _MEMORY).read()
    if remembered.get("attached") != "yes":
        raise AgentFault.of(
            FaultCode.CONVERGING, f"{config.root_dir} is not attached on this host yet", is_retryable=True
        )
    return Path(remembered["root_dir"])


def _last_folder(config: LocalFileConfig, space: Workspace) -> Path:
    """The folder that was resolved when it was attached, whether it is attached now or not."""
    return Path(Memory(space.dir, _MEMORY).read().get("root_dir") or config.root_dir)


def _is_attached(space: Workspace) -> bool:
    return Memory(space.dir, _MEMORY).read().get("attached") == "yes"


def _refuse_system_dir(folder: Path, reserved: tuple[Path, ...]) -> None:
    """Raises AgentFault permission_denied for / and for a folder of the system, of the agent or of its neighbours."""
    if folder == Path("/") or any(folder.is_relative_to(system) for system in _SYSTEM_DIRS):
        raise AgentFault.of(
            FaultCode.PERMISSION_DENIED,
            f"{folder} is a folder of the system",
            "Choose a folder for data, for example /var/lib/vms",
        )
    own = next((own for own in reserved if folder.is_relative_to(own) or own.is_relative_to(folder)), None)
    if own is not None:
        raise AgentFault.of(
            FaultCode.PERMISSION_DENIED,
            f"{folder} {'lies in' if folder.is_relative_to(own) else 'is around'} {own}, which is Stowage's own",
            "Choose a folder apart from Stowage's own",
        )


def _refuse_nested(folder: Path, marked_above: str, space: Workspace) -> None:
    """Raises AgentFault marker_mismatch for a folder in or around another backend's: each would take the other for its data."""
    remedy = "Choose a folder that neither lies in another backend's folder nor holds one"
    if marked_above:
        raise AgentFault.of(
            FaultCode.MARKER_MISMATCH,
            f"{folder} lies in {marked_above}, which belongs to a backend",
            f"{remedy}; if that backend is gone, delete {marked_above}/{MARKER_NAME}",
        )
    for other in sorted(space.dir.parent.iterdir()):
        root_dir = Memory(other, _MEMORY).read().get("root_dir", "")
        if other != space.dir and root_dir and folder in Path(root_dir).parents:
            raise AgentFault.of(
                FaultCode.MARKER_MISMATCH,
                f"{folder} is around {root_dir}, which belongs to backend {other.name}",
                remedy,
            )


def _refuse_unmounted(config: LocalFileConfig, found: Mapping[str, Any]) -> None:
    if config.require_mountpoint and not found["is_mountpoint"]:
        raise AgentFault.of(FaultCode.NOT_A_MOUNTPOINT, f"nothing is mounted at {found['path']}")
