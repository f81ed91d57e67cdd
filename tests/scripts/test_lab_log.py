"""The lab's log of failures, without a lab."""

from pathlib import Path
from typing import Literal

import pytest

from tests.lab import conftest


def report_of(outcome: Literal["passed", "failed"]) -> pytest.TestReport:
    where = ("tests/lab/test_x.py", 1, "test_y")
    return pytest.TestReport("tests/lab/test_x.py::test_y", where, {}, outcome, "left: a mount", "teardown")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As of a run whose folder is not there yet, seen where workers are started."""
    monkeypatch.setenv("STOWAGE_LAB_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    return tmp_path / "log" / "failures.log"


def test_failure_is_written_down_at_once_and_success_is_not(log: Path) -> None:
    conftest.pytest_runtest_logreport(report_of("passed"))
    assert not log.exists()
    for _ in range(2):
        conftest.pytest_runtest_logreport(report_of("failed"))
    assert log.read_text() == "== tests/lab/test_x.py::test_y (teardown)\nleft: a mount\n\n" * 2


def test_worker_leaves_the_log_to_whoever_started_it(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conftest.pytest_runtest_logreport(report_of("failed"))
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    before = log.read_text()
    conftest.pytest_runtest_logreport(report_of("failed"))
    conftest.pytest_sessionstart()
    assert log.read_text() == before


def test_run_begins_with_a_log_of_its_own(log: Path) -> None:
    conftest.pytest_sessionstart()
    conftest.pytest_runtest_logreport(report_of("failed"))
    conftest.pytest_sessionstart()
    assert not log.exists()
