"""Downloads from a server on loopback that does what servers do on bad days."""

import contextlib
import errno
import hashlib
import http.client
import http.server
import os
import socketserver
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import download_jobs
from agent.download_jobs import download
from agent.job_io import read_progress

#: Not random: it is in the names of tests, which every worker must find the same.
CONTENT = bytes(range(256)) * 12_288 + b"of no whole block"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Answer = Callable[[http.server.BaseHTTPRequestHandler], object]


class Server:
    """answers: path -> what it does. asked: what was asked, with the query."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append(self.path)
                self.close_connection = True
                server.answers[self.path.partition("?")[0]](self)

            def log_message(self, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
                return

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.answers["/image"] = whole
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads"


def send(
    handler: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes = b""
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):  # the other side has heard enough
        handler.wfile.write(content)


def whole(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 200, {"Content-Length": str(len(CONTENT))}, CONTENT)


def to(location: str) -> Answer:
    return lambda handler: send(handler, 302, {"Location": location, "Content-Length": "0"})


def answering(status: int, content: bytes = b"", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: send(handler, status, named, content)


def fetch(folder: Path, url: str, **changes: Any) -> dict[str, Any]:
    args: dict[str, Any] = {
        "url": url,
        "sha256": SHA256,
        "folder": str(folder),
        "name": "v",
        "reserve_bytes": 0,
        "progress": str(folder.parent / "progress"),
    }
    return download(args | changes)


def test_download_whole_is_kept_private_under_its_name(server: Server, folder: Path) -> None:
    assert fetch(folder, f"{server.url}/image?token=1") == {"size_bytes": len(CONTENT)}
    (image,) = folder.iterdir()
    assert image.name == "v.image"
    assert image.read_bytes() == CONTENT
    assert image.stat().st_mode & 0o777 == 0o600
    assert read_progress(folder.parent / "progress") == (len(CONTENT), len(CONTENT))
    assert server.asked == ["/image?token=1"]


def test_download_made_before_is_not_asked_for_again(server: Server, folder: Path) -> None:
    fetch(folder, f"{server.url}/image")
    assert fetch(folder, f"{server.url}/image") == {"size_bytes": len(CONTENT)}
    assert len(server.asked) == 1


def test_download_over_what_a_killed_one_left_begins_anew_and_follows_no_link(server: Server, folder: Path) -> None:
    (folder.parent / "precious").write_text("precious")
    (folder / "v.part").symlink_to(folder.parent / "precious")
    fetch(folder, f"{server.url}/image")
    assert (folder / "v.image").read_bytes() == CONTENT
    assert (folder.parent / "precious").read_text() == "precious"


def test_download_in_chunks_is_whole(server: Server, folder: Path) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)
    server.answers["/image"] = answering(200, body, Transfer_Encoding="chunked")
    assert fetch(folder, f"{server.url}/image") == {"size_bytes": len(CONTENT)}


def test_download_follows_redirects_relative_and_absolute(server: Server, folder: Path) -> None:
    server.answers |= {"/a": to("b?x=1"), "/b": to(f"{server.url}/c#part"), "/c": to("/image")}
    fetch(folder, f"{server.url}/a")
    assert server.asked == ["/a", "/b?x=1", "/c", "/image"]
    assert (folder / "v.image").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/missing", "source_unreadable", "/missing answers with status 404"),
        ("/short", "source_unreadable", "broke off after 10 of 20 bytes"),
        ("/short_chunk", "source_unreadable", "broke off"),
        ("/other", "wrong_digest", f"and {SHA256} was asked for"),
        ("/empty", "wrong_digest", hashlib.sha256().hexdigest()),
        ("/encoded", "source_unreadable", "sends its content encoded"),
        ("/long", "source_unreadable", "a length that is no number"),
        ("/noise", "source_unreadable", "does not speak HTTP"),
        ("/loop", "source_unreadable", "redirects once more than 5 times"),
        ("/nowhere", "source_unreadable", "does not say where to"),
        ("/file", "source_unreadable", "http or https alone"),
        ("/named", "source_unreadable", "has a user name in it"),
        ("/odd", "source_unreadable", "is no URL"),
    ],
)
def test_download_that_goes_wrong_is_a_fault_and_leaves_nothing(
    server: Server, folder: Path, path: str, code: str, said: str
) -> None:
    answers: dict[str, Answer] = {
        "/missing": answering(404, b"no", Content_Length="2"),
        "/short": answering(200, b"x" * 10, Content_Length="20"),
        "/short_chunk": answering(200, b"20\r\nxxxx", Transfer_Encoding="chunked"),
        "/other": answering(200, b"other", Content_Length="5"),
        "/empty": answering(200, Content_Length="0"),
        "/encoded": answering(200, CONTENT, Content_Encoding="gzip"),
        "/long": answering(200, b"", Content_Length="9" * 5000),
        "/noise": lambda handler: handler.wfile.write(b"SSH-2.0-noise\r\n"),
        "/loop": to("/loop"),
        "/nowhere": answering(302, Content_Length="0"),
        "/file": to("file:///etc/shadow"),
        "/named": to("http://user:canary@127.0.0.1/image"),
        "/odd": to("http://[::1"),
    }
    server.answers |= answers
    answer = fetch(folder, f"{server.url}{path}?token=canary")
    assert answer["fault"] == code
    assert said in answer["detail"]
    assert "canary" not in answer["detail"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://127.0.0.1/image", "source_unreadable"),
        ("file:///etc/shadow", "source_unreadable"),
        ("http:///image", "source_unreadable"),
        ("http://127.0.0.1:0/image", "source_unreadable"),
        ("http://127.0.0.1:99999/image", "source_unreadable"),
        ("http://user:canary@127.0.0.1/image", "source_unreadable"),
        ("http://exa mple/image", "source_unreadable"),
        (f"http://{'x' * 300}.example/image", "source_unreadable"),
        ("http://stowage.invalid/image", "name_not_resolved"),
        ("http://127.0.0.1:1/image", "server_unreachable"),
    ],
)
def test_download_from_where_nothing_can_be_had_is_a_fault(folder: Path, url: str, code: str) -> None:
    answer = fetch(folder, url)
    assert answer["fault"] == code
    assert "canary" not in answer["detail"]
    assert list(folder.iterdir()) == []


def test_download_never_goes_from_https_to_http(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["/a"] = to(f"{server.url}/image")
    plain = http.client.HTTPConnection

    def unencrypted(host: str, port: int, **_: object) -> http.client.HTTPConnection:
        return plain(host, port)

    monkeypatch.setattr("http.client.HTTPSConnection", unencrypted)
    answer = fetch(folder, f"{server.url}/a".replace("http:", "https:"))
    assert "from https to http://" in answer["detail"]
    assert server.asked == ["/a"]


def test_download_from_a_server_without_tls_or_trust_is_a_fault(server: Server, folder: Path) -> None:
    server.answers["/image"] = whole
    answer = fetch(folder, f"{server.url}/image".replace("http:", "https:"))
    assert answer["fault"] == "server_unreachable"
    assert list(folder.iterdir()) == []


def test_download_from_a_silent_server_ends(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_jobs, "SOCKET_TIMEOUT_S", 0.1)
    gate = threading.Event()
    server.answers["/image"] = lambda _: gate.wait()
    try:
        answer = fetch(folder, f"{server.url}/image")
    finally:
        gate.set()
    assert answer["fault"] == "server_unreachable"
    assert "sent nothing for 0.1 s" in answer["detail"]


@pytest.mark.parametrize("is_promised", [True, False])
def test_download_that_would_fill_the_host_s_disk_is_no_space_and_leaves_nothing(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, is_promised: bool
) -> None:
    if not is_promised:
        server.answers["/image"] = lambda handler: send(handler, 200, {}, CONTENT)

    # Not the real disk: what is free on it changes with whatever else this machine does.
    def two_blocks(_: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(f_bavail=2, f_frsize=1024)

    monkeypatch.setattr(os, "fstatvfs", two_blocks)
    with pytest.raises(OSError) as caught:
        fetch(folder, f"{server.url}/image", reserve_bytes=1024)
    assert caught.value.errno == errno.ENOSPC
    assert list(folder.iterdir()) == []


def test_download_whose_name_can_t_be_made_durable_leaves_nothing(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(download_jobs, "_sync_dir", fail)
    with pytest.raises(OSError):
        fetch(folder, f"{server.url}/image")
    assert list(folder.iterdir()) == []
