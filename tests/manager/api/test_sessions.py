"""Sessions: a ticket opens what its token opens and no more; and attacks on both."""

import asyncio
import datetime as dt
import http.cookies
import logging
from collections.abc import Mapping
from typing import cast

import pytest
from multidict import CIMultiDictProxy

from manager.actor import SYSTEM, Role
from manager.sessions import SESSION_S, Sessions, Ticket, Worthless
from schemas.ids import new_id
from schemas.requests import CreateToken
from tests.manager.api.conftest import FLEET_ID, Answer, Api

NOW = dt.datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=dt.UTC)
BACKEND = {"name": "a", "kind": "local_file", "config": {"root_dir": "/srv/a"}}
COOKIE = f"stowage_{FLEET_ID[-8:]}"
SECURE_COOKIE = f"__Host-{COOKIE}"


async def _sign_in(api: Api, role: str = "operator", headers: Mapping[str, str] | None = None) -> Answer:
    answer = await api.call("POST", "/v1/session", {"token": api.by_role[role]}, role=None, headers=headers)
    assert answer.status == 200, answer.body
    return answer


def _morsel(answer: Answer) -> "http.cookies.Morsel[str]":
    """The one cookie that the answer sets."""
    (cookie,) = _morsels(answer).values()
    return cookie


def _morsels(answer: Answer) -> "dict[str, http.cookies.Morsel[str]]":
    """By name."""
    headers = cast("CIMultiDictProxy[str]", answer.headers).getall("Set-Cookie")
    return {name: cookie for text in headers for name, cookie in http.cookies.SimpleCookie(text).items()}


async def _ticket(api: Api, role: str = "operator") -> str:
    return _morsel(await _sign_in(api, role)).value


async def _with(api: Api, ticket: str, method: str = "GET", path: str = "/v1/hosts", **more: str) -> Answer:
    """A request with the cookie; more: headers, as `Sec_Fetch_Site`."""
    headers = {"Cookie": f"{COOKIE}={ticket}"} | {name.replace("_", "-"): value for name, value in more.items()}
    return await api.call(method, path, BACKEND if method == "POST" else None, role=None, headers=headers)


async def test_signing_in_gives_a_cookie_that_is_not_the_token(api: Api) -> None:
    answer = await _sign_in(api)
    cookie = _morsel(answer)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"]) == (True, "Strict", "/", "")
    assert SESSION_S - 5 <= int(cookie["max-age"]) <= SESSION_S
    assert cookie["domain"] == ""
    assert api.by_role["operator"].split("_", 2)[2] not in answer.headers["Set-Cookie"]
    ends = dt.datetime.fromisoformat(answer.json["expires_at"])
    assert abs((ends - dt.datetime.now(dt.UTC)).total_seconds() - SESSION_S) < 5
    assert (answer.json["name"], answer.json["role"]) == ("operator", "operator")
    assert (await _with(api, cookie.value, path="/v1/session")).json == answer.json


async def test_signing_in_is_logged_under_its_name_without_a_secret(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ticket = await _ticket(api)
    (line,) = [r.__dict__ for r in caplog.records if r.msg == "request served"]
    assert (line["path"], line["status"], line["actor"]) == ("/v1/session", 200, "token:operator")
    shown = repr([r.__dict__ for r in caplog.records])
    assert ticket not in shown
    assert api.by_role["operator"].split("_", 2)[2] not in shown


async def test_session_of_a_bearer_is_the_token_itself(api: Api) -> None:
    shown = await api.call("GET", "/v1/session", role="viewer")
    assert shown.json == {"name": "viewer", "role": "viewer", "expires_at": None}
    (await api.call("GET", "/v1/session", token="stw_wrong")).problem(401, "unauthorized")


async def test_session_of_nobody_is_nulls(api: Api) -> None:
    nobody = {"name": None, "role": None, "expires_at": None}
    old, _ = api.sessions.ticket(api.by_role["viewer"].split("_")[1], None, NOW)
    assert (await api.call("GET", "/v1/session", role=None)).json == nobody
    assert (await _with(api, old, path="/v1/session")).json == nobody
    forged = [await _with(api, "sws_x", path="/v1/session") for _ in range(35)]
    assert forged[0].json == nobody
    forged[-1].problem(429, "too_many_requests")


async def test_cookie_acts_under_the_name_and_role_of_its_token(api: Api) -> None:
    made = await _with(api, await _ticket(api), "POST", "/v1/storage_backends", Origin=api.url)
    assert made.status == 201
    assert [(actor.name, actor.role) for actor in api.backends.actors] == [("token:operator", Role.OPERATOR)]
    refused = await _with(api, await _ticket(api, "viewer"), "POST", "/v1/storage_backends", Origin=api.url)
    refused.problem(403, "forbidden")
    assert len(api.backends.actors) == 1


async def test_signing_out_takes_the_cookie_away_also_one_that_is_worthless(api: Api) -> None:
    for ticket in (await _ticket(api), "nonsense"):
        answer = await _with(api, ticket, "DELETE", "/v1/session", Origin=api.url)
        assert (answer.status, answer.body) == (204, b"")
        cookies = _morsels(answer)
        for cookie in cookies.values():
            assert (cookie.value, cookie["max-age"], cookie["path"], cookie["httponly"]) == ("", "0", "/", True)
        # Browsers take nothing of that prefix, not even its end, without Secure.
        assert {name: cookie["secure"] for name, cookie in cookies.items()} == {COOKIE: "", SECURE_COOKIE: True}


async def test_authorization_wins_over_a_cookie(api: Api) -> None:
    cookie = f"{COOKIE}={await _ticket(api)}"
    shown = await api.call("GET", "/v1/session", role="viewer", headers={"Cookie": cookie})
    assert shown.json["name"] == "viewer"
    wrong = await api.call("GET", "/v1/session", token="stw_wrong", headers={"Cookie": cookie})
    wrong.problem(401, "unauthorized")
    # A program that sends a token is no browser that was led here: no Origin is asked of it.
    made = await api.call("POST", "/v1/storage_backends", BACKEND, headers={"Cookie": cookie})
    assert made.status == 201


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"token": "stw_wrong"}, 401),
        ({"token": f"stw_01a20a7c-5b8b-7040-9cb3-f3c33d30d1ea_{'a' * 43}"}, 401),
        ({"token": ""}, 400),
        ({"token": 7}, 400),
        ({"token": "x" * 513}, 400),
        ({}, 400),
        ({"token": "stw_wrong", "role": "admin"}, 400),
    ],
)
async def test_wrong_sign_in_gives_no_cookie(api: Api, body: object, status: int) -> None:
    answer = await api.call("POST", "/v1/session", body, role=None)
    answer.problem(status, "unauthorized" if status == 401 else "invalid_field")
    assert "Set-Cookie" not in answer.headers
    assert "xxx" not in answer.body.decode()


async def test_ticket_is_no_token_and_a_token_no_ticket(api: Api) -> None:
    ticket = await _ticket(api)
    (await api.call("GET", "/v1/hosts", token=ticket)).problem(401, "unauthorized")
    (await api.call("POST", "/v1/session", {"token": ticket}, role=None)).problem(401, "unauthorized")
    (await _with(api, api.by_role["operator"])).problem(401, "unauthorized")


async def test_many_wrong_sign_ins_are_429_while_a_token_in_use_still_enters(api: Api) -> None:
    await _sign_in(api)
    wrong = [await api.call("POST", "/v1/session", {"token": "stw_wrong"}, role=None) for _ in range(35)]
    assert wrong[0].status == 401
    wrong[-1].problem(429, "too_many_requests")
    await _sign_in(api)


async def test_wrong_sign_ins_count_whatever_else_the_request_bears(api: Api) -> None:
    """A header or a cookie that nobody looks at here must not hide them."""
    more = {"Authorization": "Bearer stw_x", "Cookie": f"{COOKIE}=sws_x"}
    wrong = [await api.call("POST", "/v1/session", {"token": "stw_wrong"}, role=None, headers=more) for _ in range(35)]
    wrong[-1].problem(429, "too_many_requests")


async def test_wrong_token_is_counted_once_a_request(api: Api) -> None:
    """The pace of these tests is 30 at once."""
    statuses = [(await api.call("GET", "/v1/session", token="stw_wrong")).status for _ in range(28)]
    assert statuses == [401] * 28


async def test_forged_tickets_count_as_wrong_tokens_and_expired_ones_do_not(api: Api) -> None:
    token_id = api.by_role["operator"].split("_")[1]
    old, _ = api.sessions.ticket(token_id, None, NOW)
    expired = [await _with(api, old) for _ in range(35)]
    expired[-1].problem(401, "unauthorized")
    forged = [await _with(api, old[:-1] + ("0" if old[-1] != "0" else "1")) for _ in range(35)]
    assert forged[0].status == 401
    forged[-1].problem(429, "too_many_requests")


async def test_changed_ticket_opens_nothing(api: Api) -> None:
    """Its mac, its token's id, its end; and one signed for another fleet."""
    ticket = await _ticket(api)
    _, token_id, at, mac = ticket.split("_")
    admin_id = api.by_role["admin"].split("_")[1]
    elsewhere, _ = Sessions(b"l" * 32, fleet_id=FLEET_ID).ticket(token_id, None, dt.datetime.now(dt.UTC))
    for changed in (
        f"sws_{token_id}_{at}_{'0' * 64}",
        f"sws_{token_id}_{at}_",
        f"sws_{token_id}_{at}_{mac.upper()}",
        f"sws_{admin_id}_{at}_{mac}",
        f"sws_{token_id}_{int(at) + 3600}_{mac}",
        f"sws_{token_id}_0{at}_{mac}",
        f"sws_{token_id}_{at}_{mac}_",
        f'"{ticket}x"',
        elsewhere,
        "",
    ):
        (await _with(api, changed)).problem(401, "unauthorized")
    assert (await _with(api, ticket)).status == 200


async def test_two_sessions_under_one_name_open_nothing(api: Api) -> None:
    """The other may be an attacker's own, put there to have the user work as him. It is no guess, and not counted."""
    own, other = await _ticket(api), await _ticket(api, "viewer")
    for _ in range(35):
        (await _with(api, f"{own}; {COOKIE}={other}")).problem(401, "unauthorized")
    headers = [("Cookie", f"{COOKIE}={own}"), ("Cookie", f"{COOKIE}={other}")]
    async with api.client.get(api.url + "/v1/hosts", headers=headers) as response:
        assert response.status == 401


async def test_values_that_others_put_beside_a_session_shut_nobody_out(api: Api) -> None:
    """Another service, on another port or for a deeper path, can set cookies of our name. They are no guesses of the user's."""
    ticket = await _ticket(api)
    over, _ = api.sessions.ticket(ticket.split("_")[1], None, NOW)
    for beside in (
        f"x; {COOKIE}={ticket}",
        f"{ticket}; {COOKIE}=x",
        f"{ticket}; {COOKIE}={ticket}",
        f"{over}; {COOKIE}={ticket}",
    ):
        for _ in range(10):
            assert (await _with(api, beside)).status == 200
    for _ in range(35):  # nor of who was signed in here
        (await _with(api, f"{over}; {COOKIE}=x")).problem(401, "unauthorized")
    forged = [await _with(api, f"x; {COOKIE}=y") for _ in range(31)]
    forged[-1].problem(429, "too_many_requests")


async def test_cookie_that_is_of_https_alone_wins_over_the_other(api: Api) -> None:
    own, other = await _ticket(api), await _ticket(api, "viewer")
    over, _ = api.sessions.ticket(own.split("_")[1], None, NOW)
    for secure, plain, name in (
        (own, other, "operator"),
        (own, "x", "operator"),
        (over, other, "viewer"),
        ("x", other, "viewer"),
    ):
        both = {"Cookie": f"{COOKIE}={plain}; {SECURE_COOKIE}={secure}"}
        assert (await api.call("GET", "/v1/session", role=None, headers=both)).json["name"] == name


async def test_no_token_can_be_made_with_a_session(api: Api) -> None:
    """Else who steals one for an hour has a token for good."""
    ticket, body = await _ticket(api, "admin"), {"name": "forever", "role": "admin"}
    headers = {"Cookie": f"{COOKIE}={ticket}", "Origin": api.url}
    refused = await api.call("POST", "/v1/tokens", body, role=None, headers=headers)
    assert refused.problem(403, "forbidden")["detail"] == "with a session no token can be made; send a token"
    assert await api.pool.fetchval("SELECT count(*) FROM api_token WHERE name = 'forever'") == 0
    assert (await api.call("POST", "/v1/tokens", body, role="admin", headers=headers)).status == 201
    # What takes rights away, and the list to find it in, is for the page too.
    assert (await _with(api, ticket, path="/v1/tokens")).status == 200
    path = f"/v1/tokens/{api.by_role['viewer'].split('_')[1]}"
    assert (await _with(api, ticket, "DELETE", path, Origin=api.url)).status == 204


async def test_cookies_of_other_programs_do_no_harm(api: Api) -> None:
    ticket = await _ticket(api)
    odd = f'a=b=c; {{"x": 1}}; stowage_00000000=sws_x; x{COOKIE}=no; {COOKIE}={ticket}; z'
    assert (await api.call("GET", "/v1/hosts", role=None, headers={"Cookie": odd})).status == 200


async def test_session_ends_with_the_revocation_of_its_token(api: Api) -> None:
    token = await api.token("ci", "operator")
    signed_in = await api.call("POST", "/v1/session", {"token": token}, role=None)
    ticket = _morsel(signed_in).value
    assert (await _with(api, ticket)).status == 200
    assert (await api.call("DELETE", f"/v1/tokens/{token.split('_')[1]}", role="admin")).status == 204
    (await _with(api, ticket)).problem(401, "unauthorized")
    # The name is free, and its next holder has nothing of it.
    await api.token("ci", "admin")
    (await _with(api, ticket)).problem(401, "unauthorized")


async def test_session_never_outlives_a_token_that_expires(api: Api) -> None:
    end = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(minutes=5)
    made = await api.tokens.create(CreateToken(name="soon", role="viewer", expires_at=end), SYSTEM)
    answer = await api.call("POST", "/v1/session", {"token": made.token}, role=None)
    assert dt.datetime.fromisoformat(answer.json["expires_at"]) == end
    assert int(_morsel(answer)["max-age"]) <= 300
    ticket = _morsel(answer).value
    assert (await _with(api, ticket)).status == 200
    await api.pool.execute("UPDATE api_token SET expires_at = now() - interval '1 second' WHERE id = $1", made.id)
    api.tokens.forget(made.id)
    (await _with(api, ticket)).problem(401, "unauthorized")


async def test_stream_ends_with_its_session_though_the_token_lives(api: Api) -> None:
    now = dt.datetime.now(dt.UTC)
    token_id = api.by_role["viewer"].split("_")[1]
    ticket, session = api.sessions.ticket(token_id, now + dt.timedelta(seconds=2), now)
    headers = {"Cookie": f"{COOKIE}={ticket}"}
    async with api.client.get(api.url + "/v1/events/stream", headers=headers) as response, asyncio.timeout(10):
        assert response.status == 200
        assert await response.content.readline() == b"retry: 2000\n"
        while True:
            api.events.queue.put_nowait(None)
            if not await response.content.readline():
                break
    assert dt.datetime.now(dt.UTC) >= session.expires_at
    assert await api.tokens.is_live(token_id)


async def test_writing_with_a_cookie_takes_the_origin_of_our_own_page(api: Api) -> None:
    ticket = await _ticket(api)
    host = api.url.removeprefix("http://")
    for origin in (
        "null",
        "http://evil.example",
        f"http://evil.example:{api.port}",
        f"http://127.0.0.1:{api.port + 1}",
        f"http://127.0.0.1:{api.port}.evil.example",
        f"http://evil.example@{host}",
        f"http://{host}/",
        f"ftp://{host}",
        "",
    ):
        refused = await _with(api, ticket, "POST", "/v1/storage_backends", Origin=origin)
        assert "Origin" in refused.problem(403, "forbidden")["detail"], origin
    refused = await _with(api, ticket, "POST", "/v1/storage_backends")
    assert "must bear an Origin" in refused.problem(403, "forbidden")["detail"]
    for method in ("PATCH", "DELETE", "PUT"):
        (await _with(api, ticket, method, "/v1/volumes/a")).problem(403, "forbidden")
    assert api.backends.calls == []
    assert (await _with(api, ticket, "POST", "/v1/storage_backends", Origin=api.url.upper())).status == 201


async def test_two_origins_are_refused(api: Api) -> None:
    headers = [("Cookie", f"{COOKIE}={await _ticket(api)}"), ("Origin", api.url), ("Origin", "http://evil.example")]
    async with api.client.post(api.url + "/v1/storage_backends", headers=headers) as response:
        assert response.status == 403


async def test_fetch_metadata_must_agree_with_the_origin(api: Api) -> None:
    ticket = await _ticket(api)
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 201)):
        answer = await _with(api, ticket, "POST", "/v1/storage_backends", Origin=api.url, Sec_Fetch_Site=site)
        assert answer.status == status, site


async def test_reading_with_a_cookie_takes_no_origin_but_no_foreign_one(api: Api) -> None:
    ticket = await _ticket(api, "viewer")
    for path in ("/v1/hosts", "/v1/session"):
        for method in ("GET", "HEAD"):
            assert (await _with(api, ticket, method, path)).status == 200
            assert (await _with(api, ticket, method, path, Origin=api.url)).status == 200
            assert (await _with(api, ticket, method, path, Origin="http://evil.example")).status == 403
            for site, status in (("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)):
                assert (await _with(api, ticket, method, path, Sec_Fetch_Site=site)).status == status, site
    # What is open needs no cookie, so one that comes along does not close it.
    assert (await _with(api, ticket, path="/", Sec_Fetch_Site="cross-site")).status == 200


async def test_signing_in_or_out_from_another_site_is_refused(api: Api) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answers = [
            await api.call("POST", "/v1/session", {"token": api.by_role["viewer"]}, role=None, headers=headers),
            await api.call("DELETE", "/v1/session", role=None, headers=headers),
        ]
        for answer in answers:
            answer.problem(403, "forbidden")
            assert "Set-Cookie" not in answer.headers
    await _sign_in(api, headers={"Origin": api.url})


async def test_proxy_with_tls_before_us_makes_the_cookie_secure(api: Api) -> None:
    """The browser's Origin tells, for the Host that a proxy passes on has no scheme."""
    behind = await _sign_in(api, headers={"Origin": api.url.replace("http://", "https://")})
    cookie = _morsel(behind)
    # What the prefix asks of a browser to accept it (RFC 6265bis 4.1.3.2).
    assert (cookie.key, cookie["secure"], cookie["path"], cookie["domain"]) == (SECURE_COOKIE, True, "/", "")
    shown = await api.call("GET", "/v1/session", role=None, headers={"Cookie": f"{SECURE_COOKIE}={cookie.value}"})
    assert shown.json == behind.json
    plain = _morsel(await _sign_in(api, headers={"Origin": api.url}))
    assert (plain.key, plain["secure"]) == (COOKIE, "")


async def test_proxy_that_rewrites_the_host_is_known_by_public_url(api: Api) -> None:
    ticket = await _ticket(api)
    api.sessions.public_origin = "https://storage.example"
    for origin, status in (
        ("https://storage.example", 201),
        ("https://storage.example:443", 409),  # the same again: it came in, and the name is taken
        ("http://storage.example", 403),
        ("https://storage.example:8443", 403),
    ):
        answer = await _with(api, ticket, "POST", "/v1/storage_backends", Origin=origin)
        assert answer.status == status, origin


async def test_cookie_of_who_comes_by_plain_http_is_not_secure_whatever_public_url_says(api: Api) -> None:
    """Or the browser would drop it, and nobody could sign in there."""
    api.sessions.public_origin = "https://storage.example"
    assert _morsel(await _sign_in(api, headers={"Origin": api.url})).key == COOKIE
    assert _morsel(await _sign_in(api, headers={"Origin": "https://storage.example"})).key == SECURE_COOKIE
    assert _morsel(await _sign_in(api)).key == SECURE_COOKIE


async def test_request_with_two_hosts_has_no_origin_of_ours(api: Api) -> None:
    ticket = await _ticket(api)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        f"DELETE /v1/volumes/a HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\nHost: evil.example\r\n"
        f"Origin: http://evil.example\r\nCookie: {COOKIE}={ticket}\r\nConnection: close\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] in (b"400", b"403")


def test_ticket_is_read_until_its_second_comes() -> None:
    sessions = Sessions(b"k" * 32, fleet_id=FLEET_ID)
    token_id = new_id()
    text, ticket = sessions.ticket(token_id, None, NOW)
    assert ticket == Ticket(token_id, NOW.replace(microsecond=0) + dt.timedelta(seconds=SESSION_S))
    assert sessions.read(text, ticket.expires_at - dt.timedelta(microseconds=1)) == ticket
    assert sessions.read(text, ticket.expires_at) is Worthless.EXPIRED


def test_ticket_is_known_to_every_replica_of_the_fleet_and_to_no_other_fleet() -> None:
    text, ticket = Sessions(b"k" * 32, fleet_id=FLEET_ID).ticket(new_id(), None, NOW)
    assert Sessions(b"k" * 32, fleet_id=FLEET_ID).read(text, NOW) == ticket
    assert Sessions(b"j" * 32, fleet_id=FLEET_ID).read(text, NOW) is Worthless.FORGED


def test_public_origin_is_public_url_without_its_path() -> None:
    assert Sessions(b"k", fleet_id=FLEET_ID, public_url="https://Storage.example:8443/a").public_origin == (
        "https://storage.example:8443"
    )
    assert Sessions(b"k", fleet_id=FLEET_ID).public_origin == ""
