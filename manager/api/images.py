"""/v1/images: list, register, upload, show, edit, delete, migrate."""

import contextlib

from aiohttp import web

from manager.api import decoding
from manager.api.conditions import expected_version
from manager.api.encoding import gone_response, page_response, versioned_response
from manager.api.keys import ACTOR, UPLOADS, VOLUME_READS, VOLUMES
from manager.api.paging import cut
from schemas.problems import FieldError
from schemas.volume_requests import decode_create_image, decode_edit_volume, decode_migrate, decode_upload_image
from schemas.volume_rpc import MAX_CHUNK_BYTES
from schemas.volumes import VolumeRole


async def list_images(request: web.Request) -> web.Response:
    found = decoding.query(request, repeatable=("label",))
    limit = decoding.limit(found)
    items = await request.app[VOLUME_READS].list_images(
        backend=decoding.one(found, "backend"),
        labels=decoding.labels(found),
        after=decoding.cursor(found, "images"),
        limit=limit + 1,
    )
    return page_response(*cut(items, limit, "images"))


async def create_image(request: web.Request) -> web.Response:
    body = decode_create_image(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    answer = await request.app[VOLUMES].create_image(body, request[ACTOR], wanted.wait_s)
    return versioned_response(answer, "images", status=201, is_async=wanted.is_async)


async def upload_image(request: web.Request) -> web.Response:
    """The body is the image; everything else stands in the address, and is looked at before a byte of the body is asked for."""
    noted: list[FieldError] = []
    if "Idempotency-Key" in request.headers:
        words = (
            "must not come with an upload: its body is not kept to be compared. A repeat is refused by the image's name"
        )
        noted.append(FieldError(pointer="/header/Idempotency-Key", detail=words))
    query = {name: request.query.getall(name) for name in request.query}
    body = decode_upload_image(request.match_info["name"], query, noted)
    size_bytes = decoding.announced_bytes(request)
    wanted = decoding.preferences(request)
    async with contextlib.aclosing(decoding.chunks(request, MAX_CHUNK_BYTES)) as content:
        answer = await request.app[UPLOADS].create_image(body, content, size_bytes, request[ACTOR], wanted.wait_s)
    return versioned_response(answer, "images", status=201, is_async=wanted.is_async)


async def show_image(request: web.Request) -> web.Response:
    return versioned_response(await request.app[VOLUME_READS].get_image(request.match_info["ref"]), "images")


async def edit_image(request: web.Request) -> web.Response:
    body = decode_edit_volume(await decoding.read_body(request))
    ref = request.match_info["ref"]
    row = await request.app[VOLUME_READS].row(ref, VolumeRole.IMAGE)
    if_match = expected_version(request, row.name, row.version)
    return versioned_response(await request.app[VOLUMES].edit_image(ref, body, if_match, request[ACTOR]), "images")


async def delete_image(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    wanted = decoding.preferences(request)
    row = await request.app[VOLUME_READS].row(request.match_info["ref"], VolumeRole.IMAGE)
    if_match = expected_version(request, row.name, row.version)
    answer = await request.app[VOLUMES].delete(row, if_match, request[ACTOR], wanted.wait_s)
    return gone_response(answer, is_async=wanted.is_async)


async def migrate_image(request: web.Request) -> web.Response:
    body = decode_migrate(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    reads = request.app[VOLUME_READS]
    row = await reads.row(request.match_info["ref"], VolumeRole.IMAGE)
    if_match = expected_version(request, row.name, row.version)
    pending = await request.app[VOLUMES].migrate(row, body, if_match, request[ACTOR], wanted.wait_s)
    return versioned_response(pending or await reads.get_image(row.id), "images", is_async=wanted.is_async)
