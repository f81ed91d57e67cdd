"""The issue's paragraph "Bad input", as far as a request alone can be bad."""

import asyncio
from typing import Any

import pytest

from tests.manager.api.conftest import Api

ADD: dict[str, Any] = {"name": "tank", "kind": "nfs", "config": {"server": "10.0.0.5", "export": "/tank/vms"}}
PATH = "/v1/storage_backends"


def _with(**changes: Any) -> dict[str, Any]:
    return ADD | changes


def _config(**changes: Any) -> dict[str, Any]:
    return ADD | {"config": ADD["config"] | changes}


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (_with(kind="floppy"), ["/kind"]),
        (_with(kind=None), ["/kind"]),
        (_with(kind=["nfs"]), ["/kind"]),
        (_with(colour="red"), ["/colour"]),
        (_with(**{"a/b~c": 1}), ["/a~1b~0c"]),
        (_config(colour="red"), ["/config/colour"]),
        (_config(export=7), ["/config/export"]),
        (_with(config=[]), ["/config"]),
        (_with(name=""), ["/name"]),
        (_with(name="a" * 64), ["/name"]),
        (_with(name=None), ["/name"]),
        (_with(name="tank\n"), ["/name"]),
        (_with(name="ta\0nk"), ["/name"]),
        (_with(name="-tank"), ["/name"]),
        (_with(name="tank "), ["/name"]),
        (_with(name="a/b"), ["/name"]),
        (_with(name="Probe"), ["/name"]),
        (_with(name="preflight"), ["/name"]),
        (_with(name="0197c0de-0000-7000-8000-000000000000"), ["/name"]),
        (_with(name="0197C0DE-0000-7000-8000-000000000000"), ["/name"]),
        (_with(is_default="yes"), ["/is_default"]),
        (_with(is_default=None), ["/is_default"]),
        (_with(labels={"a:b": "c"}), ["/labels/a:b"]),
        (_with(labels={"a": 1}), ["/labels/a"]),
        (_with(labels={"a": "b\0"}), ["/labels/a"]),
        (_with(labels={f"k{n}": "v" for n in range(65)}), ["/labels"]),
        (_with(hosts={"names": []}), ["/hosts/names"]),
        (_with(hosts={"names": "*"}), ["/hosts/names"]),
        (_with(hosts={"names": ["*", "Not A Host"]}), ["/hosts/names/1"]),
        (_with(hosts={"nam": ["*"]}), ["/hosts/nam"]),
        (_with(hosts={"labels": {"": ""}}), ["/hosts/labels/"]),
        (_with(hosts=None), ["/hosts"]),
        (_with(credentials={"username": "u"}), ["/credentials"]),
        (_with(credentials="hunter2-hunter2"), ["/credentials"]),
        (_config(server="a,b"), ["/config/server"]),
        (_config(server="-o"), ["/config/server"]),
        (_config(export="/a,b"), ["/config/export"]),
        (_config(export="/a\u0007b"), ["/config/export"]),
        (_config(export="/a/../b"), ["/config/export"]),
        (_config(subdir="../b"), ["/config/subdir"]),
        (_config(options="exec"), ["/config/options"]),
        (_config(options="hard,suid"), ["/config/options"]),
        (_config(nfs_version="5"), ["/config/nfs_version"]),
        ({}, ["/config", "/kind", "/name"]),
        (
            {"name": "", "kind": "smb", "config": {"server": "a b", "x": 1}, "credentials": {"username": "u"}, "y": 1},
            ["/config/server", "/config/share", "/config/x", "/credentials/password", "/name", "/y"],
        ),
    ],
)
async def test_add_names_every_wrong_field_and_calls_nothing(api: Api, body: object, pointers: list[str]) -> None:
    answer = await api.call("POST", PATH, body)
    answer.problem(400, "invalid_field")
    assert answer.pointers() == pointers
    assert all(error["detail"] for error in answer.json["errors"])
    assert "hunter2" not in answer.body.decode()
    assert api.backends.calls == []


@pytest.mark.parametrize("server", ["2001:db8::1", "[2001:db8::1]", "fe80::1%eth0"])
async def test_add_takes_an_ipv6_server(api: Api, server: str) -> None:
    assert (await api.call("POST", PATH, _config(server=server))).status == 201


async def test_add_never_echoes_a_secret(api: Api) -> None:
    canary = "c4n4ry\u0007-secret"
    bodies: list[dict[str, Any]] = [
        {"credentials": {"username": "u", "password": canary}},
        {"credentials": {"username": "u", canary: "x"}},
        {"credentials": canary},
        {"password": canary, "credentials": {"username": "u", "password": "p", "domain": 7}},
        {"config": {"server": "nas", "share": "vms", "options": f"password={canary[:6]}secret"}},
        {"name": canary, "labels": {"a": canary}, "hosts": {"names": [canary]}},
    ]
    for body in bodies:
        answer = await api.call(
            "POST", PATH, {"name": "n", "kind": "smb", "config": {"server": "nas", "share": "vms"}} | body
        )
        answer.problem(400, "invalid_field")
        found = [e for e in answer.json["errors"] if "c4n4ry" in e["detail"]]
        assert found == []


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"kind": "smb"}, ["/kind"]),
        ({"is_default": False}, ["/is_default"]),
        ({"is_default": None}, ["/is_default"]),
        ({"state": "deleting"}, ["/state"]),
        ({"state": "x", "name": 1, "id": "y"}, ["/id", "/name", "/state"]),
        ({"config": "x"}, ["/config"]),
        ({"credentials": {"password": 1}}, ["/credentials/password"]),
    ],
)
async def test_edit_names_every_wrong_field(api: Api, body: object, pointers: list[str]) -> None:
    api.backends.insert("tank")
    answer = await api.call("PATCH", f"{PATH}/tank", body)
    answer.problem(400, "invalid_field")
    assert answer.pointers() == pointers
    assert api.backends.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b'{"name": "a",}',
        b"{'name': 'a'}",
        b'{"name": "a"} x',
        b'{"name": "a", "name": "b"}',
        b'{"config": {"server": "a", "server": "b"}}',
        b'{"is_default": NaN}',
        b'{"is_default": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"a":' * 50_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"{" + b" " * (1024 * 1024) + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_body_that_is_no_json_object_is_malformed(api: Api, body: bytes) -> None:
    answer = await api.call("POST", PATH, body=body)
    answer.problem(400, "malformed_body")
    assert api.backends.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": ""},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br"},
    ],
)
async def test_wrong_content_type_or_encoding_is_malformed(api: Api, headers: dict[str, str]) -> None:
    answer = await api.call("POST", PATH, ADD, headers=headers)
    answer.problem(400, "malformed_body")
    assert api.backends.calls == []


async def test_json_with_a_charset_is_taken(api: Api) -> None:
    answer = await api.call("POST", PATH, ADD, headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status == 201


async def test_body_of_10_mb_is_malformed_and_not_waited_for(api: Api) -> None:
    """Its length alone decides: the answer comes although not one byte of the body does, and the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n"
        f"Authorization: Bearer {api.by_role['operator']}\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(1):
        answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"malformed_body" in answer
    async with asyncio.timeout(5):
        await reader.read()  # to its end: the server has hung up
    writer.close()


async def test_body_of_10_mb_that_is_sent_is_answered(api: Api) -> None:
    answer = await api.call("POST", PATH, body=b"{" + b" " * 10_000_000 + b"}")
    answer.problem(400, "malformed_body")


async def test_body_without_a_length_is_cut_at_the_limit(api: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {api.by_role['operator']}\r\n\r\n"
    )
    writer.write(head.encode())
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for _ in range(18):  # a little more than 1 MiB, and no end
        writer.write(chunk)
    async with asyncio.timeout(2):
        answer = await reader.readuntil(b"}")
    assert b"malformed_body" in answer
    writer.close()


async def test_client_that_asks_first_is_refused_before_it_sends(api: Api) -> None:
    """`Expect: 100-continue` with a body too long, or without a token: a final answer, and no 100."""
    for token, status in ((api.by_role["operator"], b"400"), ("stw_wrong", b"401")):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n"
            f"Expect: 100-continue\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(1):
            line = await reader.readline()
        assert line.startswith(b"HTTP/1.1 " + status)
        writer.close()


async def test_client_that_asks_first_is_told_to_go_on(api: Api) -> None:
    answer = await api.call("POST", PATH, ADD, headers={"Expect": "100-continue"})
    assert answer.status == 201


@pytest.mark.parametrize("path", [PATH, "/v1/nothing"])
async def test_unknown_expectation_is_malformed(api: Api, path: str) -> None:
    (await api.call("POST", path, ADD, headers={"Expect": "tea"})).problem(400, "malformed_body")


async def test_wrong_method_is_405_with_allow(api: Api) -> None:
    answer = await api.call("PUT", PATH, ADD)
    answer.problem(405, "not_found")
    assert answer.headers["Allow"] == "GET, HEAD, POST"
    assert answer.json["status"] == 405


@pytest.mark.parametrize("ref", ["%00", "..%2f..%2fetc", "%ff%fe", "x" * 2000, "%E2%80%AE", "0", "*"])
@pytest.mark.parametrize("path", ["/v1/storage_backends/{}", "/v1/hosts/{}", "/v1/operations/{}", "/v1/tokens/{}"])
async def test_odd_reference_is_not_found(api: Api, path: str, ref: str) -> None:
    (await api.call("GET", path.format(ref), role="admin")).problem(404, "not_found")


@pytest.mark.parametrize(
    ("path", "body", "pointers"),
    [
        ("/v1/tokens", {"name": "t", "role": "god"}, ["/role"]),
        ("/v1/tokens", {"name": "t", "role": "admin", "expires_at": "2020-01-01T00:00:00Z"}, ["/expires_at"]),
        ("/v1/tokens", {"name": "t", "role": "admin", "expires_at": "2030-01-01T00:00:00"}, ["/expires_at"]),
        ("/v1/tokens", {"name": "t", "role": "admin", "expires_at": 5}, ["/expires_at"]),
        ("/v1/tokens", {"secret": "x"}, ["/name", "/role", "/secret"]),
        ("/v1/hosts/join_tokens", {"ttl_s": 0}, ["/ttl_s"]),
        ("/v1/hosts/join_tokens", {"ttl_s": 86401}, ["/ttl_s"]),
        ("/v1/hosts/join_tokens", {"ttl_s": True}, ["/ttl_s"]),
        ("/v1/hosts/join_tokens", {"ttl": 5}, ["/ttl"]),
        ("/v1/hosts/hv1/discover", {"kind": "nfs", "config": {"servr": "x"}}, ["/config/servr"]),
        ("/v1/hosts/hv1/discover", {"kind": "nfs", "config": {"server": "a,b"}}, ["/config/server"]),
        ("/v1/hosts/hv1/discover", {}, ["/config", "/kind"]),
        ("/v1/storage_backends/x/initialize", {"confirm": 1, "force": "y"}, ["/confirm", "/force", "/wwid"]),
        (
            "/v1/enrol",
            {"name": "HV", "facts": {"labels": 1}},
            ["/facts", "/identity_key", "/name", "/sealing_key", "/signature", "/token"],
        ),
    ],
)
async def test_other_bodies_name_every_wrong_field(api: Api, path: str, body: object, pointers: list[str]) -> None:
    answer = await api.call("POST", path, body, role="admin")
    answer.problem(400, "invalid_field")
    assert answer.pointers() == pointers
