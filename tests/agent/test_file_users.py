"""Who has a volume's file open, and their end."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent import file_users
from agent.job_io import JobFault
from tests.agent.loops import needs_loop
from tests.agent.mounting import needs_root, tmpfs
from tests.agent.volume_files import MIB, OTHER, extent, fault_of, holder, path_of, write_file
from tests.processes import runs

ROOT = Path(__file__).parents[2]


needs_setpriv = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="gives up a right of root by setpriv"
)


def users_of(of: dict[str, Any], file: list[int] | None = None, *, any_device: bool = False) -> list[tuple[int, bool]]:
    found = file_users.find_file_users({"extent": of, "file": file, "any_device": any_device})
    return [(pid, is_writer) for pid, _, is_writer in found["users"]]


def kill(of: dict[str, Any], file: list[int] | None = None, *, any_device: bool = False) -> dict[str, Any]:
    return file_users.kill_file_users({"extent": of, "file": file, "any_device": any_device})


def file_of(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_dev, found.st_ino]


def blind_to(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    """The kernel does not say what the process has open."""
    readlink = os.readlink

    def refuse(path: str) -> str:
        if path.startswith(f"/proc/{pid}/"):
            raise PermissionError(13, "Permission denied", path)
        return readlink(path)

    monkeypatch.setattr("os.readlink", refuse)


@pytest.mark.parametrize(("mode", "is_writer"), [("rb", False), ("r+b", True), ("ab", True)])
def test_find_users_names_who_has_it_open_and_whether_he_writes(mode: str, is_writer: bool, tmp_path: Path) -> None:
    of = extent(tmp_path)
    with holder(write_file(of), mode) as process:
        answer = file_users.find_file_users({"extent": of, "file": None, "any_device": False})
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
def test_find_users_where_the_storage_is_not_seen_any_more_goes_by_the_name_alone(tmp_path: Path) -> None:
    """It was unmounted here, or another one mounted over it, and the VM has mounts of its own."""
    of = extent(tmp_path / "mount")
    (tmp_path / "mount").mkdir()
    words = 'mount --make-rprivate / && exec 3<>"$1" && echo && read line'  # ends with its input
    with tmpfs(tmp_path / "mount"):
        write_file(of)
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", words, "sh", str(path_of(of))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
    try:
        assert users_of(of) == []
        assert users_of(of, any_device=True) == [(process.pid, True)]
        assert kill(of, any_device=True)["killed"] == 1
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


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


def test_find_users_by_another_name_finds_them_where_the_inode_is_known(tmp_path: Path) -> None:
    """As Firecracker's jailer, which links disks into the folder that it locks a machine into."""
    of = extent(tmp_path)
    path = write_file(of)
    os.link(path, tmp_path / "disk")
    with holder(tmp_path / "disk") as process:
        assert users_of(of, file_of(path)) == [(process.pid, True)]
        (tmp_path / "disk").unlink()
        assert users_of(of, file_of(path)) == [(process.pid, True)]
        assert users_of(extent(tmp_path, OTHER), file_of(write_file(extent(tmp_path, OTHER)))) == []
        assert kill(of, file_of(path)) == {"killed": 1, "users": [], "count": 0}


def test_find_users_takes_a_file_of_the_inode_that_the_storage_says_is_another_for_another(tmp_path: Path) -> None:
    """As in another subvolume of one btrfs."""
    device, inode = file_of(write_file(extent(tmp_path, OTHER)))
    with holder(path_of(extent(tmp_path, OTHER))):
        assert len(users_of(extent(tmp_path), [device, inode])) == 1
        assert users_of(extent(tmp_path), [device + 1, inode]) == []


@needs_root
def test_find_users_takes_a_file_of_the_inode_on_another_device_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not even looked at: its server may be dead."""
    of = extent(tmp_path / "mount", mount_root=str(tmp_path / "mount"))
    (tmp_path / "mount").mkdir()
    (tmp_path / "other").touch()
    inode = (tmp_path / "other").stat().st_ino

    looked_at: list[str] = []

    def look(_: object, path: str) -> bool:
        looked_at.append(path)
        return False

    monkeypatch.setattr(file_users, "_is", look)
    with tmpfs(tmp_path / "mount"), holder(tmp_path / "other"):
        device = (tmp_path / "mount").stat().st_dev
        assert users_of(of, [device, inode]) == []
    assert looked_at == []


@needs_root
def test_find_users_in_a_mount_that_is_gone_from_here_finds_them(tmp_path: Path) -> None:
    """In a namespace of their own, where it is mounted still, on a device that nothing here has."""
    root = tmp_path / "mount"
    root.mkdir()
    of = extent(root, mount_root=str(root))
    words = 'mount -t tmpfs tmpfs "$1" && mkdir "$1/volumes" && exec 3<>"$1/volumes/$2" && echo && read line'
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", words, "sh", str(root), str(of["name"])],
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


@needs_setpriv
def test_find_users_by_a_root_that_may_not_look_into_processes_is_a_fault_and_none(tmp_path: Path) -> None:
    of = extent(tmp_path)
    script = (
        "import json, sys; from agent import jobs;"
        "print(json.dumps(jobs.JOBS['find_file_users']({'extent': json.loads(sys.argv[1]), 'file': None, 'any_device': False})))"
    )
    asking = [sys.executable, "-c", script, json.dumps(of)]
    words = 'exec 3<>"$1" && exec setpriv --reuid=65534 --clear-groups sh -c "echo; read line"'
    holding = subprocess.Popen(
        ["sh", "-c", words, "sh", str(write_file(of))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holding.stdin is not None and holding.stdout is not None
    try:
        holding.stdout.readline()
        answers = [
            json.loads(subprocess.run(argv, check=True, timeout=30, capture_output=True, cwd=ROOT).stdout)
            for argv in (asking, ["setpriv", "--bounding-set=-sys_ptrace", *asking])
        ]
    finally:
        holding.stdin.close()
        holding.stdout.close()
        holding.wait(10)
    assert [pid for pid, *_ in answers[0]["users"]] == [holding.pid]
    assert (answers[1]["fault"], "CAP_SYS_PTRACE" in answers[1]["remedy"]) == ("permission_denied", True)


def test_find_users_where_a_process_cannot_be_looked_into_names_who_was_found_or_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    of = extent(tmp_path)
    path = write_file(of)
    with holder(write_file(extent(tmp_path, OTHER))) as hidden:
        blind_to(monkeypatch, hidden.pid)
        with holder(path) as process:
            assert users_of(of) == [(process.pid, True)]
            with pytest.raises(JobFault) as caught:
                file_users.refuse_users(of, path.stat())
            assert caught.value.code == "in_use"
            assert kill_fault(of) == "permission_denied"
            assert not runs(process.pid)
        fault = fault_of(file_users.find_file_users, {"extent": of, "file": None, "any_device": False})
        assert (fault.code, f"({hidden.pid})" in str(fault)) == ("permission_denied", True)
        with pytest.raises(JobFault) as caught:
            file_users.refuse_users(of, path.stat())
        assert caught.value.code == "permission_denied"


def kill_fault(of: dict[str, Any]) -> str:
    return fault_of(file_users.kill_file_users, {"extent": of, "file": None, "any_device": False}).code


def test_find_users_by_another_user_than_root_is_content_with_his_own_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with holder(write_file(extent(tmp_path, OTHER))) as hidden:
        blind_to(monkeypatch, hidden.pid)
        assert users_of(extent(tmp_path)) == []


def test_find_users_leaves_out_the_first_process_and_one_that_ends_at_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is gone the kernel may say that it may not be looked into."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    blind_to(monkeypatch, 1)
    ending = subprocess.Popen(["sleep", "60"])
    listdir = os.listdir

    def end(path: str) -> list[str]:
        if path == f"/proc/{ending.pid}/fd" and ending.returncode is None:
            ending.kill()
            ending.wait(10)
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr("os.listdir", end)
    assert users_of(extent(tmp_path)) == []
    assert ending.returncode is not None


def test_find_users_that_may_be_looked_into_a_moment_later_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = extent(tmp_path)
    listdir = os.listdir
    refused: list[str] = []

    def refuse_once(path: str) -> list[str]:
        if path == f"/proc/{process.pid}/fd" and not refused:
            refused.append(path)
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    with holder(write_file(of)) as process:
        monkeypatch.setattr("os.listdir", refuse_once)
        assert users_of(of) == [(process.pid, True)]
    assert refused


def test_find_users_where_others_processes_are_not_even_listed_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    listdir = os.listdir

    def without_first(path: str) -> list[str]:
        return [name for name in listdir(path) if (path, name) != ("/proc", "1")]

    monkeypatch.setattr("os.listdir", without_first)
    assert (
        fault_of(file_users.find_file_users, {"extent": extent(tmp_path), "file": None, "any_device": False}).code
        == "permission_denied"
    )


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
        answer = file_users.find_file_users({"extent": of, "file": None, "any_device": False})
        assert answer == {"users": [[0, device.removeprefix("/dev/"), False]], "count": 1}
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=10)


def test_find_users_of_many_names_some_and_counts_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_users, "MAX_NAMED", 1)
    of = extent(tmp_path)
    path = write_file(of)
    with holder(path), holder(path), holder(path):
        answer = file_users.find_file_users({"extent": of, "file": None, "any_device": False})
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

    def once_there(
        wanted: dict[str, Any], file: tuple[int, int] | None, *, any_device: bool
    ) -> tuple[list[file_users.User], list[int]]:
        asked.append(1)
        other = file_users.User(os.getppid(), "other", True)
        return ([other], []) if len(asked) == 1 else looks(wanted, file, any_device=any_device)

    sent: list[int] = []
    monkeypatch.setattr(file_users, "users_of", once_there)

    def send(handle: int, _: int) -> None:
        sent.append(handle)

    monkeypatch.setattr("signal.pidfd_send_signal", send)
    assert kill(of) == {"killed": 0, "users": [], "count": 0}
    assert sent == [] and len(asked) > 1
