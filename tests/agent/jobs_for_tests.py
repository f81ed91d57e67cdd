"""Jobs that do what storage does on bad days, for `WorkerPool("tests.agent.jobs_for_tests")`."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any


def echo(args: dict[str, Any]) -> dict[str, Any]:
    return {"pid": os.getpid(), **args}


def fail(args: dict[str, Any]) -> dict[str, Any]:
    raise OSError(args["errno"], os.strerror(args["errno"]), "/mnt/place")


def bug(args: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("a-private-detail")


def die(args: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def sleep(args: dict[str, Any]) -> dict[str, Any]:
    """Says that it began by making a file, then sleeps."""
    if "began" in args:
        with open(args["began"], "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    time.sleep(args["s"])
    return {"slept": True}


def linger(args: dict[str, Any]) -> dict[str, Any]:
    """As a job that no signal ends: a grandchild, which the zygote can't kill, holds the pipe until a file goes."""
    if os.fork() == 0:
        os.setsid()
        while os.path.exists(args["while"]):
            time.sleep(0.01)
        os._exit(0)
    time.sleep(600)
    return {}


def big(args: dict[str, Any]) -> dict[str, Any]:
    return {"text": "x" * args["size"]}


JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    job.__name__: job for job in (echo, fail, bug, die, sleep, linger, big)
}
