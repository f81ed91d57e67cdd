"""What a saga is made of: a table of steps, each with its remote effect, its undo, and the SQL of its journal line."""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from manager.agents import Agents, command_id
from manager.errors import Fenced
from manager.placement import Placement
from manager.registry import Registry
from manager.store import operations as journal
from manager.store.operations import OperationRow
from manager.store.pool import Connection, Pool
from manager.vault import Vault
from schemas.agent_rpc import Observation
from schemas.credentials import Credentials
from schemas.operations import Progress
from schemas.problems import Problem, ProblemCode

ResultT = TypeVar("ResultT")

_LEAST_TTL_MS = 1000
#: Seconds between two journal writes of one operation's progress.
_REPORT_EVERY_S = 1.0
#: Seconds over which the rate of a copy is told.
_PACE_S = 10.0


#: (kind, key, subject, params) of a saga that is started in the name of whoever asked for this one -> its id. Raises Refused.
type_StartChild = Callable[[str, str, str, dict[str, Any]], Awaitable[str]]


class BytePace:
    """How fast bytes came in the last seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def rate(self, now: float, done_bytes: int) -> int | None:
        """Bytes a second; None before two looks."""
        self._points.append((now, done_bytes))
        while len(self._points) > 2 and self._points[1][0] < now - _PACE_S:
            self._points.popleft()
        (then, before), span_s = self._points[0], now - self._points[0][0]
        return max(0, int((done_bytes - before) / span_s)) if span_s > 0 and then < now else None


@dataclass
class Run:
    """One saga as this replica drives it. `row` is the journal's latest word; `fence` in it is what commands carry.

    What follows `credentials` lives in this process alone: after a takeover they are empty, and steps know it.
    seen: observation a host, to be recorded. confirmed: hosts that said they hold nothing of the backend.
    heard: hosts that have answered the last command that they were sent, so nothing of the saga is under way there.
    asked: hosts that were sent a command about a volume. is_inherited: another life of the saga may have asked more.
    failures: definite failures of a command in this step, (host id, verb) -> how many. converging: how many of them said no more
    than that the host needs time. said: why a command of this step about a volume failed, the last time that its host told.
    ends_at: by the event loop's clock when the way forward is over, told by the database's clock alone; has_deadline: whether
    that concerns the present step. is_extended: a host has said that it needs longer.
    """

    row: OperationRow
    pool: Pool
    lanes: "Lanes"
    placement: Placement
    start_child: "type_StartChild"
    agents: Agents
    registry: Registry
    vault: Vault
    fleet_id: str
    credentials: Credentials | None = None
    seen: dict[str, Observation] = field(default_factory=lambda: dict[str, Observation]())
    confirmed: set[str] = field(default_factory=lambda: set[str]())
    heard: set[str] = field(default_factory=lambda: set[str]())
    asked: set[str] = field(default_factory=lambda: set[str]())
    is_inherited: bool = False
    step_name: str = ""
    phase: str = "do"
    failures: Counter[tuple[str, str]] = field(default_factory=lambda: Counter[tuple[str, str]]())
    converging: Counter[tuple[str, str]] = field(default_factory=lambda: Counter[tuple[str, str]]())
    said: dict[tuple[str, str], Problem] = field(default_factory=lambda: dict[tuple[str, str], Problem]())
    has_deadline: bool = True
    is_extended: bool = False
    reported_at: float = 0.0
    lined_up_s: float = 0.0
    pace: "BytePace" = field(default_factory=lambda: BytePace())
    ends_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends_at = time.monotonic() + self.row.left_s

    def begin(self, step_name: str, phase: str, *, has_deadline: bool) -> None:
        """The next commands are of this step; nothing of it has failed yet."""
        self.step_name, self.phase, self.has_deadline = step_name, phase, has_deadline
        self.failures, self.converging, self.said = Counter(), Counter(), {}
        self.pace, self.reported_at = BytePace(), 0.0
        self.lined_up_s = 0.0

    def move_on(self, row: OperationRow, *, has_new_budget: bool) -> None:
        """The journal's latest word."""
        self.row = row
        if has_new_budget:
            self.ends_at = time.monotonic() + row.left_s

    @property
    def left_s(self) -> float:
        """Seconds of the saga's budget that are left; below 0 when it is spent."""
        return self.ends_at - time.monotonic()

    def allow(self, more_s: float) -> None:
        """The way forward may take this much longer, once. Not in the journal: after a takeover the budget is the old one."""
        if not self.is_extended:
            self.is_extended = True
            self.ends_at += more_s

    def stand_still(self, waited_s: float, at_most_s: float) -> None:
        """The budget did not run for so long, for others were before this saga; at_most_s: in all of a step. Not in the journal, either."""
        counted_s = min(waited_s, at_most_s - self.lined_up_s)
        self.lined_up_s += counted_s
        self.ends_at += counted_s

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

    async def report(self, done_bytes: int, total_bytes: int) -> None:
        """How far the step's bytes are. Raises StepFailed when somebody has asked for the operation's end, Fenced when it is another's."""
        now = time.monotonic()
        if now < self.reported_at + _REPORT_EVERY_S and self.reported_at:
            return
        rate, self.reported_at = self.pace.rate(now, done_bytes), now
        eta_s = int((total_bytes - done_bytes) / rate) if rate and total_bytes else None
        progress = Progress(done_bytes=done_bytes, total_bytes=total_bytes, rate_bytes_s=rate, eta_s=eta_s)
        async with self.pool.acquire() as connection:
            is_asked = await journal.note_progress(connection, self.row, progress)
        if is_asked is None:
            raise Fenced
        if is_asked:
            raise StepFailed(cancelled(self))

    async def outbid(self, seen: int) -> None:
        """A host has seen a newer fence; the saga goes on under a higher one. Raises Fenced when it is another's."""
        async with self.pool.acquire() as connection:
            row = await journal.renew_fence(connection, self.row, seen=seen)
        if row is None:
            raise Fenced
        self.row = row

    @property
    def backend_id(self) -> str:
        return str(self.row.params["backend_id"])

    def head(self, host_id: str, verb: str, *, backend_id: str = "") -> dict[str, Any]:
        """The common fields of a command of the current step. backend_id: another one than the saga's."""
        attempt = self.failures[host_id, verb]
        ttl_ms = self.agents.ttl_ms
        if self.has_deadline:
            # A host that does not answer must not hold the caller beyond the budget.
            ttl_ms = min(ttl_ms, max(_LEAST_TTL_MS, int(self.left_s * 1000)))
        return {
            "command_id": command_id(self.row.id, self.step_name, self.phase, host_id, verb, attempt),
            "backend_id": backend_id or self.backend_id,
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
    is_long: it takes as long as its bytes take, and ends by itself when nothing moves; the saga's budget stands still meanwhile.
    """

    name: str
    do: type_Do | None = None
    undo: type_Undo | None = None
    do_sql: type_Sql | None = None
    undo_sql: type_Sql | None = None
    is_long: bool = False
    applies: Callable[[dict[str, Any]], bool] = lambda _: True


@dataclass(frozen=True)
class SagaDef:
    """steps[0] has only SQL and runs in the transaction that starts the saga, so a refusal leaves nothing at all.

    pivot: name of the step after whose completion there is no way back: its failures are retried, never undone.
    budget_s: how long the way forward to the pivot may take, retries included; where a step is long, how long each of the others may.
    on_stuck: SQL in the transaction in which the saga gets stuck.
    """

    kind: str
    version: int
    steps: tuple[Step, ...]
    pivot: str
    budget_s: float = 25.0
    on_stuck: type_Sql | None = None

    @property
    def step_budget_s(self) -> float | None:
        """What each step has for itself, where one of them is long."""
        return self.budget_s if any(step.is_long for step in self.steps) else None

    @property
    def pivot_index(self) -> int:
        return next(i for i, step in enumerate(self.steps) if step.name == self.pivot)


class Lanes:
    """Who waits in this replica for a place that one command at a time may change, first come, first served."""

    def __init__(self) -> None:
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._users: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def turn(self, place: str, patience_s: float) -> AsyncGenerator[bool]:
        """Whether it is the caller's turn, until the block ends; False when the patience was over before."""
        self._users[place] += 1
        lock = self._locks[place]
        is_mine = False
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    is_mine = await lock.acquire()
            yield is_mine
        finally:
            if is_mine:
                lock.release()
            self._users[place] -= 1
            if not self._users[place]:
                del self._users[place], self._locks[place]


def cancelled(run: Run) -> Problem:
    """What an operation ends with whose end somebody has asked for."""
    return Problem(code=ProblemCode.CANCELLED, detail=f"{run.row.kind} was cancelled")


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
