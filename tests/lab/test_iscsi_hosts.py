"""iscsi_lvm: several hosts and backends, a power cut, what target and network do to a session beneath it, removal."""

import time

import pytest

from tests.lab import accounts
from tests.lab.backends import Backends
from tests.lab.client import Api
from tests.lab.host import Host
from tests.lab.iscsi import BOUND_S, KIND, iscsi, mapped, sessions, target_with_group
from tests.lab.lab import Lab
from tests.lab.qemu import wait_until
from tests.lab.storage import ADDRESS, Chap, Storage

pytestmark = pytest.mark.slow


# Hosts.


def test_two_hosts_at_once(backends: Backends, hv1: Host, hv2: Host, vms_iqn: str) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn), on=(hv1, hv2))

    for host in (hv1, hv2):
        assert backend.probe(host)["status"] == "healthy"
        assert mapped(host) == ["vg_vms-stowage_probe"]


def test_a_host_that_leaves_lets_go_and_one_that_comes_logs_in(
    backends: Backends, hv1: Host, hv2: Host, vms_iqn: str
) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn), on=(hv1, hv2))

    assert backend.edit(hosts={"names": ["hv2"]}).status == 200
    wait_until(lambda: sessions(hv1) == [], "hv1 to log out", 60)
    assert mapped(hv1) == []
    assert accounts.on(hv1)["node records"] == []
    assert backend.probe(hv2)["status"] == "healthy"

    assert backend.edit(hosts={"names": ["hv1", "hv2"]}).status == 200
    backend.wait_for(hv1, "healthy")


def test_two_backends_on_one_target(storage: Storage, backends: Backends, hv1: Host) -> None:
    iqn = storage.target()
    for number in (0, 1):
        storage.volume_group(storage.lun(iqn, number), f"vg_{number}")
    first, second = (backends.add(KIND, iscsi(iqn, f"vg_{number}", lun=number)) for number in (0, 1))
    assert sessions(hv1) == [(iqn, "stowage", ADDRESS)]
    assert mapped(hv1) == ["vg_0-stowage_probe", "vg_1-stowage_probe"]

    assert first.remove().status == 204

    assert mapped(hv1) == ["vg_1-stowage_probe"]
    assert len(accounts.on(hv1)["disks"]) == 1
    assert second.probe(hv1)["status"] == "healthy"


def test_two_backends_on_one_portal(storage: Storage, backends: Backends, hv1: Host) -> None:
    names = [target_with_group(storage, vg_name=f"vg_{number}") for number in (0, 1)]
    first, second = (backends.add(KIND, iscsi(iqn, f"vg_{number}")) for number, iqn in enumerate(names))

    assert first.remove().status == 204

    assert sessions(hv1) == [(names[1], "stowage", ADDRESS)]
    assert second.probe(hv1)["status"] == "healthy"


def test_a_power_cut(backends: Backends, hv2: Host, storage: Storage, chap: Chap) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), on=(hv2,), credentials=chap.credentials)
    hv2.machine.cut_power()
    backend.wait_for(hv2, "unknown", "host_offline")

    hv2.machine.boot_again()

    wait_until(lambda: mapped(hv2) == ["vg_vms-stowage_probe"], "hv2 to attach it", 120)
    backend.wait_for(hv2, "healthy")
    assert backend.probe(hv2)["status"] == "healthy"


# The target beneath a session.


def test_a_network_that_is_cut_and_heals(lab: Lab, backends: Backends, hv1: Host, vms_iqn: str) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn))

    lab.cut("hv1", "storage")
    began = time.monotonic()
    cell = backend.probe(hv1)
    assert time.monotonic() - began < BOUND_S
    assert (cell["status"], cell["code"]) in {
        ("unreachable", "timed_out"),
        ("unreachable", "server_unreachable"),
        ("unreachable", "hung"),
    }

    lab.heal()
    backend.wait_for(hv1, "healthy")


def test_a_target_that_stops_and_starts(storage: Storage, backends: Backends, hv1: Host, vms_iqn: str) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn))

    storage.stop_target(vms_iqn)
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
    storage.start_target(vms_iqn)

    backend.wait_for(hv1, "healthy")
    assert mapped(hv1) == ["vg_vms-stowage_probe"]


def test_a_lun_that_is_unmapped_and_mapped_again(storage: Storage, backends: Backends, hv1: Host) -> None:
    iqn = storage.target()
    image = storage.lun(iqn)
    storage.volume_group(image, "vg_vms")
    backend = backends.add(KIND, iscsi(iqn))

    storage.unmap(iqn, 0)
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
    storage.map(iqn, 0, image)

    backend.wait_for(hv1, "healthy")


# Removal.


def test_removal_leaves_nothing_on_the_host(storage: Storage, backends: Backends, hv1: Host, chap: Chap) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)

    assert backend.remove().status == 204

    assert sessions(hv1) == []
    assert mapped(hv1) == []
    there = accounts.on(hv1)
    assert there["node records"] == there["disks"] == there["iface records"] == there["credential files"] == []
    assert hv1.courier.attempt("grep -rl", chap.password, "/etc", "/var/lib").out == ""


@pytest.mark.parametrize("way", ["cut", "stopped"])
def test_removal_while_the_target_is_dead(
    lab: Lab, storage: Storage, backends: Backends, hv1: Host, vms_iqn: str, way: str
) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn))
    if way == "cut":
        lab.cut("hv1", "storage")
    else:
        storage.stop_target(vms_iqn)
    began = time.monotonic()

    answer = backend.remove()

    assert answer.status in (200, 202, 204), answer
    wait_until(lambda: sessions(hv1) == [] and mapped(hv1) == [], "hv1 to let go", 90)
    assert time.monotonic() - began < 90
    assert accounts.on(hv1)["disks"] == []


def test_removal_while_a_host_is_off_reaches_it_when_it_returns(
    lab: Lab, backends: Backends, hv1: Host, hv2: Host, vms_iqn: str
) -> None:
    api: Api = lab.api
    backend = backends.add(KIND, iscsi(vms_iqn), on=(hv1, hv2))
    hv2.stop_agent()
    wait_until(lambda: not hv2.is_online(), "hv2 to be offline", 60)

    assert backend.remove().status == 204
    assert api("GET", backend.path).status == 404
    assert sessions(hv2) != []

    hv2.start_agent()
    wait_until(lambda: sessions(hv2) == [], "hv2 to let go", 60)
