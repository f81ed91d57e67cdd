"""Edit a backend's config or credentials: prove the new beside the old, commit, converge. Kind `backend.edit`.

    ready | draining --commit--> the same, one generation on
    any failure before the commit: nothing changed, staged credentials dropped, every mount as it was

1. begin     the row's version and state allow it
2. stage     new credentials to the online hosts, beside the old ones    undo: dropped
3. try       the new config and credentials on one host, then on all     (a trial leaves nothing behind)
4. commit    row, generation, events: one transaction                    PIVOT
5. converge  online hosts take it over; the proof there drops the old credentials; what they saw is recorded

A host that fails or is away in step 5 converges by its own reconciliation.
"""

import asyncio
import logging
from typing import Any

import asyncpg

from manager.errors import Refused
from manager.registry import Registry
from manager.sagas import moves
from manager.sagas.default import make_default
from manager.sagas.steps import Run, SagaDef, Step, StepFailed
from manager.store import backends, events
from manager.store import volumes as volume_store
from manager.store.backends import BackendRow
from manager.store.pool import Connection
from schemas.agent_rpc import DropCredentials, Observation, Trial
from schemas.backends import BackendState
from schemas.events import EventType
from schemas.hosts import HostSelector
from schemas.kinds import KINDS
from schemas.problems import Problem, ProblemCode

log = logging.getLogger(__name__)

_UNDONE = "nothing was changed"


async def check_narrowing(connection: Connection, registry: Registry, before: BackendRow, after: HostSelector) -> None:
    """Raises Refused when a host would have to let go of a backend of which volumes lie on it, are attached or worked on there.

    The caller holds the row's lock.
    """
    used = await volume_store.hosts_in_use(connection, before.id)
    lost = [h.name for h in registry.chosen(before) if h.id in used and not after.matches(h.name, h.labels)]
    count, volumes = await backends.live_volumes(connection, before.id)
    if lost:
        raise Refused.because(
            ProblemCode.BACKEND_IN_USE,
            f"{before.name} has {count} live volume(s), some of them in use on {', '.join(lost)[:200]}, so it cannot be taken from there",
            blockers=tuple(volumes),
        )


def check_state(row: BackendRow, patch: dict[str, Any]) -> None:
    """Raises Refused when the row's state does not allow the change."""
    if "state" in patch and row.state is BackendState.NEEDS_INITIALIZATION:
        raise Refused.because(ProblemCode.WRONG_STATE, f"{row.name} needs initialization first")
    if patch.get("state") == BackendState.DRAINING and patch.get("is_default"):
        raise Refused.because(ProblemCode.WRONG_STATE, f"{row.name} cannot become the default and be drained at once")
    if patch.get("state") == BackendState.DRAINING and row.is_default:
        raise Refused.because(
            ProblemCode.BACKEND_IS_DEFAULT,
            f"{row.name} is the default backend; make a different backend default before draining it",
        )


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    row = await backends.lock(connection, run.backend_id)
    if row is None:
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {run.params['name']}")
    if row.version != run.params["version"]:
        raise Refused.because(
            ProblemCode.STALE_VERSION,
            f"{row.name} is at version {row.version}, not {run.params['version']}; read it again",
        )
    if row.state not in (BackendState.READY, BackendState.DRAINING, BackendState.NEEDS_INITIALIZATION):
        raise Refused.because(ProblemCode.WRONG_STATE, f"{row.name} is {row.state.value}")


async def stage(run: Run) -> dict[str, Any]:
    online = run.online(run.params["hosts"])
    staged = await moves.deliver_each(
        run,
        online,
        run.params["credential_version"],
        base_version=run.params["base_credential_version"],
        what=_UNDONE,
    )
    if not staged:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    return {"staged": staged}


async def unstage(run: Run) -> None:
    """Best effort a host: a staged version above the wanted one is dropped by the host's next sync too."""

    async def ask(host_id: str) -> None:
        command = DropCredentials(
            **run.head(host_id, "drop_credentials"), from_version=run.params["credential_version"]
        )
        await run.agents.ask(host_id, command, object)

    await moves.to_each(run, run.params["hosts"], ask, verb="drop_credentials")


async def try_it(run: Run) -> dict[str, Any]:
    online = run.online(run.output.get("staged", run.params["hosts"]))
    wanted = _target(run)

    async def ask(host_id: str) -> Observation:
        return await run.agents.ask(host_id, Trial(**run.head(host_id, "trial"), target=wanted), Observation)

    proven: list[str] = []
    # One host first: a wrong password then costs one failed login, not a locked account.
    for some in (online[:1], online[1:]):
        answers, errors = await moves.to_each(run, some, ask, verb="trial")
        if KINDS[run.params["kind"]].can_initialize:
            # A blank LUN was reached and logged in to: that is all a trial can prove before initialization.
            blank = moves.take_blank(errors)
            proven += blank
        moves.judge(run, errors, what=_UNDONE, asked=len(proven) + len(answers) + len(errors), of=len(online))
        proven += answers
    if not proven:
        raise StepFailed(moves.no_agent(run, _UNDONE))
    return {"proven": proven}


async def commit(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    patch = run.params["patch"]
    if patch.get("is_default"):
        await backends.hold_default(connection)
    before = await backends.lock(connection, run.backend_id)
    if before is None:
        raise StepFailed(Problem(code=ProblemCode.NOT_FOUND, detail=f"{run.params['name']} is gone"))
    if run.params["is_version_asked"] and before.version != run.params["version"]:
        # Somebody changed name, labels or default while the hosts were trying.
        raise Refused.because(
            ProblemCode.STALE_VERSION, f"{before.name} was changed meanwhile and is at version {before.version}"
        )
    check_state(before, patch)
    if "selector" in patch:
        await check_narrowing(connection, run.registry, before, HostSelector(**patch["selector"]))
    try:
        after = await backends.change(
            connection,
            before.id,
            name=patch.get("name", before.name),
            config=run.params["config"],
            credential_version=run.params["credential_version"],
            labels=patch.get("labels", before.labels),
            selector=HostSelector(**patch["selector"]) if "selector" in patch else before.selector,
            state=BackendState(patch.get("state", before.state)),
            is_reconfigured=True,
        )
    except asyncpg.UniqueViolationError:
        raise StepFailed(
            Problem(code=ProblemCode.NAME_TAKEN, detail=f"a backend named {patch['name']} exists already")
        ) from None
    await backends.note_holders(connection, after.id, after.credential_version, run.output.get("staged", []))
    if patch.get("is_default"):
        await make_default(connection, run, after)
        after = await backends.lock(connection, before.id) or after
    shown = {"name": after.name, "kind": after.kind, "before": backends.shown(before), "after": backends.shown(after)}
    types: list[EventType] = []
    if run.params["is_rotation"]:
        types.append(EventType.BACKEND_CREDENTIALS_ROTATED)
    if patch or before.config != after.config or not types:
        types.append(EventType.BACKEND_UPDATED)
    for type_ in types:
        await events.append(
            connection,
            type=type_,
            collection="storage_backends",
            subject_id=after.id,
            actor=run.row.actor,
            request_id=run.row.request_id,
            data=shown,
        )
    return {"generation": after.generation, "result": {"backend_id": after.id}}


async def converge(run: Run) -> dict[str, Any]:
    chosen = _still_chosen(run)
    online = run.online([host_id for host_id in run.output.get("proven", []) if host_id in chosen])
    wanted = _target(run)
    _, errors = await moves.attach_each(run, online, wanted, establish=False)
    if "selector" in run.params["patch"]:
        await run.agents.nudge_all()
    else:
        await asyncio.gather(*(run.agents.nudge(host_id) for host_id in errors))
    return {"behind": [run.registry.host_name(h) for h in errors]}


def _still_chosen(run: Run) -> set[str]:
    """Hosts that the backend is for after the edit."""
    selector = run.params["patch"].get("selector")
    live = run.registry.live_hosts()
    return {h.id for h in live if selector is None or HostSelector(**selector).matches(h.name, h.labels)}


async def record(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    for host_id, seen in run.seen.items():
        try:
            async with connection.transaction():
                await backends.record(connection, host_id, [seen])
        except asyncpg.DataError:
            # There is no way back from here, so one host's odd word must not keep the saga; the next probe says it again.
            log.exception("observation not recorded", extra={"host_id": host_id})


def _target(run: Run) -> Any:
    return moves.target(
        run,
        config=run.params["config"],
        generation=run.output.get("generation", run.params["generation"] + 1),
        credential_version=run.params["credential_version"],
    )


EDIT_BACKEND = SagaDef(
    kind="backend.edit",
    version=1,
    steps=(
        Step("begin", do_sql=begin),
        Step("stage", do=stage, undo=unstage, applies=lambda params: params["is_rotation"]),
        Step("try", do=try_it),
        Step("commit", do_sql=commit),
        Step("converge", do=converge, do_sql=record),
    ),
    pivot="commit",
)
