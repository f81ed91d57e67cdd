"""The lab's Ethernet switch: datagrams between QEMU's unix sockets, with faults to order. No host interface, no root.

    python -m tests.lab.switch FOLDER NAME...

For each port NAME the switch binds FOLDER/NAME.s and QEMU binds FOLDER/NAME.q. Orders come as JSON lists to FOLDER/control, and
each is answered with "ok" to the sender's address, so that a test goes on only when the fault is there:
["cut", A, B], ["isolate", A], ["drop", A, percent], ["heal"].
"""

import contextlib
import json
import os
import random
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path

#: Bytes of a socket's buffers; a frame is up to 9014.
_BUFFER_BYTES = 4 << 20
_FRAME_BYTES = 70_000
_BURST = 64
_MULTICAST = 0x01


class Switch:
    """Learns which port a MAC address is behind; what is cut, isolated or dropped goes nowhere."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder = folder
        self._ports = {name: _bound(folder / f"{name}.s") for name in names}
        self._behind: dict[bytes, str] = {}
        self._cut: set[frozenset[str]] = set()
        self._isolated: set[str] = set()
        self._dropped: dict[str, float] = {}
        self._orders: dict[str, Callable[..., None]] = {
            "cut": self.cut,
            "isolate": self.isolate,
            "drop": self.drop,
            "heal": self.heal,
        }

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two."""
        self._cut.add(frozenset((one, other)))

    def isolate(self, name: str) -> None:
        """Nothing passes to or from the port."""
        self._isolated.add(name)

    def drop(self, name: str, percent: float) -> None:
        """So many of the frames to and from the port are lost."""
        self._dropped[name] = percent

    def heal(self) -> None:
        """No fault any more."""
        self._cut.clear()
        self._isolated.clear()
        self._dropped.clear()

    def serve(self) -> None:
        """For ever."""
        control = _bound(self._folder / "control")
        poller = select.epoll()
        names = {port.fileno(): name for name, port in self._ports.items()}
        for descriptor in (control.fileno(), *names):
            poller.register(descriptor, select.EPOLLIN)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == control.fileno():
                    self._obey(control)
                else:
                    self._forward(names[descriptor])

    def _obey(self, control: socket.socket) -> None:
        text, sender = control.recvfrom(4096)
        order, *words = json.loads(text)
        self._orders[order](*words)
        with contextlib.suppress(OSError):
            control.sendto(b"ok", sender)

    def _forward(self, source: str) -> None:
        for _ in range(_BURST):
            try:
                frame = self._ports[source].recv(_FRAME_BYTES)
            except BlockingIOError:
                return
            self._behind[frame[6:12]] = source
            known = None if frame[0] & _MULTICAST else self._behind.get(frame[:6])
            for target in [known] if known is not None else self._ports:
                if target != source and self._passes(source, target):
                    # Its guest is not there, or its queue is full: a switch drops.
                    with contextlib.suppress(OSError):
                        self._ports[target].sendto(frame, str(self._folder / f"{target}.q"))

    def _passes(self, source: str, target: str) -> bool:
        if {source, target} & self._isolated or frozenset((source, target)) in self._cut:
            return False
        percent = max(self._dropped.get(source, 0), self._dropped.get(target, 0))
        return percent == 0 or random.random() * 100 >= percent


def order(folder: Path, *words: str | float) -> None:
    """Has the switch in that folder do it; returns when it has. Raises OSError: no switch there, or it is stuck."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
        # An address of its own for the answer; the kernel chooses one.
        mouth.bind("")
        mouth.settimeout(10)
        mouth.sendto(json.dumps(words).encode(), str(folder / "control"))
        mouth.recv(16)


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind(str(path))
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        made.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    return made


if __name__ == "__main__":
    os.umask(0o077)
    Switch(Path(sys.argv[1]), sys.argv[2:]).serve()
