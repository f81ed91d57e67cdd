"""What the page promises of every dialog, kind, status and address."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, Page, Response, Route, expect

from schemas.events import EventType
from schemas.faults import FaultCode
from tests.browser.axe import check_axe
from tests.browser.conftest import PHONE, Names, OpenPage
from tests.browser.estate import add_blank, add_nfs, add_smb, backends, cell, dialog, row, spoil
from tests.browser.heard import Heard
from tests.browser.told import ROOT, Stack

FIRST_LOAD_BYTES = 100_000
_UI = ROOT / "manager/ui"


async def test_first_load_is_below_100_kb_with_its_data(stack: Stack, page: Page, named: Names) -> None:
    for number in range(3):
        await add_nfs(stack, named(f"tank{number}"), config={"server": f"s{number}", "export": "/x"})
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    await page.goto("/")
    await expect(cell(page, named("tank2"), "hv3")).to_have_text("1 ms")
    await expect(page.get_by_role("region", name="Activity")).to_contain_text("The whole log")
    sizes = {each.url: len(await each.body()) for each in answers if "stream?" not in each.url}
    assert sum(sizes.values()) < FIRST_LOAD_BYTES, json.dumps(sizes, indent=1)


async def test_kind_that_nobody_has_thought_of_needs_no_line_of_the_page(page: Page, named: Names) -> None:
    kind: dict[str, Any] = {
        "kind": "cloud_thing",
        "title": "Cloud thing",
        "capabilities": ["external"],
        "is_shared": True,
        "can_initialize": False,
        "formats": ["raw"],
        "discover_by": None,
        "config_schema": {
            "type": "object",
            "required": ["bucket"],
            "properties": {
                "bucket": {
                    "title": "Bucket",
                    "description": "Where it lies",
                    "type": "string",
                    "x-ui": {"placeholder": "vms"},
                },
                "zone": {"title": "Zone", "enum": ["a", "b"], "type": "string", "default": "b"},
                "retries": {"title": "Retries", "type": "integer", "default": 3, "x-ui": {"advanced": True}},
                "is_fast": {"title": "Fast", "type": "boolean", "default": True, "x-ui": {"advanced": True}},
                "limit": {"title": "Limit", "anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            },
        },
        "credentials_schema": {
            "type": "object",
            "properties": {"api_key": {"title": "Key", "type": "string", "writeOnly": True, "format": "password"}},
        },
    }
    await page.route("**/v1/backend_kinds*", lambda route: route.fulfill(json=[kind]))
    sent: list[Any] = []

    async def take(route: Route) -> None:
        sent.append(route.request.post_data_json)
        problem: dict[str, Any] = {
            "title": "Some fields are not valid",
            "code": "invalid_field",
            "detail": "one is not",
        }
        problem |= {"errors": [{"pointer": "/config/retries", "detail": "are too many"}]}
        await route.fulfill(status=400, json=problem)

    await page.route("**/v1/storage_backends", take)
    await page.goto("/#/storage/add")
    box = dialog(page, "Add backend")
    await box.get_by_label("Name", exact=True).fill(named("odd"))
    await expect(box.get_by_label("Bucket")).to_have_accessible_description(re.compile("Where it lies"))
    await expect(box.get_by_label("Bucket")).to_have_attribute("placeholder", "vms")
    await box.get_by_label("Bucket").fill("disks")
    await box.get_by_label("Zone").select_option("a")
    await box.get_by_label("Limit").fill("7")
    await box.get_by_label("Key").fill("hidden")
    await box.get_by_role("button", name="Add backend").click()
    # The fold that holds the wrong field is open.
    await expect(box.get_by_label("Retries")).to_have_accessible_description(re.compile("are too many"))
    await expect(box.get_by_label("Retries")).to_be_focused()
    [body] = sent
    assert body["config"] == {"bucket": "disks", "zone": "a", "retries": 3, "is_fast": True, "limit": 7}
    assert body["credentials"] == {"api_key": "hidden"}


@pytest.mark.parametrize("what", ["add", "NAME/edit", "NAME/remove", "NAME/initialize"])
async def test_viewer_is_let_into_no_dialog_that_changes_something(
    stack: Stack, viewer_page: Page, named: Names, what: str
) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    await viewer_page.goto(f"/#/storage/{what.replace('NAME', tank)}")
    await expect(viewer_page.locator("#toasts")).to_contain_text("This takes the role operator")
    await expect(viewer_page.get_by_role("dialog")).to_have_count(0)


async def test_every_dialog_of_storage_gives_its_request_away(stack: Stack, page: Page, named: Names) -> None:
    tank, san = named("tank"), named("san")
    made = await add_nfs(stack, tank)
    await add_blank(stack, san)
    version = f"-H 'If-Match: \"{made['version']}\"'"
    for path, title, parts in (
        ("add", "Add backend", ["POST", "/v1/storage_backends"]),
        (f"{tank}/edit", f"Edit {tank}", ["PATCH", made["id"], version]),
        (f"{tank}/remove", f"Remove {tank}?", ["DELETE", tank]),
        (f"{san}/initialize", f"Initialize {san}", ["POST", "/initialize", '"wwid":']),
        (tank, tank, ["GET", made["id"]]),
        (f"{tank}/hv2", f"{tank} on hv2", ["GET", "/hosts"]),
    ):
        await page.goto(f"/#/storage/{path}")
        box = dialog(page, title)
        for what in ("curl", "CLI"):
            await box.get_by_role("button", name=f"Copy as {what}").click()
            text = await box.get_by_label(f"The request as {what}").input_value()
            assert all(part in text for part in parts), text
            assert "stw_" not in text
        await page.goto("/#/storage")
        await expect(box).to_have_count(0)


async def test_address_of_what_is_not_there_says_so(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    for path, words in (("nowhere", "There is no backend nowhere"), (f"{tank}/hv99", "There is no such host")):
        await page.goto(f"/#/storage/{path}")
        await expect(page.locator("#toasts")).to_contain_text(words)
        await expect(page).to_have_url(re.compile("#/storage$"))


async def test_states_between_are_grey_and_stuck_is_red_and_their_actions_say_why(
    stack: Stack, page: Page, named: Names
) -> None:
    names = {state: named(state) for state in ("creating", "deleting", "stuck", "pending")}
    for number, name in enumerate(names.values()):
        await add_nfs(stack, name, config={"server": f"s{number}", "export": "/x"})

    async def as_they_pass_by(route: Route) -> None:
        answer = await (await route.fetch()).json()
        for backend in answer["items"]:
            state = next((state for state, name in names.items() if name == backend["name"]), "ready")
            if state == "pending":
                backend["health"] = {
                    **backend["health"],
                    "status": "pending",
                    "detail": "not yet taken over by the host",
                }
            else:
                backend["state"] = state
        await route.fulfill(json=answer)

    await page.route("**/v1/storage_backends?*", as_they_pass_by)
    await page.goto("/")
    for state, word, tone, why in (
        ("creating", "Being added", "none", "it is being added"),
        ("deleting", "Being removed", "none", "it is being removed"),
        ("stuck", "Stuck", "bad", "an operation is stuck on it: look at Operations"),
    ):
        await expect(row(page, names[state]).locator(f".badge.{tone}").first).to_have_text(word)
        edit = row(page, names[state]).get_by_role("button", name=f"Edit {names[state]}: {why}")
        await expect(edit).to_have_attribute("aria-disabled", "true")
    await expect(row(page, names["pending"]).locator(".badge.none").first).to_have_text("Pending")
    # The worst is first, wherever it was added.
    await expect(backends(page).locator("tbody .name").first).to_have_text(names["stuck"])


async def test_focus_in_the_matrix_outlives_a_backend_that_comes_and_one_that_is_renamed(
    stack: Stack, page: Page, named: Names
) -> None:
    first, last, late = named("first"), named("last"), named("late")
    await add_nfs(stack, first)
    for number in range(27):
        await add_nfs(
            stack, named(f"n{number}"), hosts={"names": ["hv1"]}, config={"server": f"s{number}", "export": "/x"}
        )
    await add_nfs(stack, last, config={"server": "z", "export": "/z"})
    await page.goto("/")
    await cell(page, last, "hv2").focus()
    await add_nfs(stack, late, config={"server": "y", "export": "/y"})
    await stack.api("PATCH", f"/v1/storage_backends/{first}", {"name": named("renamed")})
    await expect(cell(page, late, "hv3")).to_have_text("1 ms")
    await expect(cell(page, named("renamed"), "hv1")).to_have_text("1 ms")
    await expect(cell(page, last, "hv2")).to_be_focused()


async def test_open_cell_and_backend_follow_what_hosts_find(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    await add_nfs(stack, tank)
    for path, title in ((f"{tank}/hv2", f"{tank} on hv2"), (tank, tank)):
        await page.goto(f"/#/storage/{path}")
        box = dialog(page, title)
        await expect(box).to_contain_text("1 ms")
        await spoil(stack, "hv2", "read_only")
        await expect(box.locator(".code").first).to_have_text("read only")
        await stack.tell("unfail", host="hv2", verb="probe")
        await stack.tell("unfail", host="hv2", verb="attach")
        await expect(box.locator("li").first).to_contain_text("Healthy")


async def test_activity_beside_the_matrix_has_no_hole_after_a_gap(
    stack: Stack, page: Page, named: Names, heard: Heard
) -> None:
    tank = named("tank")
    await page.goto("/")
    await expect(page.get_by_role("region", name="Activity")).to_contain_text("The whole log")
    heard.allow("ERR_")
    await stack.tell("cut")
    await add_nfs(stack, tank)
    await stack.tell("mend")
    await expect(row(page, tank)).to_be_visible()
    await expect(page.get_by_role("region", name="Activity")).to_contain_text(f"{tank} added by admin")


async def _long_add(stack: Stack, page: Page, name: str) -> Locator:
    """The dialog, while the hosts are held in their mounts."""
    await stack.tell("hold", verb="mount")
    await page.goto("/#/storage/add")
    box = dialog(page, "Add backend")
    await box.get_by_label("Name", exact=True).fill(name)
    await box.get_by_label("Folder", exact=True).fill("/var/lib/vms")
    await box.get_by_role("button", name="Add backend").click()
    return box


async def test_long_add_is_watched_left_to_itself_and_ends(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    box = await _long_add(stack, page, tank)
    await expect(box.get_by_text(re.compile("Under way, for"))).to_be_visible()
    await box.get_by_role("button", name="Go on in the background").click()
    await expect(page.locator("#toasts")).to_contain_text("It goes on in the background")
    await expect(row(page, tank)).to_contain_text("Being added")
    await stack.tell("let_go")
    await expect(page.locator("#toasts")).to_contain_text("Storage backend added")
    await expect(row(page, tank)).to_contain_text("Healthy")


async def test_long_add_that_is_stopped_is_undone(stack: Stack, page: Page, named: Names) -> None:
    tank = named("tank")
    box = await _long_add(stack, page, tank)
    await box.get_by_role("button", name="Stop it").click()
    await expect(box.get_by_text("Turning back…")).to_be_visible()
    await stack.tell("let_go")
    await expect(box.get_by_role("alert").first).to_contain_text("It was stopped")
    await expect(box.get_by_label("Name", exact=True)).to_have_value(tank)
    assert (await stack.api("GET", f"/v1/storage_backends/{tank}")).status == 404


async def test_phone_can_sort_and_its_matrix_keeps_its_names_in_sight(
    stack: Stack, open_page: OpenPage, named: Names
) -> None:
    one, two = named("aaa"), named("bbb")
    await add_nfs(stack, one)
    await add_smb(stack, two)
    page = await open_page(viewport=PHONE)
    await page.goto("/")
    await page.get_by_label("Sort by").select_option("-name")
    await expect(backends(page).locator("tbody .name")).to_have_text([two, one])
    at = cell(page, one, "hv3")
    await at.scroll_into_view_if_needed()
    name = page.get_by_role("rowheader", name=one, exact=True).last
    await expect(name).to_be_in_viewport()
    await expect(at).to_be_in_viewport()


async def test_what_passes_by_has_nothing_for_axe_to_find(
    stack: Stack, open_page: OpenPage, named: Names, heard: Heard
) -> None:
    door = await open_page("nobody", bypass_csp=True)
    await door.goto("/")
    await door.get_by_label("Access token").fill("stw_wrong")
    await door.keyboard.press("Enter")
    await expect(door.get_by_role("alert")).to_contain_text("not valid")
    await check_axe(door)

    tank = named("tank")
    await add_nfs(stack, tank)
    await spoil(stack, "hv2", "read_only")
    page = await open_page("viewer", bypass_csp=True)
    await page.goto(f"/#/storage/{tank}/hv2")
    await expect(dialog(page, f"{tank} on hv2")).to_contain_text("read only")
    await check_axe(page)
    await page.goto(f"/#/storage/{tank}")
    await expect(dialog(page, tank)).to_contain_text("As each host sees it")
    await check_axe(page)
    await page.goto("/#/storage?q=nothing-of-that-name")
    await expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
    heard.allow("ERR_")
    await stack.tell("cut")
    await expect(page.get_by_text(re.compile("what is shown may be old"))).to_be_visible()
    await page.goto(f"/#/storage/{tank}/edit")
    await expect(page.locator("#toasts")).to_contain_text("This takes the role operator")
    await check_axe(page)


def test_lists_of_the_page_are_those_of_the_schemas() -> None:
    """Types of events, kinds of operations and faults of a wrong config are named in the page too."""
    types = _strings(_UI / "js/log.js", "EVENT_TYPES")
    assert types == {each.value for each in EventType}
    documented = (ROOT / "docs/api.md").read_text()
    for kind in _strings(_UI / "js/operations.js", "OPERATION_KINDS"):
        assert f"`{kind}`" in documented, kind
    assert _strings(_UI / "js/health.js", "CONFIGURATION") <= {each.value for each in FaultCode}


def _strings(path: Path, name: str) -> set[str]:
    [body] = re.findall(rf"const {name} = (?:new Set\()?\[(.*?)\]", path.read_text(), re.DOTALL)
    return set(re.findall(r'"([^"]+)"', body))
