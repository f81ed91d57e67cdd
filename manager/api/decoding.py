"""What a request says: its body, its query, its conditional and preference headers, its cursor."""

import asyncio
import base64
import binascii
import datetime as dt
import re
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Annotated

import msgspec
from aiohttp import HttpVersion11, hdrs, http_exceptions, web

from manager.api.keys import BODY
from schemas.fields import Fields, InvalidFields, MalformedBody, parse_object
from schemas.problems import FieldError

#: The longest wait for the end of a change before the answer is 202.
MAX_WAIT_S = 30.0
MAX_BODY_BYTES = 1024 * 1024
#: Seconds in which a body must have arrived.
BODY_TIMEOUT_S = 30.0
#: Seconds in which one chunk of an upload must have arrived: slower than 2 KiB a second is nobody who means it.
CHUNK_TIMEOUT_S = 60.0
#: Of an upload; larger than any volume.
MAX_UPLOAD_BYTES = 2**62
MAX_LIMIT = 500
DEFAULT_LIMIT = 100
MAX_QUERY_VALUE = 512
#: What an ETag that cannot be ours counts as; versions begin at 1.
NO_VERSION = 0

_ETAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_BROKEN = (web.RequestPayloadError, http_exceptions.HttpProcessingError, ConnectionError)
_BROKEN_WORDS = "the body broke off or is not framed as HTTP asks"
_PREFERENCE = re.compile(r"\s*([A-Za-z-]+)\s*(?:=\s*\"?([^\",;]*)\"?)?\s*(?:;[^,]*)?(?:,|$)")


@dataclass(frozen=True)
class Preferences:
    """wait_s: how long the caller wants to wait for the end. is_async: it said respond-async.

    is_representation: it wants a body where the answer has none by itself.
    """

    wait_s: float
    is_async: bool
    is_representation: bool = False


async def read_body(request: web.Request) -> bytes:
    """The whole body, read once. Raises MalformedBody: too long, too slow, broken off, not JSON by its own word.

    A length beyond the limit is refused unread, and before a client that asked (`Expect`) sends any.
    """
    if BODY in request:
        return request[BODY]
    length = request.content_length
    if length is not None and length > MAX_BODY_BYTES:
        raise MalformedBody(f"the body is longer than {MAX_BODY_BYTES} bytes")
    _refuse_other(request, "application/json")
    await _continue(request)
    chunks = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                chunks += chunk
                if len(chunks) > MAX_BODY_BYTES:
                    raise MalformedBody(f"the body is longer than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise MalformedBody(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
    except _BROKEN:
        raise MalformedBody(_BROKEN_WORDS) from None
    body = request[BODY] = bytes(chunks)
    return body


def announced_bytes(request: web.Request) -> int | None:
    """How long the body of an upload will be; None: it comes in chunks. Raises MalformedBody for what is none, unread."""
    _refuse_other(request, "application/octet-stream")
    length = request.content_length
    if length == 0 or not request.can_read_body:
        raise MalformedBody("the body is empty, and it is to be the image")
    if length is not None and length > MAX_UPLOAD_BYTES:
        raise MalformedBody(f"the body is longer than {MAX_UPLOAD_BYTES} bytes")
    return length


async def chunks(request: web.Request, size_bytes: int) -> AsyncGenerator[bytes]:
    """The body in chunks of that size, the last one shorter. Raises MalformedBody: too slow, broken off.

    A client that waits for `100 Continue` (`Expect`) is told to send when the first is asked for.
    """
    await _continue(request)
    while True:
        chunk = bytearray()
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                while len(chunk) < size_bytes and (more := await request.content.read(size_bytes - len(chunk))):
                    chunk += more
        except TimeoutError:
            raise MalformedBody(f"the next {size_bytes} bytes did not arrive within {CHUNK_TIMEOUT_S:.0f} s") from None
        except _BROKEN:
            raise MalformedBody(_BROKEN_WORDS) from None
        if chunk:
            yield bytes(chunk)
        if len(chunk) < size_bytes:
            return


def refuse_unknown_query(request: web.Request, known: Collection[str]) -> None:
    """Raises InvalidFields: a misspelt filter would show everything, and a misspelt dry_run do it."""
    words = f"is not a parameter here; known are {', '.join(sorted(known)) or 'none'}"
    unknown = dict.fromkeys(name for name in request.query if name not in known)
    if unknown:
        raise InvalidFields(*(FieldError(pointer=f"/query/{name[:64]}", detail=words) for name in unknown))


async def no_body(request: web.Request) -> None:
    """Nothing was sent, or an object without fields. Raises MalformedBody, InvalidFields."""
    raw = await read_body(request)
    if raw:
        Fields(parse_object(raw)).finish()


def query(request: web.Request, repeatable: Collection[str] = ()) -> dict[str, list[str]]:
    """The parameters given, each a list. Raises InvalidFields for repeated and unreadable ones."""
    found: dict[str, list[str]] = {}
    errors: list[FieldError] = []
    for name, value in request.query.items():
        pointer = f"/query/{name[:64]}"
        if name in found and name not in repeatable:
            errors.append(FieldError(pointer=pointer, detail="is given more than once"))
        elif len(value) > MAX_QUERY_VALUE or not value.isprintable():
            errors.append(FieldError(pointer=pointer, detail=f"must be at most {MAX_QUERY_VALUE} printable characters"))
        else:
            found.setdefault(name, []).append(value)
    if errors:
        raise InvalidFields(*errors)
    return found


def one(found: dict[str, list[str]], name: str) -> str | None:
    return found[name][0] if name in found else None


def limit(found: dict[str, list[str]]) -> int:
    text = one(found, "limit")
    if text is None:
        return DEFAULT_LIMIT
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise _invalid("/query/limit", f"must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def cursor(found: dict[str, list[str]], of: str) -> str | None:
    """The place in list `of` where the page before ended. Raises InvalidFields for a cursor that is not that list's."""
    text = one(found, "cursor")
    if text is None:
        return None
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        plain = ""
    name, colon, place = plain.partition(":")
    if name != of or not colon or not re.fullmatch(r"[0-9a-f-]{1,64}", place):
        raise _invalid("/query/cursor", "is not a next_cursor of this list")
    return place


def opaque(of: str, place: str | None) -> str | None:
    """The cursor to show for a place in list `of`."""
    return None if place is None else base64.urlsafe_b64encode(f"{of}:{place}".encode()).decode().rstrip("=")


def labels(found: dict[str, list[str]]) -> dict[str, str]:
    """label=key:value, repeatable; all must be borne."""
    wanted: dict[str, str] = {}
    for text in found.get("label", []):
        key, colon, value = text.partition(":")
        if not colon or not key:
            raise _invalid("/query/label", "must be KEY:VALUE")
        if wanted.setdefault(key, value) != value:
            raise _invalid("/query/label", "asks for two values of one key")
    return wanted


def one_of(found: dict[str, list[str]], name: str, words: Collection[str]) -> str | None:
    text = one(found, name)
    if text is not None and text not in words:
        raise _invalid(f"/query/{name}", f"must be one of {', '.join(words)}")
    return text


def choice(found: dict[str, list[str]], name: str) -> bool | None:
    """None: not asked."""
    text = one_of(found, name, ("true", "false"))
    return None if text is None else text == "true"


def flag(found: dict[str, list[str]], name: str) -> bool:
    return choice(found, name) is True


def moment(found: dict[str, list[str]], name: str) -> dt.datetime | None:
    text = one(found, name)
    if text is None:
        return None
    try:
        # A plus in a query is a blank once decoded, so `+02:00` arrives as ` 02:00`.
        when: dt.datetime = msgspec.convert(text.replace(" ", "+"), Annotated[dt.datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        raise _invalid(f"/query/{name}", "must be a time such as 2026-01-31T12:00:00Z, with its zone") from None
    # The database takes no time that leaves the calendar in another zone.
    if not 1970 <= when.year <= 9000:
        raise _invalid(f"/query/{name}", "must lie between the years 1970 and 9000")
    return when


def if_match(request: web.Request, current: int | None) -> int | None:
    """The version that the change is meant for; None: any. Of a list, the current one if it is there.

    A tag that no version of ours can be (weak, or no number) is a version that never was: stale.
    """
    tags = _tags(request, hdrs.IF_MATCH)
    if tags is None or "*" in tags:
        return None
    versions = [int(tag[1:-1]) if re.fullmatch(r'"[0-9]{1,18}"', tag) else NO_VERSION for tag in tags]
    return current if current in versions else versions[0]


def preferences(request: web.Request) -> Preferences:
    """RFC 7240: respond-async, wait=SECONDS; what else is preferred is ignored, as that RFC asks."""
    given: dict[str, str] = {}
    for header in request.headers.getall("Prefer", []):
        for match in _PREFERENCE.finditer(header):
            given.setdefault(match[1].lower(), match[2] or "")
    is_async = "respond-async" in given
    wait_s = 0.0 if is_async else MAX_WAIT_S
    if re.fullmatch(r"[0-9]{1,6}", given.get("wait", "")):
        wait_s = min(float(given["wait"]), MAX_WAIT_S)
    return Preferences(wait_s, is_async, given.get("return") == "representation")


def _refuse_other(request: web.Request, content_type: str) -> None:
    """Raises MalformedBody for a body of another type or encoding, and for expectations that nobody fulfils."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise MalformedBody("the body must not be compressed")
    if request.can_read_body and request.content_type != content_type:
        raise MalformedBody(f"the body must be {content_type}")
    expect = request.headers.get(hdrs.EXPECT)
    if expect is not None and request.version == HttpVersion11 and expect.lower() != "100-continue":
        raise MalformedBody("the only expectation known here is 100-continue")


async def _continue(request: web.Request) -> None:
    """Who waits for it is told to send the body."""
    if hdrs.EXPECT in request.headers and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp's own handler does: the answer has not begun


def _tags(request: web.Request, name: str) -> list[str] | None:
    values = request.headers.getall(name, None)
    if values is None:
        return None
    text = ",".join(values).strip()
    if text == "*":
        return ["*"]
    tags: list[str] = []
    at = 0
    while at < len(text):
        match = _ETAG.match(text, at)
        if match is None:
            break
        tags.append((match[1] or "") + f'"{match[2]}"')
        at = match.end()
    if not tags or at < len(text):
        raise _invalid(f"/header/{name}", 'must be * or ETags such as "3", with their quotes')
    return tags


def _invalid(pointer: str, detail: str) -> InvalidFields:
    return InvalidFields(FieldError(pointer=pointer, detail=detail))
