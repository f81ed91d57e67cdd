"""Remove and Initialize: what goes, what stays, what is on the device, and who answers for it."""

from playwright.async_api import Page, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import Names, OpenPage
from tests.browser.estate import add_blank, add_nfs, dialog, row
from tests.browser.told import Stack


async def test_remove_asks_says_what_stays_and_goes_on_at_the_next_row(stack: Stack, page: Page, named: Names) -> None:
    one, two = named("one"), named("two")
    await add_nfs(stack, one)
    await add_nfs(stack, two, config={"server": "b", "export": "/b"})
    await page.goto("/")
    await row(page, one).get_by_role("button", name=f"Remove {one}", exact=True).click()
    box = dialog(page, f"Remove {one}?")
    await expect(box).to_contain_text("Data on the storage is left alone")
    await expect(box).to_contain_text("hv1: release now")
    await expect(row(page, one)).to_have_count(1)
    await box.get_by_role("button", name="Remove backend").click()
    await expect(box).to_have_count(0)
    await expect(page.locator("#toasts")).to_contain_text("Storage backend removed")
    await expect(row(page, one)).to_have_count(0)
    await expect(row(page, two).get_by_role("button", name=f"Edit {two}", exact=True)).to_be_focused()
    assert (await stack.api("GET", f"/v1/storage_backends/{one}")).status == 404


async def test_remove_lists_live_volumes_and_refuses_in_the_apis_words(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await stack.made("/v1/volumes", {"name": web, "size_bytes": 2**20, "backend": tank})
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv2"})
    words = (await stack.api("DELETE", f"/v1/storage_backends/{tank}")).body["detail"]
    await page.goto(f"/#/storage/{tank}/remove")
    box = dialog(page, f"Remove {tank}?")
    await expect(box).to_contain_text(words)
    listed = box.get_by_role("table", name="Volumes on this backend").get_by_role("row").filter(has_text=web)
    await expect(listed).to_contain_text("hv2")
    await expect(listed).to_contain_text("1.00 MiB")
    submit = box.get_by_role("button", name="Remove backend")
    await expect(submit).to_have_attribute("aria-disabled", "true")
    await submit.click(force=True)
    await expect(box).to_be_visible()
    assert (await stack.api("GET", f"/v1/storage_backends/{tank}")).status == 200


async def test_volume_that_came_after_the_dialog_is_refused_with_409(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await page.goto(f"/#/storage/{tank}/remove")
    box = dialog(page, f"Remove {tank}?")
    await expect(box).to_be_visible()
    await stack.made("/v1/volumes", {"name": web, "size_bytes": 2**20, "backend": tank})
    async with page.expect_response(lambda answer: answer.request.method == "DELETE") as refused:
        await box.get_by_role("button", name="Remove backend").click()
    assert (await refused.value).status == 409
    await expect(box.get_by_role("alert").first).to_contain_text("backend has 1 live volume(s)")
    await expect(box.get_by_role("alert").first).to_contain_text(web)


async def test_initialize_shows_the_inspection_and_wants_the_name(stack: Stack, page: Page, named: Names) -> None:
    san = named("san")
    await add_blank(stack, san)
    await page.goto("/")
    await row(page, san).get_by_role("button", name=f"Initialize {san}").click()
    box = dialog(page, f"Initialize {san}")
    await expect(box).to_contain_text("3600140500000000000000000000000aa")
    await expect(box).to_contain_text("1.00 GiB")
    await expect(box).to_contain_text("The device looks blank")
    await box.get_by_label(f"Type {san} to confirm").fill("another")
    await box.get_by_role("button", name="Initialize").click()
    await expect(box.get_by_label(f"Type {san} to confirm")).to_have_accessible_description(
        f"must be the backend's name, {san}"
    )
    await box.get_by_label(f"Type {san} to confirm").fill(san)
    await box.get_by_role("button", name="Initialize").click()
    await expect(box).to_have_count(0)
    await expect(page.locator("#toasts")).to_contain_text(f"{san} is ready")
    await expect(row(page, san)).to_contain_text("Healthy")
    await expect(row(page, san).get_by_role("button", name="Initialize")).to_have_count(0)


async def test_remove_and_initialize_have_nothing_for_axe_to_find(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    tank, san = named("tank"), named("san")
    await add_nfs(stack, tank)
    await stack.made("/v1/volumes", {"name": named("web"), "size_bytes": 2**20, "backend": tank})
    await add_blank(stack, san)
    page = await open_page(bypass_csp=True)
    for name, what, title in ((tank, "remove", f"Remove {tank}?"), (san, "initialize", f"Initialize {san}")):
        await page.goto(f"/#/storage/{name}/{what}")
        await expect(dialog(page, title)).to_be_visible()
        await check_axe(page)
