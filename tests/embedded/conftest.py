"""Fixtures for what starts servers of its own."""

import contextlib
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from manager.embedded import identity, postgres
from manager.embedded.postgres import Postgres
from tests.embedded.stack import Stack

MakePostgres = Callable[[Path], Postgres]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder through which other users may pass, with a short path; pytest's own lies in a 0700 folder."""
    folder = Path(tempfile.mkdtemp(prefix="stowage-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stack(open_dir: Path) -> Iterator[Stack]:
    """`stowage up` and its like on a folder of its own; everything is down at the end."""
    made = Stack(open_dir / "data")
    yield made
    made.end()


@pytest.fixture
def make_postgres() -> Iterator[MakePostgres]:
    """Makes servers, one on a folder at a time, and kills what is left of them."""
    made: list[Postgres] = []

    def make(folder: Path) -> Postgres:
        data = folder / "postgres"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        who = identity.choose(data, [postgres.binaries() / "postgres"])
        log, password = folder / "postgres.log", folder / "password"
        settings = {"fsync": "off"}
        made.append(Postgres(data, password_file=password, log=log, identity=who, settings=settings))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@contextlib.contextmanager
def killed_at_the_end(pid: int) -> Generator[None]:
    """Nothing of the process is left, whatever the test does."""
    process = os.pidfd_open(pid)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)
