"""What subscribers are told: whatever looks different from the moment on which they were let in, once, and nothing else."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from manager.changes import ALL_IN_TICKS, QUEUE_FRAMES, RESYNC, Changes
from manager.matrix import Matrices
from manager.registry import Registry
from manager.store import backends
from manager.store.migrate import migrate
from manager.store.pool import Pool, connect, open_pool
from schemas.agent_rpc import Observation
from schemas.backends import Capacity, HealthStatus
from schemas.faults import FaultCode
from schemas.hosts import HostSelector
from schemas.ids import new_id

HV1, HV2 = new_id(), new_id()
TANK, OTHER = new_id(), new_id()
GIB = 2**30


class Room:
    """A registry over two hosts and two backends (other: for hv1 alone), and the changes in it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.registry = Registry(pool, host_silent_s=60, observation_stale_s=3600)
        self.changes = Changes(self.registry)
        self.order = 0

    def see(
        self,
        *,
        host: str = HV1,
        backend: str = TANK,
        status: HealthStatus = HealthStatus.HEALTHY,
        code: FaultCode | None = None,
        latency_ms: float = 1.0,
        used_bytes: int | None = None,
    ) -> None:
        now = dt.datetime.now(dt.UTC)
        self.order += 1
        capacity = None
        if used_bytes is not None:
            capacity = Capacity(
                total_bytes=100 * GIB,
                used_bytes=used_bytes,
                available_bytes=100 * GIB - used_bytes,
                observed_at=now,
                file_system="fs",
            )
        seen = Observation(
            backend_id=backend, generation=1, status=status, code=code, latency_ms=latency_ms, capacity=capacity,
            order=self.order, observed_at=now,
        )  # fmt: skip
        self.registry.observe(host, [seen])

    async def told(self, queue: asyncio.Queue[bytes]) -> dict[str, Any]:
        """What one tick tells; nothing: {}."""
        await self.changes.tick()
        if queue.empty():
            return {}
        (told,) = frames(queue)
        return {key: value for key, value in told.items() if value}


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds, looking at each turn of the loop."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def frames(queue: asyncio.Queue[bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while not queue.empty():
        name, document, *blank = queue.get_nowait().decode().split("\n")
        assert (name, blank) == ("event: changes", ["", ""])
        found.append(msgspec.json.decode(document.removeprefix("data: ")))
    return found


@pytest.fixture
async def room(database: str) -> AsyncIterator[Room]:
    connection = await connect(database)
    await migrate(connection)
    for host_id, name in ((HV1, "hv1"), (HV2, "hv2")):
        await connection.execute(
            "INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, $2, $2, '')", host_id, name
        )
    for backend_id, name, selector in (
        (TANK, "tank", HostSelector()),
        (OTHER, "other", HostSelector(names=("hv1",))),
    ):
        await backends.insert_creating(
            connection, backend_id=backend_id, name=name, kind="nfs", config={}, credential_version=0, labels={},
            selector=selector,
        )  # fmt: skip
    await connection.execute("UPDATE backend SET state = 'ready'")
    await connection.close()
    pool = await open_pool(database, size=2)
    room = Room(pool)
    await room.registry.load()
    for host_id in (HV1, HV2):
        room.registry.alive(host_id)
    room.see()
    room.see(host=HV2)
    room.see(backend=OTHER)
    yield room
    await pool.close()


@pytest.fixture
async def queue(room: Room, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Queue[bytes]]:
    """Of a subscriber who has read the lists long ago."""
    monkeypatch.setattr("manager.changes.READING_S", 0.0)
    async with room.changes.subscribed() as queue:
        yield queue


async def test_matrix_has_a_row_a_backend_and_a_column_a_live_host(room: Room) -> None:
    room.see(status=HealthStatus.UNREACHABLE, code=FaultCode.IO_ERROR, latency_ms=7.5)
    matrix = await Matrices(room.registry).whole()
    assert [(host.id, host.name, host.state) for host in matrix.hosts] == [
        (HV1, "hv1", "online"),
        (HV2, "hv2", "online"),
    ]
    assert msgspec.json.decode(msgspec.json.encode(matrix.rows)) == [
        {
            "backend_id": TANK,
            "backend": "tank",
            "cells": [
                {"status": "unreachable", "code": "io_error", "latency_ms": 7.5},
                {"status": "healthy", "latency_ms": 1.0},
            ],
        },
        {"backend_id": OTHER, "backend": "other", "cells": [{"status": "healthy", "latency_ms": 1.0}, None]},
    ]
    await room.pool.execute("UPDATE host SET revoked_at = now() WHERE id = $1", HV1)
    await room.registry.refresh_hosts()
    matrix = await Matrices(room.registry).whole()
    assert [host.name for host in matrix.hosts] == ["hv2"]
    assert [row.cells == (None,) for row in matrix.rows] == [False, True]


async def test_quiet_fleet_tells_nothing(room: Room, queue: asyncio.Queue[bytes]) -> None:
    for _ in range(2 * ALL_IN_TICKS):
        room.see()
        room.registry.sweep()
        assert await room.told(queue) == {}


async def test_cell_that_turns_is_told_with_its_backend_and_once(room: Room, queue: asyncio.Queue[bytes]) -> None:
    room.see(status=HealthStatus.UNREACHABLE, code=FaultCode.IO_ERROR)
    told = await room.told(queue)
    assert told["cells"] == [
        {"backend_id": TANK, "host_id": HV1, "status": "unreachable", "code": "io_error", "latency_ms": 1.0}
    ]
    assert [(each["name"], each["health"]["status"], each["host_summary"]) for each in told["backends"]] == [
        ("tank", "degraded", {"total": 2, "healthy": 1})
    ]
    assert told.keys() == {"cells", "backends"}
    for _ in range(ALL_IN_TICKS):
        assert await room.told(queue) == {}


@pytest.mark.parametrize(
    ("before", "after", "is_told"),
    [(1.0, 1.4, False), (1.0, 1.6, True), (99.0, 101.0, True), (341.0, 344.0, False), (341.0, 349.0, True), (1210.0, 1240.0, False)],
)  # fmt: skip
async def test_latency_is_told_when_it_looks_different(
    room: Room, queue: asyncio.Queue[bytes], before: float, after: float, is_told: bool
) -> None:
    room.see(latency_ms=before)
    await room.told(queue)
    room.see(latency_ms=after)
    told = await room.told(queue)
    assert [cell["latency_ms"] for cell in told.get("cells", [])] == ([after] if is_told else [])


async def test_capacity_is_told_when_it_has_moved_by_a_thousandth_also_in_small_steps(
    room: Room, queue: asyncio.Queue[bytes]
) -> None:
    room.see(used_bytes=10 * GIB)
    assert [each["capacity"]["used_bytes"] for each in (await room.told(queue))["backends"]] == [10 * GIB]
    step = GIB // 25  # of a total of 100 GiB less than a thousandth; three of them are more
    told: list[int] = []
    for number in range(1, 4):
        room.see(used_bytes=10 * GIB + number * step)
        told += [each["capacity"]["used_bytes"] for each in (await room.told(queue)).get("backends", [])]
    assert told == [10 * GIB + 3 * step]


async def test_host_that_falls_silent_is_told_with_its_cells(room: Room, queue: asyncio.Queue[bytes]) -> None:
    room.registry.silence(HV1)
    told = await room.told(queue)
    assert [(host["name"], host["state"]) for host in told["hosts"]] == [("hv1", "offline")]
    assert {(cell["backend_id"], cell["host_id"], cell["code"]) for cell in told["cells"]} == {
        (TANK, HV1, "host_offline"),
        (OTHER, HV1, "host_offline"),
    }


async def test_host_that_was_away_between_two_ticks_is_told_as_it_is(room: Room, queue: asyncio.Queue[bytes]) -> None:
    """Somebody may have read a list in between."""
    room.registry.silence(HV1)
    room.registry.alive(HV1)
    told = await room.told(queue)
    assert [(host["name"], host["state"]) for host in told["hosts"]] == [("hv1", "online")]
    assert {(cell["backend_id"], cell["status"]) for cell in told["cells"]} == {(TANK, "healthy"), (OTHER, "healthy")}
    assert await room.told(queue) == {}


async def test_revoked_host_is_told_with_its_state_and_its_cells_are_gone(
    room: Room, queue: asyncio.Queue[bytes]
) -> None:
    await room.pool.execute("UPDATE host SET revoked_at = now() WHERE id = $1", HV2)
    await room.registry.refresh_hosts()
    told = await room.told(queue)
    assert [(host["name"], host["state"]) for host in told["hosts"]] == [("hv2", "revoked")]
    assert told["cells"] == [{"backend_id": TANK, "host_id": HV2, "status": None}]


async def test_host_that_joins_is_told_with_its_cells(room: Room, queue: asyncio.Queue[bytes]) -> None:
    newcomer = new_id()
    await room.pool.execute(
        "INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, 'hv3', 'hv3', '')", newcomer
    )
    await room.registry.refresh_hosts()
    told = await room.told(queue)
    assert [(host["name"], host["state"]) for host in told["hosts"]] == [("hv3", "offline")]
    assert [(cell["backend_id"], cell["host_id"], cell["status"]) for cell in told["cells"]] == [
        (TANK, newcomer, "pending")
    ]


async def test_backend_that_comes_and_goes_is_told(room: Room, queue: asyncio.Queue[bytes]) -> None:
    third = new_id()
    async with room.pool.acquire() as connection:
        await backends.insert_creating(
            connection, backend_id=third, name="third", kind="nfs", config={}, credential_version=0, labels={},
            selector=HostSelector(),
        )  # fmt: skip
    await room.registry.refresh([third])
    told = await room.told(queue)
    assert ([each["name"] for each in told["backends"]], len(told["cells"])) == (["third"], 2)
    await room.pool.execute("UPDATE backend SET deleted_at = now() WHERE id = $1", third)
    await room.registry.refresh([third])
    assert await room.told(queue) == {"gone": [third]}


async def test_default_that_moves_is_told_of_both_in_one_frame(room: Room, queue: asyncio.Queue[bytes]) -> None:
    await room.pool.execute("UPDATE backend SET is_default = true WHERE id = $1", TANK)
    await room.registry.refresh([TANK])
    assert [(each["name"], each["is_default"]) for each in (await room.told(queue))["backends"]] == [("tank", True)]
    async with room.pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE backend SET is_default = false WHERE id = $1", TANK)
        await connection.execute("UPDATE backend SET is_default = true WHERE id = $1", OTHER)
    await room.registry.refresh([OTHER])  # the other notification is late
    told = await room.told(queue)
    assert {each["name"]: each["is_default"] for each in told["backends"]} == {"tank": False, "other": True}


async def test_observation_that_becomes_stale_without_a_word_is_told_within_some_ticks(
    room: Room, queue: asyncio.Queue[bytes]
) -> None:
    room.registry._stale_s = 0.0  # pyright: ignore[reportPrivateUsage]
    cells = [cell for _ in range(ALL_IN_TICKS) for cell in (await room.told(queue)).get("cells", [])]
    assert sorted(cell["code"] for cell in cells) == ["timed_out"] * 3


async def test_operations_are_told_by_id_each_once_a_tick(room: Room, queue: asyncio.Queue[bytes]) -> None:
    for operation_id in ("b", "a", "b"):
        room.changes.operation_written(operation_id)
    assert await room.told(queue) == {"operations": ["b", "a"]}
    assert await room.told(queue) == {}


async def test_blip_is_told_to_who_may_have_read_the_lists_during_it(room: Room) -> None:
    async with room.changes.subscribed() as queue:
        room.see(status=HealthStatus.UNREACHABLE, code=FaultCode.IO_ERROR)
        room.see()
        told = await room.told(queue)
    assert [(cell["backend_id"], cell["host_id"], cell["status"]) for cell in told["cells"]] == [(TANK, HV1, "healthy")]
    assert [(each["name"], each["health"]["status"]) for each in told["backends"]] == [("tank", "healthy")]


async def test_later_subscriber_gets_the_same_frames_and_none_of_before(
    room: Room, queue: asyncio.Queue[bytes]
) -> None:
    room.see(status=HealthStatus.UNREACHABLE)
    await room.changes.tick()
    async with room.changes.subscribed() as later:
        room.see(host=HV2, status=HealthStatus.UNREACHABLE)
        await room.changes.tick()
        assert (queue.qsize(), later.qsize()) == (2, 1)
        queue.get_nowait()
        assert later.get_nowait() is queue.get_nowait()


async def test_slow_subscriber_is_told_to_read_again_and_holds_up_nobody(
    room: Room, queue: asyncio.Queue[bytes]
) -> None:
    async with room.changes.subscribed() as quick:
        for number in range(QUEUE_FRAMES + 2):
            room.changes.operation_written(str(number))
            await room.changes.tick()
            assert frames(quick)[0]["operations"] == [str(number)]
    assert queue.get_nowait() is RESYNC
    assert [frame["operations"] for frame in frames(queue)] == [[str(QUEUE_FRAMES + 1)]]


async def test_nothing_is_kept_or_compared_without_a_subscriber(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    with_cells = room.registry.with_cells

    def counted(backend_id: str) -> Any:
        looks.append(backend_id)
        return with_cells(backend_id)

    monkeypatch.setattr(room.registry, "with_cells", counted)
    room.see()
    room.changes.operation_written("before")
    await room.changes.tick()
    assert looks == []
    async with room.changes.subscribed() as first:
        looks.clear()
    room.see(status=HealthStatus.UNREACHABLE)
    await room.changes.tick()
    assert (looks, first.empty()) == ([], True)

    async def subscribe() -> None:
        async with room.changes.subscribed():
            raise AssertionError("cancelled before it was let in")

    leaving = asyncio.create_task(subscribe())
    await until(lambda: bool(looks))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    looks.clear()
    await room.changes.tick()
    assert leaving.cancelled()
    assert looks == []
    async with room.changes.subscribed() as second:
        assert "operations" not in await room.told(second)


async def test_run_tells_by_itself_and_after_a_failure_everybody_reads_again(
    room: Room, queue: asyncio.Queue[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    room.changes._tick_s = 0.01  # pyright: ignore[reportPrivateUsage]
    hosts = room.registry.hosts
    failing = [True]

    def fail_once() -> Any:
        if failing:
            failing.pop()
            raise RuntimeError("scripted")
        return hosts()

    monkeypatch.setattr(room.registry, "hosts", fail_once)
    task = asyncio.create_task(room.changes.run())
    async with asyncio.timeout(5):
        assert await queue.get() is RESYNC
        room.changes.operation_written("a")
        assert b'"operations":["a"]' in await queue.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_backend_that_cannot_be_looked_at_is_left_out_until_it_can_and_logged_once(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_cells = room.registry.with_cells
    odd = {TANK}

    def looked(backend_id: str) -> Any:
        if backend_id in odd:
            raise RuntimeError("scripted")
        return with_cells(backend_id)

    monkeypatch.setattr(room.registry, "with_cells", looked)
    async with room.changes.subscribed() as queue:
        for status in (HealthStatus.UNREACHABLE, HealthStatus.HEALTHY):
            room.see(status=status)
            room.see(backend=OTHER, status=status)
            told = await room.told(queue)
            assert {cell["backend_id"] for cell in told["cells"]} == {OTHER}
        assert [r.__dict__["backend_id"] for r in caplog.records if r.levelname == "ERROR"] == [TANK]
        odd.clear()
        told = await room.told(queue)
        assert {cell["backend_id"] for cell in told["cells"]} == {TANK}


async def test_run_that_fails_on_and_on_has_everybody_read_again_ever_more_rarely_and_once_it_works(
    room: Room, queue: asyncio.Queue[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    room.changes._tick_s = 0.0  # pyright: ignore[reportPrivateUsage]
    failures = 0
    told_after: list[int] = []
    done = asyncio.Event()

    async def tick() -> None:
        nonlocal failures
        if failures == 11:
            done.set()
            return
        failures += 1
        raise RuntimeError("scripted")

    monkeypatch.setattr(room.changes, "tick", tick)
    monkeypatch.setattr(room.changes, "resync", lambda: told_after.append(failures))
    task = asyncio.create_task(room.changes.run())
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told_after == [1, 2, 4, 8, 11]
