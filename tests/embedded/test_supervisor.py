"""The supervisor starts the dead again, stops in order, and keeps logs small."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from manager.embedded import children
from manager.embedded.stopping import StopRequested, StopSignals, never
from manager.embedded.supervisor import Service, Supervisor, trim


class _Enough(Exception):
    """Ends Supervisor.run."""


@pytest.fixture
def in_time() -> Iterator[None]:
    """Ends a run that nothing else ends."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the supervisor did not do it in time")

    before = signal.signal(signal.SIGALRM, handler)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _supervisor(folder: Path, on_restart: Callable[[], None] = never) -> Supervisor:
    return Supervisor(folder, stop_signals=StopSignals(), on_restart=on_restart)


def _spawner(argv: list[str], log: Path) -> Callable[[], subprocess.Popen[bytes]]:
    return lambda: children.spawn(argv, log=log, death_signal=signal.SIGKILL)


def _service(name: str, argv: list[str], folder: Path) -> Service:
    log = folder / f"{name.replace(' ', '-')}.log"
    return Service(name=name, log=log, spawn=_spawner(argv, log))


@pytest.mark.usefixtures("in_time")
def test_service_that_was_killed_rests_longer_than_one_that_ended_by_itself(tmp_path: Path) -> None:
    restarted: list[str] = []

    def note() -> None:
        restarted.append("once more")
        if len(restarted) == 3:
            raise _Enough

    killed = _service("agent a", ["/bin/sh", "-c", "kill -KILL $$"], tmp_path)
    killed.rest_after_kill_s = 600.0
    ended = _service("agent b", ["false"], tmp_path)
    supervisor = _supervisor(tmp_path, note)
    for service in (killed, ended):
        supervisor.adopt(service)
        service.start()
    with pytest.raises(_Enough):
        supervisor.run()
    assert killed.process is None
    assert killed.restart_at is not None
    assert killed.restart_at - time.monotonic() > 500
    supervisor.stop()


@pytest.mark.usefixtures("in_time")
def test_service_that_ends_unasked_is_started_again_later_each_time(tmp_path: Path) -> None:
    pids: list[int] = []

    def restarted() -> None:
        pids.append(service.pid)
        if len(pids) == 2:
            raise _Enough

    service = _service("agent a", ["false"], tmp_path)
    supervisor = _supervisor(tmp_path, restarted)
    supervisor.adopt(service)
    pids.append(service.start().pid)
    pids.clear()
    with pytest.raises(_Enough):
        supervisor.run()
    assert len(set(pids)) == 2
    assert service.backoff_s == pytest.approx(2.0)
    supervisor.stop()


@pytest.mark.usefixtures("in_time")
def test_service_that_cannot_be_started_again_leaves_the_others_watched(tmp_path: Path) -> None:
    gone = _service("nats", ["false"], tmp_path)
    gone.start()
    gone.spawn = _spawner(["/no/such/binary"], tmp_path / "nats.log")
    steady = _service("agent a", ["sleep", "0.1"], tmp_path)
    steady.start()

    def restarted() -> None:
        raise _Enough

    supervisor = _supervisor(tmp_path, restarted)
    supervisor.adopt(gone)
    supervisor.adopt(steady)
    with pytest.raises(_Enough):
        supervisor.run()
    assert gone.process is None
    assert steady.process is not None
    supervisor.stop()


@pytest.mark.usefixtures("in_time")
def test_signal_while_nothing_happens_ends_the_watch_at_once(tmp_path: Path) -> None:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    signals = StopSignals()
    signals.listen()
    try:
        service = _service("agent a", ["/bin/sh", "-c", f"sleep 0.2; kill -TERM {os.getpid()}; sleep 60"], tmp_path)
        supervisor = Supervisor(tmp_path, stop_signals=signals, on_restart=never)
        supervisor.adopt(service)
        service.start()
        began = time.monotonic()
        with pytest.raises(StopRequested):
            supervisor.run()
        assert time.monotonic() - began < 3  # its own look around comes after 5 s
        supervisor.stop()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def test_stop_goes_backwards_stage_by_stage(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = 'trap "echo $0 >> $1; exit" TERM; echo up; while :; do sleep 0.02; done'
    supervisor = _supervisor(tmp_path)
    for name in ("postgres", "nats", "manager manager", "agent a", "agent b"):
        service = _service(name, ["/bin/sh", "-c", script, name, str(order)], tmp_path)
        supervisor.adopt(service)
        service.start()
        assert children.wait_until(lambda log=service.log: "up" in children.tail(log), timeout_s=5)  # type: ignore[misc]
    supervisor.stop()
    stopped = order.read_text().splitlines()
    assert sorted(stopped[:2]) == ["agent a", "agent b"]
    assert stopped[2:] == ["manager manager", "nats", "postgres"]


def test_stop_of_the_deaf_kills_them(tmp_path: Path) -> None:
    service = _service("agent a", ["/bin/sh", "-c", 'trap "" TERM; echo up; while :; do sleep 0.02; done'], tmp_path)
    supervisor = _supervisor(tmp_path)
    supervisor.adopt(service)
    process = service.start()
    assert children.wait_until(lambda: "up" in children.tail(service.log), timeout_s=5)
    supervisor.stop()
    assert process.returncode == -signal.SIGKILL


def test_log_beyond_the_limit_is_cut_while_its_child_writes_on(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        trim(log, 1000)
        assert log.stat().st_size == 100
        trim(log, 50)
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert (tmp_path / "child.log.1").read_bytes() == b"x" * 100
