"""Files that a new volume's content comes from: found on this host or fetched to it, and looked into before anything is copied."""

import asyncio
import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from msgspec.structs import replace

from agent.config import StateDir
from agent.download_jobs import IMAGE_SUFFIX, PART_SUFFIX, UPLOAD_SUFFIX, shown_url
from agent.drivers.base import Workers
from agent.errors import AgentFault
from agent.job_io import JobFault
from agent.volumes import Extent
from schemas.faults import FaultCode
from schemas.volume_rpc import FileSource, PathSource, UploadSource, UrlSource

#: Bytes that a download leaves free where the agent's own files are: without room there, the agent can do nothing any more.
RESERVE_BYTES = 256 * 1024 * 1024
#: Seconds; a few lookups of names, perhaps on a mount.
_LOCATE_S = 30.0
#: No deadline of its own: what stops moving is ended by works.py.
_UNHURRIED_S = 7 * 86_400.0
#: Digested files that are remembered; of what is forgotten the digest is taken once more.
_MAX_REMEMBERED = 1000


class Sources:
    """image_dirs: folders of this host whose files may be read as images."""

    def __init__(self, *, workers: Workers, state: StateDir, image_dirs: tuple[str, ...]) -> None:
        self._workers = workers
        self._downloads = state.downloads
        self._image_dirs = image_dirs
        #: volume id -> (a sha256, the identity that the file had while it was found to have that digest)
        self._digested: dict[str, tuple[str, tuple[int, ...]]] = {}

    async def prepare(self, volume_id: str, source: FileSource, progress: Path) -> int:
        """The source can be read here, has its digest, if one is given, and stands alone; its size as a VM would see it (bytes).

        Raises AgentFault: source_unreadable, wrong_digest, backing_file; then nothing of what was fetched or sent is left.
        """
        try:
            with self.named(volume_id, source):
                return (await self._inspected(volume_id, source, progress)).size_bytes
        except AgentFault:
            await self.forget(volume_id)
            raise

    async def extent(self, volume_id: str, source: FileSource, progress: Path) -> Extent:
        """Where the source's bytes are, and which file they must be read from: the one that has the digest. Looked into once more, for a
        file of others may have become another since `prepare`. What is the same is not digested twice, which a copy can't afford.

        Raises AgentFault as `prepare`.
        """
        with self.named(volume_id, source):
            return await self._inspected(volume_id, source, progress)

    @contextlib.contextmanager
    def named(self, volume_id: str, source: FileSource) -> Generator[None]:
        """A fault in the block names the source as its giver knows it, and no file of the agent's own."""
        try:
            yield
        except AgentFault as error:
            known_as = _known_as(source)
            if not known_as:
                raise
            detail, remedy = error.fault.detail, error.fault.remedy
            for suffix in (IMAGE_SUFFIX, PART_SUFFIX, UPLOAD_SUFFIX):
                ours = f"{self._downloads}/{volume_id}{suffix}"
                detail, remedy = detail.replace(ours, known_as), remedy.replace(ours, known_as)
            shown = AgentFault(replace(error.fault, detail=detail, remedy=remedy), is_retryable=error.is_retryable)
            raise shown from error.__cause__

    async def forget(self, volume_id: str) -> None:
        """What was fetched or sent for the volume is gone."""
        self._digested.pop(volume_id, None)
        for suffix in (IMAGE_SUFFIX, PART_SUFFIX, UPLOAD_SUFFIX):
            # In a thread: to unlink a file of many GB takes a while, and it lies on the host's own disk.
            await asyncio.to_thread((self._downloads / f"{volume_id}{suffix}").unlink, missing_ok=True)

    async def _place(self, volume_id: str, source: FileSource, progress: Path) -> tuple[str, str]:
        """Folder and name of a file that is there; of a URL, fetched unless it was before."""
        match source:
            case PathSource(path=path):
                return await self._locate(volume_id, path)
            case UrlSource(url=url, sha256=sha256):
                args = {
                    "url": url,
                    "sha256": sha256,
                    "folder": str(self._downloads),
                    "name": volume_id,
                    "reserve_bytes": RESERVE_BYTES,
                    "progress": str(progress),
                }
                await self._workers.run("download", args, key=_job_key(volume_id), timeout_s=_UNHURRIED_S)
                return str(self._downloads), f"{volume_id}{IMAGE_SUFFIX}"
            case UploadSource(size_bytes=size_bytes):
                await asyncio.to_thread(_take_upload, self._downloads, volume_id, size_bytes)
                return str(self._downloads), f"{volume_id}{IMAGE_SUFFIX}"

    async def _locate(self, volume_id: str, path: str) -> tuple[str, str]:
        args = {"path": path, "dirs": list(self._image_dirs)}
        try:
            found = await self._workers.run("locate_image", args, key=_job_key(volume_id), timeout_s=_LOCATE_S)
        except AgentFault as error:
            if error.fault.code is not FaultCode.SOURCE_UNREADABLE:
                raise
            raise AgentFault.of(FaultCode.SOURCE_UNREADABLE, error.fault.detail, self._remedy()) from error
        return str(found["folder"]), str(found["name"])

    def _remedy(self) -> str:
        how = "image_dirs in its agent.toml, or --images of `stowage-agent run`"
        if not self._image_dirs:
            return f"This host has no image folder; name one: {how}"
        return f"Put the file into one of this host's image folders ({', '.join(self._image_dirs)}), or name another: {how}"

    async def _inspected(self, volume_id: str, source: FileSource, progress: Path) -> Extent:
        folder, name = await self._place(volume_id, source, progress)
        # What leads to our own folder is this host's to choose; to a file of others no link does once it was located.
        is_resolved = isinstance(source, PathSource)
        sha256, identity = self._digested.get(volume_id, ("", ()))
        args = {
            "folder": folder,
            "name": name,
            "is_resolved": is_resolved,
            "format": source.format.value,
            "sha256": source.sha256,
            "digested": list(identity) if sha256 == source.sha256 else [],
            "progress": str(progress),
        }
        found = await self._workers.run("inspect_image", args, key=_job_key(volume_id), timeout_s=_UNHURRIED_S)
        identity = tuple(int(number) for number in found["identity"])
        self._remember(volume_id, source.sha256, identity)
        return Extent(
            folder=Path(folder),
            name=name,
            format=source.format,
            size_bytes=int(found["size_bytes"]),
            identity=identity,
            is_resolved=is_resolved,
        )

    def _remember(self, volume_id: str, sha256: str, identity: tuple[int, ...]) -> None:
        self._digested.pop(volume_id, None)
        self._digested[volume_id] = (sha256, identity)
        if len(self._digested) > _MAX_REMEMBERED:
            del self._digested[next(iter(self._digested))]


def _known_as(source: FileSource) -> str:
    """Empty for a path of this host, which is shown as it is."""
    match source:
        case UrlSource(url=url):
            try:
                return f"the image from {shown_url(url)}"
            except JobFault:
                return "the image"
        case UploadSource():
            return "the uploaded image"
        case PathSource():
            return ""


def _take_upload(folder: Path, volume_id: str, size_bytes: int) -> None:
    """What was sent is the image from now on, which no sweep takes for one that was given up (uploads.py)."""
    image = folder / f"{volume_id}{IMAGE_SUFFIX}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder / f"{volume_id}{UPLOAD_SUFFIX}", image)
    try:
        found_bytes = image.lstat().st_size
    except FileNotFoundError:
        raise AgentFault.of(
            FaultCode.SOURCE_UNREADABLE, "what was uploaded is not on this host any more", "Upload the image once more"
        ) from None
    if found_bytes != size_bytes:
        raise AgentFault.of(
            FaultCode.SOURCE_UNREADABLE, f"{size_bytes} bytes were uploaded, and this host has {found_bytes} of them"
        )


def _job_key(volume_id: str) -> str:
    return f"{volume_id}:source"
