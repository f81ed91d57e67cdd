"""SQLite on the host's own disk: fences, answered commands, what is attached here (backends, volumes), what a trial may have left.

Written before acting, so that `kill -9` at any moment leaves a trace to clean up by. Commits are
durable (synchronous=FULL); one costs about a millisecond, on a disk of the host and never on a backend.
No secret comes here: replies with nonces or boxes are not kept.
"""

import enum
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from schemas.command import Target
from schemas.volume_rpc import AttachMode, VolumeSpec

#: A manager retries a step for minutes, not days.
MAX_REPLY_AGE_S = 24 * 3600
MAX_REPLIES = 5_000
#: Epochs of volumes that are not attached here; a command that comes after so many other volumes were, has long lost its fence.
MAX_EPOCHS = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS fence (backend_id TEXT PRIMARY KEY, fence INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floor (is_only INTEGER PRIMARY KEY CHECK (is_only = 1), fence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS life (is_only INTEGER PRIMARY KEY CHECK (is_only = 1), number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS record (
  backend_id TEXT PRIMARY KEY, state TEXT NOT NULL, target BLOB NOT NULL, previous BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trial (backend_id TEXT PRIMARY KEY, target BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reply (
  n INTEGER PRIMARY KEY, command_id TEXT NOT NULL UNIQUE, answered_at REAL NOT NULL, reply BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS attachment (
  volume_id TEXT PRIMARY KEY, backend_id TEXT NOT NULL, epoch INTEGER NOT NULL, fence INTEGER NOT NULL,
  mode TEXT NOT NULL, spec BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS epoch (
  n INTEGER PRIMARY KEY, volume_id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL);
"""

_target_decoder = msgspec.json.Decoder(Target)
_spec_decoder = msgspec.json.Decoder(VolumeSpec)


class RecordState(enum.StrEnum):
    ATTACHING = "attaching"
    ATTACHED = "attached"
    RELEASING = "releasing"


@dataclass(frozen=True)
class Record:
    """What is, or may be, held of a backend here.

    previous: while attaching, what was attached before with another config; it may still be.
    """

    target: Target
    state: RecordState
    previous: Target | None = None


@dataclass(frozen=True)
class NotedAttachment:
    """A volume that is, or may be, attached here. fence: of the command that did it."""

    volume_id: str
    backend_id: str
    epoch: int
    fence: int
    mode: AttachMode
    spec: VolumeSpec


class Journal:
    """One process, one journal. Every method commits before it returns."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Before SQLite makes it: the files beside it (-wal, -shm) get the mode of this one.
        path.touch(mode=0o600)
        path.chmod(0o600)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def begin_life(self) -> int:
        """A number higher than in any earlier run. By the clock too (ms), so that a journal that was lost does not begin at 1."""
        row = self._db.execute(
            "INSERT INTO life VALUES (1, ?) ON CONFLICT DO UPDATE SET number = max(life.number + 1, excluded.number)"
            " RETURNING number",
            (int(self._clock() * 1000),),
        ).fetchone()
        return int(row[0])

    def fence(self, backend_id: str) -> int | None:
        """The highest fence seen for the backend; None: never heard of it since the last sync."""
        row = self._db.execute("SELECT fence FROM fence WHERE backend_id = ?", (backend_id,)).fetchone()
        return None if row is None else int(row[0])

    def remember_fences(self, fences: Mapping[str, int]) -> None:
        """Each backend's fence is at least this."""
        if not fences:
            return
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO fence VALUES (?, ?) ON CONFLICT DO UPDATE SET fence = max(fence.fence, excluded.fence)",
                list(fences.items()),
            )

    def floor(self) -> int:
        """The fence of the last sync: below it, a backend that we never heard of is an old story."""
        row = self._db.execute("SELECT fence FROM floor").fetchone()
        return 0 if row is None else int(row[0])

    def raise_floor(self, fence: int, keep: frozenset[str]) -> None:
        """The floor is at least this; fences at or below it of backends not in `keep` and not held are forgotten."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO floor VALUES (1, ?) ON CONFLICT DO UPDATE SET fence = max(floor.fence, excluded.fence)",
                (fence,),
            )
            doomed = self._db.execute(
                "SELECT backend_id FROM fence WHERE fence <= ? AND backend_id NOT IN (SELECT backend_id FROM record)",
                (fence,),
            ).fetchall()
            self._db.executemany(
                "DELETE FROM fence WHERE backend_id = ?", [row for row in doomed if row[0] not in keep]
            )

    def record(self, backend_id: str) -> Record | None:
        row = self._db.execute(
            "SELECT state, target, previous FROM record WHERE backend_id = ?", (backend_id,)
        ).fetchone()
        return None if row is None else _record(*row)

    def records(self) -> dict[str, Record]:
        rows = self._db.execute("SELECT backend_id, state, target, previous FROM record ORDER BY backend_id").fetchall()
        return {row[0]: _record(*row[1:]) for row in rows}

    def put_record(self, record: Record) -> None:
        previous = None if record.previous is None else msgspec.json.encode(record.previous)
        self._db.execute(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)",
            (record.target.backend_id, record.state.value, msgspec.json.encode(record.target), previous),
        )

    def drop_record(self, backend_id: str) -> None:
        """Nothing is held of it any more; its fence stays."""
        self._db.execute("DELETE FROM record WHERE backend_id = ?", (backend_id,))

    def trials(self) -> tuple[Target, ...]:
        """Targets of trials that did not come to their end."""
        return tuple(_target_decoder.decode(row[0]) for row in self._db.execute("SELECT target FROM trial").fetchall())

    def begin_trial(self, target: Target) -> None:
        self._db.execute("INSERT OR REPLACE INTO trial VALUES (?, ?)", (target.backend_id, msgspec.json.encode(target)))

    def end_trial(self, backend_id: str) -> None:
        self._db.execute("DELETE FROM trial WHERE backend_id = ?", (backend_id,))

    def answered(self, command_id: str) -> bytes | None:
        """The reply that was given to this command, if it succeeded."""
        row = self._db.execute("SELECT reply FROM reply WHERE command_id = ?", (command_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep_answer(self, command_id: str, reply: bytes) -> None:
        """A repeat of the command gets the same reply, for a day or 5,000 commands."""
        now = self._clock()
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            cursor = self._db.execute(
                "INSERT OR REPLACE INTO reply (command_id, answered_at, reply) VALUES (?, ?, ?)",
                (command_id, now, reply),
            )
            self._db.execute(
                "DELETE FROM reply WHERE n <= ? OR answered_at < ?",
                ((cursor.lastrowid or 0) - MAX_REPLIES, now - MAX_REPLY_AGE_S),
            )

    def attachments(self) -> tuple[NotedAttachment, ...]:
        rows = self._db.execute(
            "SELECT volume_id, backend_id, epoch, fence, mode, spec FROM attachment ORDER BY volume_id"
        ).fetchall()
        return tuple(_attachment(*row) for row in rows)

    def attachment(self, volume_id: str) -> NotedAttachment | None:
        row = self._db.execute(
            "SELECT volume_id, backend_id, epoch, fence, mode, spec FROM attachment WHERE volume_id = ?", (volume_id,)
        ).fetchone()
        return None if row is None else _attachment(*row)

    def note_attachment(self, note: NotedAttachment) -> None:
        """The volume is on record as this attachment, and its epoch remembered."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR REPLACE INTO attachment VALUES (?, ?, ?, ?, ?, ?)",
                (
                    note.volume_id,
                    note.backend_id,
                    note.epoch,
                    note.fence,
                    note.mode.value,
                    msgspec.json.encode(note.spec),
                ),
            )
            self._remember_epoch(note.volume_id, note.epoch)

    def drop_attachment(self, volume_id: str) -> None:
        """The volume is not attached here; its epoch stays."""
        self._db.execute("DELETE FROM attachment WHERE volume_id = ?", (volume_id,))

    def epoch(self, volume_id: str) -> int:
        """The highest epoch seen of the volume; 0: none."""
        row = self._db.execute("SELECT epoch FROM epoch WHERE volume_id = ?", (volume_id,)).fetchone()
        return 0 if row is None else int(row[0])

    def remember_epoch(self, volume_id: str, epoch: int) -> None:
        """The volume's epoch is at least this."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._remember_epoch(volume_id, epoch)

    def _remember_epoch(self, volume_id: str, epoch: int) -> None:
        cursor = self._db.execute(
            "INSERT OR REPLACE INTO epoch (volume_id, epoch) VALUES (?, ?)",
            (volume_id, max(epoch, self.epoch(volume_id))),
        )
        self._db.execute(
            "DELETE FROM epoch WHERE n <= ? AND volume_id NOT IN (SELECT volume_id FROM attachment)",
            ((cursor.lastrowid or 0) - MAX_EPOCHS,),
        )


def _attachment(volume_id: str, backend_id: str, epoch: int, fence: int, mode: str, spec: bytes) -> NotedAttachment:
    return NotedAttachment(volume_id, backend_id, epoch, fence, AttachMode(mode), _spec_decoder.decode(spec))


def _record(state: str, target: bytes, previous: bytes | None) -> Record:
    return Record(
        target=_target_decoder.decode(target),
        state=RecordState(state),
        previous=None if previous is None else _target_decoder.decode(previous),
    )
