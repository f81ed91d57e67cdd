"""The Storage page in a real browser over real kernels and servers: add by a scan, rotate, initialize, remove.

What the page does in all its states is tested in tests/browser over a pretended storage; here it is that the two fit.
"""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.browser.chromium import MISSING, chromium
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.leaks import Secrets
from tests.lab.nfs import mounted
from tests.lab.smb import Login, user_of, wrong
from tests.lab.storage import ADDRESS, Storage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason=MISSING)]

#: Milliseconds; the guests are emulated, and a mount with its proof takes seconds on each.
_PATIENCE_MS = 90_000


@pytest.fixture
def page(lab: Lab) -> Iterator[Page]:
    """Signed in, on the page Storage."""
    expect.set_options(timeout=_PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_context(base_url=lab.api.url, locale="en-GB").new_page()
        page.set_default_timeout(_PATIENCE_MS)
        page.goto("/")
        page.get_by_label("Access token").fill(lab.api.token)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Storage", exact=True)).to_be_visible()
        yield page
        browser.close()


def _row(page: Page, name: str) -> Locator:
    named = page.get_by_role("rowheader").get_by_role("link", name=name, exact=True)
    return page.get_by_role("table", name="Storage backends").get_by_role("row").filter(has=named)


def _adding(page: Page, kind: str, name: str, host: Host) -> Locator:
    """The dialog, with kind and name, for that host alone."""
    page.get_by_role("button", name="Add backend").click()
    box = page.get_by_role("dialog", name="Add backend")
    box.get_by_label("Kind").select_option(kind)
    box.get_by_label("Name", exact=True).fill(name)
    box.get_by_label("Only these").check()
    box.get_by_label(host.name, exact=True).check()
    return box


def _remove(page: Page, name: str) -> None:
    _row(page, name).get_by_role("button", name=f"Remove {name}", exact=True).click()
    page.get_by_role("dialog", name=f"Remove {name}?").get_by_role("button", name="Remove backend").click()
    expect(_row(page, name)).to_have_count(0)


def test_export_is_found_by_a_scan_mounted_and_let_go(page: Page, storage: Storage, hv1: Host) -> None:
    name, export = storage.unique("page-nfs"), storage.export()
    box = _adding(page, "nfs", name, hv1)
    box.get_by_label("Server", exact=True).fill(ADDRESS)
    box.get_by_label("Host to scan from").select_option(hv1.name)
    box.get_by_role("button", name="Scan the server").click()
    box.get_by_role("button").filter(has_text=f"{export} (").click()
    expect(box.get_by_label("Export")).to_have_value(export)
    box.get_by_role("button", name="Test connection").click()
    expect(box.get_by_role("region", name="Results of the test")).to_contain_text("It works on the one host")
    box.get_by_role("button", name="Add backend").click()
    expect(_row(page, name)).to_contain_text("Healthy")
    assert any(export in line for line in hv1.courier.run("cat /proc/mounts").out.splitlines())
    expect(page.get_by_role("gridcell", name=re.compile(f"{name} on {hv1.name}: Healthy, "))).to_be_visible()
    _remove(page, name)
    assert not any(export in line for line in hv1.courier.run("cat /proc/mounts").out.splitlines())


def test_wrong_password_is_told_and_a_right_one_is_rotated(
    page: Page, lab: Lab, storage: Storage, hv1: Host, login: Login, secrets: Secrets
) -> None:
    name, share = storage.unique("page-smb"), storage.share()
    box = _adding(page, "smb", name, hv1)
    box.get_by_label("Server", exact=True).fill(ADDRESS)
    box.get_by_label("Share").fill(share)
    box.get_by_label("User name").fill(login["username"])
    box.get_by_label("Password").fill(wrong(login, secrets)["password"])
    box.get_by_role("button", name="Add backend").click()
    alert = box.get_by_role("alert").first
    expect(alert).to_contain_text("auth failed")
    expect(alert).to_contain_text(hv1.name)
    assert lab.api("GET", f"/storage_backends/{name}").status == 404
    box.get_by_label("Password").fill(login["password"])
    box.get_by_role("button", name="Add backend").click()
    expect(_row(page, name)).to_contain_text("Healthy")

    fresh = secrets(storage.unique("lab-Pass:") + "-rotated")
    storage.set_password(login["username"], fresh)
    _row(page, name).get_by_role("button", name=f"Edit {name}", exact=True).click()
    box = page.get_by_role("dialog", name=f"Edit {name}")
    box.get_by_role("group", name="Rotate password").get_by_label("Password").fill(fresh)
    box.get_by_role("button", name="Save changes").click()
    expect(page.locator("#toasts")).to_contain_text("Password rotated")
    expect(_row(page, name)).to_contain_text("Healthy")
    [backend] = [each for each in lab.api.get("/storage_backends?limit=500")["items"] if each["name"] == name]
    where = next(
        line.split()[1] for line in hv1.courier.run("cat /proc/mounts").out.splitlines() if backend["id"] in line
    )
    assert user_of(hv1, where) == login["username"]
    assert mounted(hv1, where)
    _remove(page, name)


def test_blank_lun_is_inspected_and_initialized(page: Page, storage: Storage, hv1: Host, iqn: str, image: str) -> None:
    name = storage.unique("page-san")
    box = _adding(page, "iscsi_lvm", name, hv1)
    box.get_by_label("Portal").fill(ADDRESS)
    box.get_by_label("Host to scan from").select_option(hv1.name)
    box.get_by_role("button", name="Scan the portal").click()
    box.get_by_role("button", name=iqn, exact=True).click()
    box.get_by_label("Volume group").fill("vg_page")
    box.get_by_role("button", name="Add backend").click()
    expect(_row(page, name)).to_contain_text("Needs initialization")
    _row(page, name).get_by_role("button", name=f"Initialize {name}").click()
    box = page.get_by_role("dialog", name=f"Initialize {name}")
    expect(box).to_contain_text("The device looks blank")
    box.get_by_label(f"Type {name} to confirm").fill(name)
    box.get_by_role("button", name="Initialize").click()
    expect(_row(page, name)).to_contain_text("Healthy")
    _remove(page, name)
