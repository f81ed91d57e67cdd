"""nfs against a real server: versions, options, capacity, refusals, edits, and what the server does to a mount beneath it."""

import pytest

from tests.lab.backends import Backends
from tests.lab.host import Host
from tests.lab.nfs import SHOWN, mounted, nfs, options_of
from tests.lab.storage import ADDRESS, ADDRESS_6, Storage

# What is mounted.


@pytest.mark.parametrize("version", SHOWN)
def test_a_version_is_spoken_as_asked(storage: Storage, backends: Backends, hv1: Host, version: str) -> None:
    backend = backends.add("nfs", nfs(storage.export(), nfs_version=version))

    assert SHOWN[version] in options_of(hv1, backend.mount_dir)
    assert backend.probe(hv1)["status"] == "healthy"


def test_capacity_is_the_servers_own(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export(mib=64)
    backend = backends.add("nfs", nfs(export))
    storage.courier.run(f"dd if=/dev/zero of={export}/ballast bs=1M count=20 conv=fsync status=none")

    seen = backend.probe(hv1)["capacity"]

    shown = storage.courier.run("stat -f -c '%b %f %a %S'", export).out.split()
    blocks, free, available, size = map(int, shown)
    # The client counts in blocks of its own, of 64 KiB here.
    assert seen["total_bytes"] == pytest.approx(blocks * size, abs=1 << 16)
    assert seen["available_bytes"] == pytest.approx(available * size, abs=1 << 16)
    assert seen["used_bytes"] == pytest.approx((blocks - free) * size, abs=1 << 16)
    assert seen["used_bytes"] >= 20 << 20


def test_ipv6(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export(), ADDRESS_6))

    assert mounted(hv1, backend.mount_dir).startswith(f"[{ADDRESS_6}]:")


def test_a_server_by_its_name(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export(), "storage"))

    assert mounted(hv1, backend.mount_dir).startswith("storage:")


@pytest.mark.parametrize("name", ["with a blank", "grüße", "it's #1"])
def test_a_path_of_any_characters(storage: Storage, backends: Backends, hv1: Host, name: str) -> None:
    backend = backends.add("nfs", nfs(storage.export(path=f"/srv/nfs/{name}")))

    assert backend.probe(hv1)["status"] == "healthy"


def test_options_reach_the_kernel_and_ours_are_always_there(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export(), options="noatime,rsize=32768,nconnect=2"))

    shown = options_of(hv1, backend.mount_dir)
    assert {"noatime", "rsize=32768", "nconnect=2", "hard", "nosuid", "nodev", "noexec"} <= shown


def test_soft_is_the_operators_choice(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export(), options="soft,timeo=50"))

    shown = options_of(hv1, backend.mount_dir)
    assert "soft" in shown
    assert "hard" not in shown


def test_subdir_is_where_the_marker_is(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export()
    storage.courier.run(f"mkdir -p {export}/vms/gold")

    backends.add("nfs", nfs(export, subdir="vms/gold"))

    assert storage.courier.run(f"cd {export}; find . -name '.stowage*'").out.split() == [
        "./vms/gold/.stowage-backend.json"
    ]


# What is refused. `refused` also asserts that nothing is left of the add.


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_an_unknown_path(storage: Storage, backends: Backends, version: str) -> None:
    storage.export()

    fault = backends.refused("export_not_found", "nfs", nfs("/srv/nfs/nowhere", nfs_version=version))

    # Version 4 hides what is not exported; version 3 tells that it is not for us.
    said = "access denied by server" if version == "3" else "No such file or directory"
    assert said in fault["detail"]


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_an_export_to_others_alone(storage: Storage, backends: Backends, version: str) -> None:
    path = storage.folder("/srv/nfs/others")
    storage.courier.run(f"exportfs -o rw,no_subtree_check 10.99.0.0/24:{path}")
    try:
        fault = backends.refused("export_not_found", "nfs", nfs(path, nfs_version=version))
    finally:
        storage.courier.run(f"exportfs -u 10.99.0.0/24:{path}")

    assert "Export this path" in fault["remedy"]


def test_a_read_only_export(storage: Storage, backends: Backends) -> None:
    export = storage.export(rights="ro,no_subtree_check,no_root_squash,insecure")

    fault = backends.refused("read_only", "nfs", nfs(export))

    assert "writable" in fault["remedy"]


def test_an_export_that_squashes_root(storage: Storage, backends: Backends) -> None:
    export = storage.export(rights="rw,no_subtree_check,root_squash,insecure")
    storage.courier.run(f"chmod 755 {export}")

    fault = backends.refused("permission_denied", "nfs", nfs(export))

    assert "no_root_squash" in fault["remedy"]


def test_a_missing_subdir(storage: Storage, backends: Backends) -> None:
    fault = backends.refused("path_not_found", "nfs", nfs(storage.export(), subdir="vms"))

    assert "vms" in fault["detail"]


def test_a_subdir_that_is_a_file(storage: Storage, backends: Backends) -> None:
    export = storage.export()
    storage.courier.run(f"touch {export}/vms")

    backends.refused("not_a_directory", "nfs", nfs(export, subdir="vms"))


def test_a_subdir_that_a_link_leads_out_of_the_mount(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export()
    storage.courier.run(f"ln -s /var/tmp {export}/vms")

    backends.refused("permission_denied", "nfs", nfs(export, subdir="vms"))

    assert hv1.courier.run("find /var/tmp -name '.stowage*'").out == ""


@pytest.mark.parametrize("version", ["3", "4.0", "4.1", "4.2"])
def test_a_version_that_the_server_has_switched_off(storage: Storage, backends: Backends, version: str) -> None:
    export = storage.export()
    storage.set_nfs_version(version, is_on=False)

    backends.refused("version_rejected", "nfs", nfs(export, nfs_version=version))


def test_an_option_that_mount_refuses(storage: Storage, backends: Backends) -> None:
    backends.refused("option_rejected", "nfs", nfs(storage.export(), options="sec=nosuch"))


@pytest.mark.parametrize("version", [pytest.param("3", marks=pytest.mark.slow), "4.2"])
def test_a_dead_address(backends: Backends, version: str) -> None:
    fault = backends.refused("server_unreachable", "nfs", nfs("/srv/nfs/x", "10.77.0.99", nfs_version=version))

    assert "is up" in fault["remedy"]


def test_a_machine_that_serves_no_nfs(backends: Backends, hv1: Host) -> None:
    backends.refused("server_unreachable", "nfs", nfs("/srv/nfs/x", hv1.address, nfs_version="4.2"))


def test_a_machine_whose_portmapper_knows_no_nfs(backends: Backends, hv1: Host) -> None:
    fault = backends.refused("version_rejected", "nfs", nfs("/srv/nfs/x", hv1.address, nfs_version="3"))

    # mount.nfs says the same for a version that is switched off and for no server at all.
    assert "server runs" in fault["remedy"]


def test_a_name_that_does_not_resolve(backends: Backends) -> None:
    backends.refused("name_not_resolved", "nfs", nfs("/srv/nfs/x", "nosuch.example"))


def test_a_full_export(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export(mib=16)
    storage.courier.run(f"dd if=/dev/zero of={export}/ballast bs=64k status=none || true")

    backends.refused("no_space", "nfs", nfs(export))

    storage.courier.run(f"rm {export}/ballast")
    assert backends.add("nfs", nfs(export)).probe(hv1)["status"] == "healthy"


def test_another_backends_export(storage: Storage, backends: Backends) -> None:
    export = storage.export()
    first = backends.add("nfs", nfs(export))

    answer = backends.attempt("nfs", nfs(export))

    assert answer.codes == ["marker_mismatch"]
    assert first.id in answer.body["faults"][0]["detail"]


def test_a_host_without_the_mount_helper(storage: Storage, backends: Backends, hv1: Host) -> None:
    hv1.courier.run("mv /sbin/mount.nfs /sbin/mount.nfs.away")
    try:
        fault = backends.refused("tool_missing", "nfs", nfs(storage.export()))
    finally:
        hv1.courier.run("mv /sbin/mount.nfs.away /sbin/mount.nfs")

    assert "nfs-common" in fault["remedy"]


def test_version_3_without_statd(storage: Storage, backends: Backends, hv1: Host) -> None:
    hv1.courier.run("pkill rpc.statd; mv /usr/sbin/start-statd /usr/sbin/start-statd.away")
    try:
        fault = backends.refused("tool_missing", "nfs", nfs(storage.export(), nfs_version="3"))
    finally:
        hv1.courier.run("mv /usr/sbin/start-statd.away /usr/sbin/start-statd; rpc.statd --no-notify")

    assert "rpc-statd" in fault["remedy"]


# Asked beforehand.


def test_discovery_lists_the_exports(storage: Storage, backends: Backends, hv1: Host) -> None:
    exports = {storage.export(), storage.export(path="/srv/nfs/a b")}

    answer = backends.discover("nfs", hv1, {"server": ADDRESS})

    assert answer.status == 200
    assert exports <= {item["config"]["export"] for item in answer.body["items"]}


def test_discovery_at_a_server_of_version_4_alone(storage: Storage, backends: Backends, hv1: Host) -> None:
    storage.stop_mountd()

    answer = backends.discover("nfs", hv1, {"server": ADDRESS})

    assert answer.codes == ["kind_unsupported"]
    assert "type the export's path" in answer.body["faults"][0]["remedy"]


def test_discovery_at_a_dead_address(backends: Backends, hv1: Host) -> None:
    assert backends.discover("nfs", hv1, {"server": "10.77.0.99"}).codes == ["server_unreachable"]


def test_preflight_proves_and_keeps_nothing(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export()

    line = backends.preflight("nfs", nfs(export)).body["hosts"][0]

    assert line["status"] == "healthy"
    assert [check["name"] for check in line["checks"] if check["is_ok"]] == ["tool mount.nfs", "name", "port", "use"]
    assert storage.courier.run(f"ls -A {export}").out == ""
