"""A hypervisor host of the lab: a guest that runs the project's agent, as root, under its init."""

import json
import shlex
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tests.lab.client import Api
from tests.lab.guest_client import Courier
from tests.lab.qemu import Machine, wait_until

STATE_DIR = PurePosixPath("/var/lib/stowage-agent")
LOG = "/var/log/stowage-agent.log"
#: The one folder whose files the agent may take for images.
IMAGES = "/var/tmp/images"
_ENV_FILE = "/etc/stowage-agent.env"
#: While it is there, init waits for a word instead of starting the agent (guest/run-agent).
_OFF_FILE = "/etc/stowage-agent.off"
#: Seconds; shorter than an operator's, so that no test waits for minutes.
INTERVALS = {"BEAT": 1, "PROBE": 3, "RECONCILE": 10, "PROBE_TIMEOUT": 5}
_ONLINE_TIMEOUT_S = 90.0


_WATCH = """
import os
lines = set()
print("ready", flush=True)
while not os.path.exists("/run/watch-end"):
    there = {name for name in os.listdir("/proc") if name.isdigit()}
    for name in there:
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                lines.add(file.read().replace(b"\\0", b" ").decode(errors="replace"))
        except OSError:
            pass
print(*lines, "end", sep="\\n")
"""


_KILL = """
import os, re, sys
agent, pattern = int(sys.argv[1]), re.compile(sys.argv[2].encode())
done = False
print("ready", flush=True)
while not done:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    line = file.read().replace(b"\\0", b" ")
            except OSError:
                continue
            if pattern.match(line):
                os.kill(agent, 9)
                done = True
                break
"""


_WRITE = """
import os, sys
try:
    with open(sys.argv[1], "ab", buffering=0) as file:
        print("ready", flush=True)
        while not os.path.exists("/run/write-end"):
            file.write(bytes(4096))
            os.fsync(file.fileno())
except OSError as error:
    print(error)
"""


_POUR = """
import os, sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    print("ready", flush=True)
    while not os.path.exists("/run/pour-end"):
        os.pwrite(file.fileno(), os.urandom(4096), 0)
        os.fsync(file.fileno())
"""


@dataclass(frozen=True)
class Command:
    """A tool that the agent ran, by its own log at debug level. code None: it was abandoned."""

    argv: tuple[str, ...]
    code: int | None
    duration_s: float
    stderr: str = ""

    def __str__(self) -> str:
        said = "".join(f"\n        | {line}" for line in self.stderr.splitlines())
        return f"{self.duration_s:7.3f} s  exit {self.code}  {shlex.join(self.argv)}{said}"


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
        # Above the table [labels].
        self.courier.run(f"sed -i '1a image_dirs = [\"{IMAGES}\"]' {STATE_DIR}/agent.toml")
        self.run_agent(**INTERVALS)
        self.wait_online()

    def run_agent(self, **seconds: float) -> None:
        """Init starts the agent, with these intervals, and again whenever it ends."""
        self._set_intervals(seconds)
        self.courier.run("sync; echo go >/run/agent.go")

    def rerun_agent(self, **seconds: float) -> None:
        """The agent, started again with other intervals."""
        self.stop_agent()
        self._set_intervals(seconds)
        self.start_agent()
        self.wait_online()

    def stop_agent(self) -> None:
        """The agent is gone, as by `systemctl stop`, and stays away."""
        self.courier.run(
            f"touch {_OFF_FILE}; pkill -TERM -f '[s]towage-agent run';"
            " while pgrep -f '[s]towage-agent run' >/dev/null; do sleep 0.1; done"
        )

    def start_agent(self) -> None:
        """After stop_agent."""
        # Where init has looked for the file only now, the agent runs already and nobody reads the word.
        self.courier.run(f"rm {_OFF_FILE}; timeout 3 sh -c 'echo go >/run/agent.go' || pgrep -f '[s]towage-agent run'")

    def kill_agent(self) -> None:
        """kill -9; init starts it again."""
        self.courier.run("pkill -KILL -f '[s]towage-agent run'")

    @contextmanager
    def killing_agent_at(self, pattern: str) -> Generator[None]:
        """kill -9 of the agent as soon as a process is seen whose command line begins so; the block ends after that."""
        self.courier.put("/run/kill.py", _KILL)
        self.courier.run(
            f"(python3 -E -s /run/kill.py {self.agent_pid()} {shlex.quote(pattern)}; echo end) >/run/killed 2>&1 </dev/null &"
        )
        try:
            self._wait_for_line("ready", "/run/killed", "the watch for the tool")
            yield
            self._wait_for_line("end", "/run/killed", f"{pattern} to be seen")
            # A script that failed ends, too.
            assert self.courier.run("cat /run/killed").out == "ready\nend\n"
        finally:
            self.courier.run("pkill -f '^python3 .*/run/kill[.]py'; rm -f /run/kill.py /run/killed")

    @contextmanager
    def wrapping(self, tool: str, script: str) -> Generator[None]:
        """This shell script runs in the place of a tool of /usr/sbin, which it finds as $TOOL."""
        kept, wrapper, place = f"/run/{tool}.real", f"/run/{tool}.wrapper", f"/usr/sbin/{tool}"
        self.courier.put(wrapper, f"#!/bin/sh\nTOOL={kept}\n{script}\n", 0o755)
        self.courier.run(f"cp -p {place} {kept}; mount --bind {wrapper} {place}")
        try:
            yield
        finally:
            # Lazily: it may run just now.
            self.courier.run(f"umount -l {place}; rm -f {kept} {wrapper}")

    def restart_agent(self) -> None:
        """Killed, started again by init, and connected."""
        count = f"grep -c 'bus connected' {LOG}"
        before = int(self.courier.run(count).out)
        self.kill_agent()
        wait_until(lambda: int(self.courier.run(count).out) > before, "another agent to connect", _ONLINE_TIMEOUT_S)

    def agent_pid(self) -> int:
        """0 while none runs."""
        return int(self.courier.run("pgrep -o -f '[s]towage-agent run' || echo 0").out)

    @contextmanager
    def holding(self, path: str) -> Generator[None]:
        """A process of the host has the file open for writing, as a virtual machine has its disk."""
        pid = self.courier.run(f"exec 3>>'{path}'; sleep infinity >/dev/null 2>&1 & echo $!").out.strip()
        try:
            yield
        finally:
            self.courier.run("kill", pid)

    @contextmanager
    def writing(self, path: str) -> Generator[list[str]]:
        """A process of the host writes and syncs the file without a pause. After the block the list holds the error that ended it, if one did."""
        errors: list[str] = []
        self.courier.put("/run/write.py", _WRITE)
        self.courier.run(
            f"rm -f /run/write-end; (python3 -E -s /run/write.py '{path}'; echo end) >/run/written 2>&1 </dev/null &"
        )
        try:
            self._wait_for_line("ready", "/run/written", "the writer")
            yield errors
        finally:
            self.courier.run("touch /run/write-end; while ! grep -q '^end$' /run/written; do sleep 0.05; done")
            errors += self.courier.run("cat /run/written; rm /run/writ*").out.splitlines()[1:-1]

    @contextmanager
    def pouring(self, path: str) -> Generator[Callable[[], bool]]:
        """A process of the host overwrites and syncs the first bytes of a volume without a pause, as a VM does its disk; yields
        whether it still does: an error ends it.
        """
        self.courier.put("/run/pour.py", _POUR)
        self.courier.run(
            f"rm -f /run/pour-end; (python3 -E -s /run/pour.py '{path}'; echo end) >/run/poured 2>&1 </dev/null &"
        )

        def goes_on() -> bool:
            return self.courier.attempt("grep -q '^end$' /run/poured").code != 0

        try:
            self._wait_for_line("ready", "/run/poured", "the writer")
            yield goes_on
        finally:
            self.courier.run(
                "touch /run/pour-end; while ! grep -q '^end$' /run/poured; do sleep 0.05; done; rm /run/pour*"
            )

    @contextmanager
    def serving_nfs(self, path: str) -> Generator[None]:
        """This host is itself an NFS server (version 4) of an empty folder of that path."""
        self.courier.run(
            "modprobe nfsd; mkdir -p /var/lib/nfs/v4recovery; mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd;"
            f" mkdir -p -m 777 {path}; exportfs -o rw,no_subtree_check,no_root_squash,insecure 10.77.0.0/24:{path};"
            " pidof rpc.mountd || rpc.mountd; echo 10 >/proc/fs/nfsd/nfsv4gracetime; rpc.nfsd -G 10 -L 10 2"
        )
        try:
            yield
        finally:
            self.courier.run(
                f"rpc.nfsd 0; exportfs -u 10.77.0.0/24:{path}; pkill rpc.mountd; rm -rf --one-file-system {path}"
            )

    def log_in(self, iqn: str, address: str, iface: str = "default") -> None:
        """A session of this host's own, as its operator makes one; through another iface, as another program's."""
        name = f"/etc/iscsi/ifaces/{iface}"
        node = f"iscsiadm -m node -T {iqn} -p {address}:3260,1 -I {iface}"
        record = f"printf 'iface.iscsi_ifacename = {iface}\\niface.transport_name = tcp\\n' >{name}"
        self.courier.run(
            f"mkdir -p /etc/iscsi/ifaces; [ {iface} = default ] || {record}; {node} -o new && {node} --login; code=$?;"
            f" rm -f {name}; udevadm settle; exit $code"
        )

    def log_out(self, iqn: str) -> None:
        """After log_in through `default`: neither session nor record."""
        node = f"iscsiadm -m node -T {iqn} -I default"
        self.courier.run(f"{node} --logout && {node} -o delete")

    @contextmanager
    def watching_processes(self) -> Generator[list[str]]:
        """After the block the list holds every command line that was seen in /proc meanwhile, looked at without a pause."""
        seen: list[str] = []
        self.courier.put("/run/watch.py", _WATCH)
        self.courier.run("rm -f /run/watch-end; python3 -E -s /run/watch.py >/run/watched 2>&1 </dev/null &")
        try:
            self._wait_for_line("ready", "/run/watched", "the watch of processes")
            yield seen
        finally:
            self.courier.run("touch /run/watch-end; while ! grep -q '^end$' /run/watched; do sleep 0.05; done")
            seen += self.courier.run("cat /run/watched; rm /run/watch*").out.splitlines()

    def is_online(self) -> bool:
        return bool(self._api.get(f"/hosts/{self.name}")["state"] == "online")

    def wait_online(self) -> None:
        wait_until(self.is_online, f"{self.name} to be online", _ONLINE_TIMEOUT_S)

    def new_log(self) -> list[dict[str, Any]]:
        """What the agent has logged since this was last asked."""
        text = self.courier.run(f"tail -c +{self._read_bytes + 1} {LOG} 2>/dev/null || true").out
        whole = text[: text.rfind("\n") + 1]
        self._read_bytes += len(whole.encode())
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def whole_log(self) -> str:
        """All that the agent has logged."""
        return self.courier.run(f"cat {LOG} 2>/dev/null || true").out

    def _wait_for_line(self, line: str, path: str, what: str) -> None:
        """A script of ours in the background has said so: Python takes seconds to start here, and what it would miss must not begin before."""
        wait_until(lambda: self.courier.attempt(f"grep -qx {line} {path}").code == 0, what, 60.0)

    def _set_intervals(self, seconds: dict[str, float]) -> None:
        words = [f"STOWAGE_AGENT_NATS_URLS=nats://10.0.2.2:{self._nats_port}"]
        words += [f"STOWAGE_AGENT_{name}_S={value}" for name, value in seconds.items()]
        self.courier.put(_ENV_FILE, "\n".join(words) + "\n")


def seconds_of(action: Callable[[], None]) -> float:
    """How long it took."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def commands_in(log: list[dict[str, Any]]) -> list[Command]:
    """The tools that were run, in the order in which they ended."""
    return [
        Command(tuple(line["argv"]), line.get("exit_code"), float(line.get("duration_s", 0)), line.get("stderr", ""))
        for line in log
        if line.get("argv")
    ]


def _through_slirp(url: str) -> str:
    """The URL as a guest reaches it: QEMU leads 10.0.2.2 to the machine's loopback."""
    return url.replace("127.0.0.1", "10.0.2.2")
