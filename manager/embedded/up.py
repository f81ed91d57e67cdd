"""`stowage up`: PostgreSQL, NATS, managers, agents, first backend; then ready.json, and watching until a signal.

Everything here runs in the main thread and blocks, because the children's death signal follows that
thread. Whatever waits looks at the stop signals meanwhile (stopping.py).
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from manager import bus_auth
from manager.embedded import children, identity, nats, postgres
from manager.embedded.client import ManagerClient
from manager.embedded.errors import StartError
from manager.embedded.layout import Layout, agent_names, manager_names, toml, write_private
from manager.embedded.lock import DataLock
from manager.embedded.nats import Nats
from manager.embedded.ports import free_port, is_free
from manager.embedded.postgres import Postgres
from manager.embedded.stopping import StopRequested, StopSignals
from manager.embedded.supervisor import Service, Supervisor
from manager.keys import Keys

_LOOPBACK = "127.0.0.1"
_MANAGER_READY_TIMEOUT_S = 60
_JOIN_TIMEOUT_S = 30
_ONLINE_TIMEOUT_S = 30
_POLL_S = 0.02
_OVERRIDES = {
    f"STOWAGE_{key}"
    for key in ("DATABASE_URL", "NATS_URLS", "KEYS_DIR", "STATE_DIR", "LISTEN", "REPLICA", "AGENT_NATS_URLS")
}
#: Seconds until an agent that somebody killed is started again: long enough to see its hosts turn unknown.
_AGENT_REST_S = 120.0
_ANY_ADDRESS = {"0.0.0.0": _LOOPBACK, "::": "::1"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the person asked for. port 0: a free one."""

    data: Path
    host: str
    port: int
    agents: int = 1
    managers: int = 1


def up(options: Options, *, say: Callable[[str], None]) -> None:
    """Runs until a signal comes, then stops everything. Raises StartError."""
    layout = Layout(options.data.absolute())
    layout.create()
    stop_signals = StopSignals()
    stop_signals.listen()
    try:
        lock = DataLock(layout.data, check=stop_signals.check)
        try:
            layout.rotate_logs()
            _Start(options, layout, lock, stop_signals, say).run()
        finally:
            lock.release()
    except StopRequested:
        say("stopped")


class _Start:
    """One start of everything on a locked data folder."""

    def __init__(
        self, options: Options, layout: Layout, lock: DataLock, stop_signals: StopSignals, say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._layout = layout
        self._keep_fds = (lock.children_fd,)
        self._say = say
        self._check = stop_signals.check
        self._supervisor = Supervisor(layout.logs, stop_signals=stop_signals, on_restart=self._write_ready)
        self._clients: list[ManagerClient] = []
        self._notes: list[str] = []
        self._services: dict[str, Service] = {}

    def run(self) -> NoReturn:
        """Starts, watches; whatever ends it, every child is stopped."""
        began = time.monotonic()
        try:
            self._layout.ready.unlink(missing_ok=True)
            self._start_servers()
            self._start_managers()
            self._start_agents()
            self._write_ready()
            self._say(self._banner(time.monotonic() - began))
            self._supervisor.run()
            raise AssertionError("the supervisor returned")
        finally:
            self._layout.ready.unlink(missing_ok=True)
            self._supervisor.stop()

    def _start_servers(self) -> None:
        layout = self._layout
        who = identity.choose(layout.postgres, [postgres.binaries() / "postgres", nats.binary()])
        self._postgres = Postgres(
            layout.postgres,
            password_file=layout.postgres_password,
            log=layout.log("postgres"),
            identity=who,
            keep_fds=self._keep_fds,
            check=self._check,
        )
        self._postgres.start()
        self._watch("postgres", self._postgres.spawn, self._postgres.process, stop=self._postgres.stop)
        # After the first start there are hosts that trust them, so they are not made anew.
        keys = Keys.load(layout.keys) if layout.first_start_done.exists() else Keys.load_or_create(layout.keys)
        identity.own(layout.nats, who)
        self._nats = Nats(
            layout.nats,
            config_for=lambda port: bus_auth.server_config(
                keys, data_dir=layout.nats, host=_LOOPBACK, port=port, ports_file_dir=layout.nats
            ),
            log=layout.log("nats"),
            identity=who,
            keep_fds=self._keep_fds,
            check=self._check,
        )
        self._nats.start()
        self._watch("nats", self._nats.spawn, self._nats.process, stop=self._nats.stop)

    def _start_managers(self) -> None:
        options, layout = self._options, self._layout
        for name in manager_names(options.managers):
            is_first = name == "manager"
            port = _usable_port(options.host, options.port if is_first else 0)
            folder = layout.manager(name)
            folder.mkdir(mode=0o700, exist_ok=True)
            address = f"[{options.host}]" if ":" in options.host else options.host
            config: dict[str, str | Sequence[str]] = {
                "database_url": self._postgres.url(),
                "nats_urls": [self._nats.url],
                "keys_dir": str(layout.keys),
                "state_dir": str(folder),
                "listen": f"{address}:{port}",
                "replica": name if not is_first else "manager-1",
            }
            write_private(folder / "config.toml", toml(config))
            client = ManagerClient(
                _ANY_ADDRESS.get(options.host, options.host), port, layout.admin_token, check=self._check
            )
            self._start_child(f"manager {name}", name, ["manager", "--config", str(folder / "config.toml")])
            self._wait(client.is_ready, f"{name} to be ready", timeout_s=_MANAGER_READY_TIMEOUT_S, log=layout.log(name))
            self._clients.append(client)

    def _start_agents(self) -> None:
        layout, client = self._layout, self._clients[0]
        revoked = client.revoked_hosts()
        names: list[str] = []
        for name in agent_names(self._options.agents):
            folder = layout.agent(name)
            if not (folder / "agent.toml").exists():
                self._join(name, folder, client)
            elif (host_id := _host_id(folder / "agent.toml")) in revoked:
                # It would knock at the bus for ever, and every start would wait for it.
                # Moved, never removed: a backend may still be mounted below, and removing would empty it.
                aside = shlex.join(["mv", str(folder), f"{folder}.revoked-{host_id}"])
                self._notes.append(f"agent {name} is revoked and stays down; to let it join anew, {aside}")
                continue
            names.append(name)
            argv = ["agent", "run", "--state-dir", str(folder), "--nats-url", self._nats.url]
            argv += [word for reserved in layout.reserved() for word in ("--reserve", str(reserved))]
            argv += ["--images", str(layout.images)]
            self._start_child(f"agent {name}", f"agent-{name}", argv, rest_after_kill_s=_AGENT_REST_S)
        is_first_start = not layout.first_start_done.exists()
        missing = set(names)

        def all_online() -> bool:
            missing.difference_update(client.online_hosts())
            return not missing

        if not children.wait_until(all_online, timeout_s=_ONLINE_TIMEOUT_S, check=self._check, poll_s=_POLL_S):
            late = f"agents did not come online in {_ONLINE_TIMEOUT_S} s: {', '.join(sorted(missing))}"
            if is_first_start:
                raise StartError(late, log=layout.log(f"agent-{min(missing)}"))
            self._notes.append(f"{late}; their logs are in {layout.logs}")
        if is_first_start:
            if names:
                client.add_default_backend(layout.volumes)
            write_private(layout.first_start_done, "")

    def _join(self, name: str, folder: Path, client: ManagerClient) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        path = self._layout.log(f"agent-{name}")
        # --allow-http: the manager listens on this machine, if perhaps not on its loopback address.
        argv = ["agent", "join", client.url, "-", "--state-dir", str(folder), "--name", name, "--allow-http"]
        token = client.join_token()
        process = self._spawn(path, argv, stdin=subprocess.PIPE)
        if not children.finish(process, stdin=f"{token}\n".encode(), timeout_s=_JOIN_TIMEOUT_S, check=self._check):
            raise StartError(f"agent {name} did not join in {_JOIN_TIMEOUT_S} s", log=path)
        if process.returncode != 0:
            raise StartError(f"agent {name} could not join (exit code {process.returncode})", log=path)

    def _start_child(self, name: str, log_name: str, argv: list[str], *, rest_after_kill_s: float = 0.0) -> None:
        path = self._layout.log(log_name)
        self._watch(name, lambda: self._spawn(path, argv), None, log_name=log_name, rest_after_kill_s=rest_after_kill_s)

    def _spawn(self, path: Path, argv: list[str], *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        # -P: the working folder is no place to import from.
        return children.spawn(
            [sys.executable, "-P", "-m", *argv],
            log=path,
            death_signal=signal.SIGTERM,
            env=_environment(),
            keep_fds=self._keep_fds,
            stdin=stdin,
        )

    def _watch(
        self,
        name: str,
        spawn: Callable[[], subprocess.Popen[bytes]],
        process: subprocess.Popen[bytes] | None,
        *,
        stop: Callable[[], None] | None = None,
        log_name: str | None = None,
        rest_after_kill_s: float = 0.0,
    ) -> None:
        service = Service(
            name=name,
            log=self._layout.log(log_name or name),
            spawn=spawn,
            stop=stop,
            rest_after_kill_s=rest_after_kill_s,
            process=process,
        )
        self._supervisor.adopt(service)
        self._services[name] = service
        if process is None:
            service.start()

    def _wait(self, is_so: Callable[[], bool], what: str, *, timeout_s: float, log: Path) -> None:
        """Until it is so. A child that dies meanwhile ends the start, and its log says why."""

        def check() -> None:
            self._check()
            if dead := self._supervisor.first_dead():
                code = dead.process.returncode if dead.process else None
                raise StartError(f"{dead.log.stem} ended with exit code {code}", log=dead.log)

        if not children.wait_until(is_so, timeout_s=timeout_s, check=check, poll_s=_POLL_S):
            raise StartError(f"waited {timeout_s} s for {what}", log=log)

    def _write_ready(self) -> None:
        pids = {name: service.pid for name, service in self._services.items()}
        managers = [pid for name, pid in pids.items() if name.startswith("manager ")]
        ready = {
            "url": self._clients[0].url,
            "urls": [client.url for client in self._clients],
            "token_file": str(self._layout.admin_token),
            "nats_url": self._nats.url,
            "database_url": self._postgres.url(),
            "notes": self._notes,
            "pids": {
                "supervisor": os.getpid(),
                "postgres": pids["postgres"],
                "nats": pids["nats"],
                "manager": managers[0],
                "managers": managers,
                "agents": {
                    # One that was killed and rests has no process, and 0 would mean the reader's own group to kill(2).
                    name.removeprefix("agent "): pid
                    for name, pid in pids.items()
                    if name.startswith("agent ") and pid
                },
            },
        }
        write_private(self._layout.ready, json.dumps(ready, indent=2) + "\n")

    def _banner(self, took_s: float) -> str:
        url, data = self._clients[0].url, self._layout.data
        shown = banner(url, data, self._layout.admin_token, notes=self._notes)
        return f"{shown}\n(ready after {took_s:.1f} s)"


def banner(url: str, data: Path, token_file: Path, *, notes: Sequence[str] = (), is_detached: bool = False) -> str:
    """What a person needs to go on, and what is not as it should be."""
    # As it can be typed: in a checkout nothing is on the PATH.
    stowage = Path(sys.executable).with_name("stowage")
    command = f"{shlex.quote(str(stowage))} down --data-dir {shlex.quote(str(data))}"
    header = f'"Authorization: Bearer $(cat {shlex.quote(str(token_file))})"'
    return (
        f"Stowage is ready at {url}/\n"
        f"  admin token  {token_file}\n"
        f"  data         {data}\n"
        f"  try          curl -H {header} {url}/v1/storage_backends\n"
        f"  stop         {command if is_detached else 'Ctrl-C, or: ' + command}"
        + "".join(f"\n  note         {note}" for note in notes)
    )


def _host_id(agent_toml: Path) -> str:
    """Empty for a file that is not as `join` writes it; the agent itself says what is wrong with it."""
    try:
        return str(tomllib.loads(agent_toml.read_text(encoding="utf-8")).get("host_id", ""))
    except (OSError, ValueError):
        return ""


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises StartError when nobody can listen there."""
    try:
        if port == 0:
            return free_port(host)
        if not is_free(host, port):
            raise StartError(f"{host}:{port} is taken; choose another with --listen HOST:PORT (port 0: a free one)")
        return port
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}: {error.strerror}; choose an address of this machine with --listen"
        ) from error


def _environment() -> dict[str, str]:
    """Ours, without the words that would override what is written into the managers' configuration."""
    return {key: value for key, value in os.environ.items() if key not in _OVERRIDES}
