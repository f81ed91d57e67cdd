"""Who asks, and whether it may: bearer tokens, a least role a route, a limit on wrong tokens."""

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from manager.actor import Actor, Role
from manager.api.decoding import refuse_unknown_query
from manager.api.keys import ACCESS, ACTOR, QUERIES, REQUEST_ID, TOKENS
from manager.errors import ManagerError, Refused
from manager.pace import Pace
from schemas.problems import ProblemCode

_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


#: Wrong tokens that one address may show. Only failures are counted and only failures are refused, so that one bad client
#: behind a shared address (a proxy, NAT) shuts nobody out; guessing 256 bits is hopeless at any rate.
FAILURE_BURST = 60
FAILURES_PER_S = 1.0

FAILURES: web.AppKey[Pace] = web.AppKey("failures", Pace)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, if the caller may have it. Without a token an unknown address answers 401 too."""
    needed = request.app[ACCESS].get(request.match_info.route, Role.VIEWER)
    if needed is None:
        _check_query(request)
        try:
            return await handler(request)
        except ManagerError as error:
            if error.problem.code is ProblemCode.UNAUTHORIZED:  # a wrong join token
                _count_failure(request)
            raise
    actor = request[ACTOR] = await _actor(request)
    if _RANK[actor.role] < _RANK[needed]:
        raise Refused.because(ProblemCode.FORBIDDEN, f"this takes the role {needed}; the token's is {actor.role}")
    if not request.path.isprintable():
        # No name of ours has such characters, and the database does not take NUL.
        raise Refused.because(ProblemCode.NOT_FOUND, "there is nothing at this address")
    _check_query(request)
    return await handler(request)


def _check_query(request: web.Request) -> None:
    known = request.app[QUERIES].get(request.match_info.route)
    if known is not None:
        refuse_unknown_query(request, known)


async def _actor(request: web.Request) -> Actor:
    headers = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not headers:
        raise Refused.because(ProblemCode.UNAUTHORIZED, "send a token: Authorization: Bearer stw_…")
    scheme, _, text = headers[0].partition(" ")
    actor = None
    if len(headers) == 1 and scheme.lower() == "bearer":
        actor = await request.app[TOKENS].authenticate(text.strip(), request[REQUEST_ID])
    if actor is None:
        _count_failure(request)
        raise Refused.because(ProblemCode.UNAUTHORIZED, "the token is unknown, revoked or expired")
    return actor


def _count_failure(request: web.Request) -> None:
    retry_after_s = request.app[FAILURES].take(request.remote or "")
    if retry_after_s is not None:
        raise Refused.because(
            ProblemCode.TOO_MANY_REQUESTS, "too many wrong tokens from this address", retry_after_s=retry_after_s
        )
