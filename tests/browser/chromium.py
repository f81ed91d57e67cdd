"""The machine's own Chromium, which drives the tests of this folder; none is ever downloaded."""

import os
import shutil

#: What is said, once, when there is none.
MISSING = "tests/browser needs Chromium, and there is no `chromium` in PATH: apt-get install chromium fonts-inter"
#: Debian's build of Chromium without a window, and the whole of it. A page opens four times as fast in the first (0.12 s
#: instead of 0.48 s on two busy cores, 2026-11-29).
_NAMES = ("chromium-headless-shell", "chromium")


def chromium() -> str | None:
    """Its path, if it is installed. STOWAGE_CHROMIUM names another to be used."""
    named = os.environ.get("STOWAGE_CHROMIUM")
    names = (named,) if named else _NAMES
    return next((path for name in names if (path := shutil.which(name))), None)


def must_be_there() -> bool:
    """Whether a run without it has failed: CI skips nothing for want of a package."""
    return os.environ.get("CI") == "true"
