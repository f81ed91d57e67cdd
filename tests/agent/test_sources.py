"""Where an image's bytes come from, and that what is copied is what was looked into."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import byte_copies, qemu_jobs, sources
from agent.config import StateDir
from agent.download_jobs import UPLOAD_SUFFIX
from agent.errors import AgentFault
from agent.jobs import JOBS
from agent.sources import Sources
from agent.volumes import Extent
from agent.workers import _outcome  # pyright: ignore[reportPrivateUsage]
from schemas.faults import Fault, FaultCode
from schemas.ids import new_id
from schemas.volume_rpc import PathSource, UploadSource, VolumeFormat
from tests.agent.volume_files import MIB, needs_qemu, qcow2_of

CONTENT, NEXT = b"golden v1" * 1000, b"golden v2" * 1000


def nothing(_: str) -> None:
    pass


class Here:
    """Workers that are this process, so that patches hold. before: called with each job's name before it runs."""

    def __init__(self) -> None:
        self.before: Callable[[str], None] = nothing

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        self.before(job)
        try:
            return _outcome(
                job, msgspec.json.encode({"answer": JOBS[job](msgspec.json.decode(msgspec.json.encode(args)))})
            )
        except OSError as error:
            return _outcome(job, msgspec.json.encode({"errno": error.errno, "text": "", "filename": error.filename}))


class Place:
    """A host's image folder with one image, and a file elsewhere that nobody may read as one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers = Here()
        self.image = folder / "images/sub/deep/golden.img"
        self.image.parent.mkdir(parents=True)
        (folder / "secret/deep").mkdir(parents=True)
        (folder / "secret/deep/golden.img").write_bytes(b"secret" * 1000)
        self.put(CONTENT)
        self.state = StateDir(folder / "state")
        self.state.downloads.mkdir(parents=True)
        self.volume_id = new_id()
        self.sources = self.started()

    def started(self) -> Sources:
        """As after another start of the agent."""
        return Sources(workers=self.workers, state=self.state, image_dirs=(str(self.folder / "images"),))

    def put(self, content: bytes) -> None:
        """As a publisher does: whole, under another name first."""
        (self.folder / "draft").write_bytes(content)
        os.rename(self.folder / "draft", self.image)

    def lead_to(self, where: str) -> None:
        """A link is put into the way to the image."""
        os.rename(self.folder / "images/sub", self.folder / "moved")
        (self.folder / "images/sub").symlink_to(self.folder / where)

    def source(self, *, image_format: VolumeFormat = VolumeFormat.RAW, is_vouched_for: bool = True) -> PathSource:
        sha256 = hashlib.sha256(self.image.read_bytes()).hexdigest() if is_vouched_for else ""
        return PathSource(path=str(self.image), format=image_format, sha256=sha256)

    async def prepare(self, source: PathSource | UploadSource) -> int:
        return await self.sources.prepare(self.volume_id, source, self.folder / "progress")

    async def extent(self, source: PathSource | UploadSource) -> Extent:
        return await self.sources.extent(self.volume_id, source, self.folder / "progress")

    async def copy(self, extent: Extent) -> bytes:
        """What a raw volume holds that was filled from it."""
        target = Extent(folder=self.folder, name="target", format=VolumeFormat.RAW, size_bytes=4 * MIB)
        (self.folder / "target").write_bytes(b"as it was")
        await byte_copies.copy(self.workers, extent, target, key="k", progress=self.folder / "progress")
        return (self.folder / "target").read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each digest had, in their order."""
    taken: list[int] = []
    digest = qemu_jobs._digest  # pyright: ignore[reportPrivateUsage]

    def note(descriptor: int, size: int, progress: Any) -> str:
        taken.append(size)
        return digest(descriptor, size, progress)

    monkeypatch.setattr(qemu_jobs, "_digest", note)
    return taken


async def fault_of(awaitable: Any) -> Fault:
    with pytest.raises(AgentFault) as caught:
        await awaitable
    return caught.value.fault


async def test_image_is_digested_once_for_its_filling(place: Place, digests: list[int]) -> None:
    source = place.source()
    await place.prepare(source)
    extent = await place.extent(source)
    assert (await place.copy(extent)).startswith(CONTENT)
    assert (await place.extent(source)) == extent
    assert digests == [len(CONTENT)]


async def test_image_that_is_another_one_by_then_is_digested_anew_and_refused(place: Place, digests: list[int]) -> None:
    source = place.source()
    await place.prepare(source)
    place.put(NEXT)
    fault = await fault_of(place.extent(source))
    assert fault.code is FaultCode.WRONG_DIGEST
    assert hashlib.sha256(NEXT).hexdigest() in fault.detail
    place.put(CONTENT)
    assert (await place.copy(await place.extent(source))).startswith(CONTENT)
    assert len(digests) == 3


async def test_image_is_digested_anew_after_the_agent_was_started_again(place: Place, digests: list[int]) -> None:
    source = place.source()
    await place.prepare(source)
    place.sources = place.started()
    await place.extent(source)
    place.put(NEXT)
    place.sources = place.started()
    assert (await fault_of(place.extent(source))).code is FaultCode.WRONG_DIGEST
    assert len(digests) == 3


async def test_image_of_which_the_digest_was_forgotten_is_digested_anew(
    place: Place, digests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_MAX_REMEMBERED", 1)
    source = place.source()
    await place.prepare(source)
    await place.sources.prepare(new_id(), source, place.folder / "progress")
    await place.extent(source)
    await place.sources.forget(place.volume_id)
    await place.extent(source)
    assert len(digests) == 4


@pytest.mark.parametrize("is_vouched_for", [True, False])
@pytest.mark.parametrize("content", [NEXT, NEXT[:512]])
async def test_image_that_becomes_another_before_its_copy_is_refused_and_nothing_is_copied(
    content: bytes, is_vouched_for: bool, place: Place
) -> None:
    source = place.source(is_vouched_for=is_vouched_for)
    await place.prepare(source)
    extent = await place.extent(source)
    place.put(content)
    fault = await fault_of(place.copy(extent))
    assert (fault.code, "again" in fault.remedy) == (FaultCode.SOURCE_UNREADABLE, True)
    assert (place.folder / "target").read_bytes() == b"as it was"


async def test_image_into_whose_way_a_link_is_put_before_it_is_looked_into_is_refused(place: Place) -> None:
    """Once it was located, whoever may write to the image folder could have any file of the host read."""
    source = place.source(is_vouched_for=False)
    place.workers.before = lambda job: place.lead_to("secret") if job == "inspect_image" else None
    fault = await fault_of(place.extent(source))
    assert (fault.code, "symbolic link" in fault.detail) == (FaultCode.SOURCE_UNREADABLE, True)


@needs_qemu
@pytest.mark.parametrize("where", ["secret", "moved"])
@pytest.mark.parametrize("image_format", list(VolumeFormat))
async def test_image_into_whose_way_a_link_is_put_before_it_is_copied_is_refused(
    image_format: VolumeFormat, where: str, place: Place
) -> None:
    """Even where the link leads to the very file."""
    if image_format is VolumeFormat.QCOW2:
        qcow2_of(place.image, bytes(MIB), place.folder)
    source = place.source(image_format=image_format)
    extent = await place.extent(source)
    place.workers.before = lambda _: place.lead_to(where)
    fault = await fault_of(place.copy(extent))
    assert (fault.code, "symbolic link" in fault.detail) == (FaultCode.FOREIGN_DATA, True)
    assert (place.folder / "target").read_bytes() == b"as it was"


async def test_image_that_was_fetched_is_found_behind_links_of_the_host_s_own(place: Place, digests: list[int]) -> None:
    """The state folder is the agent's alone, wherever it lies."""
    os.rename(place.folder / "state", place.folder / "disk")
    (place.folder / "state").symlink_to("disk")
    (place.state.downloads / f"{place.volume_id}{UPLOAD_SUFFIX}").write_bytes(CONTENT)
    source = UploadSource(format=VolumeFormat.RAW, sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT))
    await place.prepare(source)
    assert (await place.copy(await place.extent(source))).startswith(CONTENT)
    assert digests == [len(CONTENT)]
