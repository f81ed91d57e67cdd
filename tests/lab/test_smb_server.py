"""smb on a share whose server changes beneath the mount: passwords, shares, the network, room."""

import time

import pytest

from tests.lab.backends import Backends
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.leaks import Secrets
from tests.lab.nfs import mounted
from tests.lab.smb import BOUND_S, Login, changed, smb
from tests.lab.storage import Storage

# The server beneath a mount.


def test_a_password_changed_on_the_server_is_auth_failed_and_heals_by_a_rotation(
    storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets
) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login)
    new = changed(login, storage, secrets)
    # Who is logged in stays so; the password is asked for when the connection is lost.
    assert backend.probe(hv1)["status"] == "healthy"
    storage.end_sessions("labuser")
    backend.wait_for(hv1, "unreachable", "auth_failed")

    assert "Check the user name" in backend.cell(hv1)["remedy"]
    answer = backend.edit(credentials=new)

    assert answer.status == 200, answer
    backend.wait_for(hv1, "healthy")


@pytest.mark.slow
def test_a_password_changed_on_the_server_beneath_a_share_in_use_is_rotated_once_it_is_idle(
    storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets
) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login)
    with hv1.holding(f"{backend.mount_dir}/disk"):
        new = changed(login, storage, secrets)
        storage.end_sessions("labuser")
        backend.wait_for(hv1, "unreachable", "auth_failed")

        # The kernel keeps to the old password, so only a new mount can take the new one.
        answer = backend.edit(credentials=new)

        assert answer.status == 200, answer
        cell = backend.wait_for(hv1, "unreachable", "in_use")
        assert "Stop what uses the backend" in cell["remedy"]
    backend.wait_for(hv1, "healthy")
    hv1.courier.run(f"rm {backend.mount_dir}/disk")


def test_a_password_changed_on_the_server_and_changed_back_heals_by_itself(
    storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets
) -> None:
    backend = backends.add("smb", smb(storage.share(), options="soft"), credentials=login)
    with hv1.holding(f"{backend.mount_dir}/disk"):
        changed(login, storage, secrets)
        storage.end_sessions("labuser")
        backend.wait_for(hv1, "unreachable", "auth_failed")

        storage.set_password("labuser", login["password"])

        # Not mounted anew: somebody uses it.
        backend.wait_for(hv1, "healthy")
    hv1.courier.run(f"rm {backend.mount_dir}/disk")


@pytest.mark.slow
def test_a_share_that_is_withdrawn_and_comes_back(
    storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    share = storage.share()
    backend = backends.add("smb", smb(share), credentials=login)
    neighbour = backends.add("smb", smb(storage.share()), credentials=login)
    storage.courier.run(f"install -d -o labuser /srv/smb/{share}/twin")
    twin = backends.add("smb", smb(share, subdir="twin"), credentials=login)

    storage.unshare(share)

    backend.wait_for(hv1, "unreachable", "share_not_found")
    assert neighbour.probe(hv1)["status"] == "healthy"
    storage.share(name=share)
    for one in (backend, twin):
        one.wait_for(hv1, "healthy")


def test_a_share_that_is_withdrawn_is_removed_all_the_same(
    storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    share = storage.share()
    backend = backends.add("smb", smb(share), credentials=login)
    storage.unshare(share)
    backend.wait_for(hv1, "unreachable", "share_not_found")

    assert backend.remove().status == 204

    assert mounted(hv1, backend.mount_dir) == ""
    storage.courier.run(f"rm /srv/smb/{share}/.stowage-backend.json")


def test_a_share_that_turns_read_only_and_back(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    share = storage.share()
    backend = backends.add("smb", smb(share), credentials=login)

    storage.share("read only = yes", name=share)
    storage.end_sessions("labuser")

    backend.wait_for(hv1, "unreachable", "read_only")
    storage.share(name=share)
    storage.end_sessions("labuser")
    backend.wait_for(hv1, "healthy")


def test_a_server_that_is_killed_and_started_again(
    storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login)

    storage.stop_smb()

    seen = backend.probe(hv1)
    assert seen["status"] == "unreachable"
    assert seen["code"] in ("server_unreachable", "timed_out", "hung")
    storage.start_smb()
    backend.wait_for(hv1, "healthy")


def test_a_network_that_is_cut_and_heals(
    lab: Lab, storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login)
    local = backends.add("local_file", {"root_dir": "/var/tmp/neighbour"})

    lab.isolate("storage")

    began = time.monotonic()
    seen = backend.probe(hv1)
    # hung: the probe before it has been killed, and ends when the server answers the closing of its file.
    assert seen["status"] == "unreachable"
    assert seen["code"] in ("server_unreachable", "timed_out", "hung")
    assert time.monotonic() - began < BOUND_S
    began = time.monotonic()
    assert local.probe(hv1)["status"] == "healthy"
    assert time.monotonic() - began < 5.0
    lab.heal()
    backend.wait_for(hv1, "healthy")


@pytest.mark.slow
def test_a_server_that_is_dead_is_removed_all_the_same(
    lab: Lab, storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    share = storage.share()
    backend = backends.add("smb", smb(share), credentials=login)
    lab.isolate("storage")
    began = time.monotonic()

    answer = backend.remove()

    assert answer.status in (202, 204), answer
    assert time.monotonic() - began < BOUND_S
    assert mounted(hv1, backend.mount_dir) == ""
    lab.heal()
    storage.courier.run(f"rm -f /srv/smb/{share}/.stowage-*")


def test_a_full_share(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    folder = storage.folder(f"/srv/smb/{storage.unique('disk')}", mib=16)
    backend = backends.add("smb", smb(storage.share(folder=folder)), credentials=login)

    storage.courier.run(f"dd if=/dev/zero of={folder}/ballast bs=4k status=none || true")

    backend.wait_for(hv1, "unreachable", "no_space")
    storage.courier.run(f"rm {folder}/ballast")
    backend.wait_for(hv1, "healthy")
