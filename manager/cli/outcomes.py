"""What a refusal is told by: an exit code for scripts, and lines for people."""

import enum
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast


class ExitCode(enum.IntEnum):
    """The same for every command; 2 is click's own."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_ALLOWED = 3
    NOT_FOUND = 4
    CONFLICT = 5
    INVALID = 6
    UNREACHABLE = 7
    HOST_FAILED = 8
    TIMED_OUT = 9
    INTERRUPTED = 130


#: Problems of hosts: their status is shared with others, or is not theirs alone.
_BY_CODE = {
    "probe_failed": ExitCode.HOST_FAILED,
    "credentials_rejected": ExitCode.HOST_FAILED,
    "no_agent": ExitCode.HOST_FAILED,
}
#: 502 and 503: a proxy that has no manager behind it, or a manager without its database.
_BY_STATUS = {
    400: ExitCode.INVALID,
    401: ExitCode.NOT_ALLOWED,
    403: ExitCode.NOT_ALLOWED,
    404: ExitCode.NOT_FOUND,
    405: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    412: ExitCode.CONFLICT,
    422: ExitCode.INVALID,
    502: ExitCode.UNREACHABLE,
    503: ExitCode.UNREACHABLE,
    504: ExitCode.TIMED_OUT,
}


def exit_code(status: int, content: bytes) -> ExitCode:
    """Of an answer that is no success."""
    problem = _problem(content)
    found = _BY_CODE.get(str(problem.get("code"))) or _BY_STATUS.get(status)
    if found is not None:
        return found
    return ExitCode.HOST_FAILED if problem.get("faults") else ExitCode.FAILED


def words(status: int, content: bytes) -> Iterator[str]:
    """The problem, then a line for each wrong field, each fault of a host, each thing in the way, and where its steps are."""
    problem = _problem(content)
    if "title" not in problem:
        yield f"stowage: the answer was {status}, and nothing that the API says"
        return
    yield printable(f"stowage: {problem['title']}: {problem.get('detail', '')}")
    for error in _objects(problem, "errors"):
        yield printable(f"{error.get('pointer')}: {error.get('detail')}")
    for fault in _objects(problem, "faults"):
        remedy = f" Remedy: {fault['remedy']}" if fault.get("remedy") else ""
        yield printable(f"{fault.get('host') or 'host'}: {fault.get('code')}: {fault.get('detail')}{remedy}")
    for blocker in _objects(problem, "blockers"):
        yield printable("in the way: " + ", ".join(f"{name} {value}" for name, value in blocker.items()))
    if problem.get("operation"):
        yield printable(f"its steps: {problem['operation']}")


def printable(text: str) -> str:
    """One line without what a terminal would obey: words may come from a tool on some host."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _problem(content: bytes) -> Mapping[str, Any]:
    """The document, or an empty one for what is none (a proxy's page)."""
    try:
        value: object = json.loads(content)
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _objects(problem: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found: object = problem.get(name)
    each = cast("list[object]", found) if isinstance(found, list) else []
    return [cast("dict[str, Any]", one) for one in each if isinstance(one, dict)]
