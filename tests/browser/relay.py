"""A TCP relay between browsers and the manager: it can be cut as a cable is, and it knows who reads the event stream."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator

_CHUNK = 65536
#: Browsers do not pipeline, and a GET has no body: its head begins what the client sends on the connection next.
_STREAM = b"GET /v1/events/stream"


class Relay:
    """streams: connections whose last request is for the event stream, as they are now; streams_begun: all since the start."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._streaming: set[asyncio.Task[None]] = set()
        self._cuts = 0
        self.port = 0
        self.streams_begun = 0

    @property
    def streams(self) -> int:
        return len(self._streaming)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator["Relay"]:
        await self.mend()
        try:
            yield self
        finally:
            await self.cut()

    async def cut(self) -> None:
        """Nobody listens on the port and no connection is left."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        self._cuts += 1
        # What was let in this turn has its transport in the next; made after the close, it would never be closed (Python 3.11).
        for sock in listener.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        await asyncio.sleep(0)
        listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def mend(self) -> None:
        """Listening, on the same port as before."""
        if self._listener is None:
            accept = functools.partial(self._accept, self._cuts)
            self._listener = await asyncio.start_server(accept, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def _accept(self, cuts: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """No coroutine, which would begin a turn later, when a cut does not find it any more."""
        if cuts != self._cuts:
            writer.close()  # it was on its way in when the cable was cut
            return
        task = asyncio.create_task(self._relay(reader, writer), name="relayed connection")
        self._tasks.add(task)
        # Not in the task: one that is cancelled before its first turn has no `finally`.
        task.add_done_callback(lambda _: writer.close())
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._streaming.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        up_writer: asyncio.StreamWriter | None = None
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump_requests(task, reader, up_writer))
                tasks.create_task(_pump(up_reader, writer))
        except* OSError:
            pass
        finally:
            if up_writer:
                up_writer.close()

    async def _pump_requests(
        self, task: asyncio.Task[None], source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        while chunk := await source.read(_CHUNK):
            self._streaming.discard(task)
            if chunk.startswith(_STREAM):
                self._streaming.add(task)
                self.streams_begun += 1
            sink.write(chunk)
            await sink.drain()
        raise ConnectionResetError


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()
    raise ConnectionResetError
