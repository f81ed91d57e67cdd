"""/v1/storage_backends: list, add, show, edit, remove, probe, preflight, inspect, initialize."""

from aiohttp import hdrs, web

from manager.api import decoding
from manager.api.conditions import expected_version
from manager.api.encoding import accepted_response, backend_response, json_response, page_response
from manager.api.keys import ACTOR, BACKENDS, PROBING
from manager.api.paging import page_of
from manager.operations import Pending
from schemas.backends import BackendState, HealthStatus
from schemas.kinds import KINDS
from schemas.requests import decode_add_backend, decode_edit_backend, decode_initialize_backend


async def list_backends(request: web.Request) -> web.Response:
    found = decoding.query(request, repeatable=("label",))
    kind = decoding.one_of(found, "kind", KINDS)
    status = decoding.one_of(found, "status", list(HealthStatus))
    state = decoding.one_of(found, "state", list(BackendState))
    labels = decoding.labels(found)
    chosen = [
        backend
        for backend in request.app[BACKENDS].list()
        if kind in (None, backend.kind)
        and status in (None, backend.health.status)
        and state in (None, backend.state)
        and labels.items() <= backend.labels.items()
    ]
    return page_response(*page_of(chosen, found, "backends"))


async def add_backend(request: web.Request) -> web.Response:
    body = decode_add_backend(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    answer = await request.app[BACKENDS].add(body, request[ACTOR], wanted.wait_s)
    return backend_response(answer, status=201, is_async=wanted.is_async)


async def show_backend(request: web.Request) -> web.Response:
    """The ETag is for If-Match alone: health and capacity turn without it, so a 304 would hide them and none is sent."""
    return backend_response(request.app[BACKENDS].get(request.match_info["ref"]))


async def edit_backend(request: web.Request) -> web.Response:
    body = decode_edit_backend(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    ref = request.match_info["ref"]
    answer = await request.app[BACKENDS].edit(ref, body, _if_match(request), request[ACTOR], wanted.wait_s)
    return backend_response(answer, is_async=wanted.is_async)


async def remove_backend(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    is_dry = decoding.flag(decoding.query(request), "dry_run")
    ref = request.match_info["ref"]
    if is_dry:
        return json_response(await request.app[BACKENDS].plan_removal(ref))
    wanted = decoding.preferences(request)
    answer = await request.app[BACKENDS].remove(ref, _if_match(request), request[ACTOR], wanted.wait_s)
    if isinstance(answer, Pending):
        return accepted_response(answer.operation_id, is_async=wanted.is_async)
    # What was left on the storage, and where: in the operation, or here for who asks for it.
    headers = {"Stowage-Operation": f"/v1/operations/{answer.operation_id}"}
    if wanted.is_representation:
        return json_response(answer.result, headers=headers | {"Preference-Applied": "return=representation"})
    return web.Response(status=204, headers=headers)


async def show_hosts_of_backend(request: web.Request) -> web.Response:
    return json_response({"hosts": request.app[BACKENDS].observations(request.match_info["ref"])})


async def list_probes(request: web.Request) -> web.Response:
    ref, host = request.match_info["ref"], request.match_info["host"]
    return json_response({"items": request.app[BACKENDS].probes(ref, host)})


async def probe_backend(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    return json_response({"hosts": await request.app[PROBING].probe(request.match_info["ref"], request[ACTOR])})


async def probe_all_backends(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    probed = await request.app[PROBING].probe_all(request[ACTOR])
    items = [{"backend": backend.name, "backend_id": backend.id, "hosts": hosts} for backend, hosts in probed]
    return json_response({"items": items})


async def preflight(request: web.Request) -> web.Response:
    body = decode_add_backend(await decoding.read_body(request))
    return json_response({"hosts": await request.app[PROBING].preflight(body, request[ACTOR])})


async def inspect_backend(request: web.Request) -> web.Response:
    return json_response(await request.app[PROBING].inspection(request.match_info["ref"], request[ACTOR]))


async def initialize_backend(request: web.Request) -> web.Response:
    body = decode_initialize_backend(await decoding.read_body(request))
    wanted = decoding.preferences(request)
    ref = request.match_info["ref"]
    answer = await request.app[BACKENDS].initialize(ref, body, request[ACTOR], wanted.wait_s)
    return backend_response(answer, is_async=wanted.is_async)


def _if_match(request: web.Request) -> int | None:
    if hdrs.IF_MATCH not in request.headers:
        return None
    backend = request.app[BACKENDS].get(request.match_info["ref"])
    return expected_version(request, backend.name, backend.version)
