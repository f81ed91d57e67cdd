"""/v1/volumes, /v1/images and snapshots as HTTP: statuses, headers, filters, pages."""

from typing import Any

import pytest

from manager.errors import Refused
from schemas.problems import ProblemCode
from schemas.volumes import VolumeRole
from tests.manager.api.conftest import Answer, Api
from tests.manager.api.volume_stand_ins import MIB

CREATE: dict[str, Any] = {"name": "web-1", "size_bytes": MIB, "labels": {"vm": "web-1"}}
IMAGE: dict[str, Any] = {
    "name": "debian", "path": "/srv/images/debian.raw", "sha256": "ab" * 32, "source_format": "raw",
}  # fmt: skip

#: (method, path, body, verb that is called, status when done); `web` and `debian` are there, and a snapshot `monday` of `web`.
CHANGES: list[tuple[str, str, dict[str, Any] | None, str, int]] = [
    ("POST", "/v1/volumes", CREATE, "create", 201),
    ("DELETE", "/v1/volumes/web", None, "delete", 204),
    ("POST", "/v1/volumes/web/resize", {"size_bytes": 2 * MIB}, "resize", 200),
    ("POST", "/v1/volumes/web/clone", {"name": "web-2"}, "clone", 201),
    ("POST", "/v1/volumes/web/migrate", {"backend": "slow"}, "migrate", 200),
    ("POST", "/v1/volumes/web/attach", {"host": "hv1"}, "attach", 200),
    ("POST", "/v1/volumes/web/detach", {}, "detach", 200),
    ("POST", "/v1/volumes/web/snapshots", {"name": "tuesday"}, "create_snapshot", 201),
    ("DELETE", "/v1/volumes/web/snapshots/monday", None, "delete", 204),
    ("POST", "/v1/volumes/web/snapshots/monday/revert", None, "revert", 200),
    ("POST", "/v1/images", IMAGE, "create_image", 201),
    ("DELETE", "/v1/images/debian", None, "delete", 204),
    ("POST", "/v1/images/debian/migrate", {"backend": "slow"}, "migrate", 200),
    ("POST", "/v1/storage_backends/tank/evacuate", {"to": "slow"}, "evacuate", 200),
    ("POST", "/v1/storage_backends/tank/drift/delete", {"locator": "cd" * 16}, "delete_stray", 204),
]
_IDS = [f"{method} {path}" for method, path, *_ in CHANGES]


def _fill(api: Api) -> None:
    web = api.volumes.insert("web")
    api.volumes.insert("monday", VolumeRole.SNAPSHOT, parent_id=web.id)
    api.volumes.insert("debian", VolumeRole.IMAGE)


async def _call(api: Api, method: str, path: str, body: object, **headers: str) -> Answer:
    return await api.call(method, path, body, headers={name.replace("_", "-"): text for name, text in headers.items()})


@pytest.mark.parametrize(("method", "path", "body", "verb", "status"), CHANGES, ids=_IDS)
async def test_change_that_ends_in_time_answers_its_end(
    api: Api, method: str, path: str, body: object, verb: str, status: int
) -> None:
    _fill(api)
    answer = await _call(api, method, path, body)
    assert (answer.status, [each[0] for each in api.volumes.calls]) == (status, [verb])
    assert (answer.body == b"") is (status == 204)
    assert ("Location" in answer.headers) is (status == 201)
    if status == 201:
        again = await api.call("GET", answer.headers["Location"], role="viewer")
        assert (again.status, again.json) == (200, answer.json)


@pytest.mark.parametrize(("method", "path", "body", "verb", "status"), CHANGES, ids=_IDS)
async def test_change_respond_async_is_202_with_the_operation(
    api: Api, method: str, path: str, body: object, verb: str, status: int
) -> None:
    _fill(api)
    answer = await _call(api, method, path, body, Prefer="respond-async")
    assert (answer.status, [each[0] for each in api.volumes.calls]) == (202, [verb])
    assert answer.headers["Location"] == f"/v1/operations/{api.volumes.operation_id}"
    assert answer.headers["Preference-Applied"] == "respond-async"


@pytest.mark.parametrize(("method", "path", "body", "verb", "status"), CHANGES, ids=_IDS)
async def test_change_beyond_the_wait_is_202_without_a_preference(
    api: Api, method: str, path: str, body: object, verb: str, status: int
) -> None:
    _fill(api)
    api.volumes.is_slow = True
    answer = await _call(api, method, path, body)
    assert (answer.status, [each[0] for each in api.volumes.calls]) == (202, [verb])
    assert "Preference-Applied" not in answer.headers


@pytest.mark.parametrize(("method", "path", "body", "verb", "status"), CHANGES, ids=_IDS)
async def test_change_that_is_refused_answers_the_problem(
    api: Api, method: str, path: str, body: object, verb: str, status: int
) -> None:
    _fill(api)
    blockers = ({"type": "attachment", "id": "a", "name": "hv1"},)
    api.volumes.failure = Refused.because(ProblemCode.VOLUME_IN_USE, "it is attached to hv1", blockers=blockers)
    problem = (await _call(api, method, path, body)).problem(409, "volume_in_use")
    assert (problem["detail"], problem["blockers"]) == ("it is attached to hv1", list(blockers))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        (method, path.replace("web", "none").replace("monday", "none").replace("debian", "none"), body)
        for method, path, body, *_ in CHANGES
        if any(name in path for name in ("web", "debian"))
    ],
)
async def test_change_of_what_is_not_there_is_404(api: Api, method: str, path: str, body: object) -> None:
    (await _call(api, method, path, body)).problem(404, "not_found")
    assert api.volumes.calls == []


async def test_snapshot_of_another_volume_is_not_found(api: Api) -> None:
    _fill(api)
    api.volumes.insert("other")
    for method in ("GET", "DELETE"):
        (await api.call(method, "/v1/volumes/other/snapshots/monday")).problem(404, "not_found")
    (await api.call("POST", "/v1/volumes/other/snapshots/monday/revert")).problem(404, "not_found")
    assert api.volumes.calls == []


async def test_create_answers_the_volume_with_location_and_etag(api: Api) -> None:
    answer = await api.call("POST", "/v1/volumes", CREATE)
    assert answer.headers["Location"] == f"/v1/volumes/{answer.json['id']}"
    assert answer.headers["ETag"] == '"1"'
    assert (answer.json["size_bytes"], answer.json["labels"]) == (MIB, {"vm": "web-1"})
    assert (answer.json["attachments"], answer.json["snapshots"], answer.json["operation"]) == ([], 0, None)
    shown = await api.call("GET", "/v1/volumes/web-1", role="viewer")
    assert (shown.json, shown.headers["ETag"]) == (answer.json, '"1"')
    (await api.call("POST", "/v1/volumes", CREATE)).problem(409, "name_taken")


async def test_create_hands_on_what_the_body_says(api: Api) -> None:
    backend_id = "0197c0de-0000-7000-8000-000000000000"
    body = CREATE | {
        "backend_id": backend_id, "host": "hv1", "format": "qcow2", "source": {"snapshot": "web/monday"},
    }  # fmt: skip
    assert (await api.call("POST", "/v1/volumes", body)).status == 201
    ((_, asked),) = api.volumes.calls
    assert (asked.backend, asked.host, asked.format) == (backend_id, "hv1", "qcow2")
    assert (asked.source.kind, asked.source.ref) == ("snapshot", "web/monday")


async def test_create_with_a_source_needs_no_size(api: Api) -> None:
    body = {"name": "web-2", "source": {"image": "debian"}}
    assert (await api.call("POST", "/v1/volumes", body)).status == 201
    ((_, asked),) = api.volumes.calls
    assert asked.size_bytes is None


async def test_attach_answers_what_a_hypervisor_needs(api: Api) -> None:
    _fill(api)
    answer = await api.call("POST", "/v1/volumes/web/attach", {"host": "hv1", "mode": "ro"})
    assert sorted(answer.json) == ["epoch", "host", "mode", "path", "type"]
    assert (answer.json["type"], answer.json["epoch"]) == ("file", 1)
    assert (answer.json["host"], answer.json["mode"]) == ("hv1", "ro")
    shown = (await api.call("GET", "/v1/volumes/web", role="viewer")).json
    assert [(each["host"], each["path"]) for each in shown["attachments"]] == [("hv1", answer.json["path"])]


async def test_detach_says_whether_the_host_has_confirmed(api: Api) -> None:
    _fill(api)
    assert (await api.call("POST", "/v1/volumes/web/detach")).json == {"is_confirmed": True}
    forced = await api.call("POST", "/v1/volumes/web/detach", {"host": "hv1", "force": True})
    assert forced.json == {"is_confirmed": False}


async def test_explain_answers_reasons_and_needs_a_host(api: Api) -> None:
    _fill(api)
    answer = await api.call("GET", "/v1/volumes/web/explain?host=hv1", role="viewer")
    assert answer.json == {"host": "hv1", "is_usable": False, "reasons": ["it is attached to hv2 (rw)"]}
    answer = await api.call("GET", "/v1/volumes/web/explain", role="viewer")
    answer.problem(400, "invalid_field")
    assert answer.pointers() == ["/query/host"]


CONDITIONAL: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PATCH", "/v1/volumes/web", {"name": "web-2"}),
    ("DELETE", "/v1/volumes/web", None),
    ("POST", "/v1/volumes/web/resize", {"size_bytes": 2 * MIB}),
    ("PATCH", "/v1/images/debian", {"labels": {"os": "debian"}}),
    ("DELETE", "/v1/images/debian", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CONDITIONAL)
@pytest.mark.parametrize("tags", ['"2"', 'W/"1"', '"abc"', '"2", "3"'])
async def test_change_with_a_stale_etag_is_412_and_changes_nothing(
    api: Api, method: str, path: str, body: object, tags: str
) -> None:
    _fill(api)
    before = dict(api.volumes.rows)
    problem = (await _call(api, method, path, body, If_Match=tags)).problem(412, "stale_version")
    assert "not 0" not in problem["detail"]
    assert api.volumes.rows == before


@pytest.mark.parametrize(("method", "path", "body"), CONDITIONAL)
@pytest.mark.parametrize("tags", ["*", '"1"', '"9", "1"'])
async def test_change_with_the_present_etag_is_made(api: Api, method: str, path: str, body: object, tags: str) -> None:
    _fill(api)
    answer = await _call(api, method, path, body, If_Match=tags)
    assert (answer.status, answer.headers.get("ETag")) == ((204, None) if method == "DELETE" else (200, '"2"'))


async def test_edit_changes_name_and_labels_and_points_elsewhere_for_the_rest(api: Api) -> None:
    _fill(api)
    answer = await api.call("PATCH", "/v1/volumes/web", {"name": "www", "labels": {"tier": "gold"}})
    assert (answer.json["name"], answer.json["labels"], answer.json["version"]) == ("www", {"tier": "gold"}, 2)
    refused = await api.call("PATCH", "/v1/volumes/www", {"size_bytes": MIB, "backend": "slow"})
    errors = refused.problem(400, "invalid_field")["errors"]
    assert [(error["pointer"], error["detail"].split()[-1]) for error in errors] == [
        ("/backend", "…/migrate"),
        ("/size_bytes", "…/resize"),
    ]


async def test_list_hands_on_its_filters(api: Api) -> None:
    query = "backend=tank&host=hv1&state=ready&attached=false&unused=true&label=a:b&label=c:d&limit=7"
    assert (await api.call("GET", f"/v1/volumes?{query}", role="viewer")).json == {"items": [], "next_cursor": None}
    assert api.volumes.asked == {
        "backend": "tank", "host": "hv1", "state": "ready", "is_attached": False, "is_unused": True,
        "labels": {"a": "b", "c": "d"}, "limit": 8,
    }  # fmt: skip
    await api.call("GET", "/v1/volumes?attached=true&unused=false")
    assert (api.volumes.asked["is_attached"], api.volumes.asked["is_unused"]) == (True, False)
    await api.call("GET", "/v1/volumes")
    assert (api.volumes.asked["is_attached"], api.volumes.asked["limit"]) == (None, 101)
    await api.call("GET", "/v1/images?backend=tank&label=a:b&limit=3")
    assert api.volumes.asked == {"backend": "tank", "labels": {"a": "b"}, "limit": 4}


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("volumes?state=gone", "/query/state"),
        ("volumes?attached=maybe", "/query/attached"),
        ("volumes?attached=", "/query/attached"),
        ("volumes?unused=1", "/query/unused"),
        ("volumes?label=tier", "/query/label"),
        ("volumes?limit=0", "/query/limit"),
        ("volumes?cursor=aW1hZ2VzOjE", "/query/cursor"),
        ("volumes?backend=a&backend=b", "/query/backend"),
        ("volumes?name=web", "/query/name"),
        ("images?state=ready", "/query/state"),
        ("volumes/web/snapshots?label=a:b", "/query/label"),
        ("volumes/web/explain?host=a&host=b", "/query/host"),
        ("volumes/web/explain?host=a&mode=wr", "/query/mode"),
        ("operations?kind=volume.creates", "/query/kind"),
    ],
)
async def test_list_with_a_wrong_parameter_is_400_and_names_it(api: Api, path: str, pointer: str) -> None:
    _fill(api)
    answer = await api.call("GET", f"/v1/{path}")
    answer.problem(400, "invalid_field")
    assert answer.pointers() == [pointer]


@pytest.mark.parametrize("path", ["volumes/web", "images/debian", "volumes/web/snapshots/monday"])
async def test_deletion_with_a_body_deletes_nothing(api: Api, path: str) -> None:
    """Who sends `dry_run` there must not lose what he looks at."""
    _fill(api)
    (await api.call("DELETE", f"/v1/{path}", {"dry_run": True})).problem(400, "invalid_field")
    assert "delete" not in [verb for verb, _ in api.volumes.calls]


@pytest.mark.parametrize("path", ["/v1/volumes", "/v1/images", "/v1/volumes/web/snapshots"])
async def test_list_pages_in_the_order_of_making(api: Api, path: str) -> None:
    parent = api.volumes.insert("web", VolumeRole.VOLUME if "web" in path else VolumeRole.TRANSIENT)
    role = {"/v1/volumes": VolumeRole.VOLUME, "/v1/images": VolumeRole.IMAGE}.get(path, VolumeRole.SNAPSHOT)
    parent_id = parent.id if role is VolumeRole.SNAPSHOT else None
    rows = [api.volumes.insert(f"v{n}", role, parent_id=parent_id) for n in range(7)]
    seen: list[str] = []
    query, pages = "?limit=3", 0
    while True:
        page = (await api.call("GET", path + query, role="viewer")).json
        seen += [item["id"] for item in page["items"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        query = f"?limit=3&cursor={page['next_cursor']}"
    assert (seen, pages) == ([row.id for row in rows], 3)


async def test_list_whose_items_fill_the_page_has_no_next(api: Api) -> None:
    for n in range(3):
        api.volumes.insert(f"v{n}")
    assert (await api.call("GET", "/v1/volumes?limit=3")).json["next_cursor"] is None


async def test_image_is_registered_shown_and_edited(api: Api) -> None:
    made = await api.call("POST", "/v1/images", IMAGE)
    assert made.headers["Location"] == f"/v1/images/{made.json['id']}"
    assert made.json["sha256"] == "ab" * 32
    edited = await api.call("PATCH", "/v1/images/debian", {"name": "debian-12"})
    assert (edited.json["name"], edited.headers["ETag"]) == ("debian-12", '"2"')
    # An image is not a volume: each has its own names.
    (await api.call("GET", "/v1/volumes/debian-12")).problem(404, "not_found")


async def test_drift_is_shown_and_a_stray_adopted(api: Api) -> None:
    report = (await api.call("GET", "/v1/storage_backends/tank/drift", role="viewer")).json
    assert sorted(report) == ["foreign", "missing", "sizes", "strays", "unseen_hosts"]
    body = {"locator": report["strays"][0]["locator"], "name": "found"}
    answer = await api.call("POST", "/v1/storage_backends/tank/drift/adopt", body)
    assert (answer.status, answer.json["name"], answer.headers["ETag"]) == (201, "found", '"1"')
    assert answer.headers["Location"] == f"/v1/volumes/{answer.json['id']}"
    unknown = await api.call("POST", "/v1/storage_backends/tank/drift/delete", {"locator": "0" * 32})
    unknown.problem(404, "not_found")


async def test_evacuate_dry_run_answers_the_plan_and_starts_nothing(api: Api) -> None:
    path = "/v1/storage_backends/tank/evacuate"
    plan = await api.call("POST", path, {"to": "slow", "dry_run": True})
    assert plan.json == {"to": "slow", "total_bytes": 0, "items": [], "blockers": []}
    assert api.volumes.calls == []
    done = await api.call("POST", path, {"to": "slow"})
    assert done.json == {"backend_id": "tank", "moved_bytes": MIB}


@pytest.mark.parametrize("path", ["/v1/volumes/web", "/v1/volumes/web/snapshots/monday", "/v1/images/debian"])
async def test_head_answers_without_a_body(api: Api, path: str) -> None:
    _fill(api)
    answer = await api.call("HEAD", path, role="viewer")
    assert (answer.status, answer.body) == (200, b"")
