"""Hosts, operations, kinds, health: the rest of the routes."""

from schemas.ids import new_id
from schemas.kinds import KINDS
from schemas.operations import OperationState
from tests.manager.api.conftest import Api
from tests.manager.api.stand_ins import make_operation


async def test_health_is_open_and_says_alive(api: Api) -> None:
    assert (await api.call("GET", "/healthz", role=None)).json == {"status": "alive"}


async def test_readiness_says_in_words_what_is_missing(api: Api) -> None:
    assert (await api.call("GET", "/readyz", role=None)).status == 200
    api.missing["bus"] = "not connected to NATS since 12:00"
    answer = await api.call("GET", "/readyz", role=None)
    assert (answer.status, answer.json["missing"]) == (503, api.missing)
    assert answer.headers["Retry-After"] == "1"


async def test_kinds_are_a_list_with_schemas(api: Api) -> None:
    kinds = (await api.call("GET", "/v1/backend_kinds", role="viewer")).json
    assert [kind["kind"] for kind in kinds] == list(KINDS)
    by_kind = {kind["kind"]: kind for kind in kinds}
    assert by_kind["nfs"]["credentials_schema"] is None
    assert (by_kind["nfs"]["formats"], by_kind["iscsi_lvm"]["formats"]) == (["raw", "qcow2"], ["raw"])
    assert by_kind["nfs"]["config_schema"]["properties"]["export"]["x-ui"]["change"] == "fixed"
    assert by_kind["smb"]["credentials_schema"]["properties"]["password"]["writeOnly"] is True


async def test_hosts_list_filters_and_pages(api: Api) -> None:
    async def names(query: str) -> list[str]:
        return [h["name"] for h in (await api.call("GET", f"/v1/hosts?{query}", role="viewer")).json["items"]]

    assert await names("") == ["hv1", "hv2", "hv3"]
    assert await names("state=offline") == ["hv3"]
    assert await names("label=zone:a") == ["hv2"]
    assert await names("kind=smb") == []
    first = (await api.call("GET", "/v1/hosts?limit=2", role="viewer")).json
    assert await names(f"cursor={first['next_cursor']}") == ["hv3"]
    (await api.call("GET", f"/v1/storage_backends?cursor={first['next_cursor']}")).problem(400, "invalid_field")


async def test_host_is_shown_and_revoked(api: Api) -> None:
    assert (await api.call("GET", "/v1/hosts/hv1", role="viewer")).json["state"] == "online"
    assert (await api.call("DELETE", "/v1/hosts/hv1", role="admin")).status == 204
    (await api.call("GET", "/v1/hosts/hv1")).problem(404, "not_found")


async def test_join_token_is_made_with_and_without_a_body(api: Api) -> None:
    for body in ({"ttl_s": 60}, None):
        answer = await api.call("POST", "/v1/hosts/join_tokens", body, role="admin")
        assert (answer.status, sorted(answer.json)) == (201, ["command", "expires_at", "token"])


async def test_discover_answers_items(api: Api) -> None:
    body = {"kind": "nfs", "config": {"server": "10.0.0.5"}}
    answer = await api.call("POST", "/v1/hosts/hv1/discover", body)
    assert answer.json == {"items": [{"title": "/tank", "config": {"export": "/tank"}}]}


async def test_discover_hands_on_credentials_and_refuses_wrong_ones_without_repeating_them(api: Api) -> None:
    body = {"kind": "smb", "config": {"server": "nas"}, "credentials": {"username": "svc", "password": "hunter2"}}
    assert (await api.call("POST", "/v1/hosts/hv1/discover", body)).status == 200
    assert [each.credentials.reveal() for each in api.hosts.discoveries] == [{"username": "svc", "password": "hunter2"}]
    answer = await api.call("POST", "/v1/hosts/hv1/discover", body | {"kind": "nfs"})
    answer.problem(400, "invalid_field")
    assert answer.pointers() == ["/credentials"] and b"hunter2" not in answer.body
    (await api.call("POST", "/v1/hosts/hv1/discover", body, role="viewer")).problem(403, "forbidden")
    assert len(api.hosts.discoveries) == 1


async def test_capacity_is_one_entry_a_backend(api: Api) -> None:
    tank, new = api.capacities.rows
    assert (await api.call("GET", "/v1/capacity", role="viewer")).json == {
        "items": [
            {
                "backend_id": tank.backend_id,
                "backend": "tank",
                "full_in_days": 12.5,
                "samples": [{"at": "2026-01-31T12:00:00Z", "used_bytes": 3, "total_bytes": 10}],
            },
            {"backend_id": new.backend_id, "backend": "new", "full_in_days": None, "samples": []},
        ]
    }
    (await api.call("GET", "/v1/capacity?limit=1", role="viewer")).problem(400, "invalid_field")


async def test_operations_are_listed_newest_first_shown_and_retried(api: Api) -> None:
    rows = [make_operation(OperationState.SUCCEEDED, "s") for _ in range(3)]
    rows.append(make_operation(OperationState.STUCK, "s"))
    api.operations.rows = {row.id: row for row in rows}
    first = (await api.call("GET", "/v1/operations?limit=3", role="viewer")).json
    second = (await api.call("GET", f"/v1/operations?limit=3&cursor={first['next_cursor']}", role="viewer")).json
    assert [o["id"] for o in first["items"] + second["items"]] == [row.id for row in reversed(rows)]
    stuck = (await api.call("GET", "/v1/operations?state=stuck", role="viewer")).json["items"]
    assert [o["id"] for o in stuck] == [rows[-1].id]
    assert (await api.call("GET", f"/v1/operations/{rows[0].id}", role="viewer")).json["state"] == "succeeded"
    assert (await api.call("POST", f"/v1/operations/{rows[-1].id}/retry")).status == 200
    (await api.call("GET", "/v1/operations?state=odd")).problem(400, "invalid_field")


async def test_operation_is_cancelled_while_it_runs_and_not_after(api: Api) -> None:
    running, done = (make_operation(state, "s") for state in (OperationState.RUNNING, OperationState.SUCCEEDED))
    api.operations.rows = {row.id: row for row in (running, done)}
    answer = await api.call("POST", f"/v1/operations/{running.id}/cancel")
    assert (answer.status, answer.json["is_cancelled"]) == (200, True)
    (await api.call("POST", f"/v1/operations/{done.id}/cancel")).problem(409, "wrong_state")
    for odd in (new_id(), "odd"):
        (await api.call("POST", f"/v1/operations/{odd}/cancel")).problem(404, "not_found")
    (await api.call("POST", f"/v1/operations/{running.id}/cancel", {"force": True})).problem(400, "invalid_field")
