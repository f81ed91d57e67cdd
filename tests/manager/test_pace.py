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


def test_peek_says_what_take_would_and_counts_nothing() -> None:
    clock = Clock()
    pace = Pace(burst=1, per_s=0.1, most_keys=1, clock=clock)
    assert [pace.peek("a"), pace.peek("a"), pace.take("a"), pace.peek("a"), pace.peek("a")] == [
        None,
        None,
        None,
        10,
        10,
    ]
    clock.now += 9
    assert pace.peek("a") == 1
    clock.now += 1
    assert [pace.peek("a"), pace.take("a")] == [None, None]
    assert pace.peek("b") is None  # and so it takes nobody's place
    assert pace.take("a") == 10
