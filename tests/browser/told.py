"""A test's side of the stack process: orders go to it, and requests to its manager."""

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from tests.fleet.fleet import Answer, Api

ROOT = Path(__file__).parents[2]
_START_S = 60.0
_ORDER_S = 60.0
#: Of orders that wait for much.
_LIMITS_S = {"clean": 180.0}
_END_S = 60.0
_LINE_BYTES = 2**24
_ENDED = "the stack has ended; its log is what the test wrote to stderr"


class Stack:
    """url: where browsers go. token, viewer_token: of an admin and of a viewer. api: requests as the admin, past the relay."""

    def __init__(self, process: asyncio.subprocess.Process, told: dict[str, str]) -> None:
        self.url = told["url"]
        self.token = told["token"]
        self.viewer_token = told["viewer_token"]
        self.pid = process.pid
        self._direct = Api(told["direct_url"], self.token)
        self._process = process
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._has_ended = False

    async def api(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return await self._direct(method, path, body, **headers)

    async def made(self, path: str, body: Any) -> Any:
        """What the POST made, as the API shows it. Fails the test when it made nothing."""
        answer = await self.api("POST", path, body)
        assert answer.status in (200, 201), answer
        return answer.body

    async def tell(self, order: str, **args: Any) -> Any:
        """The answer of a method of tests.browser.orders.Orders. Raises AssertionError with its word when that raised, or is no more."""
        assert not self._has_ended, _ENDED
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"id": number, "order": order, "args": args}).encode() + b"\n")
        try:
            async with asyncio.timeout(_LIMITS_S.get(order, _ORDER_S)):
                answer = await self._asked[number]
        finally:
            del self._asked[number]
        assert "error" not in answer, f"{order}: {answer['error']}"
        return answer["result"]

    async def hear(self) -> None:
        """Hands out answers until the stack ends."""
        assert self._process.stdout
        try:
            async for line in self._process.stdout:
                answer = json.loads(line)
                waiting = self._asked.get(answer["id"])
                # Who gave up in this very turn has not taken his question back yet.
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        finally:
            self._has_ended = True
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(AssertionError(_ENDED))


@contextlib.asynccontextmanager
async def running(folder: Path, database_url: str | None = None) -> AsyncGenerator[Stack]:
    """A stack with three hosts online, in that database or one of its own; its process is gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.browser.stack",
        str(folder),
        *([database_url] if database_url else []),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    hearing: asyncio.Task[None] | None = None
    try:
        assert process.stdin and process.stdout
        async with asyncio.timeout(_START_S):
            told = await process.stdout.readline()
        assert told, "the stack did not start; its trace is on stderr"
        stack = Stack(process, json.loads(told))
        hearing = asyncio.create_task(stack.hear(), name="stack's answers")
        yield stack
        process.stdin.close()
        async with asyncio.timeout(_END_S):
            await process.wait()
        await hearing
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if hearing is not None:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
