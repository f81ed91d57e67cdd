"""/v1/volumes/{ref}/snapshots: list, make, show, delete, and a volume's return to one."""

from aiohttp import web

from manager.api import decoding
from manager.api.conditions import expected_version
from manager.api.encoding import gone_response, page_response, snapshot_response, versioned_response
from manager.api.keys import ACTOR, VOLUME_READS, VOLUMES
from manager.api.paging import cut
from schemas.volume_requests import decode_create_snapshot
from schemas.volumes import VolumeRole


async def list_snapshots(request: web.Request) -> web.Response:
    found = decoding.query(request)
    limit = decoding.limit(found)
    items = await request.app[VOLUME_READS].list_snapshots(
        request.match_info["ref"], after=decoding.cursor(found, "snapshots"), limit=limit + 1
    )
    return page_response(*cut(items, limit, "snapshots"))


async def create_snapshot(request: web.Request) -> web.Response:
    body = decode_create_snapshot(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    ref = request.match_info["ref"]
    answer = await request.app[VOLUMES].create_snapshot(ref, body, request[ACTOR], wanted.wait_s)
    return snapshot_response(answer, status=201, is_async=wanted.is_async)


async def show_snapshot(request: web.Request) -> web.Response:
    ref, snapshot = request.match_info["ref"], request.match_info["snapshot"]
    return snapshot_response(await request.app[VOLUME_READS].get_snapshot(ref, snapshot))


async def delete_snapshot(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    wanted = decoding.preferences(request)
    reads = request.app[VOLUME_READS]
    volume = await reads.row(request.match_info["ref"])
    row = await reads.row(request.match_info["snapshot"], VolumeRole.SNAPSHOT, volume.id)
    if_match = expected_version(request, row.name, row.version)
    answer = await request.app[VOLUMES].delete(row, if_match, request[ACTOR], wanted.wait_s)
    return gone_response(answer, is_async=wanted.is_async)


async def revert_volume(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    wanted = decoding.preferences(request)
    row = await request.app[VOLUME_READS].row(request.match_info["ref"])
    if_match = expected_version(request, row.name, row.version)
    snapshot = request.match_info["snapshot"]
    answer = await request.app[VOLUMES].revert(row, snapshot, if_match, request[ACTOR], wanted.wait_s)
    return versioned_response(answer, "volumes", is_async=wanted.is_async)
