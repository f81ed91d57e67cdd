"""The manager's errors.

ManagerError                     raised to a caller of the API as its problem (problems.py)
├── Refused                      a use case said no; carries the whole problem
└── (nothing else: what is not a ManagerError is a bug and answers `internal`)
AgentError                       what became of a command; sagas and use cases turn it into a problem
├── AgentOffline                 no responders: as far as the bus knows it did not run
├── AgentTimeout                 the outcome is unknown
├── AgentFailed                  it ran and failed; carries the fault
└── StaleFence                   the agent has seen a newer fence: we are no longer in charge
Fenced                           a journal write found a newer fence: stop silently
ConfigError                      before anything listens
"""

from collections.abc import Sequence

from schemas.faults import Fault
from schemas.problems import FieldError, Problem, ProblemCode

#: A body of nothing but unknown fields must not get an answer many times its size.
MOST_FIELD_ERRORS = 100


class ManagerError(Exception):
    """An error with a problem to show. The message is the problem's detail."""

    def __init__(self, problem: Problem, *, retry_after_s: int | None = None) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.retry_after_s = retry_after_s


class Refused(ManagerError):
    """A use case refused, with everything the caller needs to know."""

    @classmethod
    def because(
        cls,
        code: ProblemCode,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        faults: tuple[Fault, ...] = (),
        blockers: tuple[dict[str, str], ...] = (),
        operation: str | None = None,
        retry_after_s: int | None = None,
    ) -> "Refused":
        problem = Problem(
            code=code, detail=detail, errors=errors, faults=faults, blockers=blockers, operation=operation
        )
        return cls(problem, retry_after_s=retry_after_s)

    @classmethod
    def for_fields(cls, errors: Sequence[FieldError]) -> "Refused":
        """invalid_field with every wrong field."""
        detail = "one field is not valid" if len(errors) == 1 else f"{len(errors)} fields are not valid"
        return cls.because(ProblemCode.INVALID_FIELD, detail, errors=tuple(errors[:MOST_FIELD_ERRORS]))


class AgentError(Exception):
    """What became of a command to one host."""

    def __init__(self, host_id: str, message: str) -> None:
        super().__init__(message)
        self.host_id = host_id


class AgentOffline(AgentError):
    """Nobody listens for this host's commands. Treat a late effect as possible all the same (BUS.md 2, bug 7)."""


class AgentTimeout(AgentError):
    """No answer in time: nobody knows whether it ran. Reread or undo, never assume."""


class AgentFailed(AgentError):
    """The agent ran it and says why it failed."""

    def __init__(self, host_id: str, fault: Fault, *, is_retryable: bool = False) -> None:
        super().__init__(host_id, fault.detail)
        self.fault = fault
        self.is_retryable = is_retryable


class StaleFence(AgentError):
    """The agent refused our fence: somebody newer is in charge of the backend, or our database is an older one restored."""

    def __init__(self, host_id: str, fence: int, message: str) -> None:
        super().__init__(host_id, message)
        self.fence = fence


class Fenced(Exception):
    """Another replica has taken the saga over; whoever sees this stops without a word."""


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, key and remedy."""
