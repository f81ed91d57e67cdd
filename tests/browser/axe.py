"""axe-core on a page as it is: what would keep somebody from using it."""

from functools import cache
from importlib import resources
from typing import Any

from playwright.async_api import Page

_SETTLE = "Promise.allSettled(document.getAnimations().map((animation) => animation.finished))"
_RUN = "axe.run().then(({ violations }) => violations)"


async def check_axe(page: Page) -> None:
    """Fails the test when axe finds anything in the page, light or dark. The page's context must bypass the CSP (`axe_page`)."""
    await page.evaluate(_script())
    for scheme in ("light", "dark"):
        # Colours in the middle of a transition are nobody's fault.
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await page.evaluate(_SETTLE)
        violations: list[dict[str, Any]] = await page.evaluate(_RUN)
        assert not violations, "\n".join(f"{scheme}: {_told(violation)}" for violation in violations)


@cache
def _script() -> str:
    """From the wheel; its Python, which has no types, is not used."""
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()


def _told(violation: dict[str, Any]) -> str:
    nodes = "; ".join(f"{node['target']}: {node['failureSummary']}" for node in violation["nodes"])
    return f"{violation['id']} ({violation['help']}) at {nodes}"
