"""`stowage-manager --config FILE`: one replica of the manager, until SIGTERM or SIGINT."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

import uvloop

from manager.app import running
from manager.config import Config, load
from manager.errors import ConfigError
from schemas.logs import set_up_logging

log = logging.getLogger(__name__)


def main() -> None:
    """Exit code 0 after an orderly stop, 2 when the configuration cannot be used."""
    parser = argparse.ArgumentParser(prog="stowage-manager", description="One replica of Stowage's manager.")
    parser.add_argument(
        "--config", type=Path, required=True, help="TOML file; STOWAGE_* in the environment override it"
    )
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
        set_up_logging({"replica": config.replica}, level=arguments.log_level)
        uvloop.run(_serve(config))
    except ConfigError as error:
        print(f"stowage-manager: {error}", file=sys.stderr)
        raise SystemExit(2) from None


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for word in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(word, stop.set)
    try:
        async with running(config):
            await stop.wait()
            log.info("manager stops")
    except* ConfigError as group:
        raise group.exceptions[0] from None
    finally:
        with contextlib.suppress(NotImplementedError):
            for word in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(word)


if __name__ == "__main__":
    main()
