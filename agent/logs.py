"""Log lines on stderr: one JSON object each, or a human form on a terminal, with what they are about.

`request_id` and `backend_id` ride in context variables that the edge sets once (rpc, reconcile, health).
"""

import json
import logging
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

_request_id: ContextVar[str] = ContextVar("request_id", default="")
_backend_id: ContextVar[str] = ContextVar("backend_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@contextmanager
def about(*, backend_id: str = "", request_id: str = "") -> Generator[None, None, None]:
    """Lines logged inside bear these ids."""
    backend, request = _backend_id.set(backend_id), _request_id.set(request_id)
    try:
        yield
    finally:
        _backend_id.reset(backend)
        _request_id.reset(request)


def set_up_logging(host_id: str, *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """The root logger writes to stderr; called once, by the command line."""
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(HumanFormatter() if target.isatty() else JsonFormatter(host_id))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class JsonFormatter(logging.Formatter):
    def __init__(self, host_id: str) -> None:
        super().__init__()
        self._host_id = host_id

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "host_id": self._host_id,
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{key}={value}" for key, value in _facts(record).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}  {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts: dict[str, object] = {}
    if request := _request_id.get():
        facts["request_id"] = request
    if backend := _backend_id.get():
        facts["backend_id"] = backend
    return facts | {key: value for key, value in vars(record).items() if key not in _STANDARD}
