"""CHAP, one way and mutual: proven, refused, rotated, and shown by no process."""

import datetime as dt

import pytest

from tests.lab import accounts
from tests.lab.backends import PATIENCE_S, Backends
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.iscsi import KIND, end_session, iscsi, sessions, target_with_group
from tests.lab.leaks import Secrets
from tests.lab.qemu import wait_until
from tests.lab.storage import Chap, Storage

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


@pytest.mark.slow
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


def test_chap_that_nobody_asks_for(backends: Backends, hv1: Host, vms_iqn: str, chap: Chap) -> None:
    backend = backends.add(KIND, iscsi(vms_iqn), credentials=chap.credentials)

    assert backend.probe(hv1)["status"] == "healthy"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_wrong_new_secret_is_refused_and_the_old_one_works_on(
    storage: Storage, backends: Backends, hv1: Host, chap: Chap, secrets: Secrets
) -> None:
    iqn = target_with_group(storage, chap)
    backend = backends.add(KIND, iscsi(iqn), credentials=chap.credentials)

    answer = backend.edit(credentials={"password": secrets("chap-canary-3")})

    assert answer.codes == ["auth_failed"]
    assert f"password = {chap.password}" in hv1.courier.run("cat", accounts.on(hv1)["node records"][0]).out
    end_session(hv1, iqn)
    # Red in between, but perhaps for less than a look takes.
    wait_until(lambda: len(sessions(hv1)) == 1, "another session, by the old secret", PATIENCE_S)
    backend.wait_for(hv1, "healthy", after=dt.datetime.now(dt.UTC))


@pytest.mark.slow
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
