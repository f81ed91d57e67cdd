"""Who waits for whom: a host behind itself alone."""

import asyncio

from manager.turns import Turns


class Room:
    """Callers that stay until they are let go."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._leave = asyncio.Event()
        self.inside: list[str] = []
        self.sent_away: list[str] = []

    async def enter(self, host_id: str) -> None:
        async with self._turns.turn(host_id) as is_mine:
            if not is_mine:
                self.sent_away.append(host_id)
                return
            self.inside.append(host_id)
            await self._leave.wait()

    def empty(self) -> None:
        self._leave.set()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_turn_of_a_host_that_floods_leaves_the_others_theirs() -> None:
    room = Room(Turns(at_once=2, most_waiting=1))
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(room.enter("loud"))
        await settle()
        assert (room.inside, len(room.sent_away)) == (["loud"], 48)
        group.create_task(room.enter("quiet"))
        await settle()
        assert room.inside == ["loud", "quiet"]
        group.create_task(room.enter("third"))
        await settle()
        assert room.inside == ["loud", "quiet"]
        room.empty()
    assert sorted(room.inside) == ["loud", "loud", "quiet", "third"]


async def test_turn_after_a_cancelled_one_comes() -> None:
    room = Room(Turns(at_once=1, most_waiting=0))
    first = asyncio.create_task(room.enter("a"))
    await settle()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    room.empty()
    await room.enter("a")
    assert room.inside == ["a", "a"]
