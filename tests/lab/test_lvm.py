"""The volume group of iscsi_lvm with real LVM: inspected, initialized, taken over, known again, and nobody else's touched."""

import pytest

from tests.lab.backends import Backends
from tests.lab.client import Api
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.iscsi import (
    KIND,
    PROBE_LV,
    added_blank,
    content,
    disk_of,
    end_session,
    initialize,
    inspection,
    iscsi,
    lvs,
    mapped,
    sessions,
    vgs,
)
from tests.lab.storage import ADDRESS, Storage

_PROBE = f"vg_vms-{PROBE_LV}"
_LVM_TOOLS = ("pvs", "vgs", "lvs", "pvcreate", "vgcreate", "vgchange", "lvcreate", "lvchange", "lvremove")


# Inspected and initialized.


def test_a_fresh_lun_is_inspected_and_initialized(
    api: Api, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    backend = added_blank(backends, iscsi(iqn))
    assert sessions(hv1) == []

    found = inspection(api, backend)

    assert found["is_blank"] is True
    assert found["size_bytes"] == 256 << 20
    assert (found["signatures"], found["partition_table"], found["foreign_vg"]) == ([], None, None)
    answer = initialize(api, backend, found["wwid"])
    assert (answer.status, answer.body["state"]) == (200, "ready")
    assert backend.probe(hv1)["status"] == "healthy"
    assert mapped(hv1) == [_PROBE]


@pytest.mark.slow
def test_an_initialized_lun_is_attached_on_every_host(
    api: Api, backends: Backends, hv1: Host, hv2: Host, iqn: str, image: str
) -> None:
    backend = added_blank(backends, iscsi(iqn), on=(hv1, hv2))

    assert initialize(api, backend, inspection(api, backend)["wwid"]).status == 200

    for host in (hv1, hv2):
        assert backend.probe(host)["status"] == "healthy"


def test_another_wwid_than_the_inspected_is_not_written_to(
    api: Api, storage: Storage, backends: Backends, iqn: str, image: str
) -> None:
    backend = added_blank(backends, iscsi(iqn))
    before = content(storage, image)

    answer = initialize(api, backend, "naa.60014050000000000000000000000000")

    assert answer.codes == ["wrong_device"]
    assert content(storage, image) == before
    assert backend.now()["state"] == "needs_initialization"


@pytest.mark.slow
def test_a_lun_that_was_swapped_after_the_inspection_is_not_written_to(
    api: Api, storage: Storage, backends: Backends, iqn: str, image: str
) -> None:
    backend = added_blank(backends, iscsi(iqn))
    wwid = inspection(api, backend)["wwid"]
    storage.unmap(iqn, 0)
    other = storage.lun(iqn, 0)
    before = content(storage, other)

    assert initialize(api, backend, wwid).codes == ["wrong_device"]

    assert content(storage, other) == before


#: What is on a LUN, the command that puts it there, and how an inspection says it.
FOREIGN = {
    "a file system": ("mkfs.ext4 -q -F {device}", "ext4", ("signatures", "ext4")),
    "a partition table": ("sgdisk -n 1:0:0 {device}", "gpt", ("partition_table", "gpt")),
    "a volume group": (
        "vgcreate -q --devices {device} vg_theirs {device} && lvcreate -q -an -Zn -Wn --devices {device} -L 8m -n disk vg_theirs",
        "vg_theirs",
        ("foreign_vg", "vg_theirs"),
    ),
    "swap space": ("mkswap {device}", "swap", ("signatures", "swap")),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what == "a file system" else pytest.mark.slow) for what in FOREIGN]
)
def test_a_lun_with_data_is_refused_and_taken_with_force(
    api: Api, storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str, what: str
) -> None:
    command, word, (field, value) = FOREIGN[what]
    with storage.device_of(image) as device:
        storage.courier.run(command.format(device=device))
    before = content(storage, image)
    backend = added_blank(backends, iscsi(iqn))

    found = inspection(api, backend)
    refusal = initialize(api, backend, found["wwid"])

    assert found["is_blank"] is False
    assert value in str(found[field])
    assert refusal.codes == ["foreign_data"]
    assert word in refusal.body["faults"][0]["detail"]
    assert content(storage, image) == before
    assert initialize(api, backend, found["wwid"], force=True).status == 200
    assert backend.probe(hv1)["status"] == "healthy"
    assert storage.lvm(image, "vgs --noheadings -o vg_name") == "vg_vms"


@pytest.mark.slow
def test_a_lun_that_a_host_has_mounted_is_not_taken_even_with_force(
    api: Api, storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    with storage.device_of(image) as device:
        storage.courier.run("mkfs.ext4 -q -F", device)
    hv1.log_in(iqn, ADDRESS)
    try:
        disk = hv1.courier.run("ls /sys/block | grep ^sd").out.strip()
        hv1.courier.run(f"mkdir -p /srv/theirs && mount /dev/{disk} /srv/theirs && touch /srv/theirs/file")
        backend = added_blank(backends, iscsi(iqn))

        answer = initialize(api, backend, inspection(api, backend)["wwid"], force=True)

        assert answer.codes == ["in_use"]
        hv1.courier.run(f"umount /srv/theirs && mount -o ro /dev/{disk} /srv/theirs && ls /srv/theirs/file")
    finally:
        hv1.courier.run("umount /srv/theirs; rmdir /srv/theirs")
        hv1.log_out(iqn)


def test_a_confirmation_of_another_name(api: Api, backends: Backends, iqn: str, image: str) -> None:
    backend = added_blank(backends, iscsi(iqn))
    wwid = inspection(api, backend)["wwid"]

    answer = api("POST", f"{backend.path}/initialize", {"confirm": "another", "wwid": wwid, "force": False})

    assert answer.status == 400
    assert backend.now()["state"] == "needs_initialization"


# Taken over.


def test_a_volume_group_that_an_operator_made_on_a_host(backends: Backends, hv1: Host, iqn: str, image: str) -> None:
    hv1.log_in(iqn, ADDRESS)
    disk = hv1.courier.run("ls /sys/block | grep ^sd").out.strip()
    hv1.courier.run(f"vgcreate vg_vms /dev/{disk} && lvcreate -an -Zn -Wn -L 8m -n disk vg_vms")
    hv1.log_out(iqn)

    backend = backends.add(KIND, iscsi(iqn))

    assert backend.probe(hv1)["status"] == "healthy"
    assert vgs(hv1, iqn, "vg_name") == ["vg_vms"]


def test_capacity_is_the_volume_groups_own(
    storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    storage.volume_group(image, "vg_vms", volumes=("disk",))

    backend = backends.add(KIND, iscsi(iqn))

    size, free = map(int, vgs(hv1, iqn, "vg_size,vg_free"))
    expected = {"total_bytes": size, "used_bytes": size - free, "available_bytes": free}
    assert {name: backend.added["capacity"][name] for name in expected} == expected
    seen = backend.probe(hv1)["capacity"]
    assert {name: seen[name] for name in expected} == expected
    assert size - free == (8 + 4) << 20


@pytest.mark.slow
def test_other_volumes_stay_inactive_on_every_host(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host, iqn: str, image: str
) -> None:
    # Its autoactivation is on, as vgcreate leaves it, until the add switches it off.
    storage.volume_group(image, "vg_vms", volumes=("disk",))

    backend = backends.add(KIND, iscsi(iqn), on=(hv1, hv2))

    assert vgs(hv1, iqn, "vg_autoactivation") == []
    for host in (hv1, hv2):
        host.courier.run("udevadm settle")
        assert mapped(host) == [_PROBE]
        # What udev does when a disk comes.
        host.courier.run(f"pvscan --cache -aay /dev/{disk_of(host, iqn)}; vgchange -aay --autoactivation event vg_vms")
        assert mapped(host) == [_PROBE]
    assert backend.probe(hv1)["status"] == "healthy"


def test_udev_activates_nothing_on_a_disk_of_ours_and_what_it_likes_on_an_operators(
    storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    # The first login of a host brings the rule; this target has no VG of that name.
    other = storage.target()
    storage.lun(other)
    added_blank(backends, iscsi(other)).remove()
    storage.volume_group(image, "vg_theirs", volumes=("disk",))

    for iface, activated in (("stowage", []), ("default", ["vg_theirs-disk"])):
        hv1.log_in(iqn, ADDRESS, iface)
        hv1.courier.run("udevadm settle")
        assert mapped(hv1) == activated
        hv1.courier.run("vgchange -an vg_theirs")
        end_session(hv1, iqn, iface)
        hv1.courier.run(f"iscsiadm -m node -T {iqn} -o delete")


@pytest.mark.slow
def test_every_lvm_command_sees_its_own_device_alone(
    api: Api, storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str, ran: Ran
) -> None:
    backend = added_blank(backends, iscsi(iqn, thin=True))
    initialize(api, backend, inspection(api, backend)["wwid"])
    backend.edit(config={"portal": "storage"})
    backend.remove()

    used = [command.argv for command in ran(hv1) if command.argv[0] in _LVM_TOOLS and "--version" not in command.argv]

    assert {"vgs", "lvs", "pvcreate", "vgcreate", "lvcreate", "lvchange", "vgchange"} <= {argv[0] for argv in used}
    for argv in used:
        assert argv[1] == "--devices"
        assert argv[2].startswith("/dev/sd")


@pytest.mark.slow
def test_a_thin_pool(storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str) -> None:
    storage.volume_group(image, "vg_vms")

    backend = backends.add(KIND, iscsi(iqn, thin=True))

    total, free = map(int, vgs(hv1, iqn, "vg_size,vg_free"))
    size = int(lvs(hv1, iqn, "lv_size", "stowage_pool")[0])
    assert size > 200 << 20
    # It is active nowhere, for two hosts must not have it active at once; it has no volumes, so all of it is free.
    assert mapped(hv1) == [_PROBE]
    assert backend.probe(hv1)["capacity"]["available_bytes"] == free + size
    device = f"--devices /dev/{disk_of(hv1, iqn)}"
    hv1.courier.run(
        f"lvcreate {device} -y -V 64m -T vg_vms/stowage_pool -n thin && dd if=/dev/urandom of=/dev/vg_vms/thin bs=1M count=20 oflag=direct"
    )
    free = int(vgs(hv1, iqn, "vg_free")[0])
    used = float(lvs(hv1, iqn, "data_percent", "stowage_pool")[0])
    assert used > 5

    seen = backend.probe(hv1)["capacity"]

    assert seen["total_bytes"] == total
    assert seen["available_bytes"] == free + int(size * (1 - used / 100))
    assert seen["used_bytes"] == total - seen["available_bytes"]
    hv1.courier.run(f"lvchange {device} -an vg_vms/thin vg_vms/stowage_pool")
    # What it has in use only the host knows on which it is active.
    assert backend.probe(hv1)["capacity"] is None


def test_a_full_volume_group(storage: Storage, backends: Backends, iqn: str, image: str) -> None:
    storage.volume_group(image, "vg_vms")
    storage.lvm(image, "lvcreate -q -an -Zn -Wn -l 100%FREE -n disk vg_vms")

    backends.refused("no_space", KIND, iscsi(iqn))

    assert storage.lvm(image, "vgs --noheadings -o vg_tags") == ""


def test_a_lun_that_takes_no_writes(storage: Storage, backends: Backends, iqn: str, image: str) -> None:
    storage.volume_group(image, "vg_vms")
    storage.set_write_protected(iqn)

    backends.refused("read_only", KIND, iscsi(iqn))
