"""A bus whose messages are lost, doubled and late: what agents in a storm are given."""

import asyncio
import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from schemas import subjects
from schemas.bus import Bus, BusTimeout, Handler, Message

_COMMAND_ID = re.compile(rb'"command_id":"([^"]+)"')


@dataclass
class Weather:
    """Chances from 0 to 1 of what befalls a message, either way; counts: what was seen of all agents."""

    lose: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    most_delay_s: float = 2.0
    random: Random = field(default_factory=Random)
    counts: Counter[str] = field(default_factory=lambda: Counter[str]())
    seen: set[bytes] = field(default_factory=lambda: set[bytes]())

    def strikes(self, what: str, chance: float) -> bool:
        is_struck = self.random.random() < chance
        self.counts[what] += is_struck
        return is_struck

    async def hold_up(self) -> None:
        if self.strikes("delayed", self.delay):
            await asyncio.sleep(self.random.uniform(0, self.most_delay_s))

    def clear_up(self) -> None:
        self.lose = self.double = self.delay = 0.0


class LossyBus(Bus):
    """For agents: commands to it, replies from it and its uplink pass the weather."""

    def __init__(self, *, weather: Weather, **settings: Any) -> None:
        super().__init__(**settings)
        self._weather = weather

    def subscribe(self, subject: str, handler: Handler, *, queue: str = "", concurrency: int = 64) -> None:
        through = functools.partial(self._arrive, handler)
        super().subscribe(subject, through, queue=queue, concurrency=concurrency)

    async def publish(self, subject: str, payload: bytes) -> None:
        if subject.startswith(subjects.MANAGER_INBOX):
            self._weather.counts["stale"] += payload.startswith(b'{"outcome":"stale"')
            await self._weather.hold_up()
        if self._weather.strikes("lost", self._weather.lose):
            return
        await super().publish(subject, payload)

    async def request(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None
    ) -> bytes:
        if self._weather.strikes("lost", self._weather.lose):
            raise BusTimeout(f"no answer on {subject}: lost in the storm")
        return await super().request(subject, payload, timeout_s=timeout_s, headers=headers)

    async def _arrive(self, handler: Handler, message: Message) -> None:
        weather = self._weather
        weather.counts["commands"] += 1
        if found := _COMMAND_ID.search(message.data):
            weather.counts["repeated"] += found[1] in weather.seen
            weather.seen.add(found[1])
        if weather.strikes("lost", weather.lose):
            return
        if weather.strikes("doubled", weather.double):
            self._spawn(self._arrive_late(handler, message), "doubled message")
        await weather.hold_up()
        await handler(message)

    async def _arrive_late(self, handler: Handler, message: Message) -> None:
        await asyncio.sleep(self._weather.random.uniform(0, self._weather.most_delay_s))
        await handler(message)
