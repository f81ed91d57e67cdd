"""What happens at the edge: request ids, headers, log lines, and requests that are not HTTP."""

import asyncio
import logging

import asyncpg
import msgspec
import pytest
from aiohttp import web

from manager.api.server import ApiRunner
from tests.manager.api.conftest import Api, until


async def _raw(api: Api, request: bytes) -> tuple[bytes, bytes]:
    """(head, body) of the answer to these bytes; the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET /v1/hosts HTTP/9.9\r\n\r\n",
        b"GET /v1/hosts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer stw_c4n4ry\x00\r\n\r\n",
        b"GET /v1/hosts HTTP/1.1\r\nHost: x\r\nBad Header: stw_c4n4ry\r\n\r\n",
        b"GET /v1/hosts HTTP/1.1\r\nHost: x\r\nA: " + b"stw_c4n4ry" * 1000 + b"\r\n\r\n",
        b"GET /" + b"a" * 10000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/storage_backends HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/storage_backends HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 30 + b"\r\n\r\n",
    ],
    ids=lambda value: repr(value[:40]),
)
async def test_request_that_is_not_http_gets_a_problem_and_leaves_no_secret_in_the_log(
    api: Api, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    head, body = await _raw(api, request_bytes)
    assert head.split(b" ")[1] == b"400", head
    assert b"application/problem+json" in head
    assert b"aiohttp" not in head
    assert msgspec.json.decode(body)["code"] == "malformed_body"
    assert "c4n4ry" not in caplog.text
    assert b"c4n4ry" not in body
    assert (await api.call("GET", "/healthz", role=None)).status == 200


async def test_broken_chunk_is_malformed(api: Api) -> None:
    head, body = await _raw(
        api,
        b"POST /v1/storage_backends HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nAuthorization: Bearer " + api.by_role["operator"].encode() + b"\r\n\r\n"
        b"zz\r\n{}\r\n0\r\n\r\n",
    )
    assert head.split(b" ")[1] == b"400"
    assert msgspec.json.decode(body)["code"] == "malformed_body"


async def test_client_that_leaves_in_mid_body_is_no_internal_error(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /v1/storage_backends HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
        b"Authorization: Bearer " + api.by_role["operator"].encode() + b'\r\n\r\n{"name'
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await until(lambda: any(r.msg == "request served" for r in caplog.records))
    assert [r.__dict__["status"] for r in caplog.records if r.msg == "request served"] == [400]
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_request_id_is_taken_over_when_it_is_sane(api: Api) -> None:
    answer = await api.call("GET", "/v1/nothing", headers={"X-Request-Id": "build-7.A"})
    assert answer.headers["X-Request-Id"] == "build-7.A"
    assert answer.json["request_id"] == "build-7.A"


@pytest.mark.parametrize("offered", ["", "a b", "x" * 65, "ü", '"', "a,b"])
async def test_request_id_is_made_when_it_is_not(api: Api, offered: str) -> None:
    answer = await api.call("GET", "/v1/nothing", headers={"X-Request-Id": offered})
    assert answer.headers["X-Request-Id"] != offered
    assert answer.headers["X-Request-Id"] == answer.json["request_id"]


async def test_every_answer_has_the_security_headers(api: Api) -> None:
    for path, role in (("/healthz", None), ("/v1/hosts", "viewer"), ("/v1/hosts", None), ("/none", "viewer")):
        answer = await api.call("GET", path, role=role)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "aiohttp" not in answer.headers["Server"]


async def test_each_request_is_one_log_line_without_its_query(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    row = api.backends.insert("tank")
    await api.call("GET", f"/v1/storage_backends/{row.id}?x=c4n4ry", headers={"X-Request-Id": "r1"})
    await api.call("GET", "/c4n4ry", role=None)
    lines = [r.__dict__ for r in caplog.records if r.msg == "request served"]
    shown = [(line["method"], line["path"], line["status"], line["actor"]) for line in lines]
    assert shown == [
        ("GET", "/v1/storage_backends/{ref}", 400, "token:operator"),
        ("GET", "(unknown)", 401, ""),
    ]
    assert lines[0]["request_id"] == "r1"
    assert lines[0]["duration_ms"] >= 0
    assert "c4n4ry" not in repr(lines)


async def test_bug_is_500_with_the_trace_in_the_log_alone(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    row = api.backends.insert("tank")
    api.backends.failure = ZeroDivisionError("c4n4ry")
    answer = await api.call("POST", f"/v1/storage_backends/{row.id}/probe")
    problem = answer.problem(500, "internal")
    assert "c4n4ry" not in answer.body.decode()
    failed = [r for r in caplog.records if r.msg == "request failed"]
    assert [r.__dict__["request_id"] for r in failed] == [problem["request_id"]]
    assert failed[0].exc_info is not None


@pytest.mark.parametrize("away", [ConnectionRefusedError(), asyncpg.AdminShutdownError("c4n4ry"), TimeoutError()])
async def test_database_that_does_not_answer_is_503_with_retry_after(away: Exception, api: Api) -> None:
    row = api.backends.insert("tank")
    api.backends.failure = away
    answer = await api.call("POST", f"/v1/storage_backends/{row.id}/probe")
    assert "database" in answer.problem(503, "internal")["detail"]
    assert answer.headers["Retry-After"] == "5"
    assert "c4n4ry" not in answer.body.decode()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /heal"])
async def test_connection_on_which_no_whole_head_comes_is_closed(sent: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/healthz", answer)
    runner = ApiRunner(app, idle_s=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    writer.write(sent)
    async with asyncio.timeout(10):
        heard = await reader.read()
    assert heard.count(b"200 OK") == sent.count(b"\r\n\r\n")
    writer.close()
    await runner.cleanup()
