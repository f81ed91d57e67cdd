"""The lab: a switch, one storage server, up to four hosts, and the project's own stack beside them on this machine."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.lab import snapshots, switch
from tests.lab.client import Api
from tests.lab.host import Host
from tests.lab.image import ROOT, LabError
from tests.lab.qemu import Machine, Seat, Snapshot, die_with_parent, wait_until
from tests.lab.storage import Storage

#: Below /run, for only root may write there, and the path of a unix socket has at most 107 bytes.
RUN_DIR = Path("/run")
_DATA_DIR = Path("/var/tmp")
_PREFIX = "stowage-lab-"
_STORAGE = Seat("storage", 1, "storage")
_HOSTS = {f"hv{number}": Seat(f"hv{number}", 10 + number, "host") for number in range(1, 5)}
_STACK_TIMEOUT_S = 120.0


class Lab:
    """Hosts are started when they are first asked for. Everything ends with the block of `running`."""

    def __init__(self, folder: Path, image: Path, storage: Snapshot, host: Snapshot, stack: "Stack") -> None:
        self._folder = folder
        self._image = image
        self._host_snapshot = host
        self._net = folder / "net"
        self._machines: list[Machine] = []
        self._hosts: dict[str, Host] = {}
        self.stack = stack
        self.api = stack.api
        self.storage = Storage(self._resume(_STORAGE, storage))

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Those that run."""
        return tuple(self._hosts.values())

    def host(self, name: str) -> Host:
        """The host of that name (hv1 to hv4), which has joined and is online."""
        if name not in self._hosts:
            host = Host(self._resume(_HOSTS[name], self._host_snapshot), self.api, self.stack.nats_port)
            host.join()
            self._hosts[name] = host
        return self._hosts[name]

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two on the lab's network; the way to the manager is another."""
        switch.order(self._net, "cut", one, other)

    def isolate(self, name: str) -> None:
        """Nothing passes to or from the guest on the lab's network."""
        switch.order(self._net, "isolate", name)

    def heal(self) -> None:
        """No fault of the network any more."""
        switch.order(self._net, "heal")

    def recover(self) -> None:
        """After whatever a test has done: no fault of the network, servers serve, agents run."""
        self.heal()
        self.storage.recover()
        for host in self.hosts:
            host.wait_online()

    def stop(self) -> None:
        for machine in self._machines:
            machine.stop()

    def _resume(self, seat: Seat, snapshot: Snapshot) -> Machine:
        machine = Machine(seat, self._image, self._folder / seat.name, self._net)
        self._machines.append(machine)
        machine.resume(snapshot)
        return machine


class Stack:
    """`stowage up` without agents of this machine, in a folder of the lab's."""

    def __init__(self, data: Path, listen: str) -> None:
        self.data = data
        self.log = data.parent / "stack.log"
        argv = [sys.executable, "-m", "manager.cli", "up", "--agents", "0", "--listen", listen, "--data-dir", str(data)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        wait_until((data / "ready.json").exists, "the manager to be ready", _STACK_TIMEOUT_S, unless=self._end)
        ready = json.loads((data / "ready.json").read_text())
        self.token_file = Path(ready["token_file"])
        self.api = Api(ready["url"], self.token_file.read_text().strip())
        self.nats_port = int(ready["nats_url"].rpartition(":")[2])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _end(self) -> str | None:
        if self._process.poll() is None:
            return None
        return self.log.read_text()[-2000:]


@contextmanager
def running(*, listen: str = "127.0.0.1:0") -> Generator[Lab]:
    """A lab of its own, built first if need be; any number may run beside each other. Raises LabError."""
    image, storage, host = snapshots.build()
    _sweep()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=RUN_DIR))
        (folder / "net").mkdir()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # On a disk, for PostgreSQL's sake, and passable, for it runs as another user.
        data = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_DATA_DIR))
        data.chmod(0o711)
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        ports = [sys.executable, "-m", "tests.lab.switch", str(folder / "net"), _STORAGE.name, *_HOSTS]
        switching = subprocess.Popen(
            ports, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent
        )
        stack.callback(switching.wait)
        stack.callback(switching.terminate)
        wait_until((folder / "net/control").exists, "the switch", 20.0)
        manager = Stack(data / "stowage", listen)
        stack.callback(manager.stop)
        lab = Lab(folder, image, storage, host, manager)
        stack.callback(lab.stop)
        yield lab


def _sweep() -> None:
    """What runs that were killed have left; their guests and servers died with them."""
    for folder in (RUN_DIR, _DATA_DIR):
        for place in folder.glob(f"{_PREFIX}[0-9]*-*"):
            if not Path("/proc", place.name.split("-")[2]).exists():
                shutil.rmtree(place, ignore_errors=True)


__all__ = ["Lab", "LabError", "Stack", "running"]
