"""What sagas share in one replica: turns at a place, and how fast bytes come."""

import asyncio

import pytest

from manager.sagas.steps import BytePace, Lanes

MIB = 2**20
_LONG_S = 30.0


class Visitor:
    """Has its turn at a place until it is told to leave."""

    def __init__(self, lanes: Lanes, place: str, patience_s: float = _LONG_S) -> None:
        self.is_in: bool | None = None
        self.leaves = asyncio.Event()
        self.task = asyncio.create_task(self._visit(lanes, place, patience_s))

    async def _visit(self, lanes: Lanes, place: str, patience_s: float) -> None:
        async with lanes.turn(place, patience_s) as self.is_in:
            await self.leaves.wait()


async def _pass() -> None:
    """Everybody who can go on has done so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_turns_at_one_place_come_in_the_order_of_asking_and_one_at_a_time() -> None:
    lanes = Lanes()
    visitors = [Visitor(lanes, "vg") for _ in range(3)]
    for number, visitor in enumerate(visitors):
        await _pass()
        assert [each.is_in for each in visitors] == [True] * (number + 1) + [None] * (2 - number)
        visitor.leaves.set()
        await visitor.task


async def test_turn_at_another_place_waits_for_nobody() -> None:
    lanes = Lanes()
    one, other = Visitor(lanes, "vg"), Visitor(lanes, "vg2")
    await _pass()
    assert (one.is_in, other.is_in) == (True, True)
    for visitor in (one, other):
        visitor.leaves.set()
        await visitor.task


async def test_turn_that_does_not_come_in_time_is_told_and_holds_up_nobody() -> None:
    lanes = Lanes()
    first, impatient, last = Visitor(lanes, "vg"), Visitor(lanes, "vg", patience_s=0.01), Visitor(lanes, "vg")
    impatient.leaves.set()
    await impatient.task
    assert (first.is_in, impatient.is_in, last.is_in) == (True, False, None)
    first.leaves.set()
    last.leaves.set()
    await asyncio.gather(first.task, last.task)
    assert last.is_in


@pytest.mark.parametrize("whose", [0, 1], ids=["of the first", "of one who waits"])
async def test_turn_whose_owner_is_cancelled_is_the_next_ones(whose: int) -> None:
    lanes = Lanes()
    visitors = [Visitor(lanes, "vg") for _ in range(3)]
    await _pass()
    visitors[whose].task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await visitors[whose].task
    rest = [each for each in visitors if each is not visitors[whose]]
    for visitor in rest:
        await _pass()
        assert visitor.is_in
        visitor.leaves.set()
        await visitor.task


async def test_turn_that_raises_inside_is_free_again() -> None:
    lanes = Lanes()
    with pytest.raises(ValueError, match="inside"):
        async with lanes.turn("vg", _LONG_S):
            raise ValueError("inside")
    async with lanes.turn("vg", _LONG_S) as is_mine:
        assert is_mine


def test_rate_is_unknown_at_the_first_look_and_at_a_second_at_the_same_moment() -> None:
    pace = BytePace()
    assert pace.rate(100.0, 0) is None
    assert pace.rate(100.0, MIB) is None
    assert pace.rate(101.0, MIB) == MIB


def test_rate_is_that_of_the_last_seconds_alone() -> None:
    pace = BytePace()
    for second in range(60):
        pace.rate(float(second), second * MIB)
    assert pace.rate(60.0, 60 * MIB) == MIB
    rates = [pace.rate(60.0 + second, 60 * MIB) for second in range(1, 15)]
    assert rates[0] is not None and 0 < rates[0] < MIB
    assert rates[-1] == 0, "what stands still has no rate"


def test_rate_of_work_that_began_anew_is_never_below_zero() -> None:
    pace = BytePace()
    pace.rate(0.0, 10 * MIB)
    assert pace.rate(1.0, 0) == 0
