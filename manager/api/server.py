"""The server below the application: what aiohttp answers by itself becomes a problem document too.

A request that is not HTTP never reaches a middleware; aiohttp answers it in plain text and logs the
offending line, which may be an Authorization header. Both are made ours here (aiohttp 3.14; the tests
of this file say whether a later one still lets us).
"""

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from manager import problems
from manager.api.edge import http_problem, set_headers
from manager.api.encoding import problem_response
from manager.api.keys import REQUEST_ID
from manager.errors import ManagerError, Refused
from schemas.ids import new_id
from schemas.problems import ProblemCode

log = logging.getLogger(__name__)

#: Seconds in which the rest of an unwanted body is read and dropped, so that the client can read our answer
#: before the connection closes under it.
LINGERING_S = 2.0
#: Seconds that requests under way may take to end at a stop.
SHUTDOWN_S = 3.0
#: Seconds until a connection on which no whole request head comes is closed (aiohttp: after an hour); above the 60 s of
#: usual balancers.
IDLE_S = 75.0


class ApiRunner(web.AppRunner):
    """Runs the application of create_api. No access log but our own; bodies are not decompressed."""

    def __init__(self, app: web.Application, *, idle_s: float = IDLE_S) -> None:
        super().__init__(app, shutdown_timeout=SHUTDOWN_S)
        self._idle_s = idle_s

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            loop=asyncio.get_running_loop(),
            access_log=None,
            lingering_time=LINGERING_S,
            keepalive_timeout=self._idle_s,
            auto_decompress=False,
        )


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A problem document and the end of the connection; the request's own text goes into no log."""
        request_id = new_id()
        if status < 500:
            log.info("request was not HTTP", extra={"request_id": request_id, "cause": type(exc).__name__})
            refused: ManagerError = Refused.because(ProblemCode.MALFORMED_BODY, "this is not a request that HTTP knows")
        else:
            log.error("connection failed", extra={"request_id": request_id}, exc_info=exc)
            refused = problems.internal()
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun, another cannot follow")
        response = problem_response(refused, request_id)
        set_headers(response, request_id)  # no signal is sent for a request that no application saw
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp does; a refusal that was raised outside every middleware (417) becomes ours first."""
        if isinstance(resp, web.HTTPException):
            request_id = request[REQUEST_ID] = new_id()
            resp = http_problem(resp, request_id)
        return await super().finish_response(request, resp, start_time)

    def log_debug(self, *args: Any, **kw: Any) -> None:
        """Nothing: aiohttp's debug lines show request lines."""
