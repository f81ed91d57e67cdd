"""/v1/hosts and /v1/enrol: list, show, join tokens, enrolment, revocation, discovery."""

import msgspec
from aiohttp import web

from manager.api import decoding
from manager.api.encoding import json_response, page_response
from manager.api.keys import ACTOR, HOSTS, KEPT_BODY, REQUEST_ID
from manager.api.paging import page_of
from schemas.hosts import HostState
from schemas.kinds import KINDS
from schemas.requests import decode_create_join_token, decode_discover_storage, decode_enrol


async def list_hosts(request: web.Request) -> web.Response:
    found = decoding.query(request, repeatable=("label",))
    state = decoding.one_of(found, "state", list(HostState))
    kind = decoding.one_of(found, "kind", KINDS)
    labels = decoding.labels(found)
    chosen = [
        host
        for host in request.app[HOSTS].list()
        if state in (None, host.state)
        and (kind is None or kind in host.kinds)
        and labels.items() <= host.labels.items()
    ]
    return page_response(*page_of(chosen, found, "hosts"))


async def show_host(request: web.Request) -> web.Response:
    return json_response(request.app[HOSTS].get(request.match_info["ref"]))


async def create_join_token(request: web.Request) -> web.Response:
    body = decode_create_join_token(await decoding.read_body(request))
    made = await request.app[HOSTS].create_join_token(body.ttl_s, request[ACTOR])
    shown = {"token": made.token, "expires_at": made.expires_at, "command": made.command}
    request[KEPT_BODY] = msgspec.json.encode(shown | {"token": None, "command": None})
    return json_response(shown, status=201)


async def enrol(request: web.Request) -> web.Response:
    """Open to whoever holds a join token; repeated with the same keys it answers the same, so it wants no key."""
    body = decode_enrol(await decoding.read_body(request))
    return json_response(await request.app[HOSTS].enrol(body, request[REQUEST_ID]))


async def revoke_host(request: web.Request) -> web.Response:
    await request.app[HOSTS].revoke(request.match_info["ref"], request[ACTOR])
    return web.Response(status=204)


async def discover(request: web.Request) -> web.Response:
    body = decode_discover_storage(await decoding.read_body(request))
    found = await request.app[HOSTS].discover(request.match_info["ref"], body, request[ACTOR])
    return json_response({"items": found})
