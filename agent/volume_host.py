"""The verbs about volumes: schemas/volume_rpc.py over the stores of the drivers (volumes.py).

Short verbs run under the backend's lock, which their caller (rpc.py) holds. Long ones are works (works.py) and hold no lock: for
hours, no probe could come between. What ends them is the fence of whoever comes after, and `erase`.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import assert_never

import msgspec

from agent import byte_copies
from agent.drivers.base import Deadline, Workers
from agent.errors import AgentFault
from agent.held_volumes import HeldVolumes
from agent.host import Host
from agent.sources import Sources
from agent.uploads import Uploads
from agent.volumes import Extent
from agent.works import Begin, Works
from schemas.faults import FaultCode
from schemas.volume_rpc import (
    AnyVolumeCommand,
    AttachVolume,
    BeginUpload,
    BlankVolume,
    CompareVolume,
    DetachVolume,
    EndUpload,
    EraseVolume,
    FileSource,
    FillVolume,
    ForgetUpload,
    FoundVolume,
    ListVolumes,
    Made,
    MakeVolume,
    PrepareSource,
    ReceiveChunk,
    ResizeVolume,
    UrlSource,
    VolumeListing,
    VolumeSource,
    VolumeSpec,
    WipeVolume,
    WorkReport,
)

#: Seconds of a command's time that are left for its answer to arrive.
_ANSWER_S = 1.0
#: Bytes of one listing; with what is around it below agent_rpc.MAX_MESSAGE_BYTES.
MAX_LISTING_BYTES = 200_000

LongCommand = PrepareSource | FillVolume | CompareVolume | WipeVolume | BlankVolume


class VolumeHost:
    """See the module. Every verb raises AgentFault and can be repeated."""

    def __init__(
        self,
        *,
        host: Host,
        works: Works,
        workers: Workers,
        sources: Sources,
        uploads: Uploads,
        held: HeldVolumes,
    ) -> None:
        self._host = host
        self._works = works
        self._workers = workers
        self._sources = sources
        self._uploads = uploads
        self._held = held

    async def handle(self, command: AnyVolumeCommand, deadline: Deadline) -> object:
        """The command's result, as schemas/volume_rpc.py says it. deadline: a long one answers before it, ended or not."""
        match command:
            case MakeVolume():
                return await self._make(command)
            case PrepareSource():
                return await self._look(command, deadline, lambda progress: self._prepare(command, progress))
            case FillVolume():
                return await self._look(command, deadline, lambda progress: self._fill(command, progress))
            case CompareVolume():
                return await self._look(command, deadline, lambda progress: self._compare(command, progress))
            case WipeVolume():
                return await self._look(command, deadline, lambda progress: self._wipe(command, progress))
            case BlankVolume():
                return await self._look(command, deadline, lambda progress: self._blank(command, progress))
            case EraseVolume():
                await self._erase(command)
            case ResizeVolume():
                await self._resize(command)
            case AttachVolume():
                return await self._held.attach(command)
            case DetachVolume():
                await self._held.detach(command)
            case ListVolumes(backend_id=backend_id, after=after):
                return page(await self._host.volumes(backend_id).list(), after)
            case BeginUpload(volume_id=volume_id, size_bytes=size_bytes):
                await self._uploads.begin(volume_id, size_bytes)
            case ReceiveChunk(volume_id=volume_id, offset=offset, content=content):
                await self._uploads.receive(volume_id, offset, content)
            case EndUpload(volume_id=volume_id, size_bytes=size_bytes):
                await self._uploads.end(volume_id, size_bytes)
            case ForgetUpload(volume_id=volume_id):
                await self._sources.forget(volume_id)
            case _:
                assert_never(command)
        return None

    async def _make(self, command: MakeVolume) -> Made:
        # What an earlier life of this incarnation was filled with is over.
        await self._works.cancel(_works_of(command.backend_id, command.spec))
        store = self._host.volumes(command.backend_id)
        is_filled = await store.make(command.spec, command.origin)
        if command.is_instant and not is_filled:
            await store.erase(command.spec)
            raise AgentFault.of(
                FaultCode.UNSUPPORTED, "this storage cannot freeze or clone it at once while it is in use"
            )
        return Made(is_filled=is_filled)

    async def _erase(self, command: EraseVolume) -> None:
        await self._works.cancel(_works_of(command.backend_id, command.spec))
        await self._works.cancel(_works_before(command.volume_id))
        await self._host.volumes(command.backend_id).erase(command.spec)
        self._held.drop(command.volume_id, command.spec)
        await self._sources.forget(command.volume_id)

    async def _resize(self, command: ResizeVolume) -> None:
        # What blanks it by an earlier command's word must not go on by it.
        await self._works.cancel(_works_of(command.backend_id, command.spec))
        store = self._host.volumes(command.backend_id)
        await store.resize(command.spec, command.size_bytes, may_shrink=command.may_shrink)
        resized = msgspec.structs.replace(command.spec, size_bytes=command.size_bytes)
        self._held.note_size(command.volume_id, resized)

    async def _look(self, command: LongCommand, deadline: Deadline, begin: Begin) -> WorkReport:
        wait_s = min(command.wait_ms / 1000, deadline.left_s - _ANSWER_S)
        return await self._works.look(_work_key(command), begin, max(0.0, wait_s))

    async def _prepare(self, command: PrepareSource, progress: Path) -> int:
        return await self._sources.prepare(command.volume_id, command.source, progress)

    async def _fill(self, command: FillVolume, progress: Path) -> None:
        spec, key = command.spec, _job_key(command)
        store = self._host.volumes(command.backend_id)
        async with contextlib.AsyncExitStack() as opened:
            source = await self._opened_source(command, opened, progress)
            if source is not None and source.size_bytes > spec.size_bytes:
                detail = f"the source has {source.size_bytes} bytes, and the volume {spec.size_bytes}"
                raise AgentFault.of(FaultCode.WRONG_SIZE, detail)
            target = await opened.enter_async_context(store.opened(spec, is_writable=True))
            if source is None:
                await byte_copies.blank(self._workers, target, key=key, progress=progress)
            elif isinstance(command.source, FileSource):
                with self._sources.named(command.volume_id, command.source):
                    await byte_copies.copy(self._workers, source, target, key=key, progress=progress)
            else:
                await byte_copies.copy(self._workers, source, target, key=key, progress=progress)
        await store.settle(spec)
        if isinstance(command.source, UrlSource):
            await self._sources.forget(command.volume_id)

    async def _opened_source(
        self, command: FillVolume, opened: contextlib.AsyncExitStack, progress: Path
    ) -> Extent | None:
        match command.source:
            case None:
                return None
            case VolumeSource() as source:
                return await opened.enter_async_context(self._volume(source, command.backend_id))
            case source:
                return await self._sources.extent(command.volume_id, source, progress)

    async def _compare(self, command: CompareVolume, progress: Path) -> None:
        store = self._host.volumes(command.backend_id)
        async with (
            self._volume(command.source, command.backend_id) as source,
            store.opened(command.spec, is_writable=False) as target,
        ):
            await byte_copies.compare(self._workers, source, target, key=_job_key(command), progress=progress)

    async def _wipe(self, command: WipeVolume, progress: Path) -> None:
        await self._host.volumes(command.backend_id).wipe(command.spec, command.wipe, progress)

    async def _blank(self, command: BlankVolume, progress: Path) -> None:
        await self._host.volumes(command.backend_id).blank(command.spec, command.from_bytes, progress)

    def _volume(self, source: VolumeSource, backend_id: str) -> contextlib.AbstractAsyncContextManager[Extent]:
        return self._host.volumes(source.backend_id or backend_id).opened(source.spec, is_writable=False)


def page(found: tuple[FoundVolume, ...], after: str) -> VolumeListing:
    """Those behind the name `after`, in the order of names, as many as one answer takes."""
    rest = sorted((item for item in map(_sayable, found) if item.name > after), key=lambda item: item.name)
    items: list[FoundVolume] = []
    room_bytes = MAX_LISTING_BYTES
    for item in rest:
        room_bytes -= len(msgspec.json.encode(item)) + 1
        if room_bytes < 0:
            break
        items.append(item)
    return VolumeListing(items=tuple(items), is_whole=len(items) == len(rest))


def _sayable(item: FoundVolume) -> FoundVolume:
    """Its name in words that JSON takes: what others name their files on the storage need not be text."""
    name = item.name.encode("utf-8", "backslashreplace").decode()
    return msgspec.structs.replace(item, name=name)


def _works_of(backend_id: str, spec: VolumeSpec) -> str:
    """What the keys of all works on an incarnation begin with."""
    return f"{backend_id}:{spec.locator}:"


def _works_before(volume_id: str) -> str:
    """What the keys of all works for a volume that has no incarnation yet begin with."""
    return f"{volume_id}:"


def _work_key(command: LongCommand) -> str:
    """The same for commands that ask for the same work; a URL, which may hold a token, can't be read from it."""
    match command:
        case PrepareSource(volume_id=volume_id):
            whose = _works_before(volume_id)
        case _:
            whose = _works_of(command.backend_id, command.spec)
    asked = msgspec.structs.replace(command, command_id="", fence=0, ttl_ms=0, request_id="", wait_ms=0)
    digest = hashlib.sha256(msgspec.json.encode(asked)).hexdigest()[:16]
    return f"{whose}{command.__struct_config__.tag}:{digest}"


def _job_key(command: FillVolume | CompareVolume) -> str:
    """Of the worker: as long as one that was abandoned still has the incarnation open, no other one touches it."""
    return f"{command.backend_id}:{command.spec.locator}"
