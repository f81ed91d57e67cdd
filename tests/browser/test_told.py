"""A test's side of the stack: it hears of the stack's end, a cut cable has nobody on it, and a clean estate is a fresh one."""

import asyncio
import contextlib
import json
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import cast

import pytest

from schemas.faults import FaultCode
from tests.browser import orders
from tests.browser.heard import Heard
from tests.browser.orders import Orders
from tests.browser.relay import Relay
from tests.browser.told import Stack
from tests.fleet.fleet import PATIENCE_S, Fleet
from tests.fleet.world import World

_WORDS = {"url": "", "token": "", "viewer_token": "", "direct_url": ""}


async def test_order_to_a_stack_that_has_ended_fails_at_once() -> None:
    process = await asyncio.create_subprocess_exec(
        "sleep", "60", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    stack = Stack(process, _WORDS)
    hearing = asyncio.create_task(stack.hear())
    waiting = asyncio.create_task(stack.tell("clean"))
    await asyncio.sleep(0)
    process.kill()
    await process.wait()
    async with asyncio.timeout(PATIENCE_S):
        await hearing
        for telling in (waiting, stack.tell("clean")):
            with pytest.raises(AssertionError, match="the stack has ended"):
                await telling


async def test_answer_to_who_has_just_given_up_harms_nobody_else() -> None:
    answers = b"".join(json.dumps({"id": number, "result": number}).encode() + b"\n" for number in (1, 2))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"import sys; sys.stdin.readline(); sys.stdin.readline(); sys.stdout.write({answers.decode()!r})",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    stack = Stack(process, _WORDS)
    gone, staying = (asyncio.create_task(stack.tell("streams")) for _ in range(2))
    await asyncio.sleep(0)
    for future in stack._asked.values():  # pyright: ignore[reportPrivateUsage]
        future.cancel()
        break
    async with asyncio.timeout(PATIENCE_S):
        await stack.hear()
        assert await staying == 2
        await process.wait()
    assert (await asyncio.gather(gone, return_exceptions=True))[0] is not None


@pytest.mark.parametrize("turns", range(6))
async def test_connection_that_comes_in_while_the_cable_is_cut_is_closed(turns: int) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as target:
        relay = Relay(target.sockets[0].getsockname()[1])
        async with relay.running():
            # The kernel lets it in; the loop hears of it in one of its next turns.
            with socket.create_connection(("127.0.0.1", relay.port)) as client:
                client.setblocking(False)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await relay.cut()
                await relay.mend()
                async with asyncio.timeout(PATIENCE_S):
                    with contextlib.suppress(ConnectionResetError):
                        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


@pytest.mark.parametrize(
    ("status", "path", "is_heard"),
    [
        (400, "/v1/volumes", False),
        (403, "/v1/tokens", False),
        (422, "/v1/storage_backends/tank", False),
        (404, "/v1/volumes/gone", False),
        (404, "/v1/volumes/gone/nothing", True),
        (404, "/v1/nothing", True),
        (404, "/ui/0/js/main.js", True),
        (401, "/", True),
        (405, "/v1/volumes", True),
        (500, "/v1/volumes", True),
        (503, "/v1/volumes", True),
        (504, "/v1/volumes", True),
    ],
)
async def test_refusal_is_forgiven_and_what_the_page_or_the_manager_does_wrong_is_heard(
    status: int, path: str, is_heard: bool
) -> None:
    heard = Heard()
    text = f"Failed to load resource: the server responded with a status of {status} (Words)"
    heard.on_worker("console error", text, f"http://127.0.0.1:1{path}?limit=1")
    assert bool(heard.complaints) is is_heard
    heard.allow(f"status of {status}")
    assert heard.complaints == []


async def test_clean_estate_is_as_a_fresh_one_whatever_failed_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hosts:
        """A fleet of whose hosts one cannot be started again, and of which another never came to be."""

        def __init__(self) -> None:
            self.world = World(tmp_path)
            self.states: dict[str, object] = {}
            self.started: list[str] = []

        async def agent(self, name: str) -> None:
            self.started.append(name)
            if name in ("hv1", "hv4"):
                raise AssertionError(f"no {name}")

        async def stop_agent(self, name: str) -> None:
            if name == "hv4":
                raise KeyError(name)

    cleaned: list[object] = []

    async def clean(fleet: object, *, keep_hosts: object) -> None:
        cleaned.append(fleet)

    monkeypatch.setattr(orders, "clean", clean)
    hosts = Hosts()
    relay = Relay(0)
    made = Orders(cast("Fleet", hosts), relay)
    world = hosts.world
    held = world.in_use["hv1"]
    await made.fail("hv1", "probe", FaultCode.IO_ERROR)
    await made.ail("hv1", "b", FaultCode.IO_ERROR, "words")
    await made.passwords(["other"])
    await made.blank(["iqn"])
    await made.close("hv1", "nas")
    await made.use("hv1", None)
    await made.see("hv1", "other")
    await made.used_bytes(1)
    await made.used_bytes(1, "b")
    await made.take("hv1", "b", 2.0)
    await made.clone_at_once(False)
    await made.open_volume("hv1", "locator", True)
    await made.hold("make")
    await made.hold("make")
    await made.stop_agent("hv1")
    await made.stop_agent("hv2")
    with pytest.raises(AssertionError):
        await made.join("hv4")
    hosts.started.clear()
    with pytest.raises(AssertionError, match="no hv1"):
        await made.clean()
    assert (hosts.started, cleaned, held) == (["hv1", "hv2"], [hosts], set())
    fresh = World(tmp_path)
    fresh.in_use["hv1"]
    assert [each.name for each in fields(World) if getattr(world, each.name) != getattr(fresh, each.name)] == []
    await made.clean()
    assert hosts.started == ["hv1", "hv2"]
    await relay.cut()
