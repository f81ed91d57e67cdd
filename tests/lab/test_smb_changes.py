"""smb: edits, rotations of the password, other hosts, neighbours, removal and a power cut."""

import datetime as dt

import pytest

from tests.lab.backends import PATIENCE_S, Backends
from tests.lab.conftest import Ran
from tests.lab.host import STATE_DIR, Host
from tests.lab.leaks import Secrets
from tests.lab.nfs import mounted, options_of
from tests.lab.qemu import wait_until
from tests.lab.smb import Login, changed, files_with, readable_by_others, smb, user_of, wrong
from tests.lab.storage import ADDRESS, Storage

# Edits.


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"smb_version": "2.1"}, "vers=2.1"),
        ({"options": "actimeo=5"}, "actimeo=5"),
        ({"server": "storage"}, "addr=10.77.0.1"),
    ],
)
def test_an_edit_mounts_anew(
    storage: Storage, backends: Backends, hv1: Host, login: Login, change: dict[str, str], shown: str
) -> None:
    config = smb(storage.share())
    backend = backends.add("smb", config, credentials=login)

    answer = backend.edit(config=config | change)

    assert answer.status == 200, answer
    assert shown in options_of(hv1, backend.mount_dir)
    assert mounted(hv1, backend.mount_dir).startswith(f"//{change.get('server', ADDRESS)}/")
    assert backend.probe(hv1)["status"] == "healthy"


def test_an_edit_to_another_servers_share_of_that_name_is_refused(
    storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    config = smb(storage.share())
    backend = backends.add("smb", config, credentials=login)
    # The same server at another address; of the folder with our marker another one has taken the place.
    storage.courier.run(f"mv /srv/smb/{config['share']}/.stowage-backend.json /srv/smb/kept")

    answer = backend.edit(config=config | {"server": "storage"})

    storage.courier.run(f"mv /srv/smb/kept /srv/smb/{config['share']}/.stowage-backend.json")
    assert (answer.status, answer.codes) == (422, ["marker_missing"])
    assert mounted(hv1, backend.mount_dir).startswith(f"//{ADDRESS}/")
    backend.wait_for(hv1, "healthy")


def test_a_rotation(storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login)
    new = changed(login, storage, secrets)

    answer = backend.edit(credentials=new)

    assert answer.status == 200, answer
    storage.end_sessions("labuser")
    backend.wait_for(hv1, "healthy")
    assert files_with(hv1, login["password"]) == []
    # A version of a number of its own, as every rotation of the fleet.
    (path,) = files_with(hv1, new["password"])
    assert path.startswith(f"{STATE_DIR}/credentials/{backend.id}.")


def test_a_rotation_to_a_wrong_password_cuts_nothing_off(
    storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets, ran: Ran
) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login)
    with hv1.holding(f"{backend.mount_dir}/disk"):
        bad = wrong(login, secrets)

        answer = backend.edit(credentials=bad)

        assert (answer.status, answer.codes) == (422, ["auth_failed"])
        assert not any(command.argv[0] == "umount" and backend.mount_dir in command.argv for command in ran(hv1))
        assert backend.probe(hv1)["status"] == "healthy"
        assert files_with(hv1, bad["password"]) == []
    storage.courier.run(f"rm /srv/smb/{backend.now()['config']['share']}/disk")
    assert files_with(hv1, login["password"]) == [f"{STATE_DIR}/credentials/{backend.id}.1.json"]


def test_a_rotation_there_and_back(storage: Storage, backends: Backends, hv1: Host, login: Login, other: Login) -> None:
    backend = backends.add("smb", smb(storage.share(users="labuser other")), credentials=login)

    for credentials in (other, login):
        answer = backend.edit(credentials=credentials)

        assert answer.status == 200, answer
        assert user_of(hv1, backend.mount_dir) == credentials["username"]
        assert backend.probe(hv1)["status"] == "healthy"


@pytest.mark.slow
def test_a_rotation_of_a_share_in_use_waits_for_it(
    storage: Storage, backends: Backends, hv1: Host, login: Login, other: Login
) -> None:
    backend = backends.add("smb", smb(storage.share(users="labuser other")), credentials=login)
    with hv1.holding(f"{backend.mount_dir}/disk"):
        assert backend.edit(credentials=other).status == 200

        assert user_of(hv1, backend.mount_dir) == "labuser"
        seen = backend.probe(hv1)
        assert seen["status"] == "healthy", seen
    wait_until(lambda: user_of(hv1, backend.mount_dir) == "other", "the new user to be logged in", PATIENCE_S)
    storage.courier.run(f"rm /srv/smb/{backend.now()['config']['share']}/disk")


# Hosts and neighbours.


def test_two_hosts(storage: Storage, backends: Backends, hv1: Host, hv2: Host, login: Login) -> None:
    backend = backends.add("smb", smb(storage.share()), on=(hv1, hv2), credentials=login)

    hv1.courier.run(f"echo seen >{backend.mount_dir}/word")
    assert hv2.courier.run(f"cat {backend.mount_dir}/word; rm {backend.mount_dir}/word").out == "seen\n"
    assert [backend.probe(host)["status"] for host in (hv1, hv2)] == ["healthy", "healthy"]


def test_a_host_that_is_no_longer_chosen_lets_go(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host, login: Login
) -> None:
    backend = backends.add("smb", smb(storage.share()), on=(hv1, hv2), credentials=login)

    assert backend.edit(hosts={"names": ["hv2"]}).status == 200

    wait_until(lambda: mounted(hv1, backend.mount_dir) == "", "hv1 to let go", PATIENCE_S)
    wait_until(lambda: files_with(hv1, login["password"]) == [], "hv1 to forget the password", PATIENCE_S)
    assert backend.probe(hv2)["status"] == "healthy"


def test_a_host_that_joins_gets_the_credentials_from_the_others(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host, login: Login
) -> None:
    backend = backends.add("smb", smb(storage.share()), on=(hv1,), credentials=login)

    assert backend.edit(hosts={"names": ["hv1", "hv2"]}).status == 200

    backend.wait_for(hv2, "healthy")
    assert user_of(hv2, backend.mount_dir) == "labuser"


def test_removal_leaves_the_data(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    share = storage.share()
    backend = backends.add("smb", smb(share), credentials=login)
    storage.courier.run(f"echo kept >/srv/smb/{share}/disk.qcow2")

    answer = backend.remove_and_tell()

    assert answer.status == 200, answer
    assert f"1 entry in //{ADDRESS}/{share}" in str(answer.body)
    assert mounted(hv1, backend.mount_dir) == ""
    assert storage.courier.run(f"ls -A /srv/smb/{share}").out == "disk.qcow2\n"


def test_two_backends_of_one_server(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    gold, silver = (backends.add("smb", smb(storage.share()), credentials=login) for _ in range(2))

    assert gold.remove().status == 204

    assert silver.probe(hv1)["status"] == "healthy"


@pytest.mark.slow
def test_a_power_cut(storage: Storage, backends: Backends, hv2: Host, login: Login) -> None:
    backend = backends.add("smb", smb(storage.share()), on=(hv2,), credentials=login)
    hv2.machine.cut_power()
    backend.wait_for(hv2, "unknown", "host_offline")

    began = dt.datetime.now(dt.UTC)
    hv2.machine.boot_again()

    backend.wait_for(hv2, "healthy", after=began)
    assert user_of(hv2, backend.mount_dir) == "labuser"
    assert readable_by_others(hv2) == []
