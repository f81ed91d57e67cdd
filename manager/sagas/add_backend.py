"""Add a backend: reserve the name, deliver the credentials, prove it on every online host, activate. Kind `backend.add`.

    creating --activate--> ready | needs_initialization
    creating --any failure--> gone: hosts let go, name free; what they left is the failed operation's result

1. reserve   row in state creating                                  undo: row gone
2. deliver   credentials to the online hosts (only where given)     undo: hosts let go of everything
3. claim     the place, where marks are made by one at a time; kept until the saga ends and the hosts have let go
4. attach    mount and probe on the online hosts                    undo: hosts let go of everything
5. activate  state, event, default: one transaction                 PIVOT
"""

from typing import Any

from manager.errors import Refused
from manager.observations import failed
from manager.sagas import moves
from manager.sagas.default import make_default
from manager.sagas.steps import Run, SagaDef, Step, StepFailed
from manager.store import backends, events
from manager.store.pool import Connection
from schemas.backends import BackendState, HealthStatus
from schemas.events import EventType
from schemas.faults import FaultCode
from schemas.hosts import HostSelector
from schemas.kinds import KINDS
from schemas.problems import Problem, ProblemCode

_UNDONE = "the add was rolled back"


async def reserve(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    params = run.params
    is_free = await backends.insert_creating(
        connection,
        backend_id=params["backend_id"],
        name=params["name"],
        kind=params["kind"],
        config=params["config"],
        credential_version=params["credential_version"],
        labels=params["labels"],
        selector=HostSelector(**params["selector"]),
    )
    if not is_free:
        raise Refused.because(ProblemCode.NAME_TAKEN, f"a backend named {params['name']} exists already")


async def free_name(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    unconfirmed = [h for h in run.params["hosts"] if h not in run.confirmed]
    await backends.finish_removal(connection, run.backend_id, unconfirmed=unconfirmed, keep_row=False)
    pending = [run.registry.host_name(h) for h in unconfirmed]
    return {"result": {"left": run.output.get("left", {}), "pending_hosts": pending}}


async def show_stuck(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    await backends.mark_stuck(connection, run.backend_id)


async def deliver(run: Run) -> dict[str, Any]:
    online = run.online(run.params["hosts"])
    delivered = await moves.deliver_each(run, online, run.params["credential_version"], base_version=0, what=_UNDONE)
    if not delivered:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    return {"delivered": delivered}


async def attach(run: Run) -> dict[str, Any]:
    params = run.params
    chosen = run.output.get("delivered", params["hosts"])
    online = run.online(chosen)
    wanted = moves.target(run, config=params["config"], generation=1, credential_version=params["credential_version"])
    answers, errors = await moves.establish_each(run, online, wanted, alone=bool(KINDS[params["kind"]].marks_alone_at))
    asked = len(answers) + len(errors)
    can_be_blank = KINDS[params["kind"]].can_initialize and not answers
    blank = moves.take_blank(errors) if can_be_blank else {}
    moves.judge(run, errors, what=_UNDONE, asked=asked, of=len(online))
    if not answers and not blank:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    if answers:
        return {"state": BackendState.READY, "attached": list(answers)}
    if params["is_default"]:
        raise StepFailed(
            Problem(
                code=ProblemCode.WRONG_STATE,
                detail=f"{params['name']} must be initialized before it can be the default; add it without is_default",
            )
        )
    for host_id, what in blank.items():
        run.seen[host_id] = failed(run.backend_id, 1, what)
        run.registry.observe(host_id, [run.seen[host_id]])
    return {"state": BackendState.NEEDS_INITIALIZATION, "attached": []}


async def activate(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    state = BackendState(run.output["state"])
    if run.params["is_default"]:
        await backends.hold_default(connection)
    health: tuple[HealthStatus, str | None, str | None] = (
        HealthStatus.UNREACHABLE,
        FaultCode.NEEDS_INITIALIZATION,
        None,
    )
    if state is BackendState.READY:
        healthy = sum(seen.status is HealthStatus.HEALTHY for seen in run.seen.values())
        is_whole = healthy == len(run.params["hosts"])
        health = (HealthStatus.HEALTHY if is_whole else HealthStatus.DEGRADED, None, None)
    row = await backends.activate(connection, run.backend_id, state=state, health=health)
    if row is None:
        raise StepFailed(Problem(code=ProblemCode.WRONG_STATE, detail=f"{run.params['name']} is gone"))
    for host_id, seen in run.seen.items():
        await backends.record(connection, host_id, [seen])
    await backends.note_holders(connection, row.id, row.credential_version, run.output.get("delivered", []))
    await events.append(
        connection,
        type=EventType.BACKEND_CREATED,
        collection="storage_backends",
        subject_id=row.id,
        actor=run.row.actor,
        request_id=run.row.request_id,
        data={"name": row.name, "kind": row.kind, "before": None, "after": backends.shown(row)},
    )
    if run.params["is_default"]:
        await make_default(connection, run, row, is_new=True)
    return {"result": {"backend_id": row.id}}


ADD_BACKEND = SagaDef(
    kind="backend.add",
    version=2,
    steps=(
        Step("reserve", do_sql=reserve, undo_sql=free_name),
        Step(
            "deliver", do=deliver, undo=moves.undo_by_release, applies=lambda params: params["credential_version"] > 0
        ),
        Step("claim", do_sql=moves.claim_place),
        Step("attach", do=attach, undo=moves.undo_by_release),
        Step("activate", do_sql=activate),
    ),
    pivot="activate",
    on_stuck=show_stuck,
)
