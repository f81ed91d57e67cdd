"""iscsi_lvm against a real target: portals, sessions, CHAP, hosts, and what target and network do to a session beneath it."""

import time

import pytest

from tests.lab import accounts
from tests.lab.backends import Backends
from tests.lab.client import Api
from tests.lab.conftest import Ran, Secrets
from tests.lab.host import Host
from tests.lab.iscsi import KIND, iscsi, mapped, sessions
from tests.lab.lab import Lab
from tests.lab.qemu import wait_until
from tests.lab.storage import ADDRESS, ADDRESS_6, Chap, Storage

#: Above the manager's budget for an add; whatever needs longer than an API call waits would be a 202.
_BOUND_S = 28.0


@pytest.fixture
def chap(secrets: Secrets) -> Chap:
    return Chap("labchap", secrets("chap-canary-1"))


@pytest.fixture
def mutual(secrets: Secrets) -> Chap:
    return Chap("labchap", secrets("chap-canary-1"), "labtarget", secrets("mutual-canary-1"))


@pytest.fixture
def iqn(storage: Storage) -> str:
    """A target that asks for nothing, with the VG vg_vms on LUN 0."""
    return target_with_group(storage)


_NO_CHAP = Chap()


def target_with_group(storage: Storage, chap: Chap = _NO_CHAP, vg_name: str = "vg_vms") -> str:
    iqn = storage.target(chap)
    storage.volume_group(storage.lun(iqn), vg_name)
    return iqn


def end_session(host: Host, iqn: str) -> None:
    """Somebody ends our session."""
    iface = "/etc/iscsi/ifaces/stowage"
    host.courier.run(
        f"mkdir -p /etc/iscsi/ifaces; printf 'iface.iscsi_ifacename = stowage\\niface.transport_name = tcp\\n' >{iface};"
        f" iscsiadm -m node -T {iqn} -I stowage --logout; code=$?; rm -f {iface}; exit $code"
    )


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
def test_a_portal_however_it_is_written(backends: Backends, hv1: Host, iqn: str, portal: str, address: str) -> None:
    backend = backends.add(KIND, iscsi(iqn, portal=portal))

    assert sessions(hv1) == [(iqn, "stowage", address)]
    assert backend.probe(hv1)["status"] == "healthy"


def test_an_edit_of_the_portal_logs_in_anew(backends: Backends, hv1: Host, iqn: str, ran: Ran) -> None:
    backend = backends.add(KIND, iscsi(iqn))

    for portal, address in (("storage", ADDRESS), (f"storage:{3260}", ADDRESS), (f"[{ADDRESS_6}]:3260", ADDRESS_6)):
        number = len(ran(hv1))
        assert backend.edit(config={"portal": portal}).status == 200

        assert sessions(hv1) == [(iqn, "stowage", address)]
        logins = [command.argv for command in ran(hv1)[number:] if command.argv[-1] == "--login" and command.code == 0]
        assert [argv[argv.index("-I") + 1] == "stowage" for argv in logins] == [False, True]
        assert backend.probe(hv1)["observed_generation"] == backend.now()["generation"]


@pytest.mark.parametrize("portal", ["10.77.0.99", "nosuch.example"])
def test_an_edit_that_cannot_work_changes_nothing(backends: Backends, hv1: Host, iqn: str, portal: str) -> None:
    backend = backends.add(KIND, iscsi(iqn))

    answer = backend.edit(config={"portal": portal})

    assert answer.codes == ["server_unreachable" if portal[0].isdigit() else "name_not_resolved"]
    assert backend.now()["generation"] == 1
    assert sessions(hv1) == [(iqn, "stowage", ADDRESS)]
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


def test_preflight_proves_and_keeps_nothing(backends: Backends, hv1: Host, iqn: str) -> None:
    line = backends.preflight(KIND, iscsi(iqn)).body["hosts"][0]

    assert line["status"] == "healthy"
    assert all(check["is_ok"] for check in line["checks"])
    assert sessions(hv1) == []
    assert accounts.on(hv1)["node records"] == []


# Refused.


def test_an_unknown_target(backends: Backends, iqn: str) -> None:
    fault = backends.refused("target_not_found", KIND, iscsi(iqn + "-nosuch"))

    assert "initiator" in fault["remedy"]


def test_a_dead_address(backends: Backends, iqn: str) -> None:
    began = time.monotonic()

    backends.refused("server_unreachable", KIND, iscsi(iqn, portal="10.77.0.99"))

    assert time.monotonic() - began < _BOUND_S


def test_an_address_that_drops_what_it_is_sent(lab: Lab, backends: Backends, iqn: str) -> None:
    lab.cut("hv1", "storage")
    began = time.monotonic()

    backends.refused("server_unreachable", KIND, iscsi(iqn))

    assert time.monotonic() - began < _BOUND_S


def test_a_machine_without_a_target(backends: Backends, hv1: Host, iqn: str) -> None:
    backends.refused("server_unreachable", KIND, iscsi(iqn, portal=hv1.address))


def test_a_name_that_does_not_resolve(backends: Backends, iqn: str) -> None:
    backends.refused("name_not_resolved", KIND, iscsi(iqn, portal="nosuch.example"))


def test_a_lun_that_is_not_mapped(backends: Backends, iqn: str) -> None:
    fault = backends.refused("lun_not_found", KIND, iscsi(iqn, lun=7))

    assert "Map the LUN" in fault["remedy"]


@pytest.mark.parametrize("tool", ["/sbin/iscsiadm", "/sbin/vgs"])
def test_a_host_without_the_tools(backends: Backends, hv1: Host, iqn: str, tool: str) -> None:
    hv1.courier.run(f"mv {tool} {tool}.away")
    try:
        fault = backends.refused("tool_missing", KIND, iscsi(iqn))
    finally:
        hv1.courier.run(f"mv {tool}.away {tool}")

    assert ("open-iscsi" if "iscsi" in tool else "lvm2") in fault["remedy"]


def test_a_host_whose_iscsid_does_not_run(backends: Backends, hv1: Host, iqn: str) -> None:
    hv1.courier.run("killall iscsid; while pidof iscsid >/dev/null; do :; done")
    try:
        fault = backends.refused("tool_missing", KIND, iscsi(iqn))
    finally:
        hv1.courier.run("iscsid")

    assert "Start iscsid" in fault["remedy"]


# CHAP.


def test_chap(storage: Storage, backends: Backends, hv1: Host, chap: Chap, ran: Ran) -> None:
    iqn = target_with_group(storage, chap)

    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)

    assert backend.probe(hv1)["status"] == "healthy"
    assert not any(chap.password in word for command in ran(hv1) for word in command.argv)
    record = accounts.on(hv1)["node records"]
    assert len(record) == 1
    assert hv1.courier.run("stat -c %a", record[0]).out.strip() == "600"
    assert f"node.session.auth.password = {chap.password}" in hv1.courier.run("cat", record[0]).out


def test_mutual_chap(storage: Storage, backends: Backends, hv1: Host, mutual: Chap, ran: Ran) -> None:
    iqn = target_with_group(storage, mutual)

    backend = backends.add(KIND, iscsi(iqn), credentials=mutual.credentials)

    assert backend.probe(hv1)["status"] == "healthy"
    words = {word for command in ran(hv1) for word in command.argv}
    assert not any(mutual.password in word or mutual.mutual_password in word for word in words)


def test_no_process_shows_a_secret(storage: Storage, backends: Backends, hv1: Host, mutual: Chap) -> None:
    iqn = target_with_group(storage, mutual)
    with hv1.watching_processes() as seen:
        backends.add(KIND, iscsi(iqn), credentials=mutual.credentials)

    assert any("iscsiadm" in line and "--login" in line for line in seen)
    assert not any(mutual.password in line or mutual.mutual_password in line for line in seen)


@pytest.mark.parametrize("changed", ["username", "password", ""])
def test_wrong_or_no_chap(storage: Storage, backends: Backends, chap: Chap, secrets: Secrets, changed: str) -> None:
    iqn = target_with_group(storage, chap)
    credentials = {**chap.credentials, changed: secrets("chap-canary-wrong")} if changed else None

    fault = backends.refused("auth_failed", KIND, iscsi(iqn), credentials=credentials)

    assert "authorization failure" in fault["detail"]
    assert "CHAP" in fault["remedy"]


@pytest.mark.parametrize("changed", ["mutual_username", "mutual_password"])
def test_a_target_that_does_not_prove_itself(
    storage: Storage, backends: Backends, mutual: Chap, secrets: Secrets, changed: str
) -> None:
    iqn = target_with_group(storage, mutual)
    credentials = {**mutual.credentials, changed: secrets("mutual-canary-wrong")}

    fault = backends.refused("auth_failed", KIND, iscsi(iqn), credentials=credentials)

    assert "mutual CHAP" in fault["detail"]


def test_chap_that_nobody_asks_for(backends: Backends, hv1: Host, iqn: str, chap: Chap) -> None:
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)

    assert backend.probe(hv1)["status"] == "healthy"


def test_a_rotation_and_its_reversal(
    storage: Storage, backends: Backends, hv1: Host, chap: Chap, secrets: Secrets
) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)
    other = Chap(chap.username, secrets("chap-canary-2"))

    for now in (other, chap):
        storage.set_chap(iqn, now)
        answer = backend.edit(credentials={"password": now.password})

        assert answer.status == 200, answer
        assert f"password = {now.password}" in hv1.courier.run("cat", accounts.on(hv1)["node records"][0]).out
        # The session in use went on, but iscsid would make it anew with the secret that it was made with.
        assert backend.probe(hv1)["status"] == "healthy"
        storage.stop_target(iqn)
        wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
        storage.start_target(iqn)
        backend.wait_for(hv1, "healthy")


def test_a_wrong_new_secret_is_refused_and_the_old_one_works_on(
    storage: Storage, backends: Backends, hv1: Host, chap: Chap, secrets: Secrets
) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)

    answer = backend.edit(credentials={"password": secrets("chap-canary-3")})

    assert answer.codes == ["auth_failed"]
    assert f"password = {chap.password}" in hv1.courier.run("cat", accounts.on(hv1)["node records"][0]).out
    end_session(hv1, iqn)
    backend.wait_for(hv1, "unreachable", "server_unreachable")
    backend.wait_for(hv1, "healthy")


def test_a_rotation_after_the_target_ended_every_session(
    storage: Storage, backends: Backends, hv1: Host, chap: Chap, secrets: Secrets
) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)
    other = Chap(chap.username, secrets("chap-canary-4"))
    storage.set_chap(iqn, other)
    storage.stop_target(iqn)
    storage.start_target(iqn)
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)

    assert backend.edit(credentials={"password": other.password}).status == 200

    backend.wait_for(hv1, "healthy")


# Sessions of others, and lost ones of ours.


def test_a_session_of_a_lost_login_is_taken_over(backends: Backends, hv1: Host, iqn: str, ran: Ran) -> None:
    hv1.log_in(iqn, ADDRESS, "stowage")

    backend = backends.add(KIND, iscsi(iqn))

    assert sessions(hv1) == [(iqn, "stowage", ADDRESS)]
    logins = [command.argv for command in ran(hv1) if command.argv[-1] == "--login"]
    assert all("stowage" not in argv for argv in logins)
    assert backend.remove().status == 204
    assert sessions(hv1) == []


def test_an_operators_own_session_is_not_touched(backends: Backends, hv1: Host, iqn: str) -> None:
    hv1.log_in(iqn, ADDRESS)
    try:
        backend = backends.add(KIND, iscsi(iqn))
        assert sorted(sessions(hv1)) == [(iqn, "default", ADDRESS), (iqn, "stowage", ADDRESS)]

        assert backend.remove().status == 204

        assert sessions(hv1) == [(iqn, "default", ADDRESS)]
        records = accounts.on(hv1)["node records"]
        assert [path.rpartition("/")[2] for path in records] == ["default"]
    finally:
        hv1.log_out(iqn)


def test_a_session_that_somebody_ended_is_made_again(backends: Backends, hv1: Host, iqn: str) -> None:
    backend = backends.add(KIND, iscsi(iqn))

    end_session(hv1, iqn)

    backend.wait_for(hv1, "unreachable", "server_unreachable")
    backend.wait_for(hv1, "healthy")
    assert mapped(hv1) == ["vg_vms-stowage_probe"]


def test_an_iscsid_that_is_restarted_goes_on_with_our_session(
    storage: Storage, backends: Backends, hv1: Host, chap: Chap
) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)

    hv1.courier.run("killall iscsid; while pidof iscsid >/dev/null; do :; done; iscsid")
    assert backend.probe(hv1)["status"] == "healthy"
    storage.stop_target(iqn)
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
    storage.start_target(iqn)

    backend.wait_for(hv1, "healthy")


def test_an_agent_that_is_killed_finds_its_session_again(backends: Backends, hv1: Host, iqn: str, ran: Ran) -> None:
    backend = backends.add(KIND, iscsi(iqn))
    before, number = hv1.agent_pid(), len(ran(hv1))

    hv1.kill_agent()
    wait_until(lambda: hv1.agent_pid() not in (0, before), "another agent", 60)
    hv1.wait_online()

    wait_until(lambda: backend.probe(hv1)["status"] == "healthy", "a probe by the new agent", 60)
    assert [command for command in ran(hv1)[number:] if command.argv[0] == "iscsiadm"] == []


# Hosts.


def test_two_hosts_at_once(backends: Backends, hv1: Host, hv2: Host, iqn: str) -> None:
    backend = backends.add(KIND, iscsi(iqn), on=(hv1, hv2))

    for host in (hv1, hv2):
        assert backend.probe(host)["status"] == "healthy"
        assert mapped(host) == ["vg_vms-stowage_probe"]


def test_a_host_that_leaves_lets_go_and_one_that_comes_logs_in(
    backends: Backends, hv1: Host, hv2: Host, iqn: str
) -> None:
    backend = backends.add(KIND, iscsi(iqn), on=(hv1, hv2))

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


def test_a_network_that_is_cut_and_heals(lab: Lab, backends: Backends, hv1: Host, iqn: str) -> None:
    backend = backends.add(KIND, iscsi(iqn))

    lab.cut("hv1", "storage")
    began = time.monotonic()
    cell = backend.probe(hv1)
    assert time.monotonic() - began < _BOUND_S
    assert (cell["status"], cell["code"]) in {
        ("unreachable", "timed_out"),
        ("unreachable", "server_unreachable"),
        ("unreachable", "hung"),
    }

    lab.heal()
    backend.wait_for(hv1, "healthy")


def test_a_target_that_stops_and_starts(storage: Storage, backends: Backends, hv1: Host, iqn: str) -> None:
    backend = backends.add(KIND, iscsi(iqn))

    storage.stop_target(iqn)
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
    storage.start_target(iqn)

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
    lab: Lab, storage: Storage, backends: Backends, hv1: Host, iqn: str, way: str
) -> None:
    backend = backends.add(KIND, iscsi(iqn))
    if way == "cut":
        lab.cut("hv1", "storage")
    else:
        storage.stop_target(iqn)
    began = time.monotonic()

    answer = backend.remove()

    assert answer.status in (200, 202, 204), answer
    wait_until(lambda: sessions(hv1) == [] and mapped(hv1) == [], "hv1 to let go", 90)
    assert time.monotonic() - began < 90
    assert accounts.on(hv1)["disks"] == []


def test_removal_while_a_host_is_off_reaches_it_when_it_returns(
    lab: Lab, backends: Backends, hv1: Host, hv2: Host, iqn: str
) -> None:
    api: Api = lab.api
    backend = backends.add(KIND, iscsi(iqn), on=(hv1, hv2))
    hv2.stop_agent()
    wait_until(lambda: not hv2.is_online(), "hv2 to be offline", 60)

    assert backend.remove().status == 204
    assert api("GET", backend.path).status == 404
    assert sessions(hv2) != []

    hv2.start_agent()
    wait_until(lambda: sessions(hv2) == [], "hv2 to let go", 60)
