"""The harness itself: a browser reaches the stack, hears what goes wrong, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, expect

from manager.embedded import children
from tests.browser.axe import check_axe
from tests.browser.chromium import MISSING, chromium
from tests.browser.conftest import Names, OpenPage
from tests.browser.heard import Heard
from tests.browser.told import ROOT, Stack
from tests.fleet.fleet import PATIENCE_S, until
from tests.processes import runs

_WITHOUT_CHROMIUM = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/browser/test_harness.py")
_WITH_COMPLAINTS = """<script>console.error("one"); new Image().src = "/two.png"; fetch("/three").catch(() => {});</script>
<script>const words = "onconnect = () => { console.error('five'); throw Error('six') }";
new SharedWorker(URL.createObjectURL(new Blob([words], { type: "text/javascript" })));</script>
<script>throw Error("four")</script>"""
_HOLDING = """
import asyncio, sys
from pathlib import Path
from playwright.async_api import async_playwright
from tests.browser import told

async def main():
    async with told.running(Path(sys.argv[1])), async_playwright() as playwright:
        await playwright.chromium.launch(executable_path=sys.argv[2], args=["--no-sandbox", "--disable-dev-shm-usage"])
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_browser_goes_to_the_stack_reads_the_managers_answer(open_page: OpenPage) -> None:
    page = await open_page("nobody")
    answer = await page.goto("/healthz")
    assert answer
    assert (answer.status, await answer.json()) == (200, {"status": "alive"})


async def test_page_that_complains_is_heard_in_every_way(open_page: OpenPage, heard: Heard) -> None:
    page = await open_page("nobody")
    policy = {"Content-Security-Policy": "script-src 'unsafe-inline'; img-src 'none'; worker-src blob:"}
    await page.route(
        "**/bad", lambda route: route.fulfill(content_type="text/html", headers=policy, body=_WITH_COMPLAINTS)
    )
    await page.route("**/three", lambda route: route.abort("connectionfailed"))
    await page.goto("/bad")
    wanted = (
        "console error: one",
        "CSP: img-src forbids",
        "three: net::ERR_CONNECTION_FAILED",
        "uncaught: Error: four",
        "shared worker's console error: five",
        "shared worker's uncaught: Error: six",
    )

    async def has_all() -> bool:
        return all(any(part in words for words in heard.complaints) for part in wanted)

    await until(has_all, "all complaints to be heard")
    heard.allow("")


async def test_test_that_made_something_leaves_an_empty_estate(stack: Stack, named: Names) -> None:
    kept, tank = named("kept"), named("tank")
    body = {"kind": "nfs", "config": {"server": "nas", "export": "/tank"}}
    await stack.made("/v1/storage_backends", {"name": tank, "is_default": True, **body})
    await stack.made("/v1/volumes", {"name": kept, "size_bytes": 2**20, "backend": tank})
    await stack.made(f"/v1/volumes/{kept}/attach", {"host": "hv1", "mode": "rw"})
    await stack.made("/v1/tokens", {"name": named("someone"), "role": "viewer"})
    await stack.tell("clone_at_once", is_cloning=False)
    await stack.tell("hold", verb="make")
    copy = await stack.api("POST", f"/v1/volumes/{kept}/clone", {"name": named("copy")}, Prefer="respond-async")
    assert copy.status == 202, copy
    await stack.tell("reached", verb="make")
    await stack.tell("fail", host="hv2", verb="probe", code="io_error")
    await stack.tell("join", host="hv4")
    await stack.tell("stop_agent", host="hv3")
    await stack.tell("clean")
    for path in ("/v1/storage_backends", "/v1/volumes", "/v1/operations?state=running"):
        assert (await stack.api("GET", path)).body["items"] == [], path
    hosts = {host["name"]: host["state"] for host in (await stack.api("GET", "/v1/hosts")).body["items"]}
    assert hosts == {"hv1": "online", "hv2": "online", "hv3": "online", "hv4": "revoked"}


async def test_relay_that_is_cut_lets_nobody_through_until_it_is_mended(
    stack: Stack, open_page: OpenPage, heard: Heard
) -> None:
    page = await open_page("nobody")
    heard.allow("ERR_CONNECTION_REFUSED")
    await stack.tell("cut")
    with pytest.raises(PlaywrightError, match="ERR_CONNECTION_REFUSED"):
        await page.goto("/healthz")
    assert (await stack.api("GET", "/healthz")).status == 200
    await stack.tell("mend")
    # The first tab may still be on its way to the browser's own page about the failure.
    answer = await (await open_page("nobody")).goto("/healthz")
    assert answer
    assert answer.ok


async def test_wrong_token_at_the_door_is_refused_and_the_right_one_opens_it(stack: Stack, open_page: OpenPage) -> None:
    page = await open_page("nobody")
    await page.goto("/")
    token = page.get_by_label("Access token")
    await token.fill("stw_wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("not valid")
    await expect(token).to_be_focused()
    await token.fill(stack.token)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Storage", exact=True)).to_be_visible()


async def test_page_of_one_who_is_signed_in_opens_without_the_door(page: Page, viewer_page: Page) -> None:
    for each in (page, viewer_page):
        await each.goto("/")
        await expect(each.get_by_role("heading", name="Storage", exact=True)).to_be_visible()


async def test_sign_in_page_has_nothing_for_axe_to_find(open_page: OpenPage) -> None:
    page = await open_page("nobody", bypass_csp=True)
    await page.goto("/")
    await expect(page.get_by_label("Access token")).to_be_focused()
    await check_axe(page)


async def test_axe_finds_what_is_wrong_with_a_page(open_page: OpenPage) -> None:
    page = await open_page("nobody", bypass_csp=True)
    await page.set_content("<main><h1>Title</h1><input><p style='color: #999; background: #fff'>Pale</p></main>")
    with pytest.raises(AssertionError, match="color-contrast"):
        await check_axe(page)


@pytest.mark.parametrize(("ci", "exit_code"), [("false", 0), ("true", 4)])
def test_run_without_chromium_says_so_once_and_fails_in_ci_only(tmp_path: Path, ci: str, exit_code: int) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "CI": ci}
    argv = (sys.executable, *_WITHOUT_CHROMIUM)
    over = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (over.returncode, (over.stdout + over.stderr).count(MISSING)) == (exit_code, 1), over
    assert ("skipped" in over.stdout) is (ci == "false")


def test_run_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", _HOLDING, str(tmp_path / "stack"), str(chromium()))
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
        started = _descendants(run.pid)
        assert len(started) > 5, "a stack with its servers and a browser with its renderers"
        run.send_signal(signal.SIGKILL)
    children.wait_until(lambda: not any(runs(pid) for pid in started), timeout_s=PATIENCE_S)
    assert [pid for pid in started if runs(pid)] == []


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found
