"""RFC 9457 problem documents: one code, one status, one title; the table is the API's whole list."""

import enum

import msgspec

from schemas.faults import Fault


class ProblemCode(enum.StrEnum):
    MALFORMED_BODY = "malformed_body"
    INVALID_FIELD = "invalid_field"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    NAME_TAKEN = "name_taken"
    BACKEND_IN_USE = "backend_in_use"
    BACKEND_IS_DEFAULT = "backend_is_default"
    WRONG_STATE = "wrong_state"
    STALE_VERSION = "stale_version"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    PROBE_FAILED = "probe_failed"
    CREDENTIALS_REJECTED = "credentials_rejected"
    NO_AGENT = "no_agent"
    AGENT_TIMEOUT = "agent_timeout"
    TOO_MANY_REQUESTS = "too_many_requests"
    SAGA_STUCK = "saga_stuck"
    VOLUME_IN_USE = "volume_in_use"
    CANCELLED = "cancelled"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"


STATUS: dict[ProblemCode, int] = {
    ProblemCode.MALFORMED_BODY: 400,
    ProblemCode.INVALID_FIELD: 400,
    ProblemCode.UNAUTHORIZED: 401,
    ProblemCode.FORBIDDEN: 403,
    ProblemCode.NOT_FOUND: 404,
    ProblemCode.NAME_TAKEN: 409,
    ProblemCode.BACKEND_IN_USE: 409,
    ProblemCode.BACKEND_IS_DEFAULT: 409,
    ProblemCode.WRONG_STATE: 409,
    ProblemCode.STALE_VERSION: 412,
    ProblemCode.IDEMPOTENCY_MISMATCH: 409,
    ProblemCode.PROBE_FAILED: 422,
    ProblemCode.CREDENTIALS_REJECTED: 422,
    ProblemCode.NO_AGENT: 503,
    ProblemCode.AGENT_TIMEOUT: 504,
    ProblemCode.TOO_MANY_REQUESTS: 429,
    ProblemCode.SAGA_STUCK: 500,
    ProblemCode.VOLUME_IN_USE: 409,
    ProblemCode.CANCELLED: 409,
    ProblemCode.UNSUPPORTED: 409,
    ProblemCode.INTERNAL: 500,
}

TITLES: dict[ProblemCode, str] = {
    ProblemCode.MALFORMED_BODY: "The request could not be read",
    ProblemCode.INVALID_FIELD: "Some fields are not valid",
    ProblemCode.UNAUTHORIZED: "A valid token is needed",
    ProblemCode.FORBIDDEN: "This is not allowed",
    ProblemCode.NOT_FOUND: "There is no such thing",
    ProblemCode.NAME_TAKEN: "The name is taken",
    ProblemCode.BACKEND_IN_USE: "The backend is in use",
    ProblemCode.BACKEND_IS_DEFAULT: "The default backend cannot be removed",
    ProblemCode.WRONG_STATE: "The state does not allow this now",
    ProblemCode.STALE_VERSION: "It was changed since you read it",
    ProblemCode.IDEMPOTENCY_MISMATCH: "The Idempotency-Key belongs to another request",
    ProblemCode.PROBE_FAILED: "The backend did not answer as it should",
    ProblemCode.CREDENTIALS_REJECTED: "The storage refused the credentials",
    ProblemCode.NO_AGENT: "No host that could do this is online",
    ProblemCode.AGENT_TIMEOUT: "A host did not answer in time; the outcome is unknown",
    ProblemCode.TOO_MANY_REQUESTS: "Too many requests",
    ProblemCode.SAGA_STUCK: "An undo failed; a person must look",
    ProblemCode.VOLUME_IN_USE: "The volume is in use",
    ProblemCode.CANCELLED: "The operation was cancelled",
    ProblemCode.UNSUPPORTED: "The storage cannot do this",
    ProblemCode.INTERNAL: "Something failed inside",
}


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One wrong field: an RFC 6901 pointer into the body and a sentence that never repeats a secret."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error answer, and what a failed operation keeps of its error."""

    code: ProblemCode
    detail: str
    errors: tuple[FieldError, ...] = ()
    faults: tuple[Fault, ...] = ()
    blockers: tuple[dict[str, str], ...] = ()
    operation: str | None = None
