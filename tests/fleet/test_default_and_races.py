"""Races that the database must decide: who is the default, whether a backend goes or gets a volume, whose a name is."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
import asyncpg

from schemas.ids import new_id
from tests.fleet.fleet import Answer, Api, Fleet, until

_CALLS = 500
_ROUNDS = 200
_SOCKETS = 100

_INSERT = (
    "INSERT INTO volume (id, name, backend_id, size_bytes)"
    " VALUES (gen_random_uuid(), 'disk-' || gen_random_uuid(), $1, 512)"
)


def _nfs(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "nfs", "config": {"server": "nas", "export": f"/tank/{name}"}, **more}


async def test_default_changed_by_many_at_once_is_one_at_every_reading(stowage: Fleet) -> None:
    first = await stowage.manager("manager-1")
    second = await stowage.manager("manager-2")
    await stowage.agent("hv1")
    names = [f"b{number}" for number in range(5)]
    for name in names:
        assert (await first("POST", "/v1/storage_backends", _nfs(name, is_default=name == "b0"))).status == 201

    async def is_everywhere() -> bool:
        return all([len(await _defaults(api)) == 1 for api in (first, second)])

    await until(is_everywhere, "both replicas to know the default")
    readings = 0
    is_over = asyncio.Event()

    async def read() -> None:
        nonlocal readings
        connection = await asyncpg.connect(stowage.database_url)
        try:
            while not is_over.is_set():
                for api in (first, second):
                    assert len(await _defaults(api)) == 1
                count = await connection.fetchval(
                    "SELECT count(*) FROM backend WHERE is_default AND deleted_at IS NULL"
                )
                assert count == 1
                readings += 1
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        calls = [
            ((first, second)[n % 2], "PATCH", f"/v1/storage_backends/b{n % 5}", {"is_default": True})
            for n in range(_CALLS)
        ]
        answers = await _all_at_once(calls)
        is_over.set()

    assert {answer.status for answer in answers} == {200}
    assert readings > 10
    changes = [
        json.loads(row["data"])
        for row in await stowage.sql("SELECT data FROM event WHERE type = 'backend.default_changed' ORDER BY n")
    ]
    assert len(changes) > 5, "the default hardly moved"
    assert changes[0]["previous_default"] is None
    for change in changes:
        assert (change["before"]["is_default"], change["after"]["is_default"]) == (False, True)
    for before, after in itertools.pairwise(changes):
        assert after["previous_default"] == before["after"]["id"] != after["after"]["id"]
    (row,) = await stowage.sql("SELECT id::text FROM backend WHERE is_default")
    assert row["id"] == changes[-1]["after"]["id"]


async def test_removal_that_races_a_volume_never_succeeds_beside_it(stowage: Fleet) -> None:
    """The volumes come by raw SQL, as from a program that knows nothing of us; some of their transactions end late."""
    api = await stowage.manager()
    numbers = iter(range(_ROUNDS))
    outcomes: dict[str, int] = {"removed": 0, "refused": 0}

    async def rounds() -> None:
        connection = await asyncpg.connect(stowage.database_url)
        watcher = await asyncpg.connect(stowage.database_url)
        try:
            for number in numbers:
                backend_id = await _ready_backend(connection, f"race{number}")
                removal = asyncio.create_task(api("DELETE", f"/v1/storage_backends/race{number}"))
                if number % 3:
                    has_volume = await _insert_at_once(connection, backend_id, trips=number % 12)
                else:
                    has_volume = await _insert_late(connection, watcher, backend_id, removal, is_kept=number % 2 == 0)
                answer = await removal
                if has_volume:
                    assert answer.status == 409, (number, answer)
                    assert answer.body["code"] == "backend_in_use"
                    assert (
                        answer.body["detail"]
                        == "backend has 1 live volume(s); delete or migrate them before removing the backend"
                    )
                    assert [blocker["name"][:5] for blocker in answer.body["blockers"]] == ["disk-"]
                else:
                    assert answer.status == 204, (number, answer)
                outcomes["refused" if has_volume else "removed"] += 1
        finally:
            await connection.close()
            await watcher.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(rounds())

    assert sum(outcomes.values()) == _ROUNDS
    assert min(outcomes.values()) > _ROUNDS / 20, f"the race was no race: {outcomes}"
    wrong = await stowage.sql(
        "SELECT FROM volume v JOIN backend b ON b.id = v.backend_id WHERE b.deleted_at IS NOT NULL OR b.state <> 'ready'"
    )
    assert wrong == []


async def test_adds_of_one_name_at_once_let_one_in(stowage: Fleet) -> None:
    first = await stowage.manager("manager-1")
    second = await stowage.manager("manager-2")
    await stowage.agent("hv1")

    async def knows_the_host() -> bool:
        return bool((await first("GET", "/v1/hosts")).body["items"][0]["state"] == "online")

    await until(knows_the_host, "the other replica to know the host")

    answers = await _all_at_once(
        [((first, second)[n % 2], "POST", "/v1/storage_backends", _nfs("tank")) for n in range(30)]
    )

    assert sorted(answer.status for answer in answers) == [201] + [409] * 29
    assert {answer.body["code"] for answer in answers if answer.status == 409} == {"name_taken"}
    await stowage.settle()
    assert len(await stowage.sql("SELECT FROM event WHERE type = 'backend.created'")) == 1


async def _defaults(api: Api) -> list[str]:
    answer = await api("GET", "/v1/storage_backends")
    assert answer.status == 200, answer
    return [item["name"] for item in answer.body["items"] if item["is_default"]]


async def _all_at_once(calls: list[tuple[Api, str, str, Any]]) -> list[Answer]:
    """Every call is under way before the first is answered, on as many sockets as one process may have."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_SOCKETS)) as session:

        async def call(api: Api, method: str, path: str, body: Any) -> Answer:
            headers = {"Authorization": f"Bearer {api.token}"}
            async with session.request(method, api.url + path, json=body, headers=headers) as response:
                return Answer(response.status, await response.json(content_type=None), dict(response.headers))

        return list(await asyncio.gather(*(call(*each) for each in calls)))


async def _ready_backend(connection: "asyncpg.Connection[asyncpg.Record]", name: str) -> str:
    """A backend that no host has: what is raced for is its row."""
    backend_id = new_id()
    await connection.execute(
        "INSERT INTO backend (id, name, kind, config, selector, state) VALUES ($1, $2, 'nfs', '{}', $3, 'ready')",
        backend_id, name, json.dumps({"names": ["*"], "labels": {}}),
    )  # fmt: skip
    return backend_id


async def _insert_at_once(connection: "asyncpg.Connection[asyncpg.Record]", backend_id: str, *, trips: int) -> bool:
    """Whether the volume came in, tried some round trips after the removal set out."""
    for _ in range(trips):
        await connection.execute("SELECT 1")
    try:
        await connection.execute(_INSERT, backend_id)
    except asyncpg.CheckViolationError:
        return False
    return True


async def _insert_late(
    connection: "asyncpg.Connection[asyncpg.Record]",
    watcher: "asyncpg.Connection[asyncpg.Record]",
    backend_id: str,
    removal: "asyncio.Task[Answer]",
    *,
    is_kept: bool,
) -> bool:
    """Whether the volume came in, in a transaction that ends when the removal waits for it (or has overtaken it)."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(_INSERT, backend_id)
    except asyncpg.CheckViolationError:
        await transaction.rollback()
        return False
    pid = connection.get_server_pid()

    async def is_waited_for() -> bool:
        waiting = await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))", pid
        )
        return removal.done() or waiting > 0

    await until(is_waited_for, "the removal to wait for the volume's transaction")
    assert not removal.done(), "the removal did not wait for the volume's transaction"
    await (transaction.commit() if is_kept else transaction.rollback())
    return is_kept
