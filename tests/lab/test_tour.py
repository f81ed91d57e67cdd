"""The README's part with virtual machines, line by line, in guests of its own."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.tour import ROOT, Shell, differences, opened_shell, tour

_UP = Path("/run/stowage-lab/lab.json")


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """Not with the session's lab: this test has one of its own, and ends it."""


@pytest.fixture
def shell() -> Iterator[Shell]:
    # There is one a machine, and this test ends its own at the end.
    assert not _UP.exists(), "a lab is up on this machine; end it with ./scripts/lab down"
    with opened_shell() as opened, contextlib.ExitStack() as stack:
        stack.callback(
            subprocess.run, [sys.executable, "-m", "tests.lab", "down"], cwd=ROOT, check=False, capture_output=True
        )
        yield opened


@pytest.mark.slow
def test_every_line_says_what_it_shows(shell: Shell) -> None:
    steps = tour((ROOT / "README.md").read_text(), language="console lab")
    assert len(steps) > 10, "the commands were not found"
    for step in steps:
        command = step.command.replace("lab up", "lab up --listen 127.0.0.1:8080")
        exit_code, said = shell.run(command)
        assert exit_code == 0, f"$ {step.command}\nended with {exit_code}:\n{said}"
        assert differences(step.shown, said) == [], f"$ {step.command}\nsaid:\n{said}"
