"""The files of volumes, made and unmade on a real file system."""

import errno
import json
import os
import resource
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import file_jobs
from agent.job_io import JobFault
from agent.jobs import JOBS, MARKER_NAME
from tests.agent.mounting import fill, needs_root, tmpfs
from tests.agent.volume_files import (
    MARKER,
    MIB,
    OTHER,
    backend_folder,
    content_of,
    extent,
    fault_of,
    holder,
    needs_qemu,
    needs_xfs,
    path_of,
    qcow2_of,
    qemu,
    write_file,
    xfs,
)

MARKED = {"marker_name": MARKER_NAME, "marker": MARKER}
both_formats = pytest.mark.parametrize("image_format", ["raw", pytest.param("qcow2", marks=needs_qemu)])


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    return backend_folder(tmp_path / "backend")


def make(of: dict[str, Any], origin: dict[str, Any] | None = None) -> dict[str, Any]:
    return file_jobs.make_volume_file({"extent": of, "origin": origin, **MARKED})


def fault_of_make(of: dict[str, Any], origin: dict[str, Any] | None = None) -> JobFault:
    return fault_of(file_jobs.make_volume_file, {"extent": of, "origin": origin, **MARKED})


def erasing(of: dict[str, Any]) -> dict[str, Any]:
    return {"extent": of, **MARKED}


def size_of(of: dict[str, Any]) -> int:
    return int(file_jobs.look_at_volume_file({"extent": of, "is_writable": False})["size_bytes"])


@contextmanager
def files_no_longer_than(size_bytes: int) -> Generator[None]:
    """Python ignores SIGXFSZ, so the call fails, as it does where a file system has a limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@both_formats
def test_make_file_is_empty_private_sparse_and_at_its_size(image_format: str, backend: Path, tmp_path: Path) -> None:
    of = extent(backend, size_bytes=64 * MIB, image_format=image_format)
    assert make(of) == {"is_filled": False}
    found = path_of(of).stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_blocks * 512 < MIB
    assert stat.S_IMODE(path_of(of).parent.stat().st_mode) == 0o711
    assert size_of(of) == 64 * MIB
    assert content_of(path_of(of), image_format, tmp_path) == bytes(64 * MIB)


def test_make_file_under_any_umask_lets_others_pass_the_folder(backend: Path) -> None:
    before = os.umask(0o077)
    try:
        make(extent(backend))
    finally:
        os.umask(before)
    assert stat.S_IMODE((backend / "volumes").stat().st_mode) == 0o711


@both_formats
def test_make_file_again_leaves_it_as_it_is(image_format: str, backend: Path, tmp_path: Path) -> None:
    of = extent(backend, image_format=image_format)
    make(of)
    if image_format == "raw":
        path_of(of).write_bytes(b"x" * MIB)
    else:
        qcow2_of(path_of(of), b"x" * MIB, tmp_path)
    assert make(of) == {"is_filled": False}
    assert content_of(path_of(of), image_format, tmp_path) == b"x" * MIB


@both_formats
def test_make_file_after_a_kill_amid_it_makes_it_whole(image_format: str, backend: Path) -> None:
    of = extent(backend, image_format=image_format)
    write_file(of, b"QFI\xfb cut off")
    assert make(of) == {"is_filled": False}
    assert size_of(of) == MIB


def test_make_file_again_while_it_is_in_use_leaves_it_as_it_is(backend: Path) -> None:
    of = extent(backend)
    make(of)
    with holder(path_of(of)):
        assert make(of) == {"is_filled": False}


def test_make_file_that_another_process_has_open_is_in_use_and_left(backend: Path) -> None:
    of = extent(backend, size_bytes=2 * MIB)
    path = write_file(of, b"content")
    with holder(path) as process:
        fault = fault_of_make(of)
    assert fault.code == "in_use"
    assert f"({process.pid})" in str(fault)
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("is_dangling", [True, False])
def test_make_file_at_a_planted_link_is_refused_and_touches_nothing(is_dangling: bool, backend: Path) -> None:
    of = extent(backend)
    victim = backend / "victim"
    if not is_dangling:
        victim.write_text("precious")
    (backend / "volumes").mkdir()
    path_of(of).symlink_to(victim)
    fault = fault_of_make(of)
    assert (fault.code, str(fault)) == ("foreign_data", f"a symbolic link lies at {path_of(of)}")
    assert str(path_of(of)) in fault.answer()["remedy"]
    assert victim.exists() is not is_dangling
    assert is_dangling or victim.read_text() == "precious"
    assert path_of(of).is_symlink()


def test_make_file_in_a_folder_that_is_a_planted_link_is_refused(backend: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (backend / "volumes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        make(extent(backend))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_file_where_the_marker_or_the_folder_is_gone_is_neither_made_nor_taken_for_absent(tmp_path: Path) -> None:
    """The disk is not mounted: what is made beneath it would be hidden later, and what is not found is not gone."""
    for place, code in ((tmp_path, "marker_missing"), (tmp_path / "no", "path_not_found")):
        assert fault_of_make(extent(place)).code == code
        assert fault_of(file_jobs.erase_volume_file, erasing(extent(place))).code == code
        assert fault_of(file_jobs.list_volume_files, listing_args(place)).code == code
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", [json.dumps({**MARKER, "backend_id": "0190-abcdef"}), "no marker\n"])
def test_file_where_the_marker_is_another_s_is_neither_made_nor_taken_for_absent(text: str, backend: Path) -> None:
    """Another backend's disk is mounted at the folder: what is not found there is on our own."""
    (backend / MARKER_NAME).write_text(text)
    (backend / "volumes").mkdir()
    faults = (
        fault_of_make(extent(backend)),
        fault_of(file_jobs.erase_volume_file, erasing(extent(backend))),
        fault_of(file_jobs.list_volume_files, listing_args(backend)),
    )
    for fault in faults:
        assert (fault.code, str(backend) in str(fault)) == ("marker_mismatch", True)
        assert ("0190-abcdef" in str(fault)) is ("0190-abcdef" in text)
    assert os.listdir(backend / "volumes") == []


#: Fixed, for it is in the names of tests.
_OTHERS = "ab" * 16


@pytest.mark.parametrize(
    "name", ["x.raw", f"{_OTHERS}.qcow2", f"{_OTHERS.upper()}.raw", f"{_OTHERS}.raw\n", "../a.raw"]
)
def test_make_file_of_another_name_is_a_bug_and_makes_nothing(name: str, backend: Path) -> None:
    with pytest.raises(ValueError, match="no name"):
        make({**extent(backend), "name": name})
    assert os.listdir(backend) == [MARKER_NAME]


@both_formats
def test_make_file_beyond_what_the_file_system_takes_leaves_nothing(image_format: str, backend: Path) -> None:
    with files_no_longer_than(0), pytest.raises((OSError, JobFault)) as caught:
        make(extent(backend, image_format=image_format))
    if image_format == "raw":
        assert isinstance(caught.value, JobFault)
        assert (caught.value.code, "less" in caught.value.answer()["remedy"]) == ("unsupported", True)
    assert os.listdir(backend / "volumes") == []


def test_resize_file_beyond_what_the_file_system_takes_asks_for_less(backend: Path) -> None:
    of = extent(backend)
    make(of)
    args = {"extent": of, "size_bytes": 4 * MIB, "may_shrink": False}
    with files_no_longer_than(2 * MIB):
        fault = fault_of(file_jobs.resize_volume_file, args)
    assert (fault.code, "less" in fault.answer()["remedy"]) == ("unsupported", True)
    assert size_of(of) == MIB


@needs_root
@needs_qemu
def test_make_file_on_a_full_file_system_is_no_space_and_leaves_nothing(backend: Path) -> None:
    with tmpfs(backend, "size=400k"):
        backend_folder(backend)
        (backend / "volumes").mkdir(mode=0o711)
        fill(backend / "filler")
        with pytest.raises(OSError) as caught:
            make(extent(backend, image_format="qcow2"))
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path_of(extent(backend, image_format="qcow2")))
        assert os.listdir(backend / "volumes") == []


@both_formats
def test_make_file_with_an_origin_on_storage_that_cannot_share_is_empty(
    image_format: str, backend: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = extent(backend, OTHER, image_format=image_format)
    make(origin)
    if image_format == "raw":
        path_of(origin).write_bytes(b"x" * MIB)
    monkeypatch.setattr("fcntl.ioctl", refuse_clone)
    of = extent(backend, size_bytes=2 * MIB, image_format=image_format)
    assert make(of, origin) == {"is_filled": False}
    assert size_of(of) == 2 * MIB
    assert content_of(path_of(of), image_format, tmp_path) == bytes(2 * MIB)


def refuse_clone(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@needs_xfs
@both_formats
def test_make_file_with_an_origin_on_storage_that_shares_has_its_content(image_format: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with xfs(place, tmp_path / "image"):
        backend_folder(place)
        origin = extent(place, OTHER, 8 * MIB, image_format)
        make(origin)
        if image_format == "raw":
            path_of(origin).write_bytes(b"x" * 8 * MIB)
        else:
            qcow2_of(path_of(origin), b"x" * 8 * MIB, tmp_path)
        of = extent(place, size_bytes=12 * MIB, image_format=image_format)
        # What an earlier try left is replaced, and a repeat is the same.
        write_file(of, b"left by a kill")
        for _ in range(2):
            assert make(of, origin) == {"is_filled": True}
            assert size_of(of) == 12 * MIB
            assert content_of(path_of(of), image_format, tmp_path) == b"x" * 8 * MIB + bytes(4 * MIB)
        # A change of the one is none of the other.
        os.truncate(path_of(origin), 0)
        assert content_of(path_of(of), image_format, tmp_path)[: 8 * MIB] == b"x" * 8 * MIB


@needs_xfs
def test_make_file_with_an_origin_that_is_larger_is_wrong_size_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with xfs(place, tmp_path / "image"):
        backend_folder(place)
        origin = extent(place, OTHER, 2 * MIB)
        make(origin)
        assert fault_of_make(extent(place), origin).code == "wrong_size"
        assert os.listdir(place / "volumes") == [origin["name"]]


def test_make_file_with_an_origin_that_is_gone_leaves_nothing(backend: Path) -> None:
    assert fault_of_make(extent(backend), extent(backend, OTHER)).code == "volume_missing"
    assert os.listdir(backend / "volumes") == []


@pytest.mark.parametrize("length", [MIB - 512, MIB + 512])
def test_make_file_with_an_origin_that_has_lost_its_size_is_wrong_size_and_leaves_nothing(
    length: int, backend: Path
) -> None:
    origin = extent(backend, OTHER)
    make(origin)
    os.truncate(path_of(origin), length)
    assert fault_of_make(extent(backend, size_bytes=2 * MIB), origin).code == "wrong_size"
    assert os.listdir(backend / "volumes") == [origin["name"]]


@needs_qemu
def test_look_at_a_qcow2_that_was_cut_short_is_wrong_size(backend: Path, tmp_path: Path) -> None:
    of = extent(backend, image_format="qcow2")
    make(of)
    qcow2_of(path_of(of), b"x" * MIB, tmp_path)
    assert size_of(of) == MIB
    os.truncate(path_of(of), path_of(of).stat().st_size // 2)
    fault = fault_of(file_jobs.look_at_volume_file, {"extent": of, "is_writable": False})
    assert (fault.code, "cut short" in str(fault)) == ("wrong_size", True)
    assert fault_of(file_jobs.settle_volume_file, {"extent": of}).code == "wrong_size"


@needs_qemu
@pytest.mark.parametrize("compat", ["1.1", "0.10"])
def test_look_at_a_qcow2_with_snapshots_of_its_own_refuses_it_as_a_source_alone(compat: str, backend: Path) -> None:
    """A VM that made them goes on with it; but no copy of it would have them."""
    of = extent(backend, image_format="qcow2")
    make(extent(backend, OTHER))
    qemu("create", "-f", "qcow2", "-o", f"compat={compat}", path_of(of), MIB)
    as_source = {"extent": of, "is_writable": False, "is_source": True}
    assert file_jobs.look_at_volume_file(as_source) == {"size_bytes": MIB}
    qemu("snapshot", "-c", "before", path_of(of))
    assert size_of(of) == MIB
    fault = fault_of(file_jobs.look_at_volume_file, as_source)
    assert (fault.code, "1 internal snapshot," in str(fault)) == ("unsupported", True)
    assert "qemu-img snapshot" in fault.answer()["remedy"]
    qemu("snapshot", "-d", "before", path_of(of))
    assert file_jobs.look_at_volume_file(as_source) == {"size_bytes": MIB}


def test_identify_file_is_its_inode_and_nothing_where_none_of_ours_is(backend: Path, tmp_path: Path) -> None:
    of = extent(backend)
    assert file_jobs.identify_volume_file({"extent": of}) == {"file": None}
    make(of)
    found = path_of(of).stat()
    os.link(path_of(of), tmp_path / "disk")
    assert file_jobs.identify_volume_file({"extent": of}) == {"file": [found.st_dev, found.st_ino]}
    path_of(of).unlink()
    assert file_jobs.identify_volume_file({"extent": of}) == {"file": None}
    path_of(of).symlink_to(tmp_path / "disk")
    assert file_jobs.identify_volume_file({"extent": of}) == {"file": None}


def test_identify_file_with_another_name_where_the_kernel_tells_no_inodes_is_refused(
    backend: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.14 nobody can tell who has it open by that name."""
    monkeypatch.setattr(file_jobs, "shows_inodes", lambda: False)
    of = extent(backend)
    make(of)
    assert file_jobs.identify_volume_file({"extent": of})["file"] is not None
    os.link(path_of(of), tmp_path / "disk")
    fault = fault_of(file_jobs.identify_volume_file, {"extent": of})
    assert (fault.code, "another name" in str(fault)) == ("foreign_data", True)


@both_formats
def test_file_that_is_also_known_by_another_name_is_refused(image_format: str, backend: Path, tmp_path: Path) -> None:
    of = extent(backend, image_format=image_format)
    make(of)
    os.link(path_of(of), tmp_path / "other")
    before = (tmp_path / "other").read_bytes()
    for job, args in (
        (file_jobs.look_at_volume_file, {"extent": of, "is_writable": False}),
        (file_jobs.resize_volume_file, {"extent": of, "size_bytes": 2 * MIB, "may_shrink": True}),
        (file_jobs.make_volume_file, {"extent": of, "origin": None, **MARKED}),
    ):
        fault = fault_of(job, args)
        assert fault.code == "foreign_data"
        assert "another name" in str(fault) and str(path_of(of)) in fault.answer()["remedy"]
    assert (tmp_path / "other").read_bytes() == before


@both_formats
def test_settle_file_says_its_size(image_format: str, backend: Path) -> None:
    of = extent(backend, image_format=image_format)
    make(of)
    assert file_jobs.settle_volume_file({"extent": of}) == {"size_bytes": MIB}


@needs_qemu
def test_settle_file_that_is_no_qcow2_or_refers_to_another_is_a_fault(backend: Path) -> None:
    of = extent(backend, image_format="qcow2")
    write_file(of, bytes(MIB))
    assert fault_of(file_jobs.settle_volume_file, {"extent": of}).code == "wrong_size"
    write_file(extent(backend, OTHER), bytes(MIB))
    qemu("create", "-f", "qcow2", "-b", path_of(extent(backend, OTHER)), "-F", "raw", path_of(of))
    assert fault_of(file_jobs.settle_volume_file, {"extent": of}).code == "backing_file"
    assert fault_of(file_jobs.look_at_volume_file, {"extent": of, "is_writable": False}).code == "backing_file"


@both_formats
def test_resize_file_grows_with_zeros_and_twice_is_once(image_format: str, backend: Path, tmp_path: Path) -> None:
    of = extent(backend, image_format=image_format)
    make(of)
    if image_format == "raw":
        path_of(of).write_bytes(b"x" * MIB)
    else:
        qcow2_of(path_of(of), b"x" * MIB, tmp_path)
    for _ in range(2):
        assert file_jobs.resize_volume_file({"extent": of, "size_bytes": 3 * MIB, "may_shrink": False}) == {}
    assert size_of(of) == 3 * MIB
    assert content_of(path_of(of), image_format, tmp_path) == b"x" * MIB + bytes(2 * MIB)


@both_formats
def test_resize_file_shrinks_only_where_it_may(image_format: str, backend: Path) -> None:
    of = extent(backend, image_format=image_format, size_bytes=3 * MIB)
    make(of)
    args = {"extent": of, "size_bytes": MIB, "may_shrink": False}
    fault = fault_of(file_jobs.resize_volume_file, args)
    assert (fault.code, "may_shrink" in fault.answer()["remedy"]) == ("unsupported", True)
    assert size_of(of) == 3 * MIB
    with holder(path_of(of), "rb"):
        assert fault_of(file_jobs.resize_volume_file, {**args, "may_shrink": True}).code == "in_use"
    assert file_jobs.resize_volume_file({**args, "may_shrink": True}) == {}
    assert size_of(of) == MIB


def test_resize_file_that_is_gone_is_volume_missing(backend: Path) -> None:
    args = {"extent": extent(backend), "size_bytes": MIB, "may_shrink": False}
    assert fault_of(file_jobs.resize_volume_file, args).code == "volume_missing"


def test_erase_file_removes_it_and_absent_is_success(backend: Path) -> None:
    of = extent(backend)
    assert file_jobs.erase_volume_file(erasing(of)) == {}
    make(of)
    make(extent(backend, OTHER))
    for _ in range(2):
        assert file_jobs.erase_volume_file(erasing(of)) == {}
    assert os.listdir(backend / "volumes") == [f"{OTHER}.raw"]


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_erase_file_that_another_process_has_open_is_in_use_and_left(mode: str, backend: Path) -> None:
    of = extent(backend)
    make(of)
    with holder(path_of(of), mode):
        fault = fault_of(file_jobs.erase_volume_file, erasing(of))
        assert (fault.code, "Stop the VM" in fault.answer()["remedy"]) == ("in_use", True)
        assert path_of(of).exists()
    assert file_jobs.erase_volume_file(erasing(of)) == {}
    assert not path_of(of).exists()


def test_erase_file_that_another_process_has_open_by_a_name_that_is_gone_is_in_use(
    backend: Path, tmp_path: Path
) -> None:
    of = extent(backend)
    make(of)
    os.link(path_of(of), tmp_path / "disk")
    with holder(tmp_path / "disk"):
        (tmp_path / "disk").unlink()
        assert fault_of(file_jobs.erase_volume_file, erasing(of)).code == "in_use"
        args = {"extent": of, "is_writable": False, "is_source": True}
        assert fault_of(file_jobs.look_at_volume_file, args).code == "in_use"
    assert path_of(of).exists()


def test_erase_file_that_is_a_link_or_in_a_linked_folder_touches_nothing(backend: Path, tmp_path: Path) -> None:
    of = extent(backend)
    (backend / "volumes").mkdir()
    (tmp_path / "victim").write_text("precious")
    path_of(of).symlink_to(tmp_path / "victim")
    assert fault_of(file_jobs.erase_volume_file, erasing(of)).code == "foreign_data"
    path_of(of).unlink()
    os.link(tmp_path / "victim", path_of(of))
    assert fault_of(file_jobs.erase_volume_file, erasing(of)).code == "foreign_data"
    path_of(of).unlink()
    (backend / "volumes").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / of["name"]).write_text("precious")
    (backend / "volumes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        file_jobs.erase_volume_file(erasing(of))
    assert (tmp_path / "victim").exists() and (tmp_path / "elsewhere" / of["name"]).exists()


def listing(backend: Path, after: str = "") -> dict[str, Any]:
    return file_jobs.list_volume_files(listing_args(backend, after))


def listing_args(backend: Path, after: str = "") -> dict[str, Any]:
    return {"folder": str(backend / "volumes"), "mount_root": "", **MARKED, "after": after}


@needs_qemu
def test_list_files_shows_ours_as_a_vm_sees_them_and_others_as_they_are(backend: Path) -> None:
    assert listing(backend) == {"items": [], "is_whole": True}
    raw, qcow2 = extent(backend, size_bytes=2 * MIB), extent(backend, OTHER, 5 * MIB, "qcow2")
    make(raw)
    make(qcow2)
    (backend / "volumes/foreign.qcow2").write_bytes(b"x" * 5000)
    (backend / "volumes/link.raw").symlink_to("/etc/hostname")
    cut = extent(backend, "e" * 32, image_format="qcow2")
    write_file(cut, b"QFI")
    listed = listing(backend)["items"]
    items = {name: (size, allocated) for name, size, allocated, _ in listed}
    assert list(items) == sorted([raw["name"], qcow2["name"], cut["name"], "foreign.qcow2", "link.raw"])
    assert {name for name, _, _, is_ours in listed if is_ours} == {raw["name"], qcow2["name"], cut["name"]}
    assert items[raw["name"]] == (2 * MIB, 0)
    assert items[qcow2["name"]][0] == 5 * MIB and 0 < items[qcow2["name"]][1] < MIB
    assert items["foreign.qcow2"][0] == 5000
    assert items[cut["name"]][0] == 3


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_list_files_shows_what_we_never_make_as_foreign_though_it_bears_a_name_of_ours(
    image_format: str, backend: Path, tmp_path: Path
) -> None:
    folder = backend / "volumes"
    folder.mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    paths = [folder / f"{number:032x}.{image_format}" for number in range(4)]
    paths[0].symlink_to(tmp_path / "victim")
    os.mkfifo(paths[1])
    paths[2].mkdir()
    os.link(tmp_path / "victim", paths[3])
    assert [(name, is_ours) for name, _, _, is_ours in listing(backend)["items"]] == [
        (path.name, False) for path in paths
    ]


def test_list_files_that_are_many_comes_in_pages(backend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_jobs, "_MAX_PAGE_BYTES", 200)
    names = [f"{number:032x}.raw" for number in range(10)]
    (backend / "volumes").mkdir()
    for name in [*names, "b\udcff", "a"]:
        (backend / "volumes" / name).touch()
    seen: list[str] = []
    pages = 0
    while True:
        page = listing(backend, seen[-1] if seen else "")
        seen += [name for name, *_ in page["items"]]
        pages += 1
        if page["is_whole"]:
            break
    assert seen == [*names, "a", "b\udcff"]
    assert pages >= 3


def test_list_files_of_which_too_many_are_foreign_keeps_ours(backend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_jobs, "_MAX_FOREIGN", 2)
    (backend / "volumes").mkdir()
    for name in ("a", "b", "c", f"{OTHER}.raw"):
        (backend / "volumes" / name).touch()
    assert [name for name, *_ in listing(backend)["items"]] == ["a", "b", f"{OTHER}.raw"]


def test_jobs_on_files_are_among_the_workers_jobs() -> None:
    assert all(JOBS[job.__name__] is job for job in file_jobs.FILE_JOBS)
