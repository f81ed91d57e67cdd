"""What an add makes in a VG and takes back: exactly what that very call made, at whichever step it fails or is killed."""

import asyncio

import pytest

from agent.errors import AgentFault
from agent.lun_memory import LunMemory
from agent.scsi import dm_uuid_of
from schemas.faults import FaultCode
from tests.agent.recorded_commands import Step
from tests.agent.san import (
    ADDS_TAGS,
    CHAP,
    DM_NAME,
    DM_UUID,
    MAKES_POOL,
    MAKES_PROBE_LV,
    OTHER_TAGS,
    OURS,
    POOL,
    PROBE,
    REMOVES_POOL,
    REMOVES_TAGS,
    SCOPE,
    TAGS,
    VG_UUID,
    San,
    fault_of,
    lvs,
    target_for,
    vgs,
)

BROKEN = AgentFault.of(FaultCode.IO_ERROR, "broken")
THIN = target_for(thin=True)
#: Tools that change the VG's metadata.
WRITERS = frozenset(("lvcreate", "lvremove", "pvcreate", "vgcreate", "wipefs"))


def broken(step: Step, after: bool = False) -> Step:
    """The tool fails; `after`: when it has done its work."""
    return Step(step.argv, effect=step.effect if after else lambda: None, fault=BROKEN)


def changes_since(san: San, number: int) -> list[tuple[str, ...]]:
    return [
        call
        for call in san.commands.calls[number:]
        if call[0] in WRITERS - {"wipefs"} or "--deltag" in call or "--addtag" in call or "--setautoactivation" in call
    ]


async def add(san: San) -> None:
    """A thin backend on the operator's VG, added by this host."""
    san.then(
        san.comes(), vgs(), lvs("disk"), MAKES_PROBE_LV, MAKES_POOL, lvs("disk", PROBE, POOL), san.activates(), ADDS_TAGS, vgs(*TAGS)
    )  # fmt: skip
    await san.driver.attach(THIN, CHAP, san.space, establish=True)


@pytest.mark.parametrize("establish", [True, False])
@pytest.mark.parametrize("step", ["vgs", "lvs", "activate", "write", "cancel"])
async def test_attach_again_that_fails_takes_nothing_back(step: str, establish: bool, san: San) -> None:
    """The backend is healthy and other hosts use it; this host, which made its marks, has merely lost its session."""
    await add(san)
    san.then(san.deactivates(), san.logout(), san.delete_record())
    await san.driver.release(THIN, san.space, remove_marker=False)
    LunMemory(san.space.dir).add(marked="yes", wwid="naa.6001405")
    number = len(san.commands.calls)
    looks = (lvs(PROBE, POOL), lvs(PROBE, POOL)) if establish else (lvs(PROBE, POOL),)
    goes = san.goes()
    match step:
        case "vgs":
            san.then(san.comes(), broken(vgs()), goes)
        case "lvs":
            san.then(san.comes(), vgs(*TAGS), broken(lvs()), goes)
        case "activate":
            san.then(san.comes(), vgs(*TAGS), *looks, broken(san.activates()), goes)
        case _:
            san.then(san.comes(), vgs(*TAGS), *looks, san.activates(), san.deactivates(), goes)
    if step == "write":
        san.blocks.faults["write_block"] = BROKEN
    if step == "cancel":
        await cancelled_at_write(san, establish=establish)
    else:
        assert (
            await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=establish))
        ).code is FaultCode.IO_ERROR
    assert changes_since(san, number) == []
    assert LunMemory(san.space.dir).read()["marked"] == "yes"


async def cancelled_at_write(san: San, *, establish: bool) -> None:
    task = asyncio.create_task(san.driver.attach(THIN, CHAP, san.space, establish=establish))
    san.blocks.on_write = task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task


MADE_PROBE = lvs("disk", PROBE, tags=OURS)
MADE_BOTH = lvs("disk", PROBE, POOL, tags=OURS, thin_count="0")


@pytest.mark.parametrize(
    "step", ["probe", "probe made", "pool", "pool made", "lvs", "activate", "write", "cancel", "tags", "tags made"]
)
async def test_add_that_fails_takes_back_what_it_made(step: str, san: San) -> None:
    begins = (*san.comes(), vgs(), lvs("disk"))
    both = (MAKES_PROBE_LV, *MAKES_POOL)
    gone = (san.removes_probe_lv(), REMOVES_POOL)
    active = (*begins, *both, MADE_BOTH, san.activates())
    match step:
        case "probe":
            steps = (*begins, broken(MAKES_PROBE_LV), vgs(), lvs("disk"))
        case "probe made":
            steps = (*begins, broken(MAKES_PROBE_LV, after=True), vgs(), MADE_PROBE, gone[0])
        case "pool":
            steps = (*begins, MAKES_PROBE_LV, broken(MAKES_POOL[0]), vgs(), MADE_PROBE, gone[0])
        case "pool made":
            steps = (*begins, MAKES_PROBE_LV, MAKES_POOL[0], broken(MAKES_POOL[1]), vgs(), MADE_BOTH, *gone)
        case "lvs":
            steps = (*begins, *both, broken(MADE_BOTH), vgs(), MADE_BOTH, *gone)
        case "activate":
            steps = (*active[:-1], broken(san.activates()), vgs(), MADE_BOTH, *gone)
        case "tags":
            steps = (*active, broken(ADDS_TAGS), vgs(), REMOVES_TAGS, MADE_BOTH, *gone)
        case "tags made":
            steps = (*active, broken(ADDS_TAGS), vgs(*TAGS), REMOVES_TAGS, MADE_BOTH, *gone)
        case _:
            steps = (*active, vgs(), MADE_BOTH, *gone)
    san.then(*steps, san.goes())
    if step == "write":
        san.blocks.faults["write_block"] = BROKEN
    if step == "cancel":
        await cancelled_at_write(san, establish=True)
    else:
        assert (await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=True))).code is FaultCode.IO_ERROR
    assert LunMemory(san.space.dir).read() == {}


async def test_add_that_fails_leaves_volumes_that_it_found(san: San) -> None:
    """An earlier backend left the probe LV, and other hosts may still have it; the pool is the operator's."""
    there = lvs("disk", PROBE, POOL)
    san.blocks.faults["write_block"] = BROKEN
    san.then(san.comes(), vgs(), there, there, san.activates(), san.deactivates(), san.goes())
    assert (await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=True))).code is FaultCode.IO_ERROR


async def test_add_that_fails_leaves_a_volume_of_another_who_was_faster(san: San) -> None:
    san.then(
        san.comes(), vgs(), lvs(), broken(MAKES_PROBE_LV), vgs(), lvs(PROBE, tags={PROBE: OTHER_TAGS[0]}), san.goes()
    )
    assert (await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))).code is FaultCode.IO_ERROR


async def test_add_to_a_vg_with_a_thin_pool_that_does_not_zero_makes_nothing(san: San) -> None:
    san.then(san.comes(), vgs(), lvs(POOL, zero=""), san.goes())
    fault = await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=True))
    assert fault.code is FaultCode.UNSUPPORTED and f"lvchange --zero y vg_vms/{POOL}" in fault.remedy
    assert changes_since(san, 0) == []


async def test_add_to_a_vg_with_a_probe_lv_uses_it(san: San) -> None:
    san.then(san.comes(), vgs(), lvs(PROBE), lvs(PROBE), san.activates(), ADDS_TAGS, vgs(*TAGS))
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)
    assert san.blocks.dm_uuids == [DM_UUID]


async def test_add_to_a_vg_with_a_probe_lv_that_is_too_small_is_refused(san: San) -> None:
    small = lvs(PROBE, probe_size=1024**2)
    san.then(san.comes(), vgs(), small, small, san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    assert fault.code is FaultCode.WRONG_DEVICE and "lvextend" in fault.remedy


ADDS_TAGS_QUIETLY = Step(("vgchange", *SCOPE, "--setautoactivation", "n", *ADDS_TAGS.argv[len(SCOPE) + 1 :]))


async def test_add_to_a_vg_that_activates_itself_turns_that_off_with_the_tags(san: San) -> None:
    san.then(
        san.comes(), vgs(is_autoactivated=True), lvs(PROBE), lvs(PROBE), san.activates(), ADDS_TAGS_QUIETLY, vgs(*TAGS)
    )  # fmt: skip
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)


DISK_UUID = "Yi0Yy1-6Jm0-0bZc-0000-lpnf-glcx-disk00"


@pytest.mark.parametrize("is_open", [False, True])
async def test_add_to_a_vg_that_udev_has_activated_takes_that_back_unless_somebody_uses_it(
    is_open: bool, san: San
) -> None:
    def add() -> None:
        san.add_disk()
        san.hold("vg_vms-disk", dm_uuid_of(VG_UUID, DISK_UUID), 3)

    san.blocks.on_scan = add
    fault = AgentFault.of(FaultCode.IN_USE, "open") if is_open else None
    san.then(
        san.comes(), vgs(is_autoactivated=True), lvs(PROBE), lvs(PROBE), san.activates(), ADDS_TAGS_QUIETLY, vgs(*TAGS),
        Step(("lvchange", *SCOPE, "--activate", "n", "--select", f"lv_uuid={DISK_UUID}"), fault=fault),
    )  # fmt: skip
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)


async def test_add_that_another_one_has_overtaken_takes_its_marks_back(san: San) -> None:
    """Two managers, or one that knows the LUN by two targets: what counts is what LVM has in the end."""
    san.then(
        san.comes(), vgs(), lvs(PROBE), lvs(PROBE), san.activates(), ADDS_TAGS, vgs(*TAGS, OTHER_TAGS[0]),
        vgs(*TAGS, OTHER_TAGS[0]), REMOVES_TAGS, lvs(PROBE), san.deactivates(), san.goes(),
    )  # fmt: skip
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    assert fault.code is FaultCode.MARKER_MISMATCH and OTHER_TAGS[0].rpartition("_")[2] in fault.detail


async def test_add_that_fails_turns_autoactivation_on_again_where_it_was(san: San) -> None:
    removes = Step(("vgchange", *SCOPE, "--setautoactivation", "y", *REMOVES_TAGS.argv[len(SCOPE) + 1 :]))
    san.then(
        san.comes(), vgs(is_autoactivated=True), lvs(PROBE), lvs(PROBE), san.activates(), broken(ADDS_TAGS_QUIETLY),
        vgs(*TAGS), removes, lvs(PROBE), san.deactivates(), san.goes(),
    )  # fmt: skip
    assert (await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))).code is FaultCode.IO_ERROR


def without_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attach that fails from here on is as one that is killed."""

    async def nothing(*_: object) -> None:
        """The process is gone."""

    monkeypatch.setattr("agent.luns.Luns.detach_quietly", nothing)
    monkeypatch.setattr("agent.volume_groups.VolumeGroups._undo", nothing)


async def test_release_after_a_kill_within_an_add_takes_back_what_it_made(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        without_handlers(context)
        san.then(san.comes(), vgs(), lvs("disk"), MAKES_PROBE_LV, broken(MAKES_POOL[0], after=True))
        await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=True))
    assert san.has_session()
    san.driver = san.restarted()
    san.then(vgs(), vgs(), MADE_BOTH, san.removes_probe_lv(), REMOVES_POOL, lvs("disk"), san.goes())
    assert (await san.driver.release(THIN, san.space, remove_marker=False)).left == ()


async def test_release_after_an_add_that_was_overtaken_and_killed_takes_its_own_marks_back(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = vgs(*TAGS, OTHER_TAGS[0])
    with monkeypatch.context() as context:
        without_handlers(context)
        san.then(san.comes(), vgs(), lvs(PROBE), lvs(PROBE), san.activates(), ADDS_TAGS, both)
        await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    san.driver = san.restarted()
    san.then(san.deactivates(), both, both, REMOVES_TAGS, lvs(PROBE), san.goes())
    assert (await san.driver.release(target_for(), san.space, remove_marker=False)).left == ()


async def test_add_again_after_a_kill_within_an_add_begins_anew(san: San, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        without_handlers(context)
        san.then(san.comes(), vgs(), lvs("disk"), broken(MAKES_PROBE_LV, after=True))
        await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    san.driver = san.restarted()
    san.then(
        vgs(), vgs(), MADE_PROBE, san.removes_probe_lv(),
        lvs("disk"), MAKES_PROBE_LV, lvs("disk", PROBE), san.activates(), ADDS_TAGS, vgs(*TAGS),
    )  # fmt: skip
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)


async def test_add_again_after_a_kill_behind_the_tags_keeps_all_of_it(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        without_handlers(context)
        san.then(san.comes(), vgs(), lvs(), MAKES_PROBE_LV, lvs(PROBE), san.activates(), broken(ADDS_TAGS, after=True))
        await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    san.driver = san.restarted()
    again = Step(("lvchange", *SCOPE, "--activate", "y", "--", f"vg_vms/{PROBE}"))
    san.then(vgs(*TAGS), lvs(PROBE), lvs(PROBE), again)
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)
    words = LunMemory(san.space.dir).read()
    assert words["marked"] == "yes" and "making" not in words


async def test_add_that_was_overtaken_by_another_host_of_the_backend_takes_nothing_back(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This host stood still when the other one took what it had made for there, and made the tags."""
    with monkeypatch.context() as context:
        without_handlers(context)
        san.then(san.comes(), vgs(), lvs("disk"), broken(MAKES_PROBE_LV, after=True))
        await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=True))
    san.driver = san.restarted()
    san.blocks.faults["write_block"] = BROKEN
    # Untagged when it begins anew, so that what it noted is looked for; tagged a moment later.
    san.then(vgs(), vgs(*TAGS), lvs("disk", PROBE, POOL), lvs("disk", PROBE, POOL), san.activates())
    assert (await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=True))).code is FaultCode.IO_ERROR


async def test_add_that_fails_leaves_its_pool_when_a_volume_is_in_it(san: San) -> None:
    there = lvs("disk", PROBE, POOL, tags=OURS, thin_count="1")
    san.blocks.faults["write_block"] = BROKEN
    san.then(san.comes(), vgs(), lvs("disk"), MAKES_PROBE_LV, MAKES_POOL, there, san.activates())
    san.then(vgs(), there, san.removes_probe_lv(), san.goes())
    assert (await fault_of(san.driver.attach(THIN, CHAP, san.space, establish=True))).code is FaultCode.IO_ERROR


async def test_undo_on_a_disk_that_died_meanwhile_starts_no_tool(san: San) -> None:
    san.blocks.faults["write_block"] = BROKEN
    active = san.activates()

    def dies() -> None:
        active.effect()
        san.blocks.faults["read_block"] = AgentFault.of(FaultCode.HUNG, "stuck")

    san.then(san.comes(), vgs(), lvs("disk"), MAKES_PROBE_LV, lvs("disk", PROBE, tags=OURS))
    san.then(Step(active.argv, effect=dies), removes_mapping(san), san.goes())
    assert (await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))).code is FaultCode.IO_ERROR
    assert LunMemory(san.space.dir).read()["making"]


def removes_mapping(san: San) -> Step:
    return Step(("dmsetup", "remove", "--", DM_NAME), effect=lambda: san.host.drop_holders(san.block_dir))


# A removal.

EMPTY_POOL = lvs("disk", PROBE, POOL, tags=OURS, thin_count="0")


async def test_release_of_the_backend_that_made_the_thin_pool_removes_it_before_the_tags(san: San) -> None:
    await add(san)
    san.then(san.deactivates(), vgs(*TAGS), EMPTY_POOL, REMOVES_POOL, REMOVES_TAGS, lvs("disk", PROBE), san.goes())
    report = await san.driver.release(THIN, san.space, remove_marker=True)
    assert "with 1 logical volume on" in report.left[0]
    assert not any(POOL in sentence for sentence in report.left)
    assert any(PROBE in sentence for sentence in report.left)


@pytest.mark.parametrize(
    ("tags", "thin_count"), [(OURS, "1"), ({}, "0"), ({POOL: OTHER_TAGS[0]}, "0"), (OURS, "")], ids=str
)
async def test_release_leaves_a_thin_pool_that_is_used_or_not_its_own_and_says_so(
    tags: dict[str, str], thin_count: str, san: San
) -> None:
    await add(san)
    there = lvs("disk", PROBE, POOL, tags=tags, thin_count=thin_count)
    san.then(san.deactivates(), vgs(*TAGS), there, REMOVES_TAGS, there, san.goes())
    report = await san.driver.release(THIN, san.space, remove_marker=True)
    assert f"the thin pool vg_vms/{POOL}" in report.left


async def test_release_takes_the_tags_also_where_the_pool_does_not_go(san: San) -> None:
    await add(san)
    san.then(san.deactivates(), vgs(*TAGS), EMPTY_POOL, broken(REMOVES_POOL), REMOVES_TAGS, EMPTY_POOL, san.goes())
    report = await san.driver.release(THIN, san.space, remove_marker=True)
    assert f"the thin pool vg_vms/{POOL}" in report.left


async def test_release_without_marks_to_remove_leaves_the_pool(san: San) -> None:
    await add(san)
    san.then(san.deactivates(), san.goes())
    assert (await san.driver.release(THIN, san.space, remove_marker=False)).left == ()


@pytest.mark.parametrize("is_on", [True, False])
async def test_release_says_how_to_turn_on_the_autoactivation_that_an_add_turned_off(is_on: bool, san: San) -> None:
    await add(san)
    san.then(san.deactivates(), vgs(*TAGS, is_autoactivated=is_on), lvs(PROBE), REMOVES_TAGS, lvs(PROBE), san.goes())
    report = await san.driver.release(THIN, san.space, remove_marker=True)
    assert any("vgchange --setautoactivation y vg_vms" in sentence for sentence in report.left) is not is_on
