"""`stowage up` and `stowage down` as a person runs them: the real command, the real servers, manager and agents."""

import json
import os
import select
import shlex
import signal
import socket
import stat
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from manager.embedded import children
from manager.embedded.lock import holder
from tests.agent.mounting import needs_root, tmpfs
from tests.embedded.conftest import NOBODY, as_root
from tests.embedded.stack import START_TIMEOUT_S, Stack
from tests.processes import runs

pytestmark = pytest.mark.slow


def _all_pids(ready: dict[str, Any]) -> list[int]:
    pids = ready["pids"]
    return [pids["postgres"], pids["nats"], *pids["managers"], *pids["agents"].values()]


def _all_end(pids: list[int], timeout_s: float) -> bool:
    """Whether every one of the processes ends in time."""
    return children.wait_until(lambda: not any(runs(pid) for pid in pids), timeout_s=timeout_s)


def _wait_for_local(stack: Stack, url: str) -> None:
    """That manager shows the first backend as the default; of several, one hears of it from the database, a moment later."""

    def is_there() -> bool:
        found = stack.get("/v1/storage_backends", url)["items"]
        shown = [(b["name"], b["kind"], b["is_default"], b["state"]) for b in found]
        return shown == [("local", "local_file", True, "ready")]

    assert children.wait_until(is_there, timeout_s=10)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_up_on_an_empty_folder_makes_everything_ready(stack: Stack) -> None:
    ready = stack.up("--agents", "2", "--managers", "2")
    assert stat.S_IMODE((stack.data / "ready.json").stat().st_mode) == 0o600
    pids = ready["pids"]
    assert pids["manager"] == pids["managers"][0]
    assert len(pids["managers"]) == len(ready["urls"]) == len(pids["agents"]) == 2
    assert {_parent(pid) for pid in _all_pids(ready)} == {pids["supervisor"]}
    for url in ready["urls"]:
        hosts = stack.get("/v1/hosts", url)["items"]
        assert {host["name"]: host["state"] for host in hosts} == dict.fromkeys(pids["agents"], "online")
        _wait_for_local(stack, url)
    password = (stack.data / "postgres.password").read_text().strip()
    token = Path(ready["token_file"]).read_text().strip()
    for log in (stack.data / "log").iterdir():
        assert password not in log.read_text()
        assert token not in log.read_text()
    for pid in _all_pids(ready):
        argv = Path(f"/proc/{pid}/cmdline").read_text()
        assert password not in argv
        assert token not in argv
    for pid in pids["agents"].values():
        assert f"\0--images\0{stack.data / 'images'}\0" in Path(f"/proc/{pid}/cmdline").read_text()


def test_up_on_a_running_folder_is_refused_with_the_pid(stack: Stack) -> None:
    ready = stack.up()
    for extra in ((), ("--detach",)):
        second = stack.command("up", "--listen", "127.0.0.1:0", *extra)
        assert second.returncode == 1
        assert f"process {ready['pids']['supervisor']}" in second.stderr
        assert "Traceback" not in second.stderr
    assert stack.ready() == ready
    assert stack.get("/v1/hosts")["items"]


def test_up_killed_leaves_nothing_and_the_next_finds_its_data(stack: Stack) -> None:
    before = stack.up()
    hosts = stack.get("/v1/hosts")["items"]
    backends = stack.get("/v1/storage_backends")["items"]
    pids = _all_pids(before)
    os.kill(before["pids"]["supervisor"], signal.SIGKILL)
    assert _all_end(pids, 5)
    (stack.data / "ready.json").unlink()  # else the old one would be taken for the new
    after = stack.up()
    assert after["nats_url"] == before["nats_url"]
    assert [host["id"] for host in stack.get("/v1/hosts")["items"]] == [host["id"] for host in hosts]
    assert [b["id"] for b in stack.get("/v1/storage_backends")["items"]] == [b["id"] for b in backends]


def test_up_after_everything_was_killed_at_once_starts_again(stack: Stack) -> None:
    before = stack.up()
    for pid in [before["pids"]["supervisor"], *_all_pids(before)]:
        os.kill(pid, signal.SIGKILL)
    assert _all_end(_all_pids(before), 5)
    (stack.data / "ready.json").unlink()
    stack.up()
    assert [b["name"] for b in stack.get("/v1/storage_backends")["items"]] == ["local"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_asked_to_end_ends_everything_within_5_s(number: signal.Signals, stack: Stack) -> None:
    process = stack.foreground()
    path = stack.data / "ready.json"
    assert children.wait_until(path.exists, timeout_s=START_TIMEOUT_S)
    ready = stack.ready()
    began = time.monotonic()
    os.killpg(process.pid, number)  # as a terminal does
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert time.monotonic() - began < 5
    assert _all_end(_all_pids(ready), 0)
    assert not path.exists()
    assert holder(stack.data) is None


def test_up_asked_to_end_while_it_starts_ends(stack: Stack) -> None:
    process = stack.foreground()
    assert children.wait_until((stack.data / "log" / "postgres.log").exists, timeout_s=30)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=10)[0]
    assert process.returncode == 0
    assert "Traceback" not in output
    stack.up()


@pytest.mark.parametrize("what", ["manager", "nats", "postgres"])
def test_up_whose_child_is_killed_starts_it_again(what: str, stack: Stack) -> None:
    ready = stack.up()
    pid = ready["pids"][what]
    os.kill(pid, signal.SIGKILL)
    assert children.wait_until(lambda: pid not in _all_pids(stack.ready()), timeout_s=20)

    def is_well() -> bool:
        try:
            with urllib.request.urlopen(ready["url"] + "/readyz", timeout=10):
                return {host["state"] for host in stack.get("/v1/hosts")["items"]} == {"online"}
        except OSError:
            return False

    assert children.wait_until(is_well, timeout_s=40)


def test_up_on_a_taken_port_names_it_and_leaves_nothing(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = stack.command("up", "--listen", address)
    assert done.returncode == 1
    assert f"{address} is taken" in done.stderr
    assert holder(stack.data) is None


@pytest.mark.parametrize("host", ["256.0.0.1", "192.0.2.1"])
@pytest.mark.parametrize("port", [0, 8099])
def test_up_on_an_address_of_no_machine_or_another_says_so_without_a_trace(host: str, port: int, stack: Stack) -> None:
    done = stack.command("up", "--listen", f"{host}:{port}")
    assert done.returncode == 1
    assert f"cannot listen on {host}" in done.stderr
    assert "Traceback" not in done.stderr
    assert holder(stack.data) is None


def test_up_with_a_revoked_agent_starts_without_it_and_says_so(stack: Stack) -> None:
    ready = stack.up("--agents", "2")
    name = list(ready["pids"]["agents"])[1]
    stack.revoke(name)
    assert stack.command("down").returncode == 0
    done = stack.command("up", "--detach", "--listen", "127.0.0.1:0", "--agents", "2")
    assert done.returncode == 0, done.stderr
    note = next(line for line in done.stdout.splitlines() if f"agent {name} is revoked and stays down" in line)
    assert name not in stack.ready()["pids"]["agents"]
    # What the note says can be done, loses nothing, and lets the agent join anew.
    inside = stack.data / "agents" / name / "mounts" / "disk"
    inside.write_text("a disk")
    assert stack.command("down").returncode == 0
    command = shlex.split(note.partition("join anew, ")[2])
    assert command[0] == "mv"
    subprocess.run(command, check=True)
    assert (Path(command[2]) / "mounts" / "disk").read_text() == "a disk"
    done = stack.command("up", "--detach", "--listen", "127.0.0.1:0", "--agents", "2")
    assert done.returncode == 0, done.stderr
    assert name in stack.ready()["pids"]["agents"]


@needs_root
def test_up_on_a_disk_smaller_than_the_stream_may_become_stores_events_and_starts_again(stack: Stack) -> None:
    stack.data.mkdir()
    with tmpfs(stack.data, "size=600m,mode=711"):
        try:
            stack.up()
            assert children.wait_until(lambda: any((stack.data / "nats").rglob("STOWAGE_EVENTS")), timeout_s=20)
            assert stack.command("down").returncode == 0
            stack.up()
        finally:
            stack.end()


def test_up_whose_admin_token_counts_no_more_names_the_file_and_the_way_out(stack: Stack) -> None:
    file = Path(stack.up()["token_file"])
    first = stack.get("/v1/tokens")["items"][0]["id"]
    body = json.dumps({"name": "second", "role": "admin"}).encode()
    second = stack.call("POST", "/v1/tokens", body)["token"]
    stack.call("DELETE", f"/v1/tokens/{first}")
    assert stack.command("down").returncode == 0
    done = stack.command("up", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"the token in {file} counts no more; write a valid token of the role admin" in done.stderr
    for written in (second + "\n" + second, "", "\u201c" + second):
        file.write_text(written)
        done = stack.command("up", "--listen", "127.0.0.1:0")
        assert (done.returncode, second in done.stderr) == (1, False)
        assert f"{file} does not hold one token" in done.stderr or f"{file} holds no token" in done.stderr
    file.unlink()
    assert f"missing: {file}; write a valid token" in stack.command("up", "--listen", "127.0.0.1:0").stderr
    file.write_text(second)
    stack.up()


@pytest.mark.parametrize("listen", ["8080", "host:", "127.0.0.1:99999", "127.0.0.1:x"])
def test_up_with_a_malformed_address_is_wrong_usage(listen: str, stack: Stack) -> None:
    done = stack.command("up", "--listen", listen)
    assert done.returncode == 2
    assert "HOST:PORT" in done.stderr
    assert not stack.data.exists()


def test_up_whose_manager_cannot_start_shows_the_end_of_its_log(stack: Stack) -> None:
    done = stack.command("up", "--listen", "127.0.0.1:0", STOWAGE_LEASE_S="soon")
    assert done.returncode == 1
    assert "manager.log" in done.stderr
    assert "lease_s" in done.stderr
    assert holder(stack.data) is None


def test_up_with_spoilt_keys_says_so_without_a_trace(stack: Stack) -> None:
    (stack.data / "keys").mkdir(parents=True, mode=0o700)
    (stack.data / "keys" / "keys.json").write_text("spoilt")
    done = stack.command("up", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "keys.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_whose_keys_are_gone_says_what_to_restore_and_makes_none(stack: Stack) -> None:
    stack.up()
    assert stack.command("down").returncode == 0
    (stack.data / "keys" / "keys.json").unlink()
    done = stack.command("up", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "keys.json" in done.stderr and "Restore it from a backup" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (stack.data / "keys" / "keys.json").exists()


@as_root
@pytest.mark.parametrize("extra", [(), ("--detach",)])
def test_up_on_a_data_folder_of_another_user_is_refused(extra: tuple[str, ...], stack: Stack) -> None:
    stack.data.mkdir()
    os.chown(stack.data, NOBODY.pw_uid, NOBODY.pw_gid)
    done = stack.command("up", "--listen", "127.0.0.1:0", *extra)
    assert done.returncode == 1
    assert "belongs to nobody" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(stack.data.iterdir()) == []


def test_down_on_a_folder_that_is_not_ours_removes_nothing(stack: Stack) -> None:
    stack.data.mkdir()
    (stack.data / "ready.json").write_text("{}")
    assert stack.command("down").returncode == 0
    assert (stack.data / "ready.json").read_text() == "{}"


def test_detached_up_returns_when_ready_and_down_ends_it_once(stack: Stack) -> None:
    done = stack.command("up", "--detach", "--listen", "127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    ready = stack.ready()
    assert ready["url"] in done.stdout
    assert stack.get("/v1/hosts")["items"]
    supervisor = os.pidfd_open(ready["pids"]["supervisor"])
    first = stack.command("down")
    assert (first.returncode, str(ready["pids"]["supervisor"]) in first.stdout) == (0, True)
    assert select.select([supervisor], [], [], 0)[0]
    os.close(supervisor)
    assert _all_end(_all_pids(ready), 0)
    (stack.data / "ready.json").write_text("{}")  # as a supervisor that was killed leaves it
    second = stack.command("down")
    assert not (stack.data / "ready.json").exists()
    assert (second.returncode, "nothing runs" in second.stdout) == (0, True)
