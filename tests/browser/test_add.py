"""Add backend: fields of the kind, scan, test, errors at their fields, rollback, what is kept of what was typed."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import Names, OpenPage
from tests.browser.estate import TARGET, add_nfs, dialog, row, spoil
from tests.browser.told import ROOT, Stack

_PASSWORD = "p4ssw0rd-never-shown"


async def _opened(page: Page) -> Locator:
    await page.goto("/#/storage/add")
    box = dialog(page, "Add backend")
    await expect(box).to_be_visible()
    return box


async def test_fields_follow_the_kind_basic_ones_first(page: Page) -> None:
    box = await _opened(page)
    kind = box.get_by_label("Kind")
    await expect(kind.locator("option")).to_have_text(["Local file", "NFS", "SMB / CIFS", "iSCSI + LVM"])
    await expect(box.get_by_label("Folder", exact=True)).to_be_visible()
    await kind.select_option("smb")
    await expect(box.get_by_label("Folder", exact=True)).to_have_count(0)
    await expect(box.get_by_label("Server", exact=True)).to_be_visible()
    await expect(box.get_by_label("Password")).to_have_attribute("type", "password")
    await expect(box.get_by_label("Password")).to_have_attribute("autocomplete", "new-password")
    advanced = box.get_by_label("Mount options")
    await expect(advanced).to_be_hidden()
    folded = await box.locator("details .field").count()
    await box.get_by_text(f"Show advanced ({folded})").click()
    await expect(advanced).to_be_visible()
    await box.get_by_label("Server", exact=True).fill("nas")
    await kind.select_option("nfs")
    # What two kinds have in common need not be typed twice.
    await expect(box.get_by_label("Server", exact=True)).to_have_value("nas")
    await expect(box.get_by_label("Export")).to_be_visible()
    await kind.select_option("iscsi_lvm")
    await expect(box.get_by_label("Portal")).to_be_visible()


async def test_backend_that_was_added_closes_the_dialog_and_a_toast_says_so(page: Page, named: Names) -> None:
    tank = named("tank")
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("nfs")
    await box.get_by_label("Name", exact=True).fill(tank)
    await box.get_by_label("Server", exact=True).fill("10.0.0.5")
    await box.get_by_label("Export").fill("/tank/vms")
    await box.get_by_label("Set as default").check()
    await box.get_by_label("Only these").check()
    await box.get_by_label("hv1").check()
    await box.get_by_label("hv3").check()
    await box.get_by_text(re.compile("Show advanced")).click()
    await box.get_by_label("Labels", exact=False).last.fill("tier=gold, rack=4")
    await box.get_by_role("button", name="Add backend").click()
    await expect(box).to_have_count(0)
    await expect(page.locator("#toasts")).to_contain_text("Storage backend added")
    await expect(row(page, tank)).to_contain_text("Healthy")
    await expect(row(page, tank)).to_contain_text("tier: gold")
    await expect(row(page, tank).locator(".c-default")).to_contain_text("Default")
    await expect(page.get_by_role("gridcell", name=f"{tank} on hv2: not for this host")).to_be_visible()
    await expect(page).to_have_url(re.compile("#/storage$"))


async def test_scan_offers_what_the_server_has_for_the_chosen_host(stack: Stack, page: Page) -> None:
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("nfs")
    await box.get_by_role("button", name="Scan the server").click()
    await expect(box.get_by_role("alert").first).to_contain_text("One field needs attention")
    await expect(box.get_by_label("Server", exact=True)).to_have_attribute("aria-invalid", "true")
    await box.get_by_label("Server", exact=True).fill("10.0.0.5")
    await box.get_by_label("Host to scan from").select_option("hv2")
    async with page.expect_request(lambda request: request.url.endswith("/v1/hosts/hv2/discover")):
        await box.get_by_role("button", name="Scan the server").click()
    await box.get_by_role("button", name="/tank/vms").click()
    await expect(box.get_by_label("Export")).to_have_value("/tank/vms")

    await box.get_by_label("Kind").select_option("smb")
    await box.get_by_label("Server", exact=True).fill("nas")
    await box.get_by_label("User name").fill("svc")
    await box.get_by_label("Password").fill("wrong")
    await box.get_by_role("button", name="Scan the server").click()
    await expect(box.get_by_role("alert").first).to_contain_text("auth failed")
    await box.get_by_label("Password").fill("right")
    await box.get_by_role("button", name="Scan the server").click()
    await box.get_by_role("button", name="vms", exact=True).click()
    await expect(box.get_by_label("Share")).to_have_value("vms")

    await box.get_by_label("Kind").select_option("iscsi_lvm")
    await box.get_by_label("Portal").fill("10.0.0.9:3260")
    await box.get_by_role("button", name="Scan the portal").click()
    await box.get_by_role("button", name=TARGET).click()
    await expect(box.get_by_label("Target", exact=True)).to_have_value(TARGET)


async def test_connection_is_tested_on_every_host_and_nothing_is_kept(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("nfs")
    await box.get_by_label("Name", exact=True).fill(tank)
    await box.get_by_label("Server", exact=True).fill("filer")
    await box.get_by_label("Export").fill("/tank/vms")
    await stack.tell("close", host="hv2", server="filer")
    await box.get_by_role("button", name="Test connection").click()
    results = box.get_by_role("region", name="Results of the test")
    await expect(results).to_contain_text("It does not work on 1 of 3 hosts")
    bad = results.get_by_role("listitem").filter(has_text="hv2")
    await expect(bad).to_contain_text("access denied by server while mounting")
    await expect(bad.locator(".remedy")).to_be_visible()
    await expect(results.get_by_role("listitem").filter(has_text="hv1")).to_contain_text("Healthy")
    await stack.tell("reopen", host="hv2", server="filer")
    await box.get_by_role("button", name="Test connection").click()
    await expect(results).to_contain_text("It works on all 3 hosts")
    assert (await stack.api("GET", f"/v1/storage_backends/{tank}")).status == 404


async def test_errors_of_validation_are_at_their_fields_in_words(page: Page, named: Names) -> None:
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("iscsi_lvm")
    await box.get_by_label("Name", exact=True).fill("-")
    await box.get_by_label("Portal").fill("10.0.0.9:xx")
    await box.get_by_label("Target", exact=True).fill("disk1")
    await box.get_by_text(re.compile("Show advanced")).click()
    await box.get_by_label("LUN").fill("many")
    await box.get_by_text(re.compile("Show advanced")).click()
    await box.get_by_role("button", name="Add backend").click()
    await expect(box.get_by_role("alert").first).to_contain_text("5 fields need attention")
    for label, words in (
        ("Name", "must have 1 to 63 letters"),
        ("Portal", "must be ADDRESS or ADDRESS:PORT"),
        ("Target", "must be an iSCSI name such as"),
        ("Volume group", "is required"),
        ("LUN optional", "must be a whole number from 0 to 16383"),
    ):
        field = box.get_by_label(label, exact=True)
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(re.compile(re.escape(words)))
    # The first wrong one has the focus, the fold of the last is open, and what was typed is there.
    await expect(box.get_by_label("Name", exact=True)).to_be_focused()
    await expect(box.get_by_label("LUN optional", exact=True)).to_be_visible()
    await expect(box.get_by_label("Target", exact=True)).to_have_value("disk1")
    assert "regex" not in await box.inner_text()


async def test_name_that_is_taken_says_so(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    box = await _opened(page)
    await box.get_by_label("Name", exact=True).fill(tank)
    await box.get_by_label("Folder", exact=True).fill("/var/lib/vms")
    await box.get_by_role("button", name="Add backend").click()
    await expect(box.get_by_role("alert").first).to_contain_text(f"a backend named {tank} exists already")


async def test_add_that_fails_its_probe_is_rolled_back_and_the_dialog_stays(
    stack: Stack, page: Page, named: Names
) -> None:
    office = named("office")
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("smb")
    await box.get_by_label("Name", exact=True).fill(office)
    await box.get_by_label("Server", exact=True).fill("nas")
    await box.get_by_label("Share").fill("vms")
    await box.get_by_label("User name").fill("svc")
    await box.get_by_label("Password").fill("wrong")
    await box.get_by_role("button", name="Add backend").click()
    alert = box.get_by_role("alert").first
    await expect(alert).to_contain_text("hv2")
    await expect(alert).to_contain_text("auth failed")
    await expect(alert).to_contain_text("Permission denied")
    await expect(alert.locator(".remedy").first).to_contain_text("Check the user name")
    await expect(alert.get_by_role("link", name="What was done and undone")).to_be_visible()
    assert (await stack.api("GET", f"/v1/storage_backends/{office}")).status == 404
    await expect(row(page, office)).to_have_count(0)
    for host in ("hv1", "hv2", "hv3"):
        assert await stack.tell("mounts", host=host) == {}
    await box.get_by_label("Password").fill("right")
    await box.get_by_role("button", name="Add backend").click()
    await expect(row(page, office)).to_contain_text("Healthy")


async def test_what_was_typed_outlives_esc_but_for_passwords(page: Page, named: Names) -> None:
    office = named("office")
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("smb")
    await box.get_by_label("Name", exact=True).fill(office)
    await box.get_by_label("Password").fill(_PASSWORD)
    await page.keyboard.press("Escape")
    await expect(box.get_by_text("Discard what you typed?")).to_be_visible()
    await box.get_by_role("button", name="Keep editing").click()
    await expect(box.get_by_label("Name", exact=True)).to_have_value(office)
    # No page can refuse an Esc for ever: the third in a row closes the dialog.
    for _ in range(4):
        await page.keyboard.press("Escape")
    await expect(box).to_have_count(0)
    await page.get_by_role("button", name="Add backend").click()
    await expect(box).to_contain_text("What you had typed is back, but for passwords")
    await expect(box.get_by_label("Kind")).to_have_value("smb")
    await expect(box.get_by_label("Name", exact=True)).to_have_value(office)
    await expect(box.get_by_label("Password")).to_have_value("")
    await box.get_by_role("button", name="Start over").click()
    await expect(box.get_by_label("Name", exact=True)).to_have_value("")
    await box.get_by_role("button", name="Cancel").click()
    await expect(box).to_have_count(0)


async def test_password_is_nowhere_in_the_page_or_the_browsers_storage(page: Page, named: Names) -> None:
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("smb")
    await box.get_by_label("Name", exact=True).fill(named("office"))
    await box.get_by_label("Password").fill(_PASSWORD)
    for what in ("curl", "CLI"):
        await box.get_by_role("button", name=f"Copy as {what}").click()
        text = await box.get_by_label(f"The request as {what}").input_value()
        assert "password" in text
        assert _PASSWORD not in text
    assert _PASSWORD not in await page.content()
    assert _PASSWORD not in await page.evaluate(
        "JSON.stringify([localStorage, sessionStorage, location.href, document.cookie])"
    )


@pytest.mark.parametrize("what", ["curl", "CLI"])
async def test_request_that_was_copied_does_the_same_in_a_shell(
    stack: Stack, page: Page, named: Names, tmp_path: Path, what: str
) -> None:
    tank = named("tank")
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("nfs")
    await box.get_by_label("Name", exact=True).fill(tank)
    await box.get_by_label("Server", exact=True).fill("10.0.0.5")
    await box.get_by_label("Export").fill("/tank/o'brien")
    await box.get_by_role("button", name=f"Copy as {what}").click()
    area = box.get_by_label(f"The request as {what}")
    await expect(area).to_be_visible()
    command = await area.input_value()
    auth = tmp_path / "auth"
    auth.write_text(f"Authorization: Bearer {stack.token}\n")
    env = {
        "STOWAGE_AUTH": str(auth),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STOWAGE_TOKEN": stack.token,
        "PYTHONPATH": str(ROOT),
    }
    shell = await asyncio.create_subprocess_exec("bash", "-c", command, env=env, stdout=PIPE, stderr=PIPE)
    answer, complaint = await asyncio.wait_for(shell.communicate(), 60)
    assert shell.returncode == 0, complaint
    assert json.loads(answer)["config"]["export"] == "/tank/o'brien"
    await expect(row(page, tank)).to_have_count(1)


async def test_add_says_what_goes_on_while_it_works(stack: Stack, page: Page, named: Names) -> None:
    box = await _opened(page)
    await box.get_by_label("Name", exact=True).fill(named("tank"))
    await box.get_by_label("Folder", exact=True).fill("/var/lib/vms")
    held: list[object] = []
    await page.route("**/v1/storage_backends", lambda route: held.append(route))
    await box.get_by_role("button", name="Add backend").click()
    await expect(box.get_by_text("Every chosen host mounts and proves it…")).to_be_visible()
    await expect(box.get_by_role("button", name="Add backend")).to_be_disabled()
    await page.keyboard.press("Escape")
    await expect(box).to_be_visible()
    assert len(held) == 1
    await page.unroute_all(behavior="ignoreErrors")


async def test_add_in_each_of_its_states_has_nothing_for_axe_to_find(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    page = await open_page(bypass_csp=True)
    box = await _opened(page)
    await box.get_by_label("Kind").select_option("smb")
    await box.get_by_text(re.compile("Show advanced")).click()
    await box.get_by_label("Only these").check()
    await check_axe(page)
    await box.get_by_label("Name", exact=True).fill(named("office"))
    await box.get_by_label("Server", exact=True).fill("nas")
    await box.get_by_role("button", name="Add backend").click()
    await expect(box.get_by_role("alert").first).to_contain_text("attention")
    await box.get_by_role("button", name="Copy as curl").click()
    await page.keyboard.press("Escape")
    await expect(box.get_by_text("Discard what you typed?")).to_be_visible()
    await check_axe(page)
    await box.get_by_role("button", name="Keep editing").click()
    await box.get_by_label("Share").fill("vms")
    await box.get_by_label("hv2").check()
    await spoil(stack, "hv2", "io_error")
    await stack.tell("fail", host="hv2", verb="trial", code="io_error")
    await box.get_by_role("button", name="Test connection").click()
    await expect(box.get_by_role("region", name="Results of the test")).to_contain_text("It does not work")
    await check_axe(page)
