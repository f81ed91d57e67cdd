"""A server that stops answering under a hard mount: what touches it hangs in the kernel, and nothing else of the agent does."""

from collections.abc import Callable

import pytest

from tests.lab import accounts
from tests.lab.backends import Backend, Backends
from tests.lab.client import Answer
from tests.lab.conftest import Ran
from tests.lab.host import Host, seconds_of
from tests.lab.iscsi import KIND, iscsi
from tests.lab.lab import Lab
from tests.lab.nfs import mounted, nfs
from tests.lab.qemu import wait_until
from tests.lab.storage import Storage

#: How the server is taken away: its threads are gone, or no packet passes.
Away = Callable[[], None]


@pytest.fixture(params=["the server is stopped", "the network is cut"])
def take_away(request: pytest.FixtureRequest, lab: Lab, storage: Storage) -> Away:
    return storage.stop_nfs if request.param == "the server is stopped" else lambda: lab.isolate("storage")


@pytest.fixture
def bring_back(lab: Lab, storage: Storage) -> Away:
    def back() -> None:
        lab.heal()
        storage.recover()

    return back


@pytest.fixture
def local(backends: Backends) -> Backend:
    """A backend of the same host that has nothing to do with the server."""
    return backends.add("local_file", {"root_dir": "/var/tmp/beside"})


def hang(backend: Backend, host: Host, take_away: Away) -> None:
    """Its probe hangs in the kernel."""
    take_away()
    backend.wait_for(host, "unreachable", "hung")


def refused_for_the_host(answer: Answer, host: Host) -> None:
    """By a fault of the host, or, where its mount was given up too late for the manager, in its name: 504 agent_timeout."""
    assert answer.status in (422, 504), answer
    assert {fault["host"] for fault in answer.body["faults"]} == {host.name}
    assert set(answer.codes) <= {"server_unreachable", "timed_out", "hung"}


@pytest.mark.slow
def test_statvfs_hangs_for_as_long_as_the_server_is_away(storage: Storage, backends: Backends, hv1: Host) -> None:
    """The premise of all of this: were it not so, these tests would show nothing."""
    backend = backends.add("nfs", nfs(storage.export()))
    storage.stop_nfs()

    done = hv1.courier.attempt("stat -f", backend.mount_dir, timeout_s=20)

    assert done.timed_out


def test_hung_is_red_and_turns_green_by_itself(
    storage: Storage, backends: Backends, hv1: Host, take_away: Away, bring_back: Away
) -> None:
    backend = backends.add("nfs", nfs(storage.export()))

    hang(backend, hv1, take_away)
    cell = backend.cell(hv1)
    assert "by itself" in cell["remedy"]
    bring_back()

    backend.wait_for(hv1, "healthy")


@pytest.mark.slow
def test_other_probes_go_on_at_their_pace(storage: Storage, backends: Backends, hv1: Host, local: Backend) -> None:
    backend = backends.add("nfs", nfs(storage.export()))
    hang(backend, hv1, storage.stop_nfs)

    # One probe each 3 s: three different times of observation while the other hangs.
    seen: set[str] = set()

    def has_three() -> bool:
        seen.add(local.cell(hv1)["observed_at"])
        return len(seen) >= 3

    wait_until(has_three, "three probes of the other backend", 30)
    assert local.cell(hv1)["status"] == "healthy"
    assert backend.cell(hv1)["code"] == "hung"


@pytest.mark.slow
def test_the_host_stays_online_and_obeys(storage: Storage, backends: Backends, hv1: Host, local: Backend) -> None:
    backend = backends.add("nfs", nfs(storage.export()))
    hang(backend, hv1, storage.stop_nfs)

    assert hv1.is_online()
    assert local.probe(hv1)["status"] == "healthy"
    assert backend.probe(hv1)["code"] == "hung"
    added = backends.add("local_file", {"root_dir": "/var/tmp/added"})
    assert added.remove().status == 204


def test_workers_stay_bounded(storage: Storage, backends: Backends, hv1: Host) -> None:
    hanging = [backends.add("nfs", nfs(storage.export())) for _ in range(3)]
    storage.stop_nfs()
    for backend in hanging:
        backend.wait_for(hv1, "unreachable", "hung")

    # Every probe of every one of them has been due several times by now.
    seen = {backend.id: backend.cell(hv1)["observed_at"] for backend in hanging}
    wait_until(lambda: all(b.cell(hv1)["observed_at"] != seen[b.id] for b in hanging), "further probes", 60)

    assert len(accounts.on(hv1)["workers"]) <= len(hanging)


@pytest.mark.slow
def test_removal_of_a_hung_backend_ends_and_says_how(
    storage: Storage, backends: Backends, hv1: Host, ran: Ran, take_away: Away, bring_back: Away
) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export))
    hang(backend, hv1, take_away)

    answer = backend.remove_and_tell()

    assert answer.status == 200, answer
    assert mounted(hv1, backend.mount_dir) == ""
    # Lazily only where neither a plain nor a forced unmount did it, and then it is said.
    ways = [command.argv[1:-2] for command in ran(hv1) if command.argv[0] == "umount"]
    assert ways[0] == ("-c",)
    assert answer.body["unmounted_lazily"] == (["hv1"] if ("-c", "-i", "-l") in ways else [])
    assert "could not be reached (hung)" in answer.body["left"]["hv1"][0]
    # That is the marker, and whoever has read the answer removes it when the server is back.
    bring_back()
    storage.courier.run(f"rm {export}/.stowage-backend.json")


@pytest.mark.slow
def test_an_agent_starts_in_its_normal_time_beside_a_hung_mount(
    storage: Storage, backends: Backends, hv1: Host
) -> None:
    backend = backends.add("nfs", nfs(storage.export()))
    normal_s = seconds_of(hv1.restart_agent)
    hang(backend, hv1, storage.stop_nfs)

    hung_s = seconds_of(hv1.restart_agent)

    # Twice leaves room for a busy machine; a start that waits for the mount would take a minute and more.
    assert hung_s < 2 * normal_s + 5, (hung_s, normal_s)
    backend.wait_for(hv1, "unreachable", "hung")


@pytest.mark.slow
def test_an_add_from_a_hanging_server_ends_and_leaves_nothing(
    lab: Lab, storage: Storage, backends: Backends, hv1: Host, local: Backend
) -> None:
    export = storage.export()
    lab.isolate("storage")

    refused_for_the_host(backends.attempt("nfs", nfs(export)), hv1)
    assert local.probe(hv1)["status"] == "healthy"


@pytest.mark.slow
def test_an_edit_of_a_hung_backend_is_refused_in_bounded_time(
    storage: Storage, backends: Backends, hv1: Host, bring_back: Away
) -> None:
    backend = backends.add("nfs", nfs(storage.export()))
    hang(backend, hv1, storage.stop_nfs)

    refused_for_the_host(backend.edit(config={"options": "noatime"}), hv1)
    assert backend.now()["generation"] == 1
    bring_back()
    backend.wait_for(hv1, "healthy")


def test_a_soft_mount_fails_instead_of_hanging_for_ever(
    storage: Storage, backends: Backends, hv1: Host, bring_back: Away
) -> None:
    backend = backends.add("nfs", nfs(storage.export(), options="soft,timeo=20,retrans=1"))
    storage.stop_nfs()

    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
    bring_back()

    backend.wait_for(hv1, "healthy")


@pytest.mark.slow
def test_removal_of_a_hung_backend_fails_no_write_of_its_neighbour_on_the_same_export(
    storage: Storage, backends: Backends, hv1: Host, bring_back: Away
) -> None:
    """Both are one file system to the kernel, so what is forced for one is forced for both."""
    export = storage.export()
    storage.courier.run(f"mkdir {export}/gold {export}/silver")
    gold, silver = (backends.add("nfs", nfs(export, subdir=name)) for name in ("gold", "silver"))

    with hv1.writing(f"{silver.mount_dir}/silver/disk") as errors:
        hang(gold, hv1, storage.stop_nfs)
        answer = gold.remove_and_tell()
        bring_back()
        silver.wait_for(hv1, "healthy")

    assert answer.status == 200, answer
    assert errors == []
    storage.courier.run(f"rm {export}/silver/disk {export}/gold/.stowage-backend.json")


@pytest.mark.slow
def test_a_dead_lun_hangs_nothing_else(lab: Lab, backends: Backends, hv1: Host, local: Backend, vms_iqn: str) -> None:
    """What waits for a disk can't be killed, so each further probe would add one."""
    backend = backends.add(KIND, iscsi(vms_iqn))
    lab.isolate("storage")
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "the LUN to be red", 60)

    seen, beside = {backend.cell(hv1)["observed_at"]}, {local.cell(hv1)["observed_at"]}

    def have_been_probed() -> bool:
        seen.add(backend.cell(hv1)["observed_at"])
        beside.add(local.cell(hv1)["observed_at"])
        return len(seen) >= 4 and len(beside) >= 4

    wait_until(have_been_probed, "three more probes of both", 60)
    assert local.cell(hv1)["status"] == "healthy"
    there = accounts.on(hv1)
    assert len(there["workers"]) <= 2
    assert len(there["tools"]) <= 1
    lab.heal()
    backend.wait_for(hv1, "healthy")
