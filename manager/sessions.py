"""Sessions of browsers: a ticket in a cookie, signed, so that every replica knows it and nothing is stored.

A ticket names a token and a moment: `sws_<token id>_<unix seconds>_<mac>`. It opens what that token opens, for as long as the
token lives and until the moment comes. It is not the token: who steals it has it for hours at most, and cannot make another.
"""

import datetime as dt
import enum
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

#: Seconds that a session lasts at most; then the token is asked for again.
SESSION_S = 12 * 3600

#: Another key than the one for bodies (api/idempotency.py), of which each message has a NUL in it, and this has none.
_KEY_LABEL = b"stowage session 1"
_TICKET = re.compile(r"sws_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_([1-9][0-9]{0,11})_([0-9a-f]{64})")


class Worthless(enum.Enum):
    """Why a ticket opens nothing. FORGED: no replica of this fleet has signed it. AMBIGUOUS: another one came beside it."""

    FORGED = enum.auto()
    EXPIRED = enum.auto()
    AMBIGUOUS = enum.auto()


@dataclass(frozen=True)
class Ticket:
    token_id: str
    expires_at: dt.datetime


class Sessions:
    """Makes tickets and knows them again. mac_key: the fleet's, the same on all replicas."""

    def __init__(self, mac_key: bytes, *, fleet_id: str, public_url: str = "") -> None:
        self._key = hmac.digest(mac_key, _KEY_LABEL, hashlib.sha256)
        #: Fleets on several ports of one machine share its cookies, so each has a name of its own.
        self.cookie_name = f"stowage_{fleet_id[-8:]}"
        #: Over HTTPS: of this prefix browsers take no cookie of a neighbouring name, of a path, or by plain HTTP (RFC 6265bis 4.1.3.2).
        self.secure_cookie_name = f"__Host-{self.cookie_name}"
        #: `scheme://host[:port]` of public_url as a browser writes it; empty where none is configured.
        self.public_origin = _origin_of(public_url)

    def ticket(self, token_id: str, token_expires_at: dt.datetime | None, now: dt.datetime) -> tuple[str, Ticket]:
        """(its text, what it says) for who has just shown this token; never beyond the token's own end."""
        last = now + dt.timedelta(seconds=SESSION_S)
        if token_expires_at is not None:
            last = min(last, token_expires_at)
        at = int(last.timestamp())
        ticket = Ticket(token_id, dt.datetime.fromtimestamp(at, dt.UTC))
        return f"sws_{token_id}_{at}_{self._mac(token_id, at)}", ticket

    def read(self, text: str, now: dt.datetime) -> Ticket | Worthless:
        """What a ticket of ours says. Whether its token lives is for Tokens to say."""
        match = _TICKET.fullmatch(text)
        if match is None:
            return Worthless.FORGED
        token_id, at = match[1], int(match[2])
        if not hmac.compare_digest(self._mac(token_id, at), match[3]):
            return Worthless.FORGED
        if at <= now.timestamp():
            return Worthless.EXPIRED
        return Ticket(token_id, dt.datetime.fromtimestamp(at, dt.UTC))

    def read_one(self, texts: Sequence[str], now: dt.datetime) -> Ticket | Worthless:
        """What the one ticket among them says that opens something, for others can put values beside ours under its name.

        Of two that say different things neither: one is somebody else's, to have the user work as another. FORGED: none was ever ours.
        """
        read = {self.read(text, now) for text in texts}
        tickets = [one for one in read if isinstance(one, Ticket)]
        if len(tickets) == 1:
            return tickets[0]
        if len(tickets) > 1:
            return Worthless.AMBIGUOUS
        return Worthless.EXPIRED if Worthless.EXPIRED in read else Worthless.FORGED

    def _mac(self, token_id: str, at: int) -> str:
        return hmac.digest(self._key, f"{token_id}_{at}".encode(), hashlib.sha256).hex()


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower() if parts.netloc else ""
