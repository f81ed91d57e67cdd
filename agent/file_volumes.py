"""Volumes as files: `volumes/<locator>.<format>` in the folder of a backend, 0600, sparse.

What may hang or lie in the backend's folder is touched in workers alone (agent/file_jobs.py). A host needs no step of its own
to use a file, so attaching one only looks at it, and one writer is kept by the manager's epochs: what a fence takes away is
taken by killing who has the file open.
"""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.byte_copies import extent_args
from agent.drivers.base import Workers
from agent.errors import AgentFault
from agent.file_jobs import RESTORE
from agent.file_users import STOP_USER
from agent.jobs import MARKER_NAME
from agent.volumes import VOLUMES_FOLDER, Extent
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.volume_rpc import AttachedAt, AttachMode, FoundVolume, VolumeSpec, Wipe

log = logging.getLogger(__name__)

#: Seconds for one of the short verbs; below the 20 after which the manager gives a command up.
FILE_TIMEOUT_S = 15.0
#: The same for a look at what the file is, which comes before another of them; with it still below those 20.
_IDENTIFY_S = 3.0
#: Users that a fault names.
_MAX_NAMED = 3


class FileVolumes:
    """The volumes of one backend that is a folder; satisfies VolumeStore.

    folder: the backend's. mount_root: the mount that it must lie in, None where any folder will do. shown_as: what the
    operator knows the folder by.
    """

    def __init__(
        self,
        workers: Workers,
        folder: Path,
        mount_root: Path | None,
        target: Target,
        shown_as: str,
        timeout_s: float = FILE_TIMEOUT_S,
    ) -> None:
        self._workers = workers
        self._folder = folder
        self._mount_root = mount_root
        self._backend_id = target.backend_id
        self._marker = {"backend_id": target.backend_id, "fleet_id": target.fleet_id}
        self._shown_as = shown_as
        self._timeout_s = timeout_s

    async def make(self, spec: VolumeSpec, origin: VolumeSpec | None) -> bool:
        """See VolumeStore. Only a file of the same format shares blocks; anything else is left to be filled."""
        if origin is not None and origin.size_bytes > spec.size_bytes:
            detail = f"{self._shown(origin)} has {origin.size_bytes} bytes, and {spec.size_bytes} were asked for"
            raise AgentFault.of(FaultCode.WRONG_SIZE, detail)
        can_share = origin is not None and origin.format is spec.format
        source = extent_args(self._extent(origin)) if origin is not None and can_share else None
        answer = await self._run("make_volume_file", spec, origin=source)
        return bool(answer["is_filled"])

    @asynccontextmanager
    async def opened(self, spec: VolumeSpec, *, is_writable: bool) -> AsyncGenerator[Extent]:
        """See VolumeStore. Nothing is held: what writes to a file empties it first, and refuses one that another has open.

        To be read it must be whole, and nobody may write to it, for what is written late would be in no copy. Raises wrong_size,
        in_use.
        """
        if is_writable:
            await self._run("look_at_volume_file", spec, is_writable=True)
        else:
            await self._look(spec, is_source=True)
        yield self._extent(spec)

    async def settle(self, spec: VolumeSpec) -> None:
        """See VolumeStore."""
        self._refuse_other_size(spec, await self._run("settle_volume_file", spec))

    async def wipe(self, spec: VolumeSpec, wipe: Wipe, progress: Path) -> None:
        """See VolumeStore. Nothing to do: the file system gives nobody a block without having cleared it."""

    async def erase(self, spec: VolumeSpec) -> None:
        """See VolumeStore."""
        await self._run("erase_volume_file", spec)

    async def resize(self, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool) -> None:
        """See VolumeStore. Grows while a hypervisor has a raw file open, which must be told; a qcow2 it resizes itself (in_use)."""
        await self._run("resize_volume_file", spec, size_bytes=size_bytes, may_shrink=may_shrink)

    async def blank(self, spec: VolumeSpec, from_bytes: int, progress: Path) -> None:
        """Nothing to do: what is added to a file reads as zeros."""

    async def attach(self, spec: VolumeSpec, mode: AttachMode) -> AttachedAt:
        """See VolumeStore. Raises volume_missing, wrong_size. Mode ro is the hypervisor's to keep: the path is the same."""
        await self._look(spec, is_source=False)
        return AttachedAt(path=str(self._volumes / _name(spec)), type="file")

    async def detach(self, spec: VolumeSpec) -> None:
        """See VolumeStore. While the storage does not answer, who has it open by another name (a hard link) is not seen."""
        file = await self._identified(spec)
        answer = await self._users("find_file_users", spec, file, any_device=file is None)
        if answer["count"]:
            raise AgentFault.of(
                FaultCode.IN_USE,
                f"{self._shown(spec)} is open in {_named(answer)}",
                STOP_USER,
                is_retryable=True,
            )

    async def fence_off(self, spec: VolumeSpec) -> None:
        """See VolumeStore. Raises in_use where one of them does not die, for it waits for storage that is dead.

        Those who have it open under its name are killed first: nothing waits for the storage before that.
        """
        await self._users("kill_file_users", spec, None, any_device=False)
        file = await self._identified(spec)
        answer = await self._users("kill_file_users", spec, file, any_device=file is None)
        if answer["count"]:
            raise AgentFault.of(
                FaultCode.IN_USE,
                f"{self._shown(spec)} is still open for writing in {_named(answer)}",
                "A process was killed, and waits for the storage as a rule: a restart of this host ends it. End a loop device by hand"
                " (losetup --detach)",
                is_retryable=True,
            )

    async def list(self) -> tuple[FoundVolume, ...]:
        """See VolumeStore. Sizes of ours are what a VM sees, by length or header."""
        found: list[FoundVolume] = []
        after, is_whole = "", False
        while not is_whole:
            args = {
                "folder": str(self._volumes),
                "mount_root": str(self._mount_root or ""),
                "marker_name": MARKER_NAME,
                "marker": self._marker,
                "after": after,
            }
            answer = await self._call("list_volume_files", args, f"{self._backend_id}:{VOLUMES_FOLDER}")
            items, is_whole = answer["items"], bool(answer["is_whole"])
            found += [_found(*item) for item in items]
            after = items[-1][0] if items else ""
        return tuple(sorted(found, key=lambda volume: volume.name))

    @property
    def _volumes(self) -> Path:
        return self._folder / VOLUMES_FOLDER

    def _extent(self, spec: VolumeSpec) -> Extent:
        return Extent(
            folder=self._volumes,
            name=_name(spec),
            format=spec.format,
            size_bytes=spec.size_bytes,
            mount_root=str(self._mount_root or ""),
        )

    def _shown(self, spec: VolumeSpec) -> str:
        return f"{self._shown_as}/{VOLUMES_FOLDER}/{_name(spec)}"

    def _refuse_other_size(self, spec: VolumeSpec, answer: Mapping[str, Any]) -> None:
        if answer["size_bytes"] != spec.size_bytes:
            detail = f"{self._shown(spec)} has {answer['size_bytes']} bytes, and {spec.size_bytes} is its size"
            raise AgentFault.of(FaultCode.WRONG_SIZE, detail, RESTORE)

    async def _look(self, spec: VolumeSpec, *, is_source: bool) -> None:
        """It is whole and has its size; of a source, nobody writes to it."""
        try:
            answer = await self._run("look_at_volume_file", spec, is_writable=False, is_source=is_source)
        except AgentFault as error:
            if error.fault.code is not FaultCode.WRONG_SIZE:
                raise
            raise AgentFault.of(FaultCode.WRONG_SIZE, error.fault.detail, RESTORE) from error.__cause__
        self._refuse_other_size(spec, answer)

    async def _identified(self, spec: VolumeSpec) -> tuple[int, int] | None:
        """What its file is, by device and inode. None where it is not there, and where the storage does not say so soon: a fence
        must fall, and what has ended be detached, though the server is dead. Raises foreign_data (file_jobs.identify_volume_file).
        """
        args = {"extent": extent_args(self._extent(spec))}
        # A key of its own: a copy that is under way must not keep it waiting.
        key = f"{self._backend_id}:{spec.locator}:file"
        try:
            answer = await self._call("identify_volume_file", args, key, timeout_s=min(self._timeout_s, _IDENTIFY_S))
        except AgentFault as error:
            if error.fault.code is FaultCode.FOREIGN_DATA:
                raise
            facts = {"locator": spec.locator, "code": error.fault.code.value, "detail": error.fault.detail}
            log.warning("users are looked for by the file's name alone", extra=facts)
            return None
        file = answer["file"]
        return (int(file[0]), int(file[1])) if file else None

    async def _users(
        self, job: str, spec: VolumeSpec, file: tuple[int, int] | None, *, any_device: bool
    ) -> dict[str, Any]:
        # A key of its own: what hangs on the storage must not keep a fence from falling.
        args = {"extent": extent_args(self._extent(spec)), "file": file, "any_device": any_device}
        return await self._call(job, args, f"{self._backend_id}:{spec.locator}:users")

    async def _run(self, job: str, spec: VolumeSpec, **more: Any) -> dict[str, Any]:
        args = {
            "extent": extent_args(self._extent(spec)),
            "marker_name": MARKER_NAME,
            "marker": self._marker,
            **more,
        }
        return await self._call(job, args, f"{self._backend_id}:{spec.locator}")

    async def _call(
        self, job: str, args: Mapping[str, Any], key: str, timeout_s: float | None = None
    ) -> dict[str, Any]:
        try:
            return await self._workers.run(job, args, key=key, timeout_s=timeout_s or self._timeout_s)
        except AgentFault as error:
            # The folder as the operator knows it: nobody looks for a path of ours.
            detail, remedy = (
                text.replace(str(self._folder), self._shown_as) for text in (error.fault.detail, error.fault.remedy)
            )
            shown = AgentFault(replace(error.fault, detail=detail, remedy=remedy), is_retryable=error.is_retryable)
            raise shown from error.__cause__


def _name(spec: VolumeSpec) -> str:
    return f"{spec.locator}.{spec.format}"


def _named(answer: Mapping[str, Any]) -> str:
    """The users of a file as a fault names them."""
    users = [f"{command} ({pid})" if pid else str(command) for pid, command, _ in answer["users"][:_MAX_NAMED]]
    more = answer["count"] - len(users)
    return ", ".join(users) + (f" and {more} more" if more > 0 else "")


def _found(name: str, size_bytes: int, allocated_bytes: int, is_ours: bool) -> FoundVolume:
    locator, _, suffix = name.partition(".")
    # A name may be any bytes but a message is text.
    shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return FoundVolume(
        name=shown,
        locator=locator if is_ours else "",
        format=suffix if is_ours else "",
        size_bytes=size_bytes,
        allocated_bytes=allocated_bytes,
    )
