"""smb against a real server: logins, versions, capacity, refusals, edits, and what the server does to a mount beneath it."""

import datetime as dt
import time

import pytest

from tests.lab.backends import PATIENCE_S, Backends
from tests.lab.client import Answer
from tests.lab.conftest import Ran, Secrets
from tests.lab.host import STATE_DIR, Host
from tests.lab.lab import Lab
from tests.lab.nfs import mounted, options_of
from tests.lab.qemu import wait_until
from tests.lab.smb import SHOWN, files_with, readable_by_others, smb, user_of
from tests.lab.storage import ADDRESS, ADDRESS_6, Storage

#: Every printable character of ASCII, in its order: a blank comes first.
PRINTABLE = "".join(map(chr, range(32, 127)))
#: Seconds in which a server that is not there has to be told of: three attempts of an add, each up to 7 s under emulation.
BOUND_S = 40.0

Login = dict[str, str]


@pytest.fixture
def login(storage: Storage, secrets: Secrets) -> Login:
    """The user that shares are made for, with a password that no other test has."""
    return login_of("labuser", storage, secrets)


@pytest.fixture
def other(storage: Storage, secrets: Secrets) -> Login:
    return login_of("other", storage, secrets)


def login_of(user: str, storage: Storage, secrets: Secrets) -> Login:
    password = secrets(storage.unique("lab-Pass:") + "-of-" + user)
    storage.set_password(user, password)
    return {"username": user, "password": password}


def changed(login: Login, storage: Storage, secrets: Secrets) -> Login:
    """The user's login, after the server has been given another password for it."""
    return login_of(login["username"], storage, secrets)


def wrong(login: Login, secrets: Secrets) -> Login:
    return login | {"password": secrets(login["password"] + "-not")}


# What is mounted.


@pytest.mark.parametrize("version", SHOWN)
def test_a_version_is_spoken_as_asked(
    storage: Storage, backends: Backends, hv1: Host, login: Login, version: str
) -> None:
    backend = backends.add("smb", smb(storage.share(), smb_version=version), credentials=login)

    assert SHOWN[version] in options_of(hv1, backend.mount_dir)
    assert backend.probe(hv1)["status"] == "healthy"


def test_capacity_is_the_servers_own(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    folder = storage.folder(f"/srv/smb/{storage.unique('disk')}", mib=64)
    backend = backends.add("smb", smb(storage.share(folder=folder)), credentials=login)
    storage.courier.run(f"dd if=/dev/zero of={folder}/ballast bs=1M count=20 conv=fsync status=none")

    seen = backend.probe(hv1)["capacity"]

    shown = storage.courier.run("stat -f -c '%b %a %S'", folder).out.split()
    blocks, available, size = map(int, shown)
    # The client takes what is free for this user as all that is free, so the server's reserve counts as used.
    assert abs(seen["total_bytes"] - blocks * size) <= 1 << 16
    assert abs(seen["available_bytes"] - available * size) <= 1 << 16
    assert abs(seen["used_bytes"] - (blocks - available) * size) <= 1 << 16
    assert seen["used_bytes"] >= 20 << 20


def test_ipv6(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    backend = backends.add("smb", smb(storage.share(), ADDRESS_6), credentials=login)

    assert mounted(hv1, backend.mount_dir).startswith("//fd77--1.ipv6-literal.net/")
    assert backend.probe(hv1)["status"] == "healthy"


def test_a_server_by_its_name(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    backend = backends.add("smb", smb(storage.share(), "storage"), credentials=login)

    assert mounted(hv1, backend.mount_dir).startswith("//storage/")


@pytest.mark.parametrize("name", ["with a blank", "grüße", "vms$"])
def test_a_share_of_any_name(storage: Storage, backends: Backends, hv1: Host, login: Login, name: str) -> None:
    share = storage.share(name=name, folder=f"/srv/smb/{storage.unique('named')}")

    backend = backends.add("smb", smb(share), credentials=login)

    assert backend.probe(hv1)["status"] == "healthy"


def test_options_reach_the_kernel_and_ours_are_always_there(
    storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    backend = backends.add("smb", smb(storage.share(), options="actimeo=5,rsize=65536,seal"), credentials=login)

    shown = options_of(hv1, backend.mount_dir)
    assert {"actimeo=5", "rsize=65536", "seal", "hard", "nosuid", "nodev", "noexec"} <= shown


def test_soft_is_the_operators_choice(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    backend = backends.add("smb", smb(storage.share(), options="soft"), credentials=login)

    shown = options_of(hv1, backend.mount_dir)
    assert "soft" in shown
    assert "hard" not in shown


def test_subdir_is_where_the_marker_is(storage: Storage, backends: Backends, login: Login) -> None:
    share = storage.share()
    storage.courier.run(f"mkdir -p '/srv/smb/{share}/vms/gold plus'")

    backends.add("smb", smb(share, subdir="vms/gold plus"), credentials=login)

    found = storage.courier.run(f"cd /srv/smb/{share}; find . -name '.stowage*'").out.splitlines()
    assert found == ["./vms/gold plus/.stowage-backend.json"]


# Who logs in.


def test_guest(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("smb", smb(storage.share(users="")))

    assert user_of(hv1, backend.mount_dir) == ""
    assert backend.now()["has_credentials"] is False


def test_domain(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login | {"domain": "LAB"})

    assert {"domain=LAB", "username=labuser"} <= options_of(hv1, backend.mount_dir)


@pytest.mark.parametrize(
    "password",
    [
        PRINTABLE,
        PRINTABLE[::-1],
        " a blank before",
        "a blank after ",
        "two  blanks",
        "a,b,,c",
        "grüße-über-ß",
        "x" * 128,
    ],
    ids=["printable", "reversed", "before", "after", "two", "commas", "umlauts", "long"],
)
def test_a_password_of_any_characters(
    storage: Storage, backends: Backends, hv1: Host, secrets: Secrets, password: str
) -> None:
    storage.set_password("labuser", secrets(password))
    login = {"username": "labuser", "password": password}

    backend = backends.add("smb", smb(storage.share()), credentials=login)

    assert backend.probe(hv1)["status"] == "healthy"
    # A trial reads the password again from where the agent keeps it.
    assert backend.edit(config=smb(backend.now()["config"]["share"], options="actimeo=5")).status == 200


@pytest.mark.parametrize(
    "name", ["Jane Doe", "jörg", "jane@corp.example", "o'neill", "a=b", "CORP\\jane", "machine$", "100%", "password=x"]
)
def test_a_user_name_of_unusual_characters(
    storage: Storage, backends: Backends, hv1: Host, login: Login, name: str
) -> None:
    with storage.user_names({name: "labuser"}):
        backend = backends.add("smb", smb(storage.share()), credentials=login | {"username": name})

        assert user_of(hv1, backend.mount_dir) == name.replace("\\", "\\134").replace(" ", "\\040")
        assert backend.probe(hv1)["status"] == "healthy"


def test_one_share_under_two_users(storage: Storage, backends: Backends, hv1: Host, login: Login, other: Login) -> None:
    share = storage.share(users="labuser other")
    storage.courier.run(f"mkdir /srv/smb/{share}/gold /srv/smb/{share}/silver")

    gold = backends.add("smb", smb(share, subdir="gold"), credentials=login)
    silver = backends.add("smb", smb(share, subdir="silver"), credentials=other)

    assert [user_of(hv1, backend.mount_dir) for backend in (gold, silver)] == ["labuser", "other"]
    assert gold.probe(hv1)["status"] == silver.probe(hv1)["status"] == "healthy"
    assert gold.remove().status == 204
    assert silver.probe(hv1)["status"] == "healthy"


def test_the_password_is_in_no_argument_no_log_and_no_file_but_the_agents_store(
    storage: Storage, backends: Backends, hv1: Host, login: Login, ran: Ran
) -> None:
    backend = backends.add("smb", smb(storage.share()), credentials=login)
    backend.probe(hv1)

    mounts = [command for command in ran(hv1) if command.argv[0] == "mount"]
    assert len(mounts) == 1
    assert not any(login["password"] in word for command in ran(hv1) for word in command.argv)
    assert files_with(hv1, login["password"]) == [f"{STATE_DIR}/credentials/{backend.id}.1.json"]
    assert readable_by_others(hv1) == []


# What is refused. `refused` also asserts that nothing is left of the add.


def test_a_wrong_password(storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets) -> None:
    share, bad = storage.share(), wrong(login, secrets)

    fault = backends.refused("auth_failed", "smb", smb(share), credentials=bad)

    assert "mount error(13)" in fault["detail"]
    assert "Check the user name, password and domain" in fault["remedy"]
    assert files_with(hv1, bad["password"]) == []


def test_a_user_that_the_share_is_not_for(storage: Storage, backends: Backends, login: Login) -> None:
    fault = backends.refused("auth_failed", "smb", smb(storage.share(users="other")), credentials=login)

    assert "let this user use the share on the server" in fault["remedy"]


def test_a_guest_on_a_private_share(storage: Storage, backends: Backends) -> None:
    backends.refused("auth_failed", "smb", smb(storage.share()))


def test_an_unknown_share(storage: Storage, backends: Backends, login: Login) -> None:
    storage.share()

    fault = backends.refused("share_not_found", "smb", smb("nowhere"), credentials=login)

    assert "mount error(2)" in fault["detail"]


def test_an_unknown_subdir(storage: Storage, backends: Backends, login: Login) -> None:
    fault = backends.refused("path_not_found", "smb", smb(storage.share(), subdir="nowhere"), credentials=login)

    assert "nowhere" in fault["detail"]


def test_a_read_only_share(storage: Storage, backends: Backends, login: Login) -> None:
    share = storage.share("read only = yes")

    backends.refused("read_only", "smb", smb(share), credentials=login)


def test_a_folder_that_is_not_writable(storage: Storage, backends: Backends, login: Login) -> None:
    share = storage.share("force user = labuser")
    storage.courier.run(f"mkdir -m 755 /srv/smb/{share}/roots")

    fault = backends.refused("permission_denied", "smb", smb(share, subdir="roots"), credentials=login)

    assert "the user's write right" in fault["remedy"]


def test_a_dead_address(backends: Backends, login: Login) -> None:
    began = time.monotonic()

    fault = backends.refused("server_unreachable", "smb", smb("vms", "10.77.0.99"), credentials=login)

    assert time.monotonic() - began < BOUND_S
    assert "could not connect to 10.77.0.99" in fault["detail"]


def test_a_server_without_smb(backends: Backends, login: Login) -> None:
    began = time.monotonic()

    backends.refused("server_unreachable", "smb", smb("vms", options="port=4455"), credentials=login)

    assert time.monotonic() - began < BOUND_S


def test_a_name_that_nobody_knows(backends: Backends, login: Login) -> None:
    backends.refused("name_not_resolved", "smb", smb("vms", "no-such-name"), credentials=login)


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (("server min protocol = SMB3_00",), "2.0"),
        (("server min protocol = SMB3_00",), "2.1"),
        (("server max protocol = SMB2_10",), "3"),
        (("server max protocol = SMB2_10",), "3.0"),
        (("server max protocol = SMB3_02",), "3.11"),
    ],
)
def test_a_version_that_the_server_does_not_speak(
    storage: Storage, backends: Backends, login: Login, options: tuple[str, ...], version: str
) -> None:
    storage.set_smb(*options)

    fault = backends.refused("version_rejected", "smb", smb(storage.share(), smb_version=version), credentials=login)

    assert "mount error(95)" in fault["detail"]


def test_an_option_that_the_kernel_refuses(storage: Storage, backends: Backends, login: Login) -> None:
    fault = backends.refused("option_rejected", "smb", smb(storage.share(), options="cache=bogus"), credentials=login)

    assert "mount error(22)" in fault["detail"]


def test_anothers_folder(storage: Storage, backends: Backends, hv1: Host, login: Login) -> None:
    share = storage.share()
    first = backends.add("smb", smb(share), credentials=login)

    answer = backends.attempt("smb", smb(share, "storage"), credentials=login)

    assert (answer.status, answer.codes) == (422, ["marker_mismatch"])
    assert first.id in answer.body["faults"][0]["detail"]
    assert first.probe(hv1)["status"] == "healthy"


def test_preflight_leaves_nothing(
    storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets
) -> None:
    share = storage.share()

    good = backends.preflight("smb", smb(share), credentials=login)
    bad = backends.preflight("smb", smb(share), credentials=wrong(login, secrets))

    assert [checks_of(answer) for answer in (good, bad)] == [{None}, {None, "auth_failed"}]
    assert storage.courier.run(f"ls -A /srv/smb/{share}").out == ""
    assert files_with(hv1, login["password"]) == []


def checks_of(answer: Answer) -> set[str | None]:
    """The codes of the checks on all hosts; None: passed."""
    return {check["code"] for host in answer.body["hosts"] for check in host["checks"]}


# Discovery.


def test_discovery_lists_the_shares(storage: Storage, backends: Backends, hv1: Host) -> None:
    gold, silver = storage.share("comment = For VMs"), storage.share(users="")
    hidden = storage.share("browseable = no")

    for server in (ADDRESS, ADDRESS_6, "storage"):
        answer = backends.discover("smb", hv1, {"server": server})

        assert answer.status == 200, answer
        found = {item["config"]["share"]: item["title"] for item in answer.body["items"]}
        assert (found[gold], found[silver]) == (f"{gold} (For VMs)", silver)
        assert hidden not in found


def test_discovery_at_a_server_that_does_not_answer(backends: Backends, hv1: Host) -> None:
    assert backends.discover("smb", hv1, {"server": "10.77.0.99"}).codes == ["server_unreachable"]


def test_discovery_at_a_server_that_lists_to_known_users_only(storage: Storage, backends: Backends, hv1: Host) -> None:
    storage.set_smb("restrict anonymous = 2")

    answer = backends.discover("smb", hv1, {"server": ADDRESS})

    assert answer.codes == ["auth_failed"]
    assert "type the share's name" in answer.body["faults"][0]["remedy"]


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
    assert files_with(hv1, new["password"]) == [f"{STATE_DIR}/credentials/{backend.id}.2.json"]


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


def test_a_rotation_of_a_share_in_use_waits_for_it(
    storage: Storage, backends: Backends, hv1: Host, login: Login, other: Login
) -> None:
    backend = backends.add("smb", smb(storage.share(users="labuser other")), credentials=login)
    with hv1.holding(f"{backend.mount_dir}/disk"):
        assert backend.edit(credentials=other).status == 200

        assert user_of(hv1, backend.mount_dir) == "labuser"
        seen = backend.probe(hv1)
        assert seen["status"] == "healthy", seen
    hv1.courier.run(f"rm {backend.mount_dir}/disk")


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


def test_a_power_cut(storage: Storage, backends: Backends, hv2: Host, login: Login) -> None:
    backend = backends.add("smb", smb(storage.share()), on=(hv2,), credentials=login)
    hv2.machine.cut_power()
    backend.wait_for(hv2, "unknown", "host_offline")

    began = dt.datetime.now(dt.UTC)
    hv2.machine.boot_again()

    backend.wait_for(hv2, "healthy", after=began)
    assert user_of(hv2, backend.mount_dir) == "labuser"
    assert readable_by_others(hv2) == []


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


def test_a_share_that_is_withdrawn_and_comes_back(
    storage: Storage, backends: Backends, hv1: Host, login: Login
) -> None:
    share = storage.share()
    backend = backends.add("smb", smb(share), credentials=login)
    neighbour = backends.add("smb", smb(storage.share()), credentials=login)

    storage.unshare(share)

    backend.wait_for(hv1, "unreachable", "share_not_found")
    assert neighbour.probe(hv1)["status"] == "healthy"
    storage.share(name=share)
    backend.wait_for(hv1, "healthy")


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
