"""/v1/matrix: every backend against every host."""

from aiohttp import web

from manager.api.encoding import json_response
from manager.api.keys import MATRICES


async def show_matrix(request: web.Request) -> web.Response:
    return json_response(await request.app[MATRICES].whole())
