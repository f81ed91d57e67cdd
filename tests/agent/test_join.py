"""Enrolment against a small HTTP server: what is sent to whom, and what remains when it fails."""

import hashlib
import http.server
import io
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.__main__ import main
from agent.app import facts_of
from agent.config import StateDir, load_config
from agent.errors import ConfigError
from agent.join import Invitation, JoinRefused, join
from schemas import nkey
from schemas.bus_client import Identity
from schemas.hosts import EnrolReply, EnrolRequest, enrol_message
from schemas.ids import new_id
from tests.agent.certificates import self_signed

REPLY = EnrolReply(
    host_id=new_id(), fleet_id=new_id(), user_jwt="a.b.c", nats_urls=("nats://127.0.0.1:4222",), manager_key="00" * 32
)

TOKEN = f"stj1.{'0' * 8}-{'0' * 4}-{'0' * 4}-{'0' * 4}-{'0' * 12}.{'s' * 43}.-"


class Manager:
    """Answers /v1/enrol with `status` and `body`; keeps what it was asked."""

    def __init__(self, tls: Path | None) -> None:
        self.status = 200
        self.body = msgspec.json.encode(REPLY)
        self.requests: list[EnrolRequest] = []
        manager = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/enrol"
                manager.requests.append(msgspec.json.decode(body, type=EnrolRequest))
                self.send_response(manager.status)
                self.send_header("Content-Length", str(len(manager.body)))
                self.end_headers()
                self.wfile.write(manager.body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that turns away from our certificate is part of the test."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls") / "manager.pem")


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(None)
    yield manager
    manager.close()


@pytest.fixture
def tls_manager(certificate: Path) -> Iterator[Manager]:
    manager = Manager(certificate)
    yield manager
    manager.close()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def token(fingerprint: str = "-") -> str:
    return f"stj1.{new_id()}.{'s' * 43}.{fingerprint}"


def fingerprint_of(pem: Path) -> str:
    text = pem.read_text()
    head = "-----BEGIN CERTIFICATE-----"
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[text.index(head) :])).hexdigest()


def enrol(state: StateDir, url: str, token_text: str, said: Callable[[str], None] = lambda _: None) -> None:
    join(state, Invitation.read(url, token_text), name="hv1", facts=facts_of({"rack": "r1"}), say=said)


def test_join_writes_keys_identity_and_config_readable_by_root_alone(state: StateDir, manager: Manager) -> None:
    said: list[str] = []
    enrol(state, manager.url, token(), said.append)
    config = load_config(state, {})
    assert (config.host_id, config.fleet_id, config.host_name) == (REPLY.host_id, REPLY.fleet_id, "hv1")
    assert config.labels == {"rack": "r1"}
    assert Identity.read(state.bus_creds_file).jwt() == b"a.b.c"
    files = [path for path in state.root.iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    (request,) = manager.requests
    message = enrol_message(request.token, "hv1", request.identity_key, request.sealing_key)
    assert nkey.verify(request.identity_key, nkey.Role.USER, message, bytes.fromhex(request.signature))
    assert any("joined" in line for line in said)
    assert not any("s" * 43 in line for line in said)


def test_join_retried_after_a_lost_reply_uses_the_same_keys(state: StateDir, manager: Manager) -> None:
    manager.status, manager.body = 503, b"{}"
    text = token()
    with pytest.raises(JoinRefused):
        enrol(state, manager.url, text)
    assert not state.config_file.exists()
    manager.status, manager.body = 201, msgspec.json.encode(REPLY)
    enrol(state, manager.url, text)
    first, second = manager.requests
    assert (first.identity_key, first.sealing_key) == (second.identity_key, second.sealing_key)


def test_join_twice_changes_nothing_and_another_manager_is_refused(state: StateDir, manager: Manager) -> None:
    enrol(state, manager.url, token())
    enrol(state, manager.url, token())
    assert len(manager.requests) == 1
    with pytest.raises(ConfigError, match="belongs to host hv1"):
        enrol(state, "http://127.0.0.1:9", token())


def test_join_into_a_folder_of_somebody_else_is_refused_and_changes_nothing(tmp_path: Path, manager: Manager) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match="--state-dir"):
        enrol(StateDir(folder), manager.url, token())
    assert manager.requests == []
    assert (stat.S_IMODE(folder.stat().st_mode), [path.name for path in folder.iterdir()]) == (0o755, ["notes.txt"])


def test_join_pinned_certificate_is_trusted_without_a_ca(
    state: StateDir, tls_manager: Manager, certificate: Path
) -> None:
    enrol(state, tls_manager.url, token(fingerprint_of(certificate)))
    assert len(tls_manager.requests) == 1


@pytest.mark.parametrize("fingerprint", ["0" * 64, "-"])
def test_join_other_certificate_gets_no_token(state: StateDir, tls_manager: Manager, fingerprint: str) -> None:
    with pytest.raises((JoinRefused, ssl.SSLError)):
        enrol(state, tls_manager.url, token(fingerprint))
    assert tls_manager.requests == []


def test_join_refused_says_the_managers_reason(state: StateDir, manager: Manager) -> None:
    manager.status, manager.body = 401, b'{"code": "unauthorized", "detail": "the join token is used"}'
    with pytest.raises(JoinRefused, match="the join token is used"):
        enrol(state, manager.url, token())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"host_id": 1}', b"\xff"])
def test_join_strange_answer_is_refused(state: StateDir, manager: Manager, body: bytes) -> None:
    manager.body = body
    with pytest.raises(JoinRefused, match="does not answer like"):
        enrol(state, manager.url, token())
    manager.status = 500
    with pytest.raises(JoinRefused, match="500"):
        enrol(state, manager.url, token())


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://manager.example", TOKEN),
        ("ftp://127.0.0.1", TOKEN),
        ("https://user:pw@manager.example", TOKEN),
        ("https://manager.example", "stj1.x.y.-"),
        ("https://manager.example", "sct2." + TOKEN[5:]),
    ],
)
def test_invitation_that_must_not_be_followed_is_refused(url: str, text: str) -> None:
    with pytest.raises(ConfigError):
        Invitation.read(url, text)


def test_invitation_http_elsewhere_needs_to_be_allowed() -> None:
    assert Invitation.read("http://manager.example", token(), allow_http=True).url == "http://manager.example"
    secret = token()
    assert "s" * 43 not in repr(Invitation.read("http://[::1]:80", secret))


def test_command_line_reads_the_token_from_stdin(
    state: StateDir, manager: Manager, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(token() + "\n"))
    argv = ["join", manager.url, "-", "--state-dir", str(state.root), "--name", "hv1", "--label", "a=b"]
    assert main(argv) == 0
    assert "joined fleet" in capsys.readouterr().out
    assert manager.requests[0].facts.labels == {"a": "b"}


@pytest.mark.parametrize("name", ["HV1", "-x", "a.b", "x" * 64])
def test_command_line_bad_name_is_refused_before_anything_is_sent(
    state: StateDir, manager: Manager, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["join", manager.url, token(), "--state-dir", str(state.root), f"--name={name}"]
    assert main(argv) == 1
    assert "DNS label" in capsys.readouterr().err
    assert not state.root.exists()
    assert manager.requests == []


def test_command_line_run_before_join_says_what_to_do(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--state-dir", str(state.root)]) == 1
    assert "join this host first" in capsys.readouterr().err
