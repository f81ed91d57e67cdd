"""Answers: JSON by msgspec, pages with their cursor, ETags, 202 for what goes on, problem documents."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from manager import problems
from manager.errors import ManagerError
from manager.operations import Pending
from schemas.backends import Backend
from schemas.problems import ProblemCode
from schemas.volumes import Snapshot


class _Versioned(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def version(self) -> int: ...


def json_response(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


def page_response(items: Sequence[Any], next_cursor: str | None) -> web.Response:
    return json_response({"items": items, "next_cursor": next_cursor})


def backend_response(answer: Backend | Pending, *, status: int = 200, is_async: bool = False) -> web.Response:
    """See versioned_response."""
    return versioned_response(answer, "storage_backends", status=status, is_async=is_async)


def versioned_response(
    answer: _Versioned | Pending, collection: str, *, status: int = 200, is_async: bool = False
) -> web.Response:
    """One of a collection with its ETag (and Location when new); or 202 with the operation that goes on."""
    if isinstance(answer, Pending):
        return accepted_response(answer.operation_id, is_async=is_async)
    headers = {"ETag": f'"{answer.version}"'}
    if status == 201:
        headers["Location"] = f"/v1/{collection}/{answer.id}"
    return json_response(answer, status=status, headers=headers)


def snapshot_response(answer: Snapshot | Pending, *, status: int = 200, is_async: bool = False) -> web.Response:
    """The same of a snapshot, which has no versions: nothing of it is edited."""
    if isinstance(answer, Pending):
        return accepted_response(answer.operation_id, is_async=is_async)
    where = {"Location": f"/v1/volumes/{answer.volume_id}/snapshots/{answer.id}"} if status == 201 else None
    return json_response(answer, status=status, headers=where)


def result_response(answer: object, *, is_async: bool = False) -> web.Response:
    """What a change has to say at its end, or 202."""
    if isinstance(answer, Pending):
        return accepted_response(answer.operation_id, is_async=is_async)
    return json_response(answer)


def gone_response(answer: Pending | None, *, is_async: bool = False) -> web.Response:
    """204 for what is gone, or 202."""
    if isinstance(answer, Pending):
        return accepted_response(answer.operation_id, is_async=is_async)
    return web.Response(status=204)


def accepted_response(operation_id: str, *, is_async: bool) -> web.Response:
    """202; is_async: the caller had asked for it (RFC 7240)."""
    where = f"/v1/operations/{operation_id}"
    headers = {"Location": where}
    if is_async:
        headers["Preference-Applied"] = "respond-async"
    return json_response({"id": operation_id, "operation": where}, status=202, headers=headers)


def problem_response(
    error: ManagerError, request_id: str, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """status: where HTTP knows a finer one than the problem's own (405)."""
    document = problems.document(error.problem, request_id, status or problems.status_of(error))
    sent = dict(headers or {})
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.problem.code is ProblemCode.NO_AGENT:
        retry_after_s = problems.NO_AGENT_RETRY_S
    if retry_after_s is not None:
        sent["Retry-After"] = str(retry_after_s)
    if error.problem.code is ProblemCode.UNAUTHORIZED:
        sent["WWW-Authenticate"] = 'Bearer realm="stowage"'
    response = web.Response(
        body=msgspec.json.encode(document),
        status=document.status,
        content_type="application/problem+json",
        headers=sent,
    )
    if error.problem.code is ProblemCode.MALFORMED_BODY:
        # What is left of such a body is not worth reading (server.py bounds the lingering).
        response.force_close()
    return response
