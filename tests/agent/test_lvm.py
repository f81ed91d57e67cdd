"""LVM: the exact command lines, and what real reports of lvm2 2.03.16 and wipefs 2.38 (a loop device, 2026-11-23) mean."""

import json
from typing import Any

import pytest

from agent.errors import AgentFault
from agent.lvm import DeviceContent, LogicalVolume, Lvm, VolumeGroup, mapper_name
from schemas.faults import FaultCode
from tests.agent.recorded_commands import RecordedCommands, Step, replay

SCOPE = ("--devices", "/dev/sdb", "--nohints", "--config", "devices/obtain_device_list_from_udev=0")
REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options")
VGS = ("vgs", *SCOPE, *REPORT, "vg_name,vg_uuid,vg_size,vg_free,vg_tags,pv_count")
PVS = ("pvs", *SCOPE, *REPORT, "pv_name,vg_name,pv_in_use")
LVS = ("lvs", *SCOPE, *REPORT, "lv_name,lv_size,lv_active,data_percent", "--", "vg_vms")
WIPEFS = ("wipefs", "--no-act", "--json", "--", "/dev/sdb")


def report(section: str, *rows: dict[str, str]) -> str:
    return json.dumps({"report": [{section: list(rows)}]})


def signatures(*found: tuple[str, str]) -> str:
    return json.dumps(
        {
            "signatures": [
                {"device": "sdb", "offset": offset, "type": type_, "uuid": None, "label": None}
                for type_, offset in found
            ]
        }
    )


async def test_volume_groups_reads_the_report() -> None:
    row = {
        "vg_name": "vg_vms", "vg_uuid": "EAJJxm-e0jP", "vg_size": "62914560", "vg_free": "58720256",
        "vg_tags": "stowage_backend_1,stowage_fleet_f", "pv_count": "1",
    }  # fmt: skip
    (group,) = await Lvm(RecordedCommands(Step(VGS, stdout=report("vg", row)))).volume_groups("/dev/sdb")
    assert group == VolumeGroup(
        "vg_vms", "EAJJxm-e0jP", 62914560, 58720256, ("stowage_backend_1", "stowage_fleet_f"), 1
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
    rows = (
        {"lv_name": "disk", "lv_size": "4194304", "lv_active": "", "data_percent": ""},
        {"lv_name": "stowage_pool", "lv_size": "41943040", "lv_active": "active", "data_percent": "12.50"},
    )
    found = await Lvm(RecordedCommands(Step(LVS, stdout=report("lv", *rows)))).logical_volumes("/dev/sdb", "vg_vms")
    assert found == (LogicalVolume("disk", 4194304, False, None), LogicalVolume("stowage_pool", 41943040, True, 12.5))


@pytest.mark.parametrize(
    ("found", "pvs", "content"),
    [
        ((), (), DeviceContent((), None, None, True)),
        ((("ext4", "0x438"),), (), DeviceContent(("ext4 at 0x438",), None, None, False)),
        (
            (("gpt", "0x200"), ("PMBR", "0x1fe")),
            (),
            DeviceContent(("gpt at 0x200", "PMBR at 0x1fe"), "gpt", None, False),
        ),
        (
            (("LVM2_member", "0x218"),),
            ({"vg_name": "other", "pv_in_use": "used"},),
            DeviceContent(("LVM2_member at 0x218",), None, "other", False),
        ),
        (
            (("LVM2_member", "0x218"),),
            ({"vg_name": "", "pv_in_use": ""},),
            DeviceContent(("LVM2_member at 0x218",), None, None, True),
        ),
        (
            (("LVM2_member", "0x218"),),
            ({"vg_name": "", "pv_in_use": "used"},),
            DeviceContent(("LVM2_member at 0x218",), None, None, False),
        ),
        ((("LVM2_member", "0x218"),), (), DeviceContent(("LVM2_member at 0x218",), None, None, False)),
    ],
)
async def test_content_says_what_is_there_and_whether_a_wipe_would_destroy_it(
    found: tuple[tuple[str, str], ...], pvs: tuple[dict[str, str], ...], content: DeviceContent
) -> None:
    steps = (
        Step(WIPEFS, stdout=signatures(*found)),
        Step(PVS, stdout=report("pv", *({"pv_name": "/dev/sdb", **row} for row in pvs))),
    )
    assert await Lvm(RecordedCommands(*steps)).content("/dev/sdb") == content


@pytest.mark.parametrize(
    ("method", "args", "calls"),
    [
        ("wipe", (), [("wipefs", "--all", "--force", "--", "/dev/sdb")]),
        (
            "create_group", ("vg_vms", ("a", "b")),
            [
                ("pvcreate", *SCOPE, "--yes", "--", "/dev/sdb"),
                ("vgcreate", *SCOPE, "--yes", "--setautoactivation", "n", "--addtag", "a", "--addtag", "b", "--", "vg_vms", "/dev/sdb"),
            ],
        ),
        ("add_tags", ("vg_vms", ("a", "b")), [("vgchange", *SCOPE, "--addtag", "a", "--addtag", "b", "--", "vg_vms")]),
        ("remove_tags", ("vg_vms", ("a",)), [("vgchange", *SCOPE, "--deltag", "a", "--", "vg_vms")]),
        (
            "create_probe_volume", ("vg_vms",),
            [("lvcreate", *SCOPE, "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n",
              "--extents", "1", "--name", "stowage_probe", "--", "vg_vms")],
        ),
        (
            "create_thin_pool", ("vg_vms",),
            [
                ("lvcreate", *SCOPE, "--yes", "--type", "thin-pool", "--extents", "95%FREE", "--name", "stowage_pool", "--", "vg_vms"),
                ("lvchange", *SCOPE, "--activate", "n", "--", "vg_vms/stowage_pool"),
            ],
        ),
        ("activate", ("vg_vms", "disk"), [("lvchange", *SCOPE, "--activate", "y", "--", "vg_vms/disk")]),
        ("deactivate_group", ("vg_vms",), [("vgchange", *SCOPE, "--activate", "n", "--", "vg_vms")]),
        ("remove_volume", ("vg_vms", "disk"), [("lvremove", *SCOPE, "--yes", "--", "vg_vms/disk")]),
    ],
)  # fmt: skip
async def test_change_calls_exactly(method: str, args: tuple[Any, ...], calls: list[tuple[str, ...]]) -> None:
    commands = RecordedCommands(*map(Step, calls))
    await getattr(Lvm(commands), method)("/dev/sdb", *args)
    commands.assert_done()


async def test_deactivate_group_with_an_open_volume_is_in_use() -> None:
    step = replay("lvm", "lv_open", ("vgchange", *SCOPE, "--activate", "n", "--", "vg_vms"))
    with pytest.raises(AgentFault) as caught:
        await Lvm(RecordedCommands(step)).deactivate_group("/dev/sdb", "vg_vms")
    assert caught.value.fault.code is FaultCode.IN_USE


def test_mapper_name_doubles_hyphens() -> None:
    assert mapper_name("vg-vms", "a-b") == "vg--vms-a--b"
