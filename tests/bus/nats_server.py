"""A real nats-server child in operator mode on a free loopback port, for tests; it dies with the test process."""

import asyncio
import base64
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from manager.bus_auth import BusAuth, CredsFiles, TlsFiles, server_config
from manager.keys import Keys, write_private
from schemas import nkey
from schemas.bus import creds_text
from schemas.ids import HostId, new_id
from schemas.nkey import Role

_BINARY = Path(sys.executable).parent / "nats-server"
_READY_S = 10.0
_PR_SET_PDEATHSIG = 1


class NatsServer:
    """One server on `folder`, with keys, the manager's creds files and agents made on demand."""

    def __init__(self, folder: Path, *, tls: TlsFiles | None = None) -> None:
        self._folder = folder
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self.port = -1
        self.keys = Keys.load_or_create(folder / "keys")
        self.auth = BusAuth(self.keys)
        self.creds: CredsFiles = self.auth.write_creds(folder / "creds")

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Listening, on the same port as before if it has been started before."""
        for stale in self._folder.glob("nats-server_*.ports"):
            stale.unlink()
        config = self._folder / "nats.conf"
        config.write_text(
            server_config(
                self.keys,
                data_dir=self._folder / "data",
                ports_file_dir=self._folder,
                port=self.port,
                tls=self._tls,
            )
        )
        output = self._folder / "nats.log"
        with output.open("ab") as log:
            self._process = subprocess.Popen(
                [_BINARY, "-c", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        ports = self._folder / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
                return
            except (FileNotFoundError, ValueError):
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"nats-server did not start: {output.read_text()[-2000:]}")
            time.sleep(0.002)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Gone. SIGKILL for a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP for a server that hangs."""
        os.kill(self.pid, number)

    def enrol(self, host_id: HostId | None = None, lifetime_s: int = 3600) -> "Agent":
        """A new host's identity in a creds file of its own."""
        agent = Agent(self, host_id or HostId(new_id()), nkey.new_seed(Role.USER))
        agent.renew(lifetime_s)
        return agent

    def creds_path(self, name: str) -> Path:
        return self._folder / "creds" / f"{name}.creds"


class Agent:
    """What a host holds: its id, its seed and the file with its current JWT."""

    def __init__(self, server: NatsServer, host_id: HostId, seed: str) -> None:
        self._server = server
        self.host_id = host_id
        self.seed = seed
        self.public_key = nkey.public_key(seed)
        self.creds_file = server.creds_path(host_id)

    def renew(self, lifetime_s: int = 3600) -> None:
        """A fresh JWT is in the creds file."""
        self.hold(self._server.auth.mint_agent(self.host_id, self.public_key, lifetime_s))

    def hold(self, user_jwt: str) -> None:
        write_private(self.creds_file, creds_text(user_jwt, self.seed).encode())


class RawPeer:
    """A NATS client that says whatever bytes a test wants, as an attacker with a host's identity would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, creds_file: Path) -> "RawPeer":
        """Authenticated. Raises PermissionError with the server's word when it refuses."""
        lines = creds_file.read_text().splitlines()
        return await cls.connect_as(port, lines[1], lines[5])

    @classmethod
    async def connect_as(cls, port: int, user_jwt: str, seed: str) -> "RawPeer":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        info = json.loads((await reader.readline()).partition(b" ")[2])
        hello = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "protocol": 1,
            "jwt": user_jwt,
            "sig": _base64url(nkey.sign(seed, info["nonce"].encode())),
        }
        peer = cls(reader, writer)
        try:
            answer = await peer.ask(f"CONNECT {json.dumps(hello)}\r\n".encode())
        except ConnectionError:
            # The server closed with our PING unread, and the reset overtook its last word.
            answer = [b"-ERR closed without a word"]
        if answer and answer[0].startswith(b"-ERR"):
            await peer.close()
            raise PermissionError(answer[0].decode())
        return peer

    async def send(self, *protocol: bytes) -> None:
        for piece in protocol:
            self._writer.write(piece)
        await self._writer.drain()

    async def ask(self, *protocol: bytes) -> list[bytes]:
        """Every line that the server says to it, up to its answer to our PING after it."""
        await self.send(*protocol, b"PING\r\n")
        lines: list[bytes] = []
        async with asyncio.timeout(5):
            while line := await self._reader.readline():
                if line.startswith(b"PING"):
                    await self.send(b"PONG\r\n")
                elif line.startswith(b"PONG"):
                    return lines
                elif not line.startswith(b"INFO"):
                    lines.append(line.rstrip(b"\r\n"))
        return lines

    async def read_line(self) -> bytes:
        """The next line that is no INFO: the server repeats that once it knows the account."""
        async with asyncio.timeout(5):
            while (line := await self._reader.readline()).startswith(b"INFO"):
                pass
            return line

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def hpub(subject: bytes, headers: bytes, body: bytes = b"", reply: bytes = b"") -> bytes:
    """An HPUB with the headers exactly as given."""
    target = subject + b" " + (reply + b" " if reply else b"")
    return b"HPUB %s%d %d\r\n%s%s\r\n" % (target, len(headers), len(headers) + len(body), headers, body)


def pub(subject: bytes, body: bytes = b"", reply: bytes = b"") -> bytes:
    return b"PUB %s %s%d\r\n%s\r\n" % (subject, reply + b" " if reply else b"", len(body), body)


def denials(lines: Iterable[bytes]) -> list[bytes]:
    return [line for line in lines if line.startswith(b"-ERR 'Permissions Violation")]


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
