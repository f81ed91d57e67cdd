"""What was typed: it outlives a slip, an address and a session; not who typed it, and never a secret."""

import re

from playwright.async_api import Page, expect

from tests.browser.conftest import Names, OpenPage
from tests.browser.estate import add_smb, dialog, row
from tests.browser.told import Stack


async def _sign_in(page: Page, token: str) -> None:
    await page.get_by_label("Access token").fill(token)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Storage", exact=True)).to_be_visible()


async def test_edit_that_was_left_comes_back_but_for_its_password(stack: Stack, page: Page, named: Names) -> None:
    office = named("office")
    await add_smb(stack, office)
    await page.goto(f"/#/storage/{office}/edit")
    box = dialog(page, f"Edit {office}")
    await box.get_by_label("Server", exact=True).fill("elsewhere")
    await box.get_by_role("group", name="Rotate password").get_by_label("Password").fill("secret")
    # The second Esc of a hurry keeps what the first has asked about.
    await page.keyboard.press("Escape")
    await expect(box.get_by_text("Discard what you typed?")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(box.get_by_text("Discard what you typed?")).to_be_hidden()
    await page.evaluate("location.hash = '#/hosts'")
    await expect(page.get_by_role("heading", name="Hosts", exact=True)).to_be_visible()
    await expect(box).to_have_count(0)
    await page.go_back()
    await expect(box).to_contain_text("What you had typed is back")
    await expect(box.get_by_label("Server", exact=True)).to_have_value("elsewhere")
    await expect(box.get_by_role("group", name="Rotate password").get_by_label("Password")).to_have_value("")
    await box.get_by_role("button", name="Start over").click()
    await expect(box.get_by_label("Server", exact=True)).to_have_value("nas")


async def test_what_was_typed_outlives_the_session_of_who_typed_it(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    page = await open_page("nobody")
    name = named("short")
    made = await stack.made("/v1/tokens", {"name": name, "role": "operator"})
    await page.goto("/")
    await _sign_in(page, made["token"])
    await page.get_by_role("button", name="Add backend").click()
    await dialog(page, "Add backend").get_by_label("Name", exact=True).fill("half-typed")
    await stack.api("DELETE", f"/v1/tokens/{made['id']}")
    await expect(page.get_by_text("The session is over")).to_be_visible()
    again = await stack.made("/v1/tokens", {"name": name, "role": "operator"})
    await page.get_by_label("Access token").fill(again["token"])
    await page.keyboard.press("Enter")
    # The address still says where he was.
    await expect(dialog(page, "Add backend").get_by_label("Name", exact=True)).to_have_value("half-typed")


async def test_next_user_of_the_tab_finds_nothing_of_the_one_before(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    page = await open_page("nobody")
    await page.goto("/")
    await _sign_in(page, stack.token)
    await page.get_by_role("button", name="Add backend").click()
    box = dialog(page, "Add backend")
    await box.get_by_label("Name", exact=True).fill("secret-plans")
    await page.evaluate("location.hash = '#/storage'")
    await expect(box).to_have_count(0)
    await page.get_by_role("button", name="Sign out").click()
    made = await stack.made("/v1/tokens", {"name": named("other"), "role": "operator"})
    await _sign_in(page, made["token"])
    await page.get_by_role("button", name="Add backend").click()
    await expect(box.get_by_label("Name", exact=True)).to_have_value("")


async def test_what_was_discarded_is_gone(page: Page) -> None:
    await page.goto("/#/storage/add")
    box = dialog(page, "Add backend")
    await box.get_by_label("Name", exact=True).fill("unwanted")
    await box.get_by_role("button", name="Cancel").click()
    await box.get_by_role("button", name="Discard").click()
    await page.get_by_role("button", name="Add backend").click()
    await expect(box.get_by_label("Name", exact=True)).to_have_value("")


async def test_tab_of_one_becomes_the_tab_of_another_who_signs_in_beside_it(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    page = await open_page("nobody")
    other = await page.context.new_page()
    await page.goto("/")
    await other.goto("/")
    await _sign_in(page, stack.token)
    await expect(page.get_by_text("admin · admin")).to_be_visible()
    await _sign_in(other, stack.viewer_token)
    await expect(page.get_by_text("viewer · viewer")).to_be_visible()
    await expect(page.get_by_role("button", name="Add backend")).to_have_count(0)


async def test_confirmation_is_typed_anew_each_time(stack: Stack, page: Page, named: Names) -> None:
    san = named("san")
    await stack.tell("occupy", targets=["iqn.2026-01.org.example:full"])
    config = {"portal": "10.0.0.9", "target_iqn": "iqn.2026-01.org.example:full", "vg_name": "vg_vms"}
    await stack.made("/v1/storage_backends", {"name": san, "kind": "iscsi_lvm", "config": config})
    await page.goto(f"/#/storage/{san}/initialize")
    box = dialog(page, f"Initialize {san}")
    # There is data on it: that is said, shown, and refused until it is asked for.
    await expect(box).to_contain_text("There is data on this device")
    await expect(box).to_contain_text("ext4 at 0x438")
    await box.get_by_label(f"Type {san} to confirm").fill(san)
    await box.get_by_role("button", name="Erase and initialize").click()
    await expect(box.get_by_role("alert").first).to_contain_text("foreign data")
    await page.evaluate("location.hash = '#/storage'")
    await expect(box).to_have_count(0)
    await row(page, san).get_by_role("button", name=f"Initialize {san}").click()
    await expect(box.get_by_label(f"Type {san} to confirm")).to_have_value("")
    await box.get_by_label(f"Type {san} to confirm").fill(san)
    await box.get_by_label("Erase what is there").check()
    await box.get_by_role("button", name="Erase and initialize").click()
    await expect(page.locator("#toasts")).to_contain_text(re.compile(f"{san} is ready"))
