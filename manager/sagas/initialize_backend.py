"""Initialize a backend's device: write our structures on the LUN that was confirmed, attach everywhere. Kind `backend.initialize`.

    needs_initialization --activate--> ready
    any failure: needs_initialization as before (what is on the device by then is ours and is found again)

1. begin       state, confirmation
2. claim       the place, which no other saga writes to until this one has ended
3. initialize  on one host, chosen at the start, bound to the WWID that was inspected; ours already: success
4. attach      on all online hosts; the structures stay if it fails, and the next try finds them
5. activate    state, event                                             PIVOT
"""

from typing import Any

from manager.errors import Refused
from manager.sagas import moves
from manager.sagas.steps import Run, SagaDef, Step, StepFailed
from manager.store import backends, events
from manager.store.pool import Connection
from schemas.agent_rpc import Initialize, Observation
from schemas.backends import BackendState, HealthStatus
from schemas.events import EventType
from schemas.problems import Problem, ProblemCode

_UNDONE = "it still needs initialization"


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    row = await backends.lock(connection, run.backend_id)
    if row is None:
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {run.params['name']}")
    if row.state is not BackendState.NEEDS_INITIALIZATION:
        raise Refused.because(
            ProblemCode.WRONG_STATE, f"{row.name} is {row.state.value}, there is nothing to initialize"
        )


async def initialize(run: Run) -> dict[str, Any]:
    # Never another host, also when the step is repeated: the first may be writing still.
    online = run.online([run.params["first"]])
    if not online:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    wanted = _target(run)

    async def ask(host_id: str) -> Observation:
        command = Initialize(
            **run.head(host_id, "initialize"), target=wanted, wwid=run.params["wwid"], force=run.params["force"]
        )
        return await run.agents.ask(host_id, command, Observation)

    answers, errors = await moves.to_each(run, online, ask, verb="initialize")
    moves.judge(run, errors, what=_UNDONE, asked=1, of=1)
    if not answers:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    return {"initialized_by": run.registry.host_name(online[0])}


async def attach(run: Run) -> dict[str, Any]:
    online = run.online(run.params["hosts"])
    answers, errors = await moves.establish_each(run, online, _target(run), alone=True)
    moves.judge(run, errors, what=_UNDONE, asked=len(answers) + len(errors), of=len(online))
    if not answers:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    return {"attached": list(answers)}


async def activate(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    before = await backends.lock(connection, run.backend_id)
    healthy = sum(seen.status is HealthStatus.HEALTHY for seen in run.seen.values())
    status = HealthStatus.HEALTHY if healthy == len(run.params["hosts"]) else HealthStatus.DEGRADED
    after = await backends.activate(connection, run.backend_id, state=BackendState.READY, health=(status, None, None))
    if before is None or after is None:
        raise StepFailed(Problem(code=ProblemCode.WRONG_STATE, detail=f"{run.params['name']} is gone"))
    for host_id, seen in run.seen.items():
        await backends.record(connection, host_id, [seen])
    await events.append(
        connection,
        type=EventType.BACKEND_INITIALIZED,
        collection="storage_backends",
        subject_id=after.id,
        actor=run.row.actor,
        request_id=run.row.request_id,
        data={
            "name": after.name,
            "kind": after.kind,
            "wwid": run.params["wwid"],
            "before": backends.shown(before),
            "after": backends.shown(after),
        },
    )
    return {"result": {"backend_id": after.id}}


def _target(run: Run) -> Any:
    return moves.target(
        run,
        config=run.params["config"],
        generation=run.params["generation"],
        credential_version=run.params["credential_version"],
    )


INITIALIZE_BACKEND = SagaDef(
    kind="backend.initialize",
    version=2,
    steps=(
        Step("begin", do_sql=begin),
        Step("claim", do_sql=moves.claim_place),
        Step("initialize", do=initialize),
        Step("attach", do=attach),
        Step("activate", do_sql=activate),
    ),
    pivot="activate",
)
