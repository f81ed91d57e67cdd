"""When a backend will be full, by rule; what is kept of how full it was, and what is shown of that."""

import asyncio
import datetime as dt
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import msgspec
import pytest

from manager.capacity import KEPT_S, Capacities, full_in_days
from manager.outbox import Relay
from manager.registry import Registry
from manager.store import backends, capacity
from manager.store.capacity import SLOT_S, HourlyMean
from manager.store.migrate import migrate
from manager.store.pool import Connection, Pool, open_pool
from manager.watch import Watch
from schemas.agent_rpc import Observation
from schemas.backends import Capacity, HealthStatus
from schemas.hosts import HostSelector
from schemas.ids import new_id

TOTAL = 10**12
WEEK_H = 7 * 24


def means(
    available: Callable[[int], float], *, hours: int = WEEK_H, total: Callable[[int], int] = lambda _: TOTAL
) -> list[HourlyMean]:
    """One an hour; both functions are of the hour's number."""
    return [
        HourlyMean(
            at_s=1.8e9 + 3600 * hour,
            available_bytes=available(hour),
            least_total_bytes=total(hour),
            most_total_bytes=total(hour),
        )
        for hour in range(hours)
    ]


def falling(per_hour: float, start: float = TOTAL / 2) -> Callable[[int], float]:
    return lambda hour: start - per_hour * hour


def test_runway_of_steady_growth_is_what_is_left_over_its_pace() -> None:
    found = means(falling(1e9))
    left = found[-1].available_bytes
    assert full_in_days(found) == round(left / 1e9 / 24, 1)


def test_runway_counts_what_is_available_and_not_what_is_reserved() -> None:
    """The total is never looked at but for its changes."""
    assert full_in_days(means(falling(1e9, start=2e11))) == round((2e11 - 1e9 * (WEEK_H - 1)) / 1e9 / 24, 1)


def test_runway_of_a_full_backend_is_zero() -> None:
    assert full_in_days(means(lambda hour: max(0.0, 1e11 - 1e9 * hour))) == 0.0


@pytest.mark.parametrize(("hours", "is_told"), [(0, False), (1, False), (12, False), (13, True)])
def test_runway_of_less_than_twelve_hours_is_not_told(hours: int, is_told: bool) -> None:
    assert (full_in_days(means(falling(1e10), hours=hours)) is not None) is is_told


@pytest.mark.parametrize("per_hour", [0.0, -1e9], ids=["flat", "shrinking"])
def test_runway_of_what_does_not_grow_is_not_told(per_hour: float) -> None:
    assert full_in_days(means(falling(per_hour))) is None


@pytest.mark.parametrize(("of_the_total", "is_told"), [(0.0009, False), (0.0011, True)])
def test_runway_of_growth_below_a_thousandth_of_the_total_is_not_told(of_the_total: float, is_told: bool) -> None:
    grown = means(falling(of_the_total * TOTAL / (WEEK_H - 1), start=TOTAL / 100))
    assert (full_in_days(grown) is not None) is is_told


def test_runway_of_noise_is_not_told() -> None:
    """Files that come and go, of a ten thousandth of the total."""
    dice = random.Random(5)
    assert full_in_days(means(lambda _: TOTAL / 2 + dice.uniform(-1e8, 1e8))) is None


def test_runway_of_growth_with_noise_is_near_that_without() -> None:
    dice = random.Random(5)
    noisy = means(lambda hour: falling(1e9)(hour) + dice.uniform(-5e9, 5e9))
    told, plain = full_in_days(noisy), full_in_days(means(falling(1e9)))
    assert told is not None and plain is not None
    assert abs(told - plain) < 0.1 * plain


def test_runway_of_one_step_is_told_by_the_pace_over_the_whole_window() -> None:
    """A tenth of the total came at once in the middle; least squares make of it 1.5 times the step, over the week."""
    told = full_in_days(means(lambda hour: TOTAL / 2 - (TOTAL / 10 if hour >= WEEK_H // 2 else 0)))
    assert told is not None
    assert told == pytest.approx(7 * 4 / 1.5, rel=0.02)


def test_runway_after_a_lun_has_grown_is_of_the_time_since_then() -> None:
    """Before it much came in an hour, since then little; and what the growth itself made available is no shrinking."""
    grown_at = 100

    def available(hour: int) -> float:
        return falling(4e9)(hour) if hour < grown_at else 9e11 - 1e9 * (hour - grown_at)

    found = means(available, total=lambda hour: TOTAL if hour < grown_at else 2 * TOTAL)
    assert full_in_days(found) == round(found[-1].available_bytes / 1e9 / 24, 1)


@pytest.mark.parametrize(("hours_since", "is_told"), [(12, False), (13, True)])
def test_runway_soon_after_a_lun_has_grown_is_not_told(hours_since: int, is_told: bool) -> None:
    found = means(falling(4e9), total=lambda hour: TOTAL if hour < WEEK_H - hours_since else 2 * TOTAL)
    assert (full_in_days(found) is not None) is is_told


def test_runway_leaves_out_the_hour_in_which_the_total_changed() -> None:
    """Its mean is of both sizes."""
    found = means(falling(1e9), hours=30)
    mixed = HourlyMean(at_s=found[10].at_s, available_bytes=0.0, least_total_bytes=TOTAL // 2, most_total_bytes=TOTAL)
    assert full_in_days([*found[:10], mixed, *found[11:]]) == full_in_days(found[11:])
    assert full_in_days([*found[:29], mixed]) is None


def test_runway_takes_a_total_that_changes_by_less_than_a_hundredth_for_the_same() -> None:
    plain = full_in_days(means(falling(1e9)))
    assert full_in_days(means(falling(1e9), total=lambda hour: TOTAL - TOTAL // 200 * (hour % 2))) == plain


@pytest.mark.parametrize(("days", "is_told"), [(3600, True), (3700, False)])
def test_runway_beyond_ten_years_is_not_told(days: int, is_told: bool) -> None:
    pace = 0.002 * TOTAL / (WEEK_H - 1)
    start = pace * (24 * days + WEEK_H - 1)
    assert (full_in_days(means(falling(pace, start=start))) is not None) is is_told


# What is kept, and what is read of it.


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database, size=2)
    async with pool.acquire() as connection:
        await migrate(connection)
    yield pool
    await pool.close()


@pytest.fixture
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    async with pool.acquire() as connection:
        yield connection


def figures(used_bytes: int, *, age_s: float = 0.0) -> Capacity:
    observed_at = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age_s)
    return Capacity(total_bytes=100, used_bytes=used_bytes, available_bytes=90 - used_bytes, observed_at=observed_at)


async def fill(connection: Connection, backend_id: str, ages_slots: Sequence[int]) -> None:
    """A sample of each age, in slots before this one; used is the age."""
    await connection.execute(
        "INSERT INTO capacity_sample (backend_id, slot, taken_at, used_bytes, total_bytes, available_bytes)"
        " SELECT $1, at, at, age, 1000, 1000 - age FROM (SELECT age, date_bin('15 minutes', now(), 'epoch')"
        " - age * interval '15 minutes' AS at FROM unnest($2::int[]) AS age) AS s",
        backend_id, list(ages_slots),
    )  # fmt: skip


async def used(connection: Connection, backend_id: str) -> list[int]:
    found = (await capacity.histories(connection, [backend_id]))[backend_id]
    return [sample.used_bytes for sample in found.samples]


async def test_sample_of_a_slot_is_the_first_ones(connection: Connection) -> None:
    one, other, slot = new_id(), new_id(), int(time.time()) // SLOT_S
    await capacity.insert(connection, slot, {one: figures(10)})
    await capacity.insert(connection, slot, {one: figures(20), other: figures(30)})
    await capacity.insert(connection, slot - 1, {one: figures(5)})
    assert (await used(connection, one), await used(connection, other)) == ([5, 10], [30])


async def test_sample_of_more_than_the_database_holds_is_cut(connection: Connection) -> None:
    backend_id, huge = new_id(), msgspec.structs.replace(figures(0), used_bytes=2**70, total_bytes=2**70)
    await capacity.insert(connection, int(time.time()) // SLOT_S, {backend_id: huge})
    assert await used(connection, backend_id) == [2**63 - 1]


@pytest.mark.parametrize(
    ("ages", "shown"),
    [
        (range(48), list(range(47, -1, -1))),
        (range(49), list(range(48, -1, -2))),
        (range(96), list(range(94, -1, -2))),
        (range(1, 300), list(range(95, 0, -2))),
        ([], []),
    ],
)
async def test_history_shows_a_day_in_equal_steps_with_the_newest(
    connection: Connection, ages: Sequence[int], shown: list[int]
) -> None:
    backend_id = new_id()
    await fill(connection, backend_id, ages)
    assert await used(connection, backend_id) == shown
    assert len(shown) <= capacity.MOST_SHOWN


async def test_history_has_means_of_the_hours_of_a_week(connection: Connection) -> None:
    one, other = new_id(), new_id()
    slots = capacity.KEPT_DAYS * 96
    await fill(connection, one, range(slots))
    found = await capacity.histories(connection, [one, other])
    assert list(found) == [one, other] and found[other].means == ()
    hours = found[one].means
    assert WEEK_H <= len(hours) <= WEEK_H + 1
    assert [mean.at_s for mean in hours] == sorted(mean.at_s for mean in hours)
    # Used grows by one a slot towards the past, so a whole hour's mean of available is its middle.
    assert hours[2].available_bytes - hours[1].available_bytes == 4
    assert hours[2].at_s - hours[1].at_s == 3600
    assert {(mean.least_total_bytes, mean.most_total_bytes) for mean in hours} == {(1000, 1000)}


async def test_samples_are_pruned_by_age_in_portions(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.store.capacity._PRUNED_AT_ONCE", 3)
    backend_id, kept = new_id(), capacity.KEPT_DAYS * 96
    await fill(connection, backend_id, [0, 1, kept - 1, *range(kept + 1, kept + 11)])
    await capacity.prune(connection)
    rows = await connection.fetch("SELECT used_bytes FROM capacity_sample ORDER BY used_bytes")
    assert [row["used_bytes"] for row in rows] == [0, 1, kept - 1]


async def test_row_of_an_undone_add_goes_though_it_has_samples(connection: Connection) -> None:
    backend_id = new_id()
    await backends.insert_creating(
        connection, backend_id=backend_id, name="tank", kind="nfs", config={}, credential_version=0, labels={},
        selector=HostSelector(),
    )  # fmt: skip
    await fill(connection, backend_id, [0])
    await backends.finish_removal(connection, backend_id, unconfirmed=[], keep_row=False)
    assert await connection.fetchval("SELECT count(*) FROM backend") == 0


async def test_capacities_are_read_once_for_all_and_kept_while_new_backends_appear_and_old_ones_go(
    sampling: "_Sampling", connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.capacity._AT_ONCE", 2)
    registry, tank = sampling.registry, sampling.backend_id

    async def add(*names: str) -> list[str]:
        ids = [new_id() for _ in names]
        for backend_id, name in zip(ids, names, strict=True):
            await backends.insert_creating(
                connection, backend_id=backend_id, name=name, kind="nfs", config={}, credential_version=0, labels={},
                selector=HostSelector(),
            )  # fmt: skip
            await fill(connection, backend_id, range(3))
        await registry.refresh(None)
        return ids

    async def shown() -> dict[str, int]:
        return {each.backend: len(each.samples) for each in await capacities.list()}

    await fill(connection, tank, [0])
    _, second, _ = await add("a", "b", "c")
    read: list[Sequence[str]] = []
    histories = capacity.histories

    async def counted(connection: Connection, ids: Sequence[str]) -> dict[str, capacity.History]:
        read.append(ids)
        return await histories(connection, ids)

    monkeypatch.setattr(capacity, "histories", counted)
    capacities = Capacities(sampling.pool, registry)
    wanted = {"tank": 1, "a": 3, "b": 3, "c": 3}
    assert list(await asyncio.gather(shown(), shown())) == [wanted, wanted]
    assert [len(ids) for ids in read] == [2, 2]
    await add("new")
    await backends.finish_removal(connection, second, unconfirmed=[], keep_row=False)
    await registry.refresh([second])
    assert await shown() == {"tank": 1, "a": 3, "c": 3, "new": 0}
    assert len(read) == 2
    now = time.monotonic()
    monkeypatch.setattr("manager.capacity.time.monotonic", lambda: now + KEPT_S)
    assert await shown() == {"tank": 1, "a": 3, "c": 3, "new": 3}


# Who writes them.


class _Leader:
    """A relay that is, or is not, the leader."""

    def __init__(self) -> None:
        self.is_leader = True


class _Sampling:
    """A registry with one backend on one host, and the watch over it."""

    def __init__(self, pool: Pool, registry: Registry, backend_id: str, host_id: str) -> None:
        self.registry, self.backend_id, self.host_id = registry, backend_id, host_id
        self.leader = _Leader()
        self.pool = pool

    def observe(self, seen: Capacity | None) -> None:
        """The host has said so, as long ago as its capacity is old."""
        self.registry.alive(self.host_id)
        at = seen.observed_at if seen is not None else dt.datetime.now(dt.UTC)
        self.registry.observe(
            self.host_id,
            [
                Observation(
                    backend_id=self.backend_id, generation=1, status=HealthStatus.HEALTHY, capacity=seen, observed_at=at
                )
            ],
        )

    async def watch(self, *, until_sampled: bool) -> None:
        """A watch runs until there is a sample, or until it has swept."""
        swept = asyncio.Event()
        find = self.registry.sweep

        def sweep() -> None:
            find()
            swept.set()

        self.registry.sweep = sweep  # type: ignore[method-assign]
        watch = Watch(self.pool, self.registry, cast("Relay", self.leader), settle_s=0.0, stale_s=100.0)
        task = asyncio.create_task(watch.run(), name="watch")
        try:
            async with asyncio.timeout(10):
                for _ in range(2):
                    await swept.wait()
                    swept.clear()
                while until_sampled and not await self.samples():
                    await swept.wait()
                    swept.clear()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def samples(self) -> list[int]:
        async with self.pool.acquire() as connection:
            rows = await connection.fetch("SELECT used_bytes FROM capacity_sample ORDER BY slot")
        return [row["used_bytes"] for row in rows]


@pytest.fixture
async def sampling(pool: Pool) -> _Sampling:
    backend_id, host_id = new_id(), new_id()
    async with pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, 'hv1', 'k', '')", host_id
        )
        await backends.insert_creating(
            connection, backend_id=backend_id, name="tank", kind="nfs", config={}, credential_version=0, labels={},
            selector=HostSelector(),
        )  # fmt: skip
    registry = Registry(pool, host_silent_s=60.0, observation_stale_s=100.0)
    await registry.load()
    return _Sampling(pool, registry, backend_id, host_id)


async def test_watch_samples_a_backend_as_soon_as_it_has_a_capacity_and_once_a_slot(sampling: _Sampling) -> None:
    await sampling.watch(until_sampled=False)
    assert await sampling.samples() == []
    sampling.observe(figures(10))
    await sampling.watch(until_sampled=True)
    sampling.observe(figures(20))
    await sampling.watch(until_sampled=False)
    # Two at most: the quarter of an hour may have ended in between.
    assert await sampling.samples() in ([10], [10, 20])


@pytest.mark.parametrize("seen", [None, figures(10, age_s=200.0)], ids=["none", "stale"])
async def test_watch_samples_no_capacity_that_is_absent_or_old(sampling: _Sampling, seen: Capacity | None) -> None:
    sampling.observe(seen)
    await sampling.watch(until_sampled=False)
    assert await sampling.samples() == []


async def test_watch_of_a_replica_that_does_not_lead_samples_nothing(sampling: _Sampling) -> None:
    sampling.leader.is_leader = False
    sampling.observe(figures(10))
    await sampling.watch(until_sampled=False)
    assert await sampling.samples() == []
