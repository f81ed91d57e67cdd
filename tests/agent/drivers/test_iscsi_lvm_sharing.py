"""What else of a host uses a target, a LUN or a session: other backends of ours, and the operator; none of it is taken away."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agent.drivers.base import CommandResult
from agent.errors import AgentFault
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.recorded_commands import Step, replay
from tests.agent.san import (
    CHAP,
    DM_UUID,
    IQN,
    OTHER_BACKEND,
    OTHER_TRIAL_IFACE,
    PROBE,
    TAGS,
    San,
    content,
    fault_of,
    lvs,
    target_for,
    vgs,
)

OTHER = target_for(OTHER_BACKEND, lun=1, vg_name="vg_two")
SAME_LUN = target_for(OTHER_BACKEND)
BLANK = (vgs(is_there=False, device="/dev/sdc"), *content(device="/dev/sdc"))


def joins(san: San) -> tuple[Step, ...]:
    """Another backend comes to the session: its credentials are proven first."""
    return (
        san.discover(),
        *san.beside(iface=OTHER_TRIAL_IFACE),
        san.new_record(),
    )


async def attach_two(san: San) -> None:
    """The first healthy on LUN 0, and the second's session and disk on LUN 1 left by a kill."""
    await san.attach()
    first = san.block_dir
    san.blocks.on_scan = lambda: san.host.add_disk(1, "sdc", "naa.two")
    san.then(joins(san), BLANK)
    with pytest.MonkeyPatch.context() as context:
        context.setattr("agent.luns.Luns.detach_quietly", _nothing)
        fault = await fault_of(san.driver.attach(OTHER, CHAP, san.other_space(), establish=True))
    assert fault.code is FaultCode.NEEDS_INITIALIZATION
    san.block_dir = first


async def _nothing(*_: object) -> None:
    """The process is gone."""


async def test_release_leaves_a_session_that_another_backend_uses_to_it(san: San) -> None:
    await attach_two(san)
    san.then(san.deactivates())
    await san.driver.release(target_for(), san.space, remove_marker=False)
    assert san.host.record(IQN, "10.0.0.9", 3260, 1).exists() and san.has_session()
    san.then(san.goes())
    await san.driver.release(OTHER, san.other_space(), remove_marker=False)
    assert not san.has_session()


async def test_attach_that_came_to_a_shared_session_and_fails_leaves_it_again(san: San) -> None:
    await san.attach()
    san.blocks.on_scan = lambda: san.host.add_disk(1, "sdc", "naa.two")
    san.then(joins(san), BLANK)
    await fault_of(san.driver.attach(OTHER, CHAP, san.other_space(), establish=True))
    delete = san.host.sysfs / "devices/platform/host3/session1/target3:0:0/3:0:0:1/delete"
    assert delete.read_text() == "1" and san.has_session()
    assert await san.driver.is_attached(target_for(), san.space)


async def test_attach_of_the_same_lun_a_second_time_leaves_the_first_alone(san: San) -> None:
    await san.attach()
    san.then(joins(san), vgs(*TAGS))
    fault = await fault_of(san.driver.attach(SAME_LUN, CHAP, san.other_space(), establish=True))
    assert fault.code is FaultCode.MARKER_MISMATCH
    await san.driver.release(SAME_LUN, san.other_space(), remove_marker=True)
    assert (san.block_dir.parents[1] / "delete").read_text() == ""
    assert await san.driver.is_attached(target_for(), san.space)


async def test_attach_to_a_session_with_a_wrong_password_is_auth_failed_and_changes_no_record(san: San) -> None:
    await san.attach()
    san.then(
        san.discover(), san.new_record(OTHER_TRIAL_IFACE),
        replay("iscsiadm", "wrong_chap", san.node("--login", iface=OTHER_TRIAL_IFACE)),
        Step(san.node("--logout", iface=OTHER_TRIAL_IFACE), 21), san.delete_record(OTHER_TRIAL_IFACE),
        Step(san.node("-o", "delete", iface=OTHER_TRIAL_IFACE), 21),
    )  # fmt: skip
    wrong = Credentials({"username": "chap", "password": "wrong-canary"})
    fault = await fault_of(san.driver.attach(OTHER, wrong, san.other_space(), establish=True))
    assert fault.code is FaultCode.AUTH_FAILED
    assert "wrong-canary" not in san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()
    assert await san.driver.is_attached(target_for(), san.space)


async def test_rotation_with_a_wrong_password_keeps_what_is_attached(san: San) -> None:
    await san.attach()
    beside = san.beside()
    san.then(
        beside[0], Step(beside[1].argv, 24),
        Step(san.node("--logout", iface="stowage-000000000001"), 21), san.delete_record("stowage-000000000001"),
        Step(san.node("-o", "delete", iface="stowage-000000000001"), 21),
    )  # fmt: skip
    wrong = Credentials({"username": "chap", "password": "wrong"})
    fault = await fault_of(san.driver.attach(target_for(version=2), wrong, san.space, establish=False))
    assert fault.code is FaultCode.AUTH_FAILED
    assert await san.driver.is_attached(target_for(), san.space)


async def test_two_backends_of_one_target_come_to_it_one_after_the_other(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second asks for the session while the first logs in; it must find that one, and not make its own."""
    has_asked = asyncio.Event()
    run = san.commands.run

    async def run_slowly(argv: Sequence[str], **more: Any) -> CommandResult:
        if argv[-1] == "--login":
            await has_asked.wait()
        if argv[0] == "vgs":
            await asyncio.wait({second})
        result = await run(argv, **more)
        if "discovery" in argv and len(san.commands.calls) > 1:
            has_asked.set()
        return result

    monkeypatch.setattr(san.commands, "run", run_slowly)
    first_comes = san.comes()
    san.then(
        first_comes[:-1], san.discover(), first_comes[-1],
        Step(san.node("-o", "delete", iface=OTHER_TRIAL_IFACE), 21), vgs(*TAGS), lvs(PROBE), san.activates(),
    )  # fmt: skip
    # Refused before it is sent, which suffices to see that the second came to the session of the first.
    unusable = Credentials({"username": "chap", "password": "x" * 300})
    first = asyncio.create_task(san.driver.attach(target_for(), CHAP, san.space, establish=False))
    second = asyncio.create_task(san.driver.attach(OTHER, unusable, san.other_space(), establish=True))
    await asyncio.wait_for(first, 10)
    assert (await fault_of(second)).code is FaultCode.AUTH_FAILED
    assert await san.driver.is_attached(target_for(), san.space)


async def test_release_with_the_operators_own_session_beside_never_touches_it(san: San) -> None:
    san.host.make_record(IQN, "10.0.0.9", 3260, 1, "default")
    san.host.login(IQN, "10.0.0.9", 3260, "default", 9)
    theirs = san.host.add_disk(0, "sdz", number=9)
    before = san.host.record(IQN, "10.0.0.9", 3260, 1, "default").read_text()
    await san.attach()
    san.then(san.deactivates(), san.goes())
    await san.driver.release(target_for(), san.space, remove_marker=False)
    assert san.host.record(IQN, "10.0.0.9", 3260, 1, "default").read_text() == before
    assert san.has_session(9) and (theirs.parents[1] / "delete").read_text() == ""
    assert not any("default" in call for call in san.commands.calls)


@pytest.mark.parametrize("uuid", ["CRYPT-LUKS2-x", "LVM-" + "x" * 64])
async def test_release_with_a_mapping_that_is_not_ours_is_in_use_and_removes_none(san: San, uuid: str) -> None:
    await san.attach()
    san.hold("theirs", uuid, 3)
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=True))
    assert fault.code is FaultCode.IN_USE and "theirs" in fault.detail
    assert await san.driver.is_attached(target_for(), san.space)


async def test_release_with_a_guests_volume_group_in_one_of_our_volumes_is_in_use(san: San) -> None:
    await san.attach()
    san.host.add_holder(san.hold("vg_vms-disk", DM_UUID[:36] + "d" * 32, 3), "guest-root", 4, "LVM-" + "g" * 64)
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=False))
    assert fault.code is FaultCode.IN_USE and "guest-root" in fault.detail


async def test_release_of_a_disk_with_a_mounted_file_system_is_in_use_and_keeps_it(san: San) -> None:
    await san.attach()
    san.host.add_partition(san.block_dir)
    san.blocks.busy = "/dev/sdb1"
    san.then(san.deactivates())
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=False))
    assert fault.code is FaultCode.IN_USE and "/dev/sdb1" in fault.detail
    assert san.has_session() and (san.block_dir.parents[1] / "delete").read_text() == ""


async def test_release_of_a_session_with_another_disk_in_use_keeps_it(san: San) -> None:
    """A rescan of all sessions by the operator has brought it."""
    await san.attach()
    san.host.add_disk(7, "sdq", "naa.seven")
    san.blocks.busy = "/dev/sdq"
    san.then(san.deactivates())
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=False))
    assert fault.code is FaultCode.IN_USE and san.has_session()


async def test_release_that_cannot_be_told_what_uses_the_disk_is_a_fault(san: San) -> None:
    await san.attach()
    uuid = san.host.sysfs / "devices/virtual/block/dm-0/dm/uuid"
    uuid.unlink()
    uuid.mkdir()
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=False))
    assert fault.code is FaultCode.IO_ERROR
    assert san.has_session()


async def test_release_that_cannot_open_the_disk_in_time_is_a_fault_and_is_done_later(san: San) -> None:
    await san.attach()
    san.blocks.faults["find_busy"] = AgentFault.of(FaultCode.TIMED_OUT, "no answer", is_retryable=True)
    san.then(san.deactivates())
    fault = await fault_of(san.driver.release(target_for(), san.space, remove_marker=False))
    assert fault.code is FaultCode.TIMED_OUT and san.has_session()
    san.blocks.faults.clear()
    san.then(san.goes())
    await san.driver.release(target_for(), san.space, remove_marker=False)
    assert not san.has_session()


async def test_trial_of_a_path_of_a_multipath_device_that_is_in_use_ends(san: San) -> None:
    """multipathd takes the trial's disk for one more path, and the volumes in use lie upon both."""

    def add() -> None:
        san.add_disk()
        san.hold("mpatha", "mpath-36001405", 5)

    def add_second() -> None:
        san.host.add_holder(san.host.add_disk(0, "sdc", number=2), "mpatha", 5)

    san.blocks.on_scan = add

    def through(step: Step, effect: bool = False) -> Step:
        argv = tuple("/dev/dm-5" if word == "/dev/sdb" else word for word in step.argv)
        map_dir = san.host.sysfs / "devices/virtual/block/dm-5"

        def hold() -> None:
            san.host.add_holder(map_dir, "vg_vms-stowage_probe", 0, DM_UUID)

        return Step(argv, stdout=step.stdout, effect=hold if effect else lambda: None)

    san.then(san.comes(), through(vgs(*TAGS)), through(lvs(PROBE)), through(san.activates(), effect=True))
    await san.driver.attach(target_for(), CHAP, san.space, establish=False)
    san.blocks.on_scan = add_second
    san.then(san.discover(), san.beside(through(vgs(*TAGS))))
    await san.driver.trial(target_for(), CHAP, san.space)
    assert not san.has_session(2)
    assert await san.driver.is_attached(target_for(), san.space)
