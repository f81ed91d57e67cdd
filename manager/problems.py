"""The one table from exceptions to problems, and the document that a problem becomes on the wire."""

import msgspec

from manager.errors import AgentError, AgentFailed, AgentOffline, AgentTimeout, ManagerError, Refused, StaleFence
from schemas.faults import Fault
from schemas.fields import InvalidFields, MalformedBody
from schemas.problems import STATUS, TITLES, FieldError, Problem, ProblemCode

#: Seconds; an agent that restarts is back within one.
NO_AGENT_RETRY_S = 5
DATABASE_RETRY_S = 5


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457 plus our members. `type` is a relative reference, so it names this manager's own pages."""

    type: str
    title: str
    status: int
    code: ProblemCode
    detail: str
    request_id: str
    errors: tuple[FieldError, ...]
    faults: tuple[Fault, ...]
    blockers: tuple[dict[str, str], ...]
    operation: str | None


def refusal(error: Exception) -> ManagerError | None:
    """The problem that the error means to a caller; None: a bug, of which the caller learns only the request id."""
    match error:
        case ManagerError():
            return error
        case MalformedBody():
            return Refused.because(ProblemCode.MALFORMED_BODY, str(error))
        case InvalidFields():
            return Refused.for_fields(error.errors)
        case AgentOffline():
            return Refused.because(ProblemCode.NO_AGENT, "the host is offline", retry_after_s=NO_AGENT_RETRY_S)
        case AgentTimeout():
            return Refused.because(
                ProblemCode.AGENT_TIMEOUT, "the host did not answer in time; whether it acted is unknown"
            )
        case AgentFailed():
            return Refused.because(ProblemCode.PROBE_FAILED, error.fault.detail, faults=(error.fault,))
        case StaleFence():
            return Refused.because(ProblemCode.WRONG_STATE, "another change of the same backend overtook this one")
        case AgentError():
            return Refused.because(ProblemCode.AGENT_TIMEOUT, "what became of it on the host is unknown")
        case _:
            return None


def internal() -> ManagerError:
    return Refused.because(
        ProblemCode.INTERNAL, "something failed inside; the manager's log has it under this request id"
    )


def database_away() -> ManagerError:
    """Another replica, or a later moment, may do better. The commit itself may have been what was cut off."""
    return Refused.because(
        ProblemCode.INTERNAL,
        "the database does not answer now; look whether the change was made before you repeat it",
        retry_after_s=DATABASE_RETRY_S,
    )


def status_of(error: ManagerError) -> int:
    """An internal problem that passes by itself is 503: what we need is away, nothing is broken."""
    if error.problem.code is ProblemCode.INTERNAL and error.retry_after_s is not None:
        return 503
    return STATUS[error.problem.code]


def document(problem: Problem, request_id: str, status: int) -> ProblemDocument:
    return ProblemDocument(
        type=f"/problems/{problem.code}",
        title=TITLES[problem.code],
        status=status,
        code=problem.code,
        detail=problem.detail,
        request_id=request_id,
        errors=problem.errors,
        faults=problem.faults,
        blockers=problem.blockers,
        operation=problem.operation,
    )
