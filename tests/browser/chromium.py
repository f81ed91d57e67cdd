"""The machine's own Chromium, which drives the tests of this folder; none is ever downloaded."""

import os
import shutil

#: What is said, once, when there is none.
MISSING = "tests/browser needs Chromium, and there is no `chromium` in PATH: apt-get install chromium fonts-inter"


def chromium() -> str | None:
    """Its path, if it is installed."""
    return shutil.which("chromium")


def must_be_there() -> bool:
    """Whether a run without it has failed: CI skips nothing for want of a package."""
    return os.environ.get("CI") == "true"
