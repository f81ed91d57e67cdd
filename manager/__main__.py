"""`stowage-manager --config FILE`: one replica of the manager, until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import cast

import uvloop

from manager.app import running
from manager.config import Config, load
from manager.errors import ConfigError
from schemas.logs import set_up_logging

log = logging.getLogger(__name__)

#: From the signal to the end, whatever hangs: the journal makes every moment a good one to stop.
STOP_S = 4.0


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
    except (ConfigError, ExceptionGroup) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        print(f"stowage-manager: {refusal}", file=sys.stderr)
        raise SystemExit(2) from None


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        loop.call_later(STOP_S, _leave)

    for word in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(word, end)
    async with running(config):
        await stop.wait()
        log.info("manager stops")


def _refusal(error: Exception) -> Exception | None:
    """The ConfigError in it, however deep a task group has wrapped it."""
    if isinstance(error, ConfigError):
        return error
    inside = cast("tuple[Exception, ...]", getattr(error, "exceptions", ()))
    return next(filter(None, map(_refusal, inside)), None)


def _leave() -> None:
    log.warning("manager left with work unfinished; whoever is there, or the next start, takes it up")
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
