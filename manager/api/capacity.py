"""/v1/capacity: how full every backend was, and when it will be full."""

from aiohttp import web

from manager.api.encoding import json_response
from manager.api.keys import CAPACITIES


async def show_capacity(request: web.Request) -> web.Response:
    return json_response({"items": await request.app[CAPACITIES].list()})
