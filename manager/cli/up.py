"""`stowage up` and `stowage down`."""

from pathlib import Path

import click

from manager.embedded import detached
from manager.embedded.layout import Layout, default_data_dir
from manager.embedded.up import Options, banner
from manager.embedded.up import up as run_up

_DATA_DIR_HELP = (
    "Where everything is kept  [default: $STOWAGE_DATA_DIR, else /var/lib/stowage or ~/.local/share/stowage]"
)
_MOST = 16


class _Address(click.ParamType[tuple[str, int]]):
    """HOST:PORT; an IPv6 host in brackets."""

    name = "HOST:PORT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        host, _, port = str(value).rpartition(":")
        host = host.strip("[]")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT, like 127.0.0.1:8080; port 0 is a free one", param, ctx)
        return host, int(port)


def _chosen(data_dir: Path | None) -> Path:
    """The data folder. Never the checkout, where a `git clean` would delete disks: also not by an empty shell variable."""
    chosen = (data_dir or default_data_dir()).absolute()
    checkout = Path(__file__).parents[2]
    if str(data_dir) == "." or (chosen.is_relative_to(checkout) and (checkout / ".git").exists()):
        raise click.UsageError(f"{chosen} will not do as --data-dir: name a folder of its own, outside of the checkout")
    return chosen


_data_dir = click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help=_DATA_DIR_HELP)


@click.command()
@_data_dir
@click.option("--listen", type=_Address(), default="127.0.0.1:8080", show_default=True, help="Port 0: a free one.")
@click.option(
    "--agents",
    type=click.IntRange(0, _MOST),
    default=1,
    show_default=True,
    help="Agents, each a host of its own; 0 at the first start: hosts join from elsewhere, and no first backend.",
)
@click.option(
    "--managers",
    type=click.IntRange(1, _MOST),
    default=1,
    show_default=True,
    help="Replicas; the others on free ports.",
)
@click.option("--detach", is_flag=True, help="Return once it is ready; `stowage down` ends it.")
def up(data_dir: Path | None, listen: tuple[str, int], agents: int, managers: int, detach: bool) -> None:
    """Run everything on this machine: PostgreSQL, NATS, a manager and an agent, in one data folder."""
    layout = Layout(_chosen(data_dir))
    host, port = listen
    if not detach:
        options = Options(data=layout.data, host=host, port=port, agents=agents, managers=managers)
        run_up(options, say=click.echo)
        return
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    arguments = [
        "--data-dir",
        str(layout.data),
        "--listen",
        address,
        "--agents",
        str(agents),
        "--managers",
        str(managers),
    ]
    ready = detached.start(layout, arguments)
    click.echo(banner(ready["url"], layout.data, layout.admin_token, notes=ready["notes"], is_detached=True))


@click.command()
@_data_dir
def down(data_dir: Path | None) -> None:
    """End the `stowage up` that runs on the data folder, and wait for it."""
    layout = Layout(_chosen(data_dir))
    pid = detached.stop(layout)
    click.echo(f"nothing runs on {layout.data}" if pid is None else f"stopped process {pid}")
