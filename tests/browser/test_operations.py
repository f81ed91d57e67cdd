"""The page Operations: what is under way with its steps, how it is stopped or tried again, what was done before."""

import json
import re
from typing import Any

from playwright.async_api import Locator, Page, Route, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import PHONE, Names, OpenPage
from tests.browser.estate import add_nfs, add_smb, dialog
from tests.browser.heard import Heard
from tests.browser.told import Stack
from tests.fleet.fleet import until

_PROGRESS = "UPDATE operation SET progress = $2::text::jsonb WHERE id = $1::text::uuid"
#: The first step of an edit has no undo, so that one which is tried again is over at once.
_STUCK = "UPDATE operation SET state = 'stuck', step = 0 WHERE id = $1::text::uuid"


def operations(page: Page) -> Locator:
    return page.get_by_role("table", name="Operations")


def ended(page: Page, title: str, name: str) -> Locator:
    """The row of one that is over."""
    return operations(page).get_by_role("row").filter(has_text=title).filter(has_text=name)


def flight(page: Page, name: str) -> Locator:
    """The card of one that goes on."""
    return page.get_by_role("region", name="In flight").get_by_role("listitem").filter(has_text=name).first


async def _copying(stack: Stack, named: Names) -> tuple[str, str]:
    """A clone that waits on its host until `let_go`: (its name, the operation's id)."""
    tank, copy = named("tank"), named("copy")
    await add_nfs(stack, tank)
    await stack.made("/v1/volumes", {"name": named("web"), "size_bytes": 2**20, "backend": tank})
    await stack.tell("clone_at_once", is_cloning=False)
    await stack.tell("hold", verb="make")
    path = f"/v1/volumes/{named('web')}/clone"
    answer = await stack.api("POST", path, {"name": copy}, Prefer="respond-async")
    assert answer.status == 202, answer
    await stack.tell("reached", verb="make")
    return copy, answer.body["id"]


async def _stuck(stack: Stack, named: Names) -> str:
    """The id of an edit that failed on every host, and then, as far as anybody can see, on the way back."""
    office = named("office")
    await add_smb(stack, office)
    change = {"credentials": {"username": "svc", "password": "wrong"}}
    answer = await stack.api("PATCH", f"/v1/storage_backends/{office}", change)
    assert answer.status == 422, answer
    operation: str = answer.body["operation"].split("/")[-1]
    await stack.tell("sql", query=_STUCK, args=[operation])
    return operation


async def _failed(stack: Stack, named: Names) -> str:
    """The id of an operation that failed on every host."""
    config, wrong = {"server": "nas", "share": "x"}, {"username": "u", "password": "wrong"}
    body = {"name": named("refused"), "kind": "smb", "config": config, "credentials": wrong}
    answer = await stack.api("POST", "/v1/storage_backends", body)
    assert answer.status == 422, answer
    operation: str = answer.body["operation"].split("/")[-1]
    return operation


async def test_operation_that_is_over_stands_in_the_table(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await stack.made("/v1/volumes", {"name": web, "size_bytes": 2**20, "backend": tank})
    await page.goto("/#/operations")
    mine = ended(page, "Create volume", web)
    await expect(mine.locator(".c-status")).to_have_text("Succeeded")
    await expect(mine.locator(".c-actor")).to_have_text("admin")
    await expect(mine.get_by_role("link", name=web)).to_have_attribute("href", f"#/volumes/{web}")
    await expect(operations(page).get_by_role("row").nth(1)).to_contain_text(web)
    await expect(operations(page).get_by_role("row").nth(2)).to_contain_text(tank)


async def test_operation_that_begins_elsewhere_shows_and_ends_live(stack: Stack, page: Page, named: Names) -> None:
    await page.goto("/#/operations")
    await expect(page.get_by_role("heading", name="Operations")).to_be_visible()
    copy, _ = await _copying(stack, named)
    mine = flight(page, copy)
    await expect(mine).to_contain_text("Running")
    await expect(mine.get_by_role("list", name="Steps")).to_contain_text("Done: reserve")
    await stack.tell("let_go")
    await expect(ended(page, "Create volume", copy).locator(".c-status")).to_have_text("Succeeded")
    await expect(page.get_by_role("region", name="In flight")).to_be_hidden()


async def test_progress_of_a_running_operation_is_followed(stack: Stack, page: Page, named: Names) -> None:
    copy, operation = await _copying(stack, named)
    seen: dict[str, Any] = {"done_bytes": 2**30, "total_bytes": 2**32, "rate_bytes_s": 2**26, "eta_s": 75}
    await stack.tell("sql", query=_PROGRESS, args=[operation, json.dumps(seen)])
    await page.goto("/#/operations")
    bar = flight(page, copy).get_by_role("progressbar", name="Progress")
    await expect(bar).to_have_attribute("value", str(2**30))
    await expect(flight(page, copy)).to_contain_text("1.00 GiB of 4.00 GiB (25 %) · 64.0 MiB/s · 1 min 15 s left")
    await stack.tell("sql", query=_PROGRESS, args=[operation, json.dumps(seen | {"done_bytes": 2**31})])
    await expect(bar).to_have_attribute("value", str(2**31))
    await page.goto(f"/#/operations/{operation}")
    await expect(dialog(page, "Create volume")).to_contain_text("2.00 GiB of 4.00 GiB (50 %)")


async def test_operation_is_cancelled_after_a_question(stack: Stack, page: Page, named: Names) -> None:
    copy, operation = await _copying(stack, named)
    await page.goto("/#/operations")
    await flight(page, copy).get_by_role("button", name=f"Cancel: Create volume {copy}").click()
    box = dialog(page, "Cancel this operation?")
    await expect(box).to_contain_text("undoes what it did")
    await expect(page).to_have_url(re.compile(f"#/operations/{operation}/cancel"))
    await box.get_by_role("button", name="Cancel the operation").click()
    await expect(page.get_by_role("region", name="Notices")).to_contain_text("being cancelled")
    await expect(flight(page, copy)).to_contain_text(re.compile("Being cancelled|Undoing"))
    await expect(flight(page, copy).get_by_role("button", name="Cancel:")).to_have_attribute("aria-disabled", "true")
    await stack.tell("let_go")
    await page.get_by_label("State").select_option("cancelled")
    await expect(operations(page).get_by_role("row").nth(1).locator(".c-status")).to_have_text("Cancelled")

    async def is_cancelled() -> bool:
        return bool((await stack.api("GET", f"/v1/operations/{operation}")).body["state"] == "cancelled")

    await until(is_cancelled, "the operation to end")


async def test_operation_that_cannot_be_cancelled_any_more_says_so_in_the_dialog(
    stack: Stack, page: Page, named: Names
) -> None:
    _, operation = await _copying(stack, named)
    await page.goto(f"/#/operations/{operation}/cancel")
    box = dialog(page, "Cancel this operation?")
    await expect(box).to_be_visible()
    await stack.tell("let_go")
    await stack.tell("settle")
    await box.get_by_role("button", name="Cancel the operation").click()
    await expect(box.get_by_role("alert")).to_contain_text("the operation is succeeded, so it cannot be cancelled")


async def test_stuck_operation_says_what_that_means_and_is_tried_again(stack: Stack, page: Page, named: Names) -> None:
    operation = await _stuck(stack, named)
    await page.goto("/#/operations")
    mine = flight(page, named("office"))
    await expect(mine).to_contain_text("Stuck")
    await expect(mine).to_contain_text("Its undo has failed eight times")
    await mine.get_by_role("button", name="Try again: Edit backend").click()
    box = dialog(page, "Try the undo again?")
    await expect(box).to_contain_text("is stuck")
    await box.get_by_role("button", name="Try again").click()
    await expect(page.get_by_role("region", name="Notices")).to_contain_text("The undo is tried again")
    await expect(page.get_by_role("region", name="In flight")).to_be_hidden()
    assert (await stack.api("GET", f"/v1/operations/{operation}")).body["state"] == "failed"


async def test_dialog_of_a_failed_operation_tells_steps_faults_and_remedies(
    stack: Stack, page: Page, named: Names
) -> None:
    operation = await _failed(stack, named)
    await page.goto("/#/operations?state=failed")
    await operations(page).get_by_role("row").nth(1).get_by_role("link", name="Add backend").click()
    box = dialog(page, "Add backend")
    await expect(page).to_have_url(re.compile(rf"#/operations/{operation}\?state=failed"))
    await expect(box.get_by_role("list", name="Steps").get_by_role("listitem").last).to_contain_text("attach")
    await expect(box).to_contain_text("Why it failed")
    await expect(box).to_contain_text("hv2: auth failed")
    await expect(box).to_contain_text("Check the user name, password and domain")
    await box.get_by_role("button", name="Close", exact=True).last.click()
    await expect(page).to_have_url(re.compile(r"#/operations\?state=failed$"))


async def test_filters_of_operations_stand_in_the_address(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await _failed(stack, named)
    await page.goto("/#/operations")
    await expect(ended(page, "Add backend", tank)).to_be_visible()
    await page.get_by_label("Kind").select_option("backend.add")
    await page.get_by_label("State").select_option("succeeded")
    await expect(page).to_have_url(re.compile("kind=backend.add&state=succeeded"))
    await page.get_by_label("Search operations").fill(tank)
    await expect(operations(page).get_by_role("rowheader")).to_have_count(1)
    await page.reload()
    await expect(page.get_by_label("Kind")).to_have_value("backend.add")
    await expect(operations(page).get_by_role("rowheader")).to_have_count(1)
    await page.get_by_label("Search operations").fill("nothing-like-it")
    await page.get_by_role("button", name="Clear the filters").click()
    await expect(page).to_have_url(re.compile(r"#/operations$"))
    await expect(ended(page, "Add backend", tank)).to_be_visible()


async def test_older_operations_come_page_by_page(stack: Stack, page: Page, named: Names) -> None:
    async def in_pages_of_one(route: Route) -> None:
        await route.continue_(url=route.request.url.replace("limit=50", "limit=1"))

    tank, pool = named("tank"), named("pool")
    await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "other", "export": "/pool"})
    await page.route("**/v1/operations?*", in_pages_of_one)
    await page.goto("/#/operations")
    await expect(ended(page, "Add backend", pool)).to_be_visible()
    await expect(ended(page, "Add backend", tank)).to_have_count(0)
    await page.get_by_role("button", name="Older").click()
    await expect(ended(page, "Add backend", tank)).to_be_visible()
    await expect(ended(page, "Add backend", pool)).to_be_visible()


async def test_operation_that_ended_while_the_page_was_cut_off_is_not_in_flight(
    stack: Stack, page: Page, named: Names, heard: Heard
) -> None:
    copy, _ = await _copying(stack, named)
    await page.goto("/#/operations")
    await expect(flight(page, copy)).to_contain_text("Running")
    heard.allow("ERR_CONNECTION_REFUSED")
    await stack.tell("cut")
    await stack.tell("let_go")
    await stack.tell("settle")
    await stack.tell("mend")
    await expect(ended(page, "Create volume", copy)).to_be_visible()
    await expect(page.get_by_role("region", name="In flight")).to_be_hidden()


async def test_viewer_of_operations_can_only_look(stack: Stack, viewer_page: Page, named: Names) -> None:
    copy, operation = await _copying(stack, named)
    await viewer_page.goto("/#/operations")
    await expect(flight(viewer_page, copy)).to_be_visible()
    await expect(viewer_page.get_by_role("button", name=re.compile("Cancel"))).to_have_count(0)
    await viewer_page.goto(f"/#/operations/{operation}/cancel")
    box = dialog(viewer_page, "Create volume")
    await expect(box).to_be_visible()
    await expect(box.get_by_role("button", name="Cancel the operation")).to_have_count(0)


async def test_operations_and_their_dialogs_have_nothing_for_axe_to_find(
    stack: Stack, axe_page: Page, named: Names
) -> None:
    stuck = await _stuck(stack, named)
    copy, running = await _copying(stack, named)
    done = {"done_bytes": 2**30, "total_bytes": 2**32}
    await stack.tell("sql", query=_PROGRESS, args=[running, json.dumps(done)])
    await axe_page.goto("/#/operations")
    await expect(flight(axe_page, copy).get_by_role("progressbar")).to_be_visible()
    await check_axe(axe_page)
    for path, title in (
        (running, "Create volume"),
        (stuck, "Edit backend"),
        (f"{stuck}/retry", "Try the undo again?"),
    ):
        await axe_page.goto(f"/#/operations/{path}")
        await expect(dialog(axe_page, title)).to_be_visible()
        await check_axe(axe_page)


async def test_operations_on_a_phone_fit(stack: Stack, open_page: OpenPage, named: Names) -> None:
    copy, _ = await _copying(stack, named)
    page = await open_page(viewport=PHONE)
    await page.goto("/#/operations")
    await expect(flight(page, copy)).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
