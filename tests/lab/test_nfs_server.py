"""nfs on an export whose server changes beneath the mount, and removal."""

import pytest

from tests.lab.backends import Backends
from tests.lab.client import Api
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.nfs import mounted, nfs
from tests.lab.qemu import wait_until
from tests.lab.storage import ADDRESS, Storage

# The server beneath a mount.


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_an_export_that_is_withdrawn_and_comes_back(
    storage: Storage, backends: Backends, hv1: Host, version: str
) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export, nfs_version=version))

    storage.withdraw(export)
    wait_until(lambda: backend.cell(hv1)["status"] == "unreachable", "red", 60)
    storage.export(path=export)

    backend.wait_for(hv1, "healthy")


@pytest.mark.parametrize("version", [pytest.param("3", marks=pytest.mark.slow), "4.2"])
def test_a_server_that_restarts(storage: Storage, backends: Backends, hv1: Host, version: str) -> None:
    backend = backends.add("nfs", nfs(storage.export(), nfs_version=version))

    storage.stop_nfs()
    wait_until(lambda: backend.cell(hv1)["code"] in ("timed_out", "hung"), "red", 60)
    storage.start_nfs()

    backend.wait_for(hv1, "healthy")


def test_a_stale_handle_is_mounted_anew(storage: Storage, backends: Backends, hv1: Host, ran: Ran) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export))
    # Another folder of that name: the handle of the mount is of the one that went.
    storage.courier.run(f"cp -a {export} {export}.new; rm -rf {export}; mv {export}.new {export}; exportfs -f")

    wait_until(lambda: len([c for c in ran(hv1) if c.argv[0] == "mount" and c.code == 0]) > 1, "another mount", 60)
    backend.wait_for(hv1, "healthy")


def test_another_file_system_in_its_place_is_not_written_to(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export))
    storage.courier.run(f"mv {export} {export}.away; mkdir -m 777 {export}; exportfs -f")

    backend.wait_for(hv1, "unreachable", "marker_missing")
    assert storage.courier.run(f"ls -A {export}").out == ""

    storage.courier.run(f"rmdir {export}; mv {export}.away {export}; exportfs -f")
    backend.wait_for(hv1, "healthy")


def test_a_disk_that_fills_up_and_is_freed(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export(mib=16)
    backend = backends.add("nfs", nfs(export))

    storage.courier.run(f"dd if=/dev/zero of={export}/ballast bs=64k status=none || true")
    wait_until(lambda: backend.cell(hv1)["code"] == "no_space", "no_space", 60)
    storage.courier.run(f"rm {export}/ballast")

    backend.wait_for(hv1, "healthy")


def test_a_file_system_that_turns_read_only(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export(mib=16)
    backend = backends.add("nfs", nfs(export))

    storage.courier.run(f"mount -o remount,ro {export}")
    wait_until(lambda: backend.cell(hv1)["code"] == "read_only", "read_only", 60)
    storage.courier.run(f"mount -o remount,rw {export}")

    backend.wait_for(hv1, "healthy")


# Removal.


def test_removal_leaves_the_data_and_takes_the_marker(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export))
    hv1.courier.run(f"echo data >{backend.mount_dir}/disk.img")

    answer = backend.remove_and_tell()

    assert answer.status == 200
    assert answer.body["left"] == {"hv1": [f"1 entry in {ADDRESS}:{export}"]}
    assert storage.courier.run(f"ls -A {export}; cat {export}/disk.img").out.split() == ["disk.img", "data"]


def test_removal_while_a_disk_is_open_says_that_it_was_lazy(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export()))
    with hv1.holding(f"{backend.mount_dir}/disk.img"):
        answer = backend.remove_and_tell()

        assert answer.status == 200
        assert answer.body["unmounted_lazily"] == ["hv1"]
        assert mounted(hv1, backend.mount_dir) == ""


@pytest.mark.slow
def test_removal_while_a_host_is_off_reaches_it_when_it_returns(
    lab: Lab, storage: Storage, backends: Backends, hv1: Host, hv2: Host
) -> None:
    api: Api = lab.api
    backend = backends.add("nfs", nfs(storage.export()), on=(hv1, hv2))
    hv2.stop_agent()
    wait_until(lambda: not hv2.is_online(), "hv2 to be offline", 60)

    assert backend.remove().status == 204
    assert api("GET", backend.path).status == 404
    assert mounted(hv2, backend.mount_dir) != ""

    hv2.start_agent()
    wait_until(lambda: mounted(hv2, backend.mount_dir) == "", "hv2 to let go", 60)
