"""Drives sagas: every transition is one journal line under a new fence, and whoever holds the lease writes it.

    running(n) --step done--> running(n+1) … --last step--> succeeded
    running(n) --failed or out of time, at or before the pivot--> undoing(n)      the failed step is undone too
    undoing(n) --undone--> undoing(n-1) … --step 0--> failed
    undoing(n) --undo keeps failing--> stuck                                        keeps its key; a person must look

A replica that dies lets its lease run out and another claims the saga under a higher fence. What the
old one still says is refused: by the journal (0 rows written) and by the agents (stale). Steps are run at
least once; secrets are not in the journal, so a saga found without one that it still needs turns back.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from manager.actor import Actor
from manager.agents import Agents
from manager.errors import Fenced, Refused, StaleFence
from manager.placement import Placement
from manager.registry import Registry
from manager.sagas.steps import Lanes, Run, SagaDef, Step, StepFailed, TryAgain, cancelled, type_Sql
from manager.store import operations as journal
from manager.store.operations import OperationRow, StepLine
from manager.store.pool import DATABASE_AWAY, Pool, transaction
from manager.vault import Vault
from schemas.credentials import Credentials
from schemas.ids import new_id
from schemas.operations import OperationState, StepState
from schemas.problems import Problem, ProblemCode

log = logging.getLogger(__name__)

#: Sagas under way at once in this replica; beyond it a start is refused with 429.
MOST_RUNS = 256
#: Undos of one step that may fail before the saga is stuck.
MOST_UNDO_FAILURES = 8
CLAIM_EVERY_S = 1.0
HEAR_HOSTS_S = 2.0
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MOST_S = 5.0

type_Hook = Callable[[str], None]


class Engine:
    """One a replica. `start` a saga, `wait` for its end; `run` claims and drives what others left."""

    def __init__(
        self,
        pool: Pool,
        definitions: Mapping[str, SagaDef],
        *,
        agents: Agents,
        registry: Registry,
        placement: Placement,
        vault: Vault,
        fleet_id: str,
        owner: str,
        lease_s: float,
        on_line: type_Hook = lambda _: None,
    ) -> None:
        """owner: `<replica>:<incarnation>`. on_line hears "before …" and "after …" of every journal line; tests kill there."""
        self._pool = pool
        self._definitions = definitions
        self._agents = agents
        self._registry = registry
        self._placement = placement
        self._vault = vault
        self._fleet_id = fleet_id
        self.owner = owner
        self._lease_s = lease_s
        self._on_line = on_line
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, Run] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._lanes = Lanes()

    # ---- starting and waiting

    async def start(
        self,
        kind: str,
        *,
        key: str,
        subject: str,
        params: dict[str, Any],
        actor: Actor,
        credentials: Credentials | None = None,
    ) -> str:
        """The id of a saga that is in the journal with its first step done, and on its way.

        Raises Refused: by the first step, by another saga on the key (wrong_state), or by too many (too_many_requests).
        """
        if len(self._tasks) >= MOST_RUNS:
            raise Refused.because(
                ProblemCode.TOO_MANY_REQUESTS, f"{MOST_RUNS} operations are under way; try again", retry_after_s=1
            )
        definition = self._definitions[kind]
        first = definition.steps[0]
        operation_id = new_id()
        self._on_line(f"before {kind} {first.name} done")
        async with transaction(self._pool) as connection:
            row = await journal.insert(
                connection,
                operation_id=operation_id,
                kind=kind,
                version=definition.version,
                key=key,
                subject=subject,
                params=params,
                budget_s=definition.budget_s,
                owner=self.owner,
                lease_s=self._lease_s,
                actor=actor.name,
                request_id=actor.request_id,
                first=StepLine(index=0, name=first.name, state=StepState.DONE),
            )
            if row is None:
                other = await journal.active_on(connection, key)
                raise Refused.because(
                    ProblemCode.WRONG_STATE,
                    f"another operation ({other.kind}) is under way on it" if other else "another operation just ended",
                    operation=f"/v1/operations/{other.id}" if other else None,
                    retry_after_s=1,
                )
            run = self._run_of(row, credentials)
            if first.do_sql and (output := await first.do_sql(connection, run, {})):
                run.row = await journal.keep_output(connection, operation_id, output)
            if actor.idempotency:
                token_id, idempotency_key = actor.idempotency
                await journal.link_idempotency(
                    connection, token_id=token_id, key=idempotency_key, operation_id=operation_id
                )
        self._on_line(f"after {kind} {first.name} done")
        self._spawn(run)
        return operation_id

    async def wait(self, operation_id: str, timeout_s: float) -> OperationRow:
        """The saga's row once it has ended, or as it is when the time is up. Cancelling the wait does not touch the saga."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            while True:
                changed = self._changed.setdefault(operation_id, asyncio.Event())
                changed.clear()
                async with self._pool.acquire() as connection:
                    row = await journal.get_row(connection, operation_id)
                if row is None:
                    raise Refused.because(ProblemCode.NOT_FOUND, f"there is no operation {operation_id}")
                left = deadline - asyncio.get_running_loop().time()
                if row.state not in (OperationState.RUNNING, OperationState.UNDOING) or left <= 0:
                    return row
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, CLAIM_EVERY_S)):
                        await changed.wait()
        finally:
            self._changed.pop(operation_id, None)

    def changed(self, operation_id: str) -> None:
        """The journal says that the operation's state changed; whoever waits for it looks again."""
        event = self._changed.get(operation_id)
        if event:
            event.set()

    # ---- claiming what others left

    async def run(self) -> None:
        """Claim and renew until cancelled; the drivers go on until `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claim_for_ever(), name="saga claim")
            group.create_task(self._renew_for_ever(), name="saga leases")

    async def stop(self) -> None:
        """Drivers are cancelled and their leases free for others at once. `run` has ended, or it would claim them again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(*DATABASE_AWAY):
            async with asyncio.timeout(1.0), self._pool.acquire() as connection:
                await journal.release_lease(connection, owner=self.owner)

    async def _claim_for_ever(self) -> None:
        await self._hear_hosts()
        while True:
            try:
                room = MOST_RUNS - len(self._tasks)
                # Without the bus it would find every host silent and turn back what another replica can finish.
                if room > 0 and self._agents.is_connected:
                    async with self._pool.acquire() as connection:
                        rows = await journal.claim(
                            connection,
                            owner=self.owner,
                            lease_s=self._lease_s,
                            limit=room,
                            known=[(each.kind, each.version) for each in self._definitions.values()],
                        )
                    for row in rows:
                        log.info("saga claimed", extra={"operation_id": row.id, "kind": row.kind, "fence": row.fence})
                        self._spawn(self._run_of(row, None, is_inherited=True))
            except DATABASE_AWAY as error:
                log.warning("sagas could not be claimed", extra={"error": repr(error)})
            except Exception:
                # An edge: one odd row must not end this replica's part in all the others.
                log.exception("sagas could not be claimed")
            await asyncio.sleep(CLAIM_EVERY_S * random.uniform(0.8, 1.2))

    async def _hear_hosts(self) -> None:
        """A manager that just started knows no host yet: sagas claimed now would find nobody online and turn back.

        Hosts answer the first nudge within milliseconds; those that are really away are not waited for long.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_HOSTS_S):
                while not all(self._registry.is_online(host.id) for host in self._registry.live_hosts()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            ids = list(self._tasks)
            if not ids:
                continue
            try:
                async with self._pool.acquire() as connection:
                    ours = await journal.renew_leases(connection, owner=self.owner, ids=ids, lease_s=self._lease_s)
            except DATABASE_AWAY as error:
                log.warning("saga leases could not be renewed", extra={"error": repr(error)})
                continue
            for operation_id in ids:
                if operation_id not in ours and operation_id in self._tasks:
                    self._tasks[operation_id].cancel()

    def _run_of(self, row: OperationRow, credentials: Credentials | None, *, is_inherited: bool = False) -> Run:
        async def start_child(kind: str, key: str, subject: str, params: dict[str, Any]) -> str:
            actor = Actor(name=row.actor, request_id=row.request_id)
            return await self.start(kind, key=key, subject=subject, params=params, actor=actor)

        return Run(
            row=row,
            pool=self._pool,
            lanes=self._lanes,
            placement=self._placement,
            start_child=start_child,
            agents=self._agents,
            registry=self._registry,
            vault=self._vault,
            fleet_id=self._fleet_id,
            credentials=credentials,
            is_inherited=is_inherited,
        )

    def _spawn(self, run: Run) -> None:
        operation_id = run.row.id
        before = self._tasks.get(operation_id)
        if before:
            before.cancel()  # our own lease ran out in a pause; its writes are fenced off already
            run.credentials = run.credentials or self._runs[operation_id].credentials
        task = asyncio.create_task(self._drive(run), name=f"saga {run.row.kind} {operation_id}")
        self._tasks[operation_id] = task
        self._runs[operation_id] = run

        def forget(done: asyncio.Task[None]) -> None:
            if self._tasks.get(operation_id) is done:
                del self._tasks[operation_id]
                del self._runs[operation_id]
            self.changed(operation_id)
            if not done.cancelled() and (error := done.exception()):
                log.error("saga driver died", extra={"operation_id": operation_id}, exc_info=error)

        task.add_done_callback(forget)

    # ---- driving

    async def _drive(self, run: Run) -> None:
        definition = self._definitions[run.row.kind]
        try:
            while run.row.state is OperationState.RUNNING:
                await self._forward(run, definition)
            while run.row.state is OperationState.UNDOING:
                await self._backward(run, definition)
        except Fenced:
            log.info("saga fenced off", extra={"operation_id": run.row.id, "fence": run.row.fence})

    async def _forward(self, run: Run, definition: SagaDef) -> None:
        index = run.row.step
        while not definition.steps[index].applies(run.params):
            index += 1
        step = definition.steps[index]
        is_past_pivot = index > definition.pivot_index
        is_bounded = not is_past_pivot and not step.is_long
        run.begin(step.name, "do", has_deadline=is_bounded)
        attempt, has_outbid = 0, False
        while True:
            try:
                if not is_past_pivot:
                    await self._refuse_unwanted(run, is_again=attempt > 0)
                output = await step.do(run) if step.do else {}
                await self._complete(run, definition, index, step, output)
                return
            except (StepFailed, Refused) as error:
                if is_past_pivot:
                    log.error("step after the pivot failed", extra={"operation_id": run.row.id, "step": step.name})
                else:
                    await self._turn_back(run, index, step, error.problem)
                    return
            except TryAgain as error:
                if is_bounded and run.left_s <= 0:
                    await self._turn_back(run, index, step, error.problem)
                    return
            except StaleFence as stale:
                # Once in any case: a host that was away for longer than the budget has just learnt of higher ones.
                if is_bounded and run.left_s <= 0 and has_outbid:
                    await self._turn_back(run, index, step, _refused_fence(stale))
                    return
                await _outbid(run, stale)
                has_outbid = True
            except DATABASE_AWAY as error:
                log.warning("step waits for the database", extra={"operation_id": run.row.id, "error": repr(error)})
            except (Fenced, asyncio.CancelledError):
                raise
            except Exception:
                log.exception("step failed unexpectedly", extra={"operation_id": run.row.id, "step": step.name})
                if not is_past_pivot:
                    await self._turn_back(run, index, step, _internal(run))
                    return
            attempt += 1
            await _back_off(attempt)

    async def _complete(self, run: Run, definition: SagaDef, index: int, step: Step, output: dict[str, Any]) -> None:
        is_last = not any(later.applies(run.params) for later in definition.steps[index + 1 :])
        await self._write(
            run,
            StepLine(index=index, name=step.name, state=StepState.DONE),
            sql=step.do_sql,
            output=output,
            state=OperationState.SUCCEEDED if is_last else OperationState.RUNNING,
            step=index + 1,
            budget_s=definition.step_budget_s,
        )

    async def _refuse_unwanted(self, run: Run, *, is_again: bool) -> None:
        """Raises StepFailed when somebody has asked for the operation's end. is_again: the journal's last line may be old."""
        is_asked = run.row.is_cancelled
        if is_again and not is_asked:
            async with self._pool.acquire() as connection:
                is_asked = await journal.is_end_asked(connection, run.row.id)
        if is_asked:
            raise StepFailed(cancelled(run))

    async def _turn_back(self, run: Run, index: int, step: Step, problem: Problem) -> None:
        log.info(
            "saga turns back",
            extra={"operation_id": run.row.id, "kind": run.row.kind, "step": step.name, "code": problem.code},
        )
        await self._write_patiently(
            run,
            StepLine(index=index, name=step.name, state=StepState.FAILED, error=problem.detail),
            sql=None,
            state=OperationState.UNDOING,
            step=index,
            error=problem,
        )

    async def _backward(self, run: Run, definition: SagaDef) -> None:
        index = run.row.step
        step = definition.steps[index]
        run.begin(step.name, "undo", has_deadline=False)
        failures = attempt = 0
        while failures < MOST_UNDO_FAILURES:
            try:
                output = await step.undo(run) if step.undo else None
                await self._write(
                    run,
                    StepLine(index=index, name=step.name, state=StepState.UNDONE),
                    sql=step.undo_sql,
                    output=output,
                    state=_end_of(run) if index == 0 else OperationState.UNDOING,
                    step=next((i for i in range(index - 1, 0, -1) if definition.steps[i].applies(run.params)), 0),
                )
                return
            except StaleFence as stale:
                await _outbid(run, stale)
                failures += 1
            except DATABASE_AWAY as error:
                # The way back never gives up for it.
                log.warning("undo waits for the database", extra={"operation_id": run.row.id, "error": repr(error)})
            except (Fenced, asyncio.CancelledError):
                raise
            except Exception:
                log.exception("undo failed", extra={"operation_id": run.row.id, "step": step.name})
                failures += 1
            attempt += 1
            await _back_off(attempt)
        log.error("saga is stuck", extra={"operation_id": run.row.id, "step": step.name})
        await self._write_patiently(
            run,
            StepLine(index=index, name=step.name, state=StepState.FAILED, error="the undo failed; see the log"),
            sql=definition.on_stuck,
            state=OperationState.STUCK,
            step=index,
        )

    # ---- the journal

    async def _write(
        self,
        run: Run,
        line: StepLine,
        *,
        sql: type_Sql | None,
        state: OperationState,
        step: int,
        output: dict[str, Any] | None = None,
        error: Problem | None = None,
        budget_s: float | None = None,
    ) -> None:
        """The line, the step's own SQL and the new fence in one transaction. Raises Fenced when we are no longer in charge."""
        what = f"{run.row.kind} {line.name} {line.state}"
        self._on_line(f"before {what}")
        async with transaction(self._pool) as connection:
            result = None
            gained = dict(output or {})
            if sql:
                # First the fence, then the step's words: a fenced-off replica changes nothing at all.
                if not await journal.is_fence_held(connection, run.row):
                    raise Fenced
                gained |= await sql(connection, run, gained) or {}
                result = gained.pop("result", None)
            row = await journal.write(
                connection,
                run.row,
                line,
                state=state,
                step=step,
                output=gained,
                error=error,
                result=result,
                budget_s=budget_s,
            )
            if row is None:
                raise Fenced
        run.move_on(row, has_new_budget=budget_s is not None)
        self._on_line(f"after {what}")

    async def _write_patiently(
        self,
        run: Run,
        line: StepLine,
        *,
        sql: type_Sql | None,
        state: OperationState,
        step: int,
        error: Problem | None = None,
    ) -> None:
        """`_write`, waiting out a database that is away: the way back never gives up for it."""
        attempt = 0
        while True:
            try:
                await self._write(run, line, sql=sql, state=state, step=step, error=error)
                return
            except DATABASE_AWAY as problem:
                log.warning("saga waits for the database", extra={"operation_id": run.row.id, "error": repr(problem)})
            attempt += 1
            await _back_off(attempt)


def _end_of(run: Run) -> OperationState:
    is_cancelled = run.row.error is not None and run.row.error.code is ProblemCode.CANCELLED
    return OperationState.CANCELLED if is_cancelled else OperationState.FAILED


async def _outbid(run: Run, stale: StaleFence) -> None:
    """If the saga is still ours, it comes back with a higher fence than the agent has seen. Raises Fenced."""
    try:
        await run.outbid(stale.fence)
    except DATABASE_AWAY as error:
        log.warning("fence not renewed", extra={"operation_id": run.row.id, "error": repr(error)})


def _refused_fence(stale: StaleFence) -> Problem:
    return Problem(code=ProblemCode.AGENT_TIMEOUT, detail=f"{stale}, and goes on refusing ours")


def _internal(run: Run) -> Problem:
    return Problem(
        code=ProblemCode.INTERNAL,
        detail=f"something failed inside; the manager's log has it under request {run.row.request_id}",
    )


async def _back_off(attempt: int) -> None:
    """Full jitter, so that replicas and sagas do not march in step."""
    most = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2 ** min(attempt, 10))
    await asyncio.sleep(random.uniform(most / 4, most))
