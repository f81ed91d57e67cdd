"""What a marker means for a backend, and which words of a stranger's marker are repeated."""

import pytest

from agent import markers
from agent.errors import AgentFault
from schemas.command import Target
from schemas.faults import FaultCode

TARGET = Target(backend_id="b-1", fleet_id="f-1", kind="nfs", config={}, generation=1)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"backend_id": "0190-b2", "fleet_id": "f-1"}, "belongs to backend 0190-b2"),
        ({"backend_id": "0190-b2", "fleet_id": "f-2"}, "belongs to backend 0190-b2 of another fleet"),
        ({"backend_id": "<script>\n", "fleet_id": "f-1"}, "belongs to backend with an unreadable id"),
        ({}, "has a marker that cannot be read"),
    ],
)
def test_refuse_other_names_the_other_and_how_to_clear_it(found: dict[str, str], words: str) -> None:
    with pytest.raises(AgentFault) as caught:
        markers.refuse_other({"marker": "other", "found": found}, TARGET, "nas:/vms")
    fault = caught.value.fault
    assert (fault.code, fault.detail) == (FaultCode.MARKER_MISMATCH, f"nas:/vms {words}")
    assert "delete nas:/vms/.stowage-backend.json" in fault.remedy


@pytest.mark.parametrize("answer", [{"marker": "ours", "found": {}}, {"marker": "missing"}])
def test_refuse_other_lets_ours_and_none_pass(answer: dict[str, object]) -> None:
    markers.refuse_other(answer, TARGET, "nas:/vms")


@pytest.mark.parametrize(
    ("tags", "marker"),
    [
        ((), "missing"),
        (("theirs", "stowage"), "missing"),
        (("theirs", "stowage_backend_b-1", "stowage_fleet_f-1"), "ours"),
        (("stowage_backend_b-2", "stowage_fleet_f-1"), "other"),
        (("stowage_backend_b-1", "stowage_fleet_f-2"), "other"),
        (("stowage_backend_b-1",), "other"),
        (("stowage_backend_b-1", "stowage_backend_b-2", "stowage_fleet_f-1"), "other"),
        (("stowage_backend_b-1", "stowage_fleet_f-1", "stowage_fleet_f-2"), "other"),
    ],
)
def test_read_tags_takes_ours_only_whole(tags: tuple[str, ...], marker: str) -> None:
    assert markers.read_tags(tags, TARGET)["marker"] == marker


def test_read_tags_of_two_backends_names_the_other() -> None:
    for tags in (("stowage_backend_b-1", "stowage_backend_b-2"), ("stowage_backend_b-2", "stowage_backend_b-1")):
        assert markers.read_tags((*tags, "stowage_fleet_f-1"), TARGET)["found"]["backend_id"] == "b-2"
