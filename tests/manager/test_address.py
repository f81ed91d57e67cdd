"""The address that is bound before anybody is served, and the one that others are told."""

import socket
from pathlib import Path
from typing import Any

import pytest

from manager import address
from manager.config import Config
from manager.errors import ConfigError


def _config(listen: str, **changes: Any) -> Config:
    return Config(
        database_url="", nats_urls=(), keys_dir=Path("/k"), state_dir=Path("/s"), listen=listen, replica="m", **changes
    )


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:0", "http://127.0.0.1:4711"),
        ("[::1]:0", "http://[::1]:4711"),
        ("hv1.example.org:0", "http://hv1.example.org:4711"),
        ("0.0.0.0:0", f"http://{socket.gethostname()}:4711"),
        ("[::]:0", f"http://{socket.gethostname()}:4711"),
        (":0", f"http://{socket.gethostname()}:4711"),
    ],
)
def test_public_url_not_configured_is_what_is_bound(listen: str, url: str) -> None:
    assert address.public_url(_config(listen), 4711) == url


def test_public_url_with_a_certificate_is_https() -> None:
    config = _config("10.0.0.1:8443", tls_cert=Path("/c"), tls_key=Path("/k"))
    assert address.public_url(config, 8443) == "https://10.0.0.1:8443"


def test_public_url_configured_is_taken_as_it_is() -> None:
    config = _config("0.0.0.0:8443", public_url="https://stowage.example.org/")
    assert address.public_url(config, 8443) == "https://stowage.example.org"


def test_address_bound_is_taken_and_serves_nobody_yet() -> None:
    (made,) = address.bound(_config("127.0.0.1:0"))
    port = made.getsockname()[1]
    with made:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        made.listen()
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            address.bound(_config(f"127.0.0.1:{port}"))


def test_address_with_several_of_a_name_has_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_words: found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    made = address.bound(_config("two.example.org:0"))
    assert len({each.getsockname()[1] for each in made}) == 1
    for each in made:
        each.close()


def test_address_of_another_machine_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"listen: cannot listen on 192\.0\.2\.1:80"):
        address.bound(_config("192.0.2.1:80"))


def test_address_of_a_name_of_which_one_is_not_here_takes_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_words: found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    (made,) = address.bound(_config("two.example.org:0"))
    with made:
        assert made.getsockname()[0] == "127.0.0.1"
