"""Many tabs at once: HTTP/1.1 gives a browser six connections to a host, so all tabs of one share one stream of events."""

import asyncio

from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Names, OpenPage
from tests.browser.heard import Heard
from tests.browser.told import Stack
from tests.fleet.fleet import until

_BACKENDS = "/v1/storage_backends"
_NFS = {"kind": "nfs", "config": {"server": "nas", "export": "/tabs"}}
TABS = 10


async def _opened(page: Page) -> Page:
    """The page, showing the storage."""
    await page.goto("/")
    await expect(page.get_by_role("heading", name="Storage", exact=True)).to_be_visible()
    return page


async def _tabs(page: Page) -> list[Page]:
    """Ten of one browser, all showing the storage."""
    others = [await page.context.new_page() for _ in range(TABS - 1)]
    return await asyncio.gather(*(_opened(tab) for tab in (page, *others)))


async def _until_one_stream(stack: Stack) -> None:
    """The relay between the browsers and the manager sees one connection that reads events, and no other."""

    async def is_one() -> bool:
        return bool((await stack.tell("streams"))["now"] == 1)

    await until(is_one, "one stream for all tabs")


async def _all_show(tabs: list[Page], name: str) -> None:
    rows = (tab.get_by_role("table", name="Storage backends").get_by_role("row").filter(has_text=name) for tab in tabs)
    await asyncio.gather(*(expect(row).to_be_visible() for row in rows))


async def test_ten_tabs_show_what_another_client_changes_over_one_stream(
    stack: Stack, page: Page, named: Names
) -> None:
    before = (await stack.tell("streams"))["begun"]
    tabs = await _tabs(page)
    await _until_one_stream(stack)
    tank, pool = named("tank"), named("pool")
    made = await stack.made(_BACKENDS, {"name": tank, **_NFS})
    await _all_show(tabs, tank)
    assert (await stack.api("PATCH", f"{_BACKENDS}/{made['id']}", {"name": pool})).status == 200
    await _all_show(tabs, pool)
    assert await stack.tell("streams") == {"now": 1, "begun": before + 1}


async def test_tabs_that_are_left_when_the_first_closes_stay_live(stack: Stack, page: Page, named: Names) -> None:
    first, *others = await _tabs(page)
    await _until_one_stream(stack)
    await first.close()
    tank = named("tank")
    await stack.made(_BACKENDS, {"name": tank, **_NFS})
    await _all_show(others, tank)
    await _until_one_stream(stack)


async def test_tabs_that_are_all_closed_leave_no_stream(stack: Stack, open_page: OpenPage) -> None:
    page = await _opened(await open_page())
    await _until_one_stream(stack)
    await page.close()

    async def is_none() -> bool:
        return bool((await stack.tell("streams"))["now"] == 0)

    await until(is_none, "the stream to end with its last tab")


async def test_change_that_is_made_while_a_tab_reads_its_lists_is_not_lost(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, pool = named("tank"), named("pool")
    made = await stack.made(_BACKENDS, {"name": tank, **_NFS})
    await stack.tell("begin_streams_as_old")
    await page.goto("/")
    await _all_show([page], tank)
    late = await page.context.new_page()

    async def answer_with_what_was(route: Route) -> None:
        old = await route.fetch()
        assert (await stack.api("PATCH", f"{_BACKENDS}/{made['id']}", {"name": pool})).status == 200
        # The stream has told of it once the other tab shows it, and does not tell of it again.
        await _all_show([page], pool)
        await route.fulfill(response=old)

    await late.route("**/v1/storage_backends*", answer_with_what_was, times=1)
    await late.goto("/")
    await _all_show([late], pool)


async def test_tab_that_was_cut_off_catches_up_when_the_manager_is_back(
    stack: Stack, page: Page, named: Names, heard: Heard
) -> None:
    await _opened(page)
    await _until_one_stream(stack)
    heard.allow("ERR_CONNECTION_REFUSED")
    await stack.tell("cut")
    tank = named("tank")
    await stack.made(_BACKENDS, {"name": tank, **_NFS})
    await stack.tell("mend")
    await _all_show([page], tank)
    await _until_one_stream(stack)
