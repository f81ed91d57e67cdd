"""The volumes of a pretend backend: files of a real folder, whose bytes the real workers copy. Used by every fake driver."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.errors import AgentFault
from agent.volumes import Extent
from schemas.faults import FaultCode
from schemas.volume_rpc import AttachedAt, AttachMode, FoundVolume, VolumeFormat, VolumeSpec, Wipe


@dataclass(frozen=True)
class FakePlace:
    """Where a backend's volumes are, and what is open on this host: attached has a file for each of them, which holds its mode.

    A `<locator>.data` holds what a VM sees, whatever the format; its spec is in `<locator>.json`. in_use: locators that a
    process of this host has open. on_fenced: called with one that was fenced off here. is_cloning: `make` copies the origin.
    """

    folder: Path
    attached: Path
    in_use: set[str]
    on_fenced: Callable[[str], None]
    is_cloning: bool = False


class FakeStore:
    """Satisfies VolumeStore on a FakePlace. act: called with the verb's name before it does anything; may wait, may raise."""

    def __init__(self, place: FakePlace, act: Callable[[str], Awaitable[None]]) -> None:
        self._place = place
        self._act = act
        place.folder.mkdir(parents=True, exist_ok=True)
        place.attached.mkdir(parents=True, exist_ok=True)

    async def make(self, spec: VolumeSpec, origin: VolumeSpec | None) -> bool:
        await self._act("make")
        is_filled = origin is not None and self._place.is_cloning
        content = self._existing(origin).read_bytes() if origin is not None and is_filled else b""
        part = self._place.folder / f"{spec.locator}.part"
        part.write_bytes(content)
        os.truncate(part, spec.size_bytes)
        (self._place.folder / f"{spec.locator}.json").write_bytes(msgspec.json.encode(spec))
        part.rename(self._path(spec))
        return is_filled

    @asynccontextmanager
    async def opened(self, spec: VolumeSpec, *, is_writable: bool) -> AsyncGenerator[Extent]:
        await self._act("open")
        path = self._existing(spec)
        found = path.stat()
        yield Extent(
            folder=path.parent,
            name=path.name,
            format=VolumeFormat.RAW,
            size_bytes=found.st_size,
            is_zero=found.st_blocks == 0,
        )

    async def settle(self, spec: VolumeSpec) -> None:
        await self._act("settle")
        self._check_size(spec)

    async def wipe(self, spec: VolumeSpec, wipe: Wipe, progress: Path) -> None:
        await self._act("wipe")
        path = self._path(spec)
        if path.exists() and wipe is not Wipe.NONE:
            path.write_bytes(b"")
            os.truncate(path, spec.size_bytes)

    async def erase(self, spec: VolumeSpec) -> None:
        await self._act("erase")
        self._refuse_in_use(spec)
        for suffix in ("data", "json", "part"):
            (self._place.folder / f"{spec.locator}.{suffix}").unlink(missing_ok=True)
        (self._place.attached / spec.locator).unlink(missing_ok=True)

    async def resize(self, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool) -> None:
        await self._act("resize")
        path = self._existing(spec)
        if size_bytes < path.stat().st_size and not may_shrink:
            raise AgentFault.of(FaultCode.WRONG_SIZE, "it would shrink")
        os.truncate(path, size_bytes)
        resized = msgspec.structs.replace(spec, size_bytes=size_bytes)
        (self._place.folder / f"{spec.locator}.json").write_bytes(msgspec.json.encode(resized))

    async def blank(self, spec: VolumeSpec, from_bytes: int, progress: Path) -> None:
        await self._act("blank")
        self._check_size(spec)

    async def attach(self, spec: VolumeSpec, mode: AttachMode) -> AttachedAt:
        await self._act("volume_attach")
        self._check_size(spec)
        (self._place.attached / spec.locator).write_text(mode.value)
        return AttachedAt(path=str(self._path(spec)), type="file")

    async def detach(self, spec: VolumeSpec) -> None:
        await self._act("volume_detach")
        self._refuse_in_use(spec)
        (self._place.attached / spec.locator).unlink(missing_ok=True)

    async def fence_off(self, spec: VolumeSpec) -> None:
        await self._act("fence_off")
        self._place.in_use.discard(spec.locator)
        (self._place.attached / spec.locator).unlink(missing_ok=True)
        self._place.on_fenced(spec.locator)

    async def list(self) -> tuple[FoundVolume, ...]:
        await self._act("list")
        paths = sorted(self._place.folder.iterdir())
        return tuple(_found(path) for path in paths if path.suffix not in (".json", ".part"))

    def _path(self, spec: VolumeSpec) -> Path:
        return self._place.folder / f"{spec.locator}.data"

    def _existing(self, spec: VolumeSpec) -> Path:
        path = self._path(spec)
        if not path.exists():
            raise AgentFault.of(FaultCode.VOLUME_MISSING, f"{path.name} is not there")
        return path

    def _check_size(self, spec: VolumeSpec) -> None:
        size_bytes = self._existing(spec).stat().st_size
        if size_bytes != spec.size_bytes:
            detail = f"{spec.locator} has {size_bytes} bytes instead of {spec.size_bytes}"
            raise AgentFault.of(FaultCode.WRONG_SIZE, detail)

    def _refuse_in_use(self, spec: VolumeSpec) -> None:
        if spec.locator in self._place.in_use:
            raise AgentFault.of(FaultCode.IN_USE, "a process has it open")


def _found(path: Path) -> FoundVolume:
    found = path.stat()
    described = path.with_suffix(".json")
    if path.suffix != ".data" or not described.exists():
        return FoundVolume(name=path.name, size_bytes=found.st_size, allocated_bytes=found.st_blocks * 512)
    spec = msgspec.json.decode(described.read_bytes(), type=VolumeSpec)
    return FoundVolume(
        name=path.name,
        locator=spec.locator,
        format=spec.format.value,
        size_bytes=found.st_size,
        allocated_bytes=found.st_blocks * 512,
    )
