"""API tokens: made, shown once, recognised from memory, revoked within a second on every replica."""

import asyncio
import datetime as dt
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from manager.actor import Actor, Role
from manager.errors import ConfigError, Refused
from manager.keys import write_private
from manager.shared_runs import SharedRuns
from manager.store import tokens as store
from manager.store.pool import DATABASE_FAULTS, Connection, Pool, transaction
from manager.store.tokens import TokenRow
from schemas.fields import InvalidFields
from schemas.ids import is_id, new_id
from schemas.problems import FieldError, ProblemCode
from schemas.requests import CreateToken

log = logging.getLogger(__name__)

#: Seconds a remembered token is believed without the notification that would have dropped it; only a
#: replica that has lost its listener gets there.
REMEMBERED_S = 30.0
#: Seconds between two writes of last_used_at.
TOUCH_S = 60.0

#: The secret is 32 random bytes, so a plain digest at rest cannot be guessed back.
_TOKEN = re.compile(r"stw_([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class ApiToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as the API shows it; `token` is its text, once, in the answer to its making."""

    id: str
    name: str
    role: Role
    created_by: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    last_used_at: dt.datetime | None


class NewToken(ApiToken, frozen=True, kw_only=True):
    token: str | None


@dataclass
class _Remembered:
    row: TokenRow
    read_at: float
    touched_at: float


class Tokens:
    """Who may come in. `forget` is to be called for every notification `token:<id>`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._remembered: dict[str, _Remembered] = {}
        #: Grows with every forget, so that a row read before it is not remembered after it.
        self._epoch = 0
        #: By token and epoch: who asks after a forget must not be told what was read before it.
        self._readings = SharedRuns[tuple[str, int], _Remembered | None]("reading of a token", self._read)
        #: Of the next forget.
        self._forgotten = asyncio.Event()

    async def authenticate(self, text: str, request_id: str) -> Actor | None:
        """Who holds this token; None for a wrong, revoked or expired one."""
        match = _TOKEN.fullmatch(text)
        if match is None:
            return None
        digest = _digest(match[2])
        found = await self._recall(match[1])
        if found is None or not hmac.compare_digest(digest, found.row.secret_hash) or not _is_live(found.row):
            return None
        return await self._entered(found, request_id)

    async def holder(self, token_id: str, request_id: str) -> Actor | None:
        """Who holds the token of this id, for one who has shown it before (sessions.py); None for a revoked or expired one."""
        found = await self._recall(token_id)
        return None if found is None or not _is_live(found.row) else await self._entered(found, request_id)

    async def is_live(self, token_id: str) -> bool:
        """Whether the token still opens the door; asked again and again by whoever keeps a connection open."""
        found = await self._recall(token_id)
        return found is not None and _is_live(found.row)

    async def ended(self, token_id: str) -> None:
        """Returns when the token is revoked; its expiry is a matter of the clock, which the caller has too."""
        while True:
            forgotten = self._forgotten
            if not await self.is_live(token_id):
                return
            await forgotten.wait()

    def forget(self, token_id: str | None = None) -> None:
        """The token (None: every token) is read anew at its next use."""
        self._epoch += 1
        self._forgotten.set()
        self._forgotten = asyncio.Event()
        if token_id is None:
            self._remembered.clear()
        else:
            self._remembered.pop(token_id, None)

    async def create(self, body: CreateToken, actor: Actor) -> NewToken:
        """The token with its text, which nobody can ask for again. It ends when its maker's does, or before."""
        expires_at = body.expires_at or actor.expires_at
        if expires_at is not None and actor.expires_at is not None and expires_at > actor.expires_at:
            words = f"must not be behind the end of the token that makes it ({actor.expires_at.isoformat()})"
            raise InvalidFields(FieldError(pointer="/expires_at", detail=words))
        token_id, secret = new_id(), secrets.token_urlsafe(32)
        async with self._pool.acquire() as connection:
            row = await store.insert(
                connection,
                token_id=token_id,
                name=body.name,
                role=Role(body.role),
                secret_hash=_digest(secret),
                created_by=actor.name,
                expires_at=expires_at,
            )
        if row is None:
            raise Refused.because(
                ProblemCode.NAME_TAKEN,
                f"there is a token named {body.name}",
                errors=(FieldError(pointer="/name", detail="is taken"),),
            )
        log.info("token created", extra={"token_id": row.id, "role": row.role, "actor": actor.name})
        return NewToken(**msgspec.structs.asdict(_shown(row)), token=f"stw_{token_id}_{secret}")

    async def get(self, token_id: str) -> ApiToken:
        return _shown(await self._row(token_id))

    async def page(self, after: str | None, limit: int) -> Sequence[ApiToken]:
        """Those not revoked, in the order of their making, from behind the id `after`."""
        async with self._pool.acquire() as connection:
            return [_shown(row) for row in await store.page(connection, after=after, limit=limit)]

    async def revoke(self, token_id: str, actor: Actor) -> None:
        """The token opens nothing any more. Refused for the last admin token that never expires."""
        row = await self._row(token_id)
        async with transaction(self._pool) as connection:
            is_revoked = await store.revoke(connection, token_id)
        if not is_revoked:
            await self._row(token_id)  # gone meanwhile: not_found
            raise Refused.because(
                ProblemCode.WRONG_STATE,
                f"{row.name} is the last admin token: no other without an expiry would be left; create one before"
                " revoking it",
            )
        self.forget(token_id)
        log.info("token revoked", extra={"token_id": token_id, "actor": actor.name})

    async def ensure_admin(self, path: Path) -> Path | None:
        """Where an admin token that works lies; None when there are admin tokens, but not in this file.

        Where none works any more, in the file or out of it, a new one is made and the file replaced. The file first,
        then the row: a crash between leaves a file whose token the next start makes valid, never a token that nobody
        holds. Raises ConfigError when the file cannot be used.
        """
        async with transaction(self._pool) as connection:
            await store.hold_admins(connection)
            text = _read_file(path)
            if text is not None and await self._is_admin_now(connection, path, text):
                return path
            if await store.has_live_admin(connection):
                if text is not None:
                    log.warning("the token in the admin token file is not valid", extra={"path": str(path)})
                return None
            if text is not None:
                log.warning("no admin token is valid any more; a new one is made", extra={"path": str(path)})
            fresh = f"stw_{new_id()}_{secrets.token_urlsafe(32)}"
            _write_file(path, fresh)
            if not await self._is_admin_now(connection, path, fresh):
                raise ConfigError(f"the new token in {path} could not be made valid")
        return path

    async def _is_admin_now(self, connection: Connection, path: Path, text: str) -> bool:
        """Whether the token of the file opens the door; one that the database has never seen does from now on."""
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise ConfigError(f"{path} holds no token; remove the file to have one made")
        token_id, digest = match[1], _digest(match[2])
        row = await store.get(connection, token_id)
        # The second name is for when somebody has taken the first.
        for name in ("admin", f"admin-{token_id[-12:]}"):
            row = row or await store.insert(
                connection,
                token_id=token_id,
                name=name,
                role=Role.ADMIN,
                secret_hash=digest,
                created_by="system",
                expires_at=None,
            )
        return row is not None and _is_live(row) and row.role is Role.ADMIN and row.secret_hash == digest

    async def _recall(self, token_id: str) -> _Remembered | None:
        found = self._remembered.get(token_id)
        if found is not None and time.monotonic() < found.read_at + REMEMBERED_S:
            return found
        # A hundred streams of one page ask in the same moment; sagas need the same connections.
        return await self._readings.result((token_id, self._epoch))

    async def _read(self, key: tuple[str, int]) -> _Remembered | None:
        token_id, epoch = key
        found, read_at = self._remembered.get(token_id), time.monotonic()
        async with self._pool.acquire() as connection:
            row = await store.get(connection, token_id)
        if row is None or row.revoked_at is not None:
            return None
        # Touched long ago as far as we know; the statement itself knows better.
        fresh = _Remembered(row, read_at, found.touched_at if found else read_at - TOUCH_S)
        if epoch == self._epoch:
            self._remembered[token_id] = fresh
        return fresh

    async def _entered(self, found: _Remembered, request_id: str) -> Actor:
        await self._touch(found)
        row = found.row
        return Actor(
            name=f"token:{row.name}",
            request_id=request_id,
            role=row.role,
            token_id=row.id,
            expires_at=row.expires_at,
        )

    async def _touch(self, found: _Remembered) -> None:
        now = time.monotonic()
        if now < found.touched_at + TOUCH_S:
            return
        found.touched_at = now
        try:
            async with self._pool.acquire() as connection:
                await store.touch(connection, found.row.id)
        except DATABASE_FAULTS:
            log.warning("the last use of a token could not be written", extra={"token_id": found.row.id}, exc_info=True)

    async def _row(self, token_id: str) -> TokenRow:
        if is_id(token_id):
            async with self._pool.acquire() as connection:
                row = await store.get(connection, token_id)
            if row is not None and row.revoked_at is None:
                return row
        raise Refused.because(ProblemCode.NOT_FOUND, "there is no token with this id")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _is_live(row: TokenRow) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > dt.datetime.now(dt.UTC))


def _shown(row: TokenRow) -> ApiToken:
    return ApiToken(
        id=row.id,
        name=row.name,
        role=row.role,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )


def _read_file(path: Path) -> str | None:
    """The token in the file, which afterwards nobody else can read; None when there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        os.fchmod(descriptor, 0o600)
        return file.read(512).decode("ascii", "replace").strip()


def _write_file(path: Path, text: str) -> None:
    try:
        write_private(path, text.encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
