"""`stowage up --agents 3`, one of them killed: what the others and the manager make of it."""

import os
import signal
from typing import Any

import pytest

from manager.embedded import children
from tests.embedded.stack import Stack

pytestmark = pytest.mark.slow


@pytest.fixture
def quick_stack(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stack:
    """Agents that probe each second, and a manager that notices silence after three."""
    for word, value in (("AGENT_PROBE_S", "1"), ("AGENT_BEAT_S", "0.5"), ("HOST_SILENT_S", "3")):
        monkeypatch.setenv(f"STOWAGE_{word}", value)
    made: Stack = request.getfixturevalue("stack")
    return made


def test_killed_agent_turns_unknown_the_backend_amber_and_the_others_keep_their_pace(quick_stack: Stack) -> None:
    ready = quick_stack.up("--agents", "3")
    names = list(ready["pids"]["agents"])
    victim, others = names[1], [names[0], names[2]]

    def cells() -> dict[str, dict[str, Any]]:
        found = quick_stack.get("/v1/storage_backends/local/hosts")["hosts"]
        return {cell["host"]: cell for cell in found}

    def backend() -> dict[str, Any]:
        found: dict[str, Any] = quick_stack.get("/v1/storage_backends/local")
        return found

    def is_probed_again(name: str) -> bool:
        before = cells()[name]["observed_at"]
        return children.wait_until(lambda: cells()[name]["observed_at"] > before, timeout_s=3)

    assert children.wait_until(lambda: backend()["health"]["status"] == "healthy", timeout_s=20)

    os.kill(ready["pids"]["agents"][victim], signal.SIGKILL)

    assert children.wait_until(lambda: cells()[victim]["status"] == "unknown", timeout_s=20)
    assert cells()[victim]["code"] == "host_offline"
    shown = backend()
    assert (shown["health"]["status"], shown["host_summary"]) == ("degraded", {"total": 3, "healthy": 2})
    assert victim in shown["health"]["detail"]
    assert {h["name"]: h["state"] for h in quick_stack.get("/v1/hosts")["items"]}[victim] == "offline"

    # Three more probes of each of the others come, none later than three intervals after the one before.
    for name in others:
        for _ in range(3):
            assert is_probed_again(name)
        assert cells()[name]["status"] == "healthy"

    types = [event["type"] for event in quick_stack.get("/v1/events?type=backend.health_changed")["items"]]
    assert types == ["backend.health_changed"]
