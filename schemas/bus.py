"""The one NATS client of manager and agent: it goes on for ever and says truly whether it works.

Bus            supervisor: one connection after another, with full-jitter pauses; subscriptions, echo, requests
SafeClient     one connection (bus_client.py)

BusError
├── NoResponders   nobody listens. Take it for "offline or unknown": a responder can forge it (BUS.md 2, bug 7)
├── BusTimeout     no answer in time, or the connection ended while waiting: the outcome is unknown
├── BusDown        no usable connection: nothing was sent
└── BusRefused     the message or the stream's answer says no; the same again will not help
"""

import asyncio
import functools
import logging
import math
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from nats import errors
from nats.aio.msg import Msg

from schemas import subjects
from schemas.bus_client import CredsError, Identity, SafeClient, creds_text

__all__ = [
    "Bus",
    "BusDown",
    "BusError",
    "BusRefused",
    "BusStats",
    "BusTimeout",
    "CredsError",
    "Message",
    "NoResponders",
    "creds_text",
]

log = logging.getLogger(__name__)

#: Seconds before attempt n: uniform in 0..min(cap, base * 2**n). The first spreads a fleet after a server restart.
_BACKOFF_BASE_S = 0.5
#: A connection that lived shorter counts as a failed attempt, or a refused identity would spin.
_STABLE_S = 5.0
#: All of one attempt: every server twice, each with its handshake.
_CONNECT_S = 30.0
_ECHO_S = 5.0
#: How long a publish of a bus that may wait does wait for a connection.
_PUBLISH_WAIT_S = 5.0
_FLUSH_S = 5.0
#: More than a connection takes to be discarded.
_CLOSE_S = 3.0
#: Bytes written by us and not taken by the socket: beyond it the other end is as good as gone.
_MAX_UNSENT_BYTES = 8 * 1024 * 1024
_MOST_ERROR_SORTS = 10_000


class BusError(Exception):
    """The bus did not do what was asked."""


class NoResponders(BusError):
    """Nobody listens on the subject, as far as the bus knows."""


class BusTimeout(BusError):
    """Sent, and no answer: the outcome is unknown."""


class BusDown(BusError):
    """Not connected; nothing was sent."""


class BusRefused(BusError):
    """Too large, a bad subject, or an error from the stream."""


@dataclass(frozen=True)
class Message:
    """reply is empty where no answer is expected; check it before answering an agent (subjects.is_own_inbox)."""

    subject: str
    reply: str
    data: bytes


@dataclass(frozen=True)
class BusStats:
    """reconnects: connections after the first. rebuilds: those given up by us, since no echo came back."""

    reconnects: int
    rebuilds: int
    dropped_messages: int


Handler = Callable[[Message], Awaitable[None]]
OnConnect = Callable[[], Awaitable[None]]


class Bus:
    """A connection to the bus that comes back.

    creds_file is read anew at each connection, so a renewed JWT needs no restart. fail_fast: without a
    usable connection `request` and `publish` raise BusDown at once; else they wait for one within their
    time. Nothing is ever kept for later sending.
    """

    def __init__(
        self,
        *,
        servers: Sequence[str],
        creds_file: Path,
        name: str,
        inbox_prefix: str,
        fail_fast: bool,
        ping_interval_s: float = 15.0,
        echo_interval_s: float = 30.0,
        backoff_cap_s: float = 15.0,
        tls_ca: Path | None = None,
    ) -> None:
        self._servers = tuple(servers)
        self._creds_file = creds_file
        self._name = name
        self._inbox_prefix = inbox_prefix
        self._fail_fast = fail_fast
        self._ping_interval_s = ping_interval_s
        self._echo_interval_s = echo_interval_s
        self._backoff_cap_s = backoff_cap_s
        self._tls_ca = tls_ca
        self._subscriptions: list[_Subscription] = []
        self._on_connect: list[OnConnect] = []
        self._client: SafeClient | None = None
        self._opening: SafeClient | None = None
        self._usable = asyncio.Event()
        self._greet = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._handling: set[asyncio.Task[None]] = set()
        self._errors: Counter[tuple[str, type[Exception]]] = Counter()
        self._connections = 0
        self._connected_at = math.inf
        self._rebuilds = 0
        self._dropped = 0
        self._last_failure = "not started"

    def subscribe(self, subject: str, handler: Handler, *, queue: str = "", concurrency: int = 64) -> None:
        """The handler runs for each message in a task of its own, at most `concurrency` at once, on every connection.

        What it raises is logged here. Messages beyond the bound wait in order; with 16 thousand waiting, the
        newest is dropped. May be called before `start` and after it.
        """
        subscription = _Subscription(subject, queue, handler, asyncio.Semaphore(concurrency))
        self._subscriptions.append(subscription)
        if self._opening is not None:
            self._spawn(self._listen(self._opening, subscription), f"{self._name} subscribe")

    def on_connect(self, callback: OnConnect) -> None:
        """Run after each connection, the first too, when requests work; one after another, and runs never overlap."""
        self._on_connect.append(callback)

    async def start(self, timeout_s: float | None = None, *, wait: bool = True) -> None:
        """Supervised from now on until `close`. With `wait`: also usable now.

        Raises BusDown when it isn't after timeout_s; then nothing goes on. wait=False: returns at once, and it is
        tried for ever.
        """
        if self._tasks:
            raise RuntimeError("the bus has been started already")
        self._tasks = [
            asyncio.create_task(self._supervise(), name=f"{self._name} supervisor"),
            asyncio.create_task(self._greet_for_ever(), name=f"{self._name} on_connect"),
        ]
        if not wait:
            return
        try:
            await self.wait_usable(timeout_s)
        except BaseException:
            await self.close()
            raise

    async def wait_usable(self, timeout_s: float | None) -> None:
        """Usable now. Raises BusDown, with the last failure in its text."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_usable:
                    self._usable.clear()  # it may be set still for a connection lost a moment ago
                    await self._usable.wait()
        except TimeoutError as error:
            raise BusDown(f"the bus is not usable after {timeout_s} s: {self._last_failure}") from error

    @property
    def is_usable(self) -> bool:
        """Whether there is a connection that has heard its own echo and has not been lost since."""
        return self._client is not None and not self._client.lost.is_set()

    @property
    def stats(self) -> BusStats:
        dropped = self._dropped + (self._opening.dropped if self._opening is not None else 0)
        return BusStats(reconnects=max(0, self._connections - 1), rebuilds=self._rebuilds, dropped_messages=dropped)

    async def request(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None
    ) -> bytes:
        """The first answer's bytes. Raises NoResponders, BusTimeout, BusDown, BusRefused."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        client = await self._usable_client(timeout_s)
        try:
            # From the check in _usable_client to the write there is no pause: closed below means closed while waiting.
            left_s = deadline - loop.time()
            if host := subjects.commanded(subject):
                reply = await client.ask(subject, payload, host=host, timeout_s=left_s, headers=headers)
            else:
                reply = await client.request(subject, payload, timeout=left_s, headers=headers)
        except errors.NoRespondersError as error:
            raise NoResponders(f"nobody listens on {subject}") from error
        except errors.TimeoutError as error:
            raise BusTimeout(f"no answer on {subject} within {timeout_s} s") from error
        except errors.ConnectionClosedError as error:
            raise BusTimeout(f"the connection ended while waiting for an answer on {subject}") from error
        except (errors.OutboundBufferLimitError, OSError) as error:
            raise BusDown(f"cannot send {subject}: the connection is gone") from error
        except errors.Error as error:
            raise BusRefused(f"cannot send {subject}: {error}") from error
        return reply.data

    async def max_payload(self, timeout_s: float) -> int:
        """Bytes that the server takes in one message. Raises BusDown."""
        return (await self._usable_client(timeout_s)).max_payload

    async def publish(self, subject: str, payload: bytes) -> None:
        """Handed to the connection; no more is known of its fate. Raises BusDown, BusRefused."""
        client = await self._usable_client(_PUBLISH_WAIT_S)
        try:
            await client.publish(subject, payload)
        except (errors.OutboundBufferLimitError, errors.ConnectionClosedError, OSError) as error:
            raise BusDown(f"cannot publish {subject}: the connection is gone") from error
        except errors.Error as error:
            raise BusRefused(f"cannot publish {subject}: {error}") from error

    async def flush(self) -> None:
        """The server has processed everything sent before. Raises BusTimeout, BusDown."""
        client = await self._usable_client(_FLUSH_S)
        for subscription in self._subscriptions:
            await self._listen(client, subscription)
        if not await client.hears_itself(_FLUSH_S):
            raise BusTimeout("the bus did not confirm in time")

    async def close(self) -> None:
        """Gone, with its tasks and the handlers still running. What was published is still sent if it can be."""
        others = [*self._handling, *self._tasks[1:]]
        for task in others:
            task.cancel()
        pending = set(self._tasks[:1])
        while pending:
            # nats-py waits with asyncio.wait_for, which on Python 3.11 swallows a cancel that meets a result.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_CLOSE_S)
        await asyncio.gather(*others, return_exceptions=True)
        self._tasks = []

    async def _usable_client(self, timeout_s: float) -> SafeClient:
        if not self.is_usable and not self._fail_fast:
            await self.wait_usable(timeout_s)
        client = self._client
        if client is None or client.lost.is_set():
            raise BusDown(f"the bus is not usable: {self._last_failure}")
        if client.pending_data_size > _MAX_UNSENT_BYTES:
            raise BusDown("the bus is not usable: the server does not take what is sent")
        return client

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._connected_at = math.inf  # not yet
            try:
                await self._live_once()
            except (OSError, errors.Error, CredsError, BusError, TimeoutError):
                log.warning("bus connection failed", extra={"bus": self._name, "reason": self._last_failure})
            except Exception:  # the edge of this loop: it must outlive what nobody thought of
                log.exception("bus connection failed", extra={"bus": self._name})
            failures = 0 if loop.time() - self._connected_at >= _STABLE_S else failures + 1
            await asyncio.sleep(random.uniform(0, min(self._backoff_cap_s, _BACKOFF_BASE_S * 2 ** min(failures, 10))))

    async def _live_once(self) -> None:
        """One connection from its making to its end, which is always an exception."""
        try:
            await self._watch(await self._connect())
        except Exception as error:
            self._last_failure = str(error) or type(error).__name__
            raise
        finally:
            await self._drop_client()

    async def _connect(self) -> SafeClient:
        self._opening = client = SafeClient(self._on_error)
        async with asyncio.timeout(_CONNECT_S):
            await client.open(
                self._servers,
                identity=Identity.read(self._creds_file),
                name=self._name,
                inbox_prefix=self._inbox_prefix,
                ping_interval_s=self._ping_interval_s,
                tls=self._tls_context(),
            )
        for subscription in self._subscriptions:
            await self._listen(client, subscription)
        if not await client.hears_itself(_ECHO_S):
            raise BusDown(f"no echo on a fresh connection: {client.loss or 'silence'}")
        self._connections += 1
        self._connected_at = asyncio.get_running_loop().time()
        self._client = client
        self._usable.set()
        self._greet.set()
        log.info("bus connected", extra={"bus": self._name, "connections": self._connections})
        return client

    async def _watch(self, client: SafeClient) -> None:
        """Returns never; raises BusDown when the connection is over or deaf."""
        while True:
            try:
                async with asyncio.timeout(self._echo_interval_s):
                    await client.lost.wait()
            except TimeoutError:
                if await client.hears_itself(min(_ECHO_S, self._echo_interval_s)):
                    continue
            if not client.lost.is_set():
                self._rebuilds += 1
                raise BusDown("the connection no longer hears its own echo")
            raise BusDown(f"the connection ended: {client.loss}")

    async def _drop_client(self) -> None:
        self._usable.clear()
        client, self._client, self._opening = self._opening, None, None
        if client is not None:
            self._dropped += client.dropped
            await client.discard()

    async def _greet_for_ever(self) -> None:
        while True:
            await self._greet.wait()
            self._greet.clear()
            for callback in tuple(self._on_connect):
                try:
                    await callback()
                except Exception:
                    log.exception("bus on_connect callback failed", extra={"bus": self._name})

    async def _listen(self, client: SafeClient, subscription: "_Subscription") -> None:
        if subscription.client is not client:
            subscription.client = client
            await client.listen(
                subscription.subject, subscription.queue, functools.partial(self._receive, subscription)
            )

    async def _receive(self, subscription: "_Subscription", received: Msg) -> None:
        await subscription.slots.acquire()
        message = Message(subject=received.subject, reply=received.reply, data=received.data)
        task = self._spawn(self._handle(subscription.handler, message), f"{self._name} {subscription.subject}")
        task.add_done_callback(lambda _: subscription.slots.release())

    async def _handle(self, handler: Handler, message: Message) -> None:
        try:
            await handler(message)
        except Exception as error:
            if count := self._nth(message.subject, type(error)):
                facts = {"bus": self._name, "subject": message.subject, "count": count}
                log.exception("bus handler failed", extra=facts)

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)
        return task

    async def _on_error(self, error: Exception) -> None:
        if count := self._nth("", type(error)):
            log.warning("bus error", extra={"bus": self._name, "reason": repr(error), "count": count})

    def _nth(self, subject: str, sort: type[Exception]) -> int:
        """How many of the sort there were, if it is worth a line: a peer can cause these at will, so only the 1st, 2nd, 4th, 8th … is."""
        if len(self._errors) > _MOST_ERROR_SORTS:
            self._errors.clear()
        self._errors[subject, sort] += 1
        count = self._errors[subject, sort]
        return count if count & (count - 1) == 0 else 0

    def _tls_context(self) -> ssl.SSLContext | None:
        if self._tls_ca is None:
            return None
        context = ssl.create_default_context(cafile=str(self._tls_ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


@dataclass
class _Subscription:
    """client: the connection on which it was last made."""

    subject: str
    queue: str
    handler: Handler
    slots: asyncio.Semaphore
    client: SafeClient | None = None
