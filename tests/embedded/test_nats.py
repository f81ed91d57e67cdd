"""The embedded nats-server: its port, its end, and two on one folder."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager import bus_auth
from manager.embedded import children, identity, nats
from manager.embedded.errors import StartError
from manager.embedded.nats import Nats
from manager.keys import Keys


@pytest.fixture
def server(open_dir: Path) -> Iterator[Nats]:
    made = _make(open_dir)
    yield made
    made.stop()


def _make(folder: Path, extra: str = "") -> Nats:
    home = folder / "nats"
    home.mkdir(mode=0o700, exist_ok=True)
    keys = Keys.load_or_create(folder / "keys")

    def config_for(port: int) -> str:
        return bus_auth.server_config(keys, data_dir=home, host="127.0.0.1", port=port, ports_file_dir=home) + extra

    who = identity.choose(home, [nats.binary()])
    return Nats(home, config_for=config_for, log=folder / "nats.log", identity=who)


def _answers(server: Nats) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        return connection.recv(5) == b"INFO "


def test_nats_started_again_keeps_its_port(server: Nats, open_dir: Path) -> None:
    server.start()
    assert _answers(server)
    server.stop()
    again = _make(open_dir)
    again.start()
    assert again.url == server.url
    assert _answers(again)
    again.stop()


def test_nats_killed_and_started_again_listens(server: Nats, open_dir: Path) -> None:
    server.start()
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    again = _make(open_dir)
    again.start()
    assert _answers(again)
    assert len(list((open_dir / "nats").glob("*.ports"))) == 1
    again.stop()


def test_nats_whose_port_is_taken_meanwhile_takes_another(server: Nats, open_dir: Path) -> None:
    server.start()
    port = server.port
    server.stop()
    with socket.create_server(("127.0.0.1", port)):
        again = _make(open_dir)
        again.start()
        assert again.port != port
        assert _answers(again)
        again.stop()


def test_nats_with_a_wrong_configuration_says_where_to_look(open_dir: Path) -> None:
    with pytest.raises(StartError, match="nats-server") as refused:
        _make(open_dir, extra="no_such_key: 1\n").start()
    assert refused.value.log == open_dir / "nats.log"
    assert "no_such_key" in (open_dir / "nats.log").read_text()


@pytest.mark.parametrize("name", ["nats.conf", "port"])
def test_nats_with_a_link_in_its_folder_writes_through_none(name: str, server: Nats, open_dir: Path) -> None:
    """The folder belongs to the servers' user, who may put there what he likes."""
    victim = open_dir / "victim"
    victim.write_text("kept")
    (open_dir / "nats" / name).symlink_to(victim)
    server.start()
    assert _answers(server)
    assert (victim.read_text(), victim.stat().st_uid) == ("kept", os.geteuid())


@pytest.mark.parametrize("is_pipe", [True, False], ids=["pipe", "link"])
def test_nats_whose_ports_file_is_a_pipe_or_a_link_is_not_read(
    server: Nats, open_dir: Path, monkeypatch: pytest.MonkeyPatch, is_pipe: bool
) -> None:
    """A pipe would be waited for ever."""
    monkeypatch.setattr(nats, "_READY_TIMEOUT_S", 1)
    process = server.spawn()
    assert children.wait_until(lambda: _ports_file(open_dir, process.pid).exists(), timeout_s=10)
    told = _ports_file(open_dir, process.pid)
    told.rename(open_dir / "told")
    if is_pipe:
        os.mkfifo(told)
    else:
        told.symlink_to(open_dir / "told")
    with pytest.raises(StartError, match="not ready"):
        server.wait_ready()


def _ports_file(open_dir: Path, pid: int) -> Path:
    return open_dir / "nats" / f"nats-server_{pid}.ports"
