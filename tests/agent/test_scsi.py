"""Disks by sysfs: what lies upon them, and that nothing untold passes for nothing there."""

import errno
from collections.abc import Mapping as Arguments
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentFault
from agent.iscsiadm import Session
from agent.scsi import Disk, Disks, Mapping, dm_uuid_of, refuse_foreign
from schemas.faults import FaultCode
from tests.agent.fake_kernel import FakeIscsi

IQN = "iqn.2026-01.org.example:vms"
VG = "EAJJxm-e0jP-4VzX-TTTT-2222-3333-aaaaaa"
VG_PREFIX = "LVM-EAJJxme0jP4VzXTTTT22223333aaaaaa"


class Opened:
    """Workers that only note what was to be opened."""

    def __init__(self) -> None:
        self.devices: list[str] = []

    async def run(self, job: str, args: Arguments[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        assert job == "find_busy"
        self.devices += args["devices"]
        return {"busy": ""}


class World:
    """One session with disk sdb."""

    def __init__(self, folder: Path) -> None:
        self.host = FakeIscsi(folder)
        self.host.login(IQN, "10.0.0.9", 3260)
        self.block_dir = self.host.add_disk()
        self.opened = Opened()
        self.disks = Disks(self.opened, self.host.sysfs)
        self.session = Session("session1", "LOGGED_IN", self.host.sysfs / "devices/platform/host3/session1")

    @property
    def disk(self) -> Disk:
        disk = self.disks.find(self.session, 0)
        assert disk is not None
        return disk


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_dm_uuid_is_that_of_the_kernel() -> None:
    assert dm_uuid_of(VG, "6q9OWI-nF0X-qbI8-HP00-lpnf-glcx-tvGJMr") == VG_PREFIX + "6q9OWInF0XqbI8HP00lpnfglcxtvGJMr"


def test_lv_uuid_of_a_mapping_is_as_lvm_reports_it() -> None:
    uuid = "6q9OWI-nF0X-qbI8-HP00-lpnf-glcx-tvGJMr"
    vg_uuid = "itml7o-M3yI-3muB-8opQ-fGC0-4xtz-piSmMS"
    assert Mapping("dm-1", "vg-disk", dm_uuid_of(vg_uuid, uuid)).lv_uuid == uuid
    assert Mapping("dm-1", "vg-pool_tdata", dm_uuid_of(vg_uuid, uuid) + "-tdata").lv_uuid == ""
    assert Mapping("dm-1", "crypt", "CRYPT-" + "x" * 62).lv_uuid == ""


def test_mappings_of_a_thin_pool_are_uppermost_first(world: World) -> None:
    data = world.host.add_holder(world.block_dir, "vg-pool_tdata", 1, VG_PREFIX + "t-tdata")
    meta = world.host.add_holder(world.block_dir, "vg-pool_tmeta", 2, VG_PREFIX + "t-tmeta")
    pool = world.host.add_holder(data, "vg-pool-tpool", 3, VG_PREFIX + "t-tpool")
    world.host.add_holder(meta, "vg-pool-tpool", 3)
    world.host.add_holder(pool, "vg-disk", 4, VG_PREFIX + "d")
    mappings = world.disks.mappings(world.disk)
    assert [mapping.dm_name for mapping in mappings] == ["vg-disk", "vg-pool-tpool", "vg-pool_tdata", "vg-pool_tmeta"]
    refuse_foreign(mappings, frozenset((VG,)))


def test_mappings_of_a_partition_count(world: World) -> None:
    part = world.host.add_partition(world.block_dir)
    world.host.add_holder(part, "crypt", 1, "CRYPT-LUKS2-x")
    assert world.disks.mappings(world.disk) == (Mapping("dm-1", "crypt", "CRYPT-LUKS2-x"),)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENODEV])
def test_mapping_that_goes_at_this_moment_is_none(world: World, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Seen in the lab: a probe failed while a volume's LV was deactivated."""
    world.host.add_holder(world.block_dir, "vg-stowage_probe", 1, VG_PREFIX + "p")
    going = world.host.add_holder(world.block_dir, "vg-sv_x", 2, VG_PREFIX + "v")
    read_text = Path.read_text

    def read(path: Path) -> str:
        if path.parent == going / "dm":
            raise OSError(error, "goes", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", read)
    assert [mapping.dm_name for mapping in world.disks.mappings(world.disk)] == ["vg-stowage_probe"]
    world.host.drop_disk(world.block_dir)
    assert [mapping.dm_name for mapping in world.disks.dead_mappings(frozenset((VG,)))] == ["vg-stowage_probe"]


def test_mapping_whose_words_cannot_be_read_is_a_fault(world: World) -> None:
    folder = world.host.add_holder(world.block_dir, "vg-disk", 1, VG_PREFIX + "d")
    (folder / "dm/uuid").unlink()
    (folder / "dm/uuid").mkdir()
    with pytest.raises(AgentFault) as caught:
        world.disks.find(world.session, 0)
    assert caught.value.fault.code is FaultCode.IO_ERROR


@pytest.mark.parametrize("vg_uuids", [frozenset[str](), frozenset((VG.replace("a", "b"),))])
def test_refuse_foreign_of_another_vg_is_in_use(vg_uuids: frozenset[str]) -> None:
    with pytest.raises(AgentFault) as caught:
        refuse_foreign((Mapping("dm-1", "vg-disk", VG_PREFIX + "d"),), vg_uuids)
    assert caught.value.fault.code is FaultCode.IN_USE and "vg-disk" in caught.value.fault.detail


@pytest.mark.parametrize("attribute", ["wwid", "size", "holders"])
def test_disk_of_which_sysfs_does_not_tell_is_a_fault(world: World, attribute: str) -> None:
    folder = world.block_dir.parents[1] if attribute == "wwid" else world.block_dir
    path = folder / attribute
    if path.is_dir():
        path.rmdir()
        path.touch()
    else:
        path.write_text("\n")
    with pytest.raises(AgentFault) as caught:
        world.disks.find(world.session, 0)
    assert caught.value.fault.code is FaultCode.IO_ERROR


async def test_refuse_used_lun_opens_every_way_to_it_and_nothing_else(world: World) -> None:
    world.host.login(IQN, "10.0.0.9", 3260, "default", 9)
    world.host.add_partition(world.host.add_disk(0, "sdz", number=9))
    world.host.add_disk(1, "sdy", "naa.another", number=9)
    cd_drive = world.host.add_disk(2, "sr0", number=9)
    (cd_drive.parents[1] / "wwid").unlink()
    await world.disks.refuse_used_lun(world.disk, "k")
    assert world.opened.devices == ["/dev/sdb", "/dev/sdz", "/dev/sdz1"]


async def test_refuse_used_lun_of_a_multipath_device_opens_the_device(world: World) -> None:
    world.host.login(IQN, "10.0.0.9", 3260, "default", 9)
    for block_dir in (world.block_dir, world.host.add_disk(0, "sdz", number=9)):
        world.host.add_holder(block_dir, "mpatha", 5, "mpath-36001405")
    await world.disks.refuse_used_lun(world.disk, "k")
    assert set(world.opened.devices) == {"/dev/dm-5"}


async def test_refuse_used_lun_with_a_disk_that_does_not_tell_its_wwid_is_a_fault(world: World) -> None:
    other = world.host.add_disk(1, "sdz", "naa.another")
    (other.parents[1] / "wwid").unlink()
    (other.parents[1] / "wwid").mkdir()
    with pytest.raises(AgentFault) as caught:
        await world.disks.refuse_used_lun(world.disk, "k")
    assert caught.value.fault.code is FaultCode.IO_ERROR and world.opened.devices == []


def test_dead_mappings_are_those_of_the_vg_whose_disk_is_gone(world: World) -> None:
    data = world.host.add_holder(world.block_dir, "vg-pool_tdata", 1, VG_PREFIX + "t-tdata")
    world.host.add_holder(data, "vg-pool-tpool", 2, VG_PREFIX + "t-tpool")
    world.host.add_holder(world.block_dir, "other-disk", 3, "LVM-" + "o" * 64)
    ours = frozenset((VG,))
    assert world.disks.dead_mappings(ours) == ()
    world.host.drop_disk(world.block_dir)
    assert [mapping.dm_name for mapping in world.disks.dead_mappings(ours)] == ["vg-pool-tpool", "vg-pool_tdata"]
