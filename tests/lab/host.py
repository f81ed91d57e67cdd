"""A hypervisor host of the lab: a guest that runs the project's agent, as root, under its init."""

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tests.lab.client import Api
from tests.lab.guest_client import Courier
from tests.lab.qemu import Machine, wait_until

STATE_DIR = PurePosixPath("/var/lib/stowage-agent")
LOG = "/var/log/stowage-agent.log"
_ENV_FILE = "/etc/stowage-agent.env"
#: While it is there, init waits for a word instead of starting the agent (guest/run-agent).
_OFF_FILE = "/etc/stowage-agent.off"
#: Seconds; shorter than an operator's, so that no test waits for minutes.
INTERVALS = {"BEAT": 1, "PROBE": 3, "RECONCILE": 10, "PROBE_TIMEOUT": 5}
_ONLINE_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Command:
    """A tool that the agent ran, by its own log at debug level. code None: it was abandoned."""

    argv: tuple[str, ...]
    code: int | None
    duration_s: float

    def __str__(self) -> str:
        return f"{self.duration_s:7.3f} s  exit {self.code}  {' '.join(self.argv)}"


class Host:
    """One of them. Its name in the fleet is its seat's."""

    def __init__(self, machine: Machine, api: Api, nats_port: int) -> None:
        self.machine = machine
        self.name = machine.seat.name
        self.address = f"10.77.0.{machine.seat.number}"
        self._api = api
        self._nats_port = nats_port
        self._read_bytes = 0

    @property
    def courier(self) -> Courier:
        return self.machine.courier

    def join(self) -> None:
        """Enrolled with a one-time token of its own, running and online."""
        token = self._api("POST", "/hosts/join_tokens", {"ttl_s": 600}).body["token"]
        self.courier.run(
            "/opt/stowage/bin/stowage-agent join --allow-http", _through_slirp(self._api.url), "-", stdin=token + "\n"
        )
        self.run_agent(**INTERVALS)
        self.wait_online()

    def run_agent(self, **seconds: float) -> None:
        """Init starts the agent, with these intervals, and again whenever it ends."""
        words = [f"STOWAGE_AGENT_NATS_URLS=nats://10.0.2.2:{self._nats_port}"]
        words += [f"STOWAGE_AGENT_{name}_S={value}" for name, value in seconds.items()]
        self.courier.put(_ENV_FILE, "\n".join(words) + "\n")
        self.courier.run("sync; echo go >/run/agent.go")

    def stop_agent(self) -> None:
        """The agent is gone, as by `systemctl stop`, and stays away."""
        self.courier.run(
            f"touch {_OFF_FILE}; pkill -TERM -f 'stowage-agent run';"
            " while pgrep -f 'stowage-agent run' >/dev/null; do sleep 0.1; done"
        )

    def start_agent(self) -> None:
        """After stop_agent."""
        self.courier.run(f"rm {_OFF_FILE}; echo go >/run/agent.go")

    def kill_agent(self) -> None:
        """kill -9; init starts it again."""
        self.courier.run("pkill -KILL -f 'stowage-agent run'")

    def agent_pid(self) -> int:
        return int(self.courier.run("pgrep -o -f 'stowage-agent run'").out)

    def is_online(self) -> bool:
        return bool(self._api.get(f"/hosts/{self.name}")["state"] == "online")

    def wait_online(self) -> None:
        wait_until(self.is_online, f"{self.name} to be online", _ONLINE_TIMEOUT_S, unless=lambda: None)

    def new_log(self) -> list[dict[str, Any]]:
        """What the agent has logged since this was last asked."""
        text = self.courier.run(f"tail -c +{self._read_bytes + 1} {LOG} 2>/dev/null || true").out
        whole = text[: text.rfind("\n") + 1]
        self._read_bytes += len(whole.encode())
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def commands_in(log: list[dict[str, Any]]) -> list[Command]:
    """The tools that were run, in the order in which they ended."""
    return [
        Command(tuple(line["argv"]), line.get("exit_code"), float(line.get("duration_s", 0)))
        for line in log
        if line.get("argv")
    ]


def _through_slirp(url: str) -> str:
    """The URL as a guest reaches it: QEMU leads 10.0.2.2 to the machine's loopback."""
    return url.replace("127.0.0.1", "10.0.2.2")
