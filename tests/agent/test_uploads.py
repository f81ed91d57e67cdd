"""Images that come chunk by chunk: written where they belong, whole or gone, and guarded by nothing but an id that nobody knows."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import AgentFault
from agent.uploads import ABANDONED_S, TAKEN_S, WHOLE_S, Uploads
from schemas.agent_rpc import AnyCommand, Failed, Ok, Reply, Stale
from schemas.faults import FaultCode
from schemas.ids import new_id
from schemas.volume_rpc import (
    MAX_AHEAD_BYTES,
    MAX_CHUNK_BYTES,
    BeginUpload,
    EndUpload,
    FillVolume,
    ForgetUpload,
    MakeVolume,
    PrepareSource,
    ReceiveChunk,
    UploadSource,
    VolumeFormat,
    VolumeSpec,
)
from tests.agent.conftest import MakeRig
from tests.agent.fakes import Rig, target
from tests.agent.test_rpc import ask

SIZE = 3 * MAX_CHUNK_BYTES - 512
CONTENT = os.urandom(SIZE)
ID = new_id()


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def send(uploads: Uploads, content: bytes = CONTENT, volume_id: str = ID) -> None:
    await uploads.begin(volume_id, len(content))
    offsets = range(0, len(content), MAX_CHUNK_BYTES)
    # The last first: those that are under way together arrive in any order.
    for offset in reversed(offsets):
        await uploads.receive(volume_id, offset, content[offset : offset + MAX_CHUNK_BYTES])


def code(caught: pytest.ExceptionInfo[AgentFault]) -> FaultCode:
    return caught.value.fault.code


async def test_upload_in_any_order_is_whole_and_private(uploads: Uploads, tmp_path: Path) -> None:
    await send(uploads)
    await uploads.end(ID, SIZE)
    assert names(tmp_path) == [f"{ID}.upload"]
    assert (tmp_path / f"{ID}.upload").read_bytes() == CONTENT
    assert (tmp_path / f"{ID}.upload").stat().st_mode & 0o777 == 0o600


async def test_every_command_twice_ends_the_same(uploads: Uploads, tmp_path: Path) -> None:
    await uploads.begin(ID, 0)
    await uploads.begin(ID, 0)
    for _ in range(2):
        await uploads.receive(ID, 0, b"abc")
    for _ in range(2):
        await uploads.end(ID, 3)
    assert (tmp_path / f"{ID}.upload").read_bytes() == b"abc"


async def test_begin_over_what_has_come_is_refused_and_keeps_it(uploads: Uploads, tmp_path: Path) -> None:
    await send(uploads)
    with pytest.raises(AgentFault) as caught:
        await uploads.begin(ID, SIZE)
    assert code(caught) is FaultCode.IN_USE
    await uploads.end(ID, SIZE)
    with pytest.raises(AgentFault) as caught:
        await uploads.begin(ID, SIZE)
    assert code(caught) is FaultCode.IN_USE
    assert (tmp_path / f"{ID}.upload").read_bytes() == CONTENT


async def test_begin_without_room_is_no_space_and_leaves_nothing(uploads: Uploads, tmp_path: Path) -> None:
    with pytest.raises(AgentFault) as caught:
        await uploads.begin(ID, 2**60)
    assert code(caught) is FaultCode.NO_SPACE
    assert f"{2**60} bytes more" in caught.value.fault.detail
    assert names(tmp_path) == []


async def test_chunk_that_eats_into_the_reserve_is_no_space(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await uploads.begin(ID, 0)
    monkeypatch.setattr("agent.uploads.RESERVE_BYTES", 2**62)
    with pytest.raises(AgentFault) as caught:
        await uploads.receive(ID, 0, b"abc")
    assert code(caught) is FaultCode.NO_SPACE
    assert (tmp_path / f"{ID}.part").stat().st_size == 0


async def test_chunk_far_behind_the_end_is_refused(uploads: Uploads, tmp_path: Path) -> None:
    await uploads.begin(ID, 0)
    with pytest.raises(AgentFault, match="only 0 bytes are here"):
        await uploads.receive(ID, MAX_AHEAD_BYTES + 1, b"x")
    await uploads.receive(ID, MAX_AHEAD_BYTES, b"x")
    assert (tmp_path / f"{ID}.part").stat().st_size == MAX_AHEAD_BYTES + 1


@pytest.mark.parametrize("end", [False, True])
async def test_chunk_of_what_was_never_begun_makes_no_file(uploads: Uploads, tmp_path: Path, end: bool) -> None:
    with pytest.raises(AgentFault) as caught:
        await (uploads.end(ID, 3) if end else uploads.receive(ID, 0, b"abc"))
    assert (code(caught), caught.value.is_retryable) == (FaultCode.SOURCE_UNREADABLE, True)
    assert names(tmp_path) == []


async def test_end_with_another_size_is_wrong_size(uploads: Uploads) -> None:
    await send(uploads)
    with pytest.raises(AgentFault) as caught:
        await uploads.end(ID, SIZE + 512)
    assert code(caught) is FaultCode.WRONG_SIZE


async def test_planted_link_is_not_written_through(uploads: Uploads, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (tmp_path / f"{ID}.part").symlink_to(victim)
    for acting in (uploads.begin(ID, 3), uploads.receive(ID, 0, b"abc")):
        with pytest.raises(AgentFault, match="cannot be written"):
            await acting
    assert victim.read_bytes() == b""


async def test_sweep_takes_what_nobody_goes_on_with_after_its_time(tmp_path: Path) -> None:
    now = 0.0
    uploads = Uploads(tmp_path, clock=lambda: now)
    for suffix in ("part", "upload", "image"):
        (tmp_path / f"{ID}.{suffix}").write_bytes(b"x")
    (tmp_path / "going.part").write_bytes(b"x")
    uploads.sweep()
    now = ABANDONED_S - 1
    os.utime(tmp_path / "going.part", ns=(1, 1))
    uploads.sweep()
    assert len(names(tmp_path)) == 4
    now = ABANDONED_S
    uploads.sweep()
    assert names(tmp_path) == [f"{ID}.image", f"{ID}.upload", "going.part"]
    now = WHOLE_S
    os.utime(tmp_path / "going.part", ns=(2, 2))
    uploads.sweep()
    assert names(tmp_path) == [f"{ID}.image", "going.part"]
    now = TAKEN_S
    uploads.sweep()
    assert names(tmp_path) == []


# With the rest of the agent.


class Sender:
    """Commands about one upload, as a manager sends them."""

    def __init__(self, rig: Rig, backend_id: str) -> None:
        self.rig = rig
        self.backend_id = backend_id
        self.volume_id = new_id()
        self.spec = VolumeSpec(locator=os.urandom(16).hex(), format=VolumeFormat.RAW, size_bytes=SIZE)

    async def do(self, command: Callable[..., AnyCommand], fence: int = 0, **more: Any) -> Reply:
        head = {"command_id": new_id(), "backend_id": self.backend_id, "fence": fence, "ttl_ms": 20_000}
        return await ask(self.rig, command(**head, volume_id=self.volume_id, **more))

    async def send(self, content: bytes = CONTENT) -> None:
        assert await self.do(BeginUpload, size_bytes=len(content)) == _OK
        offsets = range(0, len(content), MAX_CHUNK_BYTES)
        chunks = (
            self.do(ReceiveChunk, offset=offset, content=content[offset : offset + MAX_CHUNK_BYTES])
            for offset in offsets
        )
        assert all(reply == _OK for reply in await asyncio.gather(*chunks))
        assert await self.do(EndUpload, size_bytes=len(content)) == _OK

    def source(self, content: bytes = CONTENT) -> UploadSource:
        return UploadSource(
            format=VolumeFormat.RAW, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(CONTENT)
        )

    async def prepare(self, source: UploadSource) -> Reply:
        return await self.do(PrepareSource, fence=5, source=source, wait_ms=19_000)

    async def fill(self) -> Reply:
        return await self.do(FillVolume, fence=5, spec=self.spec, source=self.source(), wait_ms=19_000)

    def kept(self) -> list[str]:
        return names(self.rig.state.downloads)

    def content(self) -> bytes:
        folder = self.rig.state.backends / self.backend_id / "volumes"
        return (folder / f"{self.spec.locator}.data").read_bytes()


_OK = Ok()


@pytest.fixture
async def sender(rig: Rig, backend_id: str) -> Sender:
    await rig.host.attach(target(backend_id), establish=True)
    return Sender(rig, backend_id)


def refusal(reply: Reply) -> FaultCode:
    assert isinstance(reply, Failed), reply
    return reply.fault.code


async def test_volume_is_filled_from_an_upload_twice_if_need_be_and_then_it_is_forgotten(sender: Sender) -> None:
    await sender.send()
    prepared = await sender.prepare(sender.source())
    assert isinstance(prepared, Ok)
    assert msgspec.json.decode(prepared.result)["size_bytes"] == SIZE
    await sender.do(MakeVolume, fence=5, spec=sender.spec)
    assert isinstance(await sender.fill(), Ok)
    await sender.rig.works.cancel("")  # as after a restart: nothing is known of it
    assert isinstance(await sender.fill(), Ok)
    assert sender.content() == CONTENT
    assert await sender.do(ForgetUpload, fence=5) == _OK
    assert await sender.do(ForgetUpload, fence=6) == _OK
    assert sender.kept() == []


async def test_upload_with_another_digest_is_refused_and_gone(sender: Sender) -> None:
    await sender.send()
    assert refusal(await sender.prepare(sender.source(b"other"))) is FaultCode.WRONG_DIGEST
    assert sender.kept() == []


async def test_upload_that_is_not_there_cannot_be_a_source(sender: Sender) -> None:
    assert refusal(await sender.prepare(sender.source())) is FaultCode.SOURCE_UNREADABLE


async def test_upload_of_another_size_than_the_saga_knows_is_refused(sender: Sender) -> None:
    await sender.send(CONTENT[:-512])
    reply = await sender.prepare(sender.source(CONTENT[:-512]))
    assert refusal(reply) is FaultCode.SOURCE_UNREADABLE
    assert sender.kept() == []


async def test_upload_commands_without_a_fence_are_stale_once_a_saga_has_the_volume(sender: Sender) -> None:
    await sender.send()
    await sender.prepare(sender.source())
    late: list[tuple[Callable[..., AnyCommand], dict[str, Any]]] = [
        (BeginUpload, {}),
        (ReceiveChunk, {"offset": 0, "content": b"x"}),
        (EndUpload, {"size_bytes": 1}),
        (ForgetUpload, {}),
    ]
    for command, more in late:
        assert await sender.do(command, **more) == Stale(fence=5)
    assert sender.kept() == [f"{sender.volume_id}.image"]


async def test_upload_commands_leave_no_fence_behind(sender: Sender) -> None:
    await sender.send()
    assert sender.rig.journal.fence(sender.volume_id) is None


async def test_forget_in_the_middle_leaves_nothing_and_late_chunks_make_nothing(sender: Sender) -> None:
    await sender.do(BeginUpload)
    await sender.do(ReceiveChunk, offset=0, content=b"abc")
    assert await sender.do(ForgetUpload) == _OK
    late = await sender.do(ReceiveChunk, offset=3, content=b"def")
    assert refusal(late) is FaultCode.SOURCE_UNREADABLE
    assert sender.kept() == []


async def test_agent_that_starts_again_keeps_whole_uploads_alone(make_rig: MakeRig, sender: Sender) -> None:
    await sender.send()
    whole, sender.volume_id = sender.volume_id, new_id()
    await sender.do(BeginUpload)
    await sender.do(ReceiveChunk, offset=0, content=b"abc")
    sender.rig.state.remove_left_overs()
    sender.rig = make_rig()
    assert sender.kept() == [f"{whole}.upload"]
    again = await sender.do(ReceiveChunk, offset=3, content=b"def")
    assert isinstance(again, Failed)
    assert again.is_retryable


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (BeginUpload, {"size_bytes": -1}),
        (BeginUpload, {"size_bytes": 2**63}),
        (ReceiveChunk, {"offset": -1, "content": b"x"}),
        (ReceiveChunk, {"offset": 2**63, "content": b"x"}),
        (ReceiveChunk, {"offset": 0, "content": b""}),
        (ReceiveChunk, {"offset": 0, "content": b"x" * (MAX_CHUNK_BYTES + 1)}),
        (EndUpload, {"size_bytes": 0}),
    ],
)
async def test_upload_command_out_of_range_is_not_obeyed(
    sender: Sender, command: Callable[..., AnyCommand], more: dict[str, Any]
) -> None:
    assert refusal(await sender.do(command, **more)) is FaultCode.FAILED
    assert sender.kept() == []


async def test_upload_under_an_id_that_is_none_is_not_obeyed(sender: Sender) -> None:
    sender.volume_id = "../../etc/passwd"
    assert refusal(await sender.do(BeginUpload)) is FaultCode.FAILED
    assert sender.kept() == []


async def test_chunk_is_answered_while_the_backend_is_busy_and_floods_no_log(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with sender.rig.lock(sender.backend_id):
        await sender.send()
    verbs = [record.__dict__.get("verb") for record in caplog.records if record.msg == "command answered"]
    assert verbs == ["begin_upload", "end_upload"]
