"""Bodies about volumes that are bad by themselves: refused with every wrong field, before anything is asked or touched."""

from typing import Any

import pytest

from schemas.volumes import VolumeRole
from tests.manager.api.conftest import Api
from tests.manager.api.volume_stand_ins import MIB

ID = "0197c0de-0000-7000-8000-000000000000"
SHA = "ab" * 32
VOLUME: dict[str, Any] = {"name": "web", "size_bytes": MIB}
IMAGE: dict[str, Any] = {"name": "debian", "path": "/srv/debian.raw", "sha256": SHA, "source_format": "raw"}


def _url(url: object) -> dict[str, Any]:
    return {key: value for key, value in IMAGE.items() if key != "path"} | {"url": url}


def _without(body: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != field}


async def _refused(api: Api, path: str, body: object, pointers: list[str]) -> None:
    web = api.volumes.insert("tank")
    api.volumes.insert("monday", VolumeRole.SNAPSHOT, parent_id=web.id)
    answer = await api.call("POST", path, body)
    answer.problem(400, "invalid_field")
    assert answer.pointers() == pointers
    assert all(error["detail"] for error in answer.json["errors"])
    assert "hunter2" not in answer.body.decode()
    assert api.volumes.calls == []


@pytest.mark.parametrize(
    ("change", "pointers"),
    [
        ({"size_bytes": 0}, ["/size_bytes"]),
        ({"size_bytes": -1}, ["/size_bytes"]),
        ({"size_bytes": -MIB}, ["/size_bytes"]),
        ({"size_bytes": 2**63}, ["/size_bytes"]),
        ({"size_bytes": 2**63 - 1}, ["/size_bytes"]),
        ({"size_bytes": 2**64 * MIB}, ["/size_bytes"]),
        ({"size_bytes": 511}, ["/size_bytes"]),
        ({"size_bytes": MIB + 1}, ["/size_bytes"]),
        ({"size_bytes": 1048576.0}, ["/size_bytes"]),
        ({"size_bytes": "1048576"}, ["/size_bytes"]),
        ({"size_bytes": True}, ["/size_bytes"]),
        ({"size_bytes": None}, ["/size_bytes"]),
        ({"name": "a/b"}, ["/name"]),
        ({"name": ".."}, ["/name"]),
        ({"name": ""}, ["/name"]),
        ({"name": "a\0b"}, ["/name"]),
        ({"name": "-rf"}, ["/name"]),
        ({"name": "x" * 64}, ["/name"]),
        ({"name": ID}, ["/name"]),
        ({"name": None}, ["/name"]),
        ({"colour": "red"}, ["/colour"]),
        ({"size": MIB}, ["/size"]),
        ({"backend": "tank", "backend_id": ID}, ["/backend_id"]),
        ({"backend_id": "tank"}, ["/backend_id"]),
        ({"backend": ""}, ["/backend"]),
        ({"backend": 7}, ["/backend"]),
        ({"host": "hv1\n"}, ["/host"]),
        ({"format": "vmdk"}, ["/format"]),
        ({"format": None}, ["/format"]),
        ({"source": {}}, ["/source"]),
        ({"source": {"image": "a", "volume": "b"}}, ["/source"]),
        ({"source": {"file": "/etc/passwd"}}, ["/source"]),
        ({"source": {"image": 7}}, ["/source"]),
        ({"source": {"image": ""}}, ["/source"]),
        ({"source": "debian"}, ["/source"]),
        ({"source": None}, ["/source"]),
        ({"labels": {"a:b": "c"}}, ["/labels/a:b"]),
        ({"labels": ["a"]}, ["/labels"]),
        ({"name": "a/b", "size_bytes": 0, "host": 1, "x": 1}, ["/host", "/name", "/size_bytes", "/x"]),
    ],
)
async def test_create_names_every_wrong_field(api: Api, change: dict[str, Any], pointers: list[str]) -> None:
    await _refused(api, "/v1/volumes", VOLUME | change, pointers)


async def test_create_without_size_or_source_is_refused(api: Api) -> None:
    await _refused(api, "/v1/volumes", {"name": "web"}, ["/size_bytes"])


@pytest.mark.parametrize("size_bytes", [512, MIB, 2**62])
async def test_create_takes_sizes_of_whole_sectors(api: Api, size_bytes: int) -> None:
    assert (await api.call("POST", "/v1/volumes", VOLUME | {"size_bytes": size_bytes})).status == 201


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (IMAGE | {"sha256": "abc"}, ["/sha256"]),
        (IMAGE | {"sha256": "xy" * 32}, ["/sha256"]),
        (IMAGE | {"sha256": SHA + "00"}, ["/sha256"]),
        (IMAGE | {"sha256": None}, ["/sha256"]),
        (_without(IMAGE, "sha256"), ["/sha256"]),
        (_without(IMAGE, "source_format"), ["/source_format"]),
        (IMAGE | {"source_format": "vmdk"}, ["/source_format"]),
        (_without(IMAGE, "path"), ["/path"]),
        (IMAGE | {"url": "https://example.org/a.raw"}, ["/path"]),
        (IMAGE | {"path": "images/debian.raw"}, ["/path"]),
        (IMAGE | {"path": "../debian.raw"}, ["/path"]),
        (IMAGE | {"path": ""}, ["/path"]),
        (IMAGE | {"path": "/srv/a\0b"}, ["/path"]),
        (IMAGE | {"path": "/" + "a" * 4096}, ["/path"]),
        (_url("file:///etc/shadow"), ["/url"]),
        (_url("ftp://example.org/a.raw"), ["/url"]),
        (_url("https://svc:hunter2@example.org/a.raw"), ["/url"]),
        (_url("https://svc@example.org/a.raw"), ["/url"]),
        (_url("https:///a.raw"), ["/url"]),
        (_url("https://example.org:99999/a.raw"), ["/url"]),
        (_url("https://example.org:0/a.raw"), ["/url"]),
        (_url("https://[::1/a.raw"), ["/url"]),
        (_url("https://bücher.example/a.raw"), ["/url"]),
        (_url("https://example.org/a b.raw"), ["/url"]),
        (_url("example.org/a.raw"), ["/url"]),
        (_url("https://example.org/a\r\nHost: b"), ["/url"]),
        (_url(7), ["/url"]),
        (IMAGE | {"size_bytes": MIB}, ["/size_bytes"]),
        ({}, ["/name", "/path", "/sha256", "/source_format"]),
    ],
)
async def test_image_names_every_wrong_field(api: Api, body: object, pointers: list[str]) -> None:
    await _refused(api, "/v1/images", body, pointers)


@pytest.mark.parametrize("url", ["https://example.org/a.raw?x=1", "http://[::1]:8080/a.raw", "https://example.org"])
async def test_image_takes_addresses_of_web_servers(api: Api, url: str) -> None:
    assert (await api.call("POST", "/v1/images", _url(url))).status == 201


async def test_image_digest_is_kept_in_lower_case(api: Api) -> None:
    assert (await api.call("POST", "/v1/images", IMAGE | {"sha256": SHA.upper()})).json["sha256"] == SHA


@pytest.mark.parametrize(
    ("path", "body", "pointers"),
    [
        ("resize", {}, ["/size_bytes"]),
        ("resize", {"size_bytes": 0}, ["/size_bytes"]),
        ("resize", {"size_bytes": MIB + 1}, ["/size_bytes"]),
        ("resize", {"size_bytes": 2**63}, ["/size_bytes"]),
        ("resize", {"size_bytes": MIB, "may_shrink": "yes"}, ["/may_shrink"]),
        ("resize", {"size_bytes": MIB, "force": True}, ["/force"]),
        ("attach", {}, ["/host"]),
        ("attach", {"host": ""}, ["/host"]),
        ("attach", {"host": "hv1", "mode": "rwx"}, ["/mode"]),
        ("attach", {"host": "hv1", "mode": None}, ["/mode"]),
        ("attach", {"host": "hv1", "path": "/dev/sda"}, ["/path"]),
        ("detach", {"force": 1}, ["/force"]),
        ("detach", {"host": 1}, ["/host"]),
        ("detach", {"froce": True}, ["/froce"]),
        ("migrate", {}, ["/backend"]),
        ("migrate", {"backend": "slow", "to": "x"}, ["/to"]),
        ("clone", {}, ["/name"]),
        ("clone", {"name": "a/b", "size_bytes": 7}, ["/name", "/size_bytes"]),
        ("clone", {"name": "b", "source": {"volume": "x"}}, ["/source"]),
        ("snapshots", {}, ["/name"]),
        ("snapshots", {"name": "a/b"}, ["/name"]),
        ("snapshots", {"name": "a", "size_bytes": 1}, ["/size_bytes"]),
        ("snapshots/monday/revert", {"force": True}, ["/force"]),
    ],
)
async def test_change_names_every_wrong_field(api: Api, path: str, body: object, pointers: list[str]) -> None:
    await _refused(api, f"/v1/volumes/tank/{path}", body, pointers)


@pytest.mark.parametrize(
    ("path", "body", "pointers"),
    [
        ("evacuate", {}, ["/to"]),
        ("evacuate", {"to": "slow", "dry_run": "true"}, ["/dry_run"]),
        ("evacuate", {"to": "slow", "dry_rum": True}, ["/dry_rum"]),
        ("drift/adopt", {"locator": "cd" * 16}, ["/name"]),
        ("drift/adopt", {"locator": "../x", "name": "a"}, ["/locator"]),
        ("drift/adopt", {"locator": "CD" * 16, "name": "a/b"}, ["/locator", "/name"]),
        ("drift/delete", {}, ["/locator"]),
        ("drift/delete", {"locator": "cd" * 16, "name": "a"}, ["/name"]),
        ("drift/delete", {"locator": 7}, ["/locator"]),
    ],
)
async def test_backend_wide_change_names_every_wrong_field(
    api: Api, path: str, body: object, pointers: list[str]
) -> None:
    await _refused(api, f"/v1/storage_backends/tank/{path}", body, pointers)


@pytest.mark.parametrize("ref", ["%00", "..%2f..%2fetc", "%ff%fe", "x" * 2000, "%E2%80%AE", "*"])
@pytest.mark.parametrize("path", ["/v1/volumes/{}", "/v1/images/{}", "/v1/volumes/tank/snapshots/{}"])
async def test_odd_reference_is_not_found(api: Api, path: str, ref: str) -> None:
    api.volumes.insert("tank")
    (await api.call("GET", path.format(ref))).problem(404, "not_found")


@pytest.mark.parametrize(
    "path", ["/v1/volumes", "/v1/volumes/tank/attach", "/v1/images", "/v1/storage_backends/t/drift/adopt"]
)
async def test_body_that_is_no_object_is_malformed(api: Api, path: str) -> None:
    api.volumes.insert("tank")
    for body in (b"", b"[]", b'{"name": "a", "name": "b"}', b'{"size_bytes": NaN}'):
        (await api.call("POST", path, body=body)).problem(400, "malformed_body")
    assert api.volumes.calls == []
