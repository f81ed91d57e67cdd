"""The verbs about volumes, on a pretend storage whose bytes real workers copy."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from agent.drivers.base import Deadline
from agent.errors import AgentFault
from agent.volume_host import MAX_LISTING_BYTES, page
from schemas.faults import FaultCode
from schemas.ids import new_id
from schemas.volume_rpc import (
    AttachedAt,
    AttachMode,
    AttachVolume,
    CompareVolume,
    DetachVolume,
    EraseVolume,
    FillVolume,
    FoundVolume,
    ListVolumes,
    Made,
    MakeVolume,
    PathSource,
    PrepareSource,
    ResizeVolume,
    Source,
    UrlSource,
    VolumeFormat,
    VolumeListing,
    VolumeSource,
    VolumeSpec,
    Wipe,
    WipeVolume,
    WorkReport,
)
from tests.agent.fakes import Rig, World, target
from tests.agent.test_download_jobs import Server
from tests.agent.waiting import until

SIZE = 64 * 1024
CONTENT = os.urandom(SIZE)

T = TypeVar("T")


class Volumes:
    """Commands about the volumes of one backend, sent as rpc.py would after its checks."""

    def __init__(self, rig: Rig, backend_id: str) -> None:
        self.rig = rig
        self.backend_id = backend_id
        self.volume_id = new_id()

    def head(self, **more: Any) -> dict[str, Any]:
        common = {"command_id": new_id(), "backend_id": self.backend_id, "fence": 5, "ttl_ms": 20_000}
        return common | {"volume_id": self.volume_id} | more

    async def do(self, command: Any, result: type[T], *, left_s: float = 20.0) -> T:
        deadline = Deadline(left_s, lambda: 0.0)
        return msgspec.convert(await self.rig.volumes.handle(command, deadline), result, from_attributes=True)

    async def make(self, spec: VolumeSpec, **more: Any) -> Made:
        return await self.do(MakeVolume(**self.head(), spec=spec, **more), Made)

    async def fill(self, spec: VolumeSpec, source: Source | None = None, wait_ms: int = 20_000) -> WorkReport:
        command = FillVolume(**self.head(), spec=spec, source=source, wait_ms=wait_ms)
        return await self.do(command, WorkReport)

    async def prepare(self, source: PathSource | UrlSource) -> WorkReport:
        return await self.do(PrepareSource(**self.head(), source=source, wait_ms=20_000), WorkReport)

    async def compare(self, spec: VolumeSpec, with_spec: VolumeSpec) -> WorkReport:
        command = CompareVolume(**self.head(), spec=spec, source=VolumeSource(spec=with_spec), wait_ms=20_000)
        return await self.do(command, WorkReport)

    async def erase(self, spec: VolumeSpec) -> None:
        await self.do(EraseVolume(**self.head(), spec=spec), type(None))

    async def resize(self, spec: VolumeSpec, size_bytes: int, *, may_shrink: bool = False) -> None:
        command = ResizeVolume(**self.head(), spec=spec, size_bytes=size_bytes, may_shrink=may_shrink)
        await self.do(command, type(None))

    async def attach(self, spec: VolumeSpec, epoch: int = 1, fence: int = 5) -> AttachedAt:
        command = AttachVolume(**self.head(fence=fence), spec=spec, epoch=epoch, mode=AttachMode.RW)
        return await self.do(command, AttachedAt)

    async def filled(self, content: bytes = CONTENT) -> VolumeSpec:
        """A volume that holds the content."""
        spec = new_spec(len(content))
        await self.make(spec)
        (self.folder / f"{spec.locator}.data").write_bytes(content)
        return spec

    @property
    def folder(self) -> Path:
        return self.rig.state.backends / self.backend_id / "volumes"

    def content(self, spec: VolumeSpec) -> bytes:
        return (self.folder / f"{spec.locator}.data").read_bytes()

    def exists(self, spec: VolumeSpec) -> bool:
        return (self.folder / f"{spec.locator}.data").exists()


def new_spec(size_bytes: int = SIZE) -> VolumeSpec:
    return VolumeSpec(locator=os.urandom(16).hex(), format=VolumeFormat.RAW, size_bytes=size_bytes)


@pytest.fixture
async def volumes(rig: Rig, backend_id: str) -> Volumes:
    await rig.host.attach(target(backend_id), establish=True)
    return Volumes(rig, backend_id)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    server.stop()


def images_of(rig: Rig) -> Path:
    folder = rig.state.root.parent / "images"
    folder.mkdir(exist_ok=True)
    return folder


def path_source(path: Path, sha256: str = "", format: VolumeFormat = VolumeFormat.RAW) -> PathSource:
    return PathSource(path=str(path), format=format, sha256=sha256)


def url_source(server: Server, content: bytes = CONTENT) -> UrlSource:
    """A URL that serves CONTENT, said to have the digest of `content`."""

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.answers["/image"] = answer
    return UrlSource(
        url=f"{server.url}/image?token=canary",
        format=VolumeFormat.RAW,
        sha256=hashlib.sha256(content).hexdigest(),
    )


async def test_make_then_fill_with_nothing_is_a_volume_of_zeros(volumes: Volumes) -> None:
    spec = new_spec()
    assert await volumes.make(spec) == Made(is_filled=False)
    assert (await volumes.fill(spec)).is_done
    assert volumes.content(spec) == bytes(SIZE)


async def test_make_at_once_of_storage_that_clones_is_filled(volumes: Volumes, world: World) -> None:
    world.is_cloning = True
    origin, spec = await volumes.filled(), new_spec(2 * SIZE)
    assert await volumes.make(spec, origin=origin, is_instant=True) == Made(is_filled=True)
    assert volumes.content(spec) == CONTENT + bytes(SIZE)


async def test_make_at_once_of_storage_that_copies_is_unsupported_and_leaves_nothing(volumes: Volumes) -> None:
    origin, spec = await volumes.filled(), new_spec()
    with pytest.raises(AgentFault) as caught:
        await volumes.make(spec, origin=origin, is_instant=True)
    assert caught.value.fault.code is FaultCode.UNSUPPORTED
    assert not volumes.exists(spec)
    assert volumes.content(origin) == CONTENT


async def test_make_once_more_forgets_that_it_was_filled(volumes: Volumes) -> None:
    origin, spec = await volumes.filled(), new_spec()
    await volumes.make(spec)
    await volumes.fill(spec, VolumeSource(spec=origin))
    await volumes.make(spec)
    assert volumes.content(spec) == bytes(SIZE)
    await volumes.fill(spec, VolumeSource(spec=origin))
    assert volumes.content(spec) == CONTENT


async def test_verbs_on_a_backend_that_is_not_attached_are_converging(rig: Rig, backend_id: str) -> None:
    volumes = Volumes(rig, backend_id)
    for asking in (volumes.make(new_spec()), volumes.fill(new_spec()), volumes.erase(new_spec())):
        with pytest.raises(AgentFault) as caught:
            await asking
        assert (caught.value.fault.code, caught.value.is_retryable) == (FaultCode.CONVERGING, True)


async def test_fill_from_a_smaller_volume_has_its_content_and_zeros_behind_it(volumes: Volumes) -> None:
    origin, spec = await volumes.filled(), new_spec(2 * SIZE)
    await volumes.make(spec)
    report = await volumes.fill(spec, VolumeSource(spec=origin))
    assert report.is_done
    assert volumes.content(spec) == CONTENT + bytes(SIZE)


async def test_fill_from_a_volume_of_another_backend_copies_it(rig: Rig, volumes: Volumes) -> None:
    other = Volumes(rig, new_id())
    await rig.host.attach(target(other.backend_id, server="nas2"), establish=True)
    origin, spec = await other.filled(), new_spec()
    await volumes.make(spec)
    await volumes.fill(spec, VolumeSource(spec=origin, backend_id=other.backend_id))
    assert volumes.content(spec) == CONTENT


async def test_fill_from_what_is_larger_is_wrong_size(volumes: Volumes) -> None:
    origin, spec = await volumes.filled(CONTENT * 2), new_spec()
    await volumes.make(spec)
    with pytest.raises(AgentFault) as caught:
        await volumes.fill(spec, VolumeSource(spec=origin))
    assert caught.value.fault.code is FaultCode.WRONG_SIZE
    assert f"the source has {2 * SIZE} bytes, and the volume {SIZE}" in caught.value.fault.detail


async def test_fill_that_fails_is_told_and_succeeds_when_repeated(volumes: Volumes, world: World) -> None:
    origin, spec = await volumes.filled(), new_spec()
    await volumes.make(spec)
    world.fail("settle", FaultCode.IO_ERROR)
    with pytest.raises(AgentFault, match="settle was told to fail"):
        await volumes.fill(spec, VolumeSource(spec=origin))
    world.heal()
    assert (await volumes.fill(spec, VolumeSource(spec=origin))).is_done
    assert volumes.content(spec) == CONTENT


async def test_fill_answers_within_its_wait_and_the_next_look_joins_it(volumes: Volumes, world: World) -> None:
    spec = new_spec()
    await volumes.make(spec)
    gate = world.hold("settle")
    assert not (await volumes.fill(spec, wait_ms=0)).is_done
    await until(lambda: world.running["settle" + volumes.backend_id])
    assert not (await volumes.fill(spec, wait_ms=1)).is_done
    gate.set()
    assert (await volumes.fill(spec)).is_done
    assert world.calls["settle"] == 1


async def test_fill_answers_before_the_command_s_time_is_over(volumes: Volumes, world: World) -> None:
    spec = new_spec()
    await volumes.make(spec)
    world.hold("settle")
    command = FillVolume(**volumes.head(), spec=spec, wait_ms=600_000)
    assert not (await volumes.do(command, WorkReport, left_s=1.05)).is_done


async def test_compare_of_the_same_is_done_and_of_another_an_io_error(volumes: Volumes) -> None:
    origin, same = await volumes.filled(), await volumes.filled()
    other = await volumes.filled(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert (await volumes.compare(same, origin)).is_done
    with pytest.raises(AgentFault) as caught:
        await volumes.compare(other, origin)
    assert caught.value.fault.code is FaultCode.IO_ERROR


async def test_wipe_is_done_by_the_store(volumes: Volumes) -> None:
    spec = await volumes.filled()
    command = WipeVolume(**volumes.head(), spec=spec, wipe=Wipe.ZERO, wait_ms=20_000)
    assert (await volumes.do(command, WorkReport)).is_done
    assert volumes.content(spec) == bytes(SIZE)


async def test_erase_ends_what_is_under_way_and_leaves_nothing(volumes: Volumes, world: World) -> None:
    spec = new_spec()
    await volumes.make(spec)
    world.hold("settle")
    await volumes.fill(spec, wait_ms=0)
    await until(lambda: world.running["settle" + volumes.backend_id])
    await volumes.erase(spec)
    assert world.running["settle" + volumes.backend_id] == 0
    assert not volumes.exists(spec)
    await volumes.erase(spec)


async def test_erase_of_what_is_open_is_in_use(volumes: Volumes, world: World) -> None:
    spec = await volumes.filled()
    world.in_use.add(spec.locator)
    with pytest.raises(AgentFault) as caught:
        await volumes.erase(spec)
    assert caught.value.fault.code is FaultCode.IN_USE
    assert volumes.exists(spec)


async def test_erase_drops_the_note_of_this_incarnation_alone(volumes: Volumes) -> None:
    attached, other = await volumes.filled(), await volumes.filled()
    await volumes.attach(attached)
    await volumes.erase(other)
    assert [note.spec for note in volumes.rig.journal.attachments()] == [attached]
    await volumes.erase(attached)
    assert volumes.rig.journal.attachments() == ()


async def test_resize_of_an_attached_volume_is_noted_so_that_it_comes_back(volumes: Volumes) -> None:
    spec = await volumes.filled()
    await volumes.attach(spec)
    await volumes.resize(spec, 2 * SIZE)
    assert volumes.content(spec) == CONTENT + bytes(SIZE)
    (note,) = volumes.rig.journal.attachments()
    assert (note.spec.size_bytes, note.epoch) == (2 * SIZE, 1)
    with pytest.raises(AgentFault):
        await volumes.resize(msgspec.structs.replace(spec, size_bytes=2 * SIZE), SIZE)


async def test_prepare_file_of_an_image_folder_gives_its_size_and_fills_a_volume(volumes: Volumes) -> None:
    image = images_of(volumes.rig) / "a.raw"
    image.write_bytes(CONTENT)
    source = path_source(image, hashlib.sha256(CONTENT).hexdigest())
    report = await volumes.prepare(source)
    assert (report.is_done, report.size_bytes) == (True, SIZE)
    spec = new_spec(2 * SIZE)
    await volumes.make(spec)
    await volumes.fill(spec, source)
    assert volumes.content(spec) == CONTENT + bytes(SIZE)
    assert image.read_bytes() == CONTENT


async def test_prepare_file_of_another_digest_is_wrong_digest(volumes: Volumes) -> None:
    image = images_of(volumes.rig) / "a.raw"
    image.write_bytes(CONTENT)
    with pytest.raises(AgentFault) as caught:
        await volumes.prepare(path_source(image, "0" * 64))
    assert caught.value.fault.code is FaultCode.WRONG_DIGEST
    assert image.exists()


async def test_prepare_file_of_another_format_is_source_unreadable(volumes: Volumes) -> None:
    image = images_of(volumes.rig) / "a.qcow2"
    image.write_bytes(CONTENT)
    with pytest.raises(AgentFault) as caught:
        await volumes.prepare(path_source(image, format=VolumeFormat.QCOW2))
    assert caught.value.fault.code is FaultCode.SOURCE_UNREADABLE


async def test_prepare_file_outside_the_image_folders_says_which_there_are(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    images = images_of(volumes.rig)
    (images / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(AgentFault) as caught:
        await volumes.prepare(path_source(images / "link"))
    assert caught.value.fault.code is FaultCode.SOURCE_UNREADABLE
    assert str(images) in caught.value.fault.remedy
    assert "--images" in caught.value.fault.remedy


async def test_prepare_url_then_fill_and_nothing_fetched_is_left(volumes: Volumes, server: Server) -> None:
    source = url_source(server)
    report = await volumes.prepare(source)
    assert (report.is_done, report.size_bytes) == (True, SIZE)
    assert [path.name for path in volumes.rig.state.downloads.iterdir()] == [f"{volumes.volume_id}.image"]
    spec = new_spec()
    await volumes.make(spec)
    await volumes.fill(spec, source)
    assert volumes.content(spec) == CONTENT
    assert list(volumes.rig.state.downloads.iterdir()) == []
    assert len(server.asked) == 1


async def test_prepare_url_of_another_digest_leaves_nothing_and_tells_no_token(
    volumes: Volumes, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AgentFault) as caught:
        await volumes.prepare(url_source(server, b"other"))
    assert caught.value.fault.code is FaultCode.WRONG_DIGEST
    assert list(volumes.rig.state.downloads.iterdir()) == []
    assert "canary" not in caplog.text + str(caught.value)


async def test_prepare_url_that_is_no_image_names_the_url_and_no_file_of_ours(volumes: Volumes, server: Server) -> None:
    source = msgspec.structs.replace(url_source(server), format=VolumeFormat.QCOW2)
    with pytest.raises(AgentFault) as caught:
        await volumes.prepare(source)
    assert caught.value.fault.code is FaultCode.SOURCE_UNREADABLE
    assert caught.value.fault.detail.startswith(f"the image from {source.url.partition('?')[0]} is no qcow2")
    assert str(volumes.rig.state.downloads) not in str(caught.value)


async def test_erase_removes_what_was_fetched_for_the_volume(volumes: Volumes, server: Server) -> None:
    await volumes.prepare(url_source(server))
    await volumes.erase(new_spec())
    assert list(volumes.rig.state.downloads.iterdir()) == []


async def test_fill_from_a_url_after_what_was_fetched_is_gone_fetches_it_again(
    volumes: Volumes, server: Server
) -> None:
    source, spec = url_source(server), new_spec()
    await volumes.make(spec)
    assert (await volumes.fill(spec, source)).is_done
    assert volumes.content(spec) == CONTENT


async def test_list_shows_ours_and_others_in_pages(volumes: Volumes) -> None:
    spec = await volumes.filled()
    (volumes.folder / "foreign.iso").write_bytes(b"x" * 100)
    command = ListVolumes(command_id=new_id(), backend_id=volumes.backend_id, fence=0, ttl_ms=1000)
    listing = await volumes.do(command, VolumeListing)
    assert {(item.name, item.locator, item.size_bytes) for item in listing.items} == {
        (f"{spec.locator}.data", spec.locator, SIZE),
        ("foreign.iso", "", 100),
    }
    behind = await volumes.do(msgspec.structs.replace(command, after=listing.items[0].name), VolumeListing)
    assert behind.items == listing.items[1:]


def test_page_of_many_names_fits_a_message_and_the_pages_hold_all_of_them() -> None:
    found = tuple(FoundVolume(name=f"{number:05}" + "ü" * 120, size_bytes=1) for number in range(3000, 0, -1))
    seen: list[str] = []
    is_whole = False
    while not is_whole:
        listing = page(found, seen[-1] if seen else "")
        assert len(msgspec.json.encode(listing)) < MAX_LISTING_BYTES + 100
        seen += [item.name for item in listing.items]
        is_whole = listing.is_whole
    assert seen == sorted(item.name for item in found)


def test_page_shows_a_name_that_is_no_text() -> None:
    listing = page((FoundVolume(name=b"\xff.raw".decode(errors="surrogateescape"), size_bytes=1),), "")
    assert b"udcff.raw" in msgspec.json.encode(listing)


async def test_detach_is_done_by_the_store_and_no_longer_noted(volumes: Volumes) -> None:
    spec = await volumes.filled()
    await volumes.attach(spec)
    command = DetachVolume(**volumes.head(), spec=spec, epoch=1)
    await volumes.do(command, type(None))
    await volumes.do(command, type(None))
    assert volumes.rig.journal.attachments() == ()
    assert list((volumes.folder.parent / "attached").iterdir()) == []


async def test_fills_of_many_volumes_at_once_are_all_right(volumes: Volumes) -> None:
    origin = await volumes.filled()
    specs = [new_spec() for _ in range(8)]
    for spec in specs:
        await volumes.make(spec)
    reports = await asyncio.gather(*(volumes.fill(spec, VolumeSource(spec=origin)) for spec in specs))
    assert all(report.is_done for report in reports)
    assert {volumes.content(spec) for spec in specs} == {CONTENT}
