"""A lab for the session, and for each test: what it made goes afterwards, and nothing that nobody accounts for is left.

Secrets that tests give to the product are searched for at the end of the session in everything that the stack has written.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab import accounts, leaks
from tests.lab import lab as labs
from tests.lab.backends import PATIENCE_S, Backend, Backends
from tests.lab.client import Api
from tests.lab.disks import MAKES, Disk
from tests.lab.host import Command, Host, commands_in
from tests.lab.image import log_dir
from tests.lab.iscsi import KIND, iscsi, target_with_group
from tests.lab.lab import Lab
from tests.lab.leaks import Secrets
from tests.lab.nfs import nfs
from tests.lab.qemu import wait_until
from tests.lab.smb import Login, login_of, smb
from tests.lab.storage import Chap, Storage
from tests.lab.volumes import Volumes

#: With what a node record's parser might take for its own.
_CHAP = "chap-canary-\"'#=\\%$[1]"
_LONGEST = ("test_three_hosts.py", "test_lvmlockd.py")
#: The tools that a host's agent has run in this test, in the order in which they ended.
Ran = Callable[[Host], list[Command]]
#: A new, healthy backend for volumes, by a word for its storage: nfs, smb, thick, thin, local, or a disk of hv1's with ext4 or xfs.
#: On hv1 unless told; mib: how large the disk or the volume group is.
Place = Callable[..., Backend]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of minutes first, so that at the end no lab waits for another."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def pytest_sessionstart() -> None:
    """A run has its own log of failures."""
    if _is_in_charge():
        (log_dir() / "failures.log").unlink(missing_ok=True)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What failed is written down at once: a whole run takes half an hour, and pytest tells of it at its end, if it comes to one."""
    if report.failed and _is_in_charge():
        log_dir().mkdir(parents=True, exist_ok=True)
        with (log_dir() / "failures.log").open("a") as log:
            log.write(f"== {report.nodeid} ({report.when})\n{report.longreprtext}\n\n")


def _worker() -> str:
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


def _keep_logs(lab: Lab) -> None:
    """What the stack and the agents have said all the time: a failure's cause may lie a test before it."""
    log_dir().mkdir(parents=True, exist_ok=True)
    (log_dir() / f"stack-{_worker()}.log").write_bytes(lab.stack.log.read_bytes())
    for host in lab.hosts:
        (log_dir() / f"{host.name}-{_worker()}.log").write_text(host.whole_log())


def _is_in_charge() -> bool:
    """Not of a worker: all that one reports is reported again where they are started."""
    return "PYTEST_XDIST_WORKER" not in os.environ


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with labs.running() as running:
        yield running
        _keep_logs(running)


@pytest.fixture(scope="session")
def commands_log(lab: Lab) -> Path:
    """Where each test's commands are written, the agents' own by their logs."""
    folder = log_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"commands-{_worker()}.log"
    path.write_text("")
    return path


@pytest.fixture
def storage(lab: Lab) -> Storage:
    return lab.storage


@pytest.fixture(scope="session")
def hv1(lab: Lab) -> Host:
    return lab.host("hv1")


@pytest.fixture(scope="session")
def hv2(lab: Lab) -> Host:
    return lab.host("hv2")


@pytest.fixture(scope="session")
def hv3(lab: Lab) -> Host:
    return lab.host("hv3")


@pytest.fixture
def backends(lab: Lab, hv1: Host) -> Backends:
    """Adds to hv1 unless the test says otherwise."""
    return Backends(lab.api, (hv1,))


@pytest.fixture
def ran(record: dict[str, list[Command]], lab: Lab) -> Ran:
    """The tools that a host's agent has run in this test."""

    def so_far(host: Host) -> list[Command]:
        _read(host, record)
        return record[host.name]

    return so_far


@pytest.fixture(scope="session")
def secrets(lab: Lab) -> Iterator[Secrets]:
    """Notes a secret and returns it. At the end none of them is anywhere in what manager, bus, database and agents have written."""
    known: set[str] = set()

    def note(text: str) -> str:
        known.add(text)
        return text

    yield note
    leaks.refuse(lab, known)


@pytest.fixture
def api(lab: Lab) -> Api:
    return lab.api


@pytest.fixture
def login(storage: Storage, secrets: Secrets) -> Login:
    """The user that shares are made for, with a password that no other test has."""
    return login_of("labuser", storage, secrets)


@pytest.fixture
def other(storage: Storage, secrets: Secrets) -> Login:
    return login_of("other", storage, secrets)


@pytest.fixture
def chap(secrets: Secrets) -> Chap:
    return Chap("labchap", secrets(_CHAP))


@pytest.fixture
def mutual(secrets: Secrets) -> Chap:
    return Chap("labchap", secrets(_CHAP), "labtarget", secrets(f"mutual-{_CHAP}"))


@pytest.fixture
def vms_iqn(storage: Storage) -> str:
    """A target that asks for nothing, with the VG vg_vms on LUN 0."""
    return target_with_group(storage)


@pytest.fixture
def iqn(storage: Storage) -> str:
    """A target that asks for nothing and has no LUN."""
    return storage.target()


@pytest.fixture
def image(storage: Storage, iqn: str) -> str:
    """The file behind LUN 0 of that target, which is blank."""
    return storage.lun(iqn)


@pytest.fixture
def place(storage: Storage, backends: Backends, hv1: Host, login: Login) -> Iterator[Place]:
    """Adds backends for volumes; the disks beneath them go after the test."""
    with ExitStack() as stack:

        def add(word: str, on: Sequence[Host] = (), mib: int = 320) -> Backend:
            match word:
                case "nfs":
                    return backends.add("nfs", nfs(storage.export()), on=on)
                case "smb":
                    return backends.add("smb", smb(storage.share()), on=on, credentials=login)
                case "thick" | "thin":
                    config = iscsi(target_with_group(storage, mib=mib), thin=word == "thin")
                    return backends.add(KIND, config, on=on)
                case "local":
                    return backends.add("local_file", {"root_dir": f"/var/tmp/{storage.unique('volumes')}"}, on=on)
                case "ext4" | "xfs":
                    disk = stack.enter_context(Disk(hv1, storage.unique(word), MAKES[word], mib=mib))
                    return backends.add("local_file", {"root_dir": disk.where}, on=on)
                case _:
                    raise AssertionError(f"there is no storage {word}")

        yield add


@pytest.fixture
def volumes(lab: Lab, place: Place) -> Iterator[Volumes]:
    """After the test, with all servers back, every volume goes; and nothing may be left that was none."""
    with_them = Volumes(lab.api)
    yield with_them
    lab.recover()
    with_them.clear()


@pytest.fixture
def record() -> dict[str, list[Command]]:
    return {}


@pytest.fixture(autouse=True)
def leaves_nothing(
    request: pytest.FixtureRequest, lab: Lab, record: dict[str, list[Command]], commands_log: Path, secrets: Secrets
) -> Iterator[None]:
    """The check after every test: first with its backends still there, then with all of them removed."""
    yield
    lab.recover()
    try:
        _wait_for_none(partial(_hung, lab), "the hosts, with all servers back")
        for host in _with_backends(lab):
            _wait_for_none(partial(accounts.unaccounted, host, lab.api), f"{host.name}, beside the backends")
        said = _remove_all(lab)
        for host in lab.hosts:
            _wait_for_none(partial(accounts.unaccounted, host, lab.api), f"{host.name}, after the removal")
        assert accounts.left_on_server(lab.storage) == [], f"the removals said {said}"
    finally:
        _write_commands(request.node.nodeid, lab.hosts, record, commands_log)
        lab.storage.clear()


def _hung(lab: Lab) -> dict[str, list[str]]:
    """Backends of which a probe waits in the kernel still: an NFS server that was away answers no open for its grace period of 10 s, and
    a removal within that leaves our marker, as it says.
    """
    lines: dict[str, list[str]] = {}
    for each in lab.api.get("/storage_backends?limit=500")["items"]:
        cells = lab.api.get(f"/storage_backends/{each['id']}/hosts")["hosts"]
        if hosts := [cell["host"] for cell in cells if cell["code"] == "hung"]:
            lines[each["name"]] = hosts
    return lines


def _with_backends(lab: Lab) -> list[Host]:
    """The hosts that something is wanted on now; on the others the look after the removal says as much."""
    chosen = {name for each in lab.api.get("/storage_backends?limit=500")["items"] for name in each["hosts"]["names"]}
    return [host for host in lab.hosts if host.name in chosen]


def _remove_all(lab: Lab) -> list[dict[str, Any]]:
    """What each removal said that it left."""
    said: list[dict[str, Any]] = []
    for backend in lab.api.get("/storage_backends?limit=500")["items"]:
        answer = lab.api("DELETE", f"/storage_backends/{backend['id']}", Prefer="return=representation")
        assert answer.status == 200, answer
        said.append(answer.body)
    return said


def _wait_for_none(look: Callable[[], dict[str, list[str]]], where: str) -> None:
    """What a probe or a release has under way ends by itself; what stays is named."""
    last: dict[str, list[str]] = {}

    def is_none() -> bool:
        last.clear()
        last.update(look())
        return not last

    try:
        wait_until(is_none, "nothing to be left", PATIENCE_S / 2)
    except labs.LabError:
        pytest.fail(f"left on {where}: {last}")


def _read(host: Host, record: dict[str, list[Command]]) -> None:
    record.setdefault(host.name, []).extend(commands_in(host.new_log()))


def _write_commands(test: str, hosts: Sequence[Host], record: dict[str, list[Command]], path: Path) -> None:
    lines = [f"== {test}"]
    for host in hosts:
        _read(host, record)
        lines += [f"{host.name}  {command}" for command in record[host.name]]
    with path.open("a") as log:
        log.write("\n".join(lines) + "\n")
