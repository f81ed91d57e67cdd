"""The page Storage: its tiles, its table, what is live in it."""

import datetime as dt
import re

from playwright.async_api import Page, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import Names, OpenPage
from tests.browser.estate import add_blank, add_nfs, add_smb, backends, cell, dialog, row, spoil
from tests.browser.told import Stack


async def test_tiles_tell_backends_attention_room_and_volumes(stack: Stack, page: Page, named: Names) -> None:
    tank, office = named("tank"), named("office")
    await add_nfs(stack, tank)
    await add_smb(stack, office)
    await spoil(stack, "hv2", "io_error")
    await stack.made("/v1/volumes", {"name": named("web"), "size_bytes": 2**20, "backend": tank})
    await page.goto("/")
    await expect(page.get_by_role("region", name="Backends", exact=True)).to_contain_text("2")
    await expect(page.get_by_role("region", name="Need attention")).to_contain_text("2 degraded")
    await expect(page.get_by_role("region", name="Used")).to_contain_text("of 2.00 TiB")
    await expect(page.get_by_role("region", name="Live volumes")).to_contain_text("on 3 hosts, 3 online")
    await expect(page.get_by_role("region", name="Live volumes").locator(".figure")).to_have_text("1")


async def test_row_tells_status_name_kind_capabilities_capacity_and_default(
    stack: Stack, page: Page, named: Names
) -> None:
    tank = named("tank")
    await stack.tell("used_bytes", used_bytes=3 * 2**38)
    await add_nfs(stack, tank, is_default=True, labels={"tier": "gold"})
    await page.goto("/")
    mine = row(page, tank)
    await expect(mine.get_by_role("cell").first).to_have_text("Healthy")
    await expect(mine).to_contain_text("NFS")
    await expect(mine).to_contain_text("external")
    await expect(mine).to_contain_text("clone-from-image")
    await expect(mine).to_contain_text("snapshot")
    await expect(mine).to_contain_text("768 GiB / 1.00 TiB (75 %)")
    await expect(mine).to_contain_text("tier: gold")
    await expect(mine.get_by_role("cell", name="Default", exact=True)).to_be_visible()


async def test_status_is_a_word_an_icon_and_a_reason(stack: Stack, page: Page, named: Names) -> None:
    healthy, degraded, blank = named("fine"), named("half"), named("blank")
    await add_nfs(stack, healthy, hosts={"names": ["hv1"]})
    await add_nfs(stack, degraded, hosts={"names": ["hv1", "hv2"]})
    refused, silent = named("refused"), named("silent")
    await add_nfs(stack, refused, hosts={"names": ["hv2"]}, config={"server": "a", "export": "/a"})
    await add_nfs(stack, silent, hosts={"names": ["hv3"]}, config={"server": "b", "export": "/b"})
    await add_blank(stack, blank)
    await page.goto("/")
    await spoil(stack, "hv2", "export_not_found")
    await stack.tell("stop_agent", host="hv3")
    for name, word, tone in (
        (healthy, "Healthy", "good"),
        (degraded, "Degraded", "fair"),
        (refused, "Misconfigured", "fair"),
        (silent, "Unknown", "none"),
        (blank, "Needs initialization", "todo"),
    ):
        badge = row(page, name).locator(".c-status .badge")
        await expect(badge).to_have_text(word)
        await expect(badge).to_have_class(f"badge {tone}")
        await expect(badge.locator("svg")).to_have_count(1)
    await expect(row(page, degraded).locator(".reason")).to_contain_text("hv2: scripted failure of")
    await spoil(stack, "hv2", "server_unreachable")
    await expect(row(page, refused).locator(".c-status .badge")).to_have_text("Unreachable")
    await expect(row(page, refused).locator(".c-status .badge")).to_have_class("badge bad")


async def test_trend_of_the_day_and_days_until_full_are_shown(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await stack.tell("used_bytes", used_bytes=2**39)
    made = await add_nfs(stack, tank)
    hours = 48
    now = dt.datetime.now(dt.UTC)
    step = 2**39 // (10 * 24)  # so that what is left is full in ten days
    for hour in range(1, hours):
        slot = (now - dt.timedelta(hours=hour)).replace(minute=0, second=0, microsecond=0)
        used = 2**39 - hour * step
        await stack.tell(
            "sql",
            query="INSERT INTO capacity_sample (backend_id, slot, taken_at, total_bytes, used_bytes, available_bytes)"
            " VALUES ($1::text::uuid, $2::text::timestamptz, $2::text::timestamptz, $3::bigint, $4::bigint, $5::bigint)"
            " ON CONFLICT DO NOTHING",
            args=[made["id"], slot.isoformat(), 2**40, used, 2**40 - used],
        )
    await page.goto("/")
    await expect(row(page, tank)).to_contain_text("full in about 10 days")
    await expect(row(page, tank).get_by_role("img", name="Used in the last 24 hours")).to_be_visible()


async def test_search_filter_and_sort_are_in_the_address(stack: Stack, page: Page, named: Names) -> None:
    one, two = named("aaa"), named("bbb")
    await add_nfs(stack, one, labels={"tier": "gold"})
    await add_smb(stack, two)
    await page.goto("/")
    await expect(row(page, two)).to_be_visible()
    await page.keyboard.press("/")
    await expect(page.get_by_role("searchbox")).to_be_focused()
    await page.keyboard.type("gold")
    await expect(row(page, two)).to_have_count(0)
    await expect(row(page, one)).to_be_visible()
    await expect(page).to_have_url(re.compile("q=gold"))
    await page.reload()
    await expect(page.get_by_text("1 of 2 shown")).to_be_visible()
    await page.get_by_role("searchbox").fill("")
    await page.get_by_label("Kind").select_option("smb")
    await expect(row(page, one)).to_have_count(0)
    await page.get_by_label("Status").select_option("unreachable")
    await expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
    await page.get_by_role("button", name="Clear them").click()
    await page.get_by_role("button", name="Name").click()
    await expect(page.get_by_role("columnheader", name="Name")).to_have_attribute("aria-sort", "ascending")
    names = backends(page).locator("tbody .name")
    await expect(names).to_have_text([one, two])
    await page.get_by_role("button", name="Name").click()
    await expect(names).to_have_text([two, one])
    await expect(page).to_have_url(re.compile("sort=-name"))
    await page.reload()
    await expect(names).to_have_text([two, one])


async def test_deep_link_opens_the_backend_and_back_closes_it(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await page.goto("/#/storage")
    await expect(row(page, tank)).to_be_visible()
    await row(page, tank).get_by_role("link", name=tank).click()
    shown = dialog(page, tank)
    await expect(shown).to_contain_text("/tank/vms")
    await expect(shown.get_by_role("link", name="hv3")).to_be_visible()
    await page.go_back()
    await expect(shown).to_have_count(0)
    await page.goto(f"/#/storage/{tank}")
    await expect(dialog(page, tank)).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(dialog(page, tank)).to_have_count(0)
    await expect(page).to_have_url(re.compile("#/storage$"))


async def test_refresh_probes_now_and_reads_capacity_again(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await page.goto("/")
    await expect(row(page, tank)).to_contain_text("1.00 GiB / 1.00 TiB")
    await stack.tell("used_bytes", used_bytes=2**39)
    async with page.expect_response(lambda answer: answer.url.endswith("/v1/storage_backends/probe")) as probed:
        await page.get_by_role("button", name="Refresh").click()
    assert (await probed.value).status == 200
    await expect(row(page, tank)).to_contain_text("512 GiB / 1.00 TiB (50 %)")
    await expect(page.locator("#toasts")).to_contain_text("Every backend was probed")


async def test_action_that_cannot_be_done_says_why(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank, is_default=True)
    await page.goto("/")
    remove = row(page, tank).get_by_role(
        "button", name=f"Remove {tank}: it is the default; make another backend the default first"
    )
    await expect(remove).to_have_attribute("aria-disabled", "true")
    await remove.click(force=True)
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(row(page, tank).get_by_role("button", name=f"Edit {tank}", exact=True)).to_be_enabled()
    await expect(row(page, tank).get_by_role("button", name="Initialize")).to_have_count(0)


async def test_page_without_backends_says_what_to_do(page: Page) -> None:
    await page.goto("/")
    await expect(page.get_by_role("heading", name="No storage yet")).to_be_visible()
    await page.get_by_role("button", name="Add the first backend").click()
    await expect(dialog(page, "Add backend")).to_be_visible()


async def test_change_by_another_client_is_seen_without_reload(stack: Stack, page: Page, named: Names) -> None:
    tank, renamed = named("tank"), named("vault")
    await page.goto("/")
    await expect(page.get_by_role("heading", name="No storage yet")).to_be_visible()
    await page.evaluate("window.untouched = true")
    await add_nfs(stack, tank)
    await expect(row(page, tank)).to_contain_text("Healthy")
    await stack.api("PATCH", f"/v1/storage_backends/{tank}", {"name": renamed, "labels": {"tier": "silver"}})
    await expect(row(page, renamed)).to_contain_text("tier: silver")
    await expect(page.get_by_role("region", name="Activity")).to_contain_text(renamed)
    await stack.api("DELETE", f"/v1/storage_backends/{renamed}")
    await expect(row(page, renamed)).to_have_count(0)
    assert await page.evaluate("window.untouched")


async def test_focus_stays_where_it_is_while_rows_change(stack: Stack, page: Page, named: Names) -> None:
    one, two = named("aaa"), named("bbb")
    await add_nfs(stack, two)
    await page.goto("/#/storage?sort=name")
    edit = row(page, two).get_by_role("button", name=f"Edit {two}", exact=True)
    await edit.focus()
    await add_nfs(stack, one, config={"server": "b", "export": "/b"})  # comes before it
    await spoil(stack, "hv1", "io_error")
    await expect(row(page, two)).to_contain_text("Degraded")
    await expect(backends(page).locator("tbody .name")).to_have_text([one, two])
    await expect(edit).to_be_focused()


async def test_update_of_one_cell_touches_one_cell(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    made = await add_nfs(stack, tank)
    await add_smb(stack, named("office"))
    await page.goto("/")
    await expect(cell(page, tank, "hv2")).to_be_visible()
    await page.evaluate(
        """() => {
            window.touched = new Set();
            new MutationObserver((all) => all.forEach((each) => {
                const at = each.target instanceof Element ? each.target : each.target.parentElement;
                window.touched.add(at.closest("[data-key]")?.dataset.key ?? at.tagName);
            })).observe(document.querySelector("[role=grid]"), {subtree: true, childList: true, characterData: true, attributes: true});
        }"""
    )
    await stack.tell("take", host="hv2", backend_id=made["id"], latency_ms=41.0)
    await expect(cell(page, tank, "hv2")).to_have_text("41 ms")
    assert len(await page.evaluate("[...window.touched]")) == 1


async def test_viewer_sees_everything_and_no_action(stack: Stack, viewer_page: Page, named: Names) -> None:
    tank, blank = named("tank"), named("blank")
    await add_nfs(stack, tank)
    await add_blank(stack, blank)
    await viewer_page.goto("/")
    await expect(row(viewer_page, tank)).to_contain_text("Healthy")
    await expect(row(viewer_page, blank)).to_contain_text("Needs initialization")
    for name in ("Add backend", "Refresh", "Edit", "Remove", "Initialize"):
        await expect(viewer_page.get_by_role("button", name=name)).to_have_count(0)
    await cell(viewer_page, tank, "hv1").click()
    await expect(dialog(viewer_page, f"{tank} on hv1")).to_contain_text("Last probes")
    await expect(viewer_page.get_by_role("button", name="Probe now")).to_have_count(0)


async def test_storage_in_every_status_has_nothing_for_axe_to_find(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    page = await open_page(bypass_csp=True)
    await page.goto("/")
    await expect(page.get_by_role("heading", name="No storage yet")).to_be_visible()
    await check_axe(page)
    await add_nfs(stack, named("tank"), is_default=True, labels={"tier": "gold"})
    await add_nfs(stack, named("half"), hosts={"names": ["hv2"]}, config={"server": "b", "export": "/b"})
    await add_nfs(stack, named("silent"), hosts={"names": ["hv3"]}, config={"server": "c", "export": "/c"})
    await add_blank(stack, named("blank"))
    await spoil(stack, "hv2", "server_unreachable")
    await stack.tell("stop_agent", host="hv3")
    for word in ("Unknown", "Unreachable", "Needs initialization", "Degraded"):
        await expect(backends(page).get_by_text(word, exact=True)).to_be_visible()
    await check_axe(page)
