"""Managers that a test may kill: one process that has imported everything forks one child for each line on its stdin.

A line is JSON: {"config": …, "kill_at": a journal line or null, "fail_at": [kind, step] or null, "ready": a path, "log": a path,
"command_ttl_s": seconds, "abandoned_s": of an Idempotency-Key or null, "level": of the log}. The answer is the child's pid on a line of stdout.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from manager.app import running
from manager.config import Config
from manager.sagas.catalog import SAGAS
from manager.store import idempotency
from schemas.logs import set_up_logging
from tests.fleet.broken_sagas import failing_at

_PR_SET_PDEATHSIG = 1


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_a_manager(order)
        print(pid, flush=True)


def _be_a_manager(order: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.close(0)
    set_up_logging({"replica": order["config"]["replica"]}, level=order["level"], stream=open(order["log"], "a"))  # noqa: SIM115
    try:
        asyncio.run(_serve(order))
    finally:
        os._exit(0)


async def _serve(order: dict[str, Any]) -> None:
    config = msgspec.convert(order["config"], Config, dec_hook=lambda type_, value: Path(value))
    if order["abandoned_s"]:
        idempotency.ABANDONED_S = order["abandoned_s"]
    definitions = failing_at(SAGAS, *order["fail_at"]) if order["fail_at"] else SAGAS

    def on_line(line: str) -> None:
        if line == order["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    async with running(config, definitions=definitions, on_line=on_line, command_ttl_s=order["command_ttl_s"]) as url:
        ready = Path(order["ready"])
        ready.with_suffix(".new").write_text(url)
        ready.with_suffix(".new").rename(ready)
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
