"""smb against a real server: logins, versions, capacity, refusals, edits, and what the server does to a mount beneath it."""

import time

import pytest

from tests.lab.backends import Backends
from tests.lab.client import Answer
from tests.lab.conftest import Ran
from tests.lab.host import STATE_DIR, Host
from tests.lab.leaks import Secrets
from tests.lab.nfs import mounted, options_of
from tests.lab.smb import BOUND_S, SHOWN, Login, files_with, readable_by_others, smb, user_of, wrong
from tests.lab.storage import ADDRESS, ADDRESS_6, Storage

#: Every printable character of ASCII, in its order: a blank comes first.
PRINTABLE = "".join(map(chr, range(32, 127)))

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


@pytest.mark.slow
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


def test_discovery_by_an_account_at_a_server_that_lists_to_known_users_only(
    storage: Storage, backends: Backends, hv1: Host, login: Login, secrets: Secrets
) -> None:
    share, bad = storage.share(), wrong(login, secrets)
    storage.set_smb("restrict anonymous = 2")

    with hv1.watching_processes() as seen:
        answer = backends.discover("smb", hv1, {"server": ADDRESS}, credentials=login)
    refused = backends.discover("smb", hv1, {"server": ADDRESS}, credentials=bad)

    assert answer.status == 200, answer
    assert share in [item["config"]["share"] for item in answer.body["items"]]
    assert any("smbclient" in line for line in seen)
    assert not any(login["password"] in line for line in seen)
    assert files_with(hv1, login["password"]) == files_with(hv1, bad["password"]) == []
    assert refused.codes == ["auth_failed"]
    assert "Check the user name" in refused.body["faults"][0]["remedy"]
