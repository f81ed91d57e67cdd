"""The journal across restarts."""

from pathlib import Path

import pytest

from agent import journal as module
from agent.journal import Journal, Record, RecordState
from schemas.ids import new_id
from tests.agent.fakes import target


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_fence_only_rises_and_survives_a_restart(path: Path) -> None:
    journal = Journal(path)
    journal.remember_fences({"a": 5})
    journal.remember_fences({"a": 3, "b": 1})
    journal.close()
    journal = Journal(path)
    assert (journal.fence("a"), journal.fence("b"), journal.fence("c")) == (5, 1, None)
    journal.close()


def test_raise_floor_forgets_what_it_covers_but_not_what_is_held_or_kept(path: Path, backend_id: str) -> None:
    journal = Journal(path)
    journal.remember_fences({backend_id: 1, "gone": 2, "kept": 3, "newer": 9})
    journal.put_record(Record(target(backend_id), RecordState.ATTACHED))
    journal.raise_floor(5, frozenset({"kept"}))
    assert [journal.fence(i) for i in (backend_id, "gone", "kept", "newer")] == [1, None, 3, 9]
    journal.raise_floor(4, frozenset())
    assert journal.floor() == 5
    journal.close()


def test_record_survives_a_restart_with_what_was_before(path: Path, backend_id: str) -> None:
    journal = Journal(path)
    record = Record(target(backend_id, generation=2), RecordState.ATTACHING, target(backend_id, server="old"))
    journal.put_record(record)
    journal.close()
    journal = Journal(path)
    assert journal.record(backend_id) == record
    assert journal.records() == {backend_id: record}
    journal.drop_record(backend_id)
    assert journal.record(backend_id) is None
    journal.close()


def test_answers_are_kept_by_age_and_by_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    journal = Journal(path, clock=lambda: now[0])
    monkeypatch.setattr(module, "MAX_REPLIES", 3)
    for n in range(5):
        journal.keep_answer(f"c{n}", b"r%d" % n)
    assert [journal.answered(f"c{n}") for n in range(5)] == [None, None, b"r2", b"r3", b"r4"]
    now[0] += module.MAX_REPLY_AGE_S + 1
    journal.keep_answer("late", b"r")
    assert journal.answered("c4") is None
    journal.close()


def test_journal_is_readable_by_its_owner_alone(path: Path) -> None:
    journal = Journal(path)
    journal.remember_fences({new_id(): 1})
    assert {file.stat().st_mode & 0o777 for file in path.parent.glob("journal.db*")} == {0o600}
    journal.close()


@pytest.mark.parametrize("later_s", [0, -3600, 0.5])
def test_each_life_has_a_higher_number_than_those_before(path: Path, later_s: float) -> None:
    journal = Journal(path, clock=lambda: 1e9)
    lives = [journal.begin_life()]
    journal.close()
    journal = Journal(path, clock=lambda: 1e9 + later_s)
    lives.append(journal.begin_life())
    journal.close()
    assert lives[0] < lives[1]


def test_life_after_a_lost_journal_has_a_higher_number_even_within_the_same_second(path: Path) -> None:
    lives: list[int] = []
    for now in (1e9 + 0.1, 1e9 + 0.3):
        journal = Journal(path, clock=iter((now,)).__next__)
        lives.append(journal.begin_life())
        journal.close()
        for file in path.parent.glob("journal.db*"):
            file.unlink()
    assert lives[0] < lives[1]
