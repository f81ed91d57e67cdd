"""Convergence on what is wanted, its fences, and its patience with what fails."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from agent.app import facts_of
from agent.config import Intervals
from agent.journal import Record, RecordState
from agent.reconcile import PARALLEL, PARALLEL_SLOW, Reconciler
from schemas.agent_rpc import Intent, SyncReply, SyncRequest, Wanted
from schemas.backends import HealthStatus
from schemas.bus import BusTimeout
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.ids import new_id
from schemas.volume_rpc import AttachMode, AttachVolume, HeldVolume, VolumeFormat, VolumeSpec
from tests.agent.conftest import MakeRig
from tests.agent.fakes import FAST, Rig, World, target
from tests.agent.waiting import until

PATIENT = msgspec.structs.replace(FAST, probe_s=60.0, reconcile_s=600.0)


class Manager:
    """Answers syncs from `lines`; each reply has a higher fence, as the real one's have."""

    def __init__(self) -> None:
        self.lines: list[Wanted] = []
        self.fence = 100
        self.requests: list[SyncRequest] = []
        self.attachments: tuple[HeldVolume, ...] | None = None
        self.is_away = False
        self.garbage = b""

    async def answer(self, payload: bytes) -> bytes:
        if self.is_away:
            raise BusTimeout("no answer")
        self.requests.append(msgspec.json.decode(payload, type=SyncRequest))
        self.fence += 1
        if self.garbage:
            return self.garbage
        reply = SyncReply(fence=self.fence, host_name="hv1", wanted=tuple(self.lines), attachments=self.attachments)
        return msgspec.json.encode(reply)

    async def reached(self, count: int) -> None:
        """So many syncs have been asked for."""
        await until(lambda: len(self.requests) >= count)

    def want(
        self, *targets: Target, intent: Intent = Intent.ATTACHED, fence: int = 50, remove_marker: bool = False
    ) -> None:
        self.lines += [Wanted(target=t, intent=intent, fence=fence, remove_marker=remove_marker) for t in targets]


Start = Callable[..., Awaitable[Reconciler]]


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
async def start(manager: Manager) -> AsyncIterator[Start]:
    """Starts the reconciler of a rig; when it returns the first sync has been asked for."""
    tasks: list[asyncio.Task[None]] = []

    async def begin(rig: Rig, intervals: Intervals = FAST) -> Reconciler:
        reconciler = Reconciler(
            host=rig.host,
            held=rig.held,
            journal=rig.journal,
            ask=manager.answer,
            facts=facts_of({}),
            intervals=intervals,
        )
        before = len(manager.requests)
        tasks.append(asyncio.create_task(reconciler.run()))
        await until(lambda: len(manager.requests) > before or manager.is_away)
        return reconciler

    yield begin
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome


def is_attached(rig: Rig, wanted: Target) -> bool:
    record = rig.journal.record(wanted.backend_id)
    return record is not None and record.state is RecordState.ATTACHED and record.target.generation == wanted.generation


async def synced(manager: Manager, reconciler: Reconciler) -> None:
    """A sync that began after this call has been answered, and the one after it asked for."""
    for _ in range(2):
        expected = len(manager.requests) + 1
        reconciler.wake()
        await manager.reached(expected)


async def test_sync_attaches_what_is_wanted_and_tells_at_once(
    rig: Rig, world: World, manager: Manager, start: Start
) -> None:
    ids = [new_id() for _ in range(30)]
    world.markers.update(ids)
    manager.want(*map(target, ids))
    await start(rig, PATIENT)
    await until(lambda: len(manager.requests[-1].held) == 30)
    assert {held.generation for held in manager.requests[-1].held} == {1}
    assert world.mounted.keys() == set(ids)
    assert rig.journal.floor() >= 101


async def test_sync_never_makes_a_marker_on_shared_storage_but_does_on_its_own(
    rig: Rig, world: World, manager: Manager, start: Start
) -> None:
    shared, own = target(new_id()), target(new_id(), kind="local_file")
    manager.want(shared, own)
    await start(rig, PATIENT)
    await until(lambda: is_attached(rig, own))
    await until(lambda: rig.board.latest(shared.backend_id) is not None)
    failed = rig.board.latest(shared.backend_id)
    assert failed is not None
    assert (failed.status, failed.code) == (HealthStatus.UNREACHABLE, FaultCode.MARKER_MISSING)


async def test_sync_of_own_storage_known_before_does_not_make_its_marker_anew(
    rig: Rig, world: World, manager: Manager, start: Start
) -> None:
    own = target(new_id(), kind="local_file")
    manager.want(own)
    reconciler = await start(rig)
    await until(lambda: is_attached(rig, own))
    world.mounted.clear()
    world.markers.clear()
    reconciler.wake()
    await until(lambda: (seen := rig.board.latest(own.backend_id)) and seen.code is FaultCode.MARKER_MISSING)


async def test_sync_already_right_is_left_alone_and_takes_the_generation(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    newer = target(backend_id, generation=4)
    manager.want(newer)
    await start(rig, PATIENT)
    await until(lambda: is_attached(rig, newer))
    await until(lambda: manager.requests[-1].held[0].generation == 4)
    assert world.calls["attach"] == 1
    seen = rig.board.latest(backend_id)
    assert seen is not None
    assert seen.generation == 4


async def test_sync_changed_config_is_attached_anew(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    newer = target(backend_id, server="nas2", generation=2)
    manager.want(newer)
    await start(rig, PATIENT)
    await until(lambda: is_attached(rig, newer))
    assert world.mounted[backend_id]["server"] == "nas2"


async def test_sync_mount_lost_behind_our_back_is_mounted_again(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.mounted.clear()
    manager.want(target(backend_id))
    await start(rig, PATIENT)
    await until(lambda: backend_id in world.mounted)


async def test_sync_tombstone_is_released_with_its_marker_and_confirmed(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    manager.want(target(backend_id), intent=Intent.ABSENT, remove_marker=True)
    await start(rig, PATIENT)
    await until(lambda: manager.requests[-1].held == ())
    assert world.markers == set()
    assert world.mounted == {}


async def test_sync_extra_is_released_but_its_marker_stays(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    rig.hold_credentials(stray := new_id(), 1)
    await start(rig, PATIENT)
    await until(lambda: rig.host.held() == ())
    assert world.markers == {backend_id}
    assert rig.store.versions(stray) == ()


async def test_sync_extra_touched_by_a_newer_command_is_left_alone(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    rig.journal.remember_fences({backend_id: 10_000})
    await synced(manager, await start(rig, PATIENT))
    assert backend_id in world.mounted


async def test_sync_hold_only_remembers_the_fence(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    manager.want(target(backend_id, server="other"), target(unknown := new_id()), intent=Intent.HOLD, fence=77)
    await synced(manager, await start(rig, PATIENT))
    assert world.calls["attach"] == 1
    assert rig.journal.fence(backend_id) == 77
    assert rig.journal.fence(unknown) == 77, "also after the floor has passed it"


async def test_sync_line_overtaken_by_a_command_is_left_alone(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    rig.journal.remember_fences({backend_id: 51})
    manager.want(target(backend_id), fence=50)
    await synced(manager, await start(rig, PATIENT))
    assert not world.calls
    assert rig.journal.fence(backend_id) == 51


async def test_sync_line_overtaken_while_it_waits_for_the_lock_is_left_alone(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    world.markers.add(backend_id)
    manager.want(target(backend_id), fence=50)
    async with rig.host.lock(backend_id):
        reconciler = await start(rig, PATIENT)
        await until(lambda: rig.journal.fence(backend_id) == 50)
        rig.journal.remember_fences({backend_id: 60})
    await synced(manager, reconciler)
    assert not world.calls


async def test_sync_record_of_a_killed_attach_is_finished(
    make_rig: MakeRig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    rig = make_rig()
    rig.journal.put_record(Record(target(backend_id), RecordState.ATTACHING))
    world.markers.add(backend_id)
    wanted = target(backend_id)
    manager.want(wanted)
    after = make_rig()
    await start(after, PATIENT)
    await until(lambda: is_attached(after, wanted))


async def test_sync_one_failing_backend_stops_no_other(rig: Rig, world: World, manager: Manager, start: Start) -> None:
    ids = [new_id() for _ in range(5)]
    world.markers.update(ids)
    world.fail("attach", FaultCode.SERVER_UNREACHABLE, ids[0])
    world.faults["attach" + ids[1]] = ValueError("a bug")  # type: ignore[assignment]
    gate = world.hold("attach", ids[2])
    manager.want(*map(target, ids))
    reconciler = await start(rig, PATIENT)
    await until(lambda: world.mounted.keys() == set(ids[3:]))
    await synced(manager, reconciler)
    gate.set()
    await until(lambda: world.mounted.keys() == set(ids[2:]))
    seen = rig.board.latest(ids[0])
    assert seen is not None
    assert (seen.status, seen.code) == (HealthStatus.UNREACHABLE, FaultCode.SERVER_UNREACHABLE)


async def test_sync_many_dead_servers_leave_room_for_the_others(
    rig: Rig, world: World, manager: Manager, start: Start
) -> None:
    dead, newcomer = [new_id() for _ in range(2 * PARALLEL)], new_id()
    world.markers.update([*dead, newcomer])
    for backend_id in dead:
        world.fail("attach", FaultCode.SERVER_UNREACHABLE, backend_id)
    manager.want(*map(target, dead))
    reconciler = await start(rig, FAST)
    await until(lambda: all(world.calls["attach" + backend_id] for backend_id in dead))
    gates = [world.hold("attach", backend_id) for backend_id in dead]
    await until(lambda: sum(world.running["attach" + backend_id] for backend_id in dead) == PARALLEL_SLOW)
    # Those that wait for a place are free for probes and commands.
    queued = [backend_id for backend_id in dead if not world.running["attach" + backend_id]]
    assert len(queued) == len(dead) - PARALLEL_SLOW
    await until(lambda: not any(rig.host.lock(backend_id).locked() for backend_id in queued))
    manager.want(target(newcomer))
    reconciler.wake()
    await until(lambda: newcomer in world.mounted)
    assert sum(world.running["attach" + backend_id] for backend_id in dead) == PARALLEL_SLOW
    for gate in gates:
        gate.set()


async def test_sync_failing_attach_is_retried_at_its_pace_whatever_wakes_us(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    world.markers.add(backend_id)
    world.fail("attach", FaultCode.SERVER_UNREACHABLE)
    manager.want(target(backend_id))
    reconciler = await start(rig, PATIENT)
    await until(lambda: world.calls["attach"] == 1)
    await synced(manager, reconciler)
    await synced(manager, reconciler)
    assert world.calls["attach"] == 1


async def test_sync_failing_attach_succeeds_by_itself_when_the_server_returns(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    world.markers.add(backend_id)
    world.fail("attach", FaultCode.SERVER_UNREACHABLE)
    wanted = target(backend_id)
    manager.want(wanted)
    await start(rig, FAST)
    await until(lambda: world.calls["attach"] >= 3)
    world.heal()
    await until(lambda: is_attached(rig, wanted))


async def test_sync_attach_that_does_not_last_is_not_repeated_hotly(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.markers.add(backend_id)
    manager.want(target(backend_id))
    monkeypatch.setattr("tests.agent.fakes.FakeDriver.is_attached", _never)
    reconciler = await start(rig, PATIENT)
    await until(lambda: world.calls["attach"] + world.calls["prove"] == 1)
    await synced(manager, reconciler)
    await synced(manager, reconciler)
    assert world.calls["attach"] + world.calls["prove"] == 1


async def _never(*_: object) -> bool:
    return False


async def test_sync_missing_credentials_are_reported_and_used_when_they_come(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    world.markers.add(backend_id)
    wanted = target(backend_id, version=2)
    manager.want(wanted)
    reconciler = await start(rig, PATIENT)
    await until(lambda: (seen := rig.board.latest(backend_id)) and seen.code is FaultCode.NEEDS_CREDENTIALS)
    assert world.calls["attach"] == 0
    rig.hold_credentials(backend_id, 2)
    reconciler.wake()
    await until(lambda: is_attached(rig, wanted))
    await until(lambda: manager.requests[-1].held[0].credential_version == 2)


async def test_sync_new_form_failing_beside_the_old_is_amber(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.fail("attach", FaultCode.IN_USE)
    manager.want(target(backend_id, server="nas2", generation=2))
    await start(rig, PATIENT)
    await until(lambda: (seen := rig.board.latest(backend_id)) and seen.code is FaultCode.IN_USE)
    seen = await rig.host.probe(backend_id)
    assert (seen.status, seen.code, seen.generation) == (HealthStatus.DEGRADED, FaultCode.IN_USE, 1)


async def test_sync_unknown_kind_is_reported_and_harms_nobody(
    rig: Rig, world: World, manager: Manager, start: Start
) -> None:
    strange, good = target(new_id(), kind="floppy"), target(new_id())
    world.markers.add(good.backend_id)
    manager.want(strange, good, target("../../etc"))
    await start(rig, PATIENT)
    await until(lambda: is_attached(rig, good))
    seen = rig.board.latest(strange.backend_id)
    assert seen is not None
    assert seen.code is FaultCode.KIND_UNSUPPORTED


async def test_sync_no_longer_wanted_is_no_longer_reported(
    rig: Rig, manager: Manager, start: Start, backend_id: str
) -> None:
    manager.want(target(backend_id, version=1))
    reconciler = await start(rig, PATIENT)
    await until(lambda: rig.board.latest(backend_id) is not None)
    manager.lines.clear()
    await synced(manager, reconciler)
    assert rig.board.latest(backend_id) is None


async def test_sync_failing_or_garbled_is_tried_again(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    world.markers.add(backend_id)
    wanted = target(backend_id)
    manager.want(wanted)
    manager.is_away = True
    reconciler = await start(rig)
    manager.garbage, manager.is_away = b"{\xff", False
    reconciler.wake()
    await until(lambda: manager.requests)
    manager.garbage = b""
    await until(lambda: is_attached(rig, wanted), timeout_s=10)


async def test_sync_survives_a_full_disk(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def full(*_: object) -> None:
        refused.append(1)
        raise sqlite3.OperationalError("database or disk is full")

    world.markers.add(backend_id)
    wanted = target(backend_id)
    manager.want(wanted)
    with monkeypatch.context() as patch:
        patch.setattr(rig.journal, "remember_fences", full)
        await start(rig)
        await until(lambda: refused)
    await until(lambda: is_attached(rig, wanted), timeout_s=10)


async def test_sync_release_that_fails_is_retried(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.fail("release", FaultCode.IN_USE)
    manager.want(target(backend_id), intent=Intent.ABSENT)
    await start(rig, FAST)
    await until(lambda: world.calls["release"] == 1)
    world.heal()
    await until(lambda: rig.host.held() == ())


async def test_sync_many_wakes_count_as_few(rig: Rig, manager: Manager, start: Start) -> None:
    reconciler = await start(rig, PATIENT)
    for _ in range(100):
        reconciler.wake()
        await asyncio.sleep(0)
    await until(lambda: len(manager.requests) >= 2)
    assert len(manager.requests) <= 3


async def held_volume(rig: Rig, backend_id: str, *, fence: int = 60) -> AttachVolume:
    """A volume of the backend that is attached here, by a command of that fence."""
    spec = VolumeSpec(locator=os.urandom(16).hex(), format=VolumeFormat.RAW, size_bytes=4096)
    command = AttachVolume(
        command_id=new_id(),
        backend_id=backend_id,
        volume_id=new_id(),
        fence=fence,
        ttl_ms=5000,
        spec=spec,
        epoch=1,
        mode=AttachMode.RW,
    )
    await rig.host.volumes(backend_id).make(spec, None)
    await rig.held.attach(command)
    return command


async def test_sync_fences_off_the_volumes_that_its_word_does_not_know(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    manager.want(target(backend_id))
    kept, lost, newer = [await held_volume(rig, backend_id, fence=fence) for fence in (60, 60, 10_000)]
    manager.attachments = (HeldVolume(volume_id=kept.volume_id, epoch=1),)
    await start(rig, PATIENT)
    await until(lambda: world.fenced == [lost.spec.locator])
    assert {note.volume_id for note in rig.journal.attachments()} == {kept.volume_id, newer.volume_id}


async def test_sync_of_a_manager_that_knows_no_volumes_fences_off_none(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    manager.want(target(backend_id))
    await held_volume(rig, backend_id)
    await synced(manager, await start(rig, PATIENT))
    assert world.fenced == []
    assert len(rig.journal.attachments()) == 1


async def test_sync_that_fences_off_on_a_dead_backend_delays_no_other_and_the_newest_word_counts(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    manager.want(target(backend_id))
    one, other = [await held_volume(rig, backend_id) for _ in range(2)]
    other_backend = target(new_id(), kind="local_file")
    gate = world.hold("fence_off")
    manager.attachments = (HeldVolume(volume_id=other.volume_id, epoch=1),)
    reconciler = await start(rig, PATIENT)
    await until(lambda: world.running["fence_off" + backend_id])
    manager.want(other_backend)
    manager.attachments = ()
    await synced(manager, reconciler)
    await until(lambda: is_attached(rig, other_backend))
    assert world.calls["fence_off"] == 1
    gate.set()
    await until(lambda: world.fenced == [one.spec.locator, other.spec.locator])


async def test_sync_that_takes_a_backend_away_ends_first_who_has_its_volumes(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    """A mount can be left to who has it open, and a mapping stays: nobody would find them afterwards."""
    await rig.host.attach(target(backend_id), establish=True)
    volume = await held_volume(rig, backend_id)
    world.fail("fence_off", FaultCode.IN_USE)
    manager.attachments = ()
    await start(rig, FAST)
    await until(lambda: world.calls["fence_off"] > 1)
    assert is_attached(rig, target(backend_id))
    assert world.calls["release"] == 0
    world.heal()
    await until(lambda: not is_attached(rig, target(backend_id)))
    assert world.fenced == [volume.spec.locator]


async def test_sync_after_a_power_cut_brings_back_the_volumes_that_are_left_to_this_host(
    make_rig: MakeRig, world: World, manager: Manager, start: Start, backend_id: str
) -> None:
    rig = make_rig()
    await rig.host.attach(target(backend_id), establish=True)
    kept, lost = [await held_volume(rig, backend_id) for _ in range(2)]
    attached = rig.state.backends / backend_id / "attached"
    world.mounted.clear()
    for path in attached.iterdir():
        path.unlink()
    after = make_rig()
    manager.want(target(backend_id))
    manager.attachments = (HeldVolume(volume_id=kept.volume_id, epoch=1),)
    await start(after, PATIENT)
    await until(lambda: [path.name for path in attached.iterdir()] == [kept.spec.locator])
    await until(lambda: world.fenced == [lost.spec.locator])
    assert world.calls["volume_attach"] == 3, "the lost one was never attached again"


async def test_bug_met_in_fencing_is_logged_and_the_next_sync_tries_again(
    rig: Rig, world: World, manager: Manager, start: Start, backend_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    manager.want(target(backend_id))
    lost = await held_volume(rig, backend_id)
    manager.attachments = ()
    with monkeypatch.context() as patch:
        patch.setattr(rig.journal, "attachments", _raise)
        reconciler = await start(rig, PATIENT)
        await synced(manager, reconciler)
    reconciler.wake()
    await until(lambda: world.fenced == [lost.spec.locator])


def _raise() -> None:
    raise sqlite3.OperationalError("database or disk is full")
