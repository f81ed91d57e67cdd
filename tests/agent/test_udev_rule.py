"""The udev rule for the disks of our sessions: written once, told to udev, and no reason to fail."""

from pathlib import Path

import pytest

from agent.errors import AgentFault
from agent.udev_rule import UdevRule
from schemas.faults import FaultCode
from tests.agent.recorded_commands import RecordedCommands, Step

RELOAD = ("udevadm", "control", "--reload")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """udev's folder for rules of the running system, which udev itself does not make."""
    (tmp_path / "udev").mkdir()
    return tmp_path / "udev/rules.d"


def rules(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_it_is_written_and_udev_told_once(folder: Path) -> None:
    commands = RecordedCommands(Step(RELOAD))
    for _ in range(2):
        await UdevRule(commands, folder).ensure()

    commands.assert_done()
    assert rules(folder) == ["61-stowage-agent.rules"]
    assert (folder / "61-stowage-agent.rules").stat().st_mode & 0o777 == 0o644


async def test_another_text_under_its_name_is_replaced(folder: Path) -> None:
    folder.mkdir()
    (folder / "61-stowage-agent.rules").write_bytes(b"\xff of another version")

    await UdevRule(RecordedCommands(Step(RELOAD)), folder).ensure()

    assert 'RESULT=="stowage|stowage-????????????"' in (folder / "61-stowage-agent.rules").read_text()


async def test_a_host_without_udev_gets_none(tmp_path: Path) -> None:
    await UdevRule(RecordedCommands(), tmp_path / "udev/rules.d").ensure()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "step", [Step(RELOAD, exit_code=1), Step(RELOAD, fault=AgentFault.of(FaultCode.TOOL_MISSING, "no udevadm"))]
)
async def test_a_udev_that_is_not_told_is_a_warning(folder: Path, step: Step, caplog: pytest.LogCaptureFixture) -> None:
    await UdevRule(RecordedCommands(step), folder).ensure()

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert rules(folder) == ["61-stowage-agent.rules"]


async def test_a_folder_that_cannot_be_made_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file in its place")

    await UdevRule(RecordedCommands(), folder).ensure()

    assert [record.levelname for record in caplog.records] == ["WARNING"]
