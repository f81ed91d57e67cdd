"""The sagas with one step made to fail after it did its work, or run twice: what every saga must bear."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from manager.sagas.steps import Run, SagaDef, Step, StepFailed
from schemas.problems import Problem, ProblemCode


def failing_at(sagas: Mapping[str, SagaDef], kind: str, name: str) -> dict[str, SagaDef]:
    """The step does its remote work and then fails for good, the first time; what is tried again by itself gets through."""
    has_failed = False

    def broken(step: Step) -> Step:
        async def do(run: Run) -> dict[str, Any]:
            nonlocal has_failed
            output = await step.do(run) if step.do else {}
            if has_failed:
                return output
            has_failed = True
            raise StepFailed(Problem(code=ProblemCode.PROBE_FAILED, detail="made to fail"))

        return dataclasses.replace(step, do=do)

    return _with(sagas, kind, name, broken)


def twice_at(sagas: Mapping[str, SagaDef], kind: str, name: str) -> dict[str, SagaDef]:
    """The step's remote work is done twice."""

    def doubled(step: Step) -> Step:
        first = step.do
        if first is None:
            return step

        async def do(run: Run) -> dict[str, Any]:
            await first(run)
            return await first(run)

        return dataclasses.replace(step, do=do)

    return _with(sagas, kind, name, doubled)


def undone_twice(sagas: Mapping[str, SagaDef], kind: str) -> dict[str, SagaDef]:
    """Every undo of the saga is done twice."""

    def doubled(step: Step) -> Step:
        first = step.undo
        if first is None:
            return step

        async def undo(run: Run) -> None:
            await first(run)
            run.confirmed.clear()  # as after a takeover: nothing is remembered
            await first(run)

        return dataclasses.replace(step, undo=undo)

    broken = dict(sagas)
    for step in sagas[kind].steps:
        broken = _with(broken, kind, step.name, doubled)
    return broken


def _with(sagas: Mapping[str, SagaDef], kind: str, name: str, change: Callable[[Step], Step]) -> dict[str, SagaDef]:
    saga = sagas[kind]
    steps = tuple(change(step) if step.name == name else step for step in saga.steps)
    return {**sagas, kind: dataclasses.replace(saga, steps=steps)}
