"""`stowage api`: one request to the API, for scripts and for what the web page copies."""

import codecs
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import BinaryIO, cast

import click

from manager.cli.client import Answer, Server, Unanswered, Unreachable, token_of
from manager.cli.outcomes import ExitCode, exit_code, printable, words

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_JSON = "application/json"
#: A second one of these would have two readers take one request for two.
_OURS = ("content-length", "transfer-encoding", "host")
#: What the page writes in the place of a secret; the name is what is asked for.
_PROMPT = re.compile(r"<prompt:([^<>\x00-\x1f]{1,64})>")
#: Control characters that a terminal obeys. JSON may hold the second sort as they are.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class _Header(click.ParamType[tuple[str, str]]):
    """`Name: value`, and none that would show a secret to whoever lists the processes."""

    name = "NAME: VALUE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, colon, text = str(value).partition(":")
        if (
            not colon
            or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
            or not (text.isascii() and text.isprintable())
        ):
            # Not repeated either: it may be a header with a secret, misspelt.
            self.fail("a header is written as NAME: VALUE, in printable ASCII", param, ctx)
        if name.lower() in _OURS:
            self.fail(f"{name} is no header to give here; it follows from the address and the body", param, ctx)
        if name.lower() in ("authorization", "cookie", "proxy-authorization"):
            # The value is not repeated: it is a secret, and this goes to logs.
            self.fail(
                f"{name} is no header to give here; the token comes from STOWAGE_TOKEN or --token-file", param, ctx
            )
        return name, text.strip()


@click.command()
@click.argument("method", type=click.Choice(_METHODS, case_sensitive=False), metavar="METHOD")
@click.argument("path")
@click.option("--data", metavar="JSON|@FILE|-", help="The body; @FILE: what the file holds; -: standard input.")
@click.option("-H", "--header", "headers", type=_Header(), multiple=True, help="A further header; may be repeated.")
@click.option("--url", envvar="STOWAGE_URL", default="http://127.0.0.1:8080", show_default=True, show_envvar=True)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Holds the token, for its owner alone  [default: $STOWAGE_TOKEN, else the file $STOWAGE_TOKEN_FILE]",
)
def api(
    method: str, path: str, data: str | None, headers: tuple[tuple[str, str], ...], url: str, token_file: Path | None
) -> None:
    """Send one request to the API, as `stowage api GET /v1/storage_backends`.

    The answer goes to standard output; what was refused goes to standard error, in words. A string "<prompt:NAME>" in the
    JSON is asked for on the terminal, so that no secret stands in a command.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not signed in or not allowed, 4 not found, 5 conflict, 6 invalid,
    7 manager not reached, 8 failed on a host, 9 outcome unknown, 130 interrupted.
    """
    names = [name.lower() for name, _ in headers]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"--header {name} is given twice")
    try:
        code = _run(method.upper(), path, data, dict(headers), url, token_file)
    except (KeyboardInterrupt, click.Abort):
        code = ExitCode.INTERRUPTED
    sys.exit(code)


def _run(
    method: str, path: str, data: str | None, headers: dict[str, str], url: str, token_file: Path | None
) -> ExitCode:
    server = Server.at(url)
    if not path.startswith("/"):
        raise click.UsageError(f"{path!r} is not a path of the API: it begins with /, as /v1/hosts")
    token = token_of(token_file)
    names = {name.lower(): name for name in headers}
    body: bytes | BinaryIO | None = None
    if data is not None:
        content_type = headers.setdefault(names.get("content-type", "Content-Type"), _JSON)
        is_json = content_type.partition(";")[0].strip().lower() == _JSON
        body = _json_body(data) if is_json else _opened(data)
        if not isinstance(body, bytes) and stat.S_ISREG((about := os.fstat(body.fileno())).st_mode):
            headers["Content-Length"] = str(
                about.st_size
            )  # else it goes in chunks, and nobody knows whether there is room
    if "accept" not in names:
        headers["Accept"] = _JSON
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        with server.asked(method, path, headers, body) as answer:
            return _shown(answer, is_signed_in=token is not None)
    except Unanswered as error:
        click.echo(f"stowage: {error}", err=True)
        return ExitCode.TIMED_OUT
    except Unreachable as error:
        click.echo(f"stowage: {error}", err=True)
        return ExitCode.UNREACHABLE


def _shown(answer: Answer, *, is_signed_in: bool) -> ExitCode:
    """The exit code, the answer having been shown."""
    if answer.status >= 300:
        text = answer.read()
        for line in words(answer.status, text):
            click.echo(line, err=True)
        if answer.status == 401 and not is_signed_in:
            click.echo("no token was sent: set STOWAGE_TOKEN, or name a file by --token-file", err=True)
        return exit_code(answer.status, text)
    out = sys.stdout.buffer
    if answer.content_type == _JSON and out.isatty():
        out.write(_indented(answer.read()))
        return ExitCode.DONE
    decoded = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for chunk in answer.chunks():
        out.write(_harmless(decoded.decode(chunk)).encode() if out.isatty() else chunk)
        out.flush()  # of the stream of events somebody wants to see each when it comes
    return ExitCode.DONE


def _indented(content: bytes) -> bytes:
    """For a terminal; what is not JSON after all, as the nothing that answers HEAD, as it is."""
    try:
        value: object = json.loads(content)
    except ValueError:
        return content
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _harmless(text).encode() + b"\n"


def _harmless(text: str) -> str:
    """With nothing in it that a terminal would obey."""
    return _UNSHOWN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _json_body(data: str) -> bytes:
    """As it was given, unless something has to be asked for. Raises UsageError for what is not JSON."""
    opened = _opened(data)
    if isinstance(opened, bytes):
        content = opened
    else:
        with opened:
            content = opened.read()
    try:
        value: object = json.loads(content)
    except ValueError as error:
        # Where it is wrong, not what is there: it may be a secret.
        where = (
            f"line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else "its encoding"
        )
        raise click.UsageError(f"--data is not JSON ({where})") from None
    answers: dict[str, str] = {}
    filled = _filled(value, answers)
    return json.dumps(filled).encode() if answers else content


def _filled(value: object, answers: dict[str, str]) -> object:
    """The value with what was typed in the places of its prompts; each name is asked for once."""
    match value:
        case dict():
            return {key: _filled(each, answers) for key, each in cast("dict[str, object]", value).items()}
        case list():
            return [_filled(each, answers) for each in cast("list[object]", value)]
        case str() if asked := _PROMPT.fullmatch(value):
            name = asked[1]
            if name not in answers:
                answers[name] = _asked(name)
            return answers[name]
        case _:
            return value


def _asked(name: str) -> str:
    if not _has_terminal():
        raise click.UsageError(
            f"--data wants {printable(name)} typed in, and there is no terminal to ask on; give the whole body by"
            " --data @FILE, in a file that only you can read"
        )
    return str(click.prompt(printable(name), hide_input=True, err=True))


def _has_terminal() -> bool:
    """Whether somebody can be asked, also where standard input is the body."""
    try:
        with open("/dev/tty", "rb"):
            return True
    except OSError:
        return False


def _opened(data: str) -> bytes | BinaryIO:
    if data == "-":
        return sys.stdin.buffer
    if not data.startswith("@"):
        return data.encode()
    try:
        return open(data[1:], "rb")
    except OSError as error:
        raise click.UsageError(f"cannot read {data[1:]}: {error.strerror}") from error
