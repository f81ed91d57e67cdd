"""`stowage nats-config`: the fleet's keys, and the configuration that makes NATS servers trust them."""

from pathlib import Path

import click

from manager import bus_auth
from manager.embedded.layout import write_private
from manager.keys import Keys


@click.command("nats-config")
@click.option("--keys-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Made when missing.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Instead of printing it.")
@click.option("--host", default="0.0.0.0", show_default=True, help="Where the server listens.")
@click.option("--port", type=click.IntRange(1, 65535), default=4222, show_default=True)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=Path("/data"), show_default=True, help="Of the server."
)
@click.option("--ports-file-dir", type=click.Path(path_type=Path), default=Path("/tmp"), show_default=True)
def nats_config(
    keys_dir: Path, output: Path | None, host: str, port: int, data_dir: Path, ports_file_dir: Path
) -> None:
    """Print the configuration of a NATS server that trusts this fleet. The keys stay where they are."""
    keys = Keys.load_or_create(keys_dir)
    text = bus_auth.server_config(keys, data_dir=data_dir, host=host, port=port, ports_file_dir=ports_file_dir)
    if output is None:
        click.echo(text)
    else:
        write_private(output, text)
        output.chmod(0o644)  # it names public keys and tokens signed by them, and the server runs as somebody else
