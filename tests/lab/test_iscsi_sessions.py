"""iscsi_lvm: sessions of others, which are not touched, and lost ones of ours, which are made again."""

import datetime as dt

import pytest

from tests.lab import accounts
from tests.lab.backends import PATIENCE_S, Backends
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.iscsi import KIND, end_session, iscsi, mapped, sessions, target_with_group
from tests.lab.qemu import wait_until
from tests.lab.storage import ADDRESS, Chap, Storage

# Sessions of others, and lost ones of ours.


def test_a_session_of_a_lost_login_is_taken_over(backends: Backends, hv1: Host, vms_iqn: str, ran: Ran) -> None:
    hv1.log_in(vms_iqn, ADDRESS, "stowage")

    backend = backends.add(KIND, iscsi(vms_iqn))

    assert sessions(hv1) == [(vms_iqn, "stowage", ADDRESS)]
    logins = [command.argv for command in ran(hv1) if command.argv[-1] == "--login"]
    assert all("stowage" not in argv for argv in logins)
    assert backend.remove().status == 204
    assert sessions(hv1) == []


def test_a_login_that_meets_a_session_of_the_same_moment_is_taken_for_done(
    backends: Backends, hv1: Host, vms_iqn: str, ran: Ran
) -> None:
    """As when a login is repeated that was given up and has succeeded: exit 15."""
    with hv1.wrapping("iscsiadm", 'case " $* " in *" --login "*) "$TOOL" "$@" ;; esac\nexec "$TOOL" "$@"'):
        backend = backends.add(KIND, iscsi(vms_iqn))

    assert [command.code for command in ran(hv1) if command.argv[-1] == "--login"] == [15]
    assert sessions(hv1) == [(vms_iqn, "stowage", ADDRESS)]
    assert backend.probe(hv1)["status"] == "healthy"


@pytest.mark.slow
def test_an_operators_own_session_is_not_touched(backends: Backends, hv1: Host, vms_iqn: str) -> None:
    hv1.log_in(vms_iqn, ADDRESS)
    try:
        backend = backends.add(KIND, iscsi(vms_iqn))
        assert sorted(sessions(hv1)) == [(vms_iqn, "default", ADDRESS), (vms_iqn, "stowage", ADDRESS)]

        assert backend.remove().status == 204

        assert sessions(hv1) == [(vms_iqn, "default", ADDRESS)]
        records = accounts.on(hv1)["node records"]
        assert [path.rpartition("/")[2] for path in records] == ["default"]
    finally:
        hv1.log_out(vms_iqn)


def test_a_session_that_somebody_ended_is_made_again(backends: Backends, hv1: Host, vms_iqn: str) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn))

    end_session(hv1, vms_iqn)

    # Red in between, but perhaps for less than a look takes.
    wait_until(lambda: len(sessions(hv1)) == 1, "another session", PATIENCE_S)
    backend.wait_for(hv1, "healthy", after=dt.datetime.now(dt.UTC))
    assert mapped(hv1) == ["vg_vms-stowage_probe"]


@pytest.mark.slow
def test_an_iscsid_that_is_restarted_goes_on_with_our_session(
    storage: Storage, backends: Backends, hv1: Host, chap: Chap
) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)

    hv1.courier.run("killall iscsid; while pidof iscsid >/dev/null; do :; done; iscsid")
    # It logs in anew for every session that it finds, which takes a moment.
    wait_until(lambda: backend.probe(hv1)["status"] == "healthy", "iscsid to have taken the session over", PATIENCE_S)
    storage.stop_target(iqn)
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
    storage.start_target(iqn)

    backend.wait_for(hv1, "healthy")


def test_an_agent_that_is_killed_finds_its_session_again(backends: Backends, hv1: Host, vms_iqn: str, ran: Ran) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn))
    before, number = hv1.agent_pid(), len(ran(hv1))

    hv1.kill_agent()
    wait_until(lambda: hv1.agent_pid() not in (0, before), "another agent", 60)
    hv1.wait_online()

    wait_until(lambda: backend.probe(hv1)["status"] == "healthy", "a probe by the new agent", 60)
    assert [command for command in ran(hv1)[number:] if command.argv[0] == "iscsiadm"] == []
