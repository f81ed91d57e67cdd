"""LVM: the exact command lines, and what real reports of lvm2 2.03.16 and wipefs 2.38 (a loop device, 2026-11-23) mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from agent.drivers.base import CommandResult, Deadline
from agent.errors import AgentFault
from agent.lvm import DeviceContent, LogicalVolume, Lvm, VolumeGroup, mapper_name
from schemas.faults import FaultCode
from tests.agent.recorded_commands import RecordedCommands, Step, replay

SCOPE = ("--devices", "/dev/sdb", "--nohints", "--config", "devices/obtain_device_list_from_udev=0")
REPORT = ("--shared", "--reportformat", "json", "--units", "b", "--nosuffix", "--options")
VGS = (
    "vgs",
    *SCOPE,
    *REPORT,
    "vg_name,vg_uuid,vg_size,vg_free,vg_tags,pv_count,vg_autoactivation,vg_extent_size,vg_lock_type",
)
PVS = ("pvs", *SCOPE, *REPORT, "pv_name,vg_name,pv_in_use,pe_start")
LVS = ("lvs", *SCOPE, *REPORT, "lv_name,lv_uuid,lv_size,lv_tags,data_percent,thin_count,zero", "--", "vg_vms")
QUIET = VolumeGroup("vg_vms", "u-1", 62914560, 58720256, (), 1, False, 4194304)
LOUD = replace(QUIET, is_autoactivated=True)
#: For what is not about time.
LATE = Deadline(20.0, lambda: 0.0)
WIPEFS = ("wipefs", "--no-act", "--json", "--", "/dev/sdb")


def report(section: str, *rows: dict[str, str]) -> str:
    return json.dumps({"report": [{section: list(rows)}]})


def signatures(*found: tuple[str, str]) -> str:
    return json.dumps(
        {
            "signatures": [
                {"device": "sdb", "offset": offset, "type": type_, "uuid": f"u-{offset}", "label": None}
                for type_, offset in found
            ]
        }
    )


async def test_volume_groups_reads_the_report() -> None:
    row = {
        "vg_name": "vg_vms", "vg_uuid": "EAJJxm-e0jP", "vg_size": "62914560", "vg_free": "58720256",
        "vg_tags": "stowage_backend_1,stowage_fleet_f", "pv_count": "1", "vg_autoactivation": "enabled",
        "vg_extent_size": "4194304", "vg_lock_type": "none",
    }  # fmt: skip
    (group,) = await Lvm(RecordedCommands(Step(VGS, stdout=report("vg", row)))).volume_groups("/dev/sdb")
    assert group == VolumeGroup(
        "vg_vms", "EAJJxm-e0jP", 62914560, 58720256, ("stowage_backend_1", "stowage_fleet_f"), 1, True, 4194304
    )


async def test_volume_groups_of_a_device_that_is_gone_is_not_an_empty_list() -> None:
    """vgs 2.03.16 ends with 0 and an empty list then, as for a blank device."""
    step = Step(VGS, stdout=report("vg"), stderr="  Device not found for /dev/sdb.\n")
    with pytest.raises(AgentFault) as caught:
        await Lvm(RecordedCommands(step)).volume_groups("/dev/sdb")
    assert caught.value.fault.code is FaultCode.LUN_NOT_FOUND


@pytest.mark.parametrize("stdout", ["", "no json", "[]"])
async def test_volume_groups_of_garbage_is_failed(stdout: str) -> None:
    with pytest.raises(AgentFault) as caught:
        await Lvm(RecordedCommands(Step(VGS, stdout=stdout))).volume_groups("/dev/sdb")
    assert caught.value.fault.code is FaultCode.FAILED


async def test_logical_volumes_reads_the_report() -> None:
    found = (
        ("disk", "u-1", "4194304", "a,b", "", "", "unknown"),
        # Another segment of it: lvs has a row for each.
        ("disk", "u-1", "4194304", "a,b", "", "", "unknown"),
        ("stowage_pool", "u-2", "41943040", "", "12.50", "1", "zero"),
        ("inactive", "u-3", "41943040", "", "", "2", ""),
        ("unused", "u-4", "41943040", "", "", "0", "zero"),
    )
    columns: list[str] = ["lv_name", "lv_uuid", "lv_size", "lv_tags", "data_percent", "thin_count", "zero"]
    rows: list[dict[str, str]] = [dict(zip(columns, values, strict=True)) for values in found]
    assert await Lvm(RecordedCommands(Step(LVS, stdout=report("lv", *rows)))).logical_volumes("/dev/sdb", "vg_vms") == (
        LogicalVolume("disk", "u-1", 4194304, ("a", "b"), None),
        LogicalVolume("stowage_pool", "u-2", 41943040, (), 12.5),
        LogicalVolume("inactive", "u-3", 41943040, (), None, is_unzeroed_pool=True),
        LogicalVolume("unused", "u-4", 41943040, (), 0.0, is_unused_pool=True),
    )


@pytest.mark.parametrize(
    ("found", "pvs", "content"),
    [
        ((), (), DeviceContent((), None, None, True)),
        ((("ext4", "0x438"),), (), DeviceContent(("ext4 at 0x438",), None, None, False, ("u-0x438",))),
        (
            (("gpt", "0x200"), ("PMBR", "0x1fe")),
            (),
            DeviceContent(("gpt at 0x200", "PMBR at 0x1fe"), "gpt", None, False, ("u-0x200", "u-0x1fe")),
        ),
        (
            (("LVM2_member", "0x218"),),
            ({"vg_name": "other", "pv_in_use": "used"},),
            DeviceContent(("LVM2_member at 0x218",), None, "other", False, ("u-0x218",)),
        ),
        (
            (("LVM2_member", "0x218"),),
            ({"vg_name": "", "pv_in_use": ""},),
            DeviceContent(("LVM2_member at 0x218",), None, None, True, ("u-0x218",), 1048576),
        ),
        (
            (("LVM2_member", "0x218"),),
            ({"vg_name": "", "pv_in_use": "used"},),
            DeviceContent(("LVM2_member at 0x218",), None, None, False, ("u-0x218",)),
        ),
        ((("LVM2_member", "0x218"),), (), DeviceContent(("LVM2_member at 0x218",), None, None, False, ("u-0x218",))),
    ],
)
async def test_content_says_what_is_there_and_whether_a_wipe_would_destroy_it(
    found: tuple[tuple[str, str], ...], pvs: tuple[dict[str, str], ...], content: DeviceContent
) -> None:
    steps = (
        Step(WIPEFS, stdout=signatures(*found)),
        Step(PVS, stdout=report("pv", *({"pv_name": "/dev/sdb", "pe_start": "1048576", **row} for row in pvs))),
    )
    assert await Lvm(RecordedCommands(*steps)).content("/dev/sdb") == content


@pytest.mark.parametrize(
    ("method", "args", "calls"),
    [
        ("wipe", (LATE,), [("wipefs", "--all", "--force", "--", "/dev/sdb")]),
        (
            "create_group", ("vg_vms", ("a", "b"), LATE),
            [
                ("pvcreate", *SCOPE, "--", "/dev/sdb"),
                ("vgcreate", *SCOPE, "--systemid", "", "--setautoactivation", "n", "--physicalextentsize", "4m",
                 "--addtag", "a", "--addtag", "b", "--", "vg_vms", "/dev/sdb"),
            ],
        ),
        ("mark_group", (QUIET, ("a", "b")), [("vgchange", *SCOPE, "--addtag", "a", "--addtag", "b", "--", "vg_vms")]),
        ("mark_group", (LOUD, ("a",)), [("vgchange", *SCOPE, "--setautoactivation", "n", "--addtag", "a", "--", "vg_vms")]),
        ("mark_group", (QUIET, ()), []),
        (
            "create_probe_volume", ("vg_vms", "t"),
            [("lvcreate", *SCOPE, "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n",
              "--size", "4m", "--addtag", "t", "--name", "stowage_probe", "--", "vg_vms")],
        ),
        (
            "create_thin_pool", ("vg_vms", "t"),
            [
                ("lvcreate", *SCOPE, "--yes", "--type", "thin-pool", "--zero", "y", "--extents", "95%FREE",
                 "--addtag", "t", "--name", "stowage_pool", "--", "vg_vms"),
                ("lvchange", *SCOPE, "--activate", "n", "--", "vg_vms/stowage_pool"),
            ],
        ),
        ("activate", ("vg_vms", "disk"), [("lvchange", *SCOPE, "--activate", "y", "--", "vg_vms/disk")]),
        ("deactivate", (("u-1", "u-2"),), [("lvchange", *SCOPE, "--activate", "n", "--select", "lv_uuid=u-1 || lv_uuid=u-2")]),
        (
            "remove_unused_pool", ("vg_vms", LogicalVolume("stowage_pool", "u-1", 1, (), 0.0)),
            [("lvremove", *SCOPE, "--yes", "--select", "lv_uuid=u-1 && thin_count=0", "--", "vg_vms")],
        ),
        ("remove_volume", ("vg_vms", "disk"), [("lvremove", *SCOPE, "--yes", "--", "vg_vms/disk")]),
    ],
)  # fmt: skip
async def test_change_calls_exactly(method: str, args: tuple[Any, ...], calls: list[tuple[str, ...]]) -> None:
    commands = RecordedCommands(*map(Step, calls))
    await getattr(Lvm(commands), method)("/dev/sdb", *args)
    commands.assert_done()


class Timed:
    """Commands that take `takes_s` each by a clock of their own, and note how long they might have taken."""

    def __init__(self, takes_s: float) -> None:
        self.now = 100.0
        self.allowed: list[tuple[str, float]] = []
        self._takes_s = takes_s

    async def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> CommandResult:
        self.allowed.append((argv[0], timeout_s))
        self.now += self._takes_s
        return CommandResult(tuple(argv), 0, "", "", self._takes_s)


@pytest.mark.parametrize(
    ("left_s", "takes_s", "allowed"),
    [
        (20, 1, [("wipefs", 20), ("pvcreate", 19), ("vgcreate", 18)]),
        (100, 1, [("wipefs", 30), ("pvcreate", 30), ("vgcreate", 30)]),
        (20, 12, [("wipefs", 20), ("pvcreate", 8)]),
        (20, 3600, [("wipefs", 20)]),
        (0, 1, []),
        (-3600, 1, []),
    ],
)
async def test_what_overwrites_neither_starts_past_the_deadline_nor_goes_on(
    left_s: float, takes_s: float, allowed: list[tuple[str, float]]
) -> None:
    commands = Timed(takes_s)
    lvm, deadline = Lvm(commands), Deadline(commands.now + left_s, lambda: commands.now)

    async def overwrite() -> None:
        await lvm.wipe("/dev/sdb", deadline)
        await lvm.create_group("/dev/sdb", "vg_vms", (), deadline)

    if len(allowed) < 3:
        with pytest.raises(AgentFault) as caught:
            await overwrite()
        assert caught.value.fault.code is FaultCode.TIMED_OUT and caught.value.is_retryable
    else:
        await overwrite()
    assert commands.allowed == allowed


@pytest.mark.parametrize(
    ("group", "autoactivate", "options"),
    [
        (QUIET, True, ("--setautoactivation", "y", "--deltag", "a")),
        (LOUD, True, ("--deltag", "a")),
        (QUIET, False, ("--deltag", "a")),
    ],
)
async def test_unmark_group_turns_on_what_is_off_alone(
    group: VolumeGroup, autoactivate: bool, options: tuple[str, ...]
) -> None:
    """vgchange 2.03.16 ends with 5 and changes nothing where the property has the value already."""
    commands = RecordedCommands(Step(("vgchange", *SCOPE, *options, "--", "vg_vms")))
    await Lvm(commands).unmark_group("/dev/sdb", group, ("a",), autoactivate=autoactivate)
    commands.assert_done()


async def test_volume_groups_of_another_hosts_system_id_is_not_an_empty_list() -> None:
    """vgs 2.03.16 ends with 0 and an empty list then."""
    step = Step(
        VGS, stdout=report("vg"), stderr="  Cannot access VG vg_x with system ID other with unknown local system ID.\n"
    )
    with pytest.raises(AgentFault) as caught:
        await Lvm(RecordedCommands(step)).volume_groups("/dev/sdb")
    assert caught.value.fault.code is FaultCode.FOREIGN_DATA and "--systemid" in caught.value.fault.remedy


async def test_remove_mapping_that_is_open_is_in_use() -> None:
    step = replay("lvm", "mapping_busy", ("dmsetup", "remove", "--", "vg_vms-disk"))
    with pytest.raises(AgentFault) as caught:
        await Lvm(RecordedCommands(step)).remove_mapping("vg_vms-disk")
    assert caught.value.fault.code is FaultCode.IN_USE


async def test_deactivate_of_an_open_volume_is_in_use() -> None:
    step = replay("lvm", "lv_open", ("lvchange", *SCOPE, "--activate", "n", "--select", "lv_uuid=u-1"))
    with pytest.raises(AgentFault) as caught:
        await Lvm(RecordedCommands(step)).deactivate("/dev/sdb", ["u-1"])
    assert caught.value.fault.code is FaultCode.IN_USE


def test_mapper_name_doubles_hyphens() -> None:
    assert mapper_name("vg-vms", "a-b") == "vg--vms-a--b"
