"""No route takes a query parameter that it does not know: a misspelt filter would show all, a misspelt dry_run do it."""

import re

import pytest

from manager.api.routes import TABLE, Endpoint
from tests.manager.api.conftest import Api

_CHECKED = [endpoint for endpoint in TABLE if endpoint.query is not None]


@pytest.mark.parametrize("endpoint", _CHECKED, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
async def test_unknown_parameter_is_refused_and_nothing_is_done(api: Api, endpoint: Endpoint) -> None:
    path = endpoint.path.replace("{ref}", "tank").replace("{id}", "01900000-0000-7000-8000-000000000001")
    path = re.sub(r"\{[^}]+\}", "monday", path)
    api.backends.insert("tank")
    api.volumes.insert("tank")
    body: dict[str, str] | None = {} if endpoint.method in ("POST", "PATCH") else None
    answer = await api.call(endpoint.method, f"{path}?dry_rum=true", body, role="admin")
    assert [error["pointer"] for error in answer.problem(400, "invalid_field")["errors"]] == ["/query/dry_rum"]
    assert api.backends.calls == []
    assert api.volumes.calls == []


async def test_page_takes_any_parameter(api: Api) -> None:
    assert (await api.call("GET", "/?utm=x", role=None)).status == 200


@pytest.mark.parametrize("path", ["/v1/storage_backends/tank/probe", "/v1/storage_backends/probe"])
async def test_body_where_none_belongs_is_refused_unless_empty(api: Api, path: str) -> None:
    api.backends.insert("tank")
    assert (await api.call("POST", path, {})).status == 200
    answer = await api.call("POST", path, {"hosts": ["hv1"]})
    assert [error["pointer"] for error in answer.problem(400, "invalid_field")["errors"]] == ["/hosts"]


@pytest.mark.parametrize("tag", ['"x"', 'W/"1"'])
async def test_etag_of_no_version_is_stale_in_words_of_its_own(api: Api, tag: str) -> None:
    api.backends.insert("tank")
    answer = await api.call("PATCH", "/v1/storage_backends/tank", {"labels": {}}, headers={"If-Match": tag})
    assert "not 0" not in answer.problem(412, "stale_version")["detail"]


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("PATCH", ""), ("POST", "/probe"), ("GET", "")])
async def test_character_that_no_name_has_is_not_found(api: Api, method: str, path: str) -> None:
    body: dict[str, str] | None = {} if method in ("POST", "PATCH") else None
    headers = {"Idempotency-Key": "k"} if method == "POST" else {}
    answer = await api.call(method, f"/v1/storage_backends/%00{path}", body, headers=headers)
    answer.problem(404, "not_found")
