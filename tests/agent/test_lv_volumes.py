"""Volumes as LVs: exact command lines, recorded failures, and a fake sysfs in which activations show."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agent.errors import AgentFault
from agent.scsi import dm_uuid_of
from agent.volumes import Extent, VolumeStore
from agent.workers import WorkerPool
from schemas.faults import FaultCode
from schemas.volume_rpc import AttachedAt, AttachMode, FoundVolume, VolumeFormat, Wipe
from tests.agent.lv_san import (
    CREATES,
    CREATES_THIN,
    DM_NAME,
    DM_UUID,
    EXTENT,
    LOCATOR,
    LV_TAGS,
    MIB,
    NAME,
    NUMBER,
    ORIGIN,
    OTHER_NAME,
    REMOVES,
    SNAPSHOTS,
    SPEC,
    LvSan,
    lv_report,
    row,
    seen,
    tail,
)
from tests.agent.recorded_commands import Step, replay
from tests.agent.san import OTHER_BACKEND, POOL, PROBE, SCOPE, TAGS, VG_UUID, San, fault_of, target_for, vgs

LOCKED = (*SCOPE[:-1], f"{SCOPE[-1]} global/use_lvmlockd=1")
NODE = f"/dev/mapper/{DM_NAME}"
THIN_ROW = row(pool=POOL)


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    async with WorkerPool() as pool:
        yield pool


@pytest.fixture
async def host(tmp_path: Path, pool: WorkerPool) -> AsyncIterator[LvSan]:
    """A test that ends before every step was asked for fails."""
    host = await LvSan.make(tmp_path, pool)
    yield host
    host.san.commands.assert_done()


@pytest.fixture
async def thin(tmp_path: Path, pool: WorkerPool) -> AsyncIterator[LvSan]:
    host = await LvSan.make(tmp_path, pool, thin=True)
    yield host
    host.san.commands.assert_done()


async def open_once(host: LvSan, *, is_writable: bool = False) -> Extent:
    async with host.volumes.opened(SPEC, is_writable=is_writable) as extent:
        assert host.is_active
    return extent


# Made.


async def test_volumes_of_a_backend_that_is_not_attached_are_converging(tmp_path: Path, pool: WorkerPool) -> None:
    san = San(tmp_path, pool)
    with pytest.raises(AgentFault) as caught:
        san.driver.volumes(target_for(), san.space)
    assert caught.value.fault.code is FaultCode.CONVERGING and caught.value.is_retryable


async def test_make_creates_a_thick_lv_that_is_to_be_filled(host: LvSan) -> None:
    store: VolumeStore = host.volumes
    host.then(seen(), CREATES, lv_report(row()))
    assert await store.make(SPEC, None) is False
    assert not host.is_active


async def test_make_of_a_thick_clone_leaves_it_to_be_filled(host: LvSan) -> None:
    host.then(seen(row(OTHER_NAME, 8 * MIB)), CREATES, lv_report(row(), row(OTHER_NAME, 8 * MIB)))
    assert await host.volumes.make(SPEC, ORIGIN) is False


async def test_make_again_changes_nothing(host: LvSan) -> None:
    host.then(seen(row()))
    assert await host.volumes.make(SPEC, None) is False
    assert host.calls == []


async def test_make_of_qcow2_is_refused_before_any_tool(host: LvSan) -> None:
    spec = msgspec.structs.replace(SPEC, format=VolumeFormat.QCOW2)
    assert (await fault_of(host.volumes.make(spec, None))).code is FaultCode.UNSUPPORTED


@pytest.mark.parametrize("recording", ["lv_no_space", "lv_too_large"])
async def test_make_without_space_leaves_nothing(recording: str, host: LvSan) -> None:
    host.then(seen(), replay("lvm", recording, CREATES.argv), seen())
    assert (await fault_of(host.volumes.make(SPEC, None))).code is FaultCode.NO_SPACE


async def test_make_that_failed_but_came_to_its_end_is_taken_back(host: LvSan) -> None:
    late = AgentFault.of(FaultCode.TIMED_OUT, "lvcreate did not end within 30 s")
    host.then(seen(), replace(CREATES, fault=late), seen(row()), REMOVES)
    assert (await fault_of(host.volumes.make(SPEC, None))).code is FaultCode.TIMED_OUT


async def test_make_that_cannot_be_taken_back_says_why_it_failed(host: LvSan) -> None:
    host.then(seen(), replay("lvm", "lv_no_space", CREATES.argv), seen(row()), replay("lvm", "locked", REMOVES.argv))
    assert (await fault_of(host.volumes.make(SPEC, None))).code is FaultCode.NO_SPACE


async def test_make_beside_anothers_lv_of_the_name_touches_it_not(host: LvSan) -> None:
    host.then(seen(row(tags="theirs")))
    fault = await fault_of(host.volumes.make(SPEC, None))
    assert fault.code is FaultCode.FOREIGN_DATA and f"lvchange --addtag {TAGS[0]}" in fault.remedy


async def test_make_of_thin_is_empty_and_of_its_size(thin: LvSan) -> None:
    thin.then(seen(), CREATES_THIN, lv_report(THIN_ROW))
    assert await thin.volumes.make(SPEC, None) is False


async def test_make_of_a_thin_clone_shares_and_grows(thin: LvSan) -> None:
    origin = row(OTHER_NAME, 8 * MIB, pool=POOL)
    made = row(size_bytes=8 * MIB, pool=POOL, origin=OTHER_NAME)
    grown = row(pool=POOL, origin=OTHER_NAME)
    extends = thin.resizes("lvextend", 12 * MIB)
    thin.then(seen(origin), SNAPSHOTS, lv_report(made, origin), extends, lv_report(grown, origin))
    assert await thin.volumes.make(SPEC, ORIGIN) is True
    # Killed before it grew, and after all.
    thin.then(seen(made, origin), extends, lv_report(grown, origin), seen(grown, origin))
    assert await thin.volumes.make(SPEC, ORIGIN) is True
    assert await thin.volumes.make(SPEC, ORIGIN) is True


async def test_make_of_a_thin_clone_of_something_larger_is_taken_back(thin: LvSan) -> None:
    large = row(size_bytes=64 * MIB, pool=POOL, origin=OTHER_NAME)
    origin = row(OTHER_NAME, 64 * MIB, pool=POOL)
    thin.then(seen(origin), SNAPSHOTS, lv_report(large, origin), seen(large, origin), REMOVES)
    assert (await fault_of(thin.volumes.make(SPEC, ORIGIN))).code is FaultCode.WRONG_SIZE


async def test_make_of_a_clone_whose_origin_is_gone_is_volume_missing(thin: LvSan) -> None:
    thin.then(seen(), seen())
    assert (await fault_of(thin.volumes.make(SPEC, ORIGIN))).code is FaultCode.VOLUME_MISSING


async def test_make_that_lvm_has_rounded_up_is_wrong_size_and_taken_back(host: LvSan) -> None:
    """A VM would see more than the volume has, and what it puts there no copy would have."""
    rounded = row(size_bytes=32 * MIB)
    host.then(seen(), CREATES, lv_report(rounded), seen(rounded), REMOVES)
    fault = await fault_of(host.volumes.make(SPEC, None))
    assert fault.code is FaultCode.WRONG_SIZE
    assert fault.detail == f"vg_vms/{NAME} has {32 * MIB} bytes, and the volume {12 * MIB}"


async def test_make_in_a_vg_with_larger_extents_is_refused_before_any_change(host: LvSan) -> None:
    host.then(vgs(*TAGS, extent_bytes=32 * MIB), lv_report())
    fault = await fault_of(host.volumes.make(SPEC, None))
    assert fault.code is FaultCode.UNSUPPORTED and "vgchange --physicalextentsize 4096k vg_vms" in fault.remedy


async def test_make_of_thin_in_a_pool_that_does_not_zero_is_refused_before_any_change(thin: LvSan) -> None:
    thin.then(seen(row(POOL, 64 * MIB, zero=""), row(OTHER_NAME, pool=POOL, zero="")))
    fault = await fault_of(thin.volumes.make(SPEC, None))
    assert fault.code is FaultCode.UNSUPPORTED and f"lvchange --zero y vg_vms/{POOL}" in fault.remedy


async def test_make_on_a_vg_that_has_lost_its_tags_makes_nothing(host: LvSan) -> None:
    host.then(vgs())
    assert (await fault_of(host.volumes.make(SPEC, None))).code is FaultCode.MARKER_MISSING


# Opened for a worker.


async def test_opened_is_active_for_as_long_as_the_block_lasts(host: LvSan) -> None:
    host.then(seen(row()), host.activates(), host.deactivates())
    assert await open_once(host) == Extent(
        folder=Path("/dev"), name=f"dm-{NUMBER}", format=VolumeFormat.RAW, size_bytes=12 * MIB, dm_uuid=DM_UUID
    )
    assert not host.is_active
    assert host.jobs == [("wait_for_node", {"path": f"/dev/dm-{NUMBER}"})]


async def test_opened_leaves_nothing_active_when_the_block_fails(host: LvSan) -> None:
    host.then(seen(row()), host.activates(), host.deactivates())
    with pytest.raises(ZeroDivisionError):
        async with host.volumes.opened(SPEC, is_writable=True):
            raise ZeroDivisionError
    assert not host.is_active


async def test_opened_leaves_what_is_attached_active(host: LvSan) -> None:
    host.map()
    host.then(seen(row()))
    await open_once(host)
    assert host.is_active


async def test_opened_of_thin_that_stays_active_has_not_been_done_well(thin: LvSan) -> None:
    """With it the whole pool stays active here, and another host would be given it."""
    thin.then(seen(THIN_ROW), thin.activates(), replay("lvm", "lv_open", thin.deactivates().argv))
    assert (await fault_of(open_once(thin))).code is FaultCode.IN_USE
    assert thin.is_active


async def test_opened_of_thick_that_stays_active_is_left_to_the_next_sweep(host: LvSan) -> None:
    host.then(seen(row()), host.activates(), replay("lvm", "lv_open", host.deactivates().argv))
    await open_once(host)
    host.then(seen(row()), host.deactivates(), host.activates(), host.deactivates())
    await open_once(host)
    assert not host.is_active


async def test_opened_twice_ends_with_the_last(host: LvSan) -> None:
    host.then(seen(row()), host.activates(), seen(row()))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(host.volumes.opened(SPEC, is_writable=False))
        await open_once(host)
        assert host.is_active
        host.then(host.deactivates())
    assert not host.is_active


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ((), FaultCode.VOLUME_MISSING),
        ((row(size_bytes=8 * MIB),), FaultCode.WRONG_SIZE),
        ((row(size_bytes=16 * MIB),), FaultCode.WRONG_SIZE),
        # Of a VG whose extents are larger, rounded up.
        ((row(size_bytes=12 * MIB + 512),), FaultCode.WRONG_SIZE),
        ((row(own=8 * MIB),), FaultCode.WRONG_SIZE),
        ((row(tags=TAGS[0]),), FaultCode.FOREIGN_DATA),
    ],
)
async def test_opened_of_what_is_not_the_volume_activates_nothing(
    rows: tuple[dict[str, str], ...], code: FaultCode, host: LvSan
) -> None:
    host.then(seen(*rows))
    assert (await fault_of(open_once(host))).code is code


@pytest.mark.parametrize(("kernel_bytes", "is_suspended"), [(8 * MIB, False), (12 * MIB, True)])
async def test_opened_of_a_stale_mapping_refreshes_it(kernel_bytes: int, is_suspended: bool, host: LvSan) -> None:
    """Another host has resized it, or the agent was killed amid a change."""
    host.map()
    host.kernel_bytes, host.is_suspended = kernel_bytes, is_suspended
    host.then(seen(row()), host.refreshes())
    await open_once(host)


async def test_opened_of_a_mapping_that_stays_stale_is_wrong_size_and_inactive_again(host: LvSan) -> None:
    host.kernel_bytes = 8 * MIB
    host.then(seen(row()), host.activates(), host.refreshes(8 * MIB), host.deactivates())
    assert (await fault_of(open_once(host))).code is FaultCode.WRONG_SIZE
    assert not host.is_active


async def test_opened_that_was_killed_is_swept_by_the_next(host: LvSan) -> None:
    host.then(seen(row()), host.activates())
    block = host.volumes.opened(SPEC, is_writable=True)
    await block.__aenter__()
    host.restart()
    host.then(seen(row()), host.deactivates(), host.activates(), host.deactivates())
    await open_once(host)
    assert not host.is_active


async def test_opened_that_was_killed_and_then_attached_stays_active(host: LvSan) -> None:
    host.then(seen(row()), host.activates())
    block = host.volumes.opened(SPEC, is_writable=True)
    await block.__aenter__()
    host.restart()
    host.then(seen(row()), host.refreshes(), seen(row()))
    await host.volumes.attach(SPEC, AttachMode.RW)
    await open_once(host)
    assert host.is_active


async def test_opened_that_cannot_be_deactivated_succeeds_and_is_swept_later(host: LvSan) -> None:
    """udev may have it open for a moment."""
    host.then(seen(row()), host.activates(), replay("lvm", "lv_open", host.deactivates().argv))
    await open_once(host)
    assert host.is_active
    host.then(seen(row()), host.deactivates(), host.activates(), host.deactivates())
    await open_once(host)
    assert not host.is_active


@pytest.mark.parametrize(("percent", "is_zero"), [("0.00", True), ("0.01", False), ("", False)])
async def test_opened_thin_volume_is_zero_only_while_nothing_was_written(
    percent: str, is_zero: bool, thin: LvSan
) -> None:
    thin.then(seen(THIN_ROW), thin.activates(), lv_report(row(pool=POOL, percent=percent)), thin.deactivates())
    assert (await open_once(thin, is_writable=True)).is_zero is is_zero


# Filled and wiped.


async def test_settle_of_a_volume_that_has_its_size_has_nothing_to_do(host: LvSan) -> None:
    host.then(seen(row()), seen(row(pool=POOL)))
    await host.volumes.settle(SPEC)
    await host.volumes.settle(SPEC)
    assert host.calls == [] and host.jobs == []


async def test_settle_of_a_volume_that_has_lost_its_size_is_wrong_size(host: LvSan) -> None:
    host.then(seen(row(size_bytes=8 * MIB)))
    assert (await fault_of(host.volumes.settle(SPEC))).code is FaultCode.WRONG_SIZE


@pytest.mark.parametrize(
    ("wipe", "found", "job"),
    [
        (Wipe.ZERO, row(), "zero_device"),
        (Wipe.DISCARD, row(), "discard_device"),
        (Wipe.ZERO, THIN_ROW, "discard_device"),
        (Wipe.DISCARD, THIN_ROW, "discard_device"),
    ],
)
async def test_wipe_overwrites_the_whole_lv(
    wipe: Wipe, found: dict[str, str], job: str, host: LvSan, tmp_path: Path
) -> None:
    host.then(seen(found), host.activates(), host.deactivates())
    await host.volumes.wipe(SPEC, wipe, tmp_path / "progress")
    words = {"from_bytes": 0, "to_bytes": 12 * MIB, "progress": str(tmp_path / "progress")}
    assert host.changes() == [(job, words)]
    assert not host.is_active


async def test_wipe_none_and_wipe_of_what_is_gone_do_nothing(host: LvSan, tmp_path: Path) -> None:
    await host.volumes.wipe(SPEC, Wipe.NONE, tmp_path / "progress")
    host.then(seen())
    await host.volumes.wipe(SPEC, Wipe.ZERO, tmp_path / "progress")
    assert host.calls == [] and host.jobs == []


async def test_wipe_of_what_a_vm_has_open_touches_nothing(host: LvSan, tmp_path: Path) -> None:
    host.map()
    host.then(seen(row()), replay("lvm", "lv_open", host.deactivates().argv))
    fault = await fault_of(host.volumes.wipe(SPEC, Wipe.ZERO, tmp_path / "progress"))
    assert fault.code is FaultCode.IN_USE and host.jobs == []


# Erased.


async def test_erase_deactivates_and_removes_by_uuid_and_tag(host: LvSan) -> None:
    host.map()
    host.then(seen(row()), host.deactivates(), REMOVES)
    await host.volumes.erase(SPEC)
    assert not host.is_active


async def test_erase_of_what_is_gone_is_success(host: LvSan) -> None:
    host.then(seen())
    await host.volumes.erase(SPEC)
    assert host.calls == []


async def test_erase_of_an_lv_that_another_host_removed_takes_its_mapping(host: LvSan) -> None:
    host.map()
    host.then(seen(), host.removes_mapping())
    await host.volumes.erase(SPEC)
    assert not host.is_active


async def test_erase_while_it_is_open_or_copied_is_in_use(host: LvSan) -> None:
    host.then(seen(row()), host.activates(), seen(row()))
    async with host.volumes.opened(SPEC, is_writable=False):
        assert (await fault_of(host.volumes.erase(SPEC))).code is FaultCode.IN_USE
        host.then(host.deactivates())
    host.map()
    host.then(seen(row()), replay("lvm", "lv_mapped_upon", host.deactivates().argv))
    assert (await fault_of(host.volumes.erase(SPEC))).code is FaultCode.IN_USE


# Resized. What comes of it, whoever stops in the middle: test_lv_resizes.py.

LONG = msgspec.structs.replace(SPEC, size_bytes=20 * MIB)
SHORT = msgspec.structs.replace(SPEC, size_bytes=8 * MIB)


async def test_resize_marks_what_it_adds_until_it_is_told_that_it_was_blanked(host: LvSan, tmp_path: Path) -> None:
    host.then(seen(row()), host.marks(12 * MIB), host.resizes("lvextend", 20 * MIB))
    await host.volumes.resize(SPEC, 20 * MIB, may_shrink=False)
    assert host.changes() == []

    long = row(size_bytes=20 * MIB, own=12 * MIB)
    host.then(seen(long), host.activates(), host.deactivates())
    await host.volumes.blank(LONG, 12 * MIB, tmp_path / "progress")
    words = {"from_bytes": 12 * MIB, "to_bytes": 20 * MIB, "progress": str(tmp_path / "progress")}
    assert host.changes() == [("zero_device", words)]

    host.then(seen(long), host.unmarks(12 * MIB))
    await host.volumes.resize(LONG, 20 * MIB, may_shrink=False)


async def test_resize_that_is_repeated_after_a_kill_goes_on(host: LvSan) -> None:
    host.then(seen(row(own=12 * MIB)), host.resizes("lvextend", 20 * MIB))
    await host.volumes.resize(SPEC, 20 * MIB, may_shrink=False)
    host.then(seen(row(size_bytes=20 * MIB, own=12 * MIB)))
    await host.volumes.resize(SPEC, 20 * MIB, may_shrink=False)


async def test_resize_of_an_lv_with_two_marks_goes_by_the_lower_and_takes_both(host: LvSan, tmp_path: Path) -> None:
    """A shrink that stopped in the middle, and then another one."""
    found = row(tags=f"{LV_TAGS},{tail(4 * MIB)}", own=8 * MIB)
    host.then(seen(found), host.activates(), host.deactivates(), seen(found), host.unmarks(4 * MIB, 8 * MIB))
    await host.volumes.blank(SPEC, 4 * MIB, tmp_path / "progress")
    assert [args["from_bytes"] for _, args in host.changes()] == [4 * MIB]
    await host.volumes.resize(SPEC, 12 * MIB, may_shrink=False)


async def test_resize_of_an_attached_volume_leaves_it_active(host: LvSan) -> None:
    host.map()
    host.then(seen(row()), host.marks(12 * MIB), host.resizes("lvextend", 20 * MIB))
    await host.volumes.resize(SPEC, 20 * MIB, may_shrink=False)
    assert host.is_active


async def test_blank_leaves_what_bears_no_mark_alone(host: LvSan, tmp_path: Path) -> None:
    """Of a shrink that was refused, what it would have cut off is the volume's."""
    host.then(seen(row(size_bytes=20 * MIB)))
    await host.volumes.blank(LONG, 12 * MIB, tmp_path / "progress")
    assert host.calls == [] and host.jobs == []


async def test_blank_of_an_lv_that_is_too_short_is_wrong_size(host: LvSan, tmp_path: Path) -> None:
    host.then(seen(row(own=8 * MIB)))
    assert (await fault_of(host.volumes.blank(LONG, 8 * MIB, tmp_path / "progress"))).code is FaultCode.WRONG_SIZE


async def test_resize_of_a_thin_volume_marks_and_blanks_nothing(thin: LvSan, tmp_path: Path) -> None:
    thin.then(seen(THIN_ROW), thin.resizes("lvextend", 20 * MIB), seen(row(size_bytes=20 * MIB, pool=POOL)))
    await thin.volumes.resize(SPEC, 20 * MIB, may_shrink=False)
    await thin.volumes.blank(LONG, 12 * MIB, tmp_path / "progress")
    assert thin.jobs == []


async def test_resize_to_its_size_has_nothing_to_do(host: LvSan) -> None:
    host.then(seen(row()))
    await host.volumes.resize(SPEC, 12 * MIB, may_shrink=False)
    assert host.calls == [] and host.jobs == []


async def test_resize_without_space_leaves_the_volume_usable(host: LvSan) -> None:
    host.then(
        seen(row()), host.marks(12 * MIB), replay("lvm", "lv_extend_no_space", host.resizes("lvextend", 20 * MIB).argv),
    )  # fmt: skip
    assert (await fault_of(host.volumes.resize(SPEC, 20 * MIB, may_shrink=False))).code is FaultCode.NO_SPACE
    host.then(seen(row(own=12 * MIB)), host.activates())
    await host.volumes.attach(SPEC, AttachMode.RW)


async def test_resize_to_its_size_cuts_what_a_failed_one_had_added_also_in_use(host: LvSan) -> None:
    host.map()
    found = row(size_bytes=20 * MIB, own=12 * MIB)
    host.then(seen(found), host.resizes("lvreduce", 12 * MIB), host.unmarks(12 * MIB))
    await host.volumes.resize(SPEC, 12 * MIB, may_shrink=False)
    assert host.is_active


@pytest.mark.parametrize("size_bytes", [12 * MIB, 16 * MIB, 20 * MIB, 24 * MIB])
async def test_resize_of_an_lv_that_is_longer_than_the_volume_touches_nothing_unless_it_may(
    size_bytes: int, host: LvSan
) -> None:
    """A database that was restored knows less than is there."""
    host.map()
    host.then(seen(row(size_bytes=20 * MIB)))
    fault = await fault_of(host.volumes.resize(SPEC, size_bytes, may_shrink=False))
    assert fault.code is FaultCode.WRONG_SIZE
    assert f"a resize to {12 * MIB} with may_shrink cuts off what is too much" in fault.remedy
    assert host.is_active and host.calls == [] and host.jobs == []


async def test_resize_that_may_cuts_an_lv_that_is_longer_than_the_volume(host: LvSan) -> None:
    host.map()
    host.then(
        seen(row(size_bytes=20 * MIB)), host.deactivates(), host.resizes("lvreduce", 12 * MIB), lv_report(row()),
        host.activates(),
    )  # fmt: skip
    await host.volumes.resize(SPEC, 12 * MIB, may_shrink=True)
    assert host.is_active


async def test_resize_that_may_and_grows_keeps_nothing_that_the_volume_did_not_have(host: LvSan) -> None:
    host.then(seen(row(size_bytes=20 * MIB)), host.marks(12 * MIB), host.resizes("lvreduce", 16 * MIB))
    await host.volumes.resize(SPEC, 16 * MIB, may_shrink=True)


async def test_resize_that_may_cut_what_is_too_long_while_a_vm_has_it_open_is_in_use(host: LvSan) -> None:
    host.map()
    host.then(seen(row(size_bytes=20 * MIB)), replay("lvm", "lv_open", host.deactivates().argv))
    assert (await fault_of(host.volumes.resize(SPEC, 12 * MIB, may_shrink=True))).code is FaultCode.IN_USE


async def test_resize_to_less_of_an_lv_that_is_longer_than_the_volume_is_wrong_size(host: LvSan) -> None:
    host.then(seen(row(size_bytes=20 * MIB)))
    fault = await fault_of(host.volumes.resize(SPEC, 8 * MIB, may_shrink=True))
    assert fault.code is FaultCode.WRONG_SIZE and str(20 * MIB) in fault.detail


async def test_resize_of_a_volume_that_has_lost_its_end_says_how_to_take_it_as_it_is(host: LvSan) -> None:
    host.then(seen(row(size_bytes=8 * MIB)))
    fault = await fault_of(host.volumes.resize(SPEC, 20 * MIB, may_shrink=False))
    assert fault.code is FaultCode.WRONG_SIZE and f"a resize to {8 * MIB} with may_shrink" in fault.remedy
    host.then(seen(row(size_bytes=8 * MIB)))
    await host.volumes.resize(SPEC, 8 * MIB, may_shrink=True)
    assert host.calls == []


async def test_resize_that_would_cut_is_refused_unless_it_may(host: LvSan) -> None:
    host.then(seen(row()))
    fault = await fault_of(host.volumes.resize(SPEC, 8 * MIB, may_shrink=False))
    assert fault.code is FaultCode.WRONG_SIZE and "allow it to shrink" in fault.remedy


async def test_resize_that_cuts_leaves_the_rest_as_it_is(host: LvSan) -> None:
    host.then(seen(row()), host.resizes("lvreduce", 8 * MIB), seen(row(size_bytes=8 * MIB)))
    await host.volumes.resize(SPEC, 8 * MIB, may_shrink=True)
    await host.volumes.resize(SPEC, 8 * MIB, may_shrink=True)
    assert host.jobs == []


@pytest.mark.parametrize(("policy", "job"), [("zero", "zero_device"), ("discard", "discard_device")])
async def test_resize_that_cuts_where_deleted_volumes_are_wiped_cuts_what_was_wiped(
    policy: str, job: str, tmp_path: Path, pool: WorkerPool
) -> None:
    host = await LvSan.make(tmp_path, pool, wipe_on_delete=policy)
    marked = row(own=8 * MIB)
    host.then(seen(row()), host.marks(8 * MIB), seen(marked))
    await host.volumes.resize(SPEC, 8 * MIB, may_shrink=True)
    await host.volumes.resize(SPEC, 8 * MIB, may_shrink=True)

    host.then(seen(marked), host.activates(), host.deactivates())
    await host.volumes.blank(SHORT, 8 * MIB, tmp_path / "progress")
    words = {"from_bytes": 8 * MIB, "to_bytes": 12 * MIB, "progress": str(tmp_path / "progress")}
    assert host.changes() == [(job, words)]

    host.then(seen(marked), host.resizes("lvreduce", 8 * MIB), host.unmarks(8 * MIB))
    await host.volumes.resize(SHORT, 8 * MIB, may_shrink=True)
    host.san.commands.assert_done()


async def test_blank_zeroes_what_the_volume_gets_and_wipes_what_is_behind_it(tmp_path: Path, pool: WorkerPool) -> None:
    """What a shrink was to cut off, of a volume that now has another size."""
    host = await LvSan.make(tmp_path, pool, wipe_on_delete="discard")
    host.kernel_bytes = 20 * MIB
    once = (host.activates(), host.deactivates())
    host.then(seen(row(size_bytes=20 * MIB, own=8 * MIB)), once, once)
    await host.volumes.blank(SPEC, 8 * MIB, tmp_path / "progress")
    assert [(job, args["from_bytes"], args["to_bytes"]) for job, args in host.changes()] == [
        ("zero_device", 8 * MIB, 12 * MIB),
        ("discard_device", 12 * MIB, 20 * MIB),
    ]
    host.san.commands.assert_done()


async def test_resize_that_cuts_an_attached_volume_attaches_it_again(host: LvSan) -> None:
    host.map()
    host.then(
        seen(row()), host.deactivates(), host.resizes("lvreduce", 8 * MIB), lv_report(row(size_bytes=8 * MIB)),
        host.activates(),
    )  # fmt: skip
    await host.volumes.resize(SPEC, 8 * MIB, may_shrink=True)
    assert host.is_active


async def test_resize_that_cuts_what_a_vm_has_open_is_in_use(host: LvSan) -> None:
    host.map()
    host.then(seen(row()), replay("lvm", "lv_open", host.deactivates().argv))
    assert (await fault_of(host.volumes.resize(SPEC, 8 * MIB, may_shrink=True))).code is FaultCode.IN_USE


async def test_resize_that_cuts_a_thin_volume_is_unsupported(thin: LvSan) -> None:
    thin.then(seen(THIN_ROW))
    assert (await fault_of(thin.volumes.resize(SPEC, 8 * MIB, may_shrink=True))).code is FaultCode.UNSUPPORTED


# Attached.


@pytest.mark.parametrize("mode", AttachMode)
async def test_attach_answers_the_stable_name_of_the_active_lv(mode: AttachMode, host: LvSan) -> None:
    host.then(seen(row()), host.activates())
    assert await host.volumes.attach(SPEC, mode) == AttachedAt(path=NODE, type="block")
    assert host.is_active and host.jobs == [("wait_for_node", {"path": NODE})]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (row(own=8 * MIB), f"Resize the volume to its {12 * MIB} bytes"),
        (row(size_bytes=20 * MIB, own=12 * MIB), f"one to {12 * MIB} takes back what it added"),
        (row(size_bytes=8 * MIB), "Look who has cut it"),
        (row(size_bytes=20 * MIB), "Look who has made it longer"),
    ],
)
async def test_attach_of_an_lv_that_is_not_just_the_volume_is_wrong_size_and_says_what_to_do(
    found: dict[str, str], words: str, host: LvSan
) -> None:
    host.then(seen(found))
    fault = await fault_of(host.volumes.attach(SPEC, AttachMode.RW))
    assert fault.code is FaultCode.WRONG_SIZE and words in fault.remedy
    assert not host.is_active


async def test_attach_again_refreshes_what_is_mapped(host: LvSan) -> None:
    host.map()
    host.then(seen(row()), host.refreshes())
    assert (await host.volumes.attach(SPEC, AttachMode.RW)).path == NODE


async def test_attach_without_a_node_is_timed_out_and_inactive_again(host: LvSan) -> None:
    host.has_node = False
    host.then(seen(row()), host.activates(), host.deactivates())
    fault = await fault_of(host.volumes.attach(SPEC, AttachMode.RW))
    assert fault.code is FaultCode.TIMED_OUT and NODE in fault.detail and not host.is_active


async def test_attach_after_the_session_ended_removes_the_mapping_of_the_dead_disk(host: LvSan) -> None:
    host.map()
    (host.san.host.sysfs / f"devices/virtual/block/dm-{NUMBER}/slaves/sdb").unlink()
    (host.san.block_dir / f"holders/dm-{NUMBER}").unlink()
    host.then(seen(row()), host.removes_mapping(), host.activates())
    assert (await host.volumes.attach(SPEC, AttachMode.RW)).path == NODE


async def test_attach_of_an_lv_that_is_active_by_another_way_is_in_use(host: LvSan) -> None:
    host.then(seen(row()), replace(host.activates(), effect=lambda: None))
    fault = await fault_of(host.volumes.attach(SPEC, AttachMode.RW))
    assert fault.code is FaultCode.IN_USE and f"vg_vms/{NAME}" in fault.remedy


async def test_attach_in_a_shared_vg_is_exclusive(host: LvSan) -> None:
    host.then(seen(row(), lock_type="sanlock"), host.activates("ey", scope=LOCKED))
    await host.volumes.attach(SPEC, AttachMode.RW)
    host.then(seen(row(), lock_type="sanlock"), host.deactivates(scope=LOCKED))
    await host.volumes.detach(SPEC)


async def test_attach_in_a_shared_vg_while_another_host_has_it_is_in_use(host: LvSan) -> None:
    host.then(
        seen(row(), lock_type="sanlock"), replay("lvm", "locked", host.activates("ey", scope=LOCKED).argv),
        host.deactivates(scope=LOCKED),
    )  # fmt: skip
    assert (await fault_of(host.volumes.attach(SPEC, AttachMode.RW))).code is FaultCode.IN_USE


# Detached and cut off.


async def test_detach_deactivates(host: LvSan) -> None:
    host.map()
    host.then(seen(row()), host.deactivates())
    await host.volumes.detach(SPEC)
    assert not host.is_active


async def test_detach_of_what_is_not_active_needs_no_tool(host: LvSan) -> None:
    host.san.host.set_state("FAILED")
    await host.volumes.detach(SPEC)
    assert host.san.commands.calls == []


async def test_detach_of_an_open_volume_is_in_use(host: LvSan) -> None:
    host.map()
    host.then(seen(row()), replay("lvm", "lv_open", host.deactivates().argv))
    assert (await fault_of(host.volumes.detach(SPEC))).code is FaultCode.IN_USE
    assert host.is_active


async def test_detach_while_the_target_is_away_asks_no_lvm(host: LvSan) -> None:
    host.map()
    host.san.host.set_state("FAILED")
    assert (await fault_of(host.volumes.detach(SPEC))).code is FaultCode.SERVER_UNREACHABLE
    host.san.host.set_state("LOGGED_IN")
    host.san.blocks.faults["read_block"] = AgentFault.of(FaultCode.HUNG, "no answer")
    assert (await fault_of(host.volumes.detach(SPEC))).code is FaultCode.HUNG
    assert host.san.commands.calls == []


async def test_detach_of_an_lv_that_another_host_removed_takes_its_mapping(host: LvSan) -> None:
    host.map()
    host.then(seen(), replace(host.deactivates(), effect=lambda: None), host.removes_mapping())
    await host.volumes.detach(SPEC)
    assert not host.is_active


async def test_detach_after_the_disk_went_removes_the_mapping_without_lvm(host: LvSan) -> None:
    host.map()
    host.san.host.logout()
    host.then(host.removes_mapping())
    await host.volumes.detach(SPEC)


async def test_fence_off_removes_the_mapping_without_a_look_at_the_disk(host: LvSan) -> None:
    host.map()
    host.san.host.set_state("FAILED")
    host.then(host.removes_mapping())
    await host.volumes.fence_off(SPEC)
    await host.volumes.fence_off(SPEC)
    assert not host.is_active


async def test_fence_off_of_an_open_volume_fails_whoever_has_it_open(host: LvSan) -> None:
    host.map()
    host.then(
        replay("lvm", "mapping_busy", host.removes_mapping().argv),
        Step(("dmsetup", "wipe_table", "--noflush", "--nolockfs", "--", DM_NAME)),
        Step(("dmsetup", "remove", "--deferred", "--", DM_NAME)),
    )
    await host.volumes.fence_off(SPEC)


async def test_fence_off_of_a_mapping_that_just_went_is_success(host: LvSan) -> None:
    host.map()
    host.then(replay("lvm", "mapping_gone", host.removes_mapping().argv))
    await host.volumes.fence_off(SPEC)


async def test_fence_off_leaves_mappings_of_the_same_name_in_another_vg_alone(host: LvSan) -> None:
    host.map(uuid=dm_uuid_of("o" * 32, "v" * 32))
    await host.volumes.fence_off(SPEC)
    assert host.is_active


def map_pool(host: LvSan) -> None:
    for number, (suffix, layer) in enumerate(
        ((f"{POOL}-tpool", "-tpool"), (f"{POOL}_tmeta", ""), (f"{POOL}_tdata", ""))
    ):
        host.map(f"vg_vms-{suffix}", dm_uuid_of(VG_UUID, f"{number}" * 32) + layer, 20 + number)


async def test_fence_off_of_the_last_thin_volume_gives_up_the_pool_metadata_first(thin: LvSan) -> None:
    map_pool(thin)
    thin.map()
    thin.then(
        thin.removes_mapping(),
        Step(("dmsetup", "wipe_table", "--noflush", "--nolockfs", "--", f"vg_vms-{POOL}_tmeta")),
        thin.removes_mapping(20, f"vg_vms-{POOL}-tpool"),
        thin.removes_mapping(21, f"vg_vms-{POOL}_tmeta"),
        thin.removes_mapping(22, f"vg_vms-{POOL}_tdata"),
    )
    await thin.volumes.fence_off(SPEC)


async def test_fence_off_of_a_thin_volume_beside_another_keeps_the_pool(thin: LvSan) -> None:
    map_pool(thin)
    thin.map()
    thin.map(f"vg_vms-{OTHER_NAME}", dm_uuid_of(VG_UUID, "2" * 32), 30)
    thin.then(thin.removes_mapping())
    await thin.volumes.fence_off(SPEC)


# Listed.


async def test_list_tells_ours_from_others_in_the_order_of_names(host: LvSan) -> None:
    host.then(
        seen(
            row(),
            row("theirs", 8 * MIB, tags=""),
            row(PROBE, EXTENT, tags=TAGS[0]),
            row(POOL, 64 * MIB, tags=TAGS[0]),
            row("lvmlock", EXTENT, tags=""),
            row(OTHER_NAME, 16 * MIB, pool=POOL, percent="25.00"),
            row(f"sv_{'3' * 32}", 16 * MIB, pool=POOL),
            row(f"sv_{'4' * 32}", EXTENT, tags=LV_TAGS.replace(TAGS[0], f"stowage_backend_{OTHER_BACKEND}")),
        )
    )
    ours, other, inactive, foreign, theirs = await host.volumes.list()
    assert ours == FoundVolume(name=NAME, locator=LOCATOR, format="raw", size_bytes=12 * MIB, allocated_bytes=12 * MIB)
    assert (other.locator, other.allocated_bytes) == ("0" * 31 + "2", 4 * MIB)
    assert (inactive.locator, inactive.allocated_bytes) == ("3" * 32, None)
    assert foreign == FoundVolume(name=f"sv_{'4' * 32}", size_bytes=EXTENT, allocated_bytes=EXTENT)
    assert theirs == FoundVolume(name="theirs", size_bytes=8 * MIB, allocated_bytes=8 * MIB)
