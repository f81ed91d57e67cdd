"""The volume group of iscsi_lvm with real LVM: inspected, initialized, taken over, known again, and nobody else's touched."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab.backends import Backend, Backends
from tests.lab.client import Api
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.iscsi import KIND, PROBE_LV, added_blank, disk_of, initialize, inspection, iscsi, mapped, sessions
from tests.lab.lab import Lab
from tests.lab.qemu import wait_until
from tests.lab.storage import ADDRESS, Storage

_PROBE = f"vg_vms-{PROBE_LV}"
_LVM_TOOLS = ("pvs", "vgs", "lvs", "pvcreate", "vgcreate", "vgchange", "lvcreate", "lvchange", "lvremove")


@pytest.fixture
def api(lab: Lab) -> Api:
    return lab.api


@pytest.fixture
def iqn(storage: Storage) -> str:
    return storage.target()


@pytest.fixture
def image(storage: Storage, iqn: str) -> str:
    """The file behind the target's blank LUN 0."""
    return storage.lun(iqn)


def vgs(host: Host, iqn: str, columns: str) -> list[str]:
    """What `vgs` on the host says of the LUN's VG, in bytes."""
    return host.courier.run(
        f"vgs --devices /dev/{disk_of(host, iqn)} --noheadings --units b --nosuffix --separator ' ' -o", columns
    ).out.split()


def lvs(host: Host, iqn: str, columns: str, name: str) -> list[str]:
    """What `lvs` on the host says of the LV of vg_vms, in bytes."""
    return host.courier.run(
        f"lvs --devices /dev/{disk_of(host, iqn)} --noheadings --units b --nosuffix --separator ' ' -o",
        columns,
        f"vg_vms/{name}",
    ).out.split()


def content(storage: Storage, image: str) -> str:
    """A digest of the LUN's first and last MiB."""
    return storage.courier.run(f"(head -c 1048576 {image}; tail -c 1048576 {image}) | sha256sum").out


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


@pytest.mark.parametrize("what", FOREIGN)
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


def test_other_volumes_stay_inactive_on_every_host(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host, iqn: str, image: str
) -> None:
    # Its autoactivation is on, as vgcreate leaves it: udev activates it at the first login, before the add switches it off.
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


# Whose it is.


def test_another_backends_volume_group(storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str) -> None:
    storage.volume_group(image, "vg_vms")
    first = backends.add(KIND, iscsi(iqn))

    answer = backends.attempt(KIND, iscsi(iqn))

    assert answer.codes == ["marker_mismatch"]
    assert first.id in answer.body["faults"][0]["detail"]
    assert first.probe(hv1)["status"] == "healthy"


def test_another_fleets_volume_group(storage: Storage, backends: Backends, iqn: str, image: str) -> None:
    their = "01900000-0000-7000-8000-00000000000"
    tags = f"--addtag stowage_backend_{their}1 --addtag stowage_fleet_{their}2"
    storage.volume_group(image, "vg_vms", options=tags)

    fault = backends.refused("marker_mismatch", KIND, iscsi(iqn))

    assert "of another fleet" in fault["detail"]
    assert f"--deltag stowage_backend_{their}1" in fault["remedy"]


def test_another_fleets_volume_group_is_not_initialized_even_with_force(
    api: Api, storage: Storage, backends: Backends, iqn: str, image: str
) -> None:
    their = "01900000-0000-7000-8000-00000000000"
    storage.volume_group(
        image, "vg_theirs", options=f"--addtag stowage_backend_{their}1 --addtag stowage_fleet_{their}2"
    )
    backend = added_blank(backends, iscsi(iqn))
    before = content(storage, image)

    answer = initialize(api, backend, inspection(api, backend)["wwid"], force=True)

    assert answer.codes == ["marker_mismatch"]
    assert content(storage, image) == before


def test_a_volume_group_of_another_hosts_system_id(storage: Storage, backends: Backends, iqn: str, image: str) -> None:
    storage.volume_group(image, "vg_vms")
    storage.lvm(image, "vgchange -q -y --systemid theirs vg_vms")

    fault = backends.refused("foreign_data", KIND, iscsi(iqn))

    assert "--systemid" in fault["remedy"]


def test_a_volume_group_of_two_luns(storage: Storage, backends: Backends, iqn: str, image: str) -> None:
    other = storage.lun(iqn, 1)
    with storage.device_of(image) as one, storage.device_of(other) as two:
        storage.courier.run(f"vgcreate -q --devices {one},{two} vg_vms {one} {two}")

    backends.refused("wrong_device", KIND, iscsi(iqn))


@pytest.mark.parametrize("is_logged_in", [True, False])
def test_a_lun_that_is_swapped_beneath_for_one_with_a_group_of_that_name(
    storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str, is_logged_in: bool
) -> None:
    storage.volume_group(image, "vg_vms")
    backend = backends.add(KIND, iscsi(iqn))
    storage.unmap(iqn, 0)
    other = storage.lun(iqn, 0)
    storage.volume_group(other, "vg_vms")
    before = content(storage, other)
    if not is_logged_in:
        storage.stop_target(iqn)
        storage.start_target(iqn)

    wait_until(lambda: backend.cell(hv1)["code"] == "wrong_device", "wrong_device", 60)

    assert content(storage, other) == before
    storage.unmap(iqn, 0)
    storage.map(iqn, 0, image)
    backend.wait_for(hv1, "healthy")


def test_a_lun_that_is_swapped_beneath_for_a_blank_one(
    storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    storage.volume_group(image, "vg_vms")
    backend = backends.add(KIND, iscsi(iqn))
    storage.unmap(iqn, 0)
    storage.lun(iqn, 0)

    # In the session that is there the kernel goes by the WWID of before.
    backend.wait_for(hv1, "unreachable", "marker_missing")
    storage.stop_target(iqn)
    storage.start_target(iqn)

    storage.unmap(iqn, 0)
    storage.map(iqn, 0, image)
    backend.wait_for(hv1, "healthy")


def test_a_volume_group_that_was_made_anew_under_the_old_name(
    storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    storage.volume_group(image, "vg_vms")
    backend = backends.add(KIND, iscsi(iqn))
    with storage.device_of(image) as device:
        storage.courier.run(f"vgchange -an --devices {device} vg_vms; vgremove -q -ff -y --devices {device} vg_vms")
        storage.courier.run(f"vgcreate -q --devices {device} vg_vms {device}")
    before = content(storage, image)

    backend.wait_for(hv1, "unreachable", "wrong_device")

    assert content(storage, image) == before


def test_tags_that_somebody_removed(storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str) -> None:
    storage.volume_group(image, "vg_vms")
    backend = backends.add(KIND, iscsi(iqn))
    tags = ",".join(vgs(hv1, iqn, "vg_tags")).split(",")
    marks = " ".join(f"{{}} {tag}" for tag in tags)
    device = disk_of(hv1, iqn)

    hv1.courier.run(f"vgchange --devices /dev/{device} {marks.format(*['--deltag'] * len(tags))} vg_vms")
    backend.wait_for(hv1, "unreachable", "marker_missing")

    hv1.courier.run(f"vgchange --devices /dev/{device} {marks.format(*['--addtag'] * len(tags))} vg_vms")
    backend.wait_for(hv1, "healthy")


def test_a_probe_volume_that_somebody_removed(
    backends: Backends, storage: Storage, hv1: Host, iqn: str, image: str
) -> None:
    storage.volume_group(image, "vg_vms")
    backend = backends.add(KIND, iscsi(iqn))

    hv1.courier.run(f"lvremove -y --devices /dev/{disk_of(hv1, iqn)} vg_vms/{PROBE_LV}")

    backend.wait_for(hv1, "unreachable", "marker_missing")


# Two that come at once.


@pytest.mark.parametrize("is_blank", [False, True])
def test_of_two_adds_of_one_lun_at_once_one_wins(
    api: Api, storage: Storage, backends: Backends, hv1: Host, hv2: Host, iqn: str, image: str, is_blank: bool
) -> None:
    if not is_blank:
        storage.volume_group(image, "vg_vms", volumes=("disk",))
    bodies = [{"on": (host,)} for host in (hv1, hv2)]

    def add(more: dict[str, Any]) -> Any:
        answer = backends.attempt(KIND, iscsi(iqn), **more)
        if not is_blank or answer.status != 201:
            return answer
        backend = Backend(api, answer.body)
        return initialize(api, backend, inspection(api, backend)["wwid"])

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(add, bodies))

    won = [answer for answer in answers if answer.status in (200, 201)]
    lost = [answer for answer in answers if answer.status not in (200, 201)]
    assert len(won) == len(lost) == 1, answers
    assert lost[0].codes == ["marker_mismatch"]
    assert storage.lvm(image, "vgck vg_vms") == ""
    names = storage.lvm(image, "lvs --noheadings -o lv_name vg_vms").split()
    assert sorted(names) == ([PROBE_LV] if is_blank else ["disk", PROBE_LV])
    tags = storage.lvm(image, "vgs --noheadings -o vg_tags").split(",")
    assert f"stowage_backend_{won[0].body['id']}" in tags
    assert len(tags) == 2
    host = hv1 if answers[0] is won[0] else hv2
    assert Backend(api, won[0].body).probe(host)["status"] == "healthy"


# Given back.


def test_removal_leaves_the_volumes_and_takes_the_tags(
    storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    storage.volume_group(image, "vg_vms", volumes=("disk",))
    backend = backends.add(KIND, iscsi(iqn))

    answer = backend.remove_and_tell()

    assert answer.status == 200
    assert "vg_vms with 1 logical volume" in answer.body["left"]["hv1"][0]
    assert storage.lvm(image, "vgs --noheadings -o vg_tags") == ""
    assert storage.lvm(image, "lvs --noheadings -o lv_name vg_vms").split() == ["disk", PROBE_LV]


def test_a_volume_group_that_was_given_back_can_be_added_again(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host, iqn: str, image: str
) -> None:
    storage.volume_group(image, "vg_vms")
    backends.add(KIND, iscsi(iqn)).remove()

    backend = backends.add(KIND, iscsi(iqn), on=(hv2,))

    assert backend.probe(hv2)["status"] == "healthy"


def test_removal_while_a_volume_is_open_waits_for_it(
    storage: Storage, backends: Backends, hv1: Host, iqn: str, image: str
) -> None:
    storage.volume_group(image, "vg_vms", volumes=("disk",))
    backend = backends.add(KIND, iscsi(iqn))
    hv1.courier.run(f"lvchange -ay --devices /dev/{disk_of(hv1, iqn)} vg_vms/disk")
    with hv1.holding("/dev/vg_vms/disk"):
        answer = backend.remove_and_tell()

        assert answer.body["pending_hosts"] == ["hv1"]
        assert "vg_vms-disk" in mapped(hv1)
        assert sessions(hv1) != []

    wait_until(lambda: sessions(hv1) == [] and mapped(hv1) == [], "hv1 to let go", 60)
