"""The agent's command line: `join` once, `run` for ever.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.app import facts_of, run_until_signalled
from agent.config import StateDir, load_config
from agent.errors import ConfigError
from agent.join import Invitation, JoinRefused, join
from schemas.logs import set_up_logging

DEFAULT_STATE_DIR = Path("/var/lib/stowage-agent")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return _join(args) if args.command == "join" else _run(args)
    except (ConfigError, JoinRefused) as error:
        print(f"stowage-agent: {error}", file=sys.stderr)
    except OSError as error:
        print(f"stowage-agent: {args.command} failed: {error}", file=sys.stderr)
    return 1


def _join(args: argparse.Namespace) -> int:
    # From stdin the token is in no process list and no shell history.
    token = sys.stdin.readline().strip() if args.token == "-" else args.token
    invitation = Invitation.read(args.url, token, allow_http=args.allow_http)
    join(StateDir(args.state_dir), invitation, name=args.name, facts=facts_of(dict(args.label)))
    return 0


def _run(args: argparse.Namespace) -> int:
    state = StateDir(args.state_dir)
    config = load_config(state, os.environ, tuple(args.nats_url), tuple(args.reserve), tuple(args.images))
    set_up_logging({"host_id": config.host_id, "host": config.host_name}, level=args.log_level)
    # What must be private says so itself; a folder for VM disks must not be.
    os.umask(0o022)
    with state.locked():
        asyncio.run(run_until_signalled(config, state))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stowage-agent", description="Stowage's agent on a hypervisor host")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state-dir", type=Path, default=DEFAULT_STATE_DIR, help="this agent's own folder (default %(default)s)"
    )
    joining = commands.add_parser("join", parents=[common], help="enrol this host with a one-time token")
    joining.add_argument("url", help="https://HOST[:PORT] of a manager")
    joining.add_argument("token", help="the join token; - reads it from standard input")
    joining.add_argument(
        "--name", default=socket.gethostname().partition(".")[0].lower(), help="this host's name (default %(default)s)"
    )
    joining.add_argument(
        "--label", action="append", default=[], type=_label, metavar="K=V", help="a label of this host; may be repeated"
    )
    joining.add_argument(
        "--allow-http", action="store_true", help="plain http to a manager that is not on this machine"
    )
    running = commands.add_parser("run", parents=[common], help="serve until SIGTERM")
    running.add_argument(
        "--nats-url", action="append", default=[], metavar="URL", help="instead of the configured ones; may be repeated"
    )
    running.add_argument(
        "--reserve", action="append", default=[], metavar="DIR", help="no local_file backend in or around this folder"
    )
    running.add_argument(
        "--images", action="append", default=[], metavar="DIR", help="volumes may be filled from files of this folder"
    )
    running.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or not (key + value).isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
