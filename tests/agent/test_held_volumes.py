"""Which volumes a host may use: epochs, notes, the manager's word, and what comes back with a backend."""

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import AgentFault
from agent.journal import NotedAttachment
from schemas.faults import FaultCode
from schemas.ids import new_id
from schemas.volume_rpc import AttachMode, AttachVolume, DetachVolume, HeldVolume, VolumeFormat, VolumeSpec
from tests.agent.conftest import MakeRig
from tests.agent.fakes import Rig, World, target

SIZE = 4096
VOLUME = new_id()


@pytest.fixture
async def attached_backend(rig: Rig, backend_id: str) -> str:
    await rig.host.attach(target(backend_id), establish=True)
    return backend_id


async def made(rig: Rig, backend_id: str) -> VolumeSpec:
    spec = VolumeSpec(locator=os.urandom(16).hex(), format=VolumeFormat.RAW, size_bytes=SIZE)
    await rig.host.volumes(backend_id).make(spec, None)
    return spec


def head(backend_id: str, volume_id: str, fence: int) -> dict[str, Any]:
    return {
        "command_id": new_id(),
        "backend_id": backend_id,
        "volume_id": volume_id,
        "fence": fence,
        "ttl_ms": 5000,
    }


async def attach(
    rig: Rig, backend_id: str, spec: VolumeSpec, *, epoch: int = 1, fence: int = 5, volume_id: str = VOLUME
) -> str:
    command = AttachVolume(**head(backend_id, volume_id, fence), spec=spec, epoch=epoch, mode=AttachMode.RO)
    return (await rig.held.attach(command)).path


async def detach(
    rig: Rig, backend_id: str, spec: VolumeSpec, *, epoch: int = 1, fence: int = 6, volume_id: str = VOLUME
) -> None:
    await rig.held.detach(DetachVolume(**head(backend_id, volume_id, fence), spec=spec, epoch=epoch))


def open_here(rig: Rig, backend_id: str) -> set[str]:
    """Locators of what the backend's storage lets this host use."""
    return {path.name for path in (rig.state.backends / backend_id / "attached").glob("*")}


def held(*pairs: tuple[str, int]) -> tuple[HeldVolume, ...]:
    return tuple(HeldVolume(volume_id=volume_id, epoch=epoch) for volume_id, epoch in pairs)


async def code_of(asking: Any) -> FaultCode:
    with pytest.raises(AgentFault) as caught:
        await asking
    return caught.value.fault.code


async def test_attach_is_noted_with_its_epoch_fence_and_mode(rig: Rig, attached_backend: str) -> None:
    spec = await made(rig, attached_backend)
    assert Path(await attach(rig, attached_backend, spec, epoch=3, fence=9)).stat().st_size == SIZE
    note = NotedAttachment(VOLUME, attached_backend, epoch=3, fence=9, mode=AttachMode.RO, spec=spec)
    assert rig.journal.attachments() == (note,)
    assert open_here(rig, attached_backend) == {spec.locator}


async def test_attach_is_noted_before_anything_is_done(rig: Rig, world: World, attached_backend: str) -> None:
    spec = await made(rig, attached_backend)
    seen: list[int] = []
    acting = world.act

    async def act(verb: str, backend_id: str) -> None:
        seen.append(len(rig.journal.attachments()))
        await acting(verb, backend_id)

    world.act = act  # type: ignore[method-assign]
    await attach(rig, attached_backend, spec)
    assert seen == [1]


async def test_attach_of_an_epoch_below_the_newest_is_fenced_off_also_after_detach_and_restart(
    make_rig: MakeRig, backend_id: str
) -> None:
    rig = make_rig()
    await rig.host.attach(target(backend_id), establish=True)
    spec = await made(rig, backend_id)
    await attach(rig, backend_id, spec, epoch=5)
    await detach(rig, backend_id, spec, epoch=6)
    after = make_rig()
    assert await code_of(attach(after, backend_id, spec, epoch=5)) is FaultCode.FENCED_OFF
    assert open_here(after, backend_id) == set()
    await attach(after, backend_id, spec, epoch=6)


async def test_attach_again_with_the_same_epoch_answers_the_same(rig: Rig, attached_backend: str) -> None:
    spec = await made(rig, attached_backend)
    assert await attach(rig, attached_backend, spec) == await attach(rig, attached_backend, spec)


async def test_attach_that_fails_leaves_no_note_and_nothing_open(rig: Rig, world: World, attached_backend: str) -> None:
    spec = await made(rig, attached_backend)
    world.fail("volume_attach", FaultCode.IO_ERROR)
    assert await code_of(attach(rig, attached_backend, spec)) is FaultCode.IO_ERROR
    assert rig.journal.attachments() == ()
    assert world.calls["volume_detach"] == 1


async def test_attach_that_fails_and_can_t_be_undone_stays_noted_for_the_next_word(
    rig: Rig, world: World, attached_backend: str
) -> None:
    spec = await made(rig, attached_backend)
    world.fail("volume_attach", FaultCode.IO_ERROR)
    world.fail("volume_detach", FaultCode.HUNG)
    assert await code_of(attach(rig, attached_backend, spec)) is FaultCode.IO_ERROR
    assert len(rig.journal.attachments()) == 1
    world.heal()
    rig.held.hear((), 10)
    await rig.held.fence_off()
    assert rig.journal.attachments() == ()
    assert world.fenced == [spec.locator]


async def test_attach_again_that_fails_leaves_what_was_attached(rig: Rig, world: World, attached_backend: str) -> None:
    spec = await made(rig, attached_backend)
    await attach(rig, attached_backend, spec)
    world.fail("volume_attach", FaultCode.IO_ERROR)
    assert await code_of(attach(rig, attached_backend, spec)) is FaultCode.IO_ERROR
    assert len(rig.journal.attachments()) == 1
    assert open_here(rig, attached_backend) == {spec.locator}


async def test_attach_of_another_incarnation_while_one_is_attached_is_in_use(rig: Rig, attached_backend: str) -> None:
    one, other = await made(rig, attached_backend), await made(rig, attached_backend)
    await attach(rig, attached_backend, one)
    assert await code_of(attach(rig, attached_backend, other, epoch=2)) is FaultCode.IN_USE
    assert open_here(rig, attached_backend) == {one.locator}


async def test_detach_of_an_older_epoch_is_fenced_off_and_in_use_is_told(
    rig: Rig, world: World, attached_backend: str
) -> None:
    spec = await made(rig, attached_backend)
    await attach(rig, attached_backend, spec, epoch=4)
    assert await code_of(detach(rig, attached_backend, spec, epoch=3)) is FaultCode.FENCED_OFF
    world.in_use.add(spec.locator)
    assert await code_of(detach(rig, attached_backend, spec, epoch=4)) is FaultCode.IN_USE
    assert open_here(rig, attached_backend) == {spec.locator}
    assert len(rig.journal.attachments()) == 1
    world.in_use.clear()
    await detach(rig, attached_backend, spec, epoch=4)
    assert open_here(rig, attached_backend) == set()
    assert rig.journal.attachments() == ()


async def test_detach_of_a_backend_that_is_gone_from_here_is_success(rig: Rig, attached_backend: str) -> None:
    spec = await made(rig, attached_backend)
    await attach(rig, attached_backend, spec)
    await rig.host.release(attached_backend, remove_marker=False)
    await detach(rig, attached_backend, spec)
    assert rig.journal.attachments() == ()


async def test_word_fences_off_what_it_does_not_know_and_nothing_else(
    rig: Rig, world: World, attached_backend: str
) -> None:
    lost, kept, newer, other_epoch = [await made(rig, attached_backend) for _ in range(4)]
    ids = [new_id() for _ in range(4)]
    await attach(rig, attached_backend, lost, volume_id=ids[0])
    await attach(rig, attached_backend, kept, volume_id=ids[1], epoch=2)
    await attach(rig, attached_backend, newer, volume_id=ids[2], fence=11)
    await attach(rig, attached_backend, other_epoch, volume_id=ids[3], epoch=1)
    rig.held.hear(held((ids[1], 2), (ids[3], 2)), 10)
    await rig.held.fence_off()
    assert sorted(world.fenced) == sorted([lost.locator, other_epoch.locator])
    assert {note.volume_id for note in rig.journal.attachments()} == {ids[1], ids[2]}
    assert open_here(rig, attached_backend) == {kept.locator, newer.locator}


async def test_fencing_that_fails_is_logged_and_tried_again_and_holds_up_no_other_backend(
    rig: Rig, world: World, attached_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = new_id()
    await rig.host.attach(target(other, server="nas2"), establish=True)
    specs = {backend: await made(rig, backend) for backend in (attached_backend, other)}
    for backend, spec in specs.items():
        await attach(rig, backend, spec, volume_id=new_id())
    world.fail("fence_off", FaultCode.SERVER_UNREACHABLE, attached_backend)
    rig.held.hear((), 10)
    await rig.held.fence_off()
    assert "attachment not fenced off" in caplog.text
    assert world.fenced == [specs[other].locator]
    world.heal()
    await rig.held.fence_off()
    assert rig.journal.attachments() == ()


async def test_attach_under_a_newer_epoch_ends_the_older_one_which_the_fencing_then_spares(
    rig: Rig, world: World, attached_backend: str
) -> None:
    spec = await made(rig, attached_backend)
    await attach(rig, attached_backend, spec, epoch=1)
    rig.held.hear((), 10)
    async with rig.host.lock(attached_backend):
        task = asyncio.create_task(rig.held.fence_off())
        await asyncio.sleep(0)
        await attach(rig, attached_backend, spec, epoch=2, fence=11)
        assert world.fenced == [spec.locator]
    await task
    assert world.fenced == [spec.locator]
    assert open_here(rig, attached_backend) == {spec.locator}


async def test_attach_under_a_newer_epoch_is_refused_while_who_has_the_older_one_does_not_end(
    rig: Rig, world: World, attached_backend: str
) -> None:
    """He would write beside the new one, and his note would be gone."""
    spec = await made(rig, attached_backend)
    await attach(rig, attached_backend, spec, epoch=1)
    world.fail("fence_off", FaultCode.IN_USE)
    assert await code_of(attach(rig, attached_backend, spec, epoch=2, fence=11)) is FaultCode.IN_USE
    assert [note.epoch for note in rig.journal.attachments()] == [1]
    world.heal()
    await attach(rig, attached_backend, spec, epoch=2, fence=11)
    assert [note.epoch for note in rig.journal.attachments()] == [2]


async def test_fencing_does_not_wait_for_a_backend_that_is_away(rig: Rig, world: World, attached_backend: str) -> None:
    """A path that comes back would bring the writes of who has it open."""
    spec = await made(rig, attached_backend)
    await attach(rig, attached_backend, spec)
    world.fail("attach", FaultCode.SERVER_UNREACHABLE)
    world.mounted.clear()
    await code_of(rig.host.attach(target(attached_backend), establish=False))
    rig.held.hear((), 10)
    await rig.held.fence_off()
    assert rig.journal.attachments() == ()
    assert set(world.fenced) == {spec.locator}


async def test_release_ends_what_the_word_takes_away_and_waits_for_all_else(
    rig: Rig, world: World, attached_backend: str
) -> None:
    lost, kept = await made(rig, attached_backend), await made(rig, attached_backend)
    kept_id = new_id()
    await attach(rig, attached_backend, lost)
    await attach(rig, attached_backend, kept, volume_id=kept_id)
    assert await code_of(rig.held.refuse_release(attached_backend)) is FaultCode.IN_USE
    assert world.fenced == []
    rig.held.hear(held((kept_id, 1)), 10)
    assert await code_of(rig.held.refuse_release(attached_backend)) is FaultCode.IN_USE
    assert world.fenced == [lost.locator]
    rig.held.hear((), 11)
    await rig.held.refuse_release(attached_backend)
    assert world.fenced == [lost.locator, kept.locator]
    assert rig.journal.attachments() == ()


async def test_release_fails_while_what_was_taken_away_cannot_be_ended(
    rig: Rig, world: World, attached_backend: str
) -> None:
    await attach(rig, attached_backend, await made(rig, attached_backend))
    rig.held.hear((), 10)
    world.fail("fence_off", FaultCode.IN_USE)
    assert await code_of(rig.held.refuse_release(attached_backend)) is FaultCode.IN_USE
    assert len(rig.journal.attachments()) == 1


async def test_restore_brings_back_what_the_word_leaves(
    make_rig: MakeRig, world: World, backend_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    await rig.host.attach(target(backend_id), establish=True)
    kept, lost, broken = [await made(rig, backend_id) for _ in range(3)]
    ids = [new_id() for _ in range(3)]
    for volume_id, spec in zip(ids, (kept, lost, broken), strict=True):
        await attach(rig, backend_id, spec, volume_id=volume_id)
    power_cut(rig, backend_id, world)
    (rig.state.backends / backend_id / "volumes" / f"{broken.locator}.data").unlink()
    after = make_rig()
    after.held.hear(held((ids[0], 1), (ids[2], 1)), 10)
    await after.host.attach(target(backend_id), establish=False)
    await after.held.restore(backend_id)
    assert open_here(after, backend_id) == {kept.locator}
    assert "attachment not restored" in caplog.text
    assert len(after.journal.attachments()) == 3


async def test_restore_before_any_word_waits_for_it(make_rig: MakeRig, world: World, backend_id: str) -> None:
    rig = make_rig()
    await rig.host.attach(target(backend_id), establish=True)
    spec = await made(rig, backend_id)
    await attach(rig, backend_id, spec)
    power_cut(rig, backend_id, world)
    after = make_rig()
    await after.host.attach(target(backend_id), establish=False)
    await after.held.restore(backend_id)
    assert open_here(after, backend_id) == set()
    after.held.hear(held((VOLUME, 1)), 10)
    await after.held.fence_off()
    assert open_here(after, backend_id) == {spec.locator}


def power_cut(rig: Rig, backend_id: str, world: World) -> None:
    """Nothing is mounted or active on the host any more."""
    world.mounted.clear()
    for path in (rig.state.backends / backend_id / "attached").iterdir():
        path.unlink()


async def test_note_of_a_size_is_of_this_incarnation_alone(rig: Rig, attached_backend: str) -> None:
    spec, other = await made(rig, attached_backend), await made(rig, attached_backend)
    await attach(rig, attached_backend, spec)
    rig.held.note_size(VOLUME, msgspec.structs.replace(other, size_bytes=2 * SIZE))
    rig.held.note_size(VOLUME, msgspec.structs.replace(spec, size_bytes=4 * SIZE))
    assert [note.spec.size_bytes for note in rig.journal.attachments()] == [4 * SIZE]
