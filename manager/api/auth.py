"""Who asks, and whether it may: bearer tokens, sessions by cookie, a least role a route, a limit on wrong tokens."""

import asyncio
import dataclasses
import datetime as dt

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from manager.actor import Actor, Role
from manager.api.decoding import refuse_unknown_query
from manager.api.keys import ACCESS, ACTOR, QUERIES, REQUEST_ID, SESSION_REFUSALS, SESSIONS, TOKENS
from manager.api.origins import refuse_other_origins
from manager.errors import ManagerError, Refused
from manager.pace import Pace
from manager.sessions import Ticket, Worthless
from schemas.problems import ProblemCode

_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


#: Wrong tokens that one address may show. Only failures are counted, and tokens in use are let in beyond it, so that one bad
#: client behind a shared address (a proxy, NAT) shuts out newcomers alone; guessing 256 bits is hopeless at any rate.
FAILURE_BURST = 60
FAILURES_PER_S = 1.0

FAILURES: web.AppKey[Pace] = web.AppKey("failures", Pace)
#: Held for the lookup of a token from an address over its limit.
GUESSES: web.AppKey[asyncio.Lock] = web.AppKey("guesses", asyncio.Lock)
_COUNTED: web.RequestKey[bool] = web.RequestKey("counted", bool)

_SAFE_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, if the caller may have it. Without a token an unknown address answers 401 too."""
    needed = request.app[ACCESS].get(request.match_info.route, Role.VIEWER)
    if needed is None:
        _check_query(request)
        try:
            return await handler(request)
        except ManagerError as error:
            if error.problem.code is ProblemCode.UNAUTHORIZED:  # a wrong join token, or a wrong one at the sign-in
                _count_failure(request)
            raise
    actor = request[ACTOR] = await actor_of(request)
    if _RANK[actor.role] < _RANK[needed]:
        raise Refused.because(ProblemCode.FORBIDDEN, f"this takes the role {needed}; the token's is {actor.role}")
    session_refusal = request.app[SESSION_REFUSALS].get(request.match_info.route)
    if session_refusal is not None and hdrs.AUTHORIZATION not in request.headers:
        raise Refused.because(ProblemCode.FORBIDDEN, session_refusal)
    if not request.path.isprintable():
        # No name of ours has such characters, and the database does not take NUL.
        raise Refused.because(ProblemCode.NOT_FOUND, "there is nothing at this address")
    _check_query(request)
    return await handler(request)


def _check_query(request: web.Request) -> None:
    known = request.app[QUERIES].get(request.match_info.route)
    if known is not None:
        refuse_unknown_query(request, known)


async def actor_of(request: web.Request) -> Actor:
    """Who asks. Raises Refused: unauthorized; forbidden for what comes by cookie from another page."""
    headers = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not headers:
        return await _actor_by_cookie(request)
    scheme, _, text = headers[0].partition(" ")
    # Anything else is as wrong as a token that is none.
    return await holder_of(request, text.strip() if len(headers) == 1 and scheme.lower() == "bearer" else "")


async def holder_of(request: web.Request, token: str) -> Actor:
    """Who holds the token. Raises Refused: unauthorized, which is counted; too_many_requests.

    Of an address over its limit one request at a time is looked up, so that guesses hold one connection of the database at
    most; a right token enters all the same, or one bad client behind a proxy would shut everybody out.
    """
    if request.app[FAILURES].peek(request.remote or "") is None:
        actor = await request.app[TOKENS].authenticate(token, request[REQUEST_ID])
    else:
        async with request.app[GUESSES]:
            actor = await request.app[TOKENS].authenticate(token, request[REQUEST_ID])
    if actor is not None:
        return actor
    _count_failure(request)
    raise Refused.because(ProblemCode.UNAUTHORIZED, "the token is unknown, revoked or expired")


async def _actor_by_cookie(request: web.Request) -> Actor:
    """Who signed in. A browser sends the cookie by itself, so the request must come from our own page, or a read from no page."""
    ticket = _ticket(request)
    refuse_other_origins(request, is_origin_needed=request.method not in _SAFE_METHODS)
    actor = await request.app[TOKENS].holder(ticket.token_id, request[REQUEST_ID])
    if actor is None:
        raise Refused.because(ProblemCode.UNAUTHORIZED, "the session's token is revoked or expired; sign in again")
    return dataclasses.replace(actor, expires_at=ticket.expires_at)


def _ticket(request: web.Request) -> Ticket:
    """What the cookie says: the one that is of HTTPS alone if it opens something, else the other.

    Raises Refused: unauthorized, which is counted where all of it is forged.
    """
    sessions, now = request.app[SESSIONS], dt.datetime.now(dt.UTC)
    found: list[Ticket | Worthless] = []
    for name in (sessions.secure_cookie_name, sessions.cookie_name):
        texts = _cookies(request, name)
        if texts:
            found.append(sessions.read_one(texts, now))
            if isinstance(found[-1], Ticket):
                return found[-1]
    if not found:
        raise Refused.because(ProblemCode.UNAUTHORIZED, "send a token: Authorization: Bearer stw_…")
    if all(one is Worthless.FORGED for one in found):
        _count_failure(request)
    raise Refused.because(ProblemCode.UNAUTHORIZED, "the session is not valid or over; sign in again")


def _cookies(request: web.Request, name: str) -> list[str]:
    """Every value that came under the name. aiohttp's own reading would show one of two."""
    pairs = [pair.strip() for header in request.headers.getall(hdrs.COOKIE, []) for pair in header.split(";")]
    return [value for key, equals, value in (pair.partition("=") for pair in pairs) if equals and key.strip() == name]


def _count_failure(request: web.Request) -> None:
    """Once a request, wherever in it the failure is seen."""
    if _COUNTED in request:
        return
    request[_COUNTED] = True
    retry_after_s = request.app[FAILURES].take(request.remote or "")
    if retry_after_s is not None:
        raise _too_many(retry_after_s)


def _too_many(retry_after_s: int) -> Refused:
    words = "too many wrong tokens from this address"
    return Refused.because(ProblemCode.TOO_MANY_REQUESTS, words, retry_after_s=retry_after_s)
