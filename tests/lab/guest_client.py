"""What a test says to a guest's courier (guest/courier.py), and what comes back."""

import json
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds beyond a command's own limit until the guest counts as gone.
_GRACE_S = 60.0


@dataclass(frozen=True)
class Done:
    """How a command in a guest ended. code -9 and timed_out: killed at its limit."""

    command: str
    code: int
    out: str
    err: str
    timed_out: bool
    wall_s: float

    def __str__(self) -> str:
        return f"{self.command} -> {self.code}{' (timed out)' if self.timed_out else ''} in {self.wall_s} s\n{self.out}{self.err}"


class CommandFailed(AssertionError):
    """A command in a guest that had to succeed did not."""


class Courier:
    """One guest's courier, at a port of the machine's loopback."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self._port = port

    def run(self, command: str, *words: str | Path | float, stdin: bytes | str = b"", timeout_s: float = 60.0) -> Done:
        """`command` for the guest's shell with `words` quoted behind it. Raises CommandFailed."""
        done = self.attempt(command, *words, stdin=stdin, timeout_s=timeout_s)
        if done.code != 0:
            raise CommandFailed(f"{self.name}: {done}")
        return done

    def attempt(
        self, command: str, *words: str | Path | float, stdin: bytes | str = b"", timeout_s: float = 60.0
    ) -> Done:
        """The same, however it ends."""
        line = " ".join((command, *(shlex.quote(str(word)) for word in words)))
        content = stdin.encode() if isinstance(stdin, str) else stdin
        head, out, err = self._ask({"sh": line, "timeout": timeout_s}, content, timeout_s)
        return Done(line, head["code"], out.decode(errors="replace"), err.decode(errors="replace"), head["timed_out"], head["wall_s"])  # fmt: skip

    def put(self, path: str, content: bytes | str, mode: int = 0o644) -> None:
        """The file is there with this content."""
        self._checked({"put": path, "mode": mode}, content.encode() if isinstance(content, str) else content)

    def look(self, source: str, timeout_s: float = 60.0) -> Any:
        """What the Python source leaves in `answer`, run inside the courier."""
        return json.loads(self._checked({"look": source}, timeout_s=timeout_s))

    def wake(self, now: float, seed: bytes) -> None:
        """After a resume: the clock, and random numbers that no twin has."""
        self._checked({"wake": now, "seed": seed.hex()})

    def answers(self) -> bool:
        """Whether the guest has come up."""
        try:
            return bool(self._ask({"look": "answer = 1"}, b"", 0.0, grace_s=2.0))
        except (OSError, ValueError):
            return False

    def _checked(self, asked: dict[str, Any], content: bytes = b"", *, timeout_s: float = 60.0) -> bytes:
        head, out, err = self._ask(asked, content, timeout_s)
        if head["code"] != 0:
            raise CommandFailed(f"{self.name}: {next(iter(asked))}: {err.decode(errors='replace')}")
        return out

    def _ask(
        self, asked: dict[str, Any], content: bytes, timeout_s: float, *, grace_s: float = _GRACE_S
    ) -> tuple[dict[str, Any], bytes, bytes]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=timeout_s + grace_s) as connection:
            connection.sendall(json.dumps({**asked, "stdin": len(content)}).encode() + b"\n" + content)
            with connection.makefile("rb") as answer:
                head = json.loads(answer.readline())
                return head, answer.read(head["out"]), answer.read(head["err"])
