"""What initialize and inspect take for blank, and that a LUN is overwritten only in time and only as it was judged."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.errors import AgentFault
from schemas.faults import FaultCode
from tests.agent.recorded_commands import Step
from tests.agent.san import (
    CHAP,
    DM_NAME,
    MAKES_PROBE_LV,
    PROBE,
    SCOPE,
    TAGS,
    WIPE,
    San,
    content,
    fault_of,
    looks,
    lvs,
    target_for,
    vgs,
)

PVCREATE = Step(("pvcreate", *SCOPE, "--", "/dev/sdb"))
VGCREATE = Step(
    ("vgcreate", *SCOPE, "--systemid", "", "--setautoactivation", "n", "--physicalextentsize", "4m",
     "--addtag", TAGS[0], "--addtag", TAGS[1], "--", "vg_vms", "/dev/sdb")
)  # fmt: skip
STUCK = AgentFault.of(FaultCode.HUNG, "stuck")


def attaches(san: San) -> tuple[Step, ...]:
    return (vgs(*TAGS), lvs(), MAKES_PROBE_LV, vgs(*TAGS), lvs(PROBE), san.activates())


def then_doing(step: Step, effect: Callable[[], None]) -> Step:
    return replace(step, effect=effect)


def put(san: San, at: int) -> None:
    """A byte of something that nobody knows."""
    with san.blocks.lun.open("r+b") as lun:
        lun.seek(at)
        lun.write(b"\x07")


# In time.


@pytest.mark.parametrize("before", ["wipefs", "pvcreate", "vgcreate"])
@pytest.mark.parametrize("still_s", [20.0, 86400.0])
async def test_initialize_by_a_host_that_stood_still_overwrites_nothing_any_more(
    before: str, still_s: float, san: San
) -> None:
    """As after SIGSTOP, or a pause of the host: the manager has given up, and another host's VG may be on the LUN."""

    def stand_still() -> None:
        san.now_s += still_s

    look = looks("ext4")
    steps = {"wipefs": look[-1], "pvcreate": WIPE, "vgcreate": PVCREATE}
    last = then_doing(steps[before], stand_still)
    again = (*look[:-1], last) if before == "wipefs" else look
    done = {"wipefs": (), "pvcreate": (last,), "vgcreate": (WIPE, last)}[before]
    san.then(san.comes(), look, again, done, san.goes())
    with pytest.raises(AgentFault) as caught:
        await san.initialize(force=True)
    assert caught.value.fault.code is FaultCode.TIMED_OUT and caught.value.is_retryable
    assert before in caught.value.fault.detail


async def test_initialize_of_which_the_time_is_over_from_the_beginning_only_looks(san: San) -> None:
    san.then(san.comes(), looks(), looks(), san.goes())
    assert (await fault_of(san.initialize(left_s=0))).code is FaultCode.TIMED_OUT


# As it was judged.

OTHER_UUID = "EAJJxm-e0jP-4VzX-TTTT-2222-3333-bbbbbb"


@pytest.mark.parametrize(
    ("judged", "found"),
    [
        (looks(), looks("ext4")),
        (looks("ext4"), looks("xfs")),
        (looks("ext4", uuid="one"), looks("ext4", uuid="two")),
        (looks("ext4"), looks("gpt", "PMBR")),
        (looks("ext4"), looks()),
        (looks("ext4"), looks("LVM2_member", name="vg_vms", tags=TAGS)),
        (looks("LVM2_member", uuid="one"), looks("LVM2_member", uuid="two")),
        (looks("LVM2_member", name="vg_vms"), looks("LVM2_member", name="vg_vms", tags=TAGS)),
        (
            looks("LVM2_member", name="vg_vms"),
            (vgs(uuid=OTHER_UUID), *content("LVM2_member", vg_name="vg_vms")),
        ),
    ],
)
async def test_initialize_of_a_lun_that_changes_meanwhile_is_refused_even_with_force(
    judged: tuple[Step, ...], found: tuple[Step, ...], san: San
) -> None:
    san.then(san.comes(), judged, found, san.goes())
    fault = await fault_of(san.initialize(force=True))
    assert fault.code is FaultCode.FOREIGN_DATA and "a moment before" in fault.detail


async def test_initialize_of_a_blank_lun_on_which_unknown_data_appears_is_refused(san: San) -> None:
    first = looks()
    again = looks()
    san.then(san.comes(), first, then_doing(again[0], lambda: put(san, 0)), again[1:], san.goes())
    fault = await fault_of(san.initialize())
    assert fault.code is FaultCode.FOREIGN_DATA and "unknown data" in fault.detail


# Blank.


@pytest.mark.parametrize("at", [0, 4 * 1024**2 - 1, 12 * 1024**2, 16 * 1024**2 - 1])
async def test_initialize_of_data_that_nobody_knows_needs_force(at: int, san: San) -> None:
    """Plain dm-crypt, a raw database: libblkid sees nothing."""
    put(san, at)
    san.then(san.comes(), looks(), san.goes())
    fault = await fault_of(san.initialize())
    assert fault.code is FaultCode.FOREIGN_DATA and "unknown data" in fault.detail
    san.then(san.comes(), looks(), looks(), WIPE, PVCREATE, VGCREATE, attaches(san))
    await san.initialize(force=True)


async def test_initialize_after_a_kill_behind_pvcreate_needs_no_force_for_what_lvm_itself_wrote(san: San) -> None:
    put(san, 512)
    look = looks("LVM2_member")
    san.then(san.comes(), look, look, WIPE, PVCREATE, VGCREATE, attaches(san))
    await san.initialize()


async def test_initialize_of_a_pv_whose_vg_was_removed_needs_force_for_what_lies_behind(san: San) -> None:
    put(san, 1024**2)
    san.then(san.comes(), looks("LVM2_member"), san.goes())
    fault = await fault_of(san.initialize())
    assert fault.code is FaultCode.FOREIGN_DATA and "unknown data" in fault.detail


async def test_initialize_of_a_lun_whose_end_cannot_be_read_is_refused(san: San) -> None:
    san.blocks.faults["look_for_data"] = AgentFault.of(FaultCode.IO_ERROR, "bad sector")
    san.then(san.comes(), looks(), san.goes())
    assert (await fault_of(san.initialize(force=True))).code is FaultCode.IO_ERROR


async def test_inspect_shows_data_that_nobody_knows(san: San) -> None:
    put(san, 0)
    san.then(san.comes(), content(), vgs(is_there=False), san.goes())
    found = await san.driver.inspect(target_for(), CHAP, san.space)
    assert (found.signatures, found.is_blank) == (("unknown data",), False)


async def test_inspect_of_zeros_is_blank(san: San) -> None:
    san.then(san.comes(), content(), vgs(is_there=False), san.goes())
    found = await san.driver.inspect(target_for(), CHAP, san.space)
    assert (found.signatures, found.is_blank) == ((), True)


async def test_add_on_data_that_nobody_knows_does_not_call_it_blank(san: San) -> None:
    put(san, 0)
    san.then(san.comes(), vgs(is_there=False), content(), san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    assert fault.code is FaultCode.NEEDS_INITIALIZATION and "holds unknown data" in fault.detail


async def test_trial_looks_at_the_lun_by_the_worker_of_the_trial(san: San) -> None:
    """The backend's own may hang on the LUN that is in use."""
    keys: list[str] = []
    run = san.blocks.run

    async def noting(job: str, args: dict[str, object], *, key: str, timeout_s: float) -> dict[str, object]:
        keys.extend([key] if job in ("look_for_data", "read_block") else [])
        return await run(job, args, key=key, timeout_s=timeout_s)

    san.blocks.run = noting  # type: ignore[method-assign, assignment]
    san.then(san.discover(), san.beside(vgs(is_there=False), *content(), number=1))
    await fault_of(san.driver.trial(target_for(), CHAP, san.space))
    assert len(keys) == 2 and all(key.endswith("/trial") for key in keys)


# A VG of another name.


async def test_vg_of_another_name_is_perhaps_the_one_that_is_meant(san: San) -> None:
    look = looks("LVM2_member", name="vg_vmz")
    san.then(san.comes(), look, san.goes())
    added = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=True))
    san.then(san.comes(), look, san.goes())
    initialized = await fault_of(san.initialize())
    assert (added.code, initialized.code) == (FaultCode.NEEDS_INITIALIZATION, FaultCode.FOREIGN_DATA)
    for fault in (added, initialized):
        assert fault.remedy == (
            "Correct vg_name if volume group vg_vmz is the one that is meant;"
            " initialize only if what it holds may be destroyed"
        )


# On a dead LUN.


@pytest.mark.parametrize("verb", ["inspect", "initialize", "initialize with force"])
async def test_a_dead_lun_is_asked_by_no_tool(verb: str, san: San) -> None:
    san.blocks.faults["read_block"] = STUCK
    san.then(san.comes(), san.goes())
    if verb == "inspect":
        fault = await fault_of(san.driver.inspect(target_for(), CHAP, san.space))
    else:
        fault = await fault_of(san.initialize(force=verb.endswith("force")))
    assert fault.code is FaultCode.HUNG


@pytest.mark.parametrize("remove_marker", [True, False])
async def test_release_of_a_dead_lun_in_a_session_that_stays_up_asks_no_lvm(remove_marker: bool, san: San) -> None:
    """The target answers pings and no reads, and the kernel goes on calling the session LOGGED_IN."""
    await san.attach()
    san.blocks.faults["read_block"] = STUCK
    removes = Step(("dmsetup", "remove", "--", DM_NAME), effect=lambda: san.host.drop_holders(san.block_dir))
    san.then(removes, san.goes())
    report = await san.driver.release(target_for(), san.space, remove_marker=remove_marker)
    assert not san.has_session()
    assert [("hung" in sentence) for sentence in report.left] == ([True] if remove_marker else [])


# What was lost.


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((vgs(),), f"vgchange --addtag {TAGS[0]} --addtag {TAGS[1]} vg_vms"),
        (
            (vgs(*TAGS), lvs("disk")),
            f"lvcreate --activate n --zero n --wipesignatures n --size 4m --name {PROBE} vg_vms",
        ),
    ],
)
async def test_what_a_vg_has_lost_can_be_given_back(steps: tuple[Step, ...], words: str, san: San) -> None:
    await san.attach()
    san.then(steps)
    fault = await fault_of(san.driver.probe(target_for(), san.space))
    assert fault.code is FaultCode.MARKER_MISSING
    assert words in fault.remedy and "marker file" not in fault.remedy
