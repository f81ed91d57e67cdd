"""nfs against a real server: versions, options, capacity, refusals, edits, and what the server does to a mount beneath it."""

import datetime as dt

import pytest

from tests.lab.backends import Backends
from tests.lab.client import Api
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.nfs import SHOWN, mounted, nfs, options_of
from tests.lab.qemu import wait_until
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


@pytest.mark.parametrize("version", ["3", "4.2"])
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

    backend.wait_for(hv1, "unreachable", "not_a_mountpoint")
    backend.wait_for(hv1, "healthy")


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


@pytest.mark.parametrize("version", ["3", "4.2"])
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
