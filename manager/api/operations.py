"""/v1/operations: list, show, cancel, and another try for a stuck one."""

from aiohttp import web

from manager.api import decoding
from manager.api.encoding import json_response, page_response
from manager.api.keys import ACTOR, OPERATIONS
from manager.errors import Refused
from manager.sagas.catalog import SAGAS
from schemas.ids import is_id
from schemas.operations import OperationState
from schemas.problems import ProblemCode


async def list_operations(request: web.Request) -> web.Response:
    """The newest first."""
    found = decoding.query(request)
    items, place = await request.app[OPERATIONS].list(
        subject=decoding.one(found, "subject"),
        state=decoding.one_of(found, "state", list(OperationState)),
        kind=decoding.one_of(found, "kind", sorted(SAGAS)),
        cursor=decoding.cursor(found, "operations"),
        limit=decoding.limit(found),
    )
    return page_response(items, decoding.opaque("operations", place))


async def show_operation(request: web.Request) -> web.Response:
    return json_response(await request.app[OPERATIONS].get(_id(request)))


async def retry_operation(request: web.Request) -> web.Response:
    await decoding.no_body(request)
    return json_response(await request.app[OPERATIONS].retry(_id(request), request[ACTOR]))


async def cancel_operation(request: web.Request) -> web.Response:
    """The operation as it is now: it turns back as soon as it can, and says so by its state."""
    await decoding.no_body(request)
    return json_response(await request.app[OPERATIONS].cancel(_id(request), request[ACTOR]))


def _id(request: web.Request) -> str:
    operation_id = request.match_info["id"]
    if not is_id(operation_id):
        raise Refused.because(ProblemCode.NOT_FOUND, "there is no operation with this id")
    return operation_id
