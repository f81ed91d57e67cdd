"""The page Volumes: its table, filters, what is under way in a row, and what viewers and phones see."""

import asyncio
import re

import pytest
from playwright.async_api import Locator, Page, Route, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import PHONE, Names, OpenPage
from tests.browser.estate import add_nfs, dialog, row_of
from tests.browser.heard import Heard
from tests.browser.told import Stack

MIB = 2**20


async def add_volume(
    stack: Stack, name: str, backend: str, *, size_bytes: int = MIB, **more: object
) -> dict[str, object]:
    made: dict[str, object] = await stack.made(
        "/v1/volumes", {"name": name, "size_bytes": size_bytes, "backend": backend, **more}
    )
    return made


def volumes(page: Page) -> Locator:
    return page.get_by_role("table", name="Volumes")


def row(page: Page, name: str) -> Locator:
    return row_of(volumes(page), name)


async def begin_move(stack: Stack, volume: str, target: str) -> str:
    """The id of a migration that waits before it changes hands."""
    await stack.tell("hold", verb="settle")
    begun = await stack.api("POST", f"/v1/volumes/{volume}/migrate", {"backend": target}, Prefer="respond-async")
    assert begun.status == 202, begun
    await stack.tell("reached", verb="settle")
    return str(begun.body["id"])


async def test_row_tells_everything_of_a_volume(stack: Stack, page: Page, named: Names) -> None:
    tank, web, copy = named("tank"), named("web"), named("copy")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank, size_bytes=3 * MIB, labels={"vm": "17"}, format="qcow2")
    await stack.made(f"/v1/volumes/{web}/snapshots", {"name": "monday"})
    await add_volume(stack, copy, tank, size_bytes=4 * MIB, source={"snapshot": f"{web}/monday"})
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv2"})
    await page.goto("/#/volumes")
    mine = row(page, web)
    await expect(mine.locator(".c-status .badge")).to_have_text("Attached")
    await expect(mine.locator(".c-status svg")).to_have_count(1)
    await expect(mine.get_by_role("rowheader")).to_contain_text("vm: 17")
    for column, words in (
        ("backend", tank),
        ("host", "shared"),
        ("size", "3.00 MiB"),
        ("format", "qcow2"),
        ("attached", "hv2 (rw)"),
        ("snapshots", "1"),
        ("source", "empty"),
    ):
        await expect(mine.locator(f".c-{column}")).to_have_text(words)
    await expect(mine.get_by_role("link", name=tank)).to_have_attribute("href", f"#/storage/{tank}")
    await expect(row(page, copy).locator(".c-source")).to_have_text(f"snapshot monday of {web}")
    await expect(row(page, copy).locator(".c-status")).to_have_text("Unused")


async def test_filters_stand_in_the_address_and_find_attached_and_unused(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, pool, one, two, three = (named(word) for word in ("tank", "pool", "one", "two", "three"))
    await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "b", "export": "/b"})
    for name, backend in ((one, tank), (two, tank), (three, pool)):
        await add_volume(stack, name, backend)
    await stack.made(f"/v1/volumes/{one}/attach", {"host": "hv3"})
    await page.goto(f"/#/volumes?backend={tank}")
    await expect(volumes(page).get_by_role("rowheader")).to_have_text([one, two])
    await expect(page.get_by_label("Backend")).to_have_value(tank)
    await page.get_by_label("Use").select_option("unused")
    await expect(volumes(page).get_by_role("rowheader")).to_have_text([two])
    await expect(page).to_have_url(re.compile(f"backend={tank}&use=unused$"))
    await page.get_by_label("Use").select_option("attached")
    await page.get_by_label("Backend").select_option("")
    await expect(volumes(page).get_by_role("rowheader")).to_have_text([one])
    await page.get_by_label("Use").select_option("")
    await page.get_by_label("Host").select_option("hv1")
    await expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
    await page.get_by_role("button", name="Clear them").click()
    await page.keyboard.press("/")
    await page.keyboard.type(three[:4])
    await expect(volumes(page).get_by_role("rowheader")).to_have_text([three])
    await expect(page.get_by_text("1 of 3 shown")).to_be_visible()


async def test_sort_by_size_goes_up_and_down_and_stays_in_the_address(stack: Stack, page: Page, named: Names) -> None:
    tank, small, large = named("tank"), named("b-small"), named("a-large")
    await add_nfs(stack, tank)
    await add_volume(stack, large, tank, size_bytes=5 * MIB)
    await add_volume(stack, small, tank)
    await page.goto("/#/volumes")
    await page.get_by_role("button", name="Size").click()
    await expect(volumes(page).get_by_role("rowheader")).to_have_text([small, large])
    await page.get_by_role("button", name="Size").click()
    await expect(volumes(page).get_by_role("rowheader")).to_have_text([large, small])
    await expect(page).to_have_url(re.compile("sort=-size$"))


async def test_list_without_volumes_leads_to_the_first_one(stack: Stack, page: Page, named: Names) -> None:
    await page.goto("/#/volumes")
    await expect(page.get_by_role("link", name="To the storage")).to_be_visible()
    await add_nfs(stack, named("tank"))
    await page.get_by_role("button", name="Make the first volume").click()
    await expect(dialog(page, "New volume")).to_be_visible()
    await expect(page).to_have_url(re.compile("#/volumes/add$"))


async def test_list_that_cannot_be_read_says_so_and_is_read_again(
    stack: Stack, page: Page, named: Names, heard: Heard
) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, json={"title": "The database does not answer", "detail": "try again"})

    heard.allow("503")
    await page.route("**/v1/volumes?*", refuse)
    await page.goto("/#/volumes")
    await expect(page.get_by_role("alert")).to_contain_text("The volumes could not be read. try again")
    await page.unroute("**/v1/volumes?*")
    await page.get_by_role("button", name="Try again").click()
    await expect(row(page, web)).to_be_visible()
    await expect(page.get_by_role("alert")).to_be_hidden()


async def test_change_by_another_client_is_shown_where_it_stands_and_keeps_focus(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, web, other = named("tank"), named("web"), named("other")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    await page.goto("/#/volumes")
    link = row(page, web).get_by_role("link", name=web, exact=True)
    await link.focus()
    await add_volume(stack, other, tank)
    await expect(row(page, other)).to_be_visible()
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv1"})
    await expect(row(page, web).locator(".c-status")).to_have_text("Attached")
    await expect(link).to_be_focused()
    assert (await stack.api("DELETE", f"/v1/volumes/{other}")).status == 204
    await expect(row(page, other)).to_have_count(0)


async def test_move_under_way_shows_its_bytes_and_is_cancelled_in_its_row(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, pool, web = named("tank"), named("pool"), named("web")
    await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "b", "export": "/b"})
    await add_volume(stack, web, tank, size_bytes=4 * MIB)
    operation = await begin_move(stack, web, pool)
    await page.goto("/#/volumes")
    line = row(page, web).get_by_role("group", name=f"Under way on {web}")
    await expect(line).to_contain_text("Moving")
    await expect(line.get_by_role("progressbar")).to_have_attribute("max", str(4 * MIB))
    await expect(line).to_contain_text("of 4.00 MiB")
    await expect(line.get_by_role("link")).to_have_attribute("href", f"#/operations/{operation}")
    await line.get_by_role("button", name="Cancel").click()
    await expect(line).to_contain_text("Turning back")
    await stack.tell("let_go")
    await expect(line).to_have_count(0)
    await expect(row(page, web).locator(".c-backend")).to_have_text(tank)


async def test_running_operation_is_asked_for_only_while_there_is_one(stack: Stack, page: Page, named: Names) -> None:
    tank, pool, web = named("tank"), named("pool"), named("web")
    await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "b", "export": "/b"})
    await add_volume(stack, web, tank)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/operations/" in request.url else None)
    await page.goto("/#/volumes")
    await expect(row(page, web)).to_be_visible()
    assert asked == []
    operation = await begin_move(stack, web, pool)
    async with page.expect_request(f"**/v1/operations/{operation}"):
        pass
    async with page.expect_request(f"**/v1/operations/{operation}"):
        await expect(row(page, web).get_by_role("progressbar")).to_be_visible()
    await stack.tell("let_go")
    await expect(row(page, web).locator(".c-backend")).to_have_text(pool)


async def test_menu_is_moved_through_with_keys_and_says_why_not(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    await stack.made(f"/v1/volumes/{web}/snapshots", {"name": "monday"})
    await page.goto("/#/volumes")
    more = row(page, web).get_by_role("button", name=f"More for {web}")
    await more.click()
    menu = page.get_by_role("menu", name=f"Actions for {web}")
    await expect(menu.get_by_role("menuitem", name="Attach", exact=True)).to_be_focused()
    await page.keyboard.press("ArrowUp")
    last = menu.get_by_role("menuitem", name="Delete")
    await expect(last).to_be_focused()
    await expect(last).to_contain_text(f"{web} cannot be deleted: it has 1 snapshot")
    await page.keyboard.press("Enter")
    await expect(menu).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(menu).to_be_hidden()
    await expect(more).to_be_focused()
    await more.click()
    await menu.get_by_role("menuitem", name="Resize").click()
    await expect(dialog(page, f"Resize {web}")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(more).to_be_focused()


async def test_viewer_sees_volumes_and_snapshots_but_no_actions(stack: Stack, viewer_page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    await stack.made(f"/v1/volumes/{web}/snapshots", {"name": "monday"})
    await viewer_page.goto("/#/volumes")
    await expect(row(viewer_page, web)).to_be_visible()
    await expect(volumes(viewer_page).get_by_role("cell").get_by_role("button")).to_have_count(0)
    await expect(viewer_page.get_by_role("button", name="New volume")).to_have_count(0)
    await row(viewer_page, web).get_by_role("link", name=f"1 of {web}").click()
    box = dialog(viewer_page, f"Snapshots of {web}")
    await expect(box.get_by_text("monday")).to_be_visible()
    await expect(box.get_by_role("link")).to_have_count(0)
    await viewer_page.goto(f"/#/volumes/{web}/delete")
    await expect(viewer_page.get_by_role("region", name="Notices")).to_contain_text("This takes the role operator.")
    await expect(viewer_page.get_by_role("dialog")).to_have_count(0)


async def test_dialog_whose_volume_comes_late_does_not_open_over_the_one_that_was_asked_for_since(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, web, other = named("tank"), named("web"), named("db")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    await add_volume(stack, other, tank)
    late: asyncio.Future[Route] = asyncio.get_running_loop().create_future()
    await page.route(f"**/v1/volumes/{web}", lambda route: late.set_result(route))
    await page.goto(f"/#/volumes/{web}/delete")
    route = await late
    await page.goto(f"/#/volumes/{other}/resize")
    await expect(dialog(page, f"Resize {other}")).to_be_visible()
    async with page.expect_response(f"**/v1/volumes/{web}") as answered:
        await route.continue_()
    await (await answered.value).finished()
    # A later answer: whatever the page does about the late one is done.
    await page.evaluate("fetch('/v1/volumes').then((answer) => answer.text())")
    await expect(page.get_by_role("dialog")).to_have_count(1)


async def test_rows_on_a_phone_are_cards_without_sideways_scrolling(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    tank, pool, web = named("tank"), named("pool"), named("web")
    await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "b", "export": "/b"})
    await add_volume(stack, web, tank)
    await begin_move(stack, web, pool)
    page = await open_page(viewport=PHONE)
    await page.goto("/#/volumes")
    await expect(row(page, web).get_by_role("progressbar")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    name, status = row(page, web).locator(".c-name"), row(page, web).locator(".c-status")
    one, two = await name.bounding_box(), await status.bounding_box()
    assert one and two
    assert abs(one["y"] - two["y"]) < 8
    assert two["x"] > one["x"]


async def test_list_and_menu_have_nothing_for_axe_to_find(stack: Stack, axe_page: Page, named: Names) -> None:
    tank, pool, web = named("tank"), named("pool"), named("web")
    await axe_page.goto("/#/volumes")
    await expect(axe_page.get_by_role("heading", name="No volumes yet")).to_be_visible()
    await check_axe(axe_page)
    await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "b", "export": "/b"})
    await add_volume(stack, named("idle"), tank, labels={"tier": "gold"})
    await add_volume(stack, web, tank)
    await begin_move(stack, web, pool)
    await expect(row(axe_page, web).get_by_role("progressbar")).to_be_visible()
    await row(axe_page, web).get_by_role("button", name=f"More for {web}").click()
    await check_axe(axe_page)


@pytest.mark.parametrize("address", ["nobody", "nobody/attach"])
async def test_address_of_a_volume_that_is_not_there_says_so(page: Page, address: str) -> None:
    await page.goto(f"/#/volumes/{address}")
    await expect(page.get_by_role("region", name="Notices")).to_contain_text("there is no volume nobody")
    await expect(page).to_have_url(re.compile("#/volumes$"))
