"""Moves that several sagas share: the same command to many hosts, and what their answers mean together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from manager.errors import AgentError, AgentFailed, AgentOffline, AgentTimeout, StaleFence
from manager.observations import believable
from manager.sagas.steps import Run, StepFailed, TryAgain
from manager.store.backends import BackendRow
from schemas.agent_rpc import Attach, Observation, Release, ReleaseReport, Target
from schemas.faults import Fault, FaultCode, fault
from schemas.problems import Problem, ProblemCode

#: Attempts at one host that fails or stays silent before a saga goes on without its word.
MOST_FAILURES = 3

Answers = dict[str, Any]


async def to_each(
    run: Run, host_ids: Sequence[str], ask: Callable[[str], Awaitable[Any]], *, verb: str
) -> tuple[Answers, dict[str, AgentError]]:
    """(result a host, error a host); StaleFence is raised, for it concerns the saga. Offline hosts leave the registry's view."""

    async def one(host_id: str) -> Any:
        try:
            return await ask(host_id)
        except AgentOffline as error:
            run.registry.silence(host_id)
            return error
        except StaleFence:
            raise
        except AgentError as error:
            if isinstance(error, AgentFailed):
                run.failures[host_id, verb] = run.failures.get((host_id, verb), 0) + 1
            return error

    outcomes = await asyncio.gather(*(one(host_id) for host_id in host_ids), return_exceptions=True)
    answers: Answers = {}
    errors: dict[str, AgentError] = {}
    for host_id, outcome in zip(host_ids, outcomes, strict=True):
        if isinstance(outcome, AgentError) and not isinstance(outcome, StaleFence):
            errors[host_id] = outcome
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            answers[host_id] = outcome
    return answers, errors


def judge(run: Run, errors: dict[str, AgentError], *, what: str, of: int) -> None:
    """Returns when no error matters (offline hosts converge when they return).

    Raises StepFailed for what will not get better, TryAgain for what is unknown or may.
    """
    failed = {h: e for h, e in errors.items() if isinstance(e, AgentFailed)}
    silent = {h: e for h, e in errors.items() if isinstance(e, AgentTimeout)}
    if failed:
        problem = failure(run, list(failed.values()), what=what, of=of)
        if all(e.is_retryable and most_failures(run, h) < MOST_FAILURES for h, e in failed.items()):
            raise TryAgain(problem)
        raise StepFailed(problem)
    if silent:
        names = ", ".join(run.registry.host_name(h) for h in silent)
        faults = tuple(
            msgspec.structs.replace(fault(FaultCode.TIMED_OUT, str(e)), host=run.registry.host_name(h))
            for h, e in silent.items()
        )
        raise TryAgain(
            Problem(code=ProblemCode.AGENT_TIMEOUT, detail=f"no answer in time from {names}; {what}", faults=faults)
        )


def take_blank(errors: dict[str, AgentError]) -> list[str]:
    """The hosts that reached a device with nothing on it, taken out of the errors."""
    blank = [
        host_id
        for host_id, error in errors.items()
        if isinstance(error, AgentFailed) and error.fault.code is FaultCode.NEEDS_INITIALIZATION
    ]
    for host_id in blank:
        del errors[host_id]
    return blank


def most_failures(run: Run, host_id: str) -> int:
    return max((n for (host, _), n in run.failures.items() if host == host_id), default=0)


def failure(run: Run, errors: Sequence[AgentFailed], *, what: str, of: int) -> Problem:
    """The problem that a caller sees when hosts could not use the backend."""
    faults: tuple[Fault, ...] = tuple(error.fault for error in errors)
    is_rejected = all(f.code is FaultCode.AUTH_FAILED for f in faults)
    return Problem(
        code=ProblemCode.CREDENTIALS_REJECTED if is_rejected else ProblemCode.PROBE_FAILED,
        detail=f"{run.params['name']} could not be used on {len(faults)} of {of} hosts; {what}",
        faults=faults,
    )


def no_agent(run: Run, what: str) -> Problem:
    return Problem(
        code=ProblemCode.NO_AGENT,
        detail=f"none of the hosts chosen for {run.params['name']} is online; {what}",
    )


def target(run: Run, *, config: dict[str, Any], generation: int, credential_version: int) -> Target:
    return Target(
        backend_id=run.backend_id,
        fleet_id=run.fleet_id,
        kind=run.params["kind"],
        config=config,
        generation=generation,
        credential_version=credential_version,
    )


async def attach_each(
    run: Run, host_ids: Sequence[str], wanted: Target, *, establish: bool
) -> tuple[dict[str, Observation], dict[str, AgentError]]:
    """Attach on each; what they saw is in run.seen and in the registry."""

    async def ask(host_id: str) -> Observation:
        command = Attach(**run.head(host_id, "attach"), target=wanted, establish=establish)
        return await run.agents.ask(host_id, command, Observation)

    answers, errors = await to_each(run, host_ids, ask, verb="attach")
    for host_id, answer in answers.items():
        for seen in believable([answer], sent_at=None):
            run.seen[host_id] = seen
            run.registry.observe(host_id, [seen])
    return answers, errors


async def establish_each(
    run: Run, host_ids: Sequence[str], wanted: Target, *, alone: bool
) -> tuple[dict[str, Observation], dict[str, AgentError]]:
    """`attach_each` for a backend that is new. alone: one host makes our marks and the others must find them; two that
    tag one VG at the same moment would write its metadata over each other's.
    """
    if not alone:
        return await attach_each(run, host_ids, wanted, establish=True)
    answers: dict[str, Observation] = {}
    errors: dict[str, AgentError] = {}
    waiting = list(host_ids)
    while waiting and not answers:
        first, waiting = waiting[:1], waiting[1:]
        some, wrong = await attach_each(run, first, wanted, establish=True)
        answers |= some
        errors |= wrong
        if any(not isinstance(error, AgentOffline) for error in wrong.values()):
            # Whatever it is, the next host would meet it too, or write where this one may be writing still.
            return answers, errors
    some, wrong = await attach_each(run, waiting, wanted, establish=False)
    return answers | some, errors | wrong


async def release_each(run: Run, host_ids: Sequence[str]) -> dict[str, ReleaseReport]:
    """What each host reported that let go; the rest is left to its next sync. Never raises for a host's sake.

    A host that is offline, keeps failing or stays silent keeps a tombstone: it releases when it syncs.
    """
    reports: dict[str, ReleaseReport] = {}
    waiting = [h for h in host_ids if h not in run.confirmed]
    for _ in range(MOST_FAILURES):

        async def ask(host_id: str) -> ReleaseReport:
            command = Release(**run.head(host_id, "release"), remove_marker=True)
            return await run.agents.ask(host_id, command, ReleaseReport)

        answers, errors = await to_each(run, waiting, ask, verb="release")
        reports |= answers
        run.confirmed |= answers.keys()
        waiting = [h for h, error in errors.items() if not isinstance(error, AgentOffline)]
        if not waiting:
            break
    return reports


async def undo_by_release(run: Run) -> None:
    """The undo of everything an add did on hosts."""
    await release_each(run, run.params["hosts"])


async def deliver_each(run: Run, host_ids: Sequence[str], version: int, *, base_version: int, what: str) -> list[str]:
    """The hosts that hold the caller's credentials now. Raises StepFailed when they died with another manager."""
    credentials = run.credentials
    if credentials is None:
        raise StepFailed(
            Problem(
                code=ProblemCode.INTERNAL,
                detail=f"the manager was stopped before it had delivered the credentials, which it never keeps; {what}",
            )
        )

    async def ask(host_id: str) -> None:
        await run.vault.deliver(
            host_id,
            credentials,
            version,
            base_version=base_version,
            nonce_head=run.head(host_id, "credential_nonce"),
            store_head=run.head(host_id, "store_credentials"),
        )

    answers, errors = await to_each(run, host_ids, ask, verb="store_credentials")
    judge(run, errors, what=what, of=len(host_ids))
    return list(answers)


def shown(row: BackendRow) -> dict[str, Any]:
    """The backend as events carry it: no secret is in a row, and no health, which has events of its own."""
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "config": row.config,
        "has_credentials": row.credential_version > 0,
        "is_default": row.is_default,
        "state": row.state.value,
        "hosts": msgspec.to_builtins(row.selector),
        "labels": row.labels,
        "generation": row.generation,
        "version": row.version,
    }
