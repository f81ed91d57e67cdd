"""/v1/session: sign in with a token, see who one is, sign out."""

import datetime as dt

from aiohttp import hdrs, web

from manager.actor import Actor
from manager.api import decoding
from manager.api.auth import actor_of, holder_of
from manager.api.encoding import json_response
from manager.api.keys import ACTOR, SESSIONS
from manager.api.origins import is_https, refuse_other_origins
from manager.errors import Refused
from schemas.fields import Fields, parse_object, text
from schemas.problems import ProblemCode

_MAX_TOKEN_LENGTH = 512


async def open_session(request: web.Request) -> web.Response:
    """The cookie, for the text of a token. Wrong ones are counted (auth.py)."""
    # Else another site could sign its visitors in as somebody of its choice.
    refuse_other_origins(request, is_origin_needed=False)
    body = Fields(parse_object(await decoding.read_body(request)))
    token = body.take("token", text(_MAX_TOKEN_LENGTH), "", is_required=True)
    body.finish()
    actor = request[ACTOR] = await holder_of(request, token.strip())  # there for the line in the log
    now = dt.datetime.now(dt.UTC)
    sessions = request.app[SESSIONS]
    ticket, session = sessions.ticket(actor.token_id, actor.expires_at, now)
    response = _shown(actor, session.expires_at)
    name = sessions.secure_cookie_name if is_https(request) else sessions.cookie_name
    _set_cookie(response, name, ticket, max_age_s=int((session.expires_at - now).total_seconds()))
    return response


async def show_session(request: web.Request) -> web.Response:
    """The same for whoever asks, by cookie or by token; of somebody without either, or with a cookie that is over, nulls.

    Not 401: the page asks this first, and a browser writes each 401 into its console as an error.
    """
    try:
        actor = request[ACTOR] = await actor_of(request)
    except Refused as error:
        if error.problem.code is not ProblemCode.UNAUTHORIZED or hdrs.AUTHORIZATION in request.headers:
            raise
        return json_response({"name": None, "role": None, "expires_at": None})
    return _shown(actor, actor.expires_at)


async def close_session(request: web.Request) -> web.Response:
    """The cookie is gone from the browser, also one that opens nothing any more: a script cannot take it away.

    Under both names: who signed in by HTTPS and by plain HTTP has two.
    """
    refuse_other_origins(request, is_origin_needed=False)
    response = web.Response(status=204)
    sessions = request.app[SESSIONS]
    for name in (sessions.secure_cookie_name, sessions.cookie_name):
        _set_cookie(response, name, "", max_age_s=0)
    return response


def _shown(actor: Actor, expires_at: dt.datetime | None) -> web.Response:
    return json_response({"name": actor.name.removeprefix("token:"), "role": actor.role, "expires_at": expires_at})


def _set_cookie(response: web.Response, name: str, value: str, *, max_age_s: int) -> None:
    is_secure = name.startswith("__Host-")
    response.set_cookie(
        name, value, max_age=max_age_s, path="/", secure=is_secure, httponly=True, samesite="Strict"
    )  # fmt: skip
