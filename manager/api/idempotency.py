"""A repeated POST with the same Idempotency-Key gets the first one's answer, on any replica, for a day.

The row is made before the work and filled after it. A crash between leaves it open: if the work had
begun a saga, the saga is the answer; if not, the key is free again after a minute.

An attachment's path may have become somebody else's within a day, so a repeated attach is looked at anew.
"""

import dataclasses
import datetime as dt
import hashlib
import hmac
import logging
import re
import time
from dataclasses import dataclass

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from manager import problems
from manager.api.decoding import preferences, read_body
from manager.api.encoding import accepted_response, json_response, problem_response
from manager.api.keys import ACTOR, KEPT_BODY, OPERATIONS, REQUEST_ID
from manager.api.outcomes import DONE_AGAIN, answer_of
from manager.errors import ManagerError, Refused
from manager.store import idempotency as store
from manager.store.pool import DATABASE_FAULTS, Pool
from schemas.fields import InvalidFields
from schemas.operations import Operation, OperationState
from schemas.problems import FieldError, ProblemCode

log = logging.getLogger(__name__)

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT_HEADERS = (hdrs.CONTENT_TYPE, hdrs.LOCATION, hdrs.ETAG, hdrs.RETRY_AFTER, "Preference-Applied")
_PRUNE_EVERY_S = 600.0


@dataclass(frozen=True)
class Attempt:
    """The key is ours; `mark` tells this attempt from a later one that retook it."""

    token_id: str
    key: str
    mark: dt.datetime


@dataclass(frozen=True)
class Kept:
    """The first request's answer, and the saga that it came from, if it came from one."""

    status: int
    headers: dict[str, str]
    body: bytes
    operation_id: str | None = None


@dataclass(frozen=True)
class Begun:
    """The first request's saga; its answer was never written, or not yet."""

    attempt: Attempt
    operation_id: str


class Idempotency:
    """The kept answers. mac_key: the fleet's, the same on all replicas."""

    def __init__(self, pool: Pool, mac_key: bytes) -> None:
        self._pool = pool
        self._mac_key = mac_key
        self._pruned_at = 0.0

    async def claim(
        self, *, token_id: str, key: str, method: str, path: str, query: str, body: bytes
    ) -> Attempt | Kept | Begun:
        """Ours to do, or what became of the first.

        Raises Refused: idempotency_mismatch, or wrong_state while the first is still running.
        """
        mac = hmac.digest(self._mac_key, b"\0".join((query.encode(), body)), hashlib.sha256)
        async with self._pool.acquire() as connection:
            if time.monotonic() > self._pruned_at + _PRUNE_EVERY_S:
                self._pruned_at = time.monotonic()
                await store.prune(connection)
            mark = await store.start(connection, token_id=token_id, key=key, method=method, path=path, body_mac=mac)
            if mark is not None:
                return Attempt(token_id, key, mark)
            row = await store.get(connection, token_id=token_id, key=key)
            if row is not None:
                if (row.method, row.path) != (method, path) or not hmac.compare_digest(row.body_mac, mac):
                    raise Refused.because(
                        ProblemCode.IDEMPOTENCY_MISMATCH,
                        "this Idempotency-Key was used for another address or body; take a new one",
                    )
                if row.status is not None:
                    return Kept(row.status, row.headers or {}, row.body or b"", row.operation_id)
                if row.operation_id is not None:
                    return Begun(Attempt(token_id, key, row.created_at), row.operation_id)
                mark = await store.retake(connection, token_id=token_id, key=key, mark=row.created_at)
                if mark is not None:
                    return Attempt(token_id, key, mark)
        raise Refused.because(
            ProblemCode.WRONG_STATE, "the first request with this Idempotency-Key is still running", retry_after_s=1
        )

    async def keep(self, attempt: Attempt, kept: Kept) -> None:
        async with self._pool.acquire() as connection:
            await store.finish(
                connection,
                token_id=attempt.token_id,
                key=attempt.key,
                mark=attempt.mark,
                status=kept.status,
                headers=kept.headers,
                body=kept.body,
            )

    async def release(self, attempt: Attempt) -> None:
        """The key is free for another try, unless a saga of it goes on or went well."""
        async with self._pool.acquire() as connection:
            await store.release(connection, token_id=attempt.token_id, key=attempt.key, mark=attempt.mark)


IDEMPOTENCY: web.AppKey[Idempotency] = web.AppKey("idempotency", Idempotency)


@web.middleware
async def idempotent(request: web.Request, handler: Handler) -> web.StreamResponse:
    key = request.headers.get("Idempotency-Key")
    is_route = request.match_info.http_exception is None
    if key is None or request.method != hdrs.METH_POST or ACTOR not in request or not is_route:
        return await handler(request)
    if not _KEY.fullmatch(key):
        raise InvalidFields(
            FieldError(pointer="/header/Idempotency-Key", detail="must be 1 to 255 visible ASCII characters")
        )
    actor = request[ACTOR]
    body = await read_body(request)
    service = request.app[IDEMPOTENCY]
    claim = await service.claim(
        token_id=actor.token_id,
        key=key,
        method=request.method,
        path=request.path,
        query=request.query_string,
        body=body,
    )
    match claim:
        case Attempt():
            request[ACTOR] = dataclasses.replace(actor, idempotency=(actor.token_id, key))
            return await _first(request, handler, claim)
        case Kept():
            return _replayed(await _kept(request, handler, claim))
        case Begun():
            answer = await _from_operation(request, handler, await request.app[OPERATIONS].get(claim.operation_id))
            if answer.status >= 500:
                # The reason may pass: this repeat hears of it, the next one is a new try (unless it is stuck).
                await service.release(claim.attempt)
            return _replayed(answer)


async def _first(request: web.Request, handler: Handler, attempt: Attempt) -> web.StreamResponse:
    """The handler's answer, kept unless it says that a repeat may do better. A cancelled one stays open, as after a crash."""
    service = request.app[IDEMPOTENCY]
    try:
        response = await handler(request)
    except Exception as error:
        known = problems.refusal(error)
        if known is None or problems.status_of(known) >= 500 or known.retry_after_s is not None:
            await service.release(attempt)
            raise
        response = problem_response(known, request[REQUEST_ID])
    assert isinstance(response, web.Response), "no POST answers with a stream"
    body = response.body or b""  # 204 has none
    assert isinstance(body, bytes), "every POST answers with a document or nothing"
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    try:
        await service.keep(attempt, Kept(response.status, headers, request.get(KEPT_BODY, body)))
    except DATABASE_FAULTS:
        # What was done is done, and the caller is to know; a repeat finds its operation.
        log.warning("an answer was not kept for a repeat", exc_info=True)
    return response


async def _kept(request: web.Request, handler: Handler, kept: Kept) -> web.StreamResponse:
    if kept.operation_id is not None and kept.status < 300:
        operation = await request.app[OPERATIONS].get(kept.operation_id)
        if operation.kind in DONE_AGAIN:
            return await _from_operation(request, handler, operation)
    return web.Response(status=kept.status, headers=kept.headers, body=kept.body)


async def _from_operation(request: web.Request, handler: Handler, operation: Operation) -> web.StreamResponse:
    """What the first request would have answered, by what became of its saga."""
    where = f"/v1/operations/{operation.id}"
    match operation.state:
        case OperationState.RUNNING | OperationState.UNDOING:
            return accepted_response(operation.id, is_async=preferences(request).is_async)
        case OperationState.SUCCEEDED:
            try:
                answer = await answer_of(request, operation)
            except ManagerError:  # what it made or changed is there no more
                if operation.kind in DONE_AGAIN:
                    raise
                return json_response(operation, headers={hdrs.LOCATION: where})
            return await handler(request) if operation.kind in DONE_AGAIN else answer
        case OperationState.STUCK:
            stuck = Refused.because(
                ProblemCode.SAGA_STUCK,
                "what it had done could not be undone everywhere; see its steps",
                operation=where,
            )
            return problem_response(stuck, request[REQUEST_ID])
        case OperationState.FAILED | OperationState.CANCELLED:
            problem = operation.error or problems.internal().problem
            failed = ManagerError(msgspec.structs.replace(problem, operation=where))
            return problem_response(failed, request[REQUEST_ID])


def _replayed(response: web.StreamResponse) -> web.StreamResponse:
    response.headers["Idempotency-Replayed"] = "true"
    return response
