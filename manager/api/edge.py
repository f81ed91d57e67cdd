"""The outermost layer of a request: its id, its problem document when it fails, its headers, its one log line."""

import logging
import re
import time

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from manager import problems
from manager.api.encoding import problem_response
from manager.api.keys import ACTOR, REQUEST_ID
from manager.errors import ManagerError, Refused
from manager.store.pool import DATABASE_AWAY
from schemas.ids import new_id
from schemas.logs import about
from schemas.problems import ProblemCode

log = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = "Content-Security-Policy"
#: Of what is no page: should a browser show it as one all the same, it may load and run nothing.
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@web.middleware
async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever happens inside, an answer of ours goes out and one line is logged."""
    begun_at = time.monotonic()
    offered = request.headers.get("X-Request-Id", "")
    request_id = request[REQUEST_ID] = offered if _SANE_ID.fullmatch(offered) else new_id()
    status = 0
    with about(request_id=request_id):
        try:
            response = await _answer(request, handler, request_id)
            status = response.status
            return response
        finally:
            resource = request.match_info.route.resource
            # Reads are many and change nothing: they are for who looks closely.
            is_quiet = request.method in ("GET", "HEAD") and 200 <= status < 400
            log.log(
                logging.DEBUG if is_quiet else logging.INFO,
                "request served",
                extra={
                    "method": request.method,
                    "path": resource.canonical if resource is not None else "(unknown)",
                    "status": status,
                    "duration_ms": round((time.monotonic() - begun_at) * 1000, 1),
                    "actor": request[ACTOR].name if ACTOR in request else "",
                    "request_id": request_id,
                },
            )


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Sent with every answer, streams too (signal on_response_prepare)."""
    set_headers(response, request[REQUEST_ID])


def set_headers(response: web.StreamResponse, request_id: str) -> None:
    """On every answer; what the page says of its own caching and rights stays."""
    response.headers["X-Request-Id"] = request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers.setdefault(CONTENT_SECURITY_POLICY, _NO_PAGE)
    response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
    response.headers[hdrs.SERVER] = "stowage"


def http_refusal(error: web.HTTPException) -> ManagerError:
    """aiohttp's own refusals in our words."""
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return Refused.because(ProblemCode.NOT_FOUND, f"{error.method} is not possible here; {allowed} is")
        case web.HTTPNotFound():
            return Refused.because(ProblemCode.NOT_FOUND, "there is nothing at this address")
        case _ if 400 <= error.status < 500:
            return Refused.because(ProblemCode.MALFORMED_BODY, "the request could not be read")
        case _:
            return problems.internal()


def http_problem(error: web.HTTPException, request_id: str) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return problem_response(
            http_refusal(error), request_id, status=405, headers={hdrs.ALLOW: ", ".join(sorted(error.allowed_methods))}
        )
    return problem_response(http_refusal(error), request_id)


async def _answer(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return http_problem(error, request_id)
    except DATABASE_AWAY as error:
        log.error("request failed, the database does not answer", extra={"request_id": request_id}, exc_info=error)
        return problem_response(problems.database_away(), request_id)
    except Exception as error:
        known = problems.refusal(error)
        if known is None:
            log.exception("request failed", extra={"request_id": request_id})
            known = problems.internal()
        elif problems.status_of(known) == 500:
            log.error("request failed", extra={"request_id": request_id}, exc_info=error)
        return problem_response(known, request_id)
