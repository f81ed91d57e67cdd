"""One connection to a NATS server: nats-py 2.16 without its parser, its reconnecting and its trust in what arrives.

A client here lives for one connection. Whatever goes wrong with it (end of file, stale pings, an error
line of the server such as "Authentication Expired", a byte that nobody expected) ends in `lost`, and
`Bus` builds the next one. Of nats-py's own reconnecting nothing is used: it closes for ever on an expired
JWT, sleeps without jitter, sends buffered requests long after their caller gave up and spins on a
creds file without a JWT in it (BUS.md 2; the last one seen 2026-11-23). The overridden methods are private:
the version is pinned and tests/bus proves each fault cured.
"""

import asyncio
import base64
import contextlib
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import msgspec
from nats import errors
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from schemas import nkey, subjects

#: Seconds for TCP, TLS, INFO and the answer to CONNECT, each. A server under a storm of reconnects takes seconds.
_HANDSHAKE_STEP_S = 10
_READ_BYTES = 32 * 1024
#: An INFO line of a large cluster has some kilobytes; a line beyond this is no NATS server.
_MAX_LINE_BYTES = 1024 * 1024
_MAX_OUTSTANDING_PINGS = 2
#: Messages waiting for a handler of one subscription; beyond it the newest is dropped and counted.
_PENDING_MESSAGES = 16 * 1024
_PENDING_BYTES = 32 * 1024 * 1024
#: Seconds to say good-bye; after a failed TLS handshake asyncio never reports the socket closed.
_CLOSE_S = 2.0
_CLOSE_BROKEN_S = 0.2


class CredsError(Exception):
    """The creds file cannot be read as one; the message names the file and quotes nothing of it."""


class Identity:
    """A user JWT and the seed of its key, as a creds file holds them. Its repr shows neither."""

    __slots__ = ("_jwt", "_seed")

    def __init__(self, user_jwt: str, seed: str) -> None:
        self._jwt = user_jwt
        self._seed = seed

    @classmethod
    def read(cls, creds_file: Path) -> "Identity":
        """What the file holds now. Raises CredsError."""
        try:
            lines = creds_file.read_text(encoding="ascii").splitlines()
            user_jwt = lines[lines.index(_JWT_HEAD) + 1].strip()
            seed = lines[lines.index(_SEED_HEAD) + 1].strip()
            nkey.public_key(seed)
        except OSError as error:
            raise CredsError(f"cannot read {creds_file}: {error.strerror}") from error
        except (ValueError, IndexError):
            # `from None`: the cause may quote a line of the file.
            raise CredsError(f"{creds_file} is not a NATS creds file") from None
        return cls(user_jwt, seed)

    def jwt(self) -> bytearray:
        return bytearray(self._jwt.encode())

    def sign(self, nonce: str) -> bytes:
        """The server's nonce signed, in base64 as CONNECT wants it."""
        return base64.b64encode(nkey.sign(self._seed, nonce.encode()))

    def __repr__(self) -> str:
        return "<identity>"


_JWT_HEAD = "-----BEGIN NATS USER JWT-----"
_SEED_HEAD = "-----BEGIN USER NKEY SEED-----"


def creds_text(user_jwt: str, seed: str) -> str:
    """The content of a creds file; whoever writes it writes it 0600, with fsync and rename."""
    return (
        f"{_JWT_HEAD}\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"{_SEED_HEAD}\n{seed}\n------END USER NKEY SEED------\n"
    )


class SafeClient(Client):
    """One connection. `lost` is set when it is over, `loss` then says why; `dropped` counts messages thrown away."""

    def __init__(self, on_error: Callable[[Exception], Awaitable[None]]) -> None:
        super().__init__()
        self._on_error = on_error
        self._echo_inbox = ""
        self._echoes: dict[bytes, asyncio.Future[None]] = {}
        self._inbox = ""
        #: reply subject -> the answer to a command under way.
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self.lost = asyncio.Event()
        self.loss: Exception | None = None
        self.dropped = 0

    async def open(
        self,
        servers: Sequence[str],
        *,
        identity: Identity,
        name: str,
        inbox_prefix: str,
        ping_interval_s: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Connected, and subscribed to its own inbox for replies and echoes.

        Raises OSError, nats.errors.Error, TimeoutError.
        """

        async def on_error(error: Exception) -> None:
            if isinstance(error, errors.SlowConsumerError):
                self.dropped += 1
            await self._on_error(error)

        # Each server is tried twice and then it is over: pauses and further attempts are the supervisor's.
        # pending_size 0: nothing is kept to be sent later, when its caller has long given up.
        await self.connect(
            list(servers),
            name=name,
            error_cb=on_error,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_HANDSHAKE_STEP_S,
            ping_interval=ping_interval_s,  # type: ignore[arg-type]  # annotated int, only slept on
            max_outstanding_pings=_MAX_OUTSTANDING_PINGS,
            pending_size=0,
            inbox_prefix=inbox_prefix,
            user_jwt_cb=identity.jwt,
            signature_cb=identity.sign,
            tls=tls,
            tls_handshake_first=tls is not None,
        )
        await self._init_request_sub()
        # Agents may publish there at any time, so with bounds.
        await self.listen(subjects.answers(inbox_prefix, "*", "*"), "", self._on_answer)
        self._inbox = inbox_prefix
        self._echo_inbox = self.new_inbox()
        await self.subscribe(self._echo_inbox, cb=self._on_echo)  # pyright: ignore[reportUnknownMemberType]

    async def listen(self, subject: str, queue: str, callback: Callable[[Msg], Awaitable[None]]) -> None:
        """Subscribed, with bounded memory. nats-py runs one subscription's callbacks one after another."""
        await self.subscribe(  # pyright: ignore[reportUnknownMemberType]
            subject, queue, callback, pending_msgs_limit=_PENDING_MESSAGES, pending_bytes_limit=_PENDING_BYTES
        )

    async def ask(
        self, subject: str, payload: bytes, *, host: str, timeout_s: float, headers: dict[str, str] | None
    ) -> Msg:
        """As nats-py's request, but the reply subject names the host that alone may answer there."""
        inbox = subjects.answers(self._inbox, host, secrets.token_hex(16))
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._answers[inbox] = answer
        try:
            await self.publish(subject, payload, reply=inbox, headers=headers)
            async with asyncio.timeout(timeout_s):
                reply = await answer
        except TimeoutError as error:
            raise errors.TimeoutError from error
        finally:
            del self._answers[inbox]
        if reply.headers and reply.headers.get("Status") == "503":
            raise errors.NoRespondersError
        return reply

    async def hears_itself(self, timeout_s: float) -> bool:
        """Whether a message to our own inbox came back, which also proves everything sent before it was processed."""
        mark = secrets.token_hex(8).encode()
        heard = self._echoes[mark] = asyncio.get_running_loop().create_future()
        try:
            await self.publish(self._echo_inbox, mark)
            async with asyncio.timeout(timeout_s):
                await heard
        except (OSError, errors.Error, TimeoutError):
            return False
        finally:
            del self._echoes[mark]
        return True

    async def discard(self) -> None:
        """Closed within seconds, whatever the other end does; what is pending is still sent if it can be."""
        patience_s = _CLOSE_S if self.is_connected else _CLOSE_BROKEN_S
        self._lose(errors.ConnectionClosedError())
        transport = self._transport
        if transport is None:
            return
        try:
            # An OSError here only says that the other end was gone first.
            with contextlib.suppress(OSError, errors.Error, TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.close()
        finally:
            if isinstance(transport, _HandshakeTransport):
                transport.abort()

    def _lose(self, why: Exception) -> None:
        if self.lost.is_set():
            return
        self.loss = why
        if not self.is_closed:
            self._status = Client.DISCONNECTED
        self.lost.set()
        requests = cast("dict[str, asyncio.Future[Msg]]", self._resp_map)  # pyright: ignore[reportUnknownMemberType]
        for request in list(requests.values()):
            if not request.done():
                request.set_exception(errors.ConnectionClosedError())
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(errors.ConnectionClosedError())
        for echo in self._echoes.values():
            if not echo.done():
                echo.set_exception(errors.ConnectionClosedError())

    async def _on_answer(self, answer: Msg) -> None:
        """The first answer counts; a second one, or one that nobody waits for any more, goes."""
        waiting = self._answers.get(answer.subject)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def _on_echo(self, echo: Msg) -> None:
        heard = self._echoes.get(echo.data)
        if heard is not None and not heard.done():
            heard.set_result(None)

    async def _connect_to_server(self, s: Srv) -> None:
        self._transport = transport = _HandshakeTransport()
        await transport.connect(s.uri, buffer_size=_READ_BYTES, connect_timeout=_HANDSHAKE_STEP_S)

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        if not self.is_connected:
            # nats-py takes any other line for success and returns a client that never works (BUS.md 2, bug 4).
            raise errors.Error("the server did not finish the handshake")

    async def _read_loop(self) -> None:
        # Unlike nats-py's: there is no way out of this loop that leaves the connection looking alive (bugs 1, 2).
        splitter = _Splitter()
        try:
            while not self.lost.is_set():
                assert self._transport is not None
                chunk = await self._transport.read(_READ_BYTES)
                if not chunk:
                    raise errors.UnexpectedEOF
                for words, headers, body in splitter.feed(chunk):
                    await self._dispatch(words, headers, body)
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends the connection, and Bus logs it as its loss
            self._lose(error)
        finally:
            self._lose(errors.ConnectionClosedError())

    async def _dispatch(self, words: list[bytes], headers: bytes, body: bytes) -> None:
        match words:
            case [b"MSG", subject, sid, _]:
                await self._process_msg(_count(sid), subject, b"", body, b"")
            case [b"MSG", subject, sid, reply, _]:
                await self._process_msg(_count(sid), subject, reply, body, b"")
            case [b"HMSG", subject, sid, _, _]:
                await self._process_msg(_count(sid), subject, b"", body, headers)
            case [b"HMSG", subject, sid, reply, _, _]:
                await self._process_msg(_count(sid), subject, reply, body, headers)
            case [b"PING", *_]:
                await self._process_ping()
            case [b"PONG", *_]:
                await self._process_pong()
            case [b"-ERR", *what]:
                await self._process_err(b" ".join(what).decode("utf-8", "backslashreplace").lower().strip("'"))
            case [b"INFO", *info]:
                await self._process_info(_info(b" ".join(info)))
            case [b"+OK", *_]:
                pass
            case _:
                raise errors.ProtocolError

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as error:  # noqa: BLE001  # nats-py raises anything here
            # A subject, reply or header that does not decode costs its sender this one message (bug 1).
            self.dropped += 1
            await self._on_error(error)

    async def _process_pong(self) -> None:
        pongs = cast("list[asyncio.Future[bool]]", self._pongs)  # pyright: ignore[reportUnknownMemberType]
        if pongs:
            waiting = pongs.pop(0)
            if not waiting.done():  # a flush that timed out left it cancelled (bug 2)
                waiting.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _process_err(self, err_msg: str) -> None:
        if "permissions violation" in err_msg:  # the one error after which the server keeps the connection
            await self._on_error(errors.Error(err_msg))
            return
        self._lose(errors.Error(err_msg))

    async def _process_op_err(self, e: Exception) -> None:
        self._lose(e)


class _HandshakeTransport(TcpTransport):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_greeted = False

    async def readline(self) -> bytes:
        """INFO, then the next line of the handshake that is neither a PING nor a repeated INFO.

        The server sends its first PING after 2 s, before the answer to ours when authentication is slow (bug 4).
        nats-py reads lines during the handshake only.
        """
        while True:
            assert self._io_reader is not None
            line = await self._io_reader.readline()
            if not line:
                raise ConnectionResetError("the server closed the connection during the handshake")
            if line.startswith(b"INFO") and self._is_greeted:
                continue
            if not line.startswith(b"PING"):
                self._is_greeted = True
                return line
            assert self._io_writer is not None
            self._io_writer.write(b"PONG\r\n")
            await self._io_writer.drain()

    def abort(self) -> None:
        """The socket is gone without waiting for the other end."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


class _Splitter:
    """Splits what the server sends where the server does: control lines at single spaces.

    nats-py's regular expressions split at any white space, and a publisher may put a vertical tab or a form
    feed into a subject: that broke the line in other places, ended the connection, or let the message
    be taken for another subscription's (seen 2026-11-23; tests/bus/test_poison.py).
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Iterator[tuple[list[bytes], bytes, bytes]]:
        """Each whole (control line's words, headers, body). Raises ProtocolError for what no NATS server sends."""
        rest = self._rest
        rest.extend(chunk)
        while (line_end := rest.find(b"\r\n")) >= 0:
            words = bytes(rest[:line_end]).split(b" ")
            begin = end = line_end + 2
            headers = b""
            if words[0] in (b"MSG", b"HMSG"):
                size = _count(words[-1])
                if len(rest) < begin + size + 2:
                    return
                if words[0] == b"HMSG":
                    headers_end = begin + min(_count(words[-2]), size)
                    headers, begin = bytes(rest[begin:headers_end]), headers_end
                end = line_end + 2 + size
                body = bytes(rest[begin:end])
                del rest[: end + 2]
            else:
                body = b""
                del rest[:end]
            yield words, headers, body
        if len(rest) > _MAX_LINE_BYTES:
            raise errors.ProtocolError


def _count(digits: bytes) -> int:
    if not digits.isdigit():
        raise errors.ProtocolError
    return int(digits)


def _info(encoded: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(encoded, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.ProtocolError from error
