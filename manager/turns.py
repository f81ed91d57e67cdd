"""Turns of hosts at what the manager does for them: whoever asks without end waits behind itself, never before the others."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field


@dataclass
class _Line:
    """lock: first come, first served. length: those in it, the one whose turn it is included."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class Turns:
    """at_once: of all hosts together, one a host. most_waiting: a host's, beside the one whose turn it is."""

    def __init__(self, *, at_once: int, most_waiting: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._most = 1 + most_waiting
        self._lines: dict[str, _Line] = {}

    @contextlib.asynccontextmanager
    async def turn(self, host_id: str) -> AsyncGenerator[bool]:
        """Whether it is this caller's turn now; False at once where the host has too many waiting already."""
        line = self._lines.setdefault(host_id, _Line())
        if line.length >= self._most:
            yield False
            return
        line.length += 1
        try:
            async with line.lock, self._places:
                yield True
        finally:
            line.length -= 1
            if line.length == 0:
                self._lines.pop(host_id, None)
