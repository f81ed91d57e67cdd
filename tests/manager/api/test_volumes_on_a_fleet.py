"""The API of volumes with everything behind it: a manager, its database, two hosts with a pretend storage."""

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest

from schemas.ids import new_id
from schemas.volume_rpc import VolumeFormat, VolumeSpec
from tests.fleet.fleet import Answer, Api, Fleet

MIB = 2**20
_STRAY = "cd" * 16


@pytest.fixture
async def api(stowage: Fleet) -> Api:
    """Hosts hv1 and hv2, and the shared backends fast (the default) and slow."""
    api = await stowage.manager()
    await asyncio.gather(stowage.agent("hv1"), stowage.agent("hv2"))
    for name in ("fast", "slow"):
        body = {
            "name": name,
            "kind": "nfs",
            "config": {"server": "nas", "export": f"/{name}"},
            "is_default": name == "fast",
        }
        assert (await api("POST", "/v1/storage_backends", body)).status == 201
    return api


async def _done(answer: Answer, status: int = 200) -> Any:
    assert answer.status == status, answer
    return answer.body


async def _volume(api: Api, name: str, **more: Any) -> Any:
    return await _done(await api("POST", "/v1/volumes", {"name": name, "size_bytes": MIB, **more}), 201)


async def _names(api: Api, query: str, collection: str = "volumes") -> list[str]:
    return [each["name"] for each in (await _done(await api("GET", f"/v1/{collection}?{query}")))["items"]]


def _refused(answer: Answer, status: int, code: str, *pointers: str) -> str:
    """The detail of the problem, which must be this one."""
    assert (answer.status, answer.body["code"]) == (status, code), answer
    assert tuple(error["pointer"] for error in answer.body["errors"]) == pointers
    return str(answer.body["errors"][0]["detail"] if pointers else answer.body["detail"])


async def test_volume_goes_the_whole_way_of_a_disk(api: Api) -> None:
    made = await _volume(api, "web", labels={"vm": "web"})
    assert (made["backend"], made["state"], made["size_bytes"], made["version"]) == ("fast", "ready", MIB, 1)

    opened = await _done(await api("POST", "/v1/volumes/web/attach", {"host": "hv1"}))
    assert (opened["host"], opened["mode"], opened["type"], opened["epoch"]) == ("hv1", "rw", "file", 1)
    second = await api("POST", "/v1/volumes/web/attach", {"host": "hv2"})
    assert "attached to hv1 (rw)" in _refused(second, 409, "volume_in_use")
    explained = await _done(await api("GET", "/v1/volumes/web/explain?host=hv2"))
    assert (explained["is_usable"], explained["reasons"]) == (False, ["it is attached to hv1 (rw)"])
    assert "attached to hv1" in _refused(await api("DELETE", "/v1/volumes/web"), 409, "volume_in_use")

    frozen = await api("POST", "/v1/volumes/web/snapshots", {"name": "monday"})
    assert frozen.headers["Location"] == f"/v1/volumes/{made['id']}/snapshots/{frozen.body['id']}"
    assert await _done(await api("GET", frozen.headers["Location"])) == frozen.body
    assert await _done(await api("POST", "/v1/volumes/web/detach")) == {"is_confirmed": True}

    grown = await _done(await api("POST", "/v1/volumes/web/resize", {"size_bytes": 2 * MIB}))
    assert grown["size_bytes"] == 2 * MIB
    shrunk = await api("POST", "/v1/volumes/web/resize", {"size_bytes": MIB})
    assert "may_shrink" in _refused(shrunk, 400, "invalid_field", "/size_bytes")
    reverted = await _done(await api("POST", "/v1/volumes/web/snapshots/monday/revert"))
    assert reverted["size_bytes"] == MIB
    moved = await _done(await api("POST", "/v1/volumes/web/migrate", {"backend": "slow"}))
    assert (moved["backend"], moved["snapshots"]) == ("slow", 1)

    assert "1 snapshot(s)" in _refused(await api("DELETE", "/v1/volumes/web"), 409, "volume_in_use")
    assert (await api("DELETE", "/v1/volumes/web/snapshots/monday")).status == 204
    version = (await _done(await api("GET", "/v1/volumes/web")))["version"]
    assert (await api("DELETE", "/v1/volumes/web", If_Match=f'"{version - 1}"')).status == 412
    assert (await api("DELETE", "/v1/volumes/web", If_Match=f'"{version}"')).status == 204
    _refused(await api("GET", "/v1/volumes/web"), 404, "not_found")


async def test_clone_lies_beside_its_source_unless_another_place_is_asked_for(api: Api) -> None:
    await _volume(api, "web", backend="slow", format="qcow2")
    near = await _done(await api("POST", "/v1/volumes/web/clone", {"name": "near"}), 201)
    far = await _done(
        await api("POST", "/v1/volumes/web/clone", {"name": "far", "backend": "fast", "format": "raw"}), 201
    )
    assert [(each["backend"], each["format"], each["source"]) for each in (near, far)] == [
        ("slow", "qcow2", "volume web"),
        ("fast", "raw", "volume web"),
    ]
    await _done(await api("POST", "/v1/volumes/web/attach", {"host": "hv1"}))
    elsewhere = await api("POST", "/v1/volumes/web/clone", {"name": "never", "host": "hv2"})
    assert "must be hv1" in _refused(elsewhere, 400, "invalid_field", "/host")


async def test_list_filters_and_pages_by_the_database(api: Api) -> None:
    for name, backend in (("a", "fast"), ("b", "slow"), ("c", "fast")):
        await _volume(api, name, backend=backend, labels={"first": name})
    await _done(await api("POST", "/v1/volumes/a/attach", {"host": "hv1"}))
    await _done(await api("POST", "/v1/volumes/b/snapshots", {"name": "monday"}), 201)
    assert await _names(api, "backend=fast") == ["a", "c"]
    assert await _names(api, "host=hv1") == ["a"]
    assert await _names(api, "attached=true") == ["a"]
    assert await _names(api, "attached=false") == ["b", "c"]
    assert await _names(api, "unused=true") == ["c"]
    assert await _names(api, "state=ready&label=first:b") == ["b"]
    page = await _done(await api("GET", "/v1/volumes?limit=2"))
    assert [each["name"] for each in page["items"]] == ["a", "b"]
    last = await _done(await api("GET", f"/v1/volumes?limit=2&cursor={page['next_cursor']}"))
    assert ([each["name"] for each in last["items"]], last["next_cursor"]) == (["c"], None)


#: (method, path, body, where the name of nothing stands)
NAMES_OF_NOTHING: list[tuple[str, str, Any, str]] = [
    ("GET", "/v1/volumes?backend=none", None, "/query/backend"),
    ("GET", "/v1/volumes?host=none", None, "/query/host"),
    ("GET", "/v1/volumes?cursor=dm9sdW1lczoxMjM", None, "/query/cursor"),
    ("GET", "/v1/images?backend=none", None, "/query/backend"),
    ("GET", "/v1/images?cursor=aW1hZ2VzOjEyMw", None, "/query/cursor"),
    ("GET", "/v1/volumes/web/explain?host=none", None, "/query/host"),
    ("POST", "/v1/volumes", {"name": "x", "size_bytes": MIB, "backend": "none"}, "/backend"),
    ("POST", "/v1/volumes", {"name": "x", "size_bytes": MIB, "backend_id": new_id()}, "/backend_id"),
    ("POST", "/v1/volumes", {"name": "x", "size_bytes": MIB, "host": "none"}, "/host"),
    ("POST", "/v1/volumes", {"name": "x", "size_bytes": 512, "source": {"volume": "web"}}, "/size_bytes"),
    ("POST", "/v1/volumes", {"name": "x", "source": {"image": "none"}}, "/source/image"),
    ("POST", "/v1/volumes", {"name": "x", "source": {"snapshot": "monday"}}, "/source/snapshot"),
    ("POST", "/v1/volumes", {"name": "x", "source": {"snapshot": "web/monday"}}, "/source/snapshot"),
    ("POST", "/v1/volumes/web/clone", {"name": "x", "backend": "none"}, "/backend"),
    ("POST", "/v1/volumes/web/migrate", {"backend": "none"}, "/backend"),
    ("POST", "/v1/volumes/web/migrate", {"backend": "fast"}, "/backend"),
    ("POST", "/v1/volumes/web/attach", {"host": "none"}, "/host"),
    ("POST", "/v1/storage_backends/fast/evacuate", {"to": "none"}, "/to"),
    ("POST", "/v1/storage_backends/fast/evacuate", {"to": "fast", "dry_run": True}, "/to"),
]


async def test_name_of_nothing_is_refused_where_it_was_given(api: Api) -> None:
    await _volume(api, "web")
    for method, path, body, pointer in NAMES_OF_NOTHING:
        _refused(await api(method, path, body), 400, "invalid_field", pointer)
    assert await _names(api, "") == ["web"]


async def test_second_detach_is_not_found(api: Api) -> None:
    await _volume(api, "web")
    for body in ({}, {"host": "hv1"}):
        answer = await api("POST", "/v1/volumes/web/detach", body)
        assert "is not attached" in _refused(answer, 404, "not_found")


async def test_create_without_a_default_is_refused_with_a_remedy(stowage: Fleet) -> None:
    api = await stowage.manager()
    await stowage.agent("hv1")
    answer = await api("POST", "/v1/volumes", {"name": "web", "size_bytes": MIB})
    assert "name one in the field backend" in _refused(answer, 409, "wrong_state")


async def test_image_is_checked_and_copied_from(api: Api) -> None:
    content = b"i" * MIB
    (api.images / "debian.raw").write_bytes(content)
    body = {"name": "debian", "path": f"{api.images}/debian.raw", "source_format": "raw", "sha256": "00" * 32}
    wrong = await api("POST", "/v1/images", body)
    _refused(wrong, 422, "probe_failed")
    assert wrong.body["faults"][0]["code"] == "wrong_digest"
    assert await _names(api, "", "images") == []
    sha256 = hashlib.sha256(content).hexdigest()
    image = await _done(await api("POST", "/v1/images", {**body, "sha256": sha256, "labels": {"os": "debian"}}), 201)
    assert (image["sha256"], image["size_bytes"], image["source"]) == (sha256, MIB, body["path"])
    assert await _names(api, "label=os:debian", "images") == ["debian"]
    volume = await _done(await api("POST", "/v1/volumes", {"name": "web", "source": {"image": "debian"}}), 201)
    assert (volume["size_bytes"], volume["source"]) == (MIB, "image debian")
    edited = await _done(
        await api("PATCH", "/v1/images/debian", {"name": "debian-12"}, If_Match=f'"{image["version"]}"')
    )
    assert edited["name"] == "debian-12"
    moved = await _done(await api("POST", "/v1/images/debian-12/migrate", {"backend": "slow"}))
    assert moved["backend"] == "slow"
    assert (await api("DELETE", "/v1/images/debian-12")).status == 204


async def test_image_of_a_signed_address_shows_the_address_without_the_signature(api: Api, stowage: Fleet) -> None:
    body = {
        "name": "debian", "url": "http://127.0.0.1:9/debian.raw?sig=hunter2", "source_format": "raw", "sha256": "00" * 32,
    }  # fmt: skip
    failed = await api("POST", "/v1/images", body)
    _refused(failed, 422, "probe_failed")
    assert failed.body["faults"][0]["code"] == "server_unreachable"
    operation = await _done(await api("GET", failed.body["operation"]))
    assert "hunter2" not in msgspec.json.encode([failed.body, operation]).decode()
    [row] = await stowage.sql("SELECT params ->> 'source_words' AS words FROM operation WHERE kind = 'volume.create'")
    assert row["words"] == "http://127.0.0.1:9/debian.raw"


async def test_strays_are_adopted_or_deleted_whatever_size_they_have(api: Api, stowage: Fleet) -> None:
    backend_id = (await _volume(api, "web"))["backend_id"]
    folder = stowage.world.volumes_folder(backend_id)
    (folder / "notes.txt").write_text("foreign")
    path = "/v1/storage_backends/fast/drift"

    def strand(size_bytes: int) -> None:
        spec = VolumeSpec(locator=_STRAY, format=VolumeFormat.RAW, size_bytes=size_bytes)
        (folder / f"{_STRAY}.json").write_bytes(msgspec.json.encode(spec))
        (folder / f"{_STRAY}.data").write_bytes(b"s" * size_bytes)

    strand(1000)
    report = await _done(await api("GET", path))
    assert [each["locator"] for each in report["strays"]] == [_STRAY]
    assert [each["name"] for each in report["foreign"]] == ["notes.txt"]
    assert (report["missing"], report["sizes"]) == ([], [])
    odd = await api("POST", f"{path}/adopt", {"locator": _STRAY, "name": "found"})
    assert "1000 bytes" in _refused(odd, 409, "wrong_state")
    assert (await api("POST", f"{path}/delete", {"locator": _STRAY})).status == 204
    assert not (folder / f"{_STRAY}.data").exists()
    _refused(await api("POST", f"{path}/delete", {"locator": _STRAY}), 404, "not_found")

    strand(MIB)
    adopted = await _done(await api("POST", f"{path}/adopt", {"locator": _STRAY, "name": "found"}), 201)
    assert (adopted["size_bytes"], adopted["state"], adopted["locator"]) == (MIB, "ready", _STRAY)
    again = await api("POST", f"{path}/delete", {"locator": _STRAY})
    assert "no stray" in _refused(again, 409, "wrong_state")
    assert (await _done(await api("GET", path)))["strays"] == []


async def test_drained_backend_is_evacuated_and_then_removed(api: Api) -> None:
    await _volume(api, "web", backend="slow")
    await _volume(api, "db", backend="slow")
    await _done(await api("POST", "/v1/volumes/db/attach", {"host": "hv1"}))
    path = "/v1/storage_backends/slow/evacuate"
    not_draining = await api("POST", path, {"to": "fast"})
    assert "set its state to draining first" in _refused(not_draining, 409, "wrong_state")
    in_use = await api("DELETE", "/v1/storage_backends/slow")
    assert "2 live volume(s)" in _refused(in_use, 409, "backend_in_use")
    await _done(await api("PATCH", "/v1/storage_backends/slow", {"state": "draining"}))
    _refused(await api("POST", "/v1/volumes", {"name": "x", "size_bytes": MIB, "backend": "slow"}), 409, "wrong_state")

    plan = await _done(await api("POST", path, {"to": "fast", "dry_run": True}))
    assert (plan["to"], plan["total_bytes"]) == ("fast", MIB)
    assert [each["name"] for each in plan["items"]] == ["web"]
    assert [(each["name"], each["reason"]) for each in plan["blockers"]] == [
        ("db", "it is attached to hv1: detach it first")
    ]
    partly = await api("POST", path, {"to": "fast"})
    assert "1 of the volumes of slow could not be moved" in _refused(partly, 409, "backend_in_use")
    await _done(await api("POST", "/v1/volumes/db/detach"))
    assert (await _done(await api("POST", path, {"to": "fast"})))["moved_bytes"] == MIB
    assert await _names(api, "backend=fast") == ["web", "db"]
    assert (await api("DELETE", "/v1/storage_backends/slow")).status == 204
