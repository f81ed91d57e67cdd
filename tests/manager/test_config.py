"""The configuration is decoded once, refuses what it does not know, and names file and key."""

import socket
from pathlib import Path

import pytest

from manager.config import load
from manager.errors import ConfigError

_GOOD = 'database_url = "postgresql://x"\nnats_urls = ["nats://127.0.0.1:4222"]\nkeys_dir = "/k"\nstate_dir = "/s"\n'


def _file(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_file_and_environment_are_read_and_the_environment_wins(tmp_path: Path) -> None:
    path = _file(tmp_path, _GOOD + 'listen = "127.0.0.1:1"\n')
    environment = {"STOWAGE_LISTEN": "[::1]:8443", "STOWAGE_LEASE_S": "3", "STOWAGE_NATS_URLS": "nats://a,nats://b"}
    config = load(path, environment)
    assert config.listen_address == ("::1", 8443)
    assert (config.lease_s, config.nats_urls) == (3.0, ("nats://a", "nats://b"))
    assert config.keys_dir == Path("/k")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("=", "not TOML"),
        (_GOOD + 'databse = "x"\n', "databse"),
        (_GOOD.replace("database_url", "# "), "database_url"),
        (_GOOD + 'listen = "nowhere"\n', "listen"),
        (_GOOD + 'tls_cert = "/c.pem"\n', "tls_key"),
        (_GOOD + "lease_s = []\n", "lease_s"),
        (_GOOD + 'public_url = "stowage.example.org"\n', "public_url"),
        (_GOOD + 'public_url = "https://user@stowage.example.org"\n', "public_url"),
        (_GOOD + 'replica = ""\n', "replica"),
        (_GOOD + "event_stream_replicas = 0\n", "event_stream_replicas"),
        (_GOOD + "event_stream_max_age_s = -1\n", "event_stream_max_age_s"),
        (_GOOD + "event_stream_max_bytes = 1000\n", "event_stream_max_bytes"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, word: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert word in str(caught.value)
    assert str(path) in str(caught.value)


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.toml is not TOML"):
        load(path, {})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", {})


def test_replica_not_named_is_the_machines_name(tmp_path: Path) -> None:
    assert load(_file(tmp_path, _GOOD), {}).replica == socket.gethostname()
