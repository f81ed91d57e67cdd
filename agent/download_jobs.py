"""Worker job that fetches an image over HTTP into the agent's own folder.

The server may be anybody's: what it sends is bounded by the host's free space and held against a digest that somebody else gave,
and where it points to is followed a few times, never from https to http.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from agent.job_io import JobFault, Progress, with_faults

if TYPE_CHECKING:
    import http.client
    from urllib.parse import SplitResult

PART_SUFFIX = ".part"
IMAGE_SUFFIX = ".image"
#: What a client has sent, whole, but whose digest nobody has looked at yet.
UPLOAD_SUFFIX = ".upload"
MAX_REDIRECTS = 5
#: Seconds without a byte from the server; below the stall limit of a work, so that this one's words are told.
SOCKET_TIMEOUT_S = 60.0
#: Bytes a read; the digest and the disk take them as they come.
_CHUNK_BYTES = 1 << 20
#: After so many bytes they are brought to the disk, and dropped from the page cache.
_FLUSH_BYTES = 64 << 20
#: 64 bits; Python refuses to read numbers of thousands.
_LENGTH_DIGITS = 19
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


@with_faults
def download(args: dict[str, Any]) -> dict[str, Any]:
    """`<folder>/<name>.image` is what the URL gives, whole, with the digest, on stable storage: {"size_bytes"}. There already: as it is.

    args: url, sha256, folder, name, reserve_bytes (what stays free on the folder's file system), progress. Nothing of it is left
    after a failure, and of a kill `<name>.part`, which the next call makes anew. Raises JobFault of the source,
    which has neither user names in it nor what follows the path of a URL, for tokens are put there; OSError of the disk.
    """
    folder, name = str(args["folder"]), str(args["name"])
    part, image = f"{folder}/{name}{PART_SUFFIX}", f"{folder}/{name}{IMAGE_SUFFIX}"
    with contextlib.suppress(FileNotFoundError):
        return {"size_bytes": os.stat(image, follow_symlinks=False).st_size}
    _remove(part)
    descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.closing(_Place(descriptor, part, int(args["reserve_bytes"]))) as place:
            size_bytes = _fetch(str(args["url"]), str(args["sha256"]), place, Progress(args["progress"]))
        os.rename(part, image)
        _sync_dir(folder)
    except BaseException:
        _remove(part, image)
        raise
    return {"size_bytes": size_bytes}


class _Place:
    """The file that is written, and how much of its file system it may take."""

    def __init__(self, descriptor: int, path: str, reserve_bytes: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._flushed_bytes = 0
        self._size_bytes = 0

    def need(self, more_bytes: int) -> None:
        """Raises OSError ENOSPC where so many more would eat into the reserve: the host's own journal lies on that disk."""
        found = os.fstatvfs(self._descriptor)
        if more_bytes > found.f_bavail * found.f_frsize - self._reserve_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def write(self, content: bytes) -> None:
        self.need(len(content))
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._size_bytes += len(content)
        if self._size_bytes - self._flushed_bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, self._flushed_bytes, 0, os.POSIX_FADV_DONTNEED)
        self._flushed_bytes = self._size_bytes

    def close(self) -> None:
        os.close(self._descriptor)


def _fetch(url: str, sha256: str, place: _Place, progress: Progress) -> int:
    """What the URL gives is in the place, and flushed; its size in bytes."""
    import hashlib
    import http.client

    digest, done_bytes = hashlib.sha256(), 0
    with contextlib.closing(_Server()) as server:
        where, response = server.follow(url)
        total_bytes = _content_length(response, where)
        place.need(total_bytes)
        while True:
            with _refusing(where):
                try:
                    content = response.read(_CHUNK_BYTES)
                except http.client.IncompleteRead:
                    raise JobFault("source_unreadable", f"{where} broke off after {done_bytes} bytes") from None
            if not content:
                break
            place.write(content)
            digest.update(content)
            done_bytes += len(content)
            progress.report(done_bytes, total_bytes)
    if total_bytes and done_bytes != total_bytes:
        raise JobFault("source_unreadable", f"{where} broke off after {done_bytes} of {total_bytes} bytes")
    if digest.hexdigest() != sha256:
        detail = f"what {where} gives has the sha256 {digest.hexdigest()}, and {sha256} was asked for"
        raise JobFault("wrong_digest", detail)
    place.flush()
    return done_bytes


class _Server:
    """The connection to whoever has the content, behind at most MAX_REDIRECTS others."""

    def __init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None

    def follow(self, url: str) -> "tuple[str, http.client.HTTPResponse]":
        """The place that has the content, as it may be shown, and its answer of status 200."""
        where, is_secure = "", False
        for _ in range(MAX_REDIRECTS + 1):
            parts = _parsed(url)
            where = _shown(parts)
            if is_secure and parts.scheme != "https":
                raise JobFault("source_unreadable", f"a redirect leads from https to {where}")
            is_secure = is_secure or parts.scheme == "https"
            with _refusing(where):
                response = self._ask(parts)
            if response.status not in _REDIRECTS:
                if response.status != 200:
                    raise JobFault("source_unreadable", f"{where} answers with status {response.status}")
                return where, response
            location = response.getheader("Location")
            if location is None:
                raise JobFault("source_unreadable", f"{where} redirects, and does not say where to")
            url = _joined(url, location)
        raise JobFault("source_unreadable", f"{where} redirects once more than {MAX_REDIRECTS} times")

    def _ask(self, parts: "SplitResult") -> "http.client.HTTPResponse":
        import http.client
        import ssl
        from urllib.parse import quote

        self.close()
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                host, port, timeout=SOCKET_TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=SOCKET_TIMEOUT_S)
        # What is encoded stays so; what HTTP does not take as it is gets encoded.
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
        )
        headers = {"Accept-Encoding": "identity", "User-Agent": "stowage-agent"}
        self._connection.request("GET", target, headers=headers)
        self._response = self._connection.getresponse()
        return self._response

    def close(self) -> None:
        # The answer too: where the server ends the connection behind it, it alone has the socket.
        for part in (self._response, self._connection):
            if part is not None:
                part.close()


def shown_url(url: str) -> str:
    """The URL without what may be secret in it: neither query nor fragment. Raises JobFault for what is no URL of an image."""
    return _shown(_parsed(url))


def _parsed(url: str) -> "SplitResult":
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise JobFault("source_unreadable", "the address of the image is no URL") from None
    if not is_right:
        raise JobFault("source_unreadable", "an image is fetched from http or https alone, and the address is another")
    if parts.username is not None or parts.password is not None:
        raise JobFault("source_unreadable", "the address of the image has a user name in it, which is refused")
    return parts


def _joined(url: str, location: str) -> str:
    from urllib.parse import urljoin

    try:
        return urljoin(url, location)
    except ValueError:
        raise JobFault("source_unreadable", "the address of the image redirects to what is no URL") from None


def _shown(parts: "SplitResult") -> str:
    whole = f"{parts.scheme}://{parts.netloc}{parts.path}"
    return "".join(letter for letter in whole if letter.isprintable())[:300]


def _content_length(response: "http.client.HTTPResponse", where: str) -> int:
    """Bytes that are promised; 0 where nothing is."""
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise JobFault("source_unreadable", f"{where} sends its content encoded, which was not asked for")
    length = response.getheader("Content-Length", "0") if not response.chunked else "0"
    if not length.isascii() or not length.isdigit() or len(length) > _LENGTH_DIGITS:
        raise JobFault("source_unreadable", f"{where} promises a length that is no number")
    return int(length)


@contextlib.contextmanager
def _refusing(where: str) -> Generator[None]:
    """What goes wrong on the way to the server is told as that; an OSError would be taken for the disk's."""
    import http.client
    import socket
    import ssl

    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise JobFault(
            "source_unreadable", f"{where}: its certificate is not trusted: {error.verify_message}"
        ) from None
    except socket.gaierror:
        raise JobFault("name_not_resolved", f"{where}: its name was not resolved") from None
    except TimeoutError:
        detail = f"{where} sent nothing for {SOCKET_TIMEOUT_S:g} s"
        raise JobFault("server_unreachable", detail) from None
    except OSError as error:
        raise JobFault("server_unreachable", f"{where}: {error.strerror or type(error).__name__}") from None
    except (http.client.HTTPException, ValueError) as error:
        raise JobFault("source_unreadable", f"{where} does not speak HTTP: {type(error).__name__}") from None


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _sync_dir(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


DOWNLOAD_JOBS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (download,)
