"""The jobs on a real file system, and with two hosts racing for one folder."""

import errno
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from agent import jobs
from agent.volumes import VOLUMES_FOLDER
from tests.agent.mounting import fill, needs_root, tmpfs

OURS = {"backend_id": "b-1", "fleet_id": "f-1", "created_at": "2026-11-23T00:00:00+00:00"}
OTHER = {**OURS, "backend_id": "b-2"}


def args_for(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "dir": str(folder),
        "file_name": ".stowage-probe-h1",
        "marker": OURS,
        "on_missing": "refuse",
        "mount_root": "",
        **more,
    }


def test_write_probe_on_a_folder_measures_and_leaves_nothing(tmp_path: Path) -> None:
    answer = jobs.write_probe(args_for(tmp_path))
    assert answer["latency_ms"] > 0
    assert answer["total_bytes"] >= answer["used_bytes"] > 0
    assert os.listdir(tmp_path) == []


def test_write_probe_after_a_kill_removes_what_was_left(tmp_path: Path) -> None:
    (tmp_path / ".stowage-probe-h1").write_bytes(b"left by a kill")
    jobs.write_probe(args_for(tmp_path))
    assert os.listdir(tmp_path) == []


def test_write_probe_on_a_planted_link_does_not_follow_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / "place"
    place.mkdir()
    (place / ".stowage-probe-h1").symlink_to(victim)
    jobs.write_probe(args_for(place))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("rights", "error"),
    [(0x1F01FF, errno.EACCES), (0x1200A9, errno.EROFS), (0, errno.EACCES), (None, errno.EACCES)],
)
def test_write_probe_refused_by_a_share_that_is_read_only_says_so(
    rights: int | None, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rights: of a Samba share that is writable and of one that is not (lab, 2026-11-28); None: it is no share."""

    def refuse(path: str, flags: int, *more: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opens(path, flags, *more)

    def tell(_descriptor: int, request: int, answer: bytearray) -> None:
        if rights is None:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        assert (request, len(answer)) == (0x8040CF05, 64)
        answer[52:56] = rights.to_bytes(4, "little")

    opens = os.open
    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("fcntl.ioctl", tell)
    with pytest.raises(OSError, match="probe") as caught:
        jobs.write_probe(args_for(tmp_path))
    assert caught.value.errno == error


def test_write_probe_with_a_storage_that_lies_is_an_io_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_read_all", read_others)
    with pytest.raises(OSError, match="other bytes") as caught:
        jobs.write_probe(args_for(tmp_path))
    assert caught.value.errno == errno.EIO
    assert os.listdir(tmp_path) == []


def read_others(descriptor: int, limit: int) -> bytes:
    return b"other bytes"


@needs_root
def test_write_probe_on_a_full_file_system_is_no_space_and_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path, "size=64k"):
        fill(tmp_path / "filler")
        with pytest.raises(OSError) as caught:
            jobs.write_probe(args_for(tmp_path))
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["filler"]


@needs_root
def test_prove_on_a_read_only_file_system_is_read_only_and_clearing_it_succeeds(tmp_path: Path) -> None:
    with tmpfs(tmp_path, "ro"):
        with pytest.raises(OSError) as caught:
            jobs.prove(args_for(tmp_path, on_missing="make"))
        assert caught.value.errno == errno.EROFS
        assert (
            jobs.clear_place({**args_for(tmp_path), "file_names": [".stowage-probe-h1"], "rmdir": False})["entries"]
            == 0
        )


def test_prove_without_marker_and_refuse_writes_nothing(tmp_path: Path) -> None:
    assert jobs.prove(args_for(tmp_path)) == {"marker": "missing"}
    assert os.listdir(tmp_path) == []


def test_prove_with_make_makes_a_marker_that_the_next_one_takes_for_ours(tmp_path: Path) -> None:
    first = jobs.prove(args_for(tmp_path, on_missing="make"))
    second = jobs.prove(args_for(tmp_path))
    assert (first["marker"], first["made_marker"], second["marker"]) == ("ours", True, "ours")
    assert json.loads((tmp_path / jobs.MARKER_NAME).read_text()) == OURS
    assert os.listdir(tmp_path) == [jobs.MARKER_NAME]


@pytest.mark.parametrize("on_missing", ["refuse", "make", "ignore"])
def test_prove_with_the_marker_of_another_backend_writes_nothing(tmp_path: Path, on_missing: str) -> None:
    jobs.prove(args_for(tmp_path, on_missing="make", marker=OTHER))
    answer = jobs.prove(args_for(tmp_path, on_missing=on_missing))
    assert answer["marker"] == "other"
    assert answer["found"]["backend_id"] == "b-2"
    assert "latency_ms" not in answer


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"backend_id": "b-1"}', "x" * 10_000, "[" * 4096])
def test_prove_with_an_unreadable_marker_takes_it_for_anothers(tmp_path: Path, text: str) -> None:
    (tmp_path / jobs.MARKER_NAME).write_text(text)
    assert jobs.prove(args_for(tmp_path, on_missing="make"))["marker"] == "other"
    assert (tmp_path / jobs.MARKER_NAME).read_text() == text


def test_prove_with_a_fifo_as_marker_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / jobs.MARKER_NAME)
    assert jobs.prove(args_for(tmp_path, on_missing="make"))["marker"] == "other"


def test_prove_with_a_folder_or_a_socket_as_marker_takes_it_for_anothers(tmp_path: Path) -> None:
    for place, make in (("folder", os.mkdir), ("socket", _make_socket)):
        (tmp_path / place).mkdir()
        make(str(tmp_path / place / jobs.MARKER_NAME))
        assert jobs.prove(args_for(tmp_path / place, on_missing="make"))["marker"] == "other"


def _make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


@needs_root
def test_prove_in_a_mount_that_went_away_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    with tmpfs(root):
        assert jobs.prove(args_for(root, mount_root=str(root), on_missing="make"))["marker"] == "ours"
    assert jobs.prove(args_for(root, mount_root=str(root), on_missing="make")) == {"marker": "unmounted"}
    assert os.listdir(root) == []
    (root / ".stowage-probe-h1").touch()
    assert clear(root, mount_root=str(root))["marker"] == "unmounted"
    assert os.listdir(root) == [".stowage-probe-h1"]


@needs_root
def test_prove_in_a_subfolder_that_a_servers_link_leads_out_of_the_mount_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    (tmp_path / "local").mkdir()
    with tmpfs(root):
        (root / "vms").symlink_to(tmp_path / "local")
        (root / "inner").mkdir()
        with pytest.raises(PermissionError):
            jobs.prove(args_for(root / "vms", mount_root=str(root), on_missing="make"))
        assert jobs.prove(args_for(root / "inner", mount_root=str(root), on_missing="make"))["marker"] == "ours"
    assert os.listdir(tmp_path / "local") == []


def test_prove_on_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        jobs.prove(args_for(tmp_path / "file"))


@pytest.mark.parametrize("has_links", [True, False])
def test_create_marker_by_hosts_of_one_backend_that_race_is_ours_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", refuse_link)
    answers = race(tmp_path, [OURS] * 8)
    assert [answer["marker"] for answer in answers] == ["ours"] * 8
    assert sum(answer.get("made_marker", False) for answer in answers) == 1
    assert os.listdir(tmp_path) == [jobs.MARKER_NAME]


@pytest.mark.parametrize("has_links", [True, False])
def test_create_marker_by_two_backends_that_race_is_ours_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", refuse_link)
    answers = race(tmp_path, [OURS, OTHER])
    assert sorted(answer["marker"] for answer in answers) == ["other", "ours"]


def refuse_link(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no hard links here")


def race(folder: Path, contents: list[dict[str, str]]) -> list[dict[str, Any]]:
    barrier = threading.Barrier(len(contents))
    answers: list[dict[str, Any]] = []

    def run(number: int, content: dict[str, str]) -> None:
        barrier.wait()
        answers.append(jobs.create_marker(args_for(folder, marker=content, file_name=f".stowage-probe-h{number}")))

    threads = [threading.Thread(target=run, args=item) for item in enumerate(contents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return answers


def clear(folder: Path, **more: Any) -> dict[str, Any]:
    return jobs.clear_place({**args_for(folder), "file_names": [".stowage-probe-h1"], "rmdir": False, **more})


def test_clear_place_removes_ours_and_counts_what_stays(tmp_path: Path) -> None:
    jobs.prove(args_for(tmp_path, on_missing="make"))
    for name in ("a.qcow2", "b.qcow2", ".stowage-probe-h1", ".stowage-probe-h2"):
        (tmp_path / name).touch()
    assert clear(tmp_path, rmdir=True) == {"marker": "ours", "is_removed": False, "entries": 3}
    assert sorted(os.listdir(tmp_path)) == [".stowage-probe-h2", "a.qcow2", "b.qcow2"]


def test_clear_place_believes_the_list_and_not_what_the_kernel_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cifs may say for a second that a file is not there, which a killed worker has made meanwhile."""
    jobs.prove(args_for(tmp_path, on_missing="make"))
    (tmp_path / ".stowage-probe-h1").touch()
    unlink, asked = os.unlink, list[str]()

    def forgetful(path: str) -> None:
        asked.append(path)
        if asked.count(path) == 1 and path.endswith("-h1"):
            raise FileNotFoundError(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", forgetful)
    assert clear(tmp_path)["entries"] == 0
    assert os.listdir(tmp_path) == []


def test_clear_place_that_fails_midway_keeps_the_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.prove(args_for(tmp_path, on_missing="make"))
    (tmp_path / ".stowage-probe-h1").touch()

    def broken(path: str) -> None:
        raise OSError(errno.EAGAIN, "the connection is broken", path)

    monkeypatch.setattr(os, "unlink", broken)
    with pytest.raises(OSError, match="broken"):
        clear(tmp_path)
    assert jobs.MARKER_NAME in os.listdir(tmp_path)


def test_clear_place_of_an_empty_folder_that_we_made_removes_it_and_twice_is_the_same(tmp_path: Path) -> None:
    place = tmp_path / "vms"
    jobs.make_dir({"dir": str(place)})
    jobs.prove(args_for(place, on_missing="make"))
    assert clear(place, rmdir=True) == {"marker": "ours", "is_removed": True, "entries": 0}
    assert not place.exists()
    assert clear(place, rmdir=True) == {"marker": "missing", "is_removed": True, "entries": 0}


def test_clear_place_removes_the_folder_of_volumes_where_it_is_empty(tmp_path: Path) -> None:
    assert jobs.VOLUMES_FOLDER == VOLUMES_FOLDER
    place = tmp_path / "vms"
    jobs.make_dir({"dir": str(place)})
    jobs.prove(args_for(place, on_missing="make"))
    (place / VOLUMES_FOLDER).mkdir()
    assert clear(place, rmdir=True) == {"marker": "ours", "is_removed": True, "entries": 0}
    assert not place.exists()


@pytest.mark.parametrize("kind", ["full", "link", "file"])
def test_clear_place_keeps_what_bears_the_name_of_the_volumes_and_is_no_empty_folder(kind: str, tmp_path: Path) -> None:
    jobs.prove(args_for(tmp_path, on_missing="make"))
    path = tmp_path / VOLUMES_FOLDER
    if kind == "full":
        path.mkdir()
        (path / "a.qcow2").touch()
    elif kind == "link":
        (tmp_path / "empty").mkdir()
        path.symlink_to(tmp_path / "empty")
    else:
        path.touch()
    assert clear(tmp_path)["entries"] == (2 if kind == "link" else 1)
    assert path.exists() and (kind != "link" or (tmp_path / "empty").is_dir())


def test_clear_place_leaves_the_marker_of_another_backend(tmp_path: Path) -> None:
    jobs.prove(args_for(tmp_path, on_missing="make", marker=OTHER))
    (tmp_path / VOLUMES_FOLDER).mkdir()
    assert clear(tmp_path)["entries"] == 2
    assert (tmp_path / jobs.MARKER_NAME).exists() and (tmp_path / VOLUMES_FOLDER).exists()


def test_look_at_dir_resolves_links_and_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert jobs.look_at_dir({"dir": str(tmp_path / "link")}) == {
        "path": str(tmp_path / "real"),
        "exists": True,
        "is_mountpoint": False,
        "inside": "",
    }
    assert jobs.look_at_dir({"dir": str(tmp_path / "link/new")}) == {
        "path": str(tmp_path / "real/new"),
        "exists": False,
        "is_mountpoint": False,
        "inside": "",
    }


@pytest.mark.parametrize("below", ["a", "a/new", "a/b"])
def test_look_at_dir_below_a_marked_folder_names_it(tmp_path: Path, below: str) -> None:
    (tmp_path / "marked/a/b").mkdir(parents=True)
    (tmp_path / "marked" / jobs.MARKER_NAME).touch()
    assert jobs.look_at_dir({"dir": str(tmp_path / "marked" / below)})["inside"] == str(tmp_path / "marked")
    assert jobs.look_at_dir({"dir": str(tmp_path / "marked")})["inside"] == ""


def test_look_at_dir_without_parent_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        jobs.look_at_dir({"dir": str(tmp_path / "no/such")})


def test_look_at_dir_on_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(NotADirectoryError):
            jobs.look_at_dir({"dir": str(tmp_path / path)})


@needs_root
@pytest.mark.parametrize("name", ["plain", "with blank"])
def test_is_mountpoint_tells_a_mount_from_a_folder(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    assert jobs.is_mountpoint({"dir": str(place)}) == {"is_mountpoint": False}
    with tmpfs(place):
        assert jobs.is_mountpoint({"dir": str(place)}) == {"is_mountpoint": True}
        assert jobs.remove_dir_if_empty({"dir": str(place)}) == {"is_removed": False}


def test_make_dir_twice_is_made_once(tmp_path: Path) -> None:
    place = {"dir": str(tmp_path / "vms")}
    assert [jobs.make_dir(place), jobs.make_dir(place)] == [{"is_made": True}, {"is_made": False}]


def test_reflink_test_answers_and_leaves_nothing(tmp_path: Path) -> None:
    assert jobs.reflink_test(args_for(tmp_path))["can_reflink"] in (True, False)
    assert os.listdir(tmp_path) == []
