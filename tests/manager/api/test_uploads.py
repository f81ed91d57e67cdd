"""PUT /v1/images/{name}/content: everything but the body is looked at first, and the body is read as it comes."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from manager.api import decoding
from manager.errors import Refused
from schemas.problems import ProblemCode
from schemas.volume_rpc import MAX_CHUNK_BYTES
from tests.manager.api.conftest import Answer, Api, until

SHA = "ab" * 32
QUERY = f"sha256={SHA}&source_format=raw"
PATH = "/v1/images/debian/content"
CONTENT = os.urandom(2 * MAX_CHUNK_BYTES + 100)
OCTETS = {"Content-Type": "application/octet-stream"}


async def _put(
    api: Api, path: str = f"{PATH}?{QUERY}", body: bytes = CONTENT, role: str = "operator", **headers: str
) -> Answer:
    sent = OCTETS | {name.replace("_", "-"): text for name, text in headers.items()}
    return await api.call("PUT", path, body=body, headers=sent, role=role)


async def test_upload_answers_the_image_and_hands_the_body_on_in_chunks(api: Api) -> None:
    answer = await _put(
        api, f"{PATH}?sha256={SHA.upper()}&source_format=qcow2&format=raw&backend=tank&host=hv1&label=os:a&label=b:c:d"
    )
    assert (answer.status, answer.json["name"], answer.json["source"]) == (201, "debian", "upload")
    assert (answer.headers["Location"], answer.headers["ETag"]) == (f"/v1/images/{answer.json['id']}", '"1"')
    ((body, size_bytes),) = api.uploads.calls
    assert (body.name, body.sha256, body.source_format, body.format) == ("debian", SHA, "qcow2", "raw")
    assert (body.backend, body.host, body.labels) == ("tank", "hv1", {"os": "a", "b": "c:d"})
    assert size_bytes == len(CONTENT)
    assert api.uploads.content == CONTENT
    assert api.uploads.chunks == [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, 100]


async def test_upload_of_unknown_length_is_taken(api: Api) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(CONTENT), 10_000):
            yield CONTENT[at : at + 10_000]

    headers = {"Authorization": f"Bearer {api.by_role['operator']}"} | OCTETS
    async with api.client.put(f"{api.url}{PATH}?{QUERY}", data=pieces(), headers=headers) as response:
        assert response.status == 201
    ((_, size_bytes),) = api.uploads.calls
    assert (size_bytes, api.uploads.content) == (None, CONTENT)
    assert api.uploads.chunks == [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, 100]


async def test_upload_respond_async_is_202(api: Api) -> None:
    answer = await _put(api, Prefer="respond-async")
    assert (answer.status, answer.headers["Preference-Applied"]) == (202, "respond-async")
    assert api.uploads.content == CONTENT


@pytest.mark.parametrize(
    ("path", "pointers"),
    [
        ("debian/content", ["/query/sha256", "/query/source_format"]),
        (f"debian/content?{QUERY}&colour=red", ["/query/colour"]),
        (f"debian/content?{QUERY}&name=other", ["/query/name"]),
        (f"debian/content?{QUERY}&size_bytes=512", ["/query/size_bytes"]),
        (f"debian/content?{QUERY}&sha256={SHA}", ["/query/sha256"]),
        ("debian/content?sha256=abc&source_format=vmdk", ["/query/sha256", "/query/source_format"]),
        (f"debian/content?{QUERY}&format=", ["/query/format"]),
        (f"debian/content?{QUERY}&backend=&host=%00", ["/query/backend", "/query/host"]),
        (f"debian/content?{QUERY}&label=os", ["/query/label"]),
        (f"debian/content?{QUERY}&label=a:b&label=a:c", ["/query/label"]),
        (f"debian/content?{QUERY}&label=:b", ["/query/label/"]),
        (f"..%2Fetc/content?{QUERY}", ["/path/name"]),
        (f"-rf/content?{QUERY}", ["/path/name"]),
        (f"0197c0de-0000-7000-8000-000000000000/content?{QUERY}", ["/path/name"]),
        (
            "-rf/content?sha256=x&label=a&x=1",
            ["/path/name", "/query/label", "/query/sha256", "/query/source_format", "/query/x"],
        ),
    ],
)
async def test_upload_names_every_wrong_parameter_and_reads_nothing(api: Api, path: str, pointers: list[str]) -> None:
    answer = await _put(api, f"/v1/images/{path}")
    answer.problem(400, "invalid_field")
    assert answer.pointers() == pointers
    assert api.uploads.calls == []


async def test_upload_with_an_idempotency_key_is_refused_in_words_with_the_rest(api: Api) -> None:
    answer = await _put(api, f"{PATH}?source_format=raw", Idempotency_Key="k1")
    errors = answer.problem(400, "invalid_field")["errors"]
    assert answer.pointers() == ["/header/Idempotency-Key", "/query/sha256"]
    assert "not kept" in errors[0]["detail"]
    assert await api.pool.fetchval("SELECT count(*) FROM idempotency") == 0


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "application/json"}, {"Content-Encoding": "gzip"}, {"Expect": "tea"}],
    ids=lambda headers: next(iter(headers)),
)
async def test_upload_of_another_sort_of_body_is_malformed(api: Api, headers: dict[str, str]) -> None:
    answer = await api.call("PUT", f"{PATH}?{QUERY}", body=CONTENT, headers=OCTETS | headers)
    answer.problem(400, "malformed_body")
    assert api.uploads.calls == []


async def test_upload_of_nothing_is_malformed(api: Api) -> None:
    (await _put(api, body=b"")).problem(400, "malformed_body")
    assert api.uploads.calls == []


async def test_upload_by_a_viewer_is_forbidden(api: Api) -> None:
    (await _put(api, role="viewer")).problem(403, "forbidden")
    assert api.uploads.calls == []


async def test_post_on_images_takes_json_alone(api: Api) -> None:
    (await api.call("POST", "/v1/images", body=CONTENT, headers=OCTETS)).problem(400, "malformed_body")


class Raw:
    """A connection of our own, to send half a request."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def open(self, *headers: str, query: str = QUERY) -> None:
        self._reader, self.writer = await asyncio.open_connection("127.0.0.1", self._api.port)
        lines = [
            f"PUT {PATH}?{query} HTTP/1.1", "Host: x", "Content-Type: application/octet-stream",
            f"Authorization: Bearer {self._api.by_role['operator']}", *headers, "", "",
        ]  # fmt: skip
        self.writer.write("\r\n".join(lines).encode())
        await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(5):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> Any:
        """The problem that the answer is."""
        async with asyncio.timeout(5):
            return msgspec.json.decode(await self._reader.read())


async def test_client_that_waits_sends_only_when_everything_else_is_right(api: Api) -> None:
    raw = Raw(api)
    await raw.open("Expect: 100-continue", "Content-Length: 3")
    assert await raw.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert len(api.uploads.calls) == 1
    raw.writer.write(b"abc")
    assert (await raw.head()).startswith(b"HTTP/1.1 201 ")
    raw.writer.close()
    assert api.uploads.content == b"abc"


async def test_client_that_waits_for_what_is_refused_sends_nothing(api: Api) -> None:
    api.uploads.failure = Refused.because(ProblemCode.NAME_TAKEN, "there is an image named debian already")
    for query, status in ((QUERY, b"409"), (f"{QUERY}&x=1", b"400")):
        raw = Raw(api)
        await raw.open("Expect: 100-continue", "Content-Length: 3", query=query)
        assert (await raw.head()).split(b" ")[1] == status
        raw.writer.close()
    assert api.uploads.content == b""


async def test_refusal_in_the_middle_reaches_a_client_that_still_sends(api: Api) -> None:
    api.uploads.late_failure = Refused.because(ProblemCode.NO_AGENT, "hv1 was lost")
    raw = Raw(api)
    await raw.open(f"Content-Length: {len(CONTENT) * 10}")
    raw.writer.write(CONTENT)
    assert (await raw.head()).startswith(b"HTTP/1.1 503 ")
    raw.writer.close()


async def test_client_that_breaks_off_is_no_internal_error(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    raw = Raw(api)
    await raw.open("Content-Length: 1000")
    raw.writer.write(b"abc")
    await until(lambda: bool(api.uploads.calls))
    raw.writer.close()
    await until(lambda: any(record.msg == "request served" for record in caplog.records))
    assert [r.__dict__["status"] for r in caplog.records if r.msg == "request served"] == [400]
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []
    assert api.uploads.content == b""


async def test_client_that_stalls_is_cut_off_however_long_the_body(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CHUNK_TIMEOUT_S", 0.2)
    raw = Raw(api)
    await raw.open("Content-Length: 1000")
    raw.writer.write(b"abc")
    assert (await raw.head()).startswith(b"HTTP/1.1 400 ")
    problem = await raw.rest()
    raw.writer.close()
    assert (problem["code"], "did not arrive" in problem["detail"]) == ("malformed_body", True)
