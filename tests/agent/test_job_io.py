"""How a worker's jobs open what they were told to, and nothing else, and how they say how far they are."""

import errno
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from agent import job_io
from tests.agent.mounting import needs_root, tmpfs
from tests.agent.volume_files import MARKER, extent, path_of, write_file


def opens(of: dict[str, Any], flags: int = os.O_RDONLY) -> bytes:
    with job_io.opened(of, flags) as descriptor:
        return os.read(descriptor, 100)


def test_opened_file_is_the_one_in_the_folder(tmp_path: Path) -> None:
    of = extent(tmp_path)
    write_file(of, b"content")
    assert opens(of) == b"content"


def test_opened_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    of = extent(tmp_path)
    (tmp_path / "volumes").mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    path_of(of).symlink_to(tmp_path / "victim")
    with pytest.raises(job_io.JobFault, match="a symbolic link lies at") as caught:
        opens(of)
    assert caught.value.code == "foreign_data"


def test_opened_file_that_has_another_name_too_is_refused(tmp_path: Path) -> None:
    of = extent(tmp_path)
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "volumes").mkdir()
    os.link(tmp_path / "victim", path_of(of))
    with pytest.raises(job_io.JobFault, match="another name") as caught:
        opens(of)
    assert caught.value.code == "foreign_data"


def test_opened_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    of = extent(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / of["name"]).write_bytes(b"precious")
    (tmp_path / "volumes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        opens(of)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
def test_opened_file_that_is_no_regular_one_is_refused_at_once(kind: str, flags: int, tmp_path: Path) -> None:
    of = extent(tmp_path)
    (tmp_path / "volumes").mkdir()
    if kind == "pipe":
        os.mkfifo(path_of(of))
    elif kind == "folder":
        path_of(of).mkdir()
    else:
        # By a short way: the address of a socket has at most 107 bytes.
        folder = os.open(path_of(of).parent, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path_of(of).name}")
        os.close(folder)
    with pytest.raises(job_io.JobFault, match=f"a (named )?{kind} lies at {path_of(of)}") as caught:
        opens(of, flags)
    assert caught.value.code == "foreign_data"
    assert str(path_of(of)) in caught.value.answer()["remedy"]


def test_opened_name_that_is_the_folder_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    with pytest.raises(job_io.JobFault, match="a folder lies at"):
        opens({**extent(tmp_path), "name": "."})


@pytest.mark.parametrize("name", ["../victim", "", ".."])
def test_opened_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "victim").touch()
    with pytest.raises(OSError) as caught:
        opens({**extent(tmp_path), "name": name})
    assert caught.value.errno == errno.EINVAL


def test_opened_file_that_is_absent_is_volume_missing(tmp_path: Path) -> None:
    of = extent(tmp_path)
    with pytest.raises(job_io.JobFault) as caught:
        opens(of)
    assert caught.value.code == "volume_missing"
    assert str(path_of(of)) in str(caught.value)


@pytest.mark.parametrize("place", ["", "above", "above/sub"])
def test_opened_behind_a_link_is_refused_where_none_was_when_the_path_was_found(place: str, tmp_path: Path) -> None:
    (tmp_path / "above/sub").mkdir(parents=True)
    of = extent(tmp_path / place, is_resolved=True)
    write_file(of, b"content")
    assert opens(of) == b"content"
    if place:
        os.rename(tmp_path / place, tmp_path / "elsewhere")
        (tmp_path / place).symlink_to(tmp_path / "elsewhere")
        assert opens({**of, "is_resolved": False}) == b"content"
        with pytest.raises(job_io.JobFault, match="symbolic link") as caught:
            opens(of)
        assert (caught.value.code, str(tmp_path / place) in str(caught.value)) == ("foreign_data", True)


def test_opened_file_is_refused_where_it_is_another_than_was_seen(tmp_path: Path) -> None:
    of = extent(tmp_path)
    path = write_file(of, b"content")
    with job_io.opened(of, os.O_RDONLY) as descriptor:
        of["identity"] = job_io.identity_of(descriptor)
    assert opens(of) == b"content"
    shutil.copy2(path, tmp_path / "same")
    os.rename(tmp_path / "same", path)
    with pytest.raises(job_io.JobFault, match="changed or replaced") as caught:
        opens(of)
    assert (caught.value.code, str(path) in str(caught.value)) == ("source_unreadable", True)
    assert ("again" in caught.value.answer()["remedy"], caught.value.answer()["is_retryable"]) == (True, False)


@pytest.mark.parametrize("written", [b"CONTENT", b"longer content"])
def test_opened_file_that_was_changed_within_the_block_is_refused_behind_it(written: bytes, tmp_path: Path) -> None:
    of = extent(tmp_path)
    path = write_file(of, b"content")
    os.utime(path, ns=(0, 0))
    with job_io.opened(of, os.O_RDONLY) as descriptor:
        of["identity"] = job_io.identity_of(descriptor)
    with pytest.raises(job_io.JobFault) as caught, job_io.opened(of, os.O_RDONLY):
        path.write_bytes(written)
    assert caught.value.code == "source_unreadable"


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        (json.dumps(MARKER), "ours"),
        (json.dumps({**MARKER, "created_at": "2026-11-29T00:00:00+00:00"}), "ours"),
        (json.dumps({**MARKER, "backend_id": "another"}), "other"),
        (json.dumps({**MARKER, "fleet_id": "another"}), "other"),
        (json.dumps({"backend_id": MARKER["backend_id"]}), "other"),
        ("[" * 4000, "other"),
        ("\x00", "other"),
        ("", "other"),
        ("[]", "other"),
    ],
)
def test_marker_is_ours_where_it_says_both_of_our_ids(text: str, whose: str, tmp_path: Path) -> None:
    (tmp_path / "marker").write_text(text)
    assert marker_in(tmp_path) == whose


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_marker_that_is_no_file_is_another_s_and_none_is_missing(kind: str, tmp_path: Path) -> None:
    assert marker_in(tmp_path) == "missing"
    if kind == "link":
        (tmp_path / "ours").write_text(json.dumps(MARKER))
        (tmp_path / "marker").symlink_to("ours")
    elif kind == "pipe":
        os.mkfifo(tmp_path / "marker")
    else:
        (tmp_path / "marker").mkdir()
    assert marker_in(tmp_path) == "other"


def marker_in(folder: Path) -> str:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return str(job_io.marker_in(descriptor, "marker", MARKER)["marker"])
    finally:
        os.close(descriptor)


@needs_root
def test_opened_in_a_mount_that_went_away_is_not_a_mountpoint(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    of = extent(root, mount_root=str(root))
    with tmpfs(root):
        write_file(of, b"content")
        assert opens(of) == b"content"
    write_file(of, b"beneath")
    gone = extent(tmp_path / "gone/vms", mount_root=str(tmp_path / "gone"))
    for wanted in (of, extent(root / "vms", mount_root=str(root)), gone):
        with pytest.raises(job_io.JobFault) as caught:
            opens(wanted)
        assert caught.value.code == "not_a_mountpoint"


def test_opened_in_a_folder_that_is_gone_is_not_taken_for_a_missing_volume(tmp_path: Path) -> None:
    with pytest.raises(job_io.JobFault) as caught:
        opens(extent(tmp_path / "no"))
    assert caught.value.code == "path_not_found"


@needs_root
def test_opened_through_a_servers_link_that_leads_out_of_the_mount_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    beside = tmp_path / "beside"
    beside.mkdir()
    # Of another device than the mount point's own folder, so that only the way there tells.
    with tmpfs(root), tmpfs(beside):
        (root / "vms").symlink_to(beside)
        write_file(extent(beside), b"precious")
        with pytest.raises(PermissionError):
            opens(extent(root / "vms", mount_root=str(root)))
        (root / "inner").mkdir()
        (root / "link").symlink_to(root / "inner")
        write_file(extent(root / "inner"), b"content")
        assert opens(extent(root / "link", mount_root=str(root))) == b"content"


@needs_root
def test_opened_device_that_is_not_the_mapping_is_refused(tmp_path: Path) -> None:
    of = {**extent(tmp_path), "folder": "/dev", "name": "null", "dm_uuid": "LVM-x"}
    with pytest.raises(OSError) as caught:
        opens(of)
    assert (caught.value.errno, caught.value.filename) == (errno.ENXIO, "/dev/null")


def test_opened_leaves_no_descriptor_behind_a_failure(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for of in (extent(tmp_path), extent(tmp_path / "no"), {**extent(tmp_path), "name": ".."}):
        with pytest.raises((OSError, job_io.JobFault)):
            opens(of)
    assert len(os.listdir("/proc/self/fd")) == before


def test_progress_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    assert job_io.read_progress(path) == (0, 0)
    path.touch()
    assert job_io.read_progress(path) == (0, 0)
    progress = job_io.Progress(str(path))
    progress.report(1, 1 << 40)
    assert job_io.read_progress(path) == (1, 1 << 40)


def test_progress_is_written_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    progress = job_io.Progress(str(tmp_path / "progress"))
    seen: list[int] = []
    for done, at_s in ((1, 100.0), (2, 100.05), (3, 100.2), (10, 100.21)):
        now_s = at_s
        progress.report(done, 10)
        seen.append(job_io.read_progress(tmp_path / "progress")[0])
    assert seen == [1, 1, 3, 10]


def test_progress_without_a_path_is_told_to_nobody() -> None:
    job_io.Progress("").report(1, 2)


def test_job_with_faults_answers_a_fault_and_keeps_its_name() -> None:
    def job(args: dict[str, Any]) -> dict[str, Any]:
        raise job_io.JobFault("wrong_size", args["why"])

    wrapped = job_io.with_faults(job)
    assert wrapped.__name__ == "job"
    answer = wrapped({"why": "too small"})
    assert (answer["fault"], answer["detail"], answer["is_retryable"]) == ("wrong_size", "too small", False)
