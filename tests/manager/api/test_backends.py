"""/v1/storage_backends as HTTP: statuses, headers, filters, pages."""

from typing import Any

import pytest

from manager.errors import AgentFailed, AgentOffline, AgentTimeout, Refused
from schemas.faults import FaultCode, fault
from schemas.problems import ProblemCode
from tests.manager.api.conftest import Api

ADD: dict[str, Any] = {"name": "tank", "kind": "nfs", "config": {"server": "10.0.0.5", "export": "/tank/vms"}}


async def test_add_answers_201_with_location_and_etag(api: Api) -> None:
    answer = await api.call("POST", "/v1/storage_backends", ADD)
    assert answer.status == 201
    assert answer.headers["Location"] == f"/v1/storage_backends/{answer.json['id']}"
    assert answer.headers["ETag"] == '"1"'
    assert answer.json["config"]["nfs_version"] == "default"
    assert answer.json["hosts"] == {"names": ["*"], "labels": {}}
    shown = await api.call("GET", "/v1/storage_backends/tank", role="viewer")
    assert (shown.json, shown.headers["ETag"]) == (answer.json, '"1"')


async def test_add_taken_name_is_409(api: Api) -> None:
    await api.call("POST", "/v1/storage_backends", ADD)
    (await api.call("POST", "/v1/storage_backends", ADD)).problem(409, "name_taken")


async def test_add_respond_async_is_202_with_the_operation(api: Api) -> None:
    answer = await api.call("POST", "/v1/storage_backends", ADD, headers={"Prefer": "respond-async"})
    assert answer.status == 202
    assert answer.headers["Location"] == f"/v1/operations/{api.backends.operation_id}"
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert api.backends.calls == [("add", 0.0)]


async def test_add_beyond_the_wait_is_202_without_a_preference(api: Api) -> None:
    api.backends.is_slow = True
    answer = await api.call("POST", "/v1/storage_backends", ADD)
    assert (answer.status, api.backends.calls) == (202, [("add", 30.0)])
    assert "Preference-Applied" not in answer.headers


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [("wait=5", 5.0), ("wait=500", 30.0), ("respond-async, wait=10", 10.0), ("return=minimal", 30.0), (";;,,=", 30.0)],
)
async def test_prefer_wait_is_handed_on_within_bounds(api: Api, prefer: str, wait_s: float) -> None:
    await api.call("POST", "/v1/storage_backends", ADD, headers={"Prefer": prefer})
    assert api.backends.calls == [("add", wait_s)]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (AgentOffline("h", "no responders"), 503, "no_agent"),
        (AgentTimeout("h", "late"), 504, "agent_timeout"),
        (AgentFailed("h", fault(FaultCode.READ_ONLY, "read-only file system")), 422, "probe_failed"),
        (Refused.because(ProblemCode.NO_AGENT, "no host is online"), 503, "no_agent"),
        (Refused.because(ProblemCode.CREDENTIALS_REJECTED, "no"), 422, "credentials_rejected"),
        (Refused.because(ProblemCode.SAGA_STUCK, "an undo failed"), 500, "saga_stuck"),
        (RuntimeError("the secret is hunter2"), 500, "internal"),
    ],
)
async def test_add_failure_answers_its_problem(api: Api, error: Exception, status: int, code: str) -> None:
    api.backends.failure = error
    answer = await api.call("POST", "/v1/storage_backends", ADD)
    answer.problem(status, code)
    assert ("Retry-After" in answer.headers) is (status == 503)
    assert "hunter2" not in answer.body.decode()


async def test_edit_with_stale_etag_is_412_and_with_the_current_200(api: Api) -> None:
    row = api.backends.insert("tank")
    path = f"/v1/storage_backends/{row.id}"
    answer = await api.call("PATCH", path, {"name": "tank2"}, headers={"If-Match": '"1"'})
    assert (answer.status, answer.headers["ETag"]) == (200, '"2"')
    (await api.call("PATCH", path, {}, headers={"If-Match": '"1"'})).problem(412, "stale_version")


@pytest.mark.parametrize("tags", ["*", '"1"', '"9", "1"', ' "1" '])
async def test_if_match_that_fits_lets_the_edit_through(api: Api, tags: str) -> None:
    api.backends.insert("tank")
    assert (await api.call("PATCH", "/v1/storage_backends/tank", {}, headers={"If-Match": tags})).status == 200


@pytest.mark.parametrize("tags", ['"2"', 'W/"1"', '"abc"', '""', '"2", "3"'])
async def test_if_match_that_does_not_fit_is_412(api: Api, tags: str) -> None:
    api.backends.insert("tank")
    for method in ("PATCH", "DELETE"):
        body: dict[str, Any] | None = {} if method == "PATCH" else None
        answer = await api.call(method, "/v1/storage_backends/tank", body, headers={"If-Match": tags})
        answer.problem(412, "stale_version")
    assert api.backends.get("tank").version == 1


@pytest.mark.parametrize("tags", ["1", '"1', '"1" x', ",", ""])
async def test_if_match_that_is_no_etag_is_400(api: Api, tags: str) -> None:
    api.backends.insert("tank")
    answer = await api.call("PATCH", "/v1/storage_backends/tank", {}, headers={"If-Match": tags})
    answer.problem(400, "invalid_field")
    assert answer.pointers() == ["/header/If-Match"]


async def test_get_with_if_none_match_is_answered_in_full(api: Api) -> None:
    """A health that has turned since must never hide behind a 304."""
    api.backends.insert("tank")
    answer = await api.call("GET", "/v1/storage_backends/tank", headers={"If-None-Match": '"1"'})
    assert (answer.status, answer.headers["ETag"]) == (200, '"1"')
    assert answer.json["name"] == "tank"


async def test_delete_that_wants_a_representation_says_what_was_left(api: Api) -> None:
    api.backends.insert("tank")
    answer = await api.call("DELETE", "/v1/storage_backends/tank", headers={"Prefer": "return=representation"})
    assert (answer.status, answer.json) == (200, {"left": {"hv1": ["3 entries in /srv/vms"]}})
    assert answer.headers["Stowage-Operation"] == f"/v1/operations/{api.backends.operation_id}"


async def test_delete_answers_204_and_dry_run_the_plan(api: Api) -> None:
    api.backends.insert("tank")
    plan = await api.call("DELETE", "/v1/storage_backends/tank?dry_run=true")
    assert (plan.status, plan.json) == (200, {"backend": "tank", "blockers": []})
    answer = await api.call("DELETE", "/v1/storage_backends/tank")
    assert (answer.status, answer.body) == (204, b"")
    (await api.call("GET", "/v1/storage_backends/tank")).problem(404, "not_found")


async def test_delete_respond_async_is_202(api: Api) -> None:
    api.backends.insert("tank")
    answer = await api.call("DELETE", "/v1/storage_backends/tank", headers={"Prefer": "respond-async"})
    assert (answer.status, answer.headers["Preference-Applied"]) == (202, "respond-async")


@pytest.mark.parametrize("value", ["maybe", "", "TRUE", "1"])
async def test_delete_with_unclear_dry_run_deletes_nothing(api: Api, value: str) -> None:
    api.backends.insert("tank")
    (await api.call("DELETE", f"/v1/storage_backends/tank?dry_run={value}")).problem(400, "invalid_field")
    assert api.backends.calls == []


async def test_name_with_a_blank_is_found_in_the_path(api: Api) -> None:
    row = api.backends.insert("my tank")
    assert (await api.call("GET", "/v1/storage_backends/my%20tank")).json["id"] == row.id


async def test_list_pages_in_the_order_of_making(api: Api) -> None:
    rows = [api.backends.insert(f"b{n}") for n in range(7)]
    seen: list[str] = []
    path, pages = "/v1/storage_backends?limit=3", 0
    while True:
        page = (await api.call("GET", path, role="viewer")).json
        seen += [item["id"] for item in page["items"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        path = f"/v1/storage_backends?limit=3&cursor={page['next_cursor']}"
    assert (seen, pages) == ([row.id for row in rows], 3)


async def test_list_page_after_a_removal_misses_and_repeats_nothing(api: Api) -> None:
    rows = [api.backends.insert(f"b{n}") for n in range(4)]
    first = (await api.call("GET", "/v1/storage_backends?limit=2")).json
    del api.backends.rows[rows[1].id]
    second = (await api.call("GET", f"/v1/storage_backends?limit=2&cursor={first['next_cursor']}")).json
    assert [item["name"] for item in second["items"]] == ["b2", "b3"]
    assert second["next_cursor"] is None


async def test_list_filters(api: Api) -> None:
    api.backends.insert("a", "nfs", labels={"tier": "gold", "zone": "x"})
    api.backends.insert("b", "smb", labels={"tier": "gold"})

    async def names(query: str) -> list[str]:
        answer = await api.call("GET", f"/v1/storage_backends?{query}", role="viewer")
        return [item["name"] for item in answer.json["items"]]

    assert await names("kind=nfs") == ["a"]
    assert await names("status=healthy") == ["a", "b"]
    assert await names("status=unreachable") == []
    assert await names("label=tier:gold") == ["a", "b"]
    assert await names("label=tier:gold&label=zone:x") == ["a"]
    assert await names("label=tier:") == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/query/limit"),
        ("limit=501", "/query/limit"),
        ("limit=x", "/query/limit"),
        ("limit=5&limit=6", "/query/limit"),
        ("cursor=!!", "/query/cursor"),
        ("cursor=abc", "/query/cursor"),
        ("cursor=aG9zdHM6MQ", "/query/cursor"),
        ("cursor=%00", "/query/cursor"),
        ("kind=floppy", "/query/kind"),
        ("status=green", "/query/status"),
        ("label=tier", "/query/label"),
        ("label=tier:a&label=tier:b", "/query/label"),
        ("lim%00it=5", "/query/lim\0it"),
        ("sort=name", "/query/sort"),
    ],
)
async def test_list_with_a_wrong_parameter_is_400_and_names_it(api: Api, query: str, pointer: str) -> None:
    answer = await api.call("GET", f"/v1/storage_backends?{query}")
    answer.problem(400, "invalid_field")
    assert answer.pointers() == [pointer]


async def test_sub_resources_answer_their_shapes(api: Api) -> None:
    row = api.backends.insert("tank")
    path = f"/v1/storage_backends/{row.id}"
    assert (await api.call("GET", f"{path}/hosts", role="viewer")).json["hosts"][0]["host"] == "hv1"
    assert (await api.call("POST", f"{path}/probe")).json["hosts"][0]["status"] == "healthy"
    everything = (await api.call("POST", "/v1/storage_backends/probe")).json["items"]
    assert [(item["backend"], item["hosts"][0]["host"]) for item in everything] == [("tank", "hv1")]
    assert (await api.call("POST", "/v1/storage_backends/preflight", ADD)).json == {
        "hosts": [{"host": "hv1", "checks": []}]
    }
    assert (await api.call("GET", f"{path}/inspection")).json["wwid"] == "w"
    # It has a host look at the device, so it is not for those who only look at us.
    assert (await api.call("GET", f"{path}/inspection", role="viewer")).status == 403
    initialized = await api.call("POST", f"{path}/initialize", {"confirm": "tank", "wwid": "w"})
    assert (initialized.status, initialized.headers["ETag"]) == (200, '"1"')


async def test_head_answers_without_a_body(api: Api) -> None:
    api.backends.insert("tank")
    answer = await api.call("HEAD", "/v1/storage_backends/tank", role="viewer")
    assert (answer.status, answer.body, answer.headers["ETag"]) == (200, b"", '"1"')
