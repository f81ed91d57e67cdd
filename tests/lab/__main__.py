"""scripts/lab: the lab of virtual hosts at the command line. See docs/lab.md."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from tests.lab import image, snapshots
from tests.lab import lab as labs
from tests.lab.image import ROOT, LabError, lab_dir, log_dir
from tests.lab.qemu import wait_until

#: What a running lab tells of itself: lab.json, and the manager's admin token.
_TOLD = labs.RUN_DIR / "stowage-lab"
_STATE = _TOLD / "lab.json"
_TOKEN = _TOLD / "admin.token"
_LISTEN = "127.0.0.1:8080"
_EXPORT = "/srv/nfs/vms"
_UP_TIMEOUT_S = 600.0
#: Two labs beside each other, each with its own guests, which take test by test; pytest's words.
_BESIDE = ("-n", "2", "--dist", "load", "--maxschedchunk", "1")


def main() -> int:
    parser = _parser()
    args, rest = parser.parse_known_args()
    args.rest = rest
    if rest and args.run is not _test:
        parser.error(f"what is {rest[0]}?")
    try:
        code: int = args.run(args)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return code


def _build(_: argparse.Namespace) -> int:
    began = time.monotonic()
    snapshots.remove_stale()
    snapshots.build()
    print(f"lab: built in {lab_dir()} ({time.monotonic() - began:.0f} s)")
    return 0


def _test(args: argparse.Namespace) -> NoReturn:
    snapshots.build()
    ours = ("--override-ini=timeout=600", "--override-ini=testpaths=tests/lab")
    argv = [
        sys.executable,
        "-m",
        "pytest",
        *ours,
        *(() if "-n" in args.rest else _BESIDE),
        *(args.rest or ("--quiet",)),
    ]
    print(f"lab: the commands that the agents run go to {log_dir()}/, test by test", flush=True)
    os.chdir(ROOT)
    # In our place, so that whoever ends us ends pytest and its guests.
    os.execve(argv[0], argv, {**os.environ, "STOWAGE_LAB": "1"})


def _up(args: argparse.Namespace) -> int:
    if _running() is not None:
        raise LabError("it is up already; ./scripts/lab down ends it")
    snapshots.build()
    log = lab_dir() / "up.log"
    with log.open("wb") as file:
        argv = [sys.executable, "-m", "tests.lab", "keep", str(args.hosts), args.listen]
        keeper = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    wait_until(
        _STATE.exists, "the lab to be up", _UP_TIMEOUT_S,
        unless=lambda: None if keeper.poll() is None else log.read_text()[-2000:],
    )  # fmt: skip
    state = json.loads(_STATE.read_text())
    print(f"The lab is up: {', '.join(state['hosts'])} have joined the manager at {state['url']}/")
    print(f"  admin token  {_TOKEN}")
    print(f"  storage      10.77.0.1 exports {_EXPORT} to them")
    print("  a shell      ./scripts/lab shell hv1 (or storage)")
    print("  stop         ./scripts/lab down")
    return 0


def _keep(args: argparse.Namespace) -> int:
    """The process that owns the guests of `up`, until a signal."""
    with labs.running(listen=args.listen) as lab:
        for number in range(1, args.hosts + 1):
            lab.host(f"hv{number}")
        lab.storage.export(path=_EXPORT, mib=256)
        state = {
            "pid": os.getpid(),
            "url": lab.api.url,
            "hosts": [host.name for host in lab.hosts],
            "ssh": {"storage": lab.storage.machine.ssh_port} | {host.name: host.machine.ssh_port for host in lab.hosts},
            "ssh_key": str(image.build() / "ssh_key"),
        }
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        _TOLD.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(lab.stack.token_file, _TOKEN)
        draft = _STATE.with_suffix(".part")
        draft.write_text(json.dumps(state))
        draft.rename(_STATE)
        try:
            signal.sigwait({signal.SIGTERM, signal.SIGINT})
        finally:
            shutil.rmtree(_TOLD)
    return 0


def _shell(args: argparse.Namespace) -> int:
    state = _running()
    if state is None:
        raise LabError("it is not up; ./scripts/lab up starts it")
    if args.host not in state["ssh"]:
        raise LabError(f"there is no guest {args.host}; there are {', '.join(state['ssh'])}")
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    argv = [
        "ssh",
        "-i",
        state["ssh_key"],
        "-p",
        str(state["ssh"][args.host]),
        *(w for option in options for w in ("-o", option)),
    ]
    return subprocess.run([*argv, "root@127.0.0.1", *args.command], check=False).returncode


def _down(_: argparse.Namespace) -> int:
    state = _running()
    if state is None:
        print("lab: it is not up")
        return 0
    os.kill(state["pid"], signal.SIGTERM)
    wait_until(lambda: not _is_keeper(state["pid"]), "the lab to end", 60.0)
    print("lab: ended")
    return 0


def _running() -> dict[str, Any] | None:
    """What the running lab told of itself. A keeper that was killed has left its file behind; its guests died with it."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        state: dict[str, Any] = json.loads(_STATE.read_text())
        if _is_keeper(state["pid"]):
            return state
        _STATE.unlink(missing_ok=True)
    return None


def _is_keeper(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"tests.lab\0keep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/lab", description="Virtual hosts and a storage server, in software emulation"
    )
    commands = parser.add_subparsers(required=True)

    def add(name: str, run: object, help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_)
        command.set_defaults(run=run)
        return command

    add("build", _build, "the image and the snapshots, where they are not there yet")
    up = add("up", _up, "a manager, a storage server and hosts that have joined it, until `down`")
    up.add_argument("--hosts", type=int, choices=range(1, 5), default=2)
    up.add_argument(
        "--listen", default=_LISTEN, metavar="HOST:PORT", help="the manager's address (default %(default)s)"
    )
    add("test", _test, "the tests against real servers; arguments go to pytest")
    shell = add("shell", _shell, "a shell in a guest of `up`, or a command")
    shell.add_argument("host")
    shell.add_argument("command", nargs=argparse.REMAINDER)
    add("down", _down, "the end of `up`")
    keep = commands.add_parser("keep")
    keep.set_defaults(run=_keep)
    keep.add_argument("hosts", type=int)
    keep.add_argument("listen")
    return parser


if __name__ == "__main__":
    sys.exit(main())
