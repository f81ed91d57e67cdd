"""A shared VG: read without its locks, changed under them, its lockspace started by attach and stopped by release."""

from dataclasses import replace

from agent.lun_memory import LunMemory
from agent.scsi import dm_uuid_of
from schemas.faults import FaultCode
from tests.agent.recorded_commands import Step, replay
from tests.agent.san import (
    ADDS_TAGS,
    CHAP,
    DM_UUID,
    MAKES_PROBE_LV,
    PROBE,
    PROBE_UUID,
    SCOPE,
    TAGS,
    VG_UUID,
    San,
    fault_of,
    lvs,
    target_for,
    vgs,
)

LOCKED = (*SCOPE[:-1], f"{SCOPE[-1]} global/use_lvmlockd=1")
STARTS = Step(("vgchange", *LOCKED, "--lockstart", "--lockopt", "nowait", "--", "vg_vms"))
LOCK_UUID = dm_uuid_of(VG_UUID, "lvmloc-0000-0000-0000-0000-0000-lock00")


def locked(step: Step) -> Step:
    """The step as it is under lvmlockd."""
    return replace(step, argv=(step.argv[0], *LOCKED, *step.argv[len(SCOPE) + 1 :]))


def activates(san: San) -> Step:
    step = locked(san.activates())
    return replace(step, argv=tuple("sy" if word == "y" else word for word in step.argv))


def shared(*tags: str) -> Step:
    return vgs(*tags, lock_type="sanlock")


async def attached(san: San) -> None:
    def add() -> None:
        san.add_disk()
        san.hold("vg_vms-lvmlock", LOCK_UUID, 7)

    san.blocks.on_scan = add
    san.then(san.comes(), shared(*TAGS), STARTS, lvs(PROBE), activates(san))
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)


async def test_add_to_a_shared_vg_changes_it_under_its_locks(san: San) -> None:
    san.then(
        san.comes(), shared(), STARTS, lvs(), locked(MAKES_PROBE_LV), lvs(PROBE), activates(san), locked(ADDS_TAGS),
        shared(*TAGS),
    )  # fmt: skip
    await san.driver.attach(target_for(), CHAP, san.space, establish=True)
    assert san.blocks.dm_uuids == [DM_UUID]


async def test_attach_while_the_lockspace_starts_is_converging_and_keeps_the_session(san: San) -> None:
    starting = replay("lvm", "lockspace_starting", activates(san).argv)
    san.then(san.comes(), shared(*TAGS), STARTS, lvs(PROBE), starting)
    assert (
        await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=False))
    ).code is FaultCode.CONVERGING
    assert san.has_session()
    san.then(shared(*TAGS), STARTS, lvs(PROBE), activates(san))
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)


async def test_attach_without_lvmlockd_leaves_the_session_again(san: San) -> None:
    san.then(san.comes(), shared(*TAGS), replay("lvm", "lvmlockd_stopped", STARTS.argv), san.goes())
    fault = await fault_of(san.driver.attach(target_for(), CHAP, san.space, establish=False))
    assert fault.code is FaultCode.TOOL_MISSING and "sanlock" in fault.remedy


async def test_release_stops_the_lockspace_after_the_volumes_and_before_the_disk_goes(san: San) -> None:
    await attached(san)
    assert LunMemory(san.space.dir).read()["locked_vg"] == "vg_vms"
    san.then(
        Step(locked(san.deactivates(PROBE_UUID)).argv, effect=lambda: (san.block_dir / "holders/dm-0").unlink()),
        Step(("vgchange", *LOCKED, "--lockstop", "--", "vg_vms"), effect=lambda: san.host.drop_holders(san.block_dir)),
        san.goes(),
    )
    await san.driver.release(target_for(), san.space, remove_marker=False)
    assert not san.has_session()


async def test_release_leaves_a_lockspace_that_lies_on_another_disk_alone(san: San) -> None:
    """The operator's, by a session of his own."""
    san.then(san.comes(), shared(*TAGS), STARTS, lvs(PROBE), activates(san))
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)
    san.then(locked(san.deactivates()), san.goes())
    await san.driver.release(target_for(), san.space, remove_marker=False)
