"""Samples of how full backends were: one a backend each quarter of an hour, kept for eight days."""

import datetime as dt
from collections.abc import Mapping, Sequence

import msgspec

from manager.store.pool import Connection
from schemas.backends import Capacity

#: Seconds; slots begin at whole multiples of it in Unix time.
SLOT_S = 900
#: Days; a day more than `history` reads.
KEPT_DAYS = 8
#: Days of hourly means, hours of samples, and samples of one backend in one answer.
MEANS_DAYS = 7
SHOWN_HOURS = 24
MOST_SHOWN = 48
_PRUNED_AT_ONCE = 5_000
#: Portions in one clearing; what they leave, the next one takes.
_MOST_PORTIONS = 20
#: What a bigint holds; sums over the folders of odd hosts may be more.
_MOST_BYTES = 2**63 - 1


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """How full a backend was at a moment."""

    at: dt.datetime
    used_bytes: int
    total_bytes: int


class HourlyMean(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of one hour. at_s: the mean of their times, Unix seconds; the total may have changed within the hour."""

    at_s: float
    available_bytes: float
    least_total_bytes: int
    most_total_bytes: int


class History(msgspec.Struct, frozen=True, kw_only=True):
    """samples: of the last 24 h, means: of the last 7 days; both the oldest first."""

    backend_id: str
    samples: tuple[Sample, ...] = ()
    means: tuple[HourlyMean, ...] = ()


async def insert(connection: Connection, slot: int, seen: Mapping[str, Capacity]) -> None:
    """The slot (Unix time / SLOT_S) has a sample of each backend (id -> capacity): this one, or the one that was there.

    ON CONFLICT DO NOTHING is wanted: another leader, or this one before it was started anew, has written the same slot.
    """
    figures = list(seen.values())
    await connection.execute(
        "INSERT INTO capacity_sample (backend_id, slot, used_bytes, total_bytes, available_bytes)"
        " SELECT s.id, to_timestamp($1::bigint), s.used, s.total, s.available"
        " FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[]) AS s (id, used, total, available)"
        " ON CONFLICT (backend_id, slot) DO NOTHING",
        slot * SLOT_S, list(seen), [_bounded(each.used_bytes) for each in figures],
        [_bounded(each.total_bytes) for each in figures], [_bounded(each.available_bytes) for each in figures],
    )  # fmt: skip


async def histories(connection: Connection, backend_ids: Sequence[str]) -> dict[str, History]:
    """Backend id -> its history, of all these backends; one without samples has an empty one.

    Of more samples than MOST_SHOWN every second, third… is given, counted from the newest.
    """
    records = await connection.fetch(
        "SELECT b.id AS backend_id, s.samples, m.means FROM unnest($1::uuid[]) AS b (id)"
        " CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(jsonb_build_object('at', taken_at, 'used_bytes', used_bytes,"
        " 'total_bytes', total_bytes) ORDER BY slot), '[]') AS samples"
        " FROM (SELECT *, row_number() OVER (ORDER BY slot DESC) - 1 AS age, count(*) OVER () AS n FROM capacity_sample"
        " WHERE backend_id = b.id AND slot > now() - make_interval(hours => $2)) AS recent"
        " WHERE age % ((n + $3::int - 1) / $3::int) = 0) AS s"
        " CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(jsonb_build_object('at_s', at_s, 'available_bytes', available,"
        " 'least_total_bytes', least, 'most_total_bytes', most) ORDER BY at_s), '[]') AS means"
        " FROM (SELECT avg(extract(epoch FROM taken_at))::float8 AS at_s, avg(available_bytes)::float8 AS available,"
        " min(total_bytes) AS least, max(total_bytes) AS most FROM capacity_sample"
        " WHERE backend_id = b.id AND slot > now() - make_interval(days => $4) GROUP BY date_trunc('hour', slot)) AS hours) AS m",
        list(backend_ids), SHOWN_HOURS, MOST_SHOWN, MEANS_DAYS,
    )  # fmt: skip
    return {record["backend_id"]: msgspec.convert(dict(record), History) for record in records}


async def prune(connection: Connection) -> None:
    """Samples are gone whose time is over, those of backends that are no more among them; a portion at a time."""
    for _ in range(_MOST_PORTIONS):
        done = await connection.execute(
            "DELETE FROM capacity_sample WHERE (backend_id, slot) IN (SELECT backend_id, slot FROM capacity_sample"
            " WHERE slot < now() - make_interval(days => $1) ORDER BY slot LIMIT $2)",
            KEPT_DAYS, _PRUNED_AT_ONCE,
        )  # fmt: skip
        if done != f"DELETE {_PRUNED_AT_ONCE}":
            return


def _bounded(size_bytes: int) -> int:
    return min(size_bytes, _MOST_BYTES)
