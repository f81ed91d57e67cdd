"""Commands that answer from recordings and insist on the exact argv; the recordings lie in tests/agent/recorded.

Each recording says where its words come from: the lab (real servers), a run on a machine without them, the message in
the tool's binary, or its source. `expect` is the fault code that it must become.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.drivers.base import CommandResult
from agent.errors import AgentFault

RECORDED = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Step:
    """One expected call. effect: what the tool does to the world; fault: it does not end as a tool, for example timed_out."""

    argv: tuple[str, ...]
    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""
    effect: Callable[[], None] = lambda: None
    fault: AgentFault | None = None


class RecordedCommands:
    """Answers one step after the other; a call that is not the next one fails the test, and so do steps left over."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.calls: list[tuple[str, ...]] = []
        self.stdins: list[bytes | None] = []
        self.limits_s: list[float] = []

    def then(self, *steps: Step) -> "RecordedCommands":
        self._steps += steps
        return self

    async def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> CommandResult:
        self.calls.append(tuple(argv))
        self.stdins.append(stdin)
        self.limits_s.append(timeout_s)
        assert timeout_s > 0
        assert self._steps, f"not expected at all: {list(argv)}"
        step = self._steps.pop(0)
        assert tuple(argv) == step.argv, f"expected {list(step.argv)}\ngot      {list(argv)}"
        step.effect()
        if step.fault is not None:
            raise step.fault
        return CommandResult(tuple(argv), step.exit_code, step.stdout, step.stderr, 0.01)

    def assert_done(self) -> None:
        assert not self._steps, f"never called: {[list(step.argv) for step in self._steps]}"


def recordings(name: str) -> dict[str, dict[str, Any]]:
    """The recordings of one file, by name."""
    found: dict[str, dict[str, Any]] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def replay(file: str, name: str, argv: Sequence[str], effect: Callable[[], None] = lambda: None) -> Step:
    """The recording as a step for this argv."""
    recording = recordings(file)[name]
    return Step(tuple(argv), recording["exit_code"], recording["stdout"], recording["stderr"], effect)
