"""What a POST would have answered, from the operation that it began and that has succeeded since; by the operation's kind."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from aiohttp import web

from manager.api.encoding import gone_response, json_response, snapshot_response, versioned_response
from manager.api.keys import BACKENDS, VOLUME_READS
from manager.errors import Refused
from schemas.operations import Operation
from schemas.problems import ProblemCode
from schemas.volumes import AttachAnswer

_Render: TypeAlias = Callable[[web.Request, Operation], Awaitable[web.Response]]


async def answer_of(request: web.Request, operation: Operation) -> web.Response:
    """Raises ManagerError when what it made or changed is there no more."""
    return await RENDERED_AS.get(operation.kind, _operation)(request, operation)


async def _new(request: web.Request, operation: Operation) -> web.Response:
    return await _subject(request, operation, status=201)


async def _changed(request: web.Request, operation: Operation) -> web.Response:
    return await _subject(request, operation, status=200)


async def _subject(request: web.Request, operation: Operation, *, status: int) -> web.Response:
    """What the operation was about, as it is now."""
    collection, _, id = operation.subject.partition("/")
    reads = request.app[VOLUME_READS]
    match collection:
        case "storage_backends":
            return versioned_response(request.app[BACKENDS].get(id), collection, status=status)
        case "volumes":
            return versioned_response(await reads.get(id), collection, status=status)
        case "images":
            return versioned_response(await reads.get_image(id), collection, status=status)
        case "snapshots":
            return snapshot_response(await reads.get_snapshot(request.match_info["ref"], id), status=status)
        case _:
            return await _operation(request, operation)


async def _attached(request: web.Request, operation: Operation) -> web.Response:
    """Not of one that has been closed since: its path is nobody's to use any more."""
    result = operation.result or {}
    volume = await request.app[VOLUME_READS].get(operation.subject.partition("/")[2])
    held = next((each for each in volume.attachments if each.epoch == result["epoch"]), None)
    if held is None:
        raise Refused.because(
            ProblemCode.WRONG_STATE,
            f"{volume.name} was detached since, so the path of that attachment is nobody's to use:"
            " attach it with a new Idempotency-Key",
        )
    return json_response(AttachAnswer(host=held.host, mode=held.mode, **result))


async def _result(request: web.Request, operation: Operation) -> web.Response:
    return json_response(operation.result or {})


async def _gone(request: web.Request, operation: Operation) -> web.Response:
    return gone_response(None)


async def _operation(request: web.Request, operation: Operation) -> web.Response:
    """Of a kind that this table does not know."""
    return json_response(operation, headers={"Location": f"/v1/operations/{operation.id}"})


#: Kinds whose answer is right for as long as what they made is: a repeat is done once more, for it may be old.
DONE_AGAIN = frozenset(("volume.attach",))

#: Every kind that a POST begins.
RENDERED_AS: Mapping[str, _Render] = {
    "backend.add": _new,
    "backend.initialize": _changed,
    "backend.evacuate": _result,
    "volume.create": _new,
    "volume.resize": _changed,
    "volume.migrate": _changed,
    "volume.revert": _changed,
    "volume.attach": _attached,
    "volume.detach": _result,
    "volume.delete": _gone,
}
