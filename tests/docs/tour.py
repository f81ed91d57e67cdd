"""Documents whose commands are run: what a block ```console says, a shell that runs it, and how outputs are compared.

A block ```console is run: `$ ` begins a command, `> ` goes on with it, what follows is its output. Those of
```console lab are run by tests/lab, where the guests are. Blocks of any other language are not run.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[2]

#: What the tour names, and a run of its own must replace.
TOUR_DATA = "/var/tmp/stowage-tour"
TOUR_ADDRESS = "127.0.0.1:8080"

#: The words that a reader compares; other values (ids, times, sizes, names of machines) differ from run to run.
_TELLING = frozenset(
    ("status", "code", "state", "kind", "type", "title", "is_default", "version", "generation",
     "detail", "remedy", "pointer", "left", "action", "error", "name")
)  # fmt: skip
_CHANGING = (
    (re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"[0-9a-f]{64}"), "<hash>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z| UTC)"), "<time>"),
    (re.compile(r"process \d+"), "process <pid>"),
    (re.compile(r"\S+/bin/stowage\b"), "stowage"),
)
_DONE = "--- done"
_PATIENCE_S = 240


@dataclass(frozen=True)
class Step:
    """One command of the tour and the output that the README shows."""

    command: str
    shown: str


def tour(text: str, *, language: str = "console") -> list[Step]:
    """The commands of every block of that language, in order."""
    steps: list[Step] = []
    for block in re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        command: list[str] = []
        shown: list[str] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    steps.append(Step("\n".join(command), "\n".join(shown)))
                command, shown = [line[2:]], []
            elif line.startswith("> ") and not shown:
                command.append(line[2:])
            else:
                shown.append(line)
        steps.append(Step("\n".join(command), "\n".join(shown)))
    return steps


def prelude(document: str) -> tuple[str, ...]:
    """What must have been done before the document's first command; the README begins with nothing."""
    if document == "README.md":
        return ()
    return (
        f"export STOWAGE_DATA_DIR={TOUR_DATA}",
        "./scripts/up --detach --agents 2 > /dev/null",
        'echo "Authorization: Bearer $(cat $STOWAGE_DATA_DIR/manager/admin.token)" > $STOWAGE_DATA_DIR/auth',
    )


@contextlib.contextmanager
def opened_shell() -> Generator["Shell"]:
    """In a folder through which PostgreSQL's user may pass; nothing runs in it at the end, and it ends in good time."""
    folder = Path(tempfile.mkdtemp(prefix="stowage-tour-"))
    folder.chmod(0o711)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shell = Shell(folder, port)
    watchdog = threading.Timer(_PATIENCE_S, shell.kill)
    watchdog.start()
    try:
        yield shell
    finally:
        watchdog.cancel()
        shell.close()
        down = [sys.executable, "-m", "manager.cli", "down", "--data-dir", str(folder / "data")]
        subprocess.run(down, check=False, cwd=ROOT, capture_output=True, timeout=30)
        shutil.rmtree(folder)


class Shell:
    """One bash in a stand-in for a fresh checkout, whose scripts run the code under test on the given port."""

    def __init__(self, folder: Path, port: int) -> None:
        self._places = {TOUR_DATA: str(folder / "data"), TOUR_ADDRESS: f"127.0.0.1:{port}"}
        checkout = folder / "checkout"
        stowage = f"exec {shlex.quote(sys.executable)} -m manager.cli"
        _script(checkout / "scripts" / "up", f'{stowage} up --listen 127.0.0.1:{port} "$@"')
        _script(checkout / ".venv" / "bin" / "stowage", f'{stowage} "$@"')
        _script(checkout / ".venv" / "bin" / "python", f'exec {shlex.quote(sys.executable)} "$@"')
        # Its ssh would take the commands that follow for its input.
        lab = f'cd {shlex.quote(str(ROOT))}; exec {shlex.quote(sys.executable)} -m tests.lab "$@" </dev/null'
        _script(checkout / "scripts" / "lab", lab)
        (checkout / "scripts" / "print_events.py").symlink_to(ROOT / "scripts" / "print_events.py")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("STOWAGE_")}
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=checkout,
            env={**environment, "PYTHONPATH": str(ROOT), "LC_ALL": "C"},
            start_new_session=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """(exit code, what it said, with the tour's own places in it)."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        for place, ours in self._places.items():
            command = command.replace(place, ours)
        self._bash.stdin.write(f"{command}\nprintf '\\n%s %d\\n' '{_DONE}' $?\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(_DONE):
                break
            lines.append(line)
        else:
            raise AssertionError(f"the shell ended, or was ended for taking too long, in: {command}")
        said = "".join(lines).strip("\n")
        for place, ours in self._places.items():
            said = said.replace(ours, place)
        return int(line.split()[-1]), said

    def kill(self) -> None:
        """The shell and what it waits for; a detached `up` has a session of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait()

    def close(self) -> None:
        """Killed, and its pipes closed."""
        self.kill()
        for pipe in filter(None, (self._bash.stdin, self._bash.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def differences(shown: str, said: str) -> list[str]:
    """Where the output is not of the shape that the README shows; empty when it is."""
    try:
        expected = json.loads(shown)
    except ValueError:
        ours, theirs = _plain(said).splitlines(), _plain(shown).splitlines()
        return [] if ours == theirs else [f"shown {theirs}, said {ours}"]
    try:
        return list(_json_differences(expected, json.loads(said), ""))
    except ValueError:
        return [f"shown is JSON, said is {said!r}"]


def _json_differences(shown: object, said: object, at: str) -> Iterator[str]:
    if isinstance(shown, dict) and isinstance(said, dict):
        expected, found = cast("dict[str, object]", shown), cast("dict[str, object]", said)
        if expected.keys() != found.keys():
            yield f"{at or '/'}: only shown {expected.keys() - found.keys()}, only said {found.keys() - expected.keys()}"
        for key in expected.keys() & found.keys():
            if key in _TELLING and _shown(expected[key]) != _shown(found[key]):
                yield f"{at}/{key}: shown {expected[key]!r}, said {found[key]!r}"
            yield from _json_differences(expected[key], found[key], f"{at}/{key}")
    elif isinstance(shown, list) and isinstance(said, list):
        items, others = cast("list[object]", shown), cast("list[object]", said)
        if len(items) != len(others):
            yield f"{at}: shown {len(items)} items, said {len(others)}"
        for index, (one, other) in enumerate(zip(items, others, strict=False)):
            yield from _json_differences(one, other, f"{at}/{index}")
    elif _is_other_sort(shown, said):
        yield f"{at}: shown {shown!r}, said {said!r}"


def _shown(value: object) -> object:
    return _plain(value) if isinstance(value, str) else value


def _is_other_sort(shown: Any, said: Any) -> bool:
    """A whole number and a fraction are both numbers to a reader."""
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (shown, said))
    return not are_numbers and type(shown) is not type(said)


def _plain(text: str) -> str:
    name = re.escape(socket.gethostname().partition(".")[0].lower())
    text = re.sub(rf"\b{name}\b(-\d+)?", r"vm\1", text)
    for pattern, word in _CHANGING:
        text = pattern.sub(word, text)
    return text


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
