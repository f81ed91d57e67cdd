"""/v1/events, its verification and its stream: server-sent events that begin where the client says it stopped, with live changes for a page."""

import asyncio
import contextlib
import itertools
import logging
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator

import msgspec
from aiohttp import ClientConnectionResetError, hdrs, web

from manager.api import decoding
from manager.api.encoding import json_response, page_response
from manager.api.keys import ACTOR, CHANGES, EVENTS, TOKENS
from manager.errors import Refused
from manager.events import Events
from manager.store.pool import DATABASE_AWAY
from schemas.events import CloudEvent, EventType
from schemas.fields import InvalidFields
from schemas.problems import FieldError, ProblemCode

log = logging.getLogger(__name__)

#: Seconds that a client may take to read what is sent; a dead one must not hold a stream for ever.
WRITE_TIMEOUT_S = 20.0
#: Seconds between two questions to a database that is away: the first, and the most; below the 15 s between two signs of life.
_FIRST_PAUSE_S = 0.5
_MOST_PAUSE_S = 10.0
#: Seconds that an ended stream's tasks may take to give back what they hold.
_END_S = 2.0

_PING = b": ping\n\n"

#: Streams at once; a browser has one for all of its tabs.
MOST_STREAMS_OF_TOKEN = 64
MOST_STREAMS = 512
#: Seconds after which who was one too many may come again.
STREAM_RETRY_S = 10

#: Token id -> how many streams it has.
OPEN_STREAMS: web.AppKey[Counter[str]] = web.AppKey("open streams")
#: The streams' tasks, so that a stop need not wait for clients that never leave.
STREAMS: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("streams")


async def list_events(request: web.Request) -> web.Response:
    """The oldest first, unless the newest are asked for. A cursor is of its order."""
    found = decoding.query(request)
    is_newest_first = decoding.one_of(found, "order", ("asc", "desc")) == "desc"
    of = "events_desc" if is_newest_first else "events"
    items, place = await request.app[EVENTS].page(
        subject=decoding.one(found, "subject"),
        type=decoding.one_of(found, "type", list(EventType)),
        actor=decoding.one(found, "actor"),
        since=decoding.moment(found, "since"),
        limit=decoding.limit(found),
        cursor=decoding.cursor(found, of),
        is_newest_first=is_newest_first,
    )
    return page_response(items, decoding.opaque(of, place))


async def verify_events(request: web.Request) -> web.Response:
    """It costs: all of the log is read. Who asks while somebody else does, or soon after, gets the same answer."""
    return json_response(await request.app[EVENTS].verified())


async def stream_events(request: web.Request) -> web.StreamResponse:
    """Events as they are sealed. `id` is the sequence; a token that is revoked or expires ends the stream, and so does the end of a session.

    changes=true: also what looks different now. Who has the headers may read the lists: all that happens after is told.
    While the database is away nothing but signs of life goes out, once the token is not remembered any more.
    """
    has_changes = decoding.flag(decoding.query(request), "changes")
    last = _last_event_sequence(request)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_counted(request))
        if last is None:
            last = await request.app[EVENTS].newest()
        queue = await stack.enter_async_context(request.app[CHANGES].subscribed()) if has_changes else None
        return await _stream(request, last, queue)


@contextlib.contextmanager
def _counted(request: web.Request) -> Generator[None]:
    """Raises Refused: too many streams already. Each of them reads the log at each event, and sagas need the same connections."""
    streams, token_id = request.app[OPEN_STREAMS], request[ACTOR].token_id
    if streams[token_id] >= MOST_STREAMS_OF_TOKEN or streams.total() >= MOST_STREAMS:
        words = (
            f"more than {MOST_STREAMS_OF_TOKEN} streams of one token, or {MOST_STREAMS} of all, are not served at once"
        )
        raise Refused.because(ProblemCode.TOO_MANY_REQUESTS, words, retry_after_s=STREAM_RETRY_S)
    streams[token_id] += 1
    try:
        yield
    finally:
        streams[token_id] -= 1
        if not streams[token_id]:
            del streams[token_id]


async def _stream(request: web.Request, last: int, queue: asyncio.Queue[bytes] | None) -> web.StreamResponse:
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "text/event-stream", "X-Accel-Buffering": "no"})
    try:
        await response.prepare(request)
    except ClientConnectionResetError:
        return response  # the client has left already; who serves sees that too
    # A task of its own, for it is what a stop cancels; the handler then ends in good order.
    task = asyncio.create_task(_pump(request, response, last, queue), name="event stream")
    ended = asyncio.create_task(request.app[TOKENS].ended(request[ACTOR].token_id), name="token of an event stream")
    streams = request.app[STREAMS]
    streams.add(task)
    try:
        await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and ended.exception() is not None:
            # The database was away when it was asked; before each frame it is asked again.
            await asyncio.wait((task,))
    finally:
        streams.discard(task)
        # Once each: a second cancel would end the clean-up that the first began.
        for each in (task, ended):
            if not each.cancelling():
                each.cancel()
        await asyncio.wait((task, ended), timeout=_END_S)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        # The answer has begun, so there is nobody to tell; the client comes back with its Last-Event-ID.
        log.error("event stream failed", exc_info=error)
    return response


async def end_streams(app: web.Application) -> None:
    """Signal on_shutdown."""
    for task in app[STREAMS]:
        task.cancel()


async def _pump(
    request: web.Request, response: web.StreamResponse, last: int, queue: asyncio.Queue[bytes] | None
) -> None:
    frames = _audit_frames(request.app[EVENTS], last)
    if queue is not None:
        frames = _either(frames, queue)
    try:
        # Headers and this go out at once, so that the client knows that it is connected.
        await _send(response, b"retry: 2000\n\n")
        async for frame in frames:
            if not await _is_open(request, response):
                return
            await _send(response, frame)
    except (ConnectionError, TimeoutError):
        return  # the client has left, or reads no more
    finally:
        with contextlib.suppress(ConnectionError):
            await frames.aclose()


async def _is_open(request: web.Request, response: web.StreamResponse) -> bool:
    """Whether the token may still see what comes. While the database does not say, the client gets signs of life and no more."""
    actor, pauses = request[ACTOR], _pauses()
    while not actor.is_expired:
        try:
            return await request.app[TOKENS].is_live(actor.token_id)
        except DATABASE_AWAY as error:
            log.warning("event stream waits for the database", extra={"error": repr(error)})
        await _send(response, _PING)
        await asyncio.sleep(next(pauses))
    return False


async def _audit_frames(events: Events, last: int) -> AsyncGenerator[bytes]:
    """Each event after `last`, without a hole, and signs of life; they go on where they were when the database was away."""
    pauses = _pauses()
    while True:
        try:
            async with contextlib.aclosing(events.subscribe(last)) as stream:
                async for event in stream:
                    pauses = _pauses()
                    if event is not None:
                        last = int(event.sequence)
                    yield _PING if event is None else _frame(event)
        except DATABASE_AWAY as error:
            log.warning("event stream waits for the database", extra={"error": repr(error)})
        yield _PING
        await asyncio.sleep(next(pauses))


async def _either(audit: AsyncGenerator[bytes], queue: asyncio.Queue[bytes]) -> AsyncGenerator[bytes]:
    """The frames of both as they come, until the first of them ends."""

    async def next_event() -> bytes | None:
        return await anext(audit, None)

    event = asyncio.create_task(next_event(), name="next event")
    change = asyncio.create_task(queue.get(), name="next change")
    try:
        while True:
            await asyncio.wait((event, change), return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                frame = event.result()
                if frame is None:
                    return
                yield frame
                event = asyncio.create_task(next_event(), name="next event")
            if change.done():
                yield change.result()
                change = asyncio.create_task(queue.get(), name="next change")
    finally:
        for task in (event, change):
            task.cancel()
        await asyncio.gather(event, change, return_exceptions=True)
        await audit.aclose()


def _pauses() -> Iterator[float]:
    """Seconds to wait before each further try; no two streams come back in the same moment."""
    for power in itertools.count():
        yield min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(power, 10)) * random.uniform(0.5, 1.0)


async def _send(response: web.StreamResponse, frame: bytes) -> None:
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await response.write(frame)


def _frame(event: CloudEvent) -> bytes:
    """No `event:` line: so one `onmessage` hears every type, which the document names itself."""
    return b"id: %s\ndata: %s\n\n" % (event.sequence.encode(), msgspec.json.encode(event))


def _last_event_sequence(request: web.Request) -> int | None:
    text = request.headers.get("Last-Event-ID", "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidFields(FieldError(pointer="/header/Last-Event-ID", detail="must be an event's sequence number"))
    return int(text)
