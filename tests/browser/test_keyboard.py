"""The whole walk with the keyboard alone: in at the door, through the table, add, edit, matrix, remove, out."""

from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import Names, OpenPage
from tests.browser.estate import cell, dialog, row
from tests.browser.told import Stack

_MOST_STEPS = 80


async def _tab_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """The focus comes to the target by that key alone; wherever it is on the way, it can be seen."""
    assert await page.evaluate("document.activeElement !== document.body"), "the focus is nowhere"
    for _ in range(_MOST_STEPS):
        if await target.evaluate("element => element === document.activeElement"):
            return
        await page.keyboard.press(key)
        seen = await page.evaluate(
            """() => {
                const at = document.activeElement;
                if (at === document.body) return true;
                const style = getComputedStyle(at);
                return style.outlineStyle !== 'none' || style.boxShadow !== 'none' || at.matches('main, dialog');
            }"""
        )
        assert seen, await page.evaluate("document.activeElement.outerHTML")
    raise AssertionError(f"{_MOST_STEPS} times {key} did not lead to {target}")


async def test_whole_walk_with_the_keyboard_alone(open_page: OpenPage, stack: Stack, named: Names) -> None:
    tank, vault = named("tank"), named("vault")
    page = await open_page("nobody")
    press, write = page.keyboard.press, page.keyboard.type
    await page.goto("/")
    await expect(page.get_by_label("Access token")).to_be_focused()
    await page.keyboard.insert_text(stack.token)
    await press("Enter")
    await expect(page.get_by_role("heading", name="No storage yet")).to_be_visible()
    # The door is gone with what had the focus; a browser goes on at the beginning of the page.
    await press("Tab")
    await _tab_to(page, page.get_by_role("link", name="Skip to the content"), "Shift+Tab")
    await press("Enter")
    await expect(page.get_by_role("main")).to_be_focused()
    await _tab_to(page, page.get_by_role("button", name="Add backend"))
    await press("Enter")
    box = dialog(page, "Add backend")
    await expect(box.get_by_label("Kind")).to_be_focused()
    await write("NFS")
    await _tab_to(page, box.get_by_label("Name", exact=True))
    await write(tank)
    await _tab_to(page, box.get_by_label("Server", exact=True))
    await write("10.0.0.5")
    await _tab_to(page, box.get_by_role("button", name="Scan the server"))
    await press("Space")
    await expect(box.get_by_role("button", name="/tank/vms")).to_be_focused()
    await press("Enter")
    await expect(box.get_by_label("Export")).to_have_value("/tank/vms")
    await _tab_to(page, box.get_by_label("Every host, those to come too"))
    await press("ArrowRight")
    await _tab_to(page, box.get_by_label("hv2", exact=True))
    await press("Space")
    await _tab_to(page, box.get_by_label("Set as default"))
    await press("Space")
    await press("Enter")
    await expect(row(page, tank)).to_contain_text("Healthy")
    await expect(box).to_have_count(0)

    await _tab_to(page, row(page, tank).get_by_role("button", name=f"Edit {tank}", exact=True))
    await press("Enter")
    box = dialog(page, f"Edit {tank}")
    await expect(box.get_by_label("Name", exact=True)).to_be_focused()
    await press("Control+A")
    await write(vault)
    await press("Enter")
    await expect(box).to_have_count(0)
    # Back to where it was opened.
    await expect(row(page, vault).get_by_role("button", name=f"Edit {vault}", exact=True)).to_be_focused()

    await _tab_to(page, cell(page, vault, "hv1"))
    await press("ArrowRight")
    await press("Enter")
    await expect(dialog(page, f"{vault} on hv2")).to_be_visible()
    await press("Escape")
    await expect(cell(page, vault, "hv2")).to_be_focused()

    await stack.tell("sql", query="UPDATE backend SET is_default = false")
    await stack.api("PATCH", f"/v1/storage_backends/{vault}", {"labels": {"now": "removable"}})
    remove = row(page, vault).get_by_role("button", name=f"Remove {vault}", exact=True)
    await expect(remove).to_be_visible()
    await _tab_to(page, remove, "Shift+Tab")
    await press("Enter")
    box = dialog(page, f"Remove {vault}?")
    await expect(box).to_be_visible()
    await _tab_to(page, box.get_by_role("button", name="Remove backend"))
    await press("Enter")
    await expect(row(page, vault)).to_have_count(0)
    assert await page.evaluate("document.activeElement !== document.body")

    await _tab_to(page, page.get_by_role("button", name="Sign out"), "Shift+Tab")
    await press("Enter")
    await expect(page.get_by_label("Access token")).to_be_focused()


async def test_every_control_has_a_name_for_a_screen_reader(page: Page, stack: Stack, named: Names) -> None:
    await stack.made(
        "/v1/storage_backends",
        {"name": named("tank"), "kind": "nfs", "config": {"server": "10.0.0.5", "export": "/tank/vms"}},
    )
    await page.goto("/")
    await expect(page.get_by_role("table", name="Storage backends")).to_be_visible()
    snapshot = await page.locator("body").aria_snapshot()
    for control in ("button", "link", "combobox", "searchbox", "gridcell", "region", "table", "navigation", "grid"):
        nameless = [line for line in snapshot.splitlines() if line.strip().rstrip(":") == f"- {control}"]
        assert not nameless, nameless
