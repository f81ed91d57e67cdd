"""Health by host: the matrix."""

from playwright.async_api import Page, expect

from tests.browser.conftest import Names
from tests.browser.estate import add_nfs, cell, dialog, mend, spoil
from tests.browser.told import Stack


async def test_cell_opens_the_last_probes_of_the_host_with_fault_and_remedy(
    stack: Stack, page: Page, named: Names
) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await page.goto("/")
    await expect(cell(page, tank, "hv2")).to_have_accessible_name(f"{tank} on hv2: Healthy, 1 ms")
    await spoil(stack, "hv2", "read_only")
    await expect(cell(page, tank, "hv2")).to_have_text("Misconfigured")
    await expect(cell(page, tank, "hv1")).to_have_text("1 ms")
    await cell(page, tank, "hv2").click()
    opened = dialog(page, f"{tank} on hv2")
    await expect(opened).to_contain_text("scripted failure of")
    await expect(opened.locator(".remedy").first).to_be_visible()
    probes = opened.get_by_role("listitem")
    await expect(probes.first).to_contain_text("read only")
    await mend(stack, "hv2")
    await opened.get_by_role("button", name="Probe now").click()
    await expect(probes.first).to_contain_text("Healthy")
    await expect(probes.filter(has_text="read only").first).to_be_visible()
    await opened.get_by_role("button", name="Close").last.click()
    await expect(cell(page, tank, "hv2")).to_have_text("1 ms")


async def test_silent_host_is_unknown(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await page.goto("/")
    await expect(cell(page, tank, "hv3")).to_have_text("1 ms")
    await stack.tell("stop_agent", host="hv3")
    await expect(cell(page, tank, "hv3")).to_have_text("Unknown")
    await expect(page.get_by_role("columnheader", name="hv3")).to_have_class("host offline")
    await stack.tell("start_agent", host="hv3")
    await expect(cell(page, tank, "hv3")).to_have_text("1 ms")


async def test_backend_that_is_not_for_a_host_has_an_empty_cell(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank, hosts={"names": ["hv1"]})
    await page.goto("/")
    await expect(cell(page, tank, "hv2")).to_have_accessible_name(f"{tank} on hv2: not for this host")
    await stack.api("PATCH", f"/v1/storage_backends/{tank}", {"hosts": {"names": ["hv1", "hv2"]}})
    await expect(cell(page, tank, "hv2")).to_have_text("1 ms")


async def test_arrows_move_in_the_matrix_and_enter_opens(stack: Stack, page: Page, named: Names) -> None:
    one, two = named("one"), named("two")
    await add_nfs(stack, one)
    await add_nfs(stack, two, config={"server": "b", "export": "/b"})
    await page.goto("/")
    await cell(page, one, "hv1").focus()
    for key, backend, host in (
        ("ArrowRight", one, "hv2"),
        ("ArrowDown", two, "hv2"),
        ("End", two, "hv3"),
        ("ArrowUp", one, "hv3"),
        ("Home", one, "hv1"),
        ("ArrowLeft", one, "hv1"),
    ):
        await page.keyboard.press(key)
        await expect(cell(page, backend, host)).to_be_focused()
    await expect(page.locator("[data-key][tabindex='0']")).to_have_count(1)
    await page.keyboard.press("Enter")
    await expect(dialog(page, f"{one} on hv1")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(cell(page, one, "hv1")).to_be_focused()
