"""What goes wrong with volumes: storage that is full, read-only or gone, images that lie, and what is in use. Nothing is left of any of it."""

import pytest

from tests.lab.accounts import volumes_on_server
from tests.lab.backends import Backends
from tests.lab.client import Api
from tests.lab.conftest import Place
from tests.lab.host import Host
from tests.lab.iscsi import KIND, disk_of, iscsi, mapped, target_with_group
from tests.lab.nfs import nfs
from tests.lab.qemu import wait_until
from tests.lab.storage import Storage
from tests.lab.volumes import MIB, ImageFile, Volumes, digest, digest_of, stream, write

#: CI has no time for them; they are for `./scripts/lab test`.
pytestmark = pytest.mark.slow
_ALL = ("nfs", "smb", "thick", "thin")


# Space.


@pytest.mark.parametrize(("word", "mib"), [("ext4", 48), ("xfs", 320)])
def test_an_image_that_does_not_fit_leaves_nothing(
    volumes: Volumes, place: Place, hv1: Host, word: str, mib: int
) -> None:
    """Found out in the middle of the copy, for what is sparse takes no space before."""
    backend = place(word, mib=mib)
    folder = backend.added["config"]["root_dir"]
    with ImageFile(hv1, "big", seed=1, mib=24) as image:
        hv1.courier.run(f"fallocate -l $(($(stat -f -c '%a * %S' {folder}) - (16 << 20))) {folder}/ballast")
        before = _used(hv1, folder)

        problem = volumes.refused(422, "/images", image.body(backend, "big", hv1))

    assert [fault["code"] for fault in problem["faults"]] == ["no_space"]
    assert volumes.all("images") == []
    assert hv1.courier.run(f"ls -A {folder}/volumes").out == ""
    wait_until(lambda: _used(hv1, folder) <= before + MIB, "the space to be free again", 30.0)
    volumes.create(backend, "fits", mib=4)


def test_a_volume_group_that_is_full(volumes: Volumes, place: Place) -> None:
    backend = place("thick", mib=64)
    volumes.create(backend, "first", mib=32)

    problem = volumes.refused(422, "/volumes", {"name": "second", "backend": backend.name, "size_bytes": 32 * MIB})

    assert [fault["code"] for fault in problem["faults"]] == ["no_space"]
    assert [each["name"] for each in volumes.all()] == ["first"]
    problem = volumes.refused(422, "/volumes/first/resize", {"size_bytes": 64 * MIB})
    assert [fault["code"] for fault in problem["faults"]] == ["no_space"]
    assert volumes.get("first")["size_bytes"] == 32 * MIB
    volumes.wait_for_no_leftovers()


# Storage that is not what it was.


def test_an_export_that_turned_read_only(storage: Storage, volumes: Volumes, backends: Backends, hv1: Host) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export))
    volumes.create(backend, "disk", mib=4)
    storage.export(rights="ro,sync,no_subtree_check,no_root_squash,insecure", path=export)

    answer = volumes.ask("/volumes", {"name": "other", "backend": backend.name, "size_bytes": 4 * MIB})

    assert answer.status == 422, answer
    assert answer.codes == ["read_only"]
    assert [each["name"] for each in volumes.all()] == ["disk"]
    storage.export(path=export)
    backend.wait_for(hv1, "healthy")


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "comes back"])
def test_a_server_that_goes_in_the_middle_of_a_copy(
    storage: Storage, volumes: Volumes, backends: Backends, api: Api, hv1: Host, is_cancelled: bool
) -> None:
    export = storage.export()
    backend = backends.add("nfs", nfs(export))
    with ImageFile(hv1, "big", seed=1, mib=128) as image:
        operation = api.begin("/images", image.body(backend, "big", hv1))
        _wait_for_bytes(storage, export)
        storage.stop_nfs()
        assert api.get(operation)["state"] == "running"
        if is_cancelled:
            assert volumes.ask(f"{operation}/cancel").status in (200, 202)
        backend.wait_for(hv1, "unreachable", "hung")
        storage.start_nfs()
        wait_until(lambda: api.get(operation)["state"] not in ("running", "undoing"), "the end of the operation", 180.0)

    ended = api.get(operation)
    if is_cancelled:
        assert (ended["state"], volumes.all("images")) == ("cancelled", [])
    else:
        assert (ended["state"], ended["error"]) == ("succeeded", None)
        volumes.create(backend, "disk", source={"image": "big"})
        assert digest(hv1, volumes.attach("disk", hv1), 128) == image.sha256
    volumes.wait_for_no_leftovers()


# Images.


def test_an_image_that_is_not_what_was_said(volumes: Volumes, place: Place, hv1: Host) -> None:
    backend = place("nfs")
    chain = "qemu-img create -q -f raw {path}.base 4M && qemu-img create -q -f qcow2 -F raw -b {path}.base {path}; rm {path}.base"
    with ImageFile(hv1, "raw.img", seed=1, mib=1) as raw, ImageFile(hv1, "chain.qcow2", made_by=chain) as backed:
        plain = raw.body(backend, "lie", hv1)
        for body, code in (
            (plain | {"sha256": "0" * 64}, "wrong_digest"),
            (plain | {"source_format": "qcow2"}, "source_unreadable"),
            (backed.body(backend, "lie", hv1), "backing_file"),
            (plain | {"path": "/etc/shadow"}, "source_unreadable"),
            (plain | {"path": f"{raw.path}.none"}, "source_unreadable"),
        ):
            problem = volumes.refused(422, "/images", body)
            assert [fault["code"] for fault in problem["faults"]] == [code]
            assert problem["faults"][0]["remedy"]
    assert volumes.all("images") == []
    assert volumes.drift(backend)["strays"] == []


def test_a_qcow2_that_is_called_raw_is_copied_as_the_bytes_it_is(volumes: Volumes, place: Place, hv1: Host) -> None:
    """A raw disk may hold anything, also what looks like an image that names /etc/shadow: nobody ever asks it."""
    backend = place("local")
    chain = "qemu-img create -q -u -f qcow2 -F raw -b /etc/shadow {path} 4M; truncate -s 1M {path}"
    with ImageFile(hv1, "chain.qcow2", made_by=chain) as image:
        volumes.ask("/images", image.body(backend, "blob", hv1, source_format="raw"))
        volumes.create(backend, "disk", source={"image": "blob"})

        assert digest(hv1, volumes.attach("disk", hv1), 1) == image.sha256


# In use.


@pytest.mark.parametrize("word", _ALL)
def test_what_a_process_has_open_is_not_taken_from_it(volumes: Volumes, place: Place, hv1: Host, word: str) -> None:
    backend = place(word)
    volumes.create(backend, "disk", mib=4)
    path = volumes.attach("disk", hv1)

    with hv1.holding(path):
        problem = volumes.refused(409, "/volumes/disk/detach", {"host": "hv1"})
        assert problem["code"] == "volume_in_use"
        assert "Stop" in problem["faults"][0]["remedy"]
        assert [held["state"] for held in volumes.get("disk")["attachments"]] == ["attached"]
        problem = volumes.refused(409, "/volumes/disk", method="DELETE")
        assert "attached to hv1" in problem["detail"]
        assert [each["type"] for each in problem["blockers"]] == ["attachment"]
        assert (
            volumes.refused(409, "/volumes/disk/migrate", {"backend": place("local").name})["code"] == "volume_in_use"
        )
    write(hv1, path, 1, 4)
    assert volumes.detach("disk", hv1)


def test_a_volume_that_is_open_without_an_attachment_is_not_deleted(volumes: Volumes, place: Place, hv1: Host) -> None:
    """By hand, or by a VM that outlived its detach: its bytes are not taken from below it."""
    volumes.create(place("nfs"), "disk", mib=4)
    path = volumes.attach("disk", hv1)
    volumes.detach("disk", hv1)

    with hv1.holding(path):
        assert volumes.refused(409, "/volumes/disk", method="DELETE")["code"] == "volume_in_use"
        hv1.courier.run(f"test -f {path}")
    # What was refused is not done later behind anybody's back.
    assert volumes.get("disk")["state"] == "ready"
    volumes.delete("volumes/disk")
    hv1.courier.run(f"test ! -e {path}")


# Removal of a backend.


def test_a_backend_with_volumes_is_removed_after_they_have_moved(
    volumes: Volumes, place: Place, api: Api, hv1: Host
) -> None:
    backend, other = place("nfs"), place("local")
    with ImageFile(hv1, "golden", seed=1, mib=2) as file:
        volumes.create_image(backend, "golden", hv1, file)
    volumes.create(backend, "disk", source={"image": "golden"})
    volumes.snapshot("disk", "first")

    problem = volumes.refused(409, backend.path, method="DELETE")
    assert problem["detail"] == "backend has 3 live volume(s); delete or migrate them before removing the backend"
    assert sorted(each["name"] for each in problem["blockers"]) == ["disk", "first", "golden"]
    assert volumes.refused(409, f"{backend.path}/evacuate", {"to": other.name})["code"] == "wrong_state"

    assert backend.edit(state="draining").status == 200
    assert volumes.refused(409, "/volumes", {"name": "new", "backend": backend.name, "size_bytes": MIB})["detail"]
    plan = volumes.ask(f"{backend.path}/evacuate", {"to": other.name, "dry_run": True})
    assert (plan.status, plan.body["blockers"], plan.body["total_bytes"]) == (200, [], 6 * MIB), plan
    assert volumes.ask(f"{backend.path}/evacuate", {"to": other.name}).status == 200
    assert backend.remove().status == 204

    assert volumes.get("disk")["backend"] == other.name
    assert digest(hv1, volumes.attach("disk", hv1), 2) == digest_of(stream(1, 2))
    volumes.detach("disk", hv1)
    volumes.revert("disk", "first")
    assert digest(hv1, volumes.attach("disk", hv1), 2) == digest_of(stream(1, 2))


# Drift.


def test_files_that_differ_from_the_database_are_told_and_settled_on_command(
    storage: Storage, volumes: Volumes, place: Place, hv1: Host
) -> None:
    backend = place("nfs")
    gone = volumes.create(backend, "gone", mib=4)
    path = volumes.attach("gone", hv1)
    volumes.detach("gone", hv1)
    folder = path.rpartition("/")[0]
    stray, second = "5" * 32, "6" * 32
    hv1.courier.run(f"cd {folder}; rm {path}; truncate -s 4M {stray}.raw {second}.raw; echo hello >notes")

    # What the look after every test finds, too.
    names = sorted(line.rpartition("/")[2] for line in volumes_on_server(storage))
    assert names == [f"{stray}.raw", f"{second}.raw", "notes"]
    report = volumes.drift(backend)
    assert [each["id"] for each in report["missing"]] == [gone["id"]]
    assert [(each["locator"], each["size_bytes"]) for each in report["strays"]] == [(stray, 4 * MIB), (second, 4 * MIB)]
    assert [each["name"] for each in report["foreign"]] == ["notes"]
    problem = volumes.refused(422, "/volumes/gone/attach", {"host": "hv1"})
    assert [fault["code"] for fault in problem["faults"]] == ["volume_missing"]

    assert volumes.ask(f"{backend.path}/drift/adopt", {"locator": stray, "name": "found"}).status == 201
    assert volumes.ask(f"{backend.path}/drift/delete", {"locator": second}).status == 204
    write(hv1, volumes.attach("found", hv1), 1, 4)
    volumes.detach("found", hv1)
    volumes.delete("volumes/gone", "volumes/found")
    assert hv1.courier.run(f"ls -A {folder}; rm {folder}/notes").out == "notes\n"


def test_lvs_that_differ_from_the_database_are_told_and_settled_on_command(
    storage: Storage, volumes: Volumes, backends: Backends, hv1: Host
) -> None:
    iqn = target_with_group(storage)
    backend = backends.add(KIND, iscsi(iqn))
    gone = volumes.create(backend, "gone", mib=4)
    stray, scope = "5" * 32, f"--devices /dev/{disk_of(hv1, iqn)}"
    tags = hv1.courier.run(f"lvs {scope} --noheadings -o lv_tags vg_vms/sv_{gone['locator']}").out.strip().split(",")
    hv1.courier.run(
        f"lvremove -q -y {scope} vg_vms/sv_{gone['locator']} && lvcreate -q -an -Zn -Wn {scope} -L 4m -n theirs vg_vms &&"
        f" lvcreate -q -an -Zn -Wn {scope} {' '.join(f'--addtag {tag}' for tag in tags)} -L 4m -n sv_{stray} vg_vms"
    )

    # What the look after every test finds, too.
    assert [line.split()[-1] for line in volumes_on_server(storage)] == [f"sv_{stray}"]
    report = volumes.drift(backend)
    assert [each["id"] for each in report["missing"]] == [gone["id"]]
    assert [each["locator"] for each in report["strays"]] == [stray]
    assert [each["name"] for each in report["foreign"]] == ["theirs"]
    problem = volumes.refused(422, "/volumes/gone/attach", {"host": "hv1"})
    assert [fault["code"] for fault in problem["faults"]] == ["volume_missing"]

    assert volumes.ask(f"{backend.path}/drift/delete", {"locator": stray}).status == 204
    volumes.delete("volumes/gone")
    assert mapped(hv1) == ["vg_vms-stowage_probe"]


def _used(host: Host, folder: str) -> int:
    """Bytes of the file system."""
    blocks, free, size = map(int, host.courier.run("sync; stat -f -c '%b %f %S'", folder).out.split())
    return (blocks - free) * size


def _wait_for_bytes(storage: Storage, export: str) -> None:
    """Some bytes of a copy have come to the server, and more are to come."""
    used = f"du -s -B1M {export}/volumes 2>/dev/null | cut -f1"
    wait_until(lambda: int(storage.courier.run(used).out or 0) >= 8, "a copy to be in its middle", 120.0)
