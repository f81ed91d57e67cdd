"""The page when it is not simply well: loading, failing, cut off, signed out, narrow, in another theme, left by its manager."""

import re

from playwright.async_api import Page, Route, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import PHONE, Names, OpenPage
from tests.browser.estate import add_nfs, dialog, row
from tests.browser.heard import Heard
from tests.browser.told import Stack


async def test_list_that_cannot_be_read_is_said_and_tried_again(
    page: Page, stack: Stack, named: Names, heard: Heard
) -> None:
    heard.allow("status of 503")
    tank = named("tank")
    await add_nfs(stack, tank)
    problem = {
        "title": "Something failed inside",
        "status": 503,
        "code": "internal",
        "detail": "the database does not answer",
    }
    await page.route("**/v1/storage_backends?*", lambda route: route.fulfill(status=503, json=problem))
    await page.goto("/")
    alert = page.get_by_role("alert")
    await expect(alert).to_contain_text("the database does not answer")
    await page.unroute_all(behavior="wait")
    await alert.get_by_role("button", name="Try again").click()
    await expect(row(page, tank)).to_contain_text("Healthy")


async def test_page_says_that_it_loads_until_it_has_something(page: Page) -> None:
    held: list[Route] = []
    await page.route("**/v1/matrix", lambda route: held.append(route))
    async with page.expect_request("**/v1/matrix"):
        await page.goto("/")
    await expect(page.get_by_role("status").filter(has_text="Loading…")).to_be_visible()
    await held[0].continue_()
    await expect(page.get_by_role("heading", name="Storage", exact=True)).to_be_visible()


async def test_manager_that_does_not_answer_is_said_and_what_is_shown_stays(
    page: Page, stack: Stack, named: Names, heard: Heard
) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await page.goto("/")
    await expect(row(page, tank)).to_contain_text("Healthy")
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    heard.allow("ERR_CONNECTION")
    heard.allow("ERR_SOCKET_NOT_CONNECTED")
    heard.allow("ERR_EMPTY_RESPONSE")
    heard.allow("ERR_INCOMPLETE_CHUNKED_ENCODING")
    await stack.tell("cut")
    await expect(page.get_by_text(re.compile("what is shown may be old"))).to_be_visible()
    await expect(row(page, tank)).to_be_visible()
    await page.get_by_role("button", name="Refresh").click()
    await expect(page.locator("#toasts")).to_contain_text("look before you repeat it")
    await stack.tell("mend")
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    await expect(page.get_by_text(re.compile("what is shown may be old"))).to_be_hidden()


async def test_sign_out_forgets_the_cookie_in_every_tab(page: Page, stack: Stack) -> None:
    await page.goto("/")
    other = await page.context.new_page()
    await other.goto("/")
    await expect(other.get_by_role("heading", name="Storage", exact=True)).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Access token")).to_be_focused()
    assert await page.context.cookies() == []
    await expect(other.get_by_label("Access token")).to_be_visible()
    assert (await page.context.request.get("/v1/hosts")).status == 401


async def test_token_that_is_revoked_ends_the_session_at_the_page(
    open_page: OpenPage, stack: Stack, named: Names
) -> None:
    page = await open_page("nobody")
    made = await stack.made("/v1/tokens", {"name": named("short"), "role": "operator"})
    await page.goto("/")
    await page.get_by_label("Access token").fill(made["token"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("· operator")).to_be_visible()
    await stack.api("DELETE", f"/v1/tokens/{made['id']}")
    await expect(page.get_by_label("Access token")).to_be_visible()
    await expect(page.get_by_text("The session is over")).to_be_visible()


async def test_cookie_is_out_of_reach_of_scripts_and_other_sites(page: Page) -> None:
    await page.goto("/")
    [cookie] = await page.context.cookies()
    assert (cookie.get("httpOnly"), cookie.get("sameSite")) == (True, "Strict")
    assert await page.evaluate("document.cookie") == ""


async def test_markup_in_a_word_of_a_server_stays_text(page: Page, stack: Stack, named: Names, heard: Heard) -> None:
    heard.allow("TrustedHTML")  # of the last line alone
    heard.allow("trusted-types-sink at :1 Element innerHTML|<b>x</b>")
    tank = named("tank")
    await add_nfs(stack, tank)
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"

    async def with_markup(route: Route) -> None:
        answer = await (await route.fetch()).json()
        answer["items"][0]["health"] = {**answer["items"][0]["health"], "status": "degraded", "detail": evil}
        await route.fulfill(json=answer)

    await page.route("**/v1/storage_backends?*", with_markup)
    await page.goto("/")
    await expect(row(page, tank)).to_contain_text(evil)
    await expect(page.locator("main img")).to_have_count(0)
    assert (
        await page.evaluate(
            "() => { try { document.createElement('div').innerHTML = '<b>x</b>'; return 'taken'; } catch { return 'refused'; } }"
        )
        == "refused"
    )


async def test_theme_is_chosen_and_kept(page: Page) -> None:
    await page.goto("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(ground)
    await page.get_by_role("button", name="Theme: auto").click()
    await page.get_by_role("button", name="Theme: light").click()
    await expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    dark = await page.evaluate(ground)
    assert light != dark
    await page.reload()
    await expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert await page.evaluate(ground) == dark


async def test_phone_shows_rows_as_cards_and_never_scrolls_sideways(
    open_page: OpenPage, stack: Stack, named: Names
) -> None:
    tank = named("tank")
    await add_nfs(stack, tank, is_default=True, labels={"tier": "gold"})
    page = await open_page(viewport=PHONE, bypass_csp=True)
    await page.goto("/")
    await expect(row(page, tank)).to_contain_text("Healthy")
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not await page.evaluate(wide)
    await check_axe(page)
    await row(page, tank).get_by_role("button", name=f"Edit {tank}", exact=True).click()
    box = dialog(page, f"Edit {tank}")
    await expect(box).to_be_visible()
    assert not await page.evaluate(wide)
    save = await box.get_by_role("button", name="Save changes").bounding_box()
    assert save is not None
    assert save["y"] + save["height"] <= PHONE["height"]


async def test_page_that_is_newer_on_the_server_offers_a_reload(page: Page, heard: Heard) -> None:
    heard.allow("/js/views/hosts.js")
    await page.goto("/")
    await expect(page.get_by_role("heading", name="Storage", exact=True)).to_be_visible()
    # As after an upgrade: the files of this page are no longer there.
    await page.route("**/js/views/hosts.js", lambda route: route.fulfill(status=404, json={}))
    await page.get_by_role("link", name="Hosts").click()
    await expect(page.get_by_role("heading", name="This part of the page could not be loaded")).to_be_visible()
    await page.unroute_all(behavior="wait")
    await page.get_by_role("button", name="Reload").click()
    await expect(page.get_by_role("heading", name="Hosts", exact=True)).to_be_visible()
