"""iscsi_lvm against a real target: portals, sessions, CHAP, hosts, and what target and network do to a session beneath it."""

import time

import pytest

from tests.lab import accounts
from tests.lab.backends import Backends
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.iscsi import BOUND_S, KIND, iscsi, sessions
from tests.lab.lab import Lab
from tests.lab.storage import ADDRESS, ADDRESS_6, Chap, Storage

# Portals.


@pytest.mark.parametrize(
    ("portal", "address"),
    [
        (ADDRESS, ADDRESS),
        (f"{ADDRESS}:3260", ADDRESS),
        ("storage", ADDRESS),
        ("storage:3260", ADDRESS),
        (f"[{ADDRESS_6}]", ADDRESS_6),
        (f"[{ADDRESS_6}]:3260", ADDRESS_6),
        ("storage6", ADDRESS_6),
    ],
)
def test_a_portal_however_it_is_written(backends: Backends, hv1: Host, vms_iqn: str, portal: str, address: str) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn, portal=portal))

    assert sessions(hv1) == [(vms_iqn, "stowage", address)]
    assert backend.probe(hv1)["status"] == "healthy"


@pytest.mark.slow
def test_an_edit_of_the_portal_logs_in_anew(backends: Backends, hv1: Host, vms_iqn: str, ran: Ran) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn))

    for portal, address in (("storage", ADDRESS), (f"storage:{3260}", ADDRESS), (f"[{ADDRESS_6}]:3260", ADDRESS_6)):
        number = len(ran(hv1))
        assert backend.edit(config={"portal": portal}).status == 200

        assert sessions(hv1) == [(vms_iqn, "stowage", address)]
        logins = [command.argv for command in ran(hv1)[number:] if command.argv[-1] == "--login" and command.code == 0]
        assert [argv[argv.index("-I") + 1] == "stowage" for argv in logins] == [False, True]
        assert backend.probe(hv1)["observed_generation"] == backend.now()["generation"]


@pytest.mark.parametrize("portal", ["10.77.0.99", "nosuch.example"])
@pytest.mark.slow
def test_an_edit_that_cannot_work_changes_nothing(backends: Backends, hv1: Host, vms_iqn: str, portal: str) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn))

    answer = backend.edit(config={"portal": portal})

    assert answer.codes == ["server_unreachable" if portal[0].isdigit() else "name_not_resolved"]
    assert backend.now()["generation"] == 1
    assert sessions(hv1) == [(vms_iqn, "stowage", ADDRESS)]
    assert backend.probe(hv1)["status"] == "healthy"


def test_discovery_lists_the_targets(storage: Storage, backends: Backends, hv1: Host) -> None:
    names = {storage.target(), storage.target(Chap("labchap", "not-asked-for-here"))}

    answer = backends.discover(KIND, hv1, {"portal": ADDRESS})

    assert answer.status == 200
    assert {item["config"]["target_iqn"] for item in answer.body["items"]} == names
    assert accounts.on(hv1)["node records"] == []


def test_discovery_at_a_portal_without_targets(backends: Backends, hv1: Host, storage: Storage) -> None:
    storage.stop_target(storage.target())

    answer = backends.discover(KIND, hv1, {"portal": ADDRESS})

    assert (answer.status, answer.body["items"]) == (200, [])


def test_discovery_at_a_dead_address(backends: Backends, hv1: Host) -> None:
    assert backends.discover(KIND, hv1, {"portal": "10.77.0.99"}).codes == ["server_unreachable"]


def test_preflight_proves_and_keeps_nothing(backends: Backends, hv1: Host, vms_iqn: str) -> None:
    line = backends.preflight(KIND, iscsi(vms_iqn)).body["hosts"][0]

    assert line["status"] == "healthy"
    assert all(check["is_ok"] for check in line["checks"])
    assert sessions(hv1) == []
    assert accounts.on(hv1)["node records"] == []


# Refused.


def test_an_unknown_target(backends: Backends, vms_iqn: str) -> None:
    fault = backends.refused("target_not_found", KIND, iscsi(vms_iqn + "-nosuch"))

    assert "initiator" in fault["remedy"]


def test_a_dead_address(backends: Backends, vms_iqn: str) -> None:
    began = time.monotonic()

    backends.refused("server_unreachable", KIND, iscsi(vms_iqn, portal="10.77.0.99"))

    assert time.monotonic() - began < BOUND_S


@pytest.mark.slow
def test_an_address_that_drops_what_it_is_sent(lab: Lab, backends: Backends, vms_iqn: str) -> None:
    lab.cut("hv1", "storage")
    began = time.monotonic()

    backends.refused("server_unreachable", KIND, iscsi(vms_iqn))

    assert time.monotonic() - began < BOUND_S


def test_a_machine_without_a_target(backends: Backends, hv1: Host, vms_iqn: str) -> None:
    backends.refused("server_unreachable", KIND, iscsi(vms_iqn, portal=hv1.address))


def test_a_name_that_does_not_resolve(backends: Backends, vms_iqn: str) -> None:
    backends.refused("name_not_resolved", KIND, iscsi(vms_iqn, portal="nosuch.example"))


@pytest.mark.slow
def test_a_lun_that_is_not_mapped(backends: Backends, vms_iqn: str) -> None:
    fault = backends.refused("lun_not_found", KIND, iscsi(vms_iqn, lun=7))

    assert "Map the LUN" in fault["remedy"]


@pytest.mark.parametrize("tool", ["/sbin/iscsiadm", "/sbin/vgs"])
def test_a_host_without_the_tools(backends: Backends, hv1: Host, vms_iqn: str, tool: str) -> None:
    hv1.courier.run(f"mv {tool} {tool}.away")
    try:
        fault = backends.refused("tool_missing", KIND, iscsi(vms_iqn))
    finally:
        hv1.courier.run(f"mv {tool}.away {tool}")

    assert ("open-iscsi" if "iscsi" in tool else "lvm2") in fault["remedy"]


def test_a_host_whose_iscsid_does_not_run(backends: Backends, hv1: Host, vms_iqn: str) -> None:
    hv1.courier.run("killall iscsid; while pidof iscsid >/dev/null; do :; done")
    try:
        fault = backends.refused("tool_missing", KIND, iscsi(vms_iqn))
    finally:
        hv1.courier.run("iscsid")

    assert "Start iscsid" in fault["remedy"]
