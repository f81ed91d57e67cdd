"""What the page costs a browser with 200 backends on 60 hosts, beside the same cells as a static table of HTML, in turns.

    .venv/bin/python scripts/bench/page.py [--backends 200] [--hosts 60] [--rounds 7]

A real manager serves the page, with its own headers, and its session; the lists are those of a real backend and a real host, many times
over, and come ready-made from a server in front of it, as does the stream: a fleet of that size does not fit on one machine, and what is
measured is the browser's work, not the manager's. Each load is in a fresh context, so nothing is cached. The time is from the
beginning of the navigation (after a session exists) to the end of the frame in which the first screen of cells, and then the last cell,
stands in the document. The floor is
the same browser, server and cells without any script. Bytes are those of the page's own files, as they come from the manager.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Page, Response, async_playwright

from schemas.ids import new_id
from tests.browser import told
from tests.browser.chromium import chromium
from tests.browser.told import Stack

PAINT_MS = 300
#: More than a screen shows: 10 backends on 60 hosts, above which stands the table with 25 of them.
FIRST_CELLS = 10 * 60
FIRST_LOAD_BYTES = 100_000
_OF_THE_CONNECTION = ("content-length", "transfer-encoding", "connection", "keep-alive")
_CELL = "[role=gridcell]"
#: Seconds after which nothing more of the first load comes, and in which an update has been drawn.
_QUIET_S = 3.0
#: The end of the frame in which there are so many: a message posted in a frame's callback is delivered after its painting.
_WAIT = """([selector, count]) => new Promise((resolve) => {
    const look = () => {
        if (document.querySelectorAll(selector).length < count) return requestAnimationFrame(look);
        requestAnimationFrame(() => {
            const after = new MessageChannel();
            after.port1.onmessage = () => resolve(performance.now());
            after.port2.postMessage(null);
        });
    };
    look();
})"""
_READ = """Math.max(...performance.getEntriesByType("resource").filter(({ name }) => name.includes("/v1/matrix") ||
    name.includes("/v1/storage_backends")).map((entry) => entry.responseEnd))"""
_OBSERVE = """() => {
    window.seen = [];
    new MutationObserver((records) => window.seen.push(...records)).observe(
        document, { subtree: true, childList: true, attributes: true, characterData: true });
}"""
_SEEN = """(selector) => {
    const at = (node) => node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement;
    const records = window.seen.splice(0);
    const places = new Set(records.map((record) => at(record.target)?.closest(selector) ?? at(record.target)));
    return { records: records.length, cells: [...places].filter((place) => place?.matches(selector)).length,
        others: [...places].filter((place) => !place?.matches(selector)).slice(0, 8).map((place) => place?.outerHTML.slice(0, 80) ?? "gone") };
}"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backends", type=int, default=200)
    parser.add_argument("--hosts", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stowage-bench-", dir="/var/tmp") as folder:
        # PostgreSQL's own user passes through it.
        Path(folder).chmod(0o711)
        asyncio.run(measure(Path(folder), chosen.backends, chosen.hosts, chosen.rounds))


async def measure(folder: Path, backends: int, hosts: int, rounds: int) -> None:
    """Prints everything."""
    async with (
        told.running(folder / "stack") as stack,
        aiohttp.ClientSession(auto_decompress=False) as client,
        async_playwright() as playwright,
    ):
        front = Front(stack, client, Fleet(await _backend(stack), await _host(stack), backends, hosts))
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        async with front.running() as url:
            await _paints(browser, stack, url, backends * hosts, rounds)
            await _bytes_and_updates(browser, stack, front, url, backends * hosts)
        await browser.close()


async def _paints(browser: Browser, stack: Stack, url: str, cells: int, rounds: int) -> None:
    async with _context(browser, stack, url) as context:
        # The first load of all warms the front and the browser, and counts for nothing.
        await _painted_ms(await context.new_page(), "/", _CELL, cells)
    firsts: list[float] = []
    pages: list[float] = []
    reads: list[float] = []
    floors: list[float] = []
    for _ in range(rounds):
        async with _context(browser, stack, url) as context:
            page = await context.new_page()
            firsts.append(await _painted_ms(page, "/", _CELL, FIRST_CELLS))
            pages.append(await _later_ms(page, _CELL, cells))
            reads.append(await _read_ms(page))
        async with _context(browser, stack, url) as context:
            floors.append(await _painted_ms(await context.new_page(), "/floor", "td", cells))
    page_ms, floor_ms = statistics.median(pages), statistics.median(floors)
    print(f"{cells} cells, medians of {rounds} loads in turns (least – most):")
    first_ms = statistics.median(firsts)
    print(f"  first paint {first_ms:5.0f} ms ({min(firsts):.0f} – {max(firsts):.0f}), wanted: under {PAINT_MS}")
    print(f"  all cells  {page_ms:6.0f} ms ({min(pages):.0f} – {max(pages):.0f})")
    print(f"    of which {statistics.median(reads):6.0f} ms until the lists had come")
    print(f"  the floor  {floor_ms:6.0f} ms ({min(floors):.0f} – {max(floors):.0f})")
    print(f"  ratios     {first_ms / floor_ms:6.2f} and {page_ms / floor_ms:.2f}")


async def _later_ms(page: Page, selector: str, cells: int) -> float:
    painted: float = await page.evaluate(_WAIT, [selector, cells])
    return painted


async def _painted_ms(page: Page, path: str, selector: str, cells: int) -> float:
    await page.goto(path, wait_until="commit")
    return await _later_ms(page, selector, cells)


async def _read_ms(page: Page) -> float:
    """When the last of the lists had come."""
    read: float = await page.evaluate(_READ)
    return read


async def _bytes_and_updates(browser: Browser, stack: Stack, front: "Front", url: str, cells: int) -> None:
    async with _context(browser, stack, url) as context:
        page = await context.new_page()
        files: list[Response] = []
        page.on("response", lambda response: files.append(response))
        await _painted_ms(page, "/", _CELL, cells)
        await asyncio.sleep(_QUIET_S)
        sizes = {file.url.removeprefix(url): len(await file.body()) for file in files if "/v1/" not in file.url}
        total = sum(sizes.values())
        print(f"first load: {total} bytes uncompressed in {len(sizes)} files, wanted: under {FIRST_LOAD_BYTES}")
        for path, size in sorted(sizes.items(), key=lambda item: -item[1])[:5]:
            print(f"  {size:6} {path}")
        await page.evaluate(_OBSERVE)
        for name, change in (
            ("nothing", None),
            ("one cell's latency", front.fleet.slower_cell()),
            ("one cell's fault, with its backend", front.fleet.failed_cell()),
        ):
            if change is not None:
                front.tell(change)
            await asyncio.sleep(_QUIET_S)
            seen = await page.evaluate(_SEEN, _CELL)
            print(
                f"DOM, {name}: {seen['records']} mutations in {seen['cells']} cells; outside of cells: {seen['others']}"
            )


@contextlib.asynccontextmanager
async def _context(browser: Browser, stack: Stack, url: str) -> AsyncGenerator[BrowserContext]:
    """A browser without any cache, signed in."""
    context = await browser.new_context(base_url=url, viewport={"width": 1440, "height": 900})
    answer = await context.request.post("/v1/session", data={"token": stack.token}, headers={"Origin": url})
    assert answer.ok, await answer.text()
    yield context
    await context.close()


async def _backend(stack: Stack) -> dict[str, Any]:
    body = {"name": "tank", "kind": "nfs", "config": {"server": "nas", "export": "/tank"}, "labels": {"tier": "gold"}}
    made: dict[str, Any] = await stack.made("/v1/storage_backends", body)
    return made


async def _host(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = (await stack.api("GET", "/v1/hosts")).body["items"][0]
    return found


class Fleet:
    """The lists of a fleet of that size, as the API tells of them."""

    def __init__(self, backend: dict[str, Any], host: dict[str, Any], backends: int, hosts: int) -> None:
        self.backends: list[dict[str, Any]] = [
            backend | {"id": new_id(), "name": f"tank-{number:03}"} for number in range(backends)
        ]
        self.hosts = [host | {"id": new_id(), "name": f"hv-{number:03}"} for number in range(hosts)]
        cells = [
            [{"status": "healthy", "latency_ms": 1.0 + (row * 7 + column) % 40} for column in range(hosts)]
            for row in range(backends)
        ]
        for row in range(0, backends, 9):
            cells[row][row % hosts] = {"status": "unreachable", "code": "timed_out", "detail": "no answer in 10 s"}
        sample = {"at": backend["updated_at"], "used_bytes": 2**30, "total_bytes": 2**40}
        self.matrix: dict[str, list[Any]] = {
            "hosts": [{key: host[key] for key in ("id", "name", "state")} for host in self.hosts],
            "rows": [
                {"backend_id": backend["id"], "backend": backend["name"], "cells": row}
                for backend, row in zip(self.backends, cells, strict=True)
            ],
        }
        self.capacity = [
            {"backend_id": backend["id"], "backend": backend["name"], "full_in_days": 40.0, "samples": [sample] * 48}
            for backend in self.backends
        ]

    def answers(self) -> dict[str, bytes]:
        """path -> body of what the front answers itself."""
        shown = {
            "/v1/storage_backends": {"items": self.backends, "next_cursor": None},
            "/v1/hosts": {"items": self.hosts, "next_cursor": None},
            "/v1/matrix": self.matrix,
            "/v1/capacity": {"items": self.capacity},
        }
        return {path: json.dumps(body).encode() for path, body in shown.items()}

    def static(self) -> bytes:
        """The same cells, with the words that the page paints for them, as HTML alone."""
        head = "".join(f"<th>{host['name']}" for host in self.hosts)
        rows = "".join(f"<tr><th>{row['backend']}{_tds(row['cells'])}" for row in self.matrix["rows"])
        style = "td{font:12px Inter,sans-serif;padding:4px}.healthy{background:#dfd}.unreachable{background:#fdd}"
        return f"<!doctype html><title>Floor</title><style>{style}</style><table><tr><th>{head}{rows}</table>".encode()

    def slower_cell(self) -> dict[str, Any]:
        """A change as the stream tells it: everyday's."""
        return {"cells": [self._cell() | {"status": "healthy", "latency_ms": 77.0}]}

    def failed_cell(self) -> dict[str, Any]:
        backend = self.backends[1]
        health = backend["health"] | {"status": "degraded", "code": "timed_out", "detail": "no answer in 10 s"}
        cell = self._cell() | {"status": "unreachable", "code": "timed_out", "detail": "no answer in 10 s"}
        return {"backends": [backend | {"health": health}], "cells": [cell]}

    def _cell(self) -> dict[str, Any]:
        return {"backend_id": self.backends[1]["id"], "host_id": self.hosts[1]["id"]}


class Front:
    """A server before the manager: it answers what is of the big fleet itself, and hands everything else on."""

    def __init__(self, stack: Stack, client: aiohttp.ClientSession, fleet: Fleet) -> None:
        self.fleet = fleet
        self._manager = stack.url
        self._client = client
        self._answers = fleet.answers()
        self._floor = fleet.static()
        #: The page's files, in memory as the manager has them; what the way through us costs is not the page's.
        self._files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self._frames: set[asyncio.Queue[bytes]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[str]:
        """Yields the URL."""
        app = web.Application()
        app.router.add_get("/floor", self._show_floor)
        app.router.add_get("/v1/events/stream", self._stream)
        for path in self._answers:
            app.router.add_get(path, self._answer)
        app.router.add_route("*", "/{path:.*}", self._hand_on)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    def tell(self, changes: dict[str, Any]) -> None:
        for queue in self._frames:
            queue.put_nowait(b"event: changes\ndata: %s\n\n" % json.dumps(changes).encode())

    async def _show_floor(self, _: web.Request) -> web.Response:
        return web.Response(body=self._floor, content_type="text/html")

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=self._answers[request.path], content_type="application/json")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": begun\n\n")
        queue = asyncio.Queue[bytes]()
        self._frames.add(queue)
        try:
            while True:
                await response.write(await queue.get())
        except ConnectionError:
            return response  # its tab has gone
        finally:
            self._frames.discard(queue)

    async def _hand_on(self, request: web.Request) -> web.Response:
        if found := self._files.get(request.path):
            return web.Response(body=found[0], headers=found[1])
        # Host goes along: the manager compares it with Origin.
        kept = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        async with self._client.request(
            request.method, self._manager + request.path_qs, headers=kept, data=await request.read() or None
        ) as answer:
            headers = {n: v for n, v in answer.headers.items() if n.lower() not in _OF_THE_CONNECTION}
            body = await answer.read()
            if request.path.startswith("/ui/"):
                self._files[request.path] = (body, headers)
            return web.Response(status=answer.status, body=body, headers=headers)


def _tds(cells: list[dict[str, Any]]) -> str:
    return "".join(f"<td class={cell['status']}>{_words(cell)}" for cell in cells)


def _words(cell: dict[str, Any]) -> str:
    return f"{cell['latency_ms']:.0f} ms" if "latency_ms" in cell else "Unreachable"


if __name__ == "__main__":
    main()
