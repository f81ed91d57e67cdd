"""Makes the pictures of the README: the Storage page, light, dark and on a phone, and its Add dialog, of a stack made for it.

    .venv/bin/python scripts/screenshots.py [FOLDER]        FOLDER: docs/pictures if none is given

The manager, its database, its bus and its three agents are real; the storage below them is pretended (tests/fleet/world.py), and the
history of capacity is put into the database. Debian's fonts-inter must be there, or the letters are not those of the page.
"""

import asyncio
import datetime as dt
import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect

from tests.browser import told
from tests.browser.chromium import chromium
from tests.browser.estate import add_blank, add_nfs, add_smb, cell, dialog, row
from tests.browser.told import Stack
from tests.fleet.fleet import until

DESKTOP = ViewportSize(width=1280, height=880)
PHONE = ViewportSize(width=390, height=844)
TOTAL_BYTES = 2**40
#: Name -> (share of the total in use now, growth of that share in a day), and milliseconds of a probe on each host.
FLEET: dict[str, tuple[float, float, tuple[float, float, float]]] = {
    "local-ssd": (0.31, 0.004, (0.4, 0.5, 0.4)),
    "tank": (0.77, 0.012, (4.0, 3.0, 5.0)),
    "office": (0.962, 0.006, (9.0, 11.0, 8.0)),
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs/pictures"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stowage-pictures-", dir="/var/tmp") as place:
        # PostgreSQL's own user passes through it.
        Path(place).chmod(0o711)
        asyncio.run(take(folder, Path(place)))


async def take(folder: Path, place: Path) -> None:
    async with told.running(place / "stack") as stack, async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        await furnish(stack)
        for scheme in ("light", "dark"):
            page = await opened(browser, stack, DESKTOP, scheme)
            await page.screenshot(path=folder / f"storage-{scheme}.png")
        await show_add(page)
        await page.screenshot(path=folder / "add-dark.png")
        page = await opened(browser, stack, PHONE, "dark")
        await page.screenshot(path=folder / "storage-phone.png")
        await browser.close()


async def furnish(stack: Stack) -> None:
    """Backends of every kind and status, with volumes and a day's history."""
    local = {"name": "local-ssd", "kind": "local_file", "config": {"root_dir": "/var/lib/vms"}, "is_default": True}
    made = [
        await stack.made("/v1/storage_backends", local),
        await add_nfs(stack, "tank", labels={"tier": "gold"}),
        await add_smb(stack, "office"),
    ]
    await add_blank(stack, "san")
    for backend in made:
        share, growth, latencies = FLEET[backend["name"]]
        await stack.tell("used_bytes", used_bytes=int(share * TOTAL_BYTES), backend_id=backend["id"])
        for host, latency_ms in zip(("hv1", "hv2", "hv3"), latencies, strict=True):
            await stack.tell("take", host=host, backend_id=backend["id"], latency_ms=latency_ms)
    for backend in made:
        share, growth, _ = FLEET[backend["name"]]
        await until(
            partial(is_as_full, stack, backend["name"], share), f"{backend['name']} to be as full as it is to look"
        )
        await write_history(stack, backend, share, growth)
    for number in range(6):
        volume = {"name": f"web-{number}", "size_bytes": 2**20, "backend": ("tank", "office")[number % 2]}
        await stack.made("/v1/volumes", volume)
    await stack.made("/v1/volumes/web-0/attach", {"host": "hv1"})
    words = {"code": "permission_denied", "detail": "mount.cifs: permission denied (13)"}
    await stack.tell("ail", host="hv3", backend_id=made[2]["id"], **words)


async def is_as_full(stack: Stack, name: str, share: float) -> bool:
    found = (await stack.api("GET", f"/v1/storage_backends/{name}")).body["capacity"]
    return abs(found["used_bytes"] / found["total_bytes"] - share) < 0.001


async def write_history(stack: Stack, backend: Any, share: float, growth: float) -> None:
    """Two days of samples that end at the share."""
    hosts = 3 if backend["kind"] == "local_file" else 1
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    # The manager has looked already, before the backend was as full as it is to look.
    await stack.tell("sql", query="DELETE FROM capacity_sample WHERE backend_id = $1::text::uuid", args=[backend["id"]])
    for hours in range(48):
        slot = now - dt.timedelta(hours=hours)
        used = int((share - growth * hours / 24 + 0.0015 * math.sin(hours)) * TOTAL_BYTES) * hosts
        await stack.tell(
            "sql",
            query="INSERT INTO capacity_sample (backend_id, slot, taken_at, total_bytes, used_bytes, available_bytes)"
            " VALUES ($1::text::uuid, $2::text::timestamptz, $2::text::timestamptz, $3::bigint, $4::bigint, $5::bigint)",
            args=[backend["id"], slot.isoformat(), TOTAL_BYTES * hosts, used, TOTAL_BYTES * hosts - used],
        )


async def opened(browser: Browser, stack: Stack, viewport: ViewportSize, scheme: Any) -> Page:
    """The page as it looks when everything has come."""
    context = await browser.new_context(base_url=stack.url, viewport=viewport, color_scheme=scheme, locale="en-GB")
    answer = await context.request.post("/v1/session", data={"token": stack.token}, headers={"Origin": stack.url})
    assert answer.ok, await answer.text()
    page = await context.new_page()
    await page.goto("/")
    await expect(row(page, "tank")).to_contain_text("full in about")
    await expect(row(page, "office")).to_contain_text("(96 %)")
    await expect(cell(page, "tank", "hv1")).to_have_text("4 ms")
    await expect(row(page, "office")).to_contain_text("hv3")
    return page


async def show_add(page: Page) -> None:
    """A form with a scan's offer and a field that the API refused."""
    await page.get_by_role("button", name="Add backend").click()
    box = dialog(page, "Add backend")
    await box.get_by_label("Kind").select_option("nfs")
    await box.get_by_label("Name", exact=True).fill("tank two!")
    await box.get_by_label("Server", exact=True).fill("10.0.0.5")
    await box.get_by_label("Export").fill("tank/vms")
    await box.get_by_role("button", name="Add backend").click()
    await expect(box.get_by_role("alert").first).to_contain_text("attention")


if __name__ == "__main__":
    main()
