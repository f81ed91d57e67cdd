"""Where the manager is, with which token one comes to it, and one request.

By the standard library: aiohttp alone takes longer to import than the whole command may. No proxy comes between.
"""

import contextlib
import http.client
import os
import re
import string
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import click

#: Seconds without a byte; above the 30 s after which the manager answers 202, and the time between two pings of a stream.
SILENCE_S = 65.0
_CHUNK_BYTES = 64 * 1024
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")
_TOKEN = re.compile(rb"[!-~]+")
#: What a path and its query are sent with as it is; all else as %XX.
_IN_A_PATH = "".join(set(string.punctuation) - set('"#<>\\^`{}|'))


class Unreachable(Exception):
    """Not reached, or a question without its answer; the text says of whom and why."""


class Unanswered(Exception):
    """The request was sent, and no answer came, or not all of it: nobody knows what became of it."""


@dataclass(frozen=True)
class Server:
    """One manager. prefix: what a proxy before it wants in front of each path."""

    scheme: str
    host: str
    port: int | None
    prefix: str

    @classmethod
    def at(cls, url: str) -> "Server":
        """Raises UsageError for what is no address of a manager; it may hold a password and is not repeated."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")  # as it will be looked up: no empty label, none too long
        except ValueError:  # UnicodeError too
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host or "") or parts.query or parts.fragment:
            raise click.UsageError("--url must be http(s)://HOST[:PORT][/PATH], as http://127.0.0.1:8080")
        if parts.username is not None or parts.password is not None:
            raise click.UsageError("--url must not hold a user; the token comes from STOWAGE_TOKEN or --token-file")
        return cls(parts.scheme, host or "", port, parts.path.rstrip("/"))

    @contextlib.contextmanager
    def asked(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | BinaryIO | None
    ) -> Generator["Answer"]:
        """The answer, to be read within the block. Raises Unreachable, Unanswered."""
        connect = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        # Without a port the library takes what is behind the last colon of ::1 for one, and the token goes elsewhere.
        port = connect.default_port if self.port is None else self.port
        is_read = method in ("GET", "HEAD")
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(contextlib.closing(connect(self.host, port, timeout=SILENCE_S)))
                connection.connect()
            except OSError as error:  # TLS and its certificates too
                raise Unreachable(f"{self} cannot be reached: {error.strerror or error}") from error
            with _told(self, is_read=is_read):
                # Who refuses does not read a long body to its end; the answer is there all the same.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, quote(self.prefix + path, safe=_IN_A_PATH), body, dict(headers))
                response = connection.getresponse()
            yield Answer(response, self, is_read=is_read)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port is None else f':{self.port}'}{self.prefix}"


class Answer:
    """content_type: without its parameters, in small letters."""

    def __init__(self, response: http.client.HTTPResponse, server: Server, *, is_read: bool) -> None:
        self._response = response
        self._server = server
        self._is_read = is_read
        self.status = response.status
        self.content_type = response.headers.get_content_type()

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """As they come. Raises what `_told` does where it broke off."""
        while True:
            with _told(self._server, is_read=self._is_read):
                chunk = self._response.read1(_CHUNK_BYTES)
                if not chunk and self._response.length:
                    raise http.client.IncompleteRead(b"", self._response.length)
            if not chunk:
                return
            yield chunk


def token_of(file: Path | None) -> str | None:
    """The token of the file, else of STOWAGE_TOKEN, else of the file STOWAGE_TOKEN_FILE; None where there is none of them.

    Raises UsageError for a file that does not hold one, or that others can read.
    """
    given = os.environ.get("STOWAGE_TOKEN", "").strip()
    if file is None and not given and (named := os.environ.get("STOWAGE_TOKEN_FILE")):
        file = Path(named)
    if file is not None:
        return _read_token(file)
    if not given:
        return None
    if not _TOKEN.fullmatch(given.encode()):
        raise click.UsageError("STOWAGE_TOKEN does not hold one token")
    return given


def _read_token(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.read(4096).strip()
    except OSError as error:
        raise click.UsageError(f"cannot read the token file {file}: {error.strerror}") from error
    if mode & 0o077:
        raise click.UsageError(
            f"{file} is open to other users; chmod 600 it, and make a new token if others could read it"
        )
    if not _TOKEN.fullmatch(text):
        raise click.UsageError(f"{file} does not hold one token")
    return text.decode()


@contextlib.contextmanager
def _told(server: Server, *, is_read: bool) -> Generator[None]:
    """Raises Unanswered where an answer is lost; Unreachable where that broke off and the request was to change nothing."""
    try:
        yield
    except TimeoutError as error:
        raise Unanswered(f"{server} did not answer for {SILENCE_S:.0f} s; look what became of it") from error
    except (OSError, http.client.HTTPException) as error:
        words = f"{server} ended the connection before its answer did"
        if is_read:
            raise Unreachable(words) from error
        raise Unanswered(f"{words}; look what became of it") from error
