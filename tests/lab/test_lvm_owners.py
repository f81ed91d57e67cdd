"""Whose a volume group is: other backends', other fleets', other hosts', swapped beneath; two adds at once; given back."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab.backends import Backend, Backends
from tests.lab.client import Api
from tests.lab.host import Host
from tests.lab.iscsi import (
    KIND,
    PROBE_LV,
    added_blank,
    content,
    disk_of,
    initialize,
    inspection,
    iscsi,
    mapped,
    sessions,
    vgs,
)
from tests.lab.qemu import wait_until
from tests.lab.storage import Storage

pytestmark = pytest.mark.slow


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
    blank = storage.lun(iqn, 0)
    before = content(storage, blank)

    # In the session that is there the kernel goes by the WWID of before.
    backend.wait_for(hv1, "unreachable", "marker_missing")
    storage.stop_target(iqn)
    storage.start_target(iqn)
    assert backend.probe(hv1)["status"] != "healthy"
    assert content(storage, blank) == before

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
