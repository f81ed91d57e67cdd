"""iscsi_lvm from login to release, with recorded tools, a fake sysfs, and a real file as the probe LV."""

import dataclasses
import os
from typing import Any

import pytest

from agent.drivers.base import Deadline
from agent.errors import AgentFault
from agent.scsi import dm_uuid_of
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.recorded_commands import Step, replay
from tests.agent.san import (
    ADDS_TAGS,
    CHAP,
    DM_NAME,
    DM_UUID,
    IQN,
    MAKES_PROBE_LV,
    OTHER_BACKEND,
    OTHER_TAGS,
    POOL,
    PROBE,
    REMOVES_TAGS,
    SCOPE,
    TAGS,
    TRIAL_IFACE,
    VG_UUID,
    San,
    content,
    fault_of,
    lvs,
    target_for,
    vgs,
)
from tests.agent.spaces import SOON

LEFT_TOO = (
    "autoactivation of vg_vms is off, and vgchange --setautoactivation y vg_vms turns it on again",
    "the 4 MiB volume vg_vms/stowage_probe, which may be removed when no host uses it",
)
ALREADY_ACTIVE = Step(("lvchange", *SCOPE, "--activate", "y", "--", f"vg_vms/{PROBE}"))


async def test_attach_logs_in_activates_and_proves(san: San) -> None:
    report = await san.attach()
    assert report.latency_ms > 0
    assert report.capacity is not None and (report.capacity.total_bytes, report.capacity.available_bytes) == (
        100000000,
        60000000,
    )
    assert san.blocks.jobs == [("read_block", "/dev/sdb"), ("write_block", "/dev/dm-0")]
    assert san.blocks.dm_uuids == [DM_UUID]
    assert (san.host.sysfs / "class/scsi_host/host3/scan").read_text() == "- - 0"
    assert "chap-canary" in san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()
    assert not any("canary" in word for call in san.commands.calls for word in call)
    assert not any(b"canary" in file.read_bytes() for file in san.space.dir.iterdir())
    assert await san.driver.is_attached(target_for(), san.space)
    assert not await san.driver.is_attached(target_for(portal="10.0.0.9:3261"), san.space)


async def test_attach_again_takes_the_session_that_is_there(san: San) -> None:
    await san.attach()
    san.then(vgs(*TAGS), lvs(PROBE), ALREADY_ACTIVE)
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)


async def test_attach_after_the_session_was_ended_by_others_removes_what_was_mapped_upon_it(san: San) -> None:
    """LVM takes the volume for active as long as the mapping of the disk that is gone."""
    await san.attach()
    san.host.logout()
    assert not await san.driver.is_attached(target_for(), san.space)
    removes = Step(("dmsetup", "remove", "--", DM_NAME), effect=san.host.drop_mapping)
    san.blocks.on_scan = lambda: san.add_disk(number=2)
    san.then(san.comes()[:-1], san.login(number=2), vgs(*TAGS), lvs(PROBE), removes, san.activates())
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)
    assert await san.driver.is_attached(target_for(), san.space)


async def test_attach_with_new_credentials_proves_them_beside_the_session_and_records_them(san: San) -> None:
    await san.attach()
    assert not await san.driver.is_attached(target_for(version=2), san.space)
    san.then(san.beside(), san.new_record(), vgs(*TAGS), lvs(PROBE), ALREADY_ACTIVE)
    newer = Credentials({"username": "chap", "password": "newer-secret"})
    await san.driver.attach(target_for(version=2), newer, san.space, establish=False)
    record = san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()
    assert "newer-secret" in record and "chap-canary" not in record
    assert await san.driver.is_attached(target_for(version=2), san.space)


async def test_attach_to_a_vg_that_the_operator_made_adds_the_tags_last(san: San) -> None:
    san.then(
        san.comes(), vgs("theirs"), lvs("disk"), MAKES_PROBE_LV, lvs("disk", PROBE), san.activates(), ADDS_TAGS, vgs(*TAGS)
    )  # fmt: skip
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)
    assert await san.driver.is_attached(target_for(), san.space)


@pytest.mark.parametrize(
    ("steps", "establish", "code", "words"),
    [
        ((vgs(is_there=False), *content()), True, "needs_initialization", "is blank"),
        ((vgs(is_there=False), *content("ext4")), True, "needs_initialization", "ext4 at 0x218"),
        (
            (vgs(name="other"), *content("LVM2_member", vg_name="other")),
            True,
            "needs_initialization",
            "volume group other",
        ),
        ((vgs(*OTHER_TAGS),), True, "marker_mismatch", OTHER_BACKEND),
        ((vgs(),), False, "marker_missing", "tags"),
        ((vgs(*TAGS), lvs()), False, "marker_missing", PROBE),
        ((vgs(*TAGS), lvs(PROBE, probe_size=1024**2)), False, "wrong_device", "1048576"),
        ((vgs(*TAGS, pv_count=2),), True, "wrong_device", "2 devices"),
        ((vgs(*TAGS, is_autoactivated=True),), False, "failed", "by itself"),
        ((vgs(*TAGS, extent_bytes=32 * 1024**2),), False, "unsupported", "extents of 32768 KiB"),
        ((vgs(extent_bytes=3 * 1024**2),), True, "unsupported", "extents of 3072 KiB"),
    ],
)
async def test_attach_that_finds_another_vg_than_ours_logs_out_again(
    steps: tuple[Step, ...], establish: bool, code: str, words: str, san: San
) -> None:
    san.then(san.comes(), steps, san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=establish))
    assert fault.code == code and words in fault.detail
    if code == "marker_mismatch":
        assert f"vgchange --deltag stowage_backend_{OTHER_BACKEND}" in fault.remedy
    assert list((san.host.config_dir / "nodes").rglob("stowage")) == []


@pytest.mark.parametrize(("extent_kib", "fitting"), [(8192, "4096k"), (32768, "4096k"), (3072, "1024k"), (384, "128k")])
async def test_attach_to_a_vg_whose_extents_do_not_divide_4_mib_says_which_would(
    extent_kib: int, fitting: str, san: San
) -> None:
    """vgchange takes any divisor of what they are (2.03.16 on a loop device, 2026-11-29)."""
    san.then(san.comes(), vgs(*TAGS, extent_bytes=extent_kib * 1024), san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=False))
    assert f"vgchange --physicalextentsize {fitting} vg_vms" in fault.remedy


@pytest.mark.parametrize("extent_kib", [64, 1024])
async def test_attach_to_a_vg_with_smaller_extents_succeeds(extent_kib: int, san: San) -> None:
    san.then(san.comes(), vgs(*TAGS, extent_bytes=extent_kib * 1024), lvs(PROBE), san.activates())
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)


async def test_attach_without_the_lun_logs_out_again(san: San, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.scsi.DISK_TIMEOUT_S", 0.05)
    san.blocks.on_scan = lambda: None
    san.then(san.comes(), san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    assert fault.code is FaultCode.LUN_NOT_FOUND


async def test_attach_without_credentials_that_the_target_has_is_needs_credentials(san: San) -> None:
    fault = await fault_of(san.driver.attach(target_for(), Credentials({}), san.space, establish=True))
    assert fault.code is FaultCode.NEEDS_CREDENTIALS
    assert san.commands.calls == []


async def test_attach_after_the_lun_was_exchanged_is_wrong_device(san: San) -> None:
    await san.attach()
    (san.block_dir.parents[1] / "wwid").write_text("naa.other\n")
    for awaitable in (
        san.driver.probe(target_for(), san.space),
        san.driver.attach(target_for(), CHAP, san.space, establish=False),
    ):
        assert (await fault_of(awaitable)).code is FaultCode.WRONG_DEVICE
    assert not await san.driver.is_attached(target_for(), san.space)


async def test_probe_reads_looks_at_the_vg_and_then_writes(san: San) -> None:
    await san.attach()
    san.blocks.jobs.clear()
    san.blocks.on_write = san.commands.assert_done
    san.then(vgs(*TAGS), lvs(PROBE))
    assert (await san.driver.probe(target_for(), san.space)).latency_ms > 0
    assert san.blocks.jobs == [("read_block", "/dev/sdb"), ("write_block", "/dev/dm-0")]


async def test_probe_of_a_thin_pool_that_does_not_zero_says_how_it_does(san: San) -> None:
    thin = target_for(thin=True)
    san.then(san.comes(), vgs(*TAGS), lvs(PROBE, POOL), san.activates())
    await san.driver.attach(thin, CHAP, san.space, establish=False)
    san.then(vgs(*TAGS), lvs(PROBE, POOL, zero=""))
    fault = await fault_of(san.driver.probe(thin, san.space))
    assert fault.code is FaultCode.UNSUPPORTED and f"lvchange --zero y vg_vms/{POOL}" in fault.remedy


async def test_attach_to_a_thin_pool_that_does_not_zero_logs_out_again(san: San) -> None:
    """A host that comes later than the one that made the pool, or looked at the operator's."""
    san.then(san.comes(), vgs(*TAGS), lvs(PROBE, POOL, zero=""), san.goes())
    fault = await fault_of(san.driver.attach(target_for(thin=True), CHAP, san.space, establish=False))
    assert fault.code is FaultCode.UNSUPPORTED and f"lvchange --zero y vg_vms/{POOL}" in fault.remedy


async def test_probe_of_a_thick_backend_does_not_mind_the_operators_pool(san: San) -> None:
    await san.attach()
    san.then(vgs(*TAGS), lvs(PROBE, POOL, zero=""))
    await san.driver.probe(target_for(), san.space)


async def test_probe_of_a_dead_lun_starts_no_tool(san: San) -> None:
    await san.attach()
    san.blocks.faults["read_block"] = AgentFault.of(FaultCode.HUNG, "stuck")
    assert (await fault_of(san.driver.probe(target_for(), san.space))).code is FaultCode.HUNG


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ((vgs(*TAGS, uuid="uuid-2"),), "wrong_device"),
        ((vgs(),), "marker_missing"),
        ((vgs(*TAGS), lvs()), "marker_missing"),
        ((vgs(*TAGS, extent_bytes=8 * 1024**2),), "unsupported"),
        ((vgs(*TAGS), lvs(PROBE, probe_uuid="made-anew")), "converging"),
        ((vgs(is_there=False), *content()), "marker_missing"),
    ],
)
async def test_probe_of_a_vg_that_changed_is_noticed_and_writes_nothing(
    steps: tuple[Step, ...], code: str, san: San
) -> None:
    await san.attach()
    san.blocks.jobs.clear()
    san.then(steps)
    assert (await fault_of(san.driver.probe(target_for(), san.space))).code == code
    assert {job for job, _ in san.blocks.jobs} <= {"read_block", "look_for_data"}


async def test_attach_after_the_probe_lv_was_made_anew_removes_its_old_mapping(san: San) -> None:
    await san.attach()
    anew = DM_UUID[:36] + "a" * 32
    removes = Step(("dmsetup", "remove", "--", DM_NAME), effect=lambda: san.host.drop_holders(san.block_dir))
    san.then(vgs(*TAGS), lvs(PROBE, probe_uuid="a" * 32), removes, san.activates(anew))
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)
    assert san.blocks.dm_uuids == [DM_UUID, anew]
    assert await san.driver.is_attached(target_for(), san.space)


async def test_attach_to_a_vg_that_is_active_by_another_disk_is_in_use(san: San) -> None:
    san.then(san.comes(), vgs(*TAGS), lvs(PROBE), ALREADY_ACTIVE, san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=False))
    assert fault.code is FaultCode.IN_USE
    assert [job for job, _ in san.blocks.jobs].count("write_block") == 0


async def test_probe_of_a_session_that_failed_starts_no_tool(san: San) -> None:
    assert (await fault_of(san.driver.probe(target_for(), san.space))).code is FaultCode.CONVERGING
    await san.attach()
    san.host.set_state("FAILED")
    assert (await fault_of(san.driver.probe(target_for(), san.space))).code is FaultCode.SERVER_UNREACHABLE
    assert not await san.driver.is_attached(target_for(), san.space)


async def test_release_deactivates_removes_the_disk_logs_out_and_forgets_the_secrets(san: San) -> None:
    await san.attach()
    delete = san.block_dir.parents[1] / "delete"
    seen: list[str] = []
    san.blocks.on_delete = lambda: seen.append(delete.read_text())
    san.then(san.deactivates(), san.goes())
    assert (await san.driver.release(target_for(), san.space, remove_marker=False)).left == ()
    assert seen == ["1"]
    assert not san.host.record(IQN, "10.0.0.9", 3260, 1).exists() and os.listdir(san.space.dir) == []
    assert (await san.driver.release(target_for(), san.space, remove_marker=True)).left == ()


async def test_attach_with_newer_credentials_replaces_a_session_that_is_down(san: San) -> None:
    """iscsid goes on trying with the secret that it has in memory; while the session is up it stays."""
    await san.attach()
    newer = Credentials({"username": "chap", "password": "newer-canary"})
    san.then(san.beside(), san.new_record(), vgs(*TAGS), lvs(PROBE), san.activates())
    await san.driver.attach(target_for(version=2), newer, san.space, establish=False)
    san.host.set_state("FAILED")
    assert not await san.driver.is_attached(target_for(version=2), san.space)
    removes = Step(("dmsetup", "remove", "--", DM_NAME), effect=lambda: san.host.drop_holders(san.block_dir))
    san.then(removes, san.goes(), san.comes(), vgs(*TAGS), lvs(PROBE), san.activates())
    await san.driver.attach(target_for(version=2), newer, san.space, establish=False)
    assert "newer-canary" in san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()


async def test_release_by_the_host_that_marked_the_vg_removes_tags_and_says_what_is_left(san: San) -> None:
    san.then(
        san.comes(), vgs(), lvs(), MAKES_PROBE_LV, lvs(PROBE), san.activates(), ADDS_TAGS, vgs(*TAGS),
        san.deactivates(), vgs(*TAGS), lvs(PROBE, "disk1", "disk2"), REMOVES_TAGS, lvs(PROBE, "disk1", "disk2"), san.goes(),
    )  # fmt: skip
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)
    report = await san.driver.release(target_for(), san.space, remove_marker=True)
    assert report.left == (f"volume group vg_vms with 2 logical volumes on LUN 0 of {IQN}", *LEFT_TOO)


async def test_release_by_another_host_than_marked_the_vg_removes_its_tags_too(san: San) -> None:
    """That one may have let go before, without its marker, for the backend was not for it any more."""
    await san.attach()
    san.then(san.deactivates(), vgs(*TAGS), lvs(PROBE), REMOVES_TAGS, lvs(PROBE), san.goes())
    report = await san.driver.release(target_for(), san.space, remove_marker=True)
    assert report.left == (f"volume group vg_vms on LUN 0 of {IQN}", *LEFT_TOO)
    assert report.is_unmarked


async def test_release_without_the_marker_leaves_the_metadata_alone_and_does_not_say_that_it_is_gone(san: San) -> None:
    await san.attach()
    san.then(san.deactivates(), san.goes())
    assert not (await san.driver.release(target_for(), san.space, remove_marker=False)).is_unmarked


async def test_release_without_a_session_says_that_the_tags_stay(san: San) -> None:
    await san.attach()
    san.host.logout()
    san.then(Step(("dmsetup", "remove", "--", DM_NAME), effect=san.host.drop_mapping), san.delete_record())
    report = await san.driver.release(target_for(), san.space, remove_marker=True)
    assert report.left == (f"volume group vg_vms with its tags on LUN 0 of {IQN}, which is not attached on this host",)
    assert not report.is_unmarked


async def test_release_of_a_vg_in_use_is_in_use_and_keeps_all(san: San) -> None:
    await san.attach()
    san.then(replay("lvm", "lv_open", san.deactivates().argv))
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=False))
    assert fault.code is FaultCode.IN_USE
    assert await san.driver.is_attached(target_for(), san.space)


async def test_release_of_a_backend_with_a_vm_disk_in_use_keeps_its_probe_lv_active(san: San) -> None:
    await san.attach()
    san.hold("vg_vms-disk", DM_UUID[:36] + "d" * 32, 3)
    uuid = "dddddd-dddd-dddd-dddd-dddd-dddd-dddddd"
    san.then(replay("lvm", "lv_open", san.deactivates(uuid).argv))
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=True))
    assert fault.code is FaultCode.IN_USE
    assert await san.driver.is_attached(target_for(), san.space)


async def test_release_of_a_dead_target_removes_the_mappings_by_hand(san: San) -> None:
    await san.attach()
    timed_out = AgentFault.of(FaultCode.TIMED_OUT, "vgs did not end")
    san.then(
        Step(san.deactivates().argv, fault=timed_out),
        Step(("dmsetup", "remove", "--", DM_NAME), effect=lambda: san.host.drop_holders(san.block_dir)),
        Step(vgs().argv, fault=timed_out),
        san.goes(),
    )
    report = await san.driver.release(target_for(), san.space, remove_marker=True)
    assert "timed_out" in report.left[0]


async def test_release_of_a_session_that_has_failed_asks_no_lvm(san: San) -> None:
    await san.attach()
    san.host.set_state("FAILED")
    removes = Step(("dmsetup", "remove", "--", DM_NAME), effect=lambda: san.host.drop_holders(san.block_dir))
    san.then(removes, san.goes())
    report = await san.driver.release(target_for(), san.space, remove_marker=True)
    assert "server_unreachable" in report.left[0]


def removes_busy() -> Step:
    return replay("lvm", "mapping_busy", ("dmsetup", "remove", "--", DM_NAME))


async def test_release_while_a_probe_hangs_in_a_session_that_is_down_ends_the_session_first(san: San) -> None:
    """The probe's own worker has the probe LV open, until what it waits for fails with the session."""
    await san.attach()
    san.host.set_state("FAILED")
    san.blocks.busy = "/dev/sdb"
    removes = Step(("dmsetup", "remove", "--", DM_NAME), effect=san.host.drop_mapping)
    san.then(removes_busy(), san.goes(), removes_busy(), removes)
    await san.driver.release(target_for(), san.space, remove_marker=False)
    assert not san.has_session() and os.listdir(san.space.dir) == []


@pytest.mark.parametrize("state", ["LOGGED_IN", "FAILED"])
async def test_release_while_another_volume_is_open_keeps_the_session_also_when_it_is_down(
    state: str, san: San
) -> None:
    await san.attach()
    san.hold("vg_vms-disk", dm_uuid_of(VG_UUID, "disk00-0000-0000-0000-0000-0000-disk00"), 1)
    san.host.set_state(state)
    busy = replay("lvm", "mapping_busy", ("dmsetup", "remove", "--", "vg_vms-disk"))
    if state == "LOGGED_IN":
        san.then(replay("lvm", "lv_open", san.deactivates("disk00-0000-0000-0000-0000-0000-disk00").argv))
    else:
        san.then(removes_busy(), busy)
    assert (await fault_of(san.driver.release(target_for(), san.space, remove_marker=False))).code is FaultCode.IN_USE
    assert san.has_session()


async def test_release_of_an_exchanged_lun_writes_nothing_on_it(san: San) -> None:
    await san.attach()
    (san.block_dir.parents[1] / "wwid").write_text("naa.other\n")
    san.then(san.deactivates(), san.goes())
    report = await san.driver.release(target_for(), san.space, remove_marker=True)
    assert "wrong_device" in report.left[0]


async def test_attach_at_another_portal_detaches_the_old_one_first(san: San, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("10.0.0.9", 0))]

    monkeypatch.setattr("asyncio.BaseEventLoop.getaddrinfo", resolve)
    await san.attach()
    san.then(
        san.deactivates(), san.goes(), san.discover("san.example:3260"), san.comes()[1:],
        vgs(*TAGS), lvs(PROBE), san.activates(),
    )  # fmt: skip
    await san.driver.attach(target_for(portal="san.example"), CHAP, san.space, establish=False)
    assert await san.driver.is_attached(target_for(portal="san.example"), san.space)


def comes_beside(san: San) -> None:
    san.blocks.on_scan = lambda: san.host.add_disk(0, "sdc", number=2)


async def test_trial_logs_in_beside_the_session_in_use_and_leaves_nothing(san: San) -> None:
    await san.attach()
    comes_beside(san)
    san.then(san.discover(), san.beside(vgs(*TAGS, device="/dev/sdc")))
    newer = Credentials({"username": "chap", "password": "newer"})
    report = await san.driver.trial(target_for(version=2), newer, san.space)
    assert report.latency_ms > 0 and report.capacity is not None
    assert "newer" not in san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()
    assert await san.driver.is_attached(target_for(), san.space)
    assert os.listdir(san.space.dir) == ["iscsi.json"]


@pytest.mark.parametrize(
    ("extent_bytes", "is_zeroing", "words"), [(8 * 1024**2, True, "extents"), (4 * 1024**2, False, "does not zero")]
)
async def test_trial_of_a_vg_that_no_volume_can_lie_in_says_why(
    extent_bytes: int, is_zeroing: bool, words: str, san: San
) -> None:
    await san.attach()
    comes_beside(san)
    looks = vgs(*TAGS, extent_bytes=extent_bytes, device="/dev/sdc")
    pool = lvs(PROBE, POOL, zero="zero" if is_zeroing else "", device="/dev/sdc")
    san.then(san.discover(), san.beside(looks, *(() if is_zeroing else (pool,))))
    fault = await fault_of(san.driver.trial(target_for(version=2, thin=True), CHAP, san.space))
    assert fault.code is FaultCode.UNSUPPORTED and words in fault.detail


async def test_trial_of_a_vg_that_activates_itself_removes_what_came_upon_its_own_disk(san: San) -> None:
    def add() -> None:
        block_dir = san.host.add_disk(0, "sdc", number=2)
        san.host.add_holder(block_dir, "vg_vms-disk", 7, DM_UUID[:36] + "d" * 32)

    san.blocks.on_scan = add
    removes = Step(("dmsetup", "remove", "--", "vg_vms-disk"), effect=lambda: san.host.drop_mapping(7))
    san.then(san.discover(), san.beside(vgs(is_autoactivated=True, device="/dev/sdc"), removes))
    await san.driver.trial(target_for(), CHAP, san.space)
    assert os.listdir(san.space.dir) == []


async def test_trial_whose_disk_somebody_uses_is_in_use_and_ends_later(san: San) -> None:
    comes_beside(san)
    san.blocks.busy = "/dev/sdc"
    san.then(san.discover(), san.beside(vgs(device="/dev/sdc"))[:3])
    assert (await fault_of(san.driver.trial(target_for(), CHAP, san.space))).code is FaultCode.IN_USE
    assert san.has_session(2)
    san.blocks.busy = ""
    san.then(san.beside()[2:])
    await san.driver.clean_trial(target_for(), san.space)
    assert os.listdir(san.space.dir) == []


async def test_trial_with_a_wrong_password_is_auth_failed_and_leaves_nothing(san: San) -> None:
    san.then(
        san.discover(), san.new_record(TRIAL_IFACE),
        replay("iscsiadm", "wrong_chap", san.node("--login", iface=TRIAL_IFACE)),
        Step(san.node("--logout", iface=TRIAL_IFACE), 21), san.delete_record(TRIAL_IFACE),
        Step(san.node("-o", "delete", iface=TRIAL_IFACE), 21),
    )  # fmt: skip
    assert (await fault_of(san.driver.trial(target_for(), CHAP, san.space))).code is FaultCode.AUTH_FAILED
    assert os.listdir(san.space.dir) == []


async def test_multipath_map_is_what_is_opened(san: San) -> None:
    def add() -> None:
        san.add_disk()
        san.hold("mpatha", "mpath-36001405", 5)

    san.blocks.on_scan = add
    argv = tuple("/dev/dm-5" if word == "/dev/sdb" else word for word in vgs().argv)
    san.then(san.comes(), Step(argv, fault=AgentFault.of(FaultCode.IO_ERROR, "x")), san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    assert fault.code is FaultCode.IO_ERROR
    assert san.blocks.jobs == [("read_block", "/dev/dm-5"), ("find_busy", "/dev/dm-5"), ("find_busy", "/dev/dm-5")]


@pytest.mark.parametrize(
    "config",
    [{"portal": "-o"}, {"portal": "1.2.3.4:99999"}, {"portal": "a b"}, {"portal": "nas\n"}, {"target_iqn": "--logout"}, {"target_iqn": "iqn.2026-01.a,b"},
     {"vg_name": "-y"}, {"vg_name": "a/b"}, {"vg_name": "a b"}, {"vg_name": ".."}, {"lun": -1}, {"lun": "0"}],
)  # fmt: skip
async def test_attach_with_words_that_could_reach_argv_runs_nothing(config: dict[str, Any], san: San) -> None:
    fault = await fault_of(san.driver.attach(target_for(**config), CHAP, san.space, establish=True))
    assert fault.code is FaultCode.KIND_UNSUPPORTED
    assert san.commands.calls == []


async def test_discover_lists_each_target_once(san: San) -> None:
    san.then(san.discover())
    items = await san.driver.discover({"portal": "10.0.0.9"}, CHAP, SOON)
    assert [item.config["target_iqn"] for item in items] == ["iqn.2026-01.org.example:other", IQN]


async def test_discover_ends_its_tool_while_the_manager_still_waits(san: San) -> None:
    san.then(san.discover())
    await san.driver.discover({"portal": "10.0.0.9"}, CHAP, Deadline(14.0, lambda: 0.0))
    assert san.commands.limits_s == [11.0]


@pytest.mark.parametrize("credentials", [Credentials({}), CHAP], ids=["without CHAP", "with CHAP"])
async def test_discover_at_a_portal_that_lists_after_chap_only_says_that_ours_is_not_for_that(
    san: San, credentials: Credentials
) -> None:
    # As open-iscsi says it of a portal with discovery authentication (iscsiadm(8), exit status 24).
    said = "iscsiadm: Could not perform SendTargets discovery: iSCSI login failed due to authorization failure\n"
    san.then(dataclasses.replace(san.discover(), exit_code=24, stdout="", stderr=said))
    fault = await fault_of(san.driver.discover({"portal": "10.0.0.9"}, credentials, SOON))
    assert fault.code is FaultCode.AUTH_FAILED
    assert "before it lists its targets" in fault.detail and "iscsid.conf" in fault.remedy
