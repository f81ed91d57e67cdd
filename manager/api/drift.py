"""What becomes of all that lies on one backend: /v1/storage_backends/{ref}/drift and …/evacuate."""

from aiohttp import web

from manager.api import decoding
from manager.api.encoding import gone_response, json_response, result_response, versioned_response
from manager.api.keys import ACTOR, DRIFT, EVACUATIONS, VOLUME_READS
from schemas.volume_requests import decode_evacuate, decode_settle_stray


async def show_drift(request: web.Request) -> web.Response:
    """Hosts read the storage for it, now; nothing is changed."""
    return json_response(await request.app[DRIFT].report(request.match_info["ref"], request[ACTOR]))


async def adopt_stray(request: web.Request) -> web.Response:
    body = decode_settle_stray(await decoding.read_body(request), is_adoption=True)
    volume_id = await request.app[DRIFT].adopt(request.match_info["ref"], body, request[ACTOR])
    return versioned_response(await request.app[VOLUME_READS].get(volume_id), "volumes", status=201)


async def delete_stray(request: web.Request) -> web.Response:
    body = decode_settle_stray(await decoding.read_body(request), is_adoption=False)
    wanted = decoding.preferences(request)
    answer = await request.app[DRIFT].delete(request.match_info["ref"], body, request[ACTOR], wanted.wait_s)
    return gone_response(answer, is_async=wanted.is_async)


async def evacuate_backend(request: web.Request) -> web.Response:
    body = decode_evacuate(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    ref = request.match_info["ref"]
    if body.dry_run:
        return json_response(await request.app[EVACUATIONS].plan(ref, body))
    answer = await request.app[EVACUATIONS].run(ref, body, request[ACTOR], wanted.wait_s)
    return result_response(answer, is_async=wanted.is_async)
