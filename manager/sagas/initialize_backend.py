"""Initialize a backend's device: write our structures on the LUN that was confirmed, attach everywhere. Kind `backend.initialize`.

    needs_initialization --activate--> ready
    any failure: needs_initialization as before (what is on the device by then is ours and is found again)

1. begin       state, confirmation; no other host owes its word on an earlier try
2. claim       the place, which no other saga writes to until this one has ended, nor after it while its host has not answered
3. look        on all other hosts that were online at the start: the LUN is the same one, and nothing there uses it
4. initialize  on one host, chosen at the start, bound to the WWID that was inspected; ours already: success
5. attach      on all online hosts; the structures stay if it fails, and the next try finds them
6. activate    state, event                                             PIVOT
"""

from typing import Any

from manager.agents import fit_fault, offline_fault
from manager.errors import Refused
from manager.sagas import moves
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import backends, events, places
from manager.store.pool import Connection
from schemas.agent_rpc import Initialize, Inspect, Inspection, Observation
from schemas.backends import BackendState, HealthStatus
from schemas.events import EventType
from schemas.faults import Fault, FaultCode, fault
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
    owing = await places.owing(connection, run.backend_id)
    if owing is not None and owing.host_id != run.params["first"]:
        raise Refused.because(
            ProblemCode.WRONG_STATE,
            f"{owing.host_name} has not answered an earlier initialization of {row.name} and may be at work on it still:"
            f" wait for {owing.host_name}, or revoke it",
        )


async def note_answer(_: Connection, run: Run, __: dict[str, Any]) -> dict[str, Any]:
    """The host's word makes the place free; after a takeover it is not known, and the place is kept."""
    return {places.ANSWERED: True} if run.params["first"] in run.heard else {}


async def look(run: Run) -> dict[str, Any]:
    first, others = run.params["first"], run.params["others"]
    away = [h for h in (first, *others) if h not in run.online((first, *others))]
    if first in away:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    wanted = _target(run)

    async def ask(host_id: str) -> Inspection:
        return await run.agents.ask(host_id, Inspect(**run.head(host_id, "inspect"), target=wanted), Inspection)

    answers, errors = await moves.to_each(run, [h for h in others if h not in away], ask, verb="inspect")
    moves.judge(run, errors, what=_UNDONE, asked=len(others), of=len(others))
    if faults := tuple(filter(None, (_objection(run, host_id, found) for host_id, found in answers.items()))):
        names = ", ".join(str(each.host) for each in faults)
        detail = f"{run.params['name']} must not be initialized, by what was found on {names}; {_UNDONE}"
        raise StepFailed(Problem(code=ProblemCode.PROBE_FAILED, detail=detail, faults=faults))
    if unseen := [run.registry.host_name(h) for h in others if h not in answers]:
        # Asked for, and gone or silent since: nobody has said that nothing uses the LUN there.
        detail = f"{', '.join(unseen)} went offline before it could be asked whether it uses the LUN; {_UNDONE}"
        raise TryAgain(Problem(code=ProblemCode.NO_AGENT, detail=detail, faults=tuple(map(offline_fault, unseen))))
    return {}


def _objection(run: Run, host_id: str, found: Inspection) -> Fault | None:
    """Why, by what this host sees, the LUN must not be written to, with force or without."""
    host, wwid = run.registry.host_name(host_id), run.params["wwid"]
    if found.wwid != wwid:
        what = fault(FaultCode.WRONG_DEVICE, f"on {host} the LUN is {found.wwid}, but {wwid} was confirmed")
    elif found.is_used is None:
        # What was not looked at must not pass for unused.
        what = fault(FaultCode.KIND_UNSUPPORTED, f"the agent on {host} cannot tell whether the LUN is in use there")
    elif found.is_used:
        on_it = f", which finds volume group {found.foreign_vg} on it" if found.foreign_vg else ""
        what = fault(FaultCode.IN_USE, f"the LUN is in use on {host}{on_it}")
    else:
        return None
    return fit_fault(what, host)


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
    version=3,
    steps=(
        Step("begin", do_sql=begin, undo_sql=note_answer),
        Step("claim", do_sql=moves.claim_place),
        Step("look", do=look),
        Step("initialize", do=initialize),
        Step("attach", do=attach),
        Step("activate", do_sql=activate),
    ),
    pivot="activate",
    # A host logs in twice, one time after the other; the caller gets a 202 after his 30 s.
    budget_s=40.0,
)
