"""The group of all commands. An expected error is one message, the end of a log where there is one, and exit code 1."""

import logging
import sys
from collections.abc import Callable

import click

from manager.embedded.errors import StartError
from manager.errors import ConfigError


def _api() -> click.Command:
    from manager.cli.api import api

    return api


def _down() -> click.Command:
    from manager.cli.up import down

    return down


def _nats_config() -> click.Command:
    from manager.cli.nats_config import nats_config

    return nats_config


def _up() -> click.Command:
    from manager.cli.up import up

    return up


_COMMANDS: dict[str, Callable[[], click.Command]] = {
    "api": _api,
    "down": _down,
    "nats-config": _nats_config,
    "up": _up,
}


class _Commands(click.Group):
    """Imports a command when it is asked for: some bring NATS and its HTTP client, which takes half a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = _COMMANDS.get(cmd_name)
        return None if found is None else found()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="stowage")
def cli() -> None:
    """Stowage: the storage control plane for a fleet of hypervisor hosts."""


def main() -> None:
    """Runs the command line and exits."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s %(facts)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_facts)
    try:
        cli(prog_name="stowage")
    except ConfigError as error:
        click.echo(f"stowage: {error}", err=True)
        sys.exit(1)
    except StartError as error:
        click.echo(f"stowage: {error}", err=True)
        from manager.embedded import children

        if error.log is not None and (lines := children.tail(error.log)):
            click.echo(f"the last lines of {error.log}:\n{lines}", err=True)
        sys.exit(1)


def _facts(record: logging.LogRecord) -> bool:
    """Shows the fields given by `extra` behind the message."""
    known = logging.makeLogRecord({}).__dict__
    record.facts = " ".join(
        f"{key}={value}" for key, value in record.__dict__.items() if key not in known and key != "facts"
    )
    return True
