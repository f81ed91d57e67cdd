"""The journal across restarts."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from agent import journal as module
from agent.journal import Journal, NotedAttachment, Record, RecordState
from schemas.ids import new_id
from schemas.volume_rpc import AttachMode, VolumeFormat, VolumeSpec
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


def note(volume_id: str, *, epoch: int = 1, mode: AttachMode = AttachMode.RW) -> NotedAttachment:
    spec = VolumeSpec(locator="0" * 32, format=VolumeFormat.QCOW2, size_bytes=4096)
    return NotedAttachment(volume_id, "b", epoch=epoch, fence=7, mode=mode, spec=spec)


def test_attachment_survives_a_restart_and_the_newest_counts(path: Path) -> None:
    journal = Journal(path)
    journal.note_attachment(note("v"))
    journal.note_attachment(note("v", epoch=2, mode=AttachMode.RO))
    journal.note_attachment(note("u"))
    journal.close()
    journal = Journal(path)
    assert journal.attachments() == (note("u"), note("v", epoch=2, mode=AttachMode.RO))
    assert journal.attachment("v") == note("v", epoch=2, mode=AttachMode.RO)
    journal.drop_attachment("v")
    assert journal.attachment("v") is None
    assert journal.attachments() == (note("u"),)
    journal.close()


def test_epoch_only_rises_and_outlives_its_attachment(path: Path) -> None:
    journal = Journal(path)
    assert journal.epoch("v") == 0
    journal.note_attachment(note("v", epoch=5))
    journal.drop_attachment("v")
    journal.remember_epoch("v", 3)
    journal.close()
    journal = Journal(path)
    assert journal.epoch("v") == 5
    journal.remember_epoch("v", 6)
    assert journal.epoch("v") == 6
    journal.close()


def test_epochs_are_kept_by_number_but_of_what_is_attached_always(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EPOCHS", 3)
    journal = Journal(path)
    journal.note_attachment(note("attached"))
    for n in range(5):
        journal.remember_epoch(f"v{n}", 1)
        journal.remember_epoch("v0", n + 1)
    assert [journal.epoch(i) for i in ("attached", "v0", "v1", "v2", "v4")] == [1, 5, 0, 0, 1]
    journal.close()


def test_journal_of_an_agent_without_volumes_is_taken_over(path: Path, backend_id: str) -> None:
    journal = Journal(path)
    journal.put_record(Record(target(backend_id), RecordState.ATTACHED))
    journal.close()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript("DROP TABLE attachment; DROP TABLE epoch;")
    journal = Journal(path)
    assert journal.attachments() == ()
    assert journal.record(backend_id) is not None
    journal.close()
