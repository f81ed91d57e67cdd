"""/v1/volumes: list, make, show, edit, delete, resize, clone, migrate, attach, detach, explain."""

from aiohttp import web

from manager.api import decoding
from manager.api.conditions import expected_version
from manager.api.encoding import gone_response, json_response, page_response, result_response, versioned_response
from manager.api.keys import ACTOR, VOLUME_READS, VOLUMES
from manager.api.paging import cut
from schemas.fields import InvalidFields
from schemas.problems import FieldError
from schemas.volume_requests import (
    decode_attach,
    decode_clone,
    decode_create_volume,
    decode_detach,
    decode_edit_volume,
    decode_migrate,
    decode_resize,
)
from schemas.volume_rpc import AttachMode
from schemas.volumes import VolumeState


async def list_volumes(request: web.Request) -> web.Response:
    found = decoding.query(request, repeatable=("label",))
    limit = decoding.limit(found)
    state = decoding.one_of(found, "state", list(VolumeState))
    items = await request.app[VOLUME_READS].list(
        backend=decoding.one(found, "backend"),
        host=decoding.one(found, "host"),
        state=VolumeState(state) if state is not None else None,
        is_attached=decoding.choice(found, "attached"),
        is_unused=decoding.choice(found, "unused"),
        labels=decoding.labels(found),
        after=decoding.cursor(found, "volumes"),
        limit=limit + 1,
    )
    return page_response(*cut(items, limit, "volumes"))


async def create_volume(request: web.Request) -> web.Response:
    body = decode_create_volume(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    answer = await request.app[VOLUMES].create(body, request[ACTOR], wanted.wait_s)
    return versioned_response(answer, "volumes", status=201, is_async=wanted.is_async)


async def show_volume(request: web.Request) -> web.Response:
    """The ETag is for If-Match alone: attachments come and go without it, so no 304 is sent."""
    return versioned_response(await request.app[VOLUME_READS].get(request.match_info["ref"]), "volumes")


async def edit_volume(request: web.Request) -> web.Response:
    body = decode_edit_volume(await decoding.read_body(request))
    ref = request.match_info["ref"]
    answer = await request.app[VOLUMES].edit(ref, body, await _if_match(request), request[ACTOR])
    return versioned_response(answer, "volumes")


async def delete_volume(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    wanted = decoding.preferences(request)
    row = await request.app[VOLUME_READS].row(request.match_info["ref"])
    if_match = expected_version(request, row.name, row.version)
    answer = await request.app[VOLUMES].delete(row, if_match, request[ACTOR], wanted.wait_s)
    return gone_response(answer, is_async=wanted.is_async)


async def resize_volume(request: web.Request) -> web.Response:
    body = decode_resize(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    ref = request.match_info["ref"]
    if_match = await _if_match(request)
    answer = await request.app[VOLUMES].resize(ref, body, if_match, request[ACTOR], wanted.wait_s)
    return versioned_response(answer, "volumes", is_async=wanted.is_async)


async def clone_volume(request: web.Request) -> web.Response:
    body = decode_clone(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    answer = await request.app[VOLUMES].clone(request.match_info["ref"], body, request[ACTOR], wanted.wait_s)
    return versioned_response(answer, "volumes", status=201, is_async=wanted.is_async)


async def migrate_volume(request: web.Request) -> web.Response:
    body = decode_migrate(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    reads = request.app[VOLUME_READS]
    row = await reads.row(request.match_info["ref"])
    if_match = expected_version(request, row.name, row.version)
    pending = await request.app[VOLUMES].migrate(row, body, if_match, request[ACTOR], wanted.wait_s)
    return versioned_response(pending or await reads.get(row.id), "volumes", is_async=wanted.is_async)


async def attach_volume(request: web.Request) -> web.Response:
    body = decode_attach(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    answer = await request.app[VOLUMES].attach(request.match_info["ref"], body, request[ACTOR], wanted.wait_s)
    return result_response(answer, is_async=wanted.is_async)


async def detach_volume(request: web.Request) -> web.Response:
    body = decode_detach(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    answer = await request.app[VOLUMES].detach(request.match_info["ref"], body, request[ACTOR], wanted.wait_s)
    return result_response(answer, is_async=wanted.is_async)


async def explain_volume(request: web.Request) -> web.Response:
    found = decoding.query(request)
    host = decoding.one(found, "host")
    if host is None:
        raise InvalidFields(FieldError(pointer="/query/host", detail="is required"))
    mode = AttachMode(decoding.one_of(found, "mode", list(AttachMode)) or AttachMode.RW)
    return json_response(await request.app[VOLUME_READS].explain(request.match_info["ref"], host, mode))


async def _if_match(request: web.Request) -> int | None:
    row = await request.app[VOLUME_READS].row(request.match_info["ref"])
    return expected_version(request, row.name, row.version)
