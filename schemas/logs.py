"""Log lines on stderr: one JSON object each, or a human form on a terminal, with what they are about.

`request_id`, `backend_id` and `operation_id` ride in context variables that an edge sets once.
"""

import json
import logging
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

_request_id: ContextVar[str] = ContextVar("request_id", default="")
_backend_id: ContextVar[str] = ContextVar("backend_id", default="")
_operation_id: ContextVar[str] = ContextVar("operation_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@contextmanager
def about(*, backend_id: str = "", request_id: str = "", operation_id: str = "") -> Generator[None]:
    """Lines logged inside bear these ids; what is not given stays as it is outside."""
    given = ((_backend_id, backend_id), (_request_id, request_id), (_operation_id, operation_id))
    tokens = [(variable, variable.set(value)) for variable, value in given if value]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


def set_up_logging(who: Mapping[str, str], *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """The root logger writes to stderr; called once, by the command line. who: fields that every JSON line bears."""
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(HumanFormatter() if target.isatty() else JsonFormatter(who))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class JsonFormatter(logging.Formatter):
    def __init__(self, who: Mapping[str, str]) -> None:
        super().__init__()
        self._who = dict(who)

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._who,
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
    riding = (("request_id", _request_id), ("backend_id", _backend_id), ("operation_id", _operation_id))
    facts: dict[str, object] = {name: variable.get() for name, variable in riding if variable.get()}
    return facts | {key: value for key, value in vars(record).items() if key not in _STANDARD}
