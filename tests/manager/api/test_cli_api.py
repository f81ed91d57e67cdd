"""`stowage api` against the API: what goes out, what is shown where, and by which exit code it ends."""

import asyncio
import contextlib
import hashlib
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from manager.cli.client import Server, Unreachable
from manager.cli.outcomes import ExitCode, exit_code, words
from manager.errors import Refused
from schemas.faults import FaultCode, fault
from schemas.problems import STATUS, FieldError, ProblemCode
from tests.manager.api.conftest import Api

ARGV = (sys.executable, "-m", "manager.cli", "api")
ROOT = Path(__file__).parents[3]
TANK = {"name": "tank", "kind": "local_file", "config": {"root_dir": "/srv/a"}}


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: str


def _environment(api: Api, role: str | None, more: dict[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STOWAGE_")}
    token = {} if role is None else {"STOWAGE_TOKEN": api.by_role[role]}
    return kept | {"PYTHONPATH": str(ROOT), "STOWAGE_URL": api.url} | token | (more or {})


async def _run(
    api: Api,
    *arguments: str,
    role: str | None = "operator",
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
) -> Done:
    """Without a terminal, also without one to be found."""
    process = await asyncio.create_subprocess_exec(
        *ARGV,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(api, role, environment),
        start_new_session=True,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    assert b"Traceback" not in err, err
    return Done(process.returncode, out, err.decode())


async def test_answer_goes_to_standard_output_as_it_is(api: Api) -> None:
    api.backends.insert("tank")
    done = await _run(api, "get", "/v1/storage_backends/tank", role="viewer")
    same = await api.call("GET", "/v1/storage_backends/tank", role="viewer")
    assert (done.code, done.out, done.err) == (0, same.body, "")


@pytest.mark.parametrize("way", ["inline", "file", "stdin"])
async def test_body_comes_from_the_argument_a_file_or_standard_input(api: Api, tmp_path: Path, way: str) -> None:
    text = msgspec.json.encode(TANK)
    (tmp_path / "body.json").write_bytes(text)
    data = {"inline": text.decode(), "file": f"@{tmp_path / 'body.json'}", "stdin": "-"}[way]
    done = await _run(api, "POST", "/v1/storage_backends", "--data", data, stdin=text if way == "stdin" else b"")
    assert done.code == 0, done.err
    assert msgspec.json.decode(done.out)["name"] == "tank"


async def test_headers_and_queries_arrive(api: Api) -> None:
    row = api.backends.insert("tank")
    path = f"/v1/storage_backends/{row.id}"
    stale = await _run(api, "PATCH", path, "--data", '{"name": "b"}', "-H", 'If-Match: "7"')
    assert (stale.code, stale.out) == (ExitCode.CONFLICT, b"")
    fresh = await _run(api, "PATCH", path, "--data", '{"name": "b"}', "-H", 'if-match: "1"')
    assert (fresh.code, msgspec.json.decode(fresh.out)["name"]) == (0, "b")
    spaced = await _run(api, "GET", "/v1/hosts?label=zone: a b")
    assert (spaced.code, msgspec.json.decode(spaced.out)["items"]) == (0, [])


async def test_deletion_has_no_output(api: Api) -> None:
    api.backends.insert("tank")
    done = await _run(api, "DELETE", "/v1/storage_backends/tank")
    assert (done.code, done.out, done.err) == (0, b"", "")


@pytest.mark.parametrize("is_file", [True, False])
async def test_upload_sends_the_bytes_as_they_are(api: Api, tmp_path: Path, is_file: bool) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "image").write_bytes(content)
    data = f"@{tmp_path / 'image'}" if is_file else "-"
    path = f"/v1/images/debian/content?source_format=raw&sha256={hashlib.sha256(content).hexdigest()}"
    done = await _run(
        api, "PUT", path, "--data", data, "-H", "Content-Type: application/octet-stream",
        stdin=b"" if is_file else content,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert api.uploads.content == content
    assert [size for _, size in api.uploads.calls] == [len(content) if is_file else None]


async def test_refusal_is_told_in_words_with_fields_and_faults(api: Api) -> None:
    wrong = await _run(
        api, "POST", "/v1/storage_backends", "--data", '{"kind": "nfs", "config": {"server": "s", "export": "x"}}'
    )
    assert (wrong.code, wrong.out) == (ExitCode.INVALID, b"")
    lines = wrong.err.splitlines()
    assert lines[0].startswith("stowage: Some fields are not valid: 2 fields")
    assert "/name: is required" in lines
    assert any(line.startswith("/config/export: ") for line in lines)
    failed = fault(FaultCode.EXPORT_NOT_FOUND, "no such export")
    api.backends.failure = Refused.because(
        ProblemCode.PROBE_FAILED, "one host failed", faults=(msgspec.structs.replace(failed, host="hv2"),)
    )
    probed = await _run(api, "POST", "/v1/storage_backends", "--data", msgspec.json.encode(TANK).decode())
    assert (probed.code, probed.out) == (ExitCode.HOST_FAILED, b"")
    assert probed.err.splitlines() == [
        "stowage: The backend did not answer as it should: one host failed",
        f"hv2: export_not_found: no such export Remedy: {failed.remedy}",
    ]


async def test_exit_codes_say_what_was_wrong(api: Api) -> None:
    api.backends.insert("tank")
    assert (await _run(api, "GET", "/v1/tokens")).code == ExitCode.NOT_ALLOWED
    assert (await _run(api, "GET", "/v1/storage_backends/none")).code == ExitCode.NOT_FOUND
    assert (await _run(api, "POST", "/v1/storage_backends", "--data", msgspec.json.encode(TANK).decode())).code == 5
    unsigned = await _run(api, "GET", "/v1/hosts", role=None)
    assert unsigned.code == ExitCode.NOT_ALLOWED
    assert "set STOWAGE_TOKEN" in unsigned.err
    assert (await _run(api, "GET", "/readyz", role=None)).code == 0
    api.missing["bus"] = "away"
    assert (await _run(api, "GET", "/readyz", role=None)).code == ExitCode.UNREACHABLE


async def test_manager_that_is_not_there_is_unreachable(api: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = await _run(api, "GET", "/healthz", "--url", f"http://127.0.0.1:{port}")
    assert done.code == ExitCode.UNREACHABLE
    assert done.err == f"stowage: http://127.0.0.1:{port} cannot be reached: Connection refused\n"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://[::1]", ("::1", 80)),
        ("http://[fd00::a:80]/up", ("fd00::a:80", 80)),
        ("https://[fd00::a:80]", ("fd00::a:80", 443)),
        ("https://[::1]:8443", ("::1", 8443)),
        ("http://nas", ("nas", 80)),
    ],
)
def test_address_without_a_port_is_asked_at_its_schemes_own(
    monkeypatch: pytest.MonkeyPatch, url: str, asked: tuple[str, int]
) -> None:
    """An IPv6 address ends in what looks like a port."""
    tried: list[object] = []

    def create(address: tuple[str, int], *_: object) -> socket.socket:
        tried.append(address)
        raise OSError("scripted")

    monkeypatch.setattr(socket, "create_connection", create)
    with pytest.raises(Unreachable, match="scripted"), Server.at(url).asked("GET", "/", {}, None):
        pass
    assert tried == [asked]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"SSH-2.0-x\r\n"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("GET", "/healthz"), ExitCode.UNREACHABLE),
        (("POST", "/v1/tokens", "--data", "{}"), ExitCode.TIMED_OUT),
        (("DELETE", "/v1/tokens/a"), ExitCode.TIMED_OUT),
    ],
)
async def test_answer_that_breaks_off_leaves_a_change_unknown_and_a_question_unanswered(
    api: Api, answer: bytes, arguments: tuple[str, ...], code: ExitCode
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        done = await _run(api, *arguments, "--url", f"http://127.0.0.1:{port}")
    assert done.code == code
    assert "ended the connection before its answer did" in done.err
    assert ("look what became of it" in done.err) is (code == ExitCode.TIMED_OUT)


@pytest.mark.parametrize(
    ("arguments", "words_"),
    [
        (("GET", "v1/hosts"), "begins with /"),
        (("FETCH", "/v1/hosts"), "FETCH"),
        (("GET", "/v1/hosts", "--url", "ftp://a"), "--url must be"),
        (("GET", "/v1/hosts", "--url", "http://u:c4n4ry@a"), "must not hold a user"),
        (("GET", "/v1/hosts", "--url", "http://a:c4n4ry"), "--url must be"),
        (("GET", "/v1/hosts", "--url", "http://a..b"), "--url must be"),
        (("GET", "/v1/hosts", "--url", f"http://{'a' * 64}.example"), "--url must be"),
        (("GET", "/v1/hosts", "-H", "Authorization: Bearer c4n4ry"), "no header to give here"),
        (("GET", "/v1/hosts", "-H", "cookie: c4n4ry"), "no header to give here"),
        (("GET", "/v1/hosts", "-H", "Proxy-Authorization: c4n4ry"), "no header to give here"),
        (("GET", "/v1/hosts", "-H", "Authorization Bearer c4n4ry"), "a header is written as NAME: VALUE"),
        (("GET", "/v1/hosts", "-H", "Authorization : Bearer c4n4ry"), "a header is written as NAME: VALUE"),
        (("GET", "/v1/hosts", "-H", "A: b\r\nC: d"), "a header is written as NAME: VALUE"),
        (("GET", "/v1/hosts", "-H", "Host: b"), "Host is no header to give here"),
        (("POST", "/v1/hosts", "--data", "{}", "-H", "content-length: 9"), "content-length is no header to give here"),
        (("POST", "/v1/hosts", "-H", "Transfer-Encoding: chunked"), "Transfer-Encoding is no header to give here"),
        (("GET", "/v1/hosts", "-H", "If-Match: 1", "-H", "if-match: 2"), "--header if-match is given twice"),
        (("POST", "/v1/hosts", "--data", '{"password": c4n4ry}'), "--data is not JSON (line 1 column 14)"),
        (("POST", "/v1/hosts", "--data", "@/nothing/there"), "cannot read /nothing/there"),
    ],
)
async def test_wrong_usage_is_2_and_repeats_no_secret(api: Api, arguments: tuple[str, ...], words_: str) -> None:
    done = await _run(api, *arguments)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert words_ in done.err
    assert "c4n4ry" not in done.err


async def test_token_file_is_read_unless_others_can_read_it(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(api.by_role["viewer"] + "\n")
    file.chmod(0o640)
    for arguments, environment in (
        (("--token-file", str(file)), {}),
        ((), {"STOWAGE_TOKEN_FILE": str(file)}),
    ):
        refused = await _run(api, "GET", "/v1/session", *arguments, role=None, environment=environment)
        assert refused.code == ExitCode.USAGE
        assert f"{file} is open to other users" in refused.err
    file.chmod(0o600)
    for arguments, environment, name in (
        (("--token-file", str(file)), {"STOWAGE_TOKEN": api.by_role["admin"]}, "viewer"),
        ((), {"STOWAGE_TOKEN_FILE": str(file), "STOWAGE_TOKEN": api.by_role["admin"]}, "admin"),
        ((), {"STOWAGE_TOKEN_FILE": str(file)}, "viewer"),
    ):
        done = await _run(api, "GET", "/v1/session", *arguments, role=None, environment=environment)
        assert msgspec.json.decode(done.out)["name"] == name, done.err
    file.write_text("two words\n")
    assert "does not hold one token" in (await _run(api, "GET", "/v1/session", "--token-file", str(file))).err


async def test_prompt_without_a_terminal_is_refused_before_anything_is_sent(api: Api) -> None:
    body = '{"name": "a", "credentials": {"password": "<prompt:password>"}}'
    for arguments, stdin in ((("--data", body), b""), (("--data", "-"), body.encode())):
        done = await _run(api, "POST", "/v1/storage_backends", *arguments, stdin=stdin)
        assert done.code == ExitCode.USAGE
        assert "wants password typed in, and there is no terminal" in done.err
    assert api.backends.calls == []


class _Terminal:
    """The program under a terminal of its own, so that it finds one to ask on."""

    def __init__(self, api: Api, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            ("env", "--default-signal=INT", "setsid", "--ctty", *ARGV, *arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=_environment(api, "operator", None),
        )
        os.close(slave)
        self.shown = b""

    async def until(self, words_: bytes) -> None:
        async with asyncio.timeout(30):
            while words_ not in self.shown:
                more = await asyncio.to_thread(self._read)
                assert more, self.shown
                self.shown += more

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    async def end(self) -> int:
        async with asyncio.timeout(30):
            while more := await asyncio.to_thread(self._read):
                self.shown += more
            return await asyncio.to_thread(self._process.wait)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self) -> bytes:
        try:
            return os.read(self._master, 4096)
        except OSError:  # the other side is closed
            return b""


@contextlib.contextmanager
def _terminal(api: Api, *arguments: str) -> Generator[_Terminal]:
    made = _Terminal(api, *arguments)
    try:
        yield made
    finally:
        made.close()


async def test_prompt_is_asked_hidden_and_takes_its_place_in_the_body(api: Api) -> None:
    """A string that only holds the words is left alone, and one name is asked for once."""
    labels = {"a": "<prompt:pass word>", "b": "<prompt:pass word>"}
    body = msgspec.json.encode(TANK | {"name": "x<prompt:y>", "labels": labels}).decode()
    with _terminal(api, "POST", "/v1/storage_backends", "--data", body) as terminal:
        await terminal.until(b"pass word:")
        terminal.type(b"c4n4ry\n")
        assert await terminal.end() == ExitCode.INVALID, terminal.shown
    # The name was sent as it is, for it only holds the words; the labels are what was typed, and nobody shows them.
    assert b"/name: " in terminal.shown
    assert b"/labels" not in terminal.shown
    assert b"c4n4ry" not in terminal.shown
    assert terminal.shown.count(b"pass word:") == 1


async def test_answer_on_a_terminal_is_indented(api: Api) -> None:
    labels = {"a": "<prompt:word>"}
    with _terminal(
        api, "POST", "/v1/storage_backends", "--data", msgspec.json.encode(TANK | {"labels": labels}).decode()
    ) as terminal:
        await terminal.until(b"word:")
        terminal.type(b"gold\n")
        assert await terminal.end() == 0, terminal.shown
    (row,) = api.backends.rows.values()
    assert row.labels == {"a": "gold"}
    assert b'{\r\n  "id": ' in terminal.shown


async def test_answer_to_head_on_a_terminal_is_nothing(api: Api) -> None:
    with _terminal(api, "HEAD", "/v1/storage_backends") as terminal:
        assert await terminal.end() == 0, terminal.shown
    assert terminal.shown == b""


async def test_interrupt_at_a_prompt_is_130_and_sends_nothing(api: Api) -> None:
    with _terminal(api, "POST", "/v1/storage_backends", "--data", '{"name": "<prompt:name>"}') as terminal:
        await terminal.until(b"name:")
        terminal.type(b"\x03")
        assert await terminal.end() == ExitCode.INTERRUPTED
    assert api.backends.calls == []


def test_every_problem_has_an_exit_code_of_its_sort() -> None:
    found = {
        code: exit_code(status, msgspec.json.encode({"code": code, "title": "t"})) for code, status in STATUS.items()
    }
    by_code: dict[ExitCode, set[str]] = {}
    for code, exit_ in found.items():
        by_code.setdefault(exit_, set()).add(code)
    assert by_code == {
        ExitCode.FAILED: {"too_many_requests", "saga_stuck", "internal"},
        ExitCode.NOT_ALLOWED: {"unauthorized", "forbidden"},
        ExitCode.NOT_FOUND: {"not_found"},
        ExitCode.CONFLICT: {
            "name_taken", "backend_in_use", "backend_is_default", "wrong_state", "idempotency_mismatch", "stale_version",
            "volume_in_use", "cancelled", "unsupported",
        },
        ExitCode.INVALID: {"malformed_body", "invalid_field"},
        ExitCode.HOST_FAILED: {"probe_failed", "credentials_rejected", "no_agent"},
        ExitCode.TIMED_OUT: {"agent_timeout"},
    }  # fmt: skip


def test_answer_that_is_no_problem_is_told_by_its_status() -> None:
    for content in (b"<html>Bad Gateway</html>", b"[]", b"\xff", b""):
        assert exit_code(502, content) is ExitCode.UNREACHABLE
        assert list(words(502, content)) == ["stowage: the answer was 502, and nothing that the API says"]


def test_words_hold_nothing_that_a_terminal_obeys() -> None:
    error = FieldError(pointer="/a", detail="b\x1b[2J\n")
    problem = {"title": "t", "detail": "d\x9b1m", "errors": [error], "blockers": [{"volume": "v\x07", "host": "hv1"}]}
    assert list(words(409, msgspec.json.encode(problem))) == [
        "stowage: t: d\N{REPLACEMENT CHARACTER}1m",
        "/a: b\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}",
        "in the way: volume v\N{REPLACEMENT CHARACTER}, host hv1",
    ]


async def test_command_starts_without_the_libraries_of_the_server(api: Api) -> None:
    program = (
        "import sys, runpy; sys.argv = ['stowage', 'api', 'GET', '/healthz']\ntry: runpy.run_module('manager.cli')\n"
    )
    program += "except SystemExit: print(sorted({'aiohttp', 'nats', 'asyncpg', 'asyncio'} & set(sys.modules)))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=_environment(api, None, None)
    )
    out, _ = await process.communicate()
    assert out == b'{"status":"alive"}[]\n'
