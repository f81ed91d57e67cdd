"""Moves that several sagas share: the same command to many hosts, and what their answers mean together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from manager.agents import offline_fault, silent_fault
from manager.errors import AgentError, AgentFailed, AgentOffline, AgentTimeout, StaleFence
from manager.observations import answered
from manager.sagas.steps import Run, StepFailed, TryAgain
from manager.store import places
from manager.store.pool import Connection
from manager.volume_place import place_name
from schemas.agent_rpc import Attach, Observation, Release, ReleaseReport
from schemas.command import Target
from schemas.faults import Fault, FaultCode
from schemas.kinds import KINDS
from schemas.problems import Problem, ProblemCode

log = logging.getLogger(__name__)

#: Attempts at one host that fails or stays silent before a saga goes on without its word.
MOST_FAILURES = 3

#: Seconds beyond its budget for a saga whose hosts say that they are converging: a lockspace took 21 to 28 s on each of two
#: hosts, one after the other (lab, 2026-11-28). The caller has his 202 by then.
CONVERGE_S = 90.0

Answers = dict[str, Any]


async def to_each(
    run: Run, host_ids: Sequence[str], ask: Callable[[str], Awaitable[Any]], *, verb: str
) -> tuple[Answers, dict[str, AgentError]]:
    """(result a host, error a host); StaleFence is raised, for it concerns the saga. Offline hosts leave the registry's view."""

    async def one(host_id: str) -> Any:
        run.heard.discard(host_id)
        try:
            answer = await ask(host_id)
        except AgentOffline as error:
            run.registry.silence(host_id)
            return error
        except StaleFence as error:
            run.failures[host_id, "fence"] += 1
            if run.failures[host_id, "fence"] > MOST_FAILURES:
                # A host that refuses every fence must not hold up the saga for ever.
                return AgentTimeout(host_id, str(error))
            raise
        except AgentError as error:
            if isinstance(error, AgentFailed):
                run.heard.add(host_id)
                run.failures[host_id, verb] += 1
                run.converging[host_id, verb] += error.fault.code is FaultCode.CONVERGING
            return error
        except Exception:
            # An edge: what nobody thought of, met with one host, must not hold up the saga for all.
            log.exception("command raised", extra={"host_id": host_id, "verb": verb})
            return AgentTimeout(host_id, f"what host {run.registry.host_name(host_id)} made of {verb} is unknown")
        run.heard.add(host_id)
        return answer

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


def judge(run: Run, errors: dict[str, AgentError], *, what: str, asked: int, of: int) -> None:
    """Returns when no error matters (offline hosts converge when they return). asked: how many of how many hosts.

    Raises StepFailed for what will not get better, TryAgain for what is unknown or may.
    """
    failed = {h: e for h, e in errors.items() if isinstance(e, AgentFailed)}
    silent = {h: e for h, e in errors.items() if isinstance(e, AgentTimeout)}
    if failed:
        problem = failure(run, list(failed.values()), what=what, is_first=asked < of, of=of)
        converging = {h for h, e in failed.items() if e.fault.code is FaultCode.CONVERGING}
        if all(
            h in converging or (e.is_retryable and most_failures(run, h) < MOST_FAILURES) for h, e in failed.items()
        ):
            if converging:
                # Something that the host needs is coming: the lockspace of a shared VG takes longer than any command lives.
                run.allow(CONVERGE_S)
            raise TryAgain(problem)
        raise StepFailed(problem)
    if silent:
        names = ", ".join(run.registry.host_name(h) for h in silent)
        faults = tuple(silent_fault(run.registry.host_name(h), str(e)) for h, e in silent.items())
        raise TryAgain(
            Problem(code=ProblemCode.AGENT_TIMEOUT, detail=f"no answer in time from {names}; {what}", faults=faults)
        )


async def claim_place(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    """No other saga makes marks in the place of this backend until this one is over. Raises TryAgain while another one may.

    Also one that has turned back counts, while a host that it had asked has not confirmed that it let go: such a host may be
    writing still. A place is known by its config alone, so a LUN under two targets is two; against that hosts look again.
    """
    place = place_name(run.params["kind"], run.params["config"])
    if place is None:
        return
    holder = await places.claim(
        connection, place, operation_id=run.row.id, backend_id=run.backend_id, first=run.params.get("first")
    )
    if holder is None:
        return
    remedy = "try again"
    if holder.waits_for:
        names = ", ".join(holder.waits_for)
        remedy = f"{names} has not answered and may be writing there still: wait for {names}, or revoke it"
        if holder.is_initialized:
            remedy += "; when it is back, initialize that backend again, or remove it"
    raise TryAgain(
        Problem(
            code=ProblemCode.WRONG_STATE,
            detail=f"the place of {run.params['name']} is being made ready for backend {holder.backend_id}; {remedy}",
        )
    )


def take_blank(errors: dict[str, AgentError]) -> dict[str, Fault]:
    """What the hosts said that reached a device on which there is nothing of ours, taken out of the errors."""
    blank = {
        host_id: error.fault
        for host_id, error in errors.items()
        if isinstance(error, AgentFailed) and error.fault.code is FaultCode.NEEDS_INITIALIZATION
    }
    for host_id in blank:
        del errors[host_id]
    return blank


def most_failures(run: Run, host_id: str) -> int:
    """Of one command to the host in this step. That it was converging is none: what came of that is tried as often as anything."""
    return max((n - run.converging[place] for place, n in run.failures.items() if place[0] == host_id), default=0)


def failure(run: Run, errors: Sequence[AgentFailed], *, what: str, is_first: bool, of: int) -> Problem:
    """The problem that a caller sees when hosts could not use the backend. is_first: some were tried before the others."""
    faults: tuple[Fault, ...] = tuple(error.fault for error in errors)
    is_rejected = all(f.code is FaultCode.AUTH_FAILED for f in faults)
    where = f"{len(faults)} of {of} hosts"
    if is_first:
        names = ", ".join(run.registry.host_name(error.host_id) for error in errors)
        where = f"{names}, tried first of {of} hosts"
    return Problem(
        code=ProblemCode.CREDENTIALS_REJECTED if is_rejected else ProblemCode.PROBE_FAILED,
        detail=f"{run.params['name']} could not be used on {where}; {what}",
        faults=faults,
    )


def no_agent(run: Run, what: str) -> Problem:
    hosts = [run.registry.host_name(host_id) for host_id in run.params["hosts"]]
    return Problem(
        code=ProblemCode.NO_AGENT,
        detail=f"none of the hosts chosen for {run.params['name']} is online; {what}",
        faults=tuple(offline_fault(name) for name in hosts),
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

    for host_id in host_ids:
        run.seen.pop(host_id, None)  # of an earlier attempt

    async def ask(host_id: str) -> Observation:
        command = Attach(**run.head(host_id, "attach"), target=wanted, establish=establish)
        return await run.agents.ask(host_id, command, Observation)

    answers, errors = await to_each(run, host_ids, ask, verb="attach")
    for host_id, answer in answers.items():
        for seen in answered(answer, wanted.backend_id):
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
    # Always the same host, also when the step is repeated: the first may be writing still.
    first = run.params["first"]
    answers, errors = await attach_each(run, [h for h in host_ids if h == first], wanted, establish=True)
    if not answers:
        return answers, errors
    some, wrong = await attach_each(run, [h for h in host_ids if h != first], wanted, establish=False)
    return answers | some, errors | wrong


async def release_each(run: Run, host_ids: Sequence[str], *, is_undo: bool = False) -> dict[str, ReleaseReport]:
    """What each host reported that let go; the rest is left to its next sync. Never raises for a host's sake.

    Where marks are made by one host at a time they are removed so too: by whichever host says first that they are gone, or, in
    the undo of an add, by the one that may have made them. The tombstones' turn is store/backends.wanted_by's to tell.
    """
    if not KINDS[run.params["kind"]].marks_alone_at:
        return await _release(run, host_ids, remove_marker=True)
    if is_undo:
        first, others = [[h for h in host_ids if (h == run.params["first"]) is is_first] for is_first in (True, False)]
        marked = await _release(run, first, remove_marker=True)
        return marked | await _release(run, others, remove_marker=False)
    reports: dict[str, ReleaseReport] = {}
    others = [h for h in host_ids if h not in run.confirmed]
    while online := run.online(others):
        host_id = online[0]
        others.remove(host_id)
        reports |= await _release(run, [host_id], remove_marker=True)
        if host_id not in run.heard or (host_id in reports and reports[host_id].is_unmarked):
            # One that did not answer may be at it still, and nobody else must be.
            break
    return reports | await _release(run, others, remove_marker=False)


async def _release(run: Run, host_ids: Sequence[str], *, remove_marker: bool) -> dict[str, ReleaseReport]:
    """A host that is offline, keeps failing or stays silent keeps a tombstone: it releases when it syncs."""
    reports: dict[str, ReleaseReport] = {}
    waiting = [h for h in host_ids if h not in run.confirmed]
    for _ in range(MOST_FAILURES):
        # Also one that fell silent while it was asked: a frozen host must not be waited for three times.
        waiting = run.online(waiting)
        if not waiting:
            break

        async def ask(host_id: str) -> ReleaseReport:
            command = Release(**run.head(host_id, "release"), remove_marker=remove_marker)
            return await run.agents.ask(host_id, command, ReleaseReport)

        answers, errors = await to_each(run, waiting, ask, verb="release")
        reports |= {host_id: _bounded(report) for host_id, report in answers.items()}
        run.confirmed |= answers.keys()
        waiting = [h for h, error in errors.items() if not isinstance(error, AgentOffline)]
    return reports


def _bounded(report: ReleaseReport) -> ReleaseReport:
    """An agent's words go into an event, which must not outgrow a bus message."""
    left = tuple(sentence.replace("\0", "")[:300] for sentence in report.left[:20])
    return msgspec.structs.replace(report, left=left)


async def undo_by_release(run: Run) -> dict[str, Any]:
    """The undo of everything an add did on hosts; what they left on the storage, with what an earlier undo said of it."""
    reports = await release_each(run, run.params["hosts"], is_undo=True)
    left = {run.registry.host_name(h): list(report.left) for h, report in reports.items() if report.left}
    return {"left": {**run.output.get("left", {}), **left}}


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
    if answers:
        # A host without the older version, over which these are laid, gets the whole from another host at its next sync.
        for host_id in [h for h, error in errors.items() if _lacks_base(error)]:
            del errors[host_id]
    judge(run, errors, what=what, asked=len(host_ids), of=len(host_ids))
    return list(answers)


def _lacks_base(error: AgentError) -> bool:
    return isinstance(error, AgentFailed) and error.fault.code is FaultCode.NEEDS_CREDENTIALS
