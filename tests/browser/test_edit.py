"""Edit: what is fixed, what is mounted anew, passwords, the default, versions that are no more."""

import re

from playwright.async_api import Locator, Page, Route, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import Names, OpenPage
from tests.browser.estate import add_nfs, add_smb, dialog, row
from tests.browser.told import Stack


async def _opened(page: Page, name: str) -> Locator:
    await page.goto(f"/#/storage/{name}/edit")
    box = dialog(page, f"Edit {name}")
    await expect(box).to_be_visible()
    return box


async def _save(box: Locator) -> None:
    await box.get_by_role("button", name="Save changes").click()


async def test_kind_and_fixed_fields_are_text_and_a_remount_is_announced(
    stack: Stack, page: Page, named: Names
) -> None:
    office = named("office")
    await add_smb(stack, office)
    box = await _opened(page, office)
    await expect(box).to_contain_text("SMB / CIFS · version 1")
    await expect(box.get_by_label("Kind")).to_have_count(0)
    await expect(box.get_by_label("Share")).to_have_count(0)
    fixed = box.locator(".field").filter(has_text="Share")
    await expect(fixed.locator(".fixed")).to_have_text("vms")
    await expect(fixed).to_contain_text("Cannot be changed")
    await expect(box.get_by_label("Server", exact=True)).to_have_accessible_description(re.compile("mounted anew"))


async def test_change_is_saved_and_only_what_was_changed_is_sent(stack: Stack, page: Page, named: Names) -> None:
    tank, vault = named("tank"), named("vault")
    await add_nfs(stack, tank, labels={"tier": "gold"})
    box = await _opened(page, tank)
    await box.get_by_label("Name", exact=True).fill(vault)
    async with page.expect_request(lambda request: request.method == "PATCH") as sent:
        await _save(box)
    assert (await sent.value).post_data_json == {"name": vault}
    await expect(page.locator("#toasts")).to_contain_text("Changes saved")
    await expect(row(page, vault)).to_contain_text("tier: gold")


async def test_config_that_hosts_refuse_is_not_taken_over(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await stack.tell("close", host="hv3", server="elsewhere")
    box = await _opened(page, tank)
    await box.get_by_label("Server", exact=True).fill("elsewhere")
    await _save(box)
    await expect(box.get_by_role("alert").first).to_contain_text("hv3")
    await expect(box.get_by_role("alert").first).to_contain_text("access denied")
    assert (await stack.api("GET", f"/v1/storage_backends/{tank}")).body["config"]["server"] == "10.0.0.5"
    await expect(box.get_by_label("Server", exact=True)).to_have_value("elsewhere")


async def test_password_is_rotated_and_a_blank_one_keeps(stack: Stack, page: Page, named: Names) -> None:
    office = named("office")
    made = await add_smb(stack, office)
    box = await _opened(page, office)
    rotate = box.get_by_role("group", name="Rotate password")
    password = rotate.get_by_label("Password")
    await expect(password).to_have_attribute("placeholder", "Leave blank to keep the current one")
    await expect(password).to_have_value("")
    await box.get_by_label("Set as default").check()
    await _save(box)
    await expect(page.locator("#toasts")).to_contain_text("Changes saved")
    assert (await stack.tell("mounts", host="hv2"))[made["id"]]["password"] == "right"

    await stack.tell("passwords", accepted=["right", "fresh"])
    box = await _opened(page, office)
    await box.get_by_role("group", name="Rotate password").get_by_label("Password").fill("fresh")
    await _save(box)
    await expect(page.locator("#toasts")).to_contain_text("Password rotated")
    for host in ("hv1", "hv2", "hv3"):
        assert (await stack.tell("mounts", host=host))[made["id"]]["password"] == "fresh"


async def test_wrong_new_password_is_refused_and_the_old_one_stays(stack: Stack, page: Page, named: Names) -> None:
    office = named("office")
    made = await add_smb(stack, office)
    box = await _opened(page, office)
    await box.get_by_role("group", name="Rotate password").get_by_label("Password").fill("wrong")
    await _save(box)
    await expect(box.get_by_role("alert").first).to_contain_text("auth failed")
    await page.keyboard.press("Escape")
    await box.get_by_role("button", name="Discard").click()
    await expect(row(page, office)).to_contain_text("Healthy")
    assert (await stack.tell("mounts", host="hv1"))[made["id"]]["password"] == "right"


async def test_default_is_switched_and_the_previous_one_is_cleared(stack: Stack, page: Page, named: Names) -> None:
    tank, office = named("tank"), named("office")
    await add_nfs(stack, tank, is_default=True)
    await add_smb(stack, office)
    box = await _opened(page, office)
    await box.get_by_label("Set as default").check()
    await _save(box)
    await expect(row(page, office).locator(".c-default")).to_contain_text("Default")
    await expect(row(page, tank).locator(".c-default")).to_have_text("—")
    await expect(row(page, tank).get_by_role("button", name=f"Remove {tank}", exact=True)).to_be_enabled()
    box = await _opened(page, office)
    await expect(box.get_by_label("Set as default")).to_be_disabled()
    await expect(box).to_contain_text("set another backend as default")


async def test_stale_version_offers_the_newest_and_keeps_what_was_typed(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    made = await add_nfs(stack, tank, labels={"tier": "gold"})
    box = await _opened(page, tank)
    await box.get_by_label("Set as default").check()
    # The stream is late: the page learns of the other change from the refusal.
    await page.route("**/v1/storage_backends/*", _as_version_one)
    await stack.api("PATCH", f"/v1/storage_backends/{made['id']}", {"labels": {"tier": "silver"}})
    await _save(box)
    await expect(box.get_by_role("alert").first).to_contain_text("is at version 2, not 1")
    await page.unroute_all(behavior="wait")
    await box.get_by_role("button", name="Load the newest version").first.click()
    await expect(box).to_contain_text("version 2")
    await expect(box.get_by_label("Set as default")).to_be_checked()
    await _save(box)
    await expect(row(page, tank).locator(".c-default")).to_contain_text("Default")
    assert (await stack.api("GET", f"/v1/storage_backends/{tank}")).body["labels"] == {"tier": "silver"}


async def _as_version_one(route: Route) -> None:
    await route.continue_(headers={**route.request.headers, "if-match": '"1"'})


async def test_change_by_somebody_else_is_told_while_the_dialog_is_open(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    box = await _opened(page, tank)
    await stack.api("PATCH", f"/v1/storage_backends/{tank}", {"labels": {"tier": "silver"}})
    await expect(box).to_contain_text("Somebody changed it meanwhile; it is at version 2")
    await box.get_by_role("button", name="Load the newest version").click()
    await expect(box).to_contain_text("NFS · version 2")


async def test_drain_is_shown_in_the_row(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    box = await _opened(page, tank)
    await box.get_by_text(re.compile("Show advanced")).click()
    await box.get_by_label("Drain").check()
    await _save(box)
    await expect(row(page, tank)).to_contain_text("draining")


async def test_edit_has_nothing_for_axe_to_find(stack: Stack, open_page: OpenPage, named: Names) -> None:
    office = named("office")
    await add_smb(stack, office, is_default=True)
    page = await open_page(bypass_csp=True)
    box = await _opened(page, office)
    await box.get_by_text(re.compile("Show advanced")).click()
    await stack.api("PATCH", f"/v1/storage_backends/{office}", {"labels": {"tier": "silver"}})
    await expect(box).to_contain_text("Somebody changed it")
    await box.get_by_role("group", name="Rotate password").get_by_label("Password").fill("wrong")
    await check_axe(page)
