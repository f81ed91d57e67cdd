"""nfs: edits, markers, several hosts and backends, power cuts and killed agents."""

import datetime as dt

import pytest

from tests.lab.backends import PATIENCE_S, Backends
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.nfs import SHOWN, mounted, nfs, options_of
from tests.lab.qemu import wait_until
from tests.lab.storage import ADDRESS, Storage

# Edits.


def test_an_edit_of_the_version_remounts(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export(), nfs_version="4.2"))

    assert backend.edit(config={"nfs_version": "3"}).status == 200

    assert SHOWN["3"] in options_of(hv1, backend.mount_dir)
    assert hv1.courier.run("grep -c", backend.mount_dir, "/proc/mounts").out.strip() == "1"


def test_an_edit_of_the_servers_name_remounts(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export()))

    assert backend.edit(config={"server": "storage"}).status == 200

    assert mounted(hv1, backend.mount_dir).startswith("storage:")


@pytest.mark.slow
def test_an_edit_that_cannot_work_changes_nothing(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export()))
    before = mounted(hv1, backend.mount_dir)

    answer = backend.edit(config={"server": "10.77.0.99"})

    assert answer.codes == ["server_unreachable"]
    assert mounted(hv1, backend.mount_dir) == before
    assert backend.now()["generation"] == 1
    assert backend.probe(hv1)["status"] == "healthy"


def test_an_edit_while_a_disk_is_open_waits_for_it(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export(), nfs_version="4.2"))
    with hv1.holding(f"{backend.mount_dir}/disk.img"):
        assert backend.edit(config={"nfs_version": "4.1"}).status == 200
        # What runs is not cut off: the old mount serves on, and the host says what is in the way.
        assert backend.wait_for(hv1, "degraded", "in_use")["observed_generation"] == 1
        assert SHOWN["4.2"] in options_of(hv1, backend.mount_dir)

    backend.wait_for(hv1, "healthy")
    wait_until(lambda: SHOWN["4.1"] in options_of(hv1, backend.mount_dir), "the new version", 60)
    wait_until(lambda: backend.cell(hv1)["observed_generation"] == 2, "generation 2", 60)


def test_a_server_that_was_re_pointed_is_refused_by_its_marker(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host
) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export))
    with hv2.serving_nfs(export):
        answer = backend.edit(config={"server": hv2.address})

        assert answer.codes == ["marker_missing"]
        assert hv2.courier.run("ls -A", export).out == ""
    assert backend.probe(hv1)["status"] == "healthy"


@pytest.mark.slow
def test_a_name_that_leads_elsewhere_meanwhile_is_not_written_to(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host
) -> None:
    export = storage.export()
    hv1.courier.run(f"echo '{ADDRESS} nas' >>/etc/hosts")
    backend = backends.add("nfs", nfs(export, "nas"))
    with hv2.serving_nfs(export):
        hv1.courier.run(f"sed -i 's/.* nas$/{hv2.address} nas/' /etc/hosts; umount {backend.mount_dir}")

        backend.wait_for(hv1, "unreachable", "marker_missing")
        assert hv2.courier.run("ls -A", export).out == ""
        hv1.courier.run(f"sed -i 's/.* nas$/{ADDRESS} nas/' /etc/hosts")
        backend.wait_for(hv1, "healthy")
    hv1.courier.run("sed -i '/ nas$/d' /etc/hosts")


# Hosts.


def test_two_hosts_at_once(storage: Storage, backends: Backends, hv1: Host, hv2: Host) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export), on=(hv1, hv2))

    for host in (hv1, hv2):
        assert backend.probe(host)["status"] == "healthy"
    # Between two probes; while one is under way its file is there.
    listing = f"ls -A {export}"
    wait_until(lambda: storage.courier.run(listing).out.split() == [".stowage-backend.json"], "one marker alone", 30)


def test_a_host_that_leaves_lets_go_and_one_that_comes_mounts(
    storage: Storage, backends: Backends, hv1: Host, hv2: Host
) -> None:
    backend = backends.add("nfs", nfs(storage.export()), on=(hv1,))

    assert backend.edit(hosts={"names": ["hv2"]}).status == 200

    wait_until(lambda: mounted(hv2, backend.mount_dir) != "", "hv2 to mount", 60)
    wait_until(lambda: mounted(hv1, backend.mount_dir) == "", "hv1 to let go", 60)
    backend.wait_for(hv2, "healthy")


def test_two_backends_on_one_server(storage: Storage, backends: Backends, hv1: Host) -> None:
    first, second = (backends.add("nfs", nfs(storage.export())) for _ in range(2))

    assert first.remove().status == 204

    assert mounted(hv1, first.mount_dir) == ""
    assert second.probe(hv1)["status"] == "healthy"


def test_one_export_twice_with_different_subdirs(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export()
    storage.courier.run(f"mkdir {export}/gold {export}/silver")
    gold, silver = (backends.add("nfs", nfs(export, subdir=name)) for name in ("gold", "silver"))

    assert gold.remove().status == 204

    assert silver.probe(hv1)["status"] == "healthy"
    assert storage.courier.run(f"cd {export}; find . -name '.stowage*'").out.split() == [
        "./silver/.stowage-backend.json"
    ]


@pytest.mark.slow
def test_a_power_cut(storage: Storage, backends: Backends, hv2: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export()), on=(hv2,))
    hv2.machine.cut_power()
    backend.wait_for(hv2, "unknown", "host_offline")

    began = dt.datetime.now(dt.UTC)
    hv2.machine.boot_again()

    backend.wait_for(hv2, "healthy", after=began)
    assert mounted(hv2, backend.mount_dir) != ""


def test_an_agent_that_is_killed_finds_its_mount_again(
    storage: Storage, backends: Backends, hv1: Host, ran: Ran
) -> None:
    backend = backends.add("nfs", nfs(storage.export()))
    before, number = hv1.agent_pid(), len(ran(hv1))

    hv1.kill_agent()
    wait_until(lambda: hv1.agent_pid() not in (0, before), "another agent", 60)
    hv1.wait_online()

    wait_until(lambda: backend.probe(hv1)["status"] == "healthy", "a probe by the new agent", 60)
    assert [command for command in ran(hv1)[number:] if command.argv[0] in ("mount", "umount")] == []


def test_a_mount_that_somebody_undid_is_made_again(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export()))

    hv1.courier.run("umount", backend.mount_dir)

    # Red in between, but perhaps for less than a look takes.
    wait_until(lambda: mounted(hv1, backend.mount_dir) != "", "another mount", PATIENCE_S)
    backend.wait_for(hv1, "healthy", after=dt.datetime.now(dt.UTC))
