"""`python -m tests.docs.faults`: writes docs/faults.md from the tables of the code, which a test holds it against."""

import errno

from agent.tool_faults import TABLE
from agent.workers import FAULT_OF_ERRNO
from schemas.faults import REMEDIES, FaultCode
from tests.docs.tour import ROOT

PAGE = ROOT / "docs/faults.md"
_HEAD = """# Faults and their remedies

Whatever keeps a backend from working on a host is one of these codes. An answer, an event and a cell of the health matrix have
the code, a detail in the words of the tool or kernel that failed, the host and a remedy. Where the table below names a remedy of
its own for a tool's words, that one is given instead of the code's.

This page is made from the code (`agent/tool_faults.py`, `agent/workers.py`, `schemas/faults.py`) by `python -m tests.docs.faults`.
The words are those of Debian 12's tools; `tests/agent/recorded` has them as recorded, and `tests/lab` meets most of them on real servers.

| code | remedy |
| --- | --- |
"""
_TOOLS = """
## What tools say

Searched in this order in what a tool writes to stderr, letter case ignored; the first that fits counts. A failure that fits none is `failed`,
with the tool's first line.

| tool | exit code | words | code | remedy of its own |
| --- | --- | --- | --- | --- |
"""
_ERRNO = """
## What the kernel says

A probe is system calls; one that fails has an errno.

| errno | code |
| --- | --- |
"""


def page() -> str:
    """The page as it should be."""
    codes = "".join(f"| `{code}` | {REMEDIES[code]} |\n" for code in FaultCode)
    tools = "".join(
        f"| {row.tool} | {'any' if row.exit_code is None else row.exit_code} | {_words(row.pattern)} | `{row.code}` | {row.remedy or ''} |\n"
        for row in TABLE
    )
    errnos = "".join(f"| {errno.errorcode[number]} | `{code}` |\n" for number, code in FAULT_OF_ERRNO.items())
    return f"{_HEAD}{codes}{_TOOLS}{tools}{_ERRNO}{errnos}"


def _words(pattern: str) -> str:
    """A pattern as a table's cell can hold it."""
    return "any" if not pattern else "`" + pattern.replace("|", "\\|") + "`"


if __name__ == "__main__":
    PAGE.write_text(page())
