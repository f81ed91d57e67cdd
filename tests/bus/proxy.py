"""A TCP relay before the server that can hold back, inject and cut: networks and slow servers for tests."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

_CHUNK = 65536


class Proxy:
    """downstream: from the server to the client."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.accepted = 0
        #: Held back before the server's first bytes after a client's CONNECT, and then sent after this.
        self.before_pong = b""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def hold_downstream(self) -> None:
        self._flowing.clear()

    def release_downstream(self) -> None:
        self._flowing.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator["Proxy"]:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            writer.write(await up_reader.readline())  # INFO
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, up_writer, held=False))
                tasks.create_task(self._pump(up_reader, writer, held=True))
        except* OSError:
            pass
        finally:
            writer.close()
            up_writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, held: bool) -> None:
        is_first = True
        while chunk := await source.read(_CHUNK):
            if held:
                await self._flowing.wait()
                if is_first:
                    sink.write(self.before_pong)
            is_first = False
            sink.write(chunk)
            await sink.drain()
        raise ConnectionResetError
