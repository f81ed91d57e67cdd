"""How often something may happen: bursts, refill, keys that are forgotten."""

from manager.pace import Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_take_beyond_the_burst_waits_for_the_next_and_costs_nothing() -> None:
    clock = Clock()
    pace = Pace(burst=2, per_s=0.1, clock=clock)
    assert [pace.take("a") for _ in range(4)] == [None, None, 10, 10]
    clock.now += 10
    assert [pace.take("a"), pace.take("a")] == [None, 10]
    clock.now += 1000
    assert [pace.take("a") for _ in range(3)] == [None, None, 10]


def test_take_of_one_key_leaves_the_others_alone_and_forgets_the_longest_silent() -> None:
    pace = Pace(burst=1, per_s=0.001, most_keys=2)
    assert [pace.take(key) is None for key in ("a", "a", "b", "c", "a")] == [True, False, True, True, True]
