"""Virtual machines by QEMU's software emulation: started, frozen into a snapshot, resumed from one, cut off from power.

A snapshot holds the disk, the RAM as a plain file and the state of the devices. Resumed guests map that file privately, so any
number of them share one and are there within 0.2 s. It needs the same QEMU, processor model, RAM and devices as it was made
with; so all guests have the same.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.guest_client import Courier
from tests.lab.image import LabError

RAM_MB = 512
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_READY_TIMEOUT_S = 180.0
_POLL_S = 0.05
_EMULATION = "tcg,thread=multi,tb-size=256"
_CPU = "Nehalem"
_KERNEL_WORDS = (
    "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on"
    " rcupdate.rcu_expedited=1 cryptomgr.notests audit=0 selinux=0 apparmor=0"
)


@dataclass(frozen=True)
class Seat:
    """A place in the lab: its name, which is also its port of the switch, and the last number of its addresses."""

    name: str
    number: int
    role: str


@dataclass(frozen=True)
class Snapshot:
    """A frozen guest in a folder: root.qcow2, ram, devices, and the number that its network card had."""

    folder: Path

    @property
    def number(self) -> int:
        return int(json.loads((self.folder / "snapshot.json").read_text())["number"])


class Machine:
    """One guest. `folder` holds what it has while it runs; `net` is the switch's."""

    def __init__(self, seat: Seat, image: Path, folder: Path, net: Path) -> None:
        self.seat = seat
        self._image = image
        self._folder = folder
        self._net = net
        self._process: subprocess.Popen[bytes] | None = None
        self._snapshot: Snapshot | None = None
        self.courier = Courier(seat.name, 0)
        self.ssh_port = 0

    def boot(self) -> None:
        """Started from the image, and ready."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_disk(self._image / "root.ext4", "raw")
        self._ram_file.unlink(missing_ok=True)
        self._start(
            ["-object", f"memory-backend-file,id=ram,size={RAM_MB}M,mem-path={self._ram_file},share=on,prealloc=off"]
        )
        self._wait_until_ready()

    def resume(self, snapshot: Snapshot) -> None:
        """Started from a snapshot as the guest of this seat, whatever seat it was made in."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._snapshot = snapshot
        self._make_disk(snapshot.folder / "root.qcow2", "qcow2")
        ram = f"memory-backend-file,id=ram,size={RAM_MB}M,mem-path={snapshot.folder / 'ram'},share=off,prealloc=off"
        self._start(["-object", ram, "-incoming", "defer", "-S"])
        with Monitor(self._folder / "qmp") as monitor:
            monitor.ignore_shared_ram()
            monitor("migrate-incoming", uri=f"exec:cat '{snapshot.folder / 'devices'}'")
            monitor.wait_for_migration()
            monitor("cont")
        # Resumed guests are twins: of one clock, one name, and one stream of random numbers.
        self.courier.wake(time.time(), os.urandom(64))
        self.courier.run("/lab/identity", self.seat.name, self.seat.number)

    def cut_power(self) -> None:
        """Off between two instructions; what the guest had not written to its disk is lost."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def boot_again(self) -> None:
        """After a power cut: from its own disk, and ready."""
        self._start(["-object", f"memory-backend-ram,id=ram,size={RAM_MB}M"])
        self._wait_until_ready()
        self.courier.wake(time.time(), os.urandom(64))

    def freeze(self, folder: Path) -> None:
        """The running guest becomes a snapshot in that folder, and is gone."""
        self.courier.run("sync; echo 1 >/proc/sys/vm/compact_memory")
        with Monitor(self._folder / "qmp") as monitor:
            monitor("stop")
            monitor.ignore_shared_ram()
            monitor("migrate", uri=f"exec:cat >'{folder / 'devices'}'")
            monitor.wait_for_migration()
            monitor("quit")
        assert self._process is not None
        self._process.wait(30)
        shutil.move(self._folder / "root.qcow2", folder / "root.qcow2")
        subprocess.run(["cp", "--sparse=always", self._ram_file, folder / "ram"], check=True)
        self._ram_file.unlink()
        (folder / "snapshot.json").write_text(json.dumps({"number": self.seat.number}))

    def stop(self) -> None:
        """Gone, without a word to the guest."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._ram_file.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def serial(self) -> str:
        """What the guest's kernel said on its console."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "serial.log").read_text(errors="replace")
        return ""

    @property
    def _ram_file(self) -> Path:
        return Path(f"/dev/shm/stowage-lab-{os.getpid()}-{self.seat.name}.ram")

    def _make_disk(self, backing: Path, kind: str) -> None:
        disk = self._folder / "root.qcow2"
        disk.unlink(missing_ok=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", backing, disk], check=True)

    def _start(self, how: list[str]) -> None:
        folder, seat = self._folder, self.seat
        mac = self._snapshot.number if self._snapshot is not None else seat.number
        here = self._net / f"{seat.name}.q"
        for path in (folder / "qmp", here):
            path.unlink(missing_ok=True)
        courier_port, self.ssh_port = _free_port(), _free_port()
        self.courier = Courier(seat.name, courier_port)
        words = f"{_KERNEL_WORDS} lab.name={seat.name} lab.number={seat.number} lab.role={seat.role}"
        forward = f"hostfwd=tcp:127.0.0.1:{courier_port}-:5000,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        argv = [
            "qemu-system-x86_64", "-name", f"stowage-lab-{seat.name}", "-accel", _EMULATION, "-cpu", _CPU, "-m", str(RAM_MB), "-smp", "1",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-M", "pc,hpet=off,graphics=off,vmport=off,usb=off,memory-backend=ram", *how,
            "-kernel", str(self._image / "vmlinuz"), "-initrd", str(self._image / "initrd.img"), "-append", words,
            "-serial", f"file:{folder / 'serial.log'}", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off",
            # writeback: what the guest synced survives its power cut; only the machine's own would lose it.
            "-drive", f"if=none,id=root,file={folder / 'root.qcow2'},format=qcow2,cache=writeback,discard=unmap",
            "-device", "virtio-blk-pci,drive=root",
            "-netdev", f"user,id=machine,ipv6=off,{forward}", "-device", "virtio-net-pci,netdev=machine,mac=52:54:00:00:00:01,romfile=",
            "-netdev", f"dgram,id=lab,local.type=unix,local.path={here},remote.type=unix,remote.path={self._net / (seat.name + '.s')}",
            "-device", f"virtio-net-pci,netdev=lab,mac=52:54:00:77:00:{mac:02x},romfile=",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip
        with open(folder / "qemu.log", "wb") as log:
            # Not to outlive us, however we end; so it must be started by the main thread, whose death the kernel watches.
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _wait_until_ready(self) -> None:
        wait_until(self.courier.answers, f"{self.seat.name} to boot", _READY_TIMEOUT_S, unless=self._end)

    def _end(self) -> str | None:
        assert self._process is not None
        if self._process.poll() is None:
            return None
        return f"QEMU ended with {self._process.returncode}: {(self._folder / 'qemu.log').read_text()[-1000:]}"


class Monitor:
    """QEMU's own monitor (QMP), for as long as the block lasts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> "Monitor":
        wait_until(self._connects, f"QEMU to open {self._path}", 20.0)
        self._file = self._socket.makefile("rwb")
        self._file.readline()
        self("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def __call__(self, command: str, **arguments: Any) -> Any:
        """What the command returns. Raises LabError."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise LabError(f"QEMU refused {command}: {answer['error']['desc']}")
        if command == "quit":
            return None
        raise LabError(f"QEMU ended during {command}")

    def ignore_shared_ram(self) -> None:
        """The RAM is in a file already, and so is left out of what is migrated."""
        self("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])

    def wait_for_migration(self) -> None:
        """Raises LabError when it fails."""

        def is_over() -> bool:
            status = self("query-migrate").get("status")
            if status == "failed":
                raise LabError("QEMU could not migrate; its log is in the guest's folder")
            return bool(status == "completed")

        wait_until(is_over, "the migration", 60.0)

    def _connects(self) -> bool:
        try:
            self._socket.connect(str(self._path))
        except OSError:
            return False
        return True


def wait_until(
    is_so: Callable[[], bool], what: str, timeout_s: float, *, unless: Callable[[], str | None] = lambda: None
) -> None:
    """Raises LabError when it does not come in time, or when `unless` tells why it never will."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if (why := unless()) is not None:
            raise LabError(f"waited for {what}: {why}")
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(_POLL_S)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Between fork and exec: the kernel sends the signal when the parent's main thread ends, however it does (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
