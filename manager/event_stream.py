"""The stream of events in JetStream, as the relay uses it: made once, asked for its end, written to in order.

Of the stream's API only what the relay's user may call (bus_auth.py).
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from schemas import subjects
from schemas.bus import Bus, BusError, BusRefused, BusTimeout

#: Seconds for one answer of the stream.
_ANSWER_S = 5.0
#: Events under way at once; `sync_interval: always` gives 4 to 5 thousand a second from 64 on (BUS.md 6).
_EVENTS_IN_FLIGHT = 256
#: Bytes of them: below what counts as a server that does not take what is sent.
_EVENT_BYTES_IN_FLIGHT = 4 * 1024 * 1024
#: What a message's headers may take of the limit on its size.
_HEADER_BYTES = 1024
_STREAM_EXISTS = 10058
_STREAM_NOT_FOUND = 10059
_MESSAGE_NOT_FOUND = 10037


@dataclass(frozen=True)
class Ack:
    """Stored and synced. is_duplicate: it had been already, under the same message id."""

    sequence: int
    is_duplicate: bool


@dataclass(frozen=True)
class Published:
    """acks: of the first events of a row, in its order. failure: why the next one has none; None when all have."""

    acks: list[Ack]
    failure: BusError | None


@dataclass(frozen=True)
class StreamEnd:
    """sequence: the stream's, of its last message ever, 0 before the first. payload: of the last one that it still holds.

    message_bytes: what a payload may have for the connection and the stream.
    """

    sequence: int
    payload: bytes | None
    message_bytes: int


class EventStream:
    """`ensure` first; all methods raise what Bus.request raises."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def ensure(
        self,
        *,
        max_age_s: float = 24 * 3600,
        duplicate_window_s: float = 600,
        max_bytes: int = 1024**3,
        replicas: int = 1,
    ) -> None:
        """The stream exists: made with this configuration, or as it is but for its subjects and duplicate window.

        The rest of an existing one is its operator's. Raises as `request`; BusRefused with the server's reason.
        """
        ours: dict[str, object] = {
            "subjects": [subjects.EVENTS],
            "duplicate_window": round(duplicate_window_s * 1e9),
        }
        made = {
            "name": subjects.STREAM,
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "max_age": round(max_age_s * 1e9),
            "max_bytes": max_bytes,
            "num_replicas": replicas,
            "deny_delete": True,
        }
        answer = await self._ask(f"$JS.API.STREAM.INFO.{subjects.STREAM}", b"", None)
        if answer.error is not None and answer.error.err_code == _STREAM_NOT_FOUND:
            answer = await self._ask(f"$JS.API.STREAM.CREATE.{subjects.STREAM}", msgspec.json.encode(made | ours), None)
            if answer.error is not None and answer.error.err_code == _STREAM_EXISTS:  # made by another at this moment
                answer = await self._ask(f"$JS.API.STREAM.INFO.{subjects.STREAM}", b"", None)
        age = answer.config.get("max_age")
        if isinstance(age, int) and 0 < age < duplicate_window_s * 1e9:
            ours["duplicate_window"] = age  # the server refuses a window longer than that
        if answer.error is None and any(answer.config.get(key) != value for key, value in ours.items()):
            config = msgspec.json.encode(answer.config | ours)
            answer = await self._ask(f"$JS.API.STREAM.UPDATE.{subjects.STREAM}", config, None)
        if answer.error is not None:
            raise BusRefused(f"stream {subjects.STREAM}: {answer.error.description}")

    async def end(self) -> StreamEnd:
        """Where the stream ends now. Raises as `request`; BusRefused with the server's reason, as when there is none."""
        found = await self._ask(f"$JS.API.STREAM.INFO.{subjects.STREAM}", b"", None)
        if found.error is not None:
            raise BusRefused(f"stream {subjects.STREAM}: {found.error.description}")
        own_limit = found.config.get("max_msg_size")
        limits = [
            await self._bus.max_payload(_ANSWER_S),
            *([own_limit] if isinstance(own_limit, int) and own_limit > 0 else []),
        ]
        payload = None
        if found.state.messages:
            wanted = msgspec.json.encode({"seq": found.state.last_seq})
            last = await self._ask(f"$JS.API.STREAM.MSG.GET.{subjects.STREAM}", wanted, None)
            # One that has expired meanwhile is as one that had before.
            if last.error is not None and last.error.err_code != _MESSAGE_NOT_FOUND:
                raise BusRefused(f"the end of stream {subjects.STREAM}: {last.error.description}")
            payload = last.message.data if last.message is not None else None
        return StreamEnd(found.state.last_seq, payload, min(limits) - _HEADER_BYTES)

    async def publish_one(self, subject: str, payload: bytes, message_id: str, *, after: int | None = None) -> Ack:
        """Stored once in a stream; the same message_id again within the duplicate window is acknowledged and dropped.

        after: refused unless it comes right behind this sequence of the stream. Raises BusTimeout (it may be stored),
        NoResponders (no stream takes the subject), BusDown, BusRefused.
        """
        headers = {"Nats-Msg-Id": message_id}
        if after is not None:
            headers["Nats-Expected-Last-Sequence"] = str(after)
        answer = await self._ask(subject, payload, headers)
        if answer.error is not None:
            raise BusRefused(f"{subject} was not stored: {answer.error.description}")
        return Ack(sequence=answer.seq, is_duplicate=answer.duplicate)

    async def publish(self, events: Sequence[tuple[str, bytes, str]], *, after: int) -> Published:
        """Each (subject, payload, message id) stored, in this order, right behind the sequence `after` of the stream.

        They are under way together, each with the place that it takes: where one fails, none that follows is stored.
        Whether the failed one is stored, the stream's end says. Another who publishes must give an event the same
        place, or one of ours may meet its place among the other's. Raises BusDown and BusRefused (a payload over
        the server's limit) before anything is sent.
        """
        most_bytes = await self._bus.max_payload(_ANSWER_S)
        for subject, payload, _ in events:
            if len(payload) > most_bytes:
                raise BusRefused(f"cannot publish {subject}: {len(payload)} bytes are over the limit")
        acks: list[Ack] = []
        for together in _in_flight(events):
            first = after + len(acks)
            batch = (self.publish_one(*event, after=first + place) for place, event in enumerate(together))
            # All answers are awaited, also after a failure: what is still under way could come behind what we know.
            for outcome in await asyncio.gather(*batch, return_exceptions=True):
                if isinstance(outcome, BusError):
                    return Published(acks, outcome)
                if isinstance(outcome, BaseException):
                    raise outcome
                acks.append(outcome)
        return Published(acks, None)

    async def _ask(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> "_Answer":
        answer = await self._bus.request(subject, payload, timeout_s=_ANSWER_S, headers=headers)
        try:
            return msgspec.json.decode(answer, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BusTimeout(f"an unreadable answer on {subject}") from error


def _in_flight(events: Sequence[tuple[str, bytes, str]]) -> Iterator[Sequence[tuple[str, bytes, str]]]:
    """The events in order, in rows that may be under way at once."""
    first, size = 0, 0
    for place, (_, payload, _) in enumerate(events):
        if place > first and (place - first == _EVENTS_IN_FLIGHT or size + len(payload) > _EVENT_BYTES_IN_FLIGHT):
            yield events[first:place]
            first, size = place, 0
        size += len(payload)
    yield events[first:]


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct, frozen=True, kw_only=True):
    messages: int = 0
    last_seq: int = 0


class _StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    data: bytes = b""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An ack, or what the stream's API says: of the stream (config, state) or of a message in it."""

    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None
    config: dict[str, object] = {}
    state: _State = _State()
    message: _StoredMessage | None = None
