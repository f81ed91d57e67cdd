"""/v1/events and its stream: server-sent events that begin where the client says it stopped."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator

import msgspec
from aiohttp import hdrs, web

from manager.api import decoding
from manager.api.encoding import page_response
from manager.api.keys import ACTOR, EVENTS, TOKENS
from schemas.events import CloudEvent, EventType
from schemas.fields import InvalidFields
from schemas.problems import FieldError

log = logging.getLogger(__name__)

#: Seconds that a client may take to read what is sent; a dead one must not hold a stream for ever.
WRITE_TIMEOUT_S = 20.0

#: The streams' tasks, so that a stop need not wait for clients that never leave.
STREAMS: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("streams")


async def list_events(request: web.Request) -> web.Response:
    """The oldest first."""
    found = decoding.query(request)
    items, place = await request.app[EVENTS].page(
        subject=decoding.one(found, "subject"),
        type=decoding.one_of(found, "type", list(EventType)),
        actor=decoding.one(found, "actor"),
        since=decoding.moment(found, "since"),
        limit=decoding.limit(found),
        cursor=decoding.cursor(found, "events"),
    )
    return page_response(items, decoding.opaque("events", place))


async def stream_events(request: web.Request) -> web.StreamResponse:
    """Events as they are sealed. `id` is the sequence; a token that is revoked or expires ends the stream."""
    last = _last_event_sequence(request)
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    # A task of its own, for it is what a stop cancels; the handler then ends in good order.
    task = asyncio.create_task(_pump(request, response, last), name="event stream")
    streams = request.app[STREAMS]
    streams.add(task)
    try:
        await asyncio.wait((task,))
    finally:
        task.cancel()
        streams.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        # The answer has begun, so there is nobody to tell; the client comes back with its Last-Event-ID.
        log.error("event stream failed", exc_info=error)
    return response


async def end_streams(app: web.Application) -> None:
    """Signal on_shutdown."""
    for task in app[STREAMS]:
        task.cancel()


async def _pump(request: web.Request, response: web.StreamResponse, last: int | None) -> None:
    events, tokens, token_id = request.app[EVENTS], request.app[TOKENS], request[ACTOR].token_id
    stream = events.subscribe(last)
    try:
        # Headers and this go out at once, so that the client knows that it is connected.
        await _send(response, b"retry: 2000\n\n")
        async for event in stream:
            if not await tokens.is_live(token_id):
                return
            await _send(response, b": ping\n\n" if event is None else _frame(event))
    except (ConnectionError, TimeoutError):
        return  # the client has left, or reads no more
    finally:
        if isinstance(stream, AsyncGenerator):
            with contextlib.suppress(ConnectionError):
                await stream.aclose()


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
