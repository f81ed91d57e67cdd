"""Who has a volume's file open, and their end."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from agent import file_users
from tests.agent.loops import needs_loop
from tests.agent.mounting import needs_root, tmpfs
from tests.agent.volume_files import MIB, OTHER, extent, holder, path_of, write_file
from tests.processes import runs


def users_of(of: dict[str, Any]) -> list[tuple[int, bool]]:
    return [(pid, is_writer) for pid, _, is_writer in file_users.find_file_users({"extent": of})["users"]]


def kill(of: dict[str, Any]) -> dict[str, Any]:
    return file_users.kill_file_users({"extent": of})


@pytest.mark.parametrize(("mode", "is_writer"), [("rb", False), ("r+b", True), ("ab", True)])
def test_find_users_names_who_has_it_open_and_whether_he_writes(mode: str, is_writer: bool, tmp_path: Path) -> None:
    of = extent(tmp_path)
    with holder(write_file(of), mode) as process:
        answer = file_users.find_file_users({"extent": of})
        assert answer == {"users": [[process.pid, answer["users"][0][1], is_writer]], "count": 1}
        assert answer["users"][0][1].startswith("python")
    assert users_of(of) == []


def test_find_users_leaves_out_this_process_and_those_of_other_files(tmp_path: Path) -> None:
    of = extent(tmp_path)
    with open(write_file(of), "r+b"), holder(write_file(extent(tmp_path, OTHER))):
        assert users_of(of) == []


def test_find_users_of_a_file_that_is_unlinked_finds_them(tmp_path: Path) -> None:
    of = extent(tmp_path)
    with holder(write_file(of)) as process:
        path_of(of).unlink()
        assert users_of(of) == [(process.pid, True)]


def test_find_users_through_a_link_to_the_folder_finds_them(tmp_path: Path) -> None:
    """A state folder that is a link: the kernel shows where a file really is."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    of = extent(tmp_path / "link")
    with holder(write_file(of)) as process:
        assert users_of(of) == [(process.pid, True)]
        rooted = {**of, "mount_root": str(tmp_path / "link/mount")}
        assert users_of(rooted) == [(process.pid, True)]


@needs_root
def test_find_users_takes_a_file_of_the_name_on_another_device_for_another(tmp_path: Path) -> None:
    of = extent(tmp_path / "mount", mount_root=str(tmp_path / "mount"))
    (tmp_path / "mount").mkdir()
    write_file(extent(tmp_path))
    with tmpfs(tmp_path / "mount"), holder(path_of(extent(tmp_path))):
        write_file(of)
        assert users_of(of) == []
        assert len(users_of(extent(tmp_path))) == 1


@needs_root
def test_find_users_in_another_mount_namespace_and_by_another_path_finds_them(tmp_path: Path) -> None:
    """As a VM's process that sees its disk alone, bound to a place of its own."""
    of = extent(tmp_path)
    path = write_file(of)
    (tmp_path / "disk").touch()
    words = (
        'mount --make-rprivate / && mount --bind "$1" "$2" && exec 3<>"$2" && echo && read line'  # ends with its input
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", words, "sh", str(path), str(tmp_path / "disk")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.readline()
        assert users_of(of) == [(process.pid, True)]
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


@needs_loop
def test_find_users_names_a_loop_device_on_the_file(tmp_path: Path) -> None:
    of = extent(tmp_path)
    path = write_file(of, bytes(MIB))
    made = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(path)],
        check=True,
        timeout=10,
        capture_output=True,
        text=True,
    )
    device = made.stdout.strip()
    try:
        answer = file_users.find_file_users({"extent": of})
        assert answer == {"users": [[0, device.removeprefix("/dev/"), False]], "count": 1}
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=10)


def test_find_users_of_many_names_some_and_counts_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_users, "MAX_NAMED", 1)
    of = extent(tmp_path)
    path = write_file(of)
    with holder(path), holder(path), holder(path):
        answer = file_users.find_file_users({"extent": of})
    assert (len(answer["users"]), answer["count"]) == (1, 3)


def test_find_users_of_a_file_that_never_was_finds_none(tmp_path: Path) -> None:
    assert users_of(extent(tmp_path / "no")) == []


def test_kill_users_ends_who_writes_and_leaves_who_reads(tmp_path: Path) -> None:
    of = extent(tmp_path)
    path = write_file(of)
    with holder(path, "rb") as reader:
        writers = [holder(path) for _ in range(2)]
        processes = [writer.__enter__() for writer in writers]
        assert kill(of) == {"killed": 2, "users": [], "count": 0}
        assert not any(runs(process.pid) for process in processes)
        assert [pid for pid, _ in users_of(of)] == [reader.pid]
        for writer in writers:
            writer.__exit__(None, None, None)


def test_kill_users_twice_is_once(tmp_path: Path) -> None:
    of = extent(tmp_path)
    with holder(write_file(of)):
        assert kill(of)["killed"] == 1
        assert kill(of) == {"killed": 0, "users": [], "count": 0}


def test_kill_users_that_do_not_die_says_who_and_waits_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = extent(tmp_path)

    def send(*_: object) -> None:
        pass

    monkeypatch.setattr("signal.pidfd_send_signal", send)
    monkeypatch.setattr(file_users, "_GONE_WITHIN_S", 0.1)
    with holder(write_file(of)) as process:
        started = time.monotonic()
        answer = kill(of)
        assert time.monotonic() - started < 3
        assert (answer["count"], answer["users"][0][0]) == (1, process.pid)


def test_kill_users_sends_nothing_to_a_number_that_is_another_process_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = extent(tmp_path)
    write_file(of)
    looks = file_users.users_of
    asked: list[int] = []

    def once_there(wanted: dict[str, Any]) -> list[file_users.User]:
        asked.append(1)
        return [file_users.User(os.getppid(), "other", True)] if len(asked) == 1 else looks(wanted)

    sent: list[int] = []
    monkeypatch.setattr(file_users, "users_of", once_there)

    def send(handle: int, _: int) -> None:
        sent.append(handle)

    monkeypatch.setattr("signal.pidfd_send_signal", send)
    assert kill(of) == {"killed": 0, "users": [], "count": 0}
    assert sent == [] and len(asked) > 1
