"""iscsi_lvm: what an inspection says of a LUN, and what initialize makes of it, or refuses to."""

import pytest

from agent.errors import AgentFault
from schemas.faults import FaultCode
from tests.agent.recorded_commands import Step, replay
from tests.agent.san import (
    CHAP,
    IQN,
    MAKES_POOL,
    MAKES_PROBE_LV,
    OTHER_BACKEND,
    OTHER_TAGS,
    POOL,
    PROBE,
    SCOPE,
    TAGS,
    WIPE,
    WWID,
    San,
    content,
    fault_of,
    looks,
    lvs,
    target_for,
    vgs,
)


async def test_inspect_shows_what_is_there_and_logs_out(san: San) -> None:
    san.then(san.comes(), content("LVM2_member", vg_name="other"), vgs(name="other"), san.goes())
    found = await san.driver.inspect(target_for(), CHAP, san.space)
    assert (found.wwid, found.size_bytes, found.foreign_vg, found.is_blank) == (WWID, 1024**3, "other", False)
    assert found.signatures == ("LVM2_member at 0x218",)


def creates() -> tuple[Step, ...]:
    tags = ("--addtag", TAGS[0], "--addtag", TAGS[1])
    ways = ("--systemid", "", "--setautoactivation", "n", "--physicalextentsize", "4m")
    options = (*ways, *tags, "--", "vg_vms", "/dev/sdb")
    return (
        Step(("pvcreate", *SCOPE, "--", "/dev/sdb")),
        Step(("vgcreate", *SCOPE, *options)),
        vgs(*TAGS),
        lvs(),
        MAKES_PROBE_LV,
    )


async def test_initialize_of_a_blank_lun_makes_the_vg_and_attaches(san: San) -> None:
    san.then(san.comes(), looks(), looks(), creates(), vgs(*TAGS), lvs(PROBE), san.activates())
    report = await san.initialize()
    assert report.latency_ms > 0
    assert await san.driver.is_attached(target_for(), san.space)


async def test_initialize_with_thin_makes_the_pool_too(san: San) -> None:
    san.then(
        san.comes(), looks(), looks(), creates(), MAKES_POOL, vgs(*TAGS),
        lvs(PROBE, POOL, pool_percent="50.00"), san.activates(),
    )  # fmt: skip
    report = await san.initialize(thin=True)
    assert report.capacity is not None and report.capacity.available_bytes == 60000000 + 10000000


async def test_initialize_twice_finds_its_own_work_and_completes_it(san: San) -> None:
    san.then(san.comes(), vgs(*TAGS), creates()[2:], vgs(*TAGS), lvs(PROBE), san.activates())
    await san.initialize()


async def test_initialize_after_a_kill_between_pvcreate_and_vgcreate_goes_on(san: San) -> None:
    san.then(
        san.comes(), looks("LVM2_member"), looks("LVM2_member"), WIPE, creates(), vgs(*TAGS), lvs(PROBE), san.activates()
    )  # fmt: skip
    await san.initialize()


async def test_initialize_of_foreign_data_needs_force(san: San) -> None:
    san.then(san.comes(), vgs(is_there=False), content("gpt", "PMBR"), san.goes())
    fault = await fault_of(san.initialize())
    assert fault.code is FaultCode.FOREIGN_DATA and "gpt" in fault.detail
    san.then(
        san.comes(), looks("gpt", "PMBR"), looks("gpt", "PMBR"), WIPE, creates(), vgs(*TAGS), lvs(PROBE), san.activates()
    )  # fmt: skip
    await san.initialize(force=True)


async def test_initialize_of_a_lun_that_is_mounted_by_another_session_is_in_use_even_with_force(san: San) -> None:
    """The operator's own session shows the same LUN as sdz; wipefs --force would not care."""

    def add() -> None:
        san.add_disk()
        san.host.login(IQN, "10.0.0.9", 3260, "default", 9)
        san.host.add_partition(san.host.add_disk(0, "sdz", number=9))

    san.blocks.on_scan = add
    for san.blocks.busy in ("/dev/sdz", "/dev/sdz1"):
        san.then(san.comes(), vgs(is_there=False), content("ext4"), san.goes())
        fault = await fault_of(san.initialize(force=True))
        assert fault.code is FaultCode.IN_USE and san.blocks.busy in fault.detail
        san.host.logout(9)


async def test_initialize_of_a_lun_on_which_an_array_runs_names_it(san: San) -> None:
    def add() -> None:
        san.add_disk()
        other = san.host.add_disk(0, "sdz", number=9)
        array = san.host.sysfs / "devices/virtual/block/md127"
        (array / "holders").mkdir(parents=True)
        (other / "holders/md127").symlink_to(array)

    san.blocks.on_scan = add
    san.then(san.comes(), vgs(is_there=False), content("ext4"), san.goes())
    fault = await fault_of(san.initialize(force=True))
    assert fault.code is FaultCode.IN_USE and "md127" in fault.detail


THEIRS = "LVM-" + "t" * 64


def theirs_comes(san: San) -> None:
    """udev activates a VG of which nothing is known when its disk comes."""

    def add() -> None:
        san.add_disk()
        san.hold("vg_theirs-disk", THEIRS, 3)

    san.blocks.on_scan = add


def removes_theirs(san: San, *, is_open: bool = False) -> Step:
    argv = ("dmsetup", "remove", "--", "vg_theirs-disk")
    if is_open:
        return replay("lvm", "mapping_busy", argv)
    return Step(argv, effect=lambda: san.host.drop_holders(san.block_dir))


async def test_inspect_of_a_vg_that_udev_has_activated_leaves_the_session_again(san: San) -> None:
    theirs_comes(san)
    san.then(
        san.comes(), content("LVM2_member", vg_name="vg_theirs"), vgs(name="vg_theirs"), removes_theirs(san), san.goes()
    )
    found = await san.driver.inspect(target_for(), CHAP, san.space)
    assert found.foreign_vg == "vg_theirs" and not san.has_session()
    assert not found.is_used, "what came with the disk is nobody's use of it"


async def test_inspect_of_a_vg_of_which_a_volume_is_open_says_that_the_lun_is_used(san: San) -> None:
    theirs_comes(san)
    san.then(
        san.comes(), content("LVM2_member", vg_name="vg_theirs"), vgs(name="vg_theirs"),
        removes_theirs(san, is_open=True), removes_theirs(san, is_open=True),
    )  # fmt: skip
    assert (await san.driver.inspect(target_for(), CHAP, san.space)).is_used


@pytest.mark.parametrize("busy", ["/dev/sdz", "/dev/sdz1"])
async def test_inspect_of_a_lun_that_is_mounted_by_another_session_says_that_it_is_used(busy: str, san: San) -> None:
    """The manager asks every host so before one of them overwrites the LUN."""

    def add() -> None:
        san.add_disk()
        san.host.login(IQN, "10.0.0.9", 3260, "default", 9)
        san.host.add_partition(san.host.add_disk(0, "sdz", number=9))

    san.blocks.on_scan, san.blocks.busy = add, busy
    san.then(san.comes(), content("ext4"), vgs(is_there=False), san.goes())
    assert (await san.driver.inspect(target_for(), CHAP, san.space)).is_used


async def test_inspect_of_a_lun_whose_users_cannot_be_told_does_not_say_that_it_is_free(san: San) -> None:
    san.blocks.faults["find_busy"] = AgentFault.of(FaultCode.TIMED_OUT, "no answer", is_retryable=True)
    san.then(san.comes(), content("ext4"), vgs(is_there=False))
    assert (await fault_of(san.driver.inspect(target_for(), CHAP, san.space))).code is FaultCode.TIMED_OUT


async def test_inspect_of_a_lun_with_our_own_vg_in_use_is_no_use_by_others(san: San) -> None:
    """An initialization that is tried again finds its own work."""
    await san.attach()
    san.then(content("LVM2_member", vg_name="vg_vms"), vgs(*TAGS))
    assert not (await san.driver.inspect(target_for(), CHAP, san.space)).is_used


@pytest.mark.parametrize("is_open", [False, True])
async def test_initialize_with_force_of_a_vg_that_udev_has_activated(is_open: bool, san: San) -> None:
    theirs_comes(san)
    if is_open:
        busy = removes_theirs(san, is_open=True)
        san.then(san.comes(), busy, vgs(name="vg_theirs"), busy)
        fault = await fault_of(san.initialize(force=True))
        assert fault.code is FaultCode.IN_USE and san.has_session()
        return
    look = looks("LVM2_member", name="vg_theirs")
    san.then(
        san.comes(), removes_theirs(san), look, look, WIPE, creates(), vgs(*TAGS), lvs(PROBE), san.activates(),
    )  # fmt: skip
    await san.initialize(force=True)


async def test_initialize_with_force_of_the_vg_of_another_backend_in_use_names_that(san: San) -> None:
    theirs_comes(san)
    busy = removes_theirs(san, is_open=True)
    san.then(san.comes(), busy, vgs(*OTHER_TAGS, name="vg_theirs"), busy)
    fault = await fault_of(san.initialize(force=True))
    assert fault.code is FaultCode.MARKER_MISMATCH and OTHER_BACKEND in fault.detail


async def test_initialize_where_a_signature_appeared_since_is_foreign_data(san: San) -> None:
    pvcreate = replay("lvm", "signature_appeared", creates()[0].argv)
    san.then(san.comes(), looks(), looks(), pvcreate, san.goes())
    fault = await fault_of(san.initialize(force=True))
    assert fault.code is FaultCode.FOREIGN_DATA


@pytest.mark.parametrize("force", [True, False])
async def test_initialize_of_another_backends_vg_is_refused_even_with_force(force: bool, san: San) -> None:
    san.then(san.comes(), vgs(*OTHER_TAGS, name="elsewhere"), san.goes())
    fault = await fault_of(san.initialize(force=force))
    assert fault.code is FaultCode.MARKER_MISMATCH


async def test_initialize_of_another_lun_than_confirmed_is_wrong_device(san: San) -> None:
    san.then(san.comes(), san.goes())
    fault = await fault_of(san.initialize(wwid="naa.other", force=True))
    assert fault.code is FaultCode.WRONG_DEVICE
