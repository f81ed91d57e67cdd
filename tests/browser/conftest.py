"""One stack and one browser for the session; fresh contexts, signed in, and a bare estate for each test."""

import contextlib
import itertools
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Literal, Protocol

import asyncpg
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect

from manager.embedded.postgres import Postgres
from tests.browser import told
from tests.browser.chromium import MISSING, chromium
from tests.browser.heard import Heard
from tests.browser.shared_workers import SharedWorkers
from tests.browser.told import Stack

#: Milliseconds for whatever a page is waited for, on a busy machine too. The page's own promise is 10 s for a change.
PATIENCE_MS = 10_000
DESKTOP = ViewportSize(width=1440, height=900)
PHONE = ViewportSize(width=390, height=844)
_FOLDER = Path(__file__).parent

Role = Literal["admin", "viewer", "nobody"]
Names = Callable[[str], str]


class OpenPage(Protocol):
    """Makes a blank page in a context of its own, signed in as `role`; `goto("/")` leads to the stack."""

    async def __call__(
        self,
        role: Role = "admin",
        *,
        viewport: ViewportSize = DESKTOP,
        color_scheme: Literal["light", "dark"] = "light",
        bypass_csp: bool = False,
    ) -> Page: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of this folder share the session's loop, in which the browser lives; without Chromium all are skipped.

    They come last: stack and browser live as long as the session, and would take the time of whatever runs beside them.
    """
    items.sort(key=lambda item: item.path.is_relative_to(_FOLDER))
    for item in items:
        if not item.path.is_relative_to(_FOLDER):
            continue
        if pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        if chromium() is None:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(
    postgres_server: Postgres, migrated: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Stack]:
    """The stack's process, with a database of its own on the session's server."""
    admin = await asyncpg.connect(postgres_server.url())
    name = f"browser_{os.urandom(6).hex()}"
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated}" STRATEGY FILE_COPY')
    await admin.close()
    async with told.running(tmp_path_factory.mktemp("stack"), postgres_server.url(name)) as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncGenerator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        made = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"], headless=True
        )
        yield made
        await made.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_workers(browser: Browser) -> SharedWorkers:
    return await SharedWorkers.of(browser)


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def clean(stack: Stack) -> AsyncGenerator[None]:
    """Nothing of the test is left on the stack, and the estate is whole again."""
    yield
    await stack.tell("clean")


@pytest.fixture(scope="session")
def _numbers() -> "itertools.count[int]":
    return itertools.count(1)


@pytest.fixture
def named(_numbers: "itertools.count[int]") -> Names:
    """Makes a name of the word that no other test has."""
    number = next(_numbers)
    return lambda word: f"{word}-{number}"


@pytest.fixture
def heard() -> Heard:
    """What the test's pages complain of; at its end there must be nothing that was not allowed."""
    return Heard()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(
    stack: Stack, browser: Browser, shared_workers: SharedWorkers, heard: Heard, clean: None
) -> AsyncGenerator[OpenPage]:
    """Makes pages that go with the test."""
    contexts = contextlib.AsyncExitStack()

    async def make(
        role: Role = "admin",
        *,
        viewport: ViewportSize = DESKTOP,
        color_scheme: Literal["light", "dark"] = "light",
        bypass_csp: bool = False,
    ) -> Page:
        context = await browser.new_context(
            base_url=stack.url,
            viewport=viewport,
            color_scheme=color_scheme,
            bypass_csp=bypass_csp,
            locale="en-GB",
            timezone_id="UTC",
        )
        contexts.push_async_callback(context.close)
        context.set_default_timeout(PATIENCE_MS)
        await heard.watch(context)
        if role != "nobody":
            body = {"token": stack.token if role == "admin" else stack.viewer_token}
            answer = await context.request.post("/v1/session", data=body, headers={"Origin": stack.url})
            assert answer.ok, await answer.text()
        return await context.new_page()

    shared_workers.listener = heard.on_worker
    async with contexts:
        yield make
    shared_workers.listener = None
    assert not heard.complaints, "\n".join(heard.complaints)


@pytest_asyncio.fixture(loop_scope="session")
async def page(open_page: OpenPage) -> Page:
    """An admin's, still blank."""
    return await open_page()


@pytest_asyncio.fixture(loop_scope="session")
async def viewer_page(open_page: OpenPage) -> Page:
    """A viewer's, still blank."""
    return await open_page("viewer")


@pytest_asyncio.fixture(loop_scope="session")
async def axe_page(open_page: OpenPage) -> Page:
    """An admin's, still blank, for check_axe: the CSP forbids what axe does to the page."""
    return await open_page(bypass_csp=True)
