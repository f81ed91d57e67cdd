"""local_file on real file systems of a guest: what they tell, what they refuse, and what becomes of the folder."""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.lab.backends import Backends
from tests.lab.disks import MAKES, Disk
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.qemu import wait_until

MARKER = ".stowage-backend.json"
ROOT = "/var/tmp/vms"

MakeDisk = Callable[..., Disk]


@pytest.fixture
def disk(hv1: Host) -> Iterator[MakeDisk]:
    """Makes disks with a file system on hv1, which go after the test."""
    with ExitStack() as stack:

        def make(mkfs: str = MAKES["ext4"], *, mib: int = 64) -> Disk:
            made.append(stack.enter_context(Disk(hv1, f"disk{len(made)}", mkfs, mib=mib)))
            return made[-1]

        made: list[Disk] = []
        yield make


@pytest.fixture(autouse=True)
def clean(lab: Lab) -> Iterator[None]:
    """No folder of an earlier test; what a test leaves there is its own matter."""
    yield
    for host in lab.hosts:
        host.courier.run(f"rm -rf --one-file-system {ROOT} {ROOT}-*")


def local(root_dir: str = ROOT, **more: bool) -> dict[str, str | bool]:
    return {"root_dir": root_dir, **more}


def names_in(host: Host, folder: str) -> list[str]:
    return host.courier.run("ls -A", folder).out.split()


def wait_for_names(host: Host, folder: str, *names: str) -> None:
    """Between two probes of a backend that is in use: while one is under way its file is there."""
    wait_until(lambda: sorted(names_in(host, folder)) == sorted(names), f"{names} alone in {folder}", 30.0)


# File systems.


@pytest.mark.parametrize("kind", MAKES)
def test_a_file_system(backends: Backends, hv1: Host, disk: MakeDisk, kind: str) -> None:
    place = disk(MAKES[kind], mib=320 if kind == "xfs" else 128).where
    backend = backends.add("local_file", local(f"{place}/vms", require_mountpoint=False))
    hv1.courier.run(f"dd if=/dev/zero of={place}/vms/ballast bs=1M count=20 conv=fsync status=none; sync -f {place}")

    seen = backend.probe(hv1)

    assert seen["status"] == "healthy"
    shown = hv1.courier.run("stat -f -c '%b %f %a %S'", place).out.split()
    blocks, free, available, size = map(int, shown)
    assert seen["capacity"]["total_bytes"] == blocks * size
    # A journal or a tree may grow by a few blocks from one look to the next.
    assert abs(seen["capacity"]["available_bytes"] - available * size) <= 1 << 20
    assert abs(seen["capacity"]["used_bytes"] - (blocks - free) * size) <= 1 << 20
    assert seen["capacity"]["used_bytes"] >= 20 << 20
    wait_for_names(hv1, f"{place}/vms", MARKER, "ballast")


def test_a_disk_that_is_full_and_freed(backends: Backends, hv1: Host, disk: MakeDisk) -> None:
    place = disk(mib=16).where
    backend = backends.add("local_file", local(place))

    hv1.courier.run(f"dd if=/dev/zero of={place}/ballast bs=4k status=none || sync")

    cell = backend.wait_for(hv1, "unreachable", "no_space")
    assert "Free or add space" in cell["remedy"]
    assert backend.probe(hv1)["code"] == "no_space"
    wait_for_names(hv1, place, MARKER, "ballast", "lost+found")
    hv1.courier.run(f"rm {place}/ballast")
    backend.wait_for(hv1, "healthy")


def test_a_disk_that_is_full_already(backends: Backends, hv1: Host, disk: MakeDisk) -> None:
    place = disk(mib=16).where
    hv1.courier.run(f"dd if=/dev/zero of={place}/ballast bs=4k status=none || sync")

    backends.refused("no_space", "local_file", local(place))

    assert sorted(names_in(hv1, place)) == ["ballast", "lost+found"]


def test_a_disk_that_is_nearly_full_is_usable(backends: Backends, hv1: Host, disk: MakeDisk) -> None:
    place = disk(mib=64).where
    backend = backends.add("local_file", local(place))

    available, size = map(int, hv1.courier.run("stat -f -c '%a %S'", place).out.split())
    hv1.courier.run(f"fallocate -l {available * size - (1 << 20)} {place}/ballast")

    backend.wait_for(hv1, "degraded", "nearly_full")


def test_a_disk_that_turns_read_only_and_back(backends: Backends, hv1: Host, disk: MakeDisk) -> None:
    place = disk().where
    backend = backends.add("local_file", local(place))

    hv1.courier.run("mount -o remount,ro", place)

    cell = backend.wait_for(hv1, "unreachable", "read_only")
    assert "writable for this host" in cell["remedy"]
    hv1.courier.run("mount -o remount,rw", place)
    backend.wait_for(hv1, "healthy")


def test_a_disk_that_is_mounted_read_only(backends: Backends, hv1: Host, disk: MakeDisk) -> None:
    place = disk().where
    hv1.courier.run("mount -o remount,ro", place)

    backends.refused("read_only", "local_file", local(place))


@pytest.mark.parametrize("kind", MAKES)
def test_a_disk_that_fails_and_works_again(backends: Backends, hv1: Host, disk: MakeDisk, kind: str) -> None:
    device = disk(MAKES[kind], mib=320 if kind == "xfs" else 128)
    backend = backends.add("local_file", local(device.where))

    device.fail()

    # A file system that has met an error may let nothing be written any more from then on.
    seen = backend.probe(hv1)
    assert (seen["status"], seen["code"] in ("io_error", "read_only")) == ("unreachable", True), seen
    device.work()
    device.mount_again()
    backend.wait_for(hv1, "healthy")


def test_a_disk_that_fails_is_removed_all_the_same(backends: Backends, hv1: Host, disk: MakeDisk) -> None:
    device = disk()
    backend = backends.add("local_file", local(device.where))
    device.fail()
    hv1.courier.run("echo 3 >/proc/sys/vm/drop_caches")

    answer = backend.remove_and_tell()

    assert answer.status == 200, answer
    assert device.where in str(answer.body)
    device.work()
    device.mount_again()
    hv1.courier.run(f"rm -f {device.where}/.stowage-*")


# Mount points.


def test_a_mount_point_that_is_not_mounted(backends: Backends, hv1: Host) -> None:
    hv1.courier.run(f"mkdir {ROOT}")

    fault = backends.refused("not_a_mountpoint", "local_file", local(require_mountpoint=True))

    assert ROOT in fault["detail"]
    assert names_in(hv1, ROOT) == []


def test_a_mount_point_that_is_not_there_is_not_made(backends: Backends, hv1: Host) -> None:
    backends.refused("not_a_mountpoint", "local_file", local(require_mountpoint=True))

    assert hv1.courier.attempt(f"test -e {ROOT}").code == 1


@pytest.mark.parametrize("is_required", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_mount_point_that_is_unmounted_and_mounted_again(
    backends: Backends, hv1: Host, disk: MakeDisk, is_required: bool
) -> None:
    device = disk()
    backend = backends.add("local_file", local(device.where, require_mountpoint=is_required))

    device.unmount()

    backend.wait_for(hv1, "unreachable", "not_a_mountpoint" if is_required else "marker_missing")
    # Also the reconciler has had its turn, and what is beneath is nobody's to write into.
    seen = len(attempts(hv1, backend.id))
    wait_until(lambda: len(attempts(hv1, backend.id)) > seen or not is_required, "another attempt", 60.0)
    assert names_in(hv1, device.where) == []
    device.mount()
    backend.wait_for(hv1, "healthy")


def attempts(host: Host, backend_id: str) -> list[str]:
    """Lines of the agent's log that say that it could not attach the backend."""
    log = host.courier.run("grep -F 'not converged' /var/log/stowage-agent.log || true").out
    return [line for line in log.splitlines() if backend_id in line]


def test_a_mount_point_that_is_unmounted_is_removed_and_what_stays_is_told(
    backends: Backends, hv1: Host, disk: MakeDisk
) -> None:
    device = disk()
    backend = backends.add("local_file", local(device.where, require_mountpoint=True))
    device.unmount()

    answer = backend.remove_and_tell()

    assert answer.status == 200, answer
    assert "was not mounted" in str(answer.body)
    device.mount()
    assert sorted(names_in(hv1, device.where)) == [MARKER, "lost+found"]


def test_another_disk_in_its_place(backends: Backends, hv1: Host, disk: MakeDisk) -> None:
    device, stranger = disk(), disk()
    backend = backends.add("local_file", local(device.where, require_mountpoint=True))

    device.unmount()
    stranger.unmount()
    stranger.mount(device.where)

    backend.wait_for(hv1, "unreachable", "marker_missing")
    assert names_in(hv1, device.where) == ["lost+found"]
    hv1.courier.run("umount", device.where)
    device.mount()
    backend.wait_for(hv1, "healthy")


# Paths.


def test_a_path_that_is_no_folder(backends: Backends, hv1: Host) -> None:
    hv1.courier.run(f"echo precious >{ROOT}")

    backends.refused("not_a_directory", "local_file", local())

    assert hv1.courier.run(f"cat {ROOT}").out == "precious\n"


def test_a_path_below_no_folder(backends: Backends, hv1: Host) -> None:
    backends.refused("path_not_found", "local_file", local(f"{ROOT}-none/vms"))

    assert hv1.courier.attempt(f"test -e {ROOT}-none").code == 1


def test_a_symbolic_link_is_resolved_once(backends: Backends, hv1: Host) -> None:
    hv1.courier.run(f"mkdir {ROOT}-real {ROOT}-elsewhere; ln -s {ROOT}-real {ROOT}")
    backend = backends.add("local_file", local())

    hv1.courier.run(f"ln -sfn {ROOT}-elsewhere {ROOT}")

    assert backend.probe(hv1)["status"] == "healthy"
    wait_for_names(hv1, f"{ROOT}-real", MARKER)
    assert names_in(hv1, f"{ROOT}-elsewhere") == []
    assert backend.remove().status == 204
    assert names_in(hv1, f"{ROOT}-real") == []


@pytest.mark.parametrize(
    "path", ["/etc/vms", "/boot", "/usr/lib/vms", "/proc/self", "/var/lib/stowage-agent/vms", "/var/lib"]
)
def test_a_folder_of_the_system_or_of_our_own(backends: Backends, path: str) -> None:
    backends.refused("permission_denied", "local_file", local(path))


def test_a_link_to_a_folder_of_the_system(backends: Backends, hv1: Host) -> None:
    hv1.courier.run(f"ln -s /etc {ROOT}")

    backends.refused("permission_denied", "local_file", local())


def test_anothers_folder(backends: Backends, hv1: Host) -> None:
    first = backends.add("local_file", local())
    hv1.courier.run(f"mkdir -p {ROOT}/inner")

    for path in (ROOT, f"{ROOT}/inner"):
        answer = backends.attempt("local_file", local(path))
        assert answer.status in (409, 422), answer
        assert answer.status == 409 or answer.codes == ["marker_mismatch"]
    assert first.probe(hv1)["status"] == "healthy"


# Hosts.


def test_two_hosts_have_each_its_own_folder(backends: Backends, hv1: Host, hv2: Host) -> None:
    backend = backends.add("local_file", local(), on=(hv1, hv2))

    hv1.courier.run(f"echo mine >{ROOT}/disk")

    wait_for_names(hv2, ROOT, MARKER)
    assert [backend.probe(host)["status"] for host in (hv1, hv2)] == ["healthy", "healthy"]
    answer = backend.remove_and_tell()
    assert answer.status == 200, answer
    assert f"1 entry in {ROOT}" in str(answer.body)
    # Data stays; a folder that we made and that is empty goes.
    assert names_in(hv1, ROOT) == ["disk"]
    assert hv2.courier.attempt(f"test -e {ROOT}").code == 1


def test_removal_keeps_an_empty_folder_that_was_there_before(backends: Backends, hv1: Host) -> None:
    hv1.courier.run(f"mkdir {ROOT}")
    backend = backends.add("local_file", local())

    assert backend.remove().status == 204

    assert names_in(hv1, ROOT) == []


def test_a_host_that_is_no_longer_chosen_keeps_its_data(backends: Backends, hv1: Host, hv2: Host) -> None:
    backend = backends.add("local_file", local(), on=(hv1, hv2))
    hv1.courier.run(f"echo mine >{ROOT}/disk")

    assert backend.edit(hosts={"names": ["hv2"]}).status == 200

    assert hv1.courier.run(f"cat {ROOT}/disk").out == "mine\n"
    assert backend.probe(hv2)["status"] == "healthy"


@pytest.mark.slow
def test_a_power_cut(backends: Backends, hv2: Host) -> None:
    backend = backends.add("local_file", local(), on=(hv2,))
    hv2.courier.run(f"echo kept >{ROOT}/disk; sync")
    hv2.machine.cut_power()
    backend.wait_for(hv2, "unknown", "host_offline")

    began = dt.datetime.now(dt.UTC)
    hv2.machine.boot_again()

    backend.wait_for(hv2, "healthy", after=began)
    wait_for_names(hv2, ROOT, MARKER, "disk")


@pytest.mark.slow
def test_a_power_cut_with_the_disk_away_writes_nothing_beneath(backends: Backends, hv2: Host) -> None:
    with Disk(hv2, "disk", MAKES["ext4"]) as device:
        backend = backends.add("local_file", local(device.where, require_mountpoint=True), on=(hv2,))
        hv2.courier.run("sync")
        hv2.machine.cut_power()
        backend.wait_for(hv2, "unknown", "host_offline")

        hv2.machine.boot_again()

        backend.wait_for(hv2, "unreachable", "not_a_mountpoint")
        assert names_in(hv2, device.where) == []
        device.build()
        device.mount()
        backend.wait_for(hv2, "healthy")
        assert backend.remove().status == 204
