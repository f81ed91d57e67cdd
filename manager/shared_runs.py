"""One run for all who ask the same while it is under way."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ResultT = TypeVar("ResultT")


@dataclass
class _Run(Generic[ResultT]):
    task: "asyncio.Task[ResultT]"
    waiting: int = 0


class SharedRuns(Generic[KeyT, ResultT]):
    """make: begins the run of a key. A run ends when nobody waits for it any more; its error is for all who do."""

    def __init__(self, name: str, make: Callable[[KeyT], Coroutine[Any, Any, ResultT]]) -> None:
        self._name = name
        self._make = make
        self._runs: dict[KeyT, _Run[ResultT]] = {}

    async def result(self, key: KeyT) -> ResultT:
        """Of the run that is under way, or of a new one."""
        run = self._runs.get(key)
        if run is None or run.task.done():
            run = self._runs[key] = _Run(asyncio.create_task(self._make(key), name=self._name))
        run.waiting += 1
        try:
            # Shielded: one caller's leaving must not end what the others wait for.
            return await asyncio.shield(run.task)
        finally:
            run.waiting -= 1
            if run.waiting == 0:
                run.task.cancel()
                if self._runs.get(key) is run:
                    del self._runs[key]
