"""Every recorded failure becomes its fault, and every row of the table is met by a recording."""

import re
from typing import Any

import pytest

from agent.drivers.base import CommandResult
from agent.tool_faults import MAX_DETAIL_CHARS, TABLE, Row, tool_fault, tool_of
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.recorded_commands import recordings

FAILURES = {
    f"{file}:{name}": recording
    for file in ("mount_nfs", "mount_cifs", "umount", "iscsiadm", "lvm", "other_tools")
    for name, recording in recordings(file).items()
}


def result_of(recording: dict[str, Any]) -> CommandResult:
    return CommandResult(
        tuple(recording["argv"]), recording["exit_code"], recording["stdout"], recording["stderr"], 0.1
    )


@pytest.mark.parametrize("name", FAILURES)
def test_tool_fault_of_a_recording_has_its_code_and_a_remedy(name: str) -> None:
    recording = FAILURES[name]
    fault = tool_fault(result_of(recording)).fault
    assert fault.code == recording["expect"]
    assert recording.get("remedy", "") in fault.remedy and fault.remedy
    assert 0 < len(fault.detail) <= MAX_DETAIL_CHARS
    assert fault.detail.startswith(tool_of(recording["argv"]).split(".")[0]) and "\n" not in fault.detail


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.tool}-{row.exit_code}-{row.pattern}")
def test_row_of_the_table_is_met_by_a_recording(row: Row) -> None:
    assert any(
        tool_of(recording["argv"]) == row.tool
        and row.exit_code in (None, recording["exit_code"])
        and re.search(row.pattern, recording["stderr"], re.IGNORECASE)
        and recording["expect"] == row.code
        for recording in FAILURES.values()
    )


def test_tool_fault_of_an_unknown_failure_shows_the_first_line_cut() -> None:
    fault = tool_fault(CommandResult(("umount", "/m"), 1, "", "\n  strange " + "x" * 1000 + "\nsecond", 0.1)).fault
    assert fault.code is FaultCode.FAILED
    assert fault.detail.startswith("umount: strange xxx") and len(fault.detail) == MAX_DETAIL_CHARS
    assert "second" not in fault.detail


def test_tool_fault_of_a_silent_failure_says_so() -> None:
    assert (
        tool_fault(CommandResult(("umount", "/m"), 7, "", "", 0.1)).fault.detail
        == "umount ended with code 7 and said nothing"
    )


def test_tool_fault_never_repeats_a_secret() -> None:
    secret = Credentials({"username": "svc-user", "password": "s3cret,pw"})
    result = CommandResult(("mount", "-t", "cifs"), 32, "", "mount error: svc-user with s3cret,pw is odd\n", 0.1)
    fault = tool_fault(result, secret).fault
    assert "s3cret" not in fault.detail and "svc-user" not in fault.detail


def test_tool_fault_with_control_characters_shows_none() -> None:
    fault = tool_fault(CommandResult(("umount", "/m"), 1, "", "umount: a\x1b[31mred\x07\n", 0.1)).fault
    assert fault.detail.isprintable()


@pytest.mark.parametrize(
    ("name", "is_retryable"),
    [
        ("mount_nfs:dead_address", True),
        ("mount_nfs:v3_unexported", False),
        ("mount_cifs:wrong_password", False),
        ("umount:busy", True),
    ],
)
def test_tool_fault_is_retryable_where_the_same_command_may_succeed_later(name: str, is_retryable: bool) -> None:
    assert tool_fault(result_of(FAILURES[name])).is_retryable is is_retryable
