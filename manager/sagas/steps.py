"""What a saga is made of: a table of steps, each with its remote effect, its undo, and the SQL of its journal line."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from manager.agents import Agents, command_id
from manager.registry import Registry
from manager.store.operations import OperationRow
from manager.store.pool import Connection
from manager.vault import Vault
from schemas.agent_rpc import Observation
from schemas.credentials import Credentials
from schemas.problems import Problem

ResultT = TypeVar("ResultT")

_LEAST_TTL_MS = 1000


@dataclass
class Run:
    """One saga as this replica drives it. `row` is the journal's latest word; `fence` in it is what commands carry.

    The last eight live in this process alone: after a takeover they are empty, and steps know it.
    seen: observation a host, to be recorded. confirmed: hosts that said they hold nothing of the backend.
    heard: hosts that have answered the last command that they were sent, so nothing of the saga is under way there.
    failures: definite failures of a command in this step, (host id, verb) -> how many. converging: how many of them said no more
    than that the host needs time.
    ends_at: by the event loop's clock when the way forward is over, told by the database's clock alone; has_deadline: whether
    that concerns the present step. is_extended: a host has said that it needs longer.
    """

    row: OperationRow
    agents: Agents
    registry: Registry
    vault: Vault
    fleet_id: str
    credentials: Credentials | None = None
    seen: dict[str, Observation] = field(default_factory=lambda: dict[str, Observation]())
    confirmed: set[str] = field(default_factory=lambda: set[str]())
    heard: set[str] = field(default_factory=lambda: set[str]())
    step_name: str = ""
    phase: str = "do"
    failures: Counter[tuple[str, str]] = field(default_factory=lambda: Counter[tuple[str, str]]())
    converging: Counter[tuple[str, str]] = field(default_factory=lambda: Counter[tuple[str, str]]())
    has_deadline: bool = True
    is_extended: bool = False
    ends_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends_at = time.monotonic() + self.row.left_s

    def begin(self, step_name: str, phase: str, *, has_deadline: bool) -> None:
        """The next commands are of this step; nothing of it has failed yet."""
        self.step_name, self.phase, self.has_deadline = step_name, phase, has_deadline
        self.failures, self.converging = Counter(), Counter()

    @property
    def left_s(self) -> float:
        """Seconds of the saga's budget that are left; below 0 when it is spent."""
        return self.ends_at - time.monotonic()

    def allow(self, more_s: float) -> None:
        """The way forward may take this much longer, once. Not in the journal: after a takeover the budget is the old one."""
        if not self.is_extended:
            self.is_extended = True
            self.ends_at += more_s

    @property
    def params(self) -> dict[str, Any]:
        return self.row.params

    @property
    def output(self) -> dict[str, Any]:
        return self.row.output

    @property
    def actor_name(self) -> str:
        return self.row.actor

    @property
    def request_id(self) -> str:
        return self.row.request_id

    @property
    def backend_id(self) -> str:
        return str(self.row.params["backend_id"])

    def head(self, host_id: str, verb: str) -> dict[str, Any]:
        """The common fields of a command of the current step."""
        attempt = self.failures[host_id, verb]
        ttl_ms = self.agents.ttl_ms
        if self.has_deadline:
            # A host that does not answer must not hold the caller beyond the budget.
            ttl_ms = min(ttl_ms, max(_LEAST_TTL_MS, int(self.left_s * 1000)))
        return {
            "command_id": command_id(self.row.id, self.step_name, self.phase, host_id, verb, attempt),
            "backend_id": self.backend_id,
            "fence": self.row.fence,
            "ttl_ms": ttl_ms,
            "request_id": self.row.request_id,
        }

    def online(self, host_ids: Sequence[str]) -> list[str]:
        return [host_id for host_id in host_ids if self.registry.is_online(host_id)]


type_Do = Callable[[Run], Awaitable[dict[str, Any]]]
type_Undo = Callable[[Run], Awaitable[dict[str, Any] | None]]
type_Sql = Callable[[Connection, Run, dict[str, Any]], Awaitable[dict[str, Any] | None]]


@dataclass(frozen=True)
class Step:
    """do: idempotent remote effect, returns what the journal keeps of it (no secret). undo: takes it back, and accepts
    that it was never done; what it returns is kept too. do_sql, undo_sql: in the transaction of the journal line; their
    answer joins the output, but for `result`, which is the operation's.
    applies: whether this saga has the step at all, by its params.
    """

    name: str
    do: type_Do | None = None
    undo: type_Undo | None = None
    do_sql: type_Sql | None = None
    undo_sql: type_Sql | None = None
    applies: Callable[[dict[str, Any]], bool] = lambda _: True


@dataclass(frozen=True)
class SagaDef:
    """steps[0] has only SQL and runs in the transaction that starts the saga, so a refusal leaves nothing at all.

    pivot: name of the step after whose completion there is no way back: its failures are retried, never undone.
    budget_s: how long the way forward to the pivot may take, retries included.
    on_stuck: SQL in the transaction in which the saga gets stuck.
    """

    kind: str
    version: int
    steps: tuple[Step, ...]
    pivot: str
    budget_s: float = 25.0
    on_stuck: type_Sql | None = None

    @property
    def pivot_index(self) -> int:
        return next(i for i, step in enumerate(self.steps) if step.name == self.pivot)


class StepFailed(Exception):
    """The step failed for good; the saga turns back with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class TryAgain(Exception):
    """The step's outcome is unknown or may change: the engine runs it again, until the saga's budget is spent.

    problem: what the caller is told if it never gets better.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
