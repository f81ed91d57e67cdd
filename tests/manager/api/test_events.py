"""/v1/events: filters and cursor, and the stream that goes on where the client stopped."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import msgspec
import pytest

from manager.actor import SYSTEM
from manager.api import events
from schemas.events import CloudEvent
from tests.manager.api.conftest import Api, until
from tests.manager.api.stand_ins import make_event

STREAM = "/v1/events/stream"


@asynccontextmanager
async def _stream(
    api: Api, last: str | None = None, token: str | None = None, query: str = ""
) -> AsyncGenerator[aiohttp.ClientResponse]:
    headers = {"Authorization": f"Bearer {token or api.by_role['viewer']}"}
    if last is not None:
        headers["Last-Event-ID"] = last
    async with api.client.get(api.url + STREAM + query, headers=headers) as response:
        yield response


async def _frame(response: aiohttp.ClientResponse) -> list[str]:
    async with asyncio.timeout(5):
        return (await response.content.readuntil(b"\n\n")).decode().splitlines()[:-1]


async def test_stream_sends_events_with_their_sequence_as_id(api: Api) -> None:
    async with _stream(api) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Request-Id"]
        assert await _frame(response) == ["retry: 2000"]
        event = make_event(42)
        api.events.queue.put_nowait(event)
        name, document = await _frame(response)
        assert name == "id: 42"
        assert msgspec.json.decode(document.removeprefix("data: ")) == msgspec.to_builtins(event)
        api.events.queue.put_nowait(None)
        assert await _frame(response) == [": ping"]


async def test_stream_goes_on_where_the_client_stopped(api: Api) -> None:
    async with _stream(api, last="3") as response:
        await _frame(response)
        assert [(await _frame(response))[0] for _ in range(2)] == ["id: 4", "id: 5"]


async def test_stream_with_a_wrong_last_event_id_is_400(api: Api) -> None:
    for last in ("x", "-1", "1.5", "9" * 30):
        answer = await api.call("GET", STREAM, headers={"Last-Event-ID": last})
        answer.problem(400, "invalid_field")
        assert answer.pointers() == ["/header/Last-Event-ID"]


async def test_one_stream_too_many_of_a_token_is_429_until_another_ends(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_STREAMS_OF_TOKEN", 2)
    async with _stream(api):
        async with _stream(api):
            refused = await api.call("GET", "/v1/events/stream", role="viewer")
            refused.problem(429, "too_many_requests")
            assert refused.headers["Retry-After"] == "10"
            async with _stream(api, token=api.by_role["operator"]) as other:
                assert other.status == 200

        def is_noticed() -> bool:
            api.events.queue.put_nowait(None)  # a client's end is seen by who writes to it
            return api.runner.app[events.OPEN_STREAMS].total() == 1

        await until(is_noticed)
        async with _stream(api) as again:
            assert again.status == 200


async def test_stream_without_a_token_is_401(api: Api) -> None:
    (await api.call("GET", STREAM, role=None)).problem(401, "unauthorized")
    assert api.events.open_subscriptions == 0


async def test_stream_of_a_revoked_token_shows_nothing_more(api: Api) -> None:
    token = await api.token("watcher", "viewer")
    async with _stream(api, token=token) as response:
        await _frame(response)
        await api.tokens.revoke(token.split("_")[1], SYSTEM)
        api.events.queue.put_nowait(make_event(42))
        async with asyncio.timeout(5):
            assert await response.content.read() == b""
    await until(lambda: api.events.open_subscriptions == 0)


@pytest.mark.parametrize("query", ["", "?changes=true"])
async def test_stream_has_given_back_what_it_held_when_its_answer_ends(
    api: Api, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    held = 0

    async def slow(_last: int) -> AsyncGenerator[CloudEvent | None]:
        nonlocal held
        held += 1
        try:
            yield await api.events.queue.get()
        finally:
            for _ in range(1000):  # a connection on its way back to the pool
                await asyncio.sleep(0)
            held -= 1

    monkeypatch.setattr(api.events, "subscribe", slow)
    token = await api.token("watcher", "viewer")
    async with _stream(api, token=token, query=query) as response:
        await _frame(response)
        await until(lambda: held == 1)
        await api.tokens.revoke(token.split("_")[1], SYSTEM)
        async with asyncio.timeout(5):
            assert await response.content.read() == b""
        assert held == 0


async def test_stream_whose_client_has_left_is_let_go(api: Api) -> None:
    async with _stream(api) as response:
        await _frame(response)
        assert api.events.open_subscriptions == 1
        response.close()
    for _ in range(3):  # the first write after a close may still succeed
        api.events.queue.put_nowait(None)
    await until(lambda: api.events.open_subscriptions == 0)


async def test_client_that_leaves_before_the_head_is_written_is_no_failure(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    entered, gate = asyncio.Event(), asyncio.Event()

    async def newest() -> int:
        entered.set()
        await gate.wait()
        return 5

    monkeypatch.setattr(api.events, "newest", newest)
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = f"GET {STREAM} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.by_role['viewer']}\r\n\r\n"
    writer.write(head.encode())
    await entered.wait()
    writer.transport.abort()
    server = api.runner.server
    assert server is not None
    await until(lambda: all(each.transport is None for each in server.connections))
    gate.set()
    await until(lambda: any(r.msg == "request served" for r in caplog.records))
    await until(lambda: not any("RequestHandler.start" in repr(task) for task in asyncio.all_tasks()))
    assert [r.msg for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_stream_whose_database_is_away_goes_on_with_the_next_event(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.api.events._FIRST_PAUSE_S", 0.0)
    begun: list[int] = []
    subscribe = api.events.subscribe

    async def flaky(last: int) -> AsyncGenerator[CloudEvent | None]:
        begun.append(last)
        if len(begun) == 2:
            raise ConnectionRefusedError
        async for event in subscribe(last):
            yield event
            if len(begun) == 1 and event is not None and event.sequence == "4":
                raise asyncpg.AdminShutdownError

    monkeypatch.setattr(api.events, "subscribe", flaky)
    async with _stream(api, last="2") as response:
        heard = [(await _frame(response))[0] for _ in range(6)]
    assert heard == ["retry: 2000", "id: 3", "id: 4", ": ping", ": ping", "id: 5"]
    assert begun == [2, 4, 4]


async def test_stream_shows_nothing_while_nobody_can_say_whether_its_token_lives(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.api.events._FIRST_PAUSE_S", 0.0)
    is_live = api.tokens.is_live
    token = await api.token("watcher", "viewer")
    async with _stream(api, token=token, query="?changes=true") as response:
        await _frame(response)
        away = [True, True]

        async def asked(token_id: str) -> bool:
            if away:
                away.pop()
                raise TimeoutError
            return await is_live(token_id)

        monkeypatch.setattr(api.tokens, "is_live", asked)
        api.changes.resync()
        assert [(await _frame(response))[0] for _ in range(3)] == [": ping", ": ping", "event: resync"]
        away += [True]
        await api.pool.execute("UPDATE api_token SET revoked_at = now() WHERE id = $1", token.split("_")[1])
        api.tokens.forget()
        api.events.queue.put_nowait(make_event(42))
        async with asyncio.timeout(5):
            assert (await response.content.read()).replace(b": ping\n\n", b"") == b""
    await until(lambda: api.events.open_subscriptions == 0)


async def test_stop_of_the_server_ends_open_streams_at_once(api: Api) -> None:
    async with _stream(api) as one, _stream(api) as two:
        await _frame(one)
        await _frame(two)
        async with asyncio.timeout(2):
            await api.runner.cleanup()
            assert await one.content.read() == b""
    assert api.events.open_subscriptions == 0


async def test_stream_with_changes_sends_both_and_changes_bear_no_id(api: Api) -> None:
    async with _stream(api, last="4", query="?changes=true") as response:
        assert await _frame(response) == ["retry: 2000"]
        assert (await _frame(response))[0] == "id: 5"
        api.changes.operation_written("op")
        await api.changes.tick()
        name, document = await _frame(response)
        assert name == "event: changes"
        assert msgspec.json.decode(document.removeprefix("data: ")) == {
            "backends": [],
            "gone": [],
            "hosts": [],
            "cells": [],
            "operations": ["op"],
        }
        api.events.queue.put_nowait(make_event(6))
        assert (await _frame(response))[0] == "id: 6"
        api.changes.resync()
        assert await _frame(response) == ["event: resync", "data: {}"]
        api.events.queue.put_nowait(None)
        assert await _frame(response) == [": ping"]


async def test_stream_without_changes_sends_none(api: Api) -> None:
    async with _stream(api, query="?changes=false") as plain, _stream(api, query="?changes=true") as other:
        for response in (plain, other):
            await _frame(response)
        api.changes.operation_written("op")
        await api.changes.tick()
        assert (await _frame(other))[0] == "event: changes"
        api.events.queue.put_nowait(None)
        api.events.queue.put_nowait(None)
        assert await _frame(plain) == [": ping"]


async def test_stream_of_changes_ends_with_its_token_and_lets_go(api: Api) -> None:
    token = await api.token("page", "viewer")
    async with _stream(api, token=token, query="?changes=true") as response:
        await _frame(response)
        await api.tokens.revoke(token.split("_")[1], SYSTEM)
        api.changes.operation_written("op")
        await api.changes.tick()
        async with asyncio.timeout(5):
            assert await response.content.read() == b""
    await until(lambda: api.events.open_subscriptions == 0)


async def test_stop_of_the_server_ends_streams_of_changes_at_once(api: Api) -> None:
    async with _stream(api, query="?changes=true") as response:
        await _frame(response)
        async with asyncio.timeout(2):
            await api.runner.cleanup()
            assert await response.content.read() == b""
    assert api.events.open_subscriptions == 0


async def test_stream_with_a_wrong_changes_is_400(api: Api) -> None:
    answer = await api.call("GET", f"{STREAM}?changes=yes")
    answer.problem(400, "invalid_field")
    assert answer.pointers() == ["/query/changes"]


async def test_verification_is_for_viewers(api: Api) -> None:
    answer = await api.call("GET", "/v1/events/verification", role="viewer")
    assert answer.json == {
        "is_intact": True,
        "events": 5,
        "first_broken": None,
        "is_complete": True,
        "verified_at": "2026-01-31T12:00:00Z",
    }
    (await api.call("GET", "/v1/events/verification", role=None)).problem(401, "unauthorized")


async def test_matrix_of_an_empty_fleet_is_empty(api: Api) -> None:
    assert (await api.call("GET", "/v1/matrix", role="viewer")).json == {"hosts": [], "rows": []}


async def test_list_pages_newest_first_when_asked(api: Api) -> None:
    first = (await api.call("GET", "/v1/events?order=desc&limit=3", role="viewer")).json
    second = (await api.call("GET", f"/v1/events?order=desc&limit=3&cursor={first['next_cursor']}", role="viewer")).json
    assert [e["sequence"] for e in first["items"] + second["items"]] == ["5", "4", "3", "2", "1"]
    assert second["next_cursor"] is None


async def test_cursor_of_one_order_is_refused_in_the_other(api: Api) -> None:
    for own, other in (("asc", "desc"), ("desc", "asc")):
        cursor = (await api.call("GET", f"/v1/events?order={own}&limit=2")).json["next_cursor"]
        answer = await api.call("GET", f"/v1/events?order={other}&limit=2&cursor={cursor}")
        answer.problem(400, "invalid_field")
        assert answer.pointers() == ["/query/cursor"]


async def test_list_pages_oldest_first(api: Api) -> None:
    first = (await api.call("GET", "/v1/events?limit=3", role="viewer")).json
    second = (await api.call("GET", f"/v1/events?limit=3&cursor={first['next_cursor']}", role="viewer")).json
    assert [e["sequence"] for e in first["items"] + second["items"]] == ["1", "2", "3", "4", "5"]
    assert second["next_cursor"] is None


async def test_list_with_wrong_filters_names_them(api: Api) -> None:
    for query, pointer in (
        ("type=backend.exploded", "/query/type"),
        ("since=yesterday", "/query/since"),
        ("order=newest", "/query/order"),
        ("since=2026-01-31T12:00:00", "/query/since"),
        ("subject=%00", "/query/subject"),
        ("actor=" + "a" * 600, "/query/actor"),
    ):
        answer = await api.call("GET", f"/v1/events?{query}")
        answer.problem(400, "invalid_field")
        assert answer.pointers() == [pointer]
    for since in ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00%2B02:00", "2026-01-31T12:00:00+02:00"):
        assert (await api.call("GET", f"/v1/events?since={since}&type=backend.created")).status == 200
