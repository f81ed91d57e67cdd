"""What this host says unasked besides its status: heartbeats, and the renewal of its bus identity in good time."""

import asyncio
import base64
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agent.private_files import write_private
from schemas import nkey
from schemas.agent_rpc import Beat, RenewReply
from schemas.bus import BusError, creds_text

log = logging.getLogger(__name__)

#: Looked at this often, for clocks are set and machines sleep.
_LOOK_S = 600.0
_RETRY_S = 60.0


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    """Of a NATS user JWT, what concerns us; exp 0: it does not expire."""

    sub: str
    iat: int
    exp: int = 0


async def beat_for_ever(
    publish: Callable[[bytes], Awaitable[None]], hung_workers: Callable[[], int], *, interval_s: float
) -> None:
    """A beat every interval. A lost one is not sent later: it would say what is no longer true."""
    sequence = 0
    while True:
        sequence += 1
        try:
            await publish(msgspec.json.encode(Beat(sequence=sequence, hung_workers=hung_workers())))
        except BusError as error:
            log.debug("beat not sent", extra={"reason": str(error)})
        await asyncio.sleep(random.uniform(0.95, 1.05) * interval_s)


class Renewal:
    """Keeps bus.creds fresh: at half its life the JWT is exchanged for a new one.

    The bus reads the file at its next connection; the server ends the present one when the old JWT
    expires. A revoked or expired host goes on asking, and keeps its mounts meanwhile.
    """

    def __init__(
        self,
        *,
        ask: Callable[[], Awaitable[bytes]],
        creds_file: Path,
        user_jwt: str,
        seed: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ask = ask
        self._creds_file = creds_file
        self._claims = claims_of(user_jwt)
        self._seed = seed
        self._clock = clock

    async def run(self) -> None:
        """Renews for ever."""
        while True:
            pause_s = self.due_in_s()
            if pause_s <= 0:
                pause_s = _LOOK_S if await self.renew() else _RETRY_S
            await asyncio.sleep(random.uniform(0.8, 1.0) * min(pause_s, _LOOK_S))

    def due_in_s(self) -> float:
        """Seconds to half-life; infinite for a JWT that does not expire."""
        if not self._claims.exp:
            return math.inf
        return (self._claims.iat + self._claims.exp) / 2 - self._clock()

    async def renew(self) -> bool:
        """Whether the file holds a new JWT for the same identity."""
        try:
            user_jwt = msgspec.json.decode(await self._ask(), type=RenewReply).user_jwt
            claims = claims_of(user_jwt)
            if claims.sub != nkey.public_key(self._seed):
                raise ValueError("the new one is for another key")
            write_private(self._creds_file, creds_text(user_jwt, self._seed).encode())
        except (BusError, ValueError, OSError) as error:
            log.warning("bus identity not renewed", extra={"reason": str(error)[:200]})
            return False
        self._claims = claims
        log.info("bus identity renewed", extra={"expires_at": claims.exp})
        return True


def claims_of(user_jwt: str) -> _Claims:
    """The claims, unverified: the server is who judges them. Raises ValueError, which does not quote the token."""
    try:
        body = user_jwt.split(".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=_Claims)
    except (IndexError, ValueError) as error:
        raise ValueError("not a NATS user JWT") from error
