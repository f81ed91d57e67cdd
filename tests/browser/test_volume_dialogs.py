"""The dialogs about one volume: make, attach, detach, snapshots, resize, clone, migrate, edit, delete."""

import re
from typing import Any

from playwright.async_api import Locator, Page, expect

from tests.browser.axe import check_axe
from tests.browser.conftest import Names
from tests.browser.estate import add_nfs, dialog
from tests.browser.test_volumes import MIB, add_volume, row
from tests.browser.told import Stack


async def add_local(stack: Stack, name: str, **more: object) -> None:
    body = {"name": name, "kind": "local_file", "config": {"root_dir": "/var/lib/vms"}, **more}
    await stack.made("/v1/storage_backends", body)


async def add_thick(stack: Stack, name: str, wipe: str) -> None:
    config = {"portal": "10.0.0.9:3260", "target_iqn": "iqn.2026-01.org.example:vms", "vg_name": "vg_vms"}
    await stack.made(
        "/v1/storage_backends", {"name": name, "kind": "iscsi_lvm", "config": {**config, "wipe_on_delete": wipe}}
    )


async def opened(page: Page, address: str, title: str) -> Locator:
    await page.goto(f"/#/volumes/{address}")
    box = dialog(page, title)
    await expect(box).to_be_visible()
    return box


def notices(page: Page) -> Locator:
    return page.get_by_role("region", name="Notices")


async def volume(stack: Stack, name: str) -> Any:
    """As the API shows it."""
    answer = await stack.api("GET", f"/v1/volumes/{name}")
    assert answer.status == 200, answer
    return answer.body


async def test_new_volume_goes_to_the_default_in_whole_sectors_with_its_labels(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, local, web = named("a-tank"), named("local"), named("web")
    await add_nfs(stack, tank)
    await add_local(stack, local, is_default=True)
    box = await opened(page, "add", "New volume")
    await box.get_by_label("Name").fill(web)
    await box.get_by_label("Size").fill("1.5 MiB")
    await expect(box.get_by_text("1,572,864 bytes")).to_be_visible()
    await box.get_by_label("Size").fill("1000000")
    await expect(box.get_by_text("1,000,448 bytes, rounded up")).to_be_visible()
    await expect(box.get_by_label("Backend")).to_have_value(local)
    await expect(box.get_by_text("no other host can use it there")).to_be_visible()
    await box.get_by_label("Host").select_option("hv3")
    await box.get_by_label("Format").select_option("qcow2")
    await box.get_by_label("Labels").fill("vm=17, tier=gold")
    await box.get_by_role("button", name="Create volume").click()
    await expect(notices(page)).to_contain_text("Volume created")
    await expect(row(page, web).locator(".c-host")).to_have_text("hv3")
    made = await volume(stack, web)
    assert (made["size_bytes"], made["format"], made["labels"]) == (1_000_448, "qcow2", {"vm": "17", "tier": "gold"})


async def test_size_that_cannot_be_read_and_a_taken_name_are_said_where_they_belong(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    box = await opened(page, "add", "New volume")
    await box.get_by_label("Name").fill(web)
    await box.get_by_label("Size").fill("plenty")
    await box.get_by_role("button", name="Create volume").click()
    await expect(box.get_by_label("Size")).to_be_focused()
    await expect(box.get_by_label("Size")).to_have_accessible_description(re.compile("is no size: write it as 20 GiB"))
    await box.get_by_label("Size").fill("1 MiB")
    await box.get_by_role("button", name="Create volume").click()
    await expect(box.get_by_role("alert")).to_contain_text(f"there is a volume named {web} already")
    await box.get_by_label("Name").fill("-")
    await box.get_by_role("button", name="Create volume").click()
    await expect(box.get_by_label("Name")).to_have_accessible_description(re.compile("begin and end with a letter"))
    await expect(box.get_by_label("Size")).to_have_value("1 MiB")


async def test_backend_that_drains_can_be_seen_but_not_be_chosen(stack: Stack, page: Page, named: Names) -> None:
    tank, old = named("tank"), named("old")
    await add_nfs(stack, tank)
    await add_nfs(stack, old, config={"server": "b", "export": "/b"})
    assert (await stack.api("PATCH", f"/v1/storage_backends/{old}", {"state": "draining"})).status == 200
    box = await opened(page, "add", "New volume")
    choice = box.get_by_label("Backend")
    await expect(choice.get_by_role("option", name=f"{old} · 1023 GiB free · draining")).to_be_disabled()
    await expect(choice).to_have_value(tank)


async def test_volume_from_a_snapshot_lies_beside_it_at_its_size(stack: Stack, page: Page, named: Names) -> None:
    tank, local, web, copy = named("tank"), named("local"), named("web"), named("copy")
    await add_local(stack, local, is_default=True)
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank, size_bytes=3 * MIB)
    await stack.made(f"/v1/volumes/{web}/snapshots", {"name": "monday"})
    box = await opened(page, f"{web}/snapshots", f"Snapshots of {web}")
    await box.get_by_role("link", name="New volume from monday").click()
    box = dialog(page, "New volume")
    await expect(box.get_by_label("Source")).to_have_value(f"{web}/monday")
    await expect(box.get_by_label("Backend")).to_have_value(tank)
    await expect(box.get_by_label("Size")).to_have_attribute("placeholder", "3 MiB")
    await box.get_by_label("Name").fill(copy)
    await box.get_by_role("button", name="Create volume").click()
    await expect(row(page, copy).locator(".c-source")).to_have_text(f"snapshot monday of {web}")
    made = await volume(stack, copy)
    assert (made["backend"], made["size_bytes"]) == (tank, 3 * MIB)


async def test_attach_says_beforehand_why_not_and_afterwards_the_path(stack: Stack, page: Page, named: Names) -> None:
    local, web = named("local"), named("web")
    await add_local(stack, local)
    await add_volume(stack, web, local, host="hv2")
    box = await opened(page, f"{web}/attach", f"Attach {web}")
    await expect(box.get_by_label("Host")).to_have_value("hv2")
    await expect(box.get_by_text("It can be attached on hv2.")).to_be_visible()
    await box.get_by_label("Host").select_option("hv1")
    await expect(box.get_by_text(f"it lies on hv2, and {local} is not shared")).to_be_visible()
    button = box.get_by_role("button", name="Attach", exact=True)
    await expect(button).to_have_attribute("aria-disabled", "true")
    await box.get_by_label("Host").select_option("hv2")
    await expect(button).not_to_have_attribute("aria-disabled", "true")
    await button.click()
    box = dialog(page, f"{web} is attached to hv2")
    await expect(box).to_be_visible()
    held = (await volume(stack, web))["attachments"]
    await expect(box.get_by_label("Path on hv2")).to_have_value(held[0]["path"])
    await expect(box).to_contain_text("Epoch1")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await box.get_by_role("button", name="Copy path").click()
    await expect(box.get_by_text("Copied.")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == held[0]["path"]
    await box.get_by_role("button", name="Close").last.click()
    await expect(row(page, web).locator(".c-attached")).to_have_text("hv2 (rw)")


async def test_detach_is_refused_in_the_dialog_while_open_and_done_after(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    made = await add_volume(stack, web, tank)
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv1"})
    await stack.tell("open_volume", host="hv1", locator=made["locator"], is_open=True)
    box = await opened(page, f"{web}/detach", f"Detach {web}")
    button = box.get_by_role("button", name="Detach", exact=True)
    await button.click()
    await expect(box.get_by_role("alert")).to_contain_text("in use")
    await expect(box.get_by_role("group", name="By force")).to_be_hidden()
    await stack.tell("open_volume", host="hv1", locator=made["locator"], is_open=False)
    await button.click()
    await expect(notices(page)).to_contain_text("Volume detached")
    await expect(row(page, web).locator(".c-status")).to_have_text("Unused")


async def test_detach_from_a_host_that_is_away_wants_its_name_typed(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv1"})
    box = await opened(page, f"{web}/detach/hv1", f"Detach {web}")
    force = box.get_by_role("group", name="By force")
    await expect(force).to_be_hidden()
    await stack.tell("stop_agent", host="hv1")
    await expect(force).to_contain_text(
        "If it is running after all while another host writes, the volume's data is destroyed."
    )
    button = box.get_by_role("button", name="Detach by force")
    await button.click()
    await expect(box.get_by_label("Type hv1")).to_have_accessible_description(re.compile("must be hv1"))
    assert (await volume(stack, web))["attachments"] != []
    await box.get_by_label("Type hv1").fill("hv1")
    await button.click()
    await expect(notices(page)).to_contain_text("detached without the host's word")
    assert (await volume(stack, web))["attachments"] == []


async def test_snapshot_is_taken_reverted_to_and_deleted_from_the_list(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank, size_bytes=2 * MIB)
    listed = await opened(page, f"{web}/snapshots", f"Snapshots of {web}")
    await expect(listed).to_contain_text("None yet")
    await listed.get_by_role("button", name="Take snapshot").click()
    box = dialog(page, f"Take a snapshot of {web}")
    await box.get_by_label("Name").fill("monday")
    await box.get_by_role("button", name="Take snapshot").click()
    await expect(listed).to_contain_text("Snapshot monday taken.")
    resized = await stack.api("POST", f"/v1/volumes/{web}/resize", {"size_bytes": 4 * MIB})
    assert resized.status == 200, resized
    await listed.get_by_role("link", name="Revert to monday").click()
    box = dialog(page, f"Revert {web} to monday?")
    await expect(box).to_contain_text("since then is lost")
    await box.get_by_role("button", name="Revert", exact=True).click()
    await expect(listed).to_contain_text(f"{web} is as it was at monday.")
    assert (await volume(stack, web))["size_bytes"] == 2 * MIB
    await listed.get_by_role("link", name="Delete monday").click()
    await dialog(page, "Delete snapshot monday?").get_by_role("button", name="Delete snapshot").click()
    await expect(listed).to_contain_text("None yet")
    await listed.get_by_role("button", name="Close").last.click()
    await expect(row(page, web).locator(".c-snapshots")).to_have_text("0")


async def test_resize_grows_at_once_and_shrinks_only_when_asked_for_twice(
    stack: Stack, page: Page, named: Names
) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank, size_bytes=2 * MIB)
    box = await opened(page, f"{web}/resize", f"Resize {web}")
    await expect(box.get_by_label("New size")).to_have_value("2 MiB")
    shrink = box.get_by_label("Cut off what lies behind the new end")
    await expect(shrink).to_be_hidden()
    await box.get_by_label("New size").fill("4 MiB")
    await box.get_by_role("button", name="Resize").click()
    await expect(notices(page)).to_contain_text(f"{web} has 4 MiB now")
    box = await opened(page, f"{web}/resize", f"Resize {web}")
    await box.get_by_label("New size").fill("1 MiB")
    await box.get_by_role("button", name="Resize").click()
    await expect(box.get_by_label("New size")).to_have_accessible_description(re.compile("is less than the present"))
    await expect(box.get_by_text("shrink the guest's file system first").first).to_be_visible()
    await shrink.check()
    await box.get_by_role("button", name="Resize").click()
    await expect(row(page, web).locator(".c-size")).to_have_text("1.00 MiB")


async def test_migration_goes_on_in_its_row_and_its_end_is_told(stack: Stack, page: Page, named: Names) -> None:
    tank, pool, web = named("tank"), named("pool"), named("web")
    await add_nfs(stack, tank)
    await add_nfs(stack, pool, config={"server": "b", "export": "/b"})
    await add_volume(stack, web, tank)
    box = await opened(page, f"{web}/migrate", f"Migrate {web}")
    await expect(box.get_by_label("To").get_by_role("option")).to_have_text([f"{pool} · 1023 GiB free"])
    await stack.tell("hold", verb="settle")
    await box.get_by_role("button", name="Migrate").click()
    await expect(notices(page)).to_contain_text("The volume is on its way")
    await expect(row(page, web).get_by_role("progressbar")).to_be_visible()
    await stack.tell("let_go")
    await expect(notices(page)).to_contain_text("Volume migrated")
    await expect(row(page, web).locator(".c-backend")).to_have_text(pool)


async def test_clone_that_fails_later_is_told_when_it_has(stack: Stack, page: Page, named: Names) -> None:
    tank, web, copy = named("tank"), named("web"), named("copy")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    await stack.tell("hold", verb="make")
    box = await opened(page, f"{web}/clone", f"Clone {web}")
    await box.get_by_label("Name of the clone").fill(copy)
    await box.get_by_role("button", name="Clone", exact=True).click()
    await expect(notices(page)).to_contain_text("The clone is being made")
    await expect(row(page, copy).locator(".c-status")).to_have_text("Being made")
    for host in ("hv1", "hv2", "hv3"):
        await stack.tell("fail", host=host, verb="make", code="io_error")
    await stack.tell("let_go")
    await expect(notices(page)).to_contain_text(f"The clone could not be made{copy}: ")
    await expect(row(page, copy)).to_have_count(0)


async def test_edit_of_a_version_that_is_no_more_keeps_what_was_typed(stack: Stack, page: Page, named: Names) -> None:
    tank, web, site = named("tank"), named("web"), named("site")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank, labels={"vm": "1"})
    box = await opened(page, f"{web}/edit", f"Edit {web}")
    await box.get_by_label("Name").fill(site)
    assert (await stack.api("PATCH", f"/v1/volumes/{web}", {"labels": {"vm": "2"}})).status == 200
    await box.get_by_role("button", name="Save changes").click()
    await box.get_by_role("button", name="Load the newest version").click()
    await expect(box.get_by_text("Version 2")).to_be_visible()
    await expect(box.get_by_label("Labels")).to_have_value("vm=2")
    await expect(box.get_by_label("Name")).to_have_value(site)
    await box.get_by_role("button", name="Save changes").click()
    await expect(row(page, site)).to_contain_text("vm: 2")


async def test_delete_says_what_becomes_of_the_bytes_and_who_is_in_the_way(
    stack: Stack, page: Page, named: Names
) -> None:
    san, web = named("san"), named("web")
    await add_thick(stack, san, "zero")
    await add_volume(stack, web, san, size_bytes=4 * MIB)
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv1"})
    box = await opened(page, f"{web}/delete", f"Delete {web}?")
    await expect(box).to_contain_text(f"{web} cannot be deleted: it is attached to hv1")
    button = box.get_by_role("button", name="Delete volume")
    await expect(button).to_have_attribute("aria-disabled", "true")
    await box.get_by_role("button", name="Cancel").click()
    await stack.made(f"/v1/volumes/{web}/detach", {"host": "hv1"})
    box = await opened(page, f"{web}/delete", f"Delete {web}?")
    await expect(box).to_contain_text("overwritten with zeros first")
    await button.click()
    await expect(notices(page)).to_contain_text("Volume deleted")
    await expect(page.get_by_role("heading", name="No volumes yet")).to_be_visible()


async def test_volume_named_like_the_address_of_a_new_one_can_be_reached(
    stack: Stack, page: Page, named: Names
) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    made = await add_volume(stack, "add", tank)
    await page.goto(f"/#/volumes?backend={tank}")
    await row(page, "add").get_by_role("link", name="add", exact=True).click()
    await expect(dialog(page, "add")).to_contain_text(str(made["locator"]))
    await expect(page).to_have_url(re.compile(f"#/volumes/{made['id']}\\?backend={tank}$"))
    await page.keyboard.press("Escape")
    await expect(page).to_have_url(re.compile(f"#/volumes\\?backend={tank}$"))


async def test_dialog_of_a_volume_follows_what_happens_to_it(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank)
    await add_volume(stack, web, tank)
    box = await opened(page, web, web)
    await expect(box).to_contain_text("Unused")
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv2", "mode": "ro"})
    await expect(box.get_by_role("region", name="Attached to hv2")).to_contain_text("read only")
    await box.get_by_role("link", name="Detach from hv2").click()
    await expect(dialog(page, f"Detach {web}").get_by_label("Host")).to_have_value("hv2")


async def test_copied_command_holds_the_request_that_would_be_made(stack: Stack, page: Page, named: Names) -> None:
    tank, web = named("tank"), named("web")
    await add_nfs(stack, tank, is_default=True)
    box = await opened(page, "add", "New volume")
    await box.get_by_label("Name").fill(web)
    await box.get_by_label("Size").fill("2 MiB")
    await box.get_by_role("button", name="Copy as CLI").click()
    await expect(box.get_by_label("The request as CLI")).to_have_value(
        re.compile(rf"POST '/v1/volumes' --data '.\"name\":\"{web}\",\"size_bytes\":{2 * MIB},\"backend\":\"{tank}\"")
    )


async def test_dialogs_have_nothing_for_axe_to_find(stack: Stack, axe_page: Page, named: Names) -> None:
    tank, web, other = named("tank"), named("web"), named("other")
    await add_nfs(stack, tank)
    await add_nfs(stack, named("pool"), config={"server": "b", "export": "/b"})
    await add_volume(stack, web, tank)
    await add_volume(stack, other, tank)
    await stack.made(f"/v1/volumes/{web}/snapshots", {"name": "monday"})
    await stack.made(f"/v1/volumes/{web}/attach", {"host": "hv1"})
    await stack.tell("stop_agent", host="hv1")
    for address, title in (
        ("add", "New volume"),
        (web, web),
        (f"{other}/attach", f"Attach {other}"),
        (f"{web}/detach", f"Detach {web}"),
        (f"{web}/snapshots", f"Snapshots of {web}"),
        (f"{web}/migrate", f"Migrate {web}"),
        (f"{web}/delete", f"Delete {web}?"),
    ):
        await opened(axe_page, address, title)
        await check_axe(axe_page)
    box = await opened(axe_page, f"{web}/resize", f"Resize {web}")
    await box.get_by_label("New size").fill("512")
    await box.get_by_role("button", name="Resize").click()
    await expect(box.get_by_role("alert")).to_be_visible()
    await check_axe(axe_page)
