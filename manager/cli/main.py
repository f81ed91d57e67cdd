"""The group of all commands. An expected error is one message, the end of a log where there is one, and exit code 1."""

import logging
import sys

import click

from manager.cli.nats_config import nats_config
from manager.cli.up import down, up
from manager.embedded import children
from manager.embedded.errors import StartError
from manager.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="stowage")
def cli() -> None:
    """Stowage: the storage control plane for a fleet of hypervisor hosts."""


cli.add_command(up)
cli.add_command(down)
cli.add_command(nats_config)


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
