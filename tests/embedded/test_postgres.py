"""The embedded PostgreSQL: where it can run, what it survives, and who gets in."""

import os
import shutil
import signal
import stat
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from manager.embedded import children
from manager.embedded.errors import StartError
from manager.embedded.postgres import Postgres
from tests.embedded.conftest import NOBODY, MakePostgres, as_root


async def _write(server: Postgres) -> None:
    connection = await asyncpg.connect(server.url())
    await connection.execute("CREATE TABLE kept (what text)")
    await connection.execute("INSERT INTO kept VALUES ('a row')")
    await connection.close()


async def _read(server: Postgres) -> str:
    connection = await asyncpg.connect(server.url())
    try:
        return str(await connection.fetchval("SELECT what FROM kept"))
    finally:
        await connection.close()


async def _stopped_with_a_row(server: Postgres) -> None:
    server.start()
    await _write(server)
    server.stop()


def _socket_dir_of(server: Postgres) -> Path:
    return Path(parse_qs(urlsplit(server.url()).query)["host"][0])


async def test_postgres_stopped_and_started_again_keeps_its_rows(open_dir: Path, make_postgres: MakePostgres) -> None:
    first = make_postgres(open_dir)
    first.start()
    await _write(first)
    first.stop()
    assert first.process is not None and first.process.returncode == 0
    second = make_postgres(open_dir)
    second.start()
    assert second.url() == first.url()
    assert await _read(second) == "a row"


async def test_postgres_killed_with_all_its_children_recovers(open_dir: Path, make_postgres: MakePostgres) -> None:
    first = make_postgres(open_dir)
    first.start()
    await _write(first)
    assert first.process is not None
    first.process.kill()
    first.process.wait()
    second = make_postgres(open_dir)
    second.start()
    assert await _read(second) == "a row"


async def test_postgres_with_a_pid_file_naming_another_living_process_starts(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    first = make_postgres(open_dir)
    first.start()
    await _write(first)
    pid_file = open_dir / "postgres" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    first.stop()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    second = make_postgres(open_dir)
    second.start()
    assert await _read(second) == "a row"


def test_postgres_on_the_folder_of_a_running_one_is_refused_with_its_pid(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    first = make_postgres(open_dir)
    first.start()
    with pytest.raises(StartError, match=str(first.pid)):
        make_postgres(open_dir).start()


async def test_postgres_whose_initialization_was_killed_begins_anew(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    server = make_postgres(open_dir)
    half = open_dir / "postgres" / "data.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server.start()
    await _write(server)
    assert not half.exists()


async def test_postgres_without_its_password_file_gets_a_new_password(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    first = make_postgres(open_dir)
    first.start()
    await _write(first)
    old = first.url()
    first.stop()
    (open_dir / "password").unlink()
    second = make_postgres(open_dir)
    second.start()
    assert second.url() != old
    assert await _read(second) == "a row"


async def test_postgres_with_a_wrong_password_lets_nobody_in(open_dir: Path, make_postgres: MakePostgres) -> None:
    server = make_postgres(open_dir)
    server.start()
    password = (open_dir / "password").read_text().strip()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url().replace(password, "wrong"))
    assert stat.S_IMODE((open_dir / "password").stat().st_mode) == 0o600
    assert password not in (open_dir / "postgres.log").read_text()


async def test_postgres_under_a_broken_locale_sorts_by_code_point_in_utf8(
    open_dir: Path, make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        monkeypatch.setenv(name, "xx_NOWHERE.UTF-8")
    server = make_postgres(open_dir)
    server.start()
    connection = await asyncpg.connect(server.url())
    assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    assert await connection.fetchval("SELECT lower('ÄB') || ('Z' < 'a')::text") == "äbtrue"
    await connection.close()


async def test_postgres_in_a_folder_with_a_very_long_path_gets_a_short_socket(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    folder = open_dir / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    first = make_postgres(folder)
    first.start()
    await _write(first)
    socket_dir = _socket_dir_of(first)
    assert len(str(socket_dir)) < 60
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert first.process is not None
    first.process.kill()
    first.process.wait()
    second = make_postgres(folder)
    second.start()
    assert await _read(second) == "a row"
    assert _socket_dir_of(second) == socket_dir
    second.stop()
    assert not socket_dir.exists()


def test_postgres_in_a_folder_with_a_very_long_path_deletes_no_folder_that_a_file_names(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    """As it did where an earlier version had written `socket_dir` into the folder of the servers' user."""
    folder = open_dir / ("x" * 60) / ("y" * 60)
    (folder / "postgres").mkdir(mode=0o700, parents=True)
    (open_dir / "victim").mkdir()
    (folder / "postgres" / "socket_dir").write_text(str(open_dir / "victim"))
    make_postgres(folder)
    assert (open_dir / "victim").exists()


async def test_postgres_whose_access_rules_were_in_its_folder_lets_us_in(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    """A data folder as the versions before made it."""
    await _stopped_with_a_row(make_postgres(open_dir))
    (open_dir / "postgres.hba").unlink()
    shutil.rmtree(open_dir / "postgres.socket")
    (open_dir / "postgres" / "socket").mkdir()
    (open_dir / "postgres" / "data" / "pg_hba.conf").write_text("local all stowage scram-sha-256\n")
    second = make_postgres(open_dir)
    second.start()
    assert await _read(second) == "a row"


async def test_postgres_whose_pid_file_is_a_link_keeps_what_it_names(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    await _stopped_with_a_row(make_postgres(open_dir))
    victim = open_dir / "victim"
    victim.write_text("0\n")
    (open_dir / "postgres" / "data" / "postmaster.pid").symlink_to(victim)
    second = make_postgres(open_dir)
    second.start()
    assert await _read(second) == "a row"
    assert victim.read_text() == "0\n"


def test_postgres_whose_data_is_a_link_is_refused_and_nothing_there_touched(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    server = make_postgres(open_dir)
    victim = open_dir / "victim"
    victim.mkdir()
    for name in ("PG_VERSION", "postmaster.pid"):
        (victim / name).write_text("0\n")
    (open_dir / "postgres" / "data").symlink_to(victim)
    with pytest.raises(StartError, match="is a link or a file"):
        server.start()
    assert len(list(victim.iterdir())) == 2


@as_root
def test_postgres_files_in_the_folder_of_its_user_are_all_his(open_dir: Path, make_postgres: MakePostgres) -> None:
    """So root has written nothing there, and no link could have led it elsewhere."""
    server = make_postgres(open_dir)
    server.start()
    owners = {path.lstat().st_uid for path in (open_dir / "postgres").rglob("*")}
    assert owners == {(open_dir / "postgres").stat().st_uid}
    assert (open_dir / "postgres.socket").stat().st_uid in owners
    assert stat.S_IMODE((open_dir / "postgres.hba").stat().st_mode) == 0o400


@as_root
def test_postgres_data_of_a_third_user_is_refused(open_dir: Path, make_postgres: MakePostgres) -> None:
    server = make_postgres(open_dir)
    (open_dir / "postgres" / "data").mkdir()
    os.chown(open_dir / "postgres" / "data", NOBODY.pw_uid + 1, NOBODY.pw_gid)
    with pytest.raises(StartError, match=f"belongs to user {NOBODY.pw_uid + 1}"):
        server.start()


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o711])
async def test_postgres_started_by_root_runs_and_leaves_the_parents_alone(
    mode: int, open_dir: Path, make_postgres: MakePostgres
) -> None:
    closed = open_dir / "closed"
    closed.mkdir(mode=mode)
    server = make_postgres(closed / "deep" / "data")
    server.start()
    await _write(server)
    assert stat.S_IMODE(closed.stat().st_mode) == mode
    server.stop()
    again = make_postgres(closed / "deep" / "data")
    again.start()
    assert await _read(again) == "a row"


@as_root
async def test_postgres_data_moved_where_its_user_cannot_go_changes_its_owner(
    open_dir: Path, make_postgres: MakePostgres
) -> None:
    (open_dir / "before").mkdir(mode=0o711)
    first = make_postgres(open_dir / "before")
    first.start()
    await _write(first)
    first.stop()
    (open_dir / "closed").mkdir(mode=0o700)
    shutil.move(open_dir / "before", open_dir / "closed" / "after")
    second = make_postgres(open_dir / "closed" / "after")
    second.start()
    assert await _read(second) == "a row"


def test_postgres_that_cannot_start_says_why_and_where_to_look(open_dir: Path, make_postgres: MakePostgres) -> None:
    server = make_postgres(open_dir)
    server.prepare()
    (open_dir / "postgres" / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    server.spawn()
    with pytest.raises(StartError, match="exit code 1") as refused:
        server.wait_ready()
    assert refused.value.log == open_dir / "postgres.log"
    assert "no_such_setting" in children.tail(open_dir / "postgres.log")


def test_postgres_deaf_to_polite_signals_is_killed_in_time(open_dir: Path, make_postgres: MakePostgres) -> None:
    server = make_postgres(open_dir)
    server.start()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    server.stop()
    assert server.process.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 4
