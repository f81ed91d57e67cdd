"""/v1/tokens: list, make (shown once), show, revoke."""

import msgspec
from aiohttp import hdrs, web

from manager.api import decoding
from manager.api.encoding import json_response, page_response
from manager.api.keys import ACTOR, KEPT_BODY, TOKENS
from manager.api.paging import cut
from schemas.requests import decode_create_token


async def list_tokens(request: web.Request) -> web.Response:
    found = decoding.query(request)
    limit = decoding.limit(found)
    items = await request.app[TOKENS].page(decoding.cursor(found, "tokens"), limit + 1)
    return page_response(*cut(items, limit, "tokens"))


async def create_token(request: web.Request) -> web.Response:
    body = decode_create_token(await decoding.read_body(request))
    made = await request.app[TOKENS].create(body, request[ACTOR])
    request[KEPT_BODY] = msgspec.json.encode(msgspec.structs.replace(made, token=None))
    return json_response(made, status=201, headers={hdrs.LOCATION: f"/v1/tokens/{made.id}"})


async def show_token(request: web.Request) -> web.Response:
    return json_response(await request.app[TOKENS].get(request.match_info["id"]))


async def revoke_token(request: web.Request) -> web.Response:
    await request.app[TOKENS].revoke(request.match_info["id"], request[ACTOR])
    return web.Response(status=204)
