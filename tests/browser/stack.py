"""A whole fleet in a process of its own: a real manager with three real agents over the pretend estate, told what to do by lines.

    python -m tests.browser.stack FOLDER [DATABASE_URL]

FOLDER is empty or does not exist yet. Without DATABASE_URL (of an empty database) it has a PostgreSQL of its own in FOLDER.
Each line on stdin is JSON, `{"id": 1, "order": "fail", "args": {"host": "hv1", "verb": "probe", "code": "timed_out"}}`; orders are the
public methods of `tests.browser.orders.Orders`. Answers on stdout, not always in the order of the questions: `{"id": 1, "result": null}`
or `{"id": 1, "error": "…"}`. The first line says where everything is: `{"url", "direct_url", "token", "viewer_token"}`; browsers take `url`,
which leads over the relay. It ends with its stdin, and is killed with the process that started it.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import msgspec

from manager import capacity, leftovers, verification
from manager.embedded import identity, postgres
from manager.embedded.postgres import Postgres
from manager.sagas import steps, volume_moves
from tests.browser.orders import HOSTS, Orders
from tests.browser.relay import Relay
from tests.fleet.fleet import Fleet, fleet

_PR_SET_PDEATHSIG = 1
#: No synchronous writes: what the database holds is a test's.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A Ctrl-C at the terminal is for pytest, which then closes our stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    # Answers have the pipe for themselves: whatever else is printed goes to stderr.
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        with _database(folder) as database_url, _quick(), _nobody() as nobody:
            asyncio.run(_serve(folder, database_url, nobody, answers.write))


@contextlib.contextmanager
def _database(folder: Path) -> Generator[str]:
    """The URL of an empty one, or of the one given."""
    if len(sys.argv) > 2:
        yield sys.argv[2]
        return
    data = folder / "postgres"
    data.mkdir(mode=0o700)
    who = identity.choose(data, [postgres.binaries() / "postgres"])
    log, password = folder / "postgres.log", folder / "password"
    server = Postgres(data, password_file=password, log=log, identity=who, settings=FAST)
    server.start()
    try:
        yield server.url()
    finally:
        server.stop()


@contextlib.contextmanager
def _quick() -> Generator[None]:
    """Long work is looked at and told of more often than an operator needs, what is left is taken away sooner, and no report is kept."""
    with (
        mock.patch.object(volume_moves, "LOOK_MS", 100),
        mock.patch.object(steps, "_REPORT_EVERY_S", 0.1),
        mock.patch.object(leftovers, "LOOK_S", 0.2),
        mock.patch.object(leftovers, "REST_S", 0.2),
        mock.patch.object(verification, "KEPT_S", 0.0),
        mock.patch.object(capacity, "KEPT_S", 0.0),
    ):
        yield


def _nobody() -> "subprocess.Popen[str]":
    """In place of the process that forks managers: ours lives in this one, and that takes half a second to start."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def _serve(
    folder: Path, database_url: str, nobody: "subprocess.Popen[str]", write: Callable[[bytes], object]
) -> None:
    def say(words: dict[str, Any]) -> None:
        write(msgspec.json.encode(words) + b"\n")

    async with _running(folder, database_url, nobody) as (made, relay):
        orders = Orders(made, relay)
        viewer = await made.api("POST", "/v1/tokens", {"name": "viewer", "role": "viewer"})
        say(
            {
                "url": f"http://127.0.0.1:{relay.port}",
                "direct_url": made.api.url,
                "token": made.api.token,
                "viewer_token": viewer.body["token"],
            }
        )
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader(limit=2**24)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async with asyncio.TaskGroup() as group:
            async for line in lines:
                group.create_task(_obey(orders, line, say))


async def _obey(orders: Orders, line: bytes, say: Callable[[dict[str, Any]], None]) -> None:
    asked = json.loads(line)
    try:
        if asked["order"].startswith("_"):
            raise AttributeError(asked["order"])
        say({"id": asked["id"], "result": await getattr(orders, asked["order"])(**asked.get("args", {}))})
    except Exception as error:  # noqa: BLE001
        # An edge: the test that gave the order hears why it could not be done, and fails.
        say({"id": asked["id"], "error": f"{type(error).__name__}: {error}"})


@contextlib.asynccontextmanager
async def _running(
    folder: Path, database_url: str, nobody: "subprocess.Popen[str]"
) -> AsyncGenerator[tuple[Fleet, Relay]]:
    async with fleet(folder, database_url, nobody) as made:
        api = await made.manager()
        port = urlsplit(api.url).port
        assert port
        # One after another: the page shows hosts in the order of their joining.
        for name in HOSTS:
            await made.agent(name)
        async with Relay(port).running() as relay:
            yield made, relay


if __name__ == "__main__":
    main()
