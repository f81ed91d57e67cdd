"""The page Hosts: who has joined and how each stands, how one joins, how one is put out."""

import asyncio
import re
from pathlib import Path

from playwright.async_api import Locator, Page, Route, expect

from agent.app import facts_of
from agent.config import StateDir
from agent.join import Invitation, join
from tests.browser.axe import check_axe
from tests.browser.conftest import PHONE, Names, OpenPage
from tests.browser.estate import add_nfs, dialog, mend, spoil
from tests.browser.told import Stack


def hosts(page: Page) -> Locator:
    return page.get_by_role("table", name="Hosts")


def host(page: Page, name: str) -> Locator:
    """The host's row."""
    return hosts(page).get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))


async def _make_token(page: Page, number: str, unit: str) -> None:
    await page.get_by_label("Valid for").fill(number)
    await page.get_by_label("Unit").select_option(unit)
    await page.get_by_role("button", name="Make join token").click()


async def test_host_row_tells_state_kinds_version_and_healthy_backends(stack: Stack, page: Page, named: Names) -> None:
    await add_nfs(stack, named("tank"), hosts={"names": ["hv1", "hv2"]})
    await spoil(stack, "hv2", "io_error")
    await page.goto("/#/hosts")
    mine = host(page, "hv1")
    await expect(mine.locator(".c-status")).to_have_text("Online")
    await expect(mine.locator(".c-status svg")).to_have_count(1)
    await expect(mine.locator(".c-kinds")).to_contain_text("SMB / CIFS")
    await expect(mine.locator(".c-version")).to_have_text(re.compile(r"^\d"))
    await expect(mine.locator(".c-seen")).to_have_text("now")
    await expect(mine.locator(".c-backends")).to_have_text("1 of 1")
    await expect(host(page, "hv2").locator(".c-backends")).to_have_text("0 of 1")
    await expect(host(page, "hv3").locator(".c-backends")).to_have_text("—")


async def test_host_that_falls_silent_is_offline_until_it_is_back(stack: Stack, page: Page) -> None:
    await page.goto("/#/hosts")
    await expect(host(page, "hv3").locator(".c-status")).to_have_text("Online")
    await stack.tell("stop_agent", host="hv3")
    await expect(host(page, "hv3").locator(".c-status")).to_have_text("Offline")
    await expect(host(page, "hv3").locator(".c-seen")).to_have_text(re.compile("ago$|^now$"))
    await page.get_by_label("State").select_option("offline")
    await expect(hosts(page).get_by_role("rowheader")).to_have_text(["hv3"])
    await stack.tell("start_agent", host="hv3")
    await expect(page.get_by_role("heading", name="No host fits the filters")).to_be_visible()
    await page.get_by_role("button", name="Clear the filters").click()
    await expect(host(page, "hv3").locator(".c-status")).to_have_text("Online")


async def test_host_dialog_tells_each_backends_fault_and_remedy_live(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank, hosts={"names": ["hv2"]})
    await spoil(stack, "hv2", "io_error")
    await page.goto("/#/hosts")
    await host(page, "hv2").get_by_role("link", name="hv2").click()
    seen = dialog(page, "hv2").get_by_role("list", name="Backends as this host sees them")
    await expect(seen).to_contain_text("io error")
    await expect(seen).to_contain_text("Check the storage and this host's kernel log")
    await expect(seen.get_by_role("link", name=tank)).to_have_attribute("href", f"#/storage/{tank}/hv2")
    await mend(stack, "hv2")
    await expect(seen).to_contain_text("Healthy")
    await expect(dialog(page, "hv2")).to_contain_text("all 1 healthy")
    await page.keyboard.press("Escape")
    await expect(page).to_have_url(re.compile(r"#/hosts$"))


async def test_agent_that_is_older_than_the_newest_is_marked(page: Page) -> None:
    async def with_a_newer_one(route: Route) -> None:
        answer = await route.fetch()
        body = await answer.json()
        body["items"][0]["agent_version"] = "99.10.0"
        await route.fulfill(response=answer, json=body)

    await page.route("**/v1/hosts?*", with_a_newer_one)
    await page.goto("/#/hosts")
    await expect(host(page, "hv2").locator(".c-version .badge")).to_have_text("older")
    await expect(host(page, "hv2").locator(".c-version .badge")).to_have_attribute("title", re.compile("99.10.0"))
    await expect(host(page, "hv1").locator(".c-version .badge")).to_have_count(0)


async def test_add_host_gives_a_command_that_a_host_joins_by_and_tells_its_name(
    stack: Stack, page: Page, named: Names, tmp_path: Path
) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.goto("/#/hosts")
    await page.get_by_role("button", name="Add host").click()
    await _make_token(page, "10", "minutes")
    shown = dialog(page, "Join command")
    command = await shown.get_by_label("Join command").input_value()
    assert re.fullmatch(r"stowage-agent join http://\S+ stj1\.\S+", command)
    await shown.get_by_role("button", name="Copy command").click()
    await expect(shown.get_by_text("Copied.")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == command
    await expect(shown.get_by_role("timer")).to_have_text(re.compile("another 9 min"))
    await expect(shown).to_contain_text("shown once, and is for one host")
    await expect(shown).to_contain_text("Waiting for a host to join")
    name = named("hv")
    invitation = Invitation.read(command.split()[2], command.split()[3])
    state = StateDir(tmp_path / name)
    await asyncio.to_thread(join, state, invitation, name=name, facts=facts_of({}), say=lambda _: None)
    await expect(shown).to_contain_text(f"{name} has joined")
    await shown.get_by_role("button", name="Done").click()
    await expect(host(page, name)).to_be_visible()


async def test_add_host_with_a_time_that_is_none_is_told_at_the_field(page: Page) -> None:
    await page.goto("/#/hosts/add")
    await _make_token(page, "25", "hours")
    field = page.get_by_label("Valid for")
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_be_focused()
    await expect(dialog(page, "Add host")).to_contain_text("86400")
    await expect(field).to_have_value("25")


async def test_join_token_that_expires_unused_offers_another(page: Page) -> None:
    await page.goto("/#/hosts/add")
    await _make_token(page, "0.02", "minutes")
    await expect(dialog(page, "Join command")).to_contain_text("No host has joined in time")
    await page.get_by_role("button", name="Make another token").click()
    await expect(dialog(page, "Add host")).to_be_visible()


async def test_host_that_is_revoked_goes_once_its_name_is_typed(stack: Stack, page: Page, named: Names) -> None:
    tank, web, name = named("tank"), named("web"), named("hv")
    await stack.tell("join", host=name)
    await add_nfs(stack, tank)
    await stack.made("/v1/volumes", {"name": web, "size_bytes": 2**20, "backend": tank})
    await stack.made(f"/v1/volumes/{web}/attach", {"host": name, "mode": "rw"})
    await page.goto("/#/hosts")
    await host(page, name).get_by_role("button", name=f"Revoke {name}").click()
    box = dialog(page, f"Revoke {name}?")
    await expect(box.get_by_role("table", name="Attachments of this host")).to_contain_text(web)
    await expect(box).to_contain_text("stays mounted there")
    await box.get_by_label(f"Type {name} to confirm").fill("hv1")
    await box.get_by_role("button", name="Revoke host").click()
    await expect(box).to_contain_text(f"must be {name}")
    assert (await stack.api("GET", f"/v1/hosts/{name}")).body["state"] == "online"
    await box.get_by_label(f"Type {name} to confirm").fill(name)
    await box.get_by_role("button", name="Revoke host").click()
    await expect(page.get_by_role("region", name="Notices")).to_contain_text(f"{name} was revoked")
    await expect(host(page, name)).to_have_count(0)
    await page.get_by_label("State").select_option("revoked")
    await expect(host(page, name).locator(".c-status")).to_have_text("Revoked")
    assert (await stack.api("GET", f"/v1/volumes/{web}")).body["attachments"] == []


async def test_search_and_sorting_of_hosts_stand_in_the_address(page: Page) -> None:
    await page.goto("/#/hosts")
    await expect(host(page, "hv1")).to_be_visible()
    await page.get_by_role("button", name="Name", exact=True).click()
    await expect(hosts(page).get_by_role("rowheader")).to_have_text(["hv3", "hv2", "hv1"])
    await page.keyboard.press("/")
    await expect(page.get_by_label("Search hosts")).to_be_focused()
    await page.keyboard.type("hv2")
    await expect(hosts(page).get_by_role("rowheader")).to_have_text(["hv2"])
    await expect(page).to_have_url(re.compile("sort=-name&q=hv2"))
    await page.reload()
    await expect(page.get_by_label("Search hosts")).to_have_value("hv2")
    await expect(hosts(page).get_by_role("rowheader")).to_have_text(["hv2"])


async def test_viewer_of_hosts_is_offered_nothing_to_do(viewer_page: Page) -> None:
    await viewer_page.goto("/#/hosts")
    await expect(host(viewer_page, "hv1")).to_be_visible()
    await expect(viewer_page.get_by_role("button", name="Add host")).to_have_count(0)
    await expect(viewer_page.get_by_role("button", name=re.compile("Revoke"))).to_have_count(0)
    await viewer_page.goto("/#/hosts/add")
    await expect(viewer_page.get_by_role("region", name="Notices")).to_contain_text("Only an admin can add a host")
    await expect(viewer_page.get_by_role("dialog")).to_have_count(0)


async def test_fleet_without_hosts_says_how_the_first_one_joins(axe_page: Page) -> None:
    await axe_page.route("**/v1/hosts?*", lambda route: route.fulfill(json={"items": [], "next_cursor": None}))
    await axe_page.goto("/#/hosts")
    await expect(axe_page.get_by_role("heading", name="No host has joined yet")).to_be_visible()
    await check_axe(axe_page)
    await axe_page.get_by_role("button", name="Add the first host").click()
    await expect(dialog(axe_page, "Add host")).to_be_visible()
    await check_axe(axe_page)


async def test_hosts_and_their_dialogs_have_nothing_for_axe_to_find(stack: Stack, axe_page: Page, named: Names) -> None:
    await add_nfs(stack, named("tank"), hosts={"names": ["hv2"]})
    await spoil(stack, "hv2", "io_error")
    await axe_page.goto("/#/hosts")
    await expect(host(axe_page, "hv2").locator(".c-backends")).to_have_text("0 of 1")
    await check_axe(axe_page)
    await axe_page.goto("/#/hosts/hv2")
    await expect(dialog(axe_page, "hv2")).to_contain_text("Check the storage")
    await check_axe(axe_page)
    await axe_page.goto("/#/hosts/hv2/revoke")
    await axe_page.get_by_role("button", name="Revoke host").click()
    await expect(dialog(axe_page, "Revoke hv2?")).to_contain_text("must be hv2")
    await check_axe(axe_page)
    await axe_page.goto("/#/hosts/add")
    await axe_page.get_by_role("button", name="Make join token").click()
    await expect(dialog(axe_page, "Join command")).to_be_visible()
    await check_axe(axe_page)


async def test_hosts_on_a_phone_are_cards_that_fit(open_page: OpenPage) -> None:
    page = await open_page(viewport=PHONE)
    await page.goto("/#/hosts")
    await expect(host(page, "hv1").get_by_role("button", name="Revoke hv1")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
