"""The page Activity: the log as it grows, its filters, each event, and whether the chain is whole."""

import re

from playwright.async_api import Locator, Page, Request, Route, ViewportSize, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import PHONE, Names, OpenPage
from tests.browser.estate import add_nfs, dialog
from tests.browser.heard import Heard
from tests.browser.told import Stack
from tests.fleet.fleet import until

_BACKENDS = "/v1/storage_backends"
_REFUSED = {"code": "internal", "title": "Something failed inside", "detail": "the database is away", "status": 503}


def log(page: Page) -> Locator:
    return page.get_by_role("table", name="Activity")


def event(page: Page, name: str, words: str) -> Locator:
    """Rows of what happened to that name, in these words."""
    return (
        log(page)
        .get_by_role("row")
        .filter(has=page.get_by_role("rowheader", name=f"{name} ").filter(has_text=re.compile(re.escape(words))))
    )


async def _in_pages_of_three(route: Route) -> None:
    await route.continue_(url=route.request.url.replace("limit=50", "limit=3"))


async def test_log_tells_the_newest_first_with_actor_and_subject(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await stack.made("/v1/volumes", {"name": web, "size_bytes": 2**30, "backend": tank})
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv2", "mode": "ro"})
    await page.goto("/#/activity")
    await expect(log(page).get_by_role("rowheader").nth(0)).to_have_text(
        f"{web} attached to hv2 by admin, to read only"
    )
    await expect(log(page).get_by_role("rowheader").nth(1)).to_have_text(f"{web} volume of 1.00 GiB made by admin")
    mine = event(page, tank, "added by admin")
    await expect(mine.locator(".c-type")).to_have_text("backend.created")
    await expect(mine.locator(".c-actor")).to_have_text("admin")
    await expect(mine.locator(".c-subject").get_by_role("link", name=tank)).to_have_attribute(
        "href", f"#/storage/{tank}"
    )


async def test_filters_of_the_log_stand_in_the_address_and_are_cleared(stack: Stack, page: Page, named: Names) -> None:
    tank, pool = named("tank"), named("pool")
    made = await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "other", "export": "/pool"})
    await stack.api("PATCH", f"{_BACKENDS}/{tank}", {"labels": {"tier": "gold"}})
    await page.goto("/#/activity")
    await expect(event(page, pool, "added")).to_be_visible()
    await page.keyboard.press("/")
    await expect(page.get_by_label("Name", exact=True)).to_be_focused()
    await page.keyboard.type(tank)
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile(f"subject=storage_backends%2F{made['id']}"))
    await expect(page.get_by_label("Name", exact=True)).to_have_value(f"backend {tank}")
    await expect(event(page, pool, "added")).to_have_count(0)
    await page.get_by_label("Type", exact=True).select_option("backend.updated")
    await expect(log(page).get_by_role("rowheader")).to_have_text([f"{tank} changed by admin: labels"])
    await page.reload()
    await expect(log(page).get_by_role("rowheader")).to_have_text([f"{tank} changed by admin: labels"])
    await page.get_by_label("Actor").fill("token:nobody")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="No event fits the filters")).to_be_visible()
    await page.get_by_role("button", name="Clear the filters").click()
    await expect(event(page, pool, "added")).to_be_visible()
    await expect(page).to_have_url(re.compile(r"#/activity$"))


async def test_time_since_when_is_sent_with_its_zone(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await page.goto("/#/activity")
    await page.get_by_label("Since").fill("2020-02-03T04:05")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile(r"since=2020-02-03T04%3A05%3A00\.000Z"))
    await expect(event(page, tank, "added")).to_be_visible()
    await page.goto("/#/activity?since=2090-01-01T00:00:00Z")
    await expect(page.get_by_label("Since")).to_have_value("2090-01-01T00:00")
    await expect(page.get_by_role("heading", name="No event fits the filters")).to_be_visible()


async def test_name_of_nothing_is_told_at_the_field(page: Page, named: Names) -> None:
    await page.goto("/#/activity")
    field, nothing = page.get_by_label("Name", exact=True), named("nothing")
    await field.fill(nothing)
    await field.press("Enter")
    await expect(page.get_by_role("alert").filter(has_text=f"volume or image {nothing} now")).to_be_visible()
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_have_value(nothing)


async def test_older_events_come_page_by_page_without_a_hole(page: Page) -> None:
    """Three hosts have joined before any test, so there is a beginning to come to."""
    await page.route("**/v1/events?*", _in_pages_of_three)
    await page.goto("/#/activity?type=host.joined&since=2020-01-01T00:00:00Z")
    await expect(log(page).get_by_role("rowheader")).to_have_count(3)
    older, beginning = page.get_by_role("button", name="Older"), page.get_by_text("This is the beginning.")
    await expect(older.or_(beginning)).to_be_visible()
    while await older.is_visible():
        before = await log(page).get_by_role("rowheader").count()
        await older.click()
        await expect(log(page).get_by_role("rowheader").nth(before)).to_be_visible()
        await expect(older.or_(beginning)).to_be_visible()
    await expect(log(page).get_by_role("rowheader").last).to_have_text("hv1 joined the fleet")


async def test_new_event_is_on_top_at_once_for_who_looks_at_the_newest(stack: Stack, page: Page, named: Names) -> None:
    await page.goto("/#/activity")
    await expect(log(page)).to_be_visible()
    tank = named("tank")
    await add_nfs(stack, tank)
    await expect(event(page, tank, "added by admin")).to_be_visible()


async def test_new_event_moves_nothing_for_who_reads_further_down(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    page = await open_page(viewport=ViewportSize(width=1440, height=300))
    await page.goto("/#/activity")
    await expect(log(page).get_by_role("rowheader").nth(2)).to_be_visible()
    # Over the table: at first the mouse is over the navigation, which scrolls by itself.
    await page.mouse.move(700, 150)
    await page.mouse.wheel(0, 200)

    async def is_further_down() -> bool:
        return bool(await page.evaluate("scrollY > 100"))

    await until(is_further_down, "the page to be scrolled")
    first = await log(page).get_by_role("rowheader").first.text_content()
    at = await page.evaluate("scrollY")
    tank = named("tank")
    await add_nfs(stack, tank)
    fresh = page.get_by_role("button", name=re.compile("new event"))
    await expect(fresh).to_be_in_viewport()
    assert await log(page).get_by_role("rowheader").first.text_content() == first
    assert await page.evaluate("scrollY") == at
    await fresh.click()
    await expect(event(page, tank, "added by admin")).to_be_in_viewport()
    await expect(fresh).to_be_hidden()


async def test_event_that_does_not_fit_the_filters_does_not_come(stack: Stack, page: Page, named: Names) -> None:
    tank, pool = named("tank"), named("pool")
    made = await add_nfs(stack, tank)
    await page.goto(f"/#/activity?subject=storage_backends/{made['id']}")
    await expect(event(page, tank, "added")).to_be_visible()
    await add_nfs(stack, pool, config={"server": "other", "export": "/pool"})
    await stack.api("PATCH", f"{_BACKENDS}/{tank}", {"labels": {"tier": "gold"}})
    await expect(event(page, tank, "changed")).to_be_visible()
    await expect(event(page, pool, "added")).to_have_count(0)


async def test_event_dialog_marks_what_differs_and_tells_the_seal(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank, labels={"tier": "gold"})
    await stack.api("PATCH", f"{_BACKENDS}/{tank}", {"labels": {"tier": "silver", "rack": "4"}})
    await page.goto("/#/activity")
    await event(page, tank, "changed by admin").get_by_role("link", name="changed by admin").click()
    # Sealed a moment after the change: only what the page shows is there for sure.
    (sealed,) = (await stack.api("GET", "/v1/events?type=backend.updated&order=desc&limit=1")).body["items"]
    box = dialog(page, f"Event {sealed['sequence']}")
    rows = box.get_by_role("table", name="Before and after").get_by_role("row")
    changed = rows.filter(has=page.get_by_role("rowheader", name=re.compile(r"^changed: labels\.tier")))
    await expect(changed.get_by_role("cell")).to_have_text(["gold", "silver"])
    added = rows.filter(has=page.get_by_role("rowheader", name=re.compile(r"^added: labels\.rack")))
    await expect(added.get_by_role("cell")).to_have_text(["—", "4"])
    same = rows.filter(has=page.get_by_role("rowheader", name="config.export", exact=True))
    await expect(same.get_by_role("cell")).to_have_text(["/tank/vms", "/tank/vms"])
    await box.get_by_text("Seal", exact=True).click()
    await expect(box).to_contain_text(sealed["hash"])
    await expect(box).to_contain_text(sealed["prevhash"])


async def test_address_of_an_event_that_is_far_back_opens_it(page: Page) -> None:
    await page.route("**/v1/events?*limit=50*", _in_pages_of_three)
    await page.goto("/#/activity/1?type=backend.deleted")
    await expect(dialog(page, "Event 1")).to_contain_text("hv1 joined the fleet")
    await page.goto("/#/activity/999999999")
    await expect(page.get_by_role("region", name="Notices")).to_contain_text("There is no event 999999999.")


async def test_chain_is_said_to_be_unbroken_or_where_it_is_broken(stack: Stack, axe_page: Page) -> None:
    await axe_page.goto("/#/activity")
    verify = axe_page.get_by_role("button", name="Verify the chain")
    await verify.click()
    await expect(axe_page.get_by_role("status").filter(has_text=re.compile(r"\d+ events, unbroken"))).to_be_visible()
    await check_axe(axe_page)
    forge = "UPDATE event SET actor = $1 WHERE sequence = 2"
    await stack.tell("sql", query=forge, args=["token:nobody"])
    try:
        await verify.click()
        await expect(axe_page.get_by_role("status").filter(has_text="Broken at event 2")).to_be_visible()
        await expect(axe_page.get_by_role("alert")).to_contain_text("the 1 event before it is unbroken")
        await check_axe(axe_page)
    finally:
        await stack.tell("sql", query=forge, args=["host:hv2"])
    await verify.click()
    await expect(axe_page.get_by_role("status").filter(has_text="events, unbroken")).to_be_visible()
    await expect(axe_page.get_by_role("alert")).to_have_count(0)


async def test_log_that_cannot_be_read_says_why_and_is_tried_again(page: Page, heard: Heard) -> None:
    heard.allow("status of 503")

    def refuse(route: Route, _: Request) -> object:
        return route.fulfill(status=503, json=_REFUSED)

    await page.route("**/v1/events?*", refuse)
    await page.goto("/#/activity")
    await expect(page.get_by_role("heading", name="The log could not be read")).to_be_visible()
    await expect(page.get_by_role("alert")).to_have_text("the database is away")
    await page.unroute("**/v1/events?*", refuse)
    await page.get_by_role("button", name="Try again").click()
    await expect(log(page).get_by_role("rowheader").first).to_be_visible()


async def test_event_dialog_has_nothing_for_axe_to_find(stack: Stack, axe_page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await stack.api("PATCH", f"{_BACKENDS}/{tank}", {"labels": {"tier": "gold"}})
    await axe_page.goto("/#/activity")
    await event(axe_page, tank, "changed").get_by_role("link", name="changed by admin").click()
    await axe_page.get_by_text("Seal", exact=True).click()
    await check_axe(axe_page)


async def test_log_on_a_phone_fits(open_page: OpenPage) -> None:
    page = await open_page(viewport=PHONE)
    await page.goto("/#/activity")
    await expect(log(page).get_by_role("rowheader").first).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
