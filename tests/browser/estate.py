"""Backends that tests put on the stack, and the places of the page where they look for them."""

from typing import Any

from playwright.async_api import Locator, Page

from tests.browser.told import Stack

TARGET = "iqn.2026-01.org.example:vms"


async def add_nfs(stack: Stack, name: str, **more: Any) -> Any:
    """An NFS backend, proven on every host that it is for; as the API shows it."""
    body = {"name": name, "kind": "nfs", "config": {"server": "10.0.0.5", "export": "/tank/vms"}, **more}
    return await stack.made("/v1/storage_backends", body)


async def add_smb(stack: Stack, name: str, **more: Any) -> Any:
    """An SMB backend with the password that servers take."""
    body = {
        "name": name,
        "kind": "smb",
        "config": {"server": "nas", "share": "vms"},
        "credentials": {"username": "svc", "password": "right"},
        **more,
    }
    return await stack.made("/v1/storage_backends", body)


async def add_blank(stack: Stack, name: str, target: str = TARGET) -> Any:
    """A backend on a LUN that needs initialization."""
    await stack.tell("blank", targets=[target])
    config = {"portal": "10.0.0.9:3260", "target_iqn": target, "vg_name": "vg_vms"}
    return await stack.made("/v1/storage_backends", {"name": name, "kind": "iscsi_lvm", "config": config})


async def spoil(stack: Stack, host: str, code: str) -> None:
    """Every backend fails on that host with that fault: its probes, and the agent's attempts to mend it."""
    for verb in ("probe", "attach"):
        await stack.tell("fail", host=host, verb=verb, code=code)


async def mend(stack: Stack, host: str) -> None:
    for verb in ("probe", "attach"):
        await stack.tell("unfail", host=host, verb=verb)


def backends(page: Page) -> Locator:
    return page.get_by_role("table", name="Storage backends")


def row(page: Page, name: str) -> Locator:
    """The backend's row in the table."""
    return row_of(backends(page), name)


def row_of(table: Locator, name: str) -> Locator:
    """The row that the link of that name heads."""
    head = table.page.get_by_role("rowheader").get_by_role("link", name=name, exact=True)
    return table.get_by_role("row").filter(has=head)


def cell(page: Page, backend: str, host: str) -> Locator:
    """The backend's cell in the matrix."""
    return page.get_by_role("gridcell", name=f"{backend} on {host}:")


def dialog(page: Page, title: str) -> Locator:
    return page.get_by_role("dialog", name=title)
