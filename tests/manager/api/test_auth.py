"""Who may come in: tokens, roles, and the limit on wrong ones."""

import asyncio
import re

import pytest

from manager.actor import Role
from manager.api.routes import TABLE, Endpoint
from schemas.ids import new_id
from tests.manager.api.conftest import Api

RANK = {None: -1, Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


def _label(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def _wants_token(endpoint: Endpoint) -> bool:
    return endpoint.role is not None


def test_table_open_routes_are_health_enrolment_the_page_and_its_sign_in() -> None:
    assert {_label(e) for e in TABLE if not _wants_token(e)} == {
        "GET /",
        "GET /ui/{hash}/{path:.+}",
        "GET /healthz",
        "GET /readyz",
        "POST /v1/enrol",
        "POST /v1/session",
        "GET /v1/session",
        "DELETE /v1/session",
    }


def test_table_routes_with_an_effect_take_more_than_a_viewer() -> None:
    assert [e for e in TABLE if e.method != "GET" and e.role is Role.VIEWER] == []


async def test_every_route_answers_only_the_roles_of_the_table(api: Api) -> None:
    """401 without a token, 403 below the least role, something else from it on."""
    for endpoint in TABLE:
        if endpoint.is_stream:
            continue  # test_events.py
        path = re.sub(r"\{\w+\}", new_id(), endpoint.path)
        nobody = await api.call(endpoint.method, path, role=None)
        assert (nobody.status == 401) is _wants_token(endpoint), _label(endpoint)
        for role in Role:
            answer = await api.call(endpoint.method, path, role=role)
            is_allowed = RANK[role] >= RANK[endpoint.role]
            assert (answer.status == 403) is not is_allowed, f"{_label(endpoint)} as {role}: {answer.status}"
            assert answer.status != 401
            if not is_allowed:
                answer.problem(403, "forbidden")


async def test_viewer_who_writes_is_refused_and_nothing_is_called(api: Api) -> None:
    body = {"name": "a", "kind": "local_file", "config": {"root_dir": "/srv/a"}}
    (await api.call("POST", "/v1/storage_backends", body, role="viewer")).problem(403, "forbidden")
    assert api.backends.calls == []


async def test_unknown_path_without_token_is_401_and_with_one_404(api: Api) -> None:
    (await api.call("GET", "/v1/nothing", role=None)).problem(401, "unauthorized")
    (await api.call("GET", "/v1/nothing")).problem(404, "not_found")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic YTpi",
        "stw_x_y",
        f"Bearer stw_01a20a7c-5b8b-7040-9cb3-f3c33d30d1ea_{'a' * 43}",
        "Bearer stw_" + "a" * 4000,
        "Bearer ü",
    ],
)
async def test_wrong_authorization_is_401_with_a_challenge(api: Api, header: str) -> None:
    answer = await api.call("GET", "/v1/hosts", role=None, headers={"Authorization": header})
    answer.problem(401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "stw_a" not in answer.body.decode()


async def test_right_id_with_wrong_secret_is_401(api: Api) -> None:
    token = api.by_role["admin"]
    forged = token[:-1] + ("A" if token[-1] != "A" else "B")
    (await api.call("GET", "/v1/hosts", token=forged)).problem(401, "unauthorized")


async def test_two_authorization_headers_are_refused(api: Api) -> None:
    good = f"Bearer {api.by_role['admin']}"
    async with api.client.get(
        api.url + "/v1/hosts", headers=[("Authorization", good), ("Authorization", good)]
    ) as response:
        assert response.status == 401


async def test_many_wrong_tokens_are_429_while_a_right_one_still_enters(api: Api) -> None:
    wrong = [await api.call("GET", "/v1/hosts", token="stw_wrong") for _ in range(35)]
    assert wrong[0].status == 401
    problem = wrong[-1]
    problem.problem(429, "too_many_requests")
    assert int(problem.headers["Retry-After"]) >= 1
    assert (await api.call("GET", "/v1/hosts")).status == 200


@pytest.mark.parametrize("is_sign_in", [False, True])
async def test_right_token_enters_from_an_address_over_its_limit_though_it_was_never_used(
    api: Api, is_sign_in: bool
) -> None:
    for _ in range(31):
        await api.call("GET", "/v1/hosts", token=f"stw_{new_id()}_{'a' * 43}")
    if is_sign_in:
        answer = await api.call("POST", "/v1/session", {"token": api.by_role["viewer"]}, role=None)
    else:
        answer = await api.call("GET", "/v1/session", role="viewer")
    assert answer.status == 200


async def test_guesses_beyond_the_limit_hold_one_connection_of_the_database_at_most(api: Api) -> None:
    for _ in range(31):
        await api.call("GET", "/v1/hosts", token="stw_wrong")
    taken = [await api.pool.acquire() for _ in range(api.pool.get_max_size() - 1)]
    try:
        async with asyncio.timeout(10):
            guesses = [api.call("GET", "/v1/hosts", token=f"stw_{new_id()}_{'a' * 43}") for _ in range(8)]
            assert {answer.status for answer in await asyncio.gather(*guesses)} == {429}
    finally:
        for connection in taken:
            await api.pool.release(connection)


async def test_wrong_join_tokens_count_as_failures(api: Api) -> None:
    body = {
        "token": "bad", "name": "hv9", "identity_key": "U", "sealing_key": "s", "signature": "x",
        "facts": {"agent_version": "1"},
    }  # fmt: skip
    statuses = [(await api.call("POST", "/v1/enrol", body, role=None)).status for _ in range(35)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert (await api.call("POST", "/v1/enrol", body | {"token": "good"}, role=None)).status == 200
