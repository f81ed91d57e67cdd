"""Every saga, every step: made to fail, run twice, undone twice, and the manager killed at every journal line.

The lists come from the catalog: a new saga is here by existing, and fails here until it has a scenario.
"""

import contextlib

import aiohttp
import pytest

from manager import leftovers
from manager.sagas.catalog import SAGAS
from manager.sagas.steps import SagaDef
from tests.fleet.broken_sagas import failing_at, twice_at, undone_twice
from tests.fleet.fleet import Fleet, until
from tests.sagas.scenarios import (
    ALL,
    SCENARIOS,
    backends,
    lines_when_complete,
    lines_when_failed,
    steps_before_pivot,
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operation had to leave is not left for long."""
    monkeypatch.setattr(leftovers, "LOOK_S", 0.2)
    monkeypatch.setattr(leftovers, "REST_S", 0.2)


_STEPS = [(saga, step) for saga in ALL for step in saga.steps[1:] if step.name not in SCENARIOS[saga.kind].without]
_BREAKABLE = [(saga, name) for saga in ALL for name in steps_before_pivot(saga)]


def _kills(saga: SagaDef, fails: str | None, lines: list[str]) -> list[object]:
    """Those of volumes are three quarters of them all."""
    marks = [] if SCENARIOS[saga.kind].look is backends else [pytest.mark.slow]
    return [pytest.param(saga, fails, line, marks=marks) for line in lines]


_KILLS = [each for saga in ALL for each in _kills(saga, None, lines_when_complete(saga))] + [
    each
    for saga in ALL
    for name in steps_before_pivot(saga)[-1:]
    for each in _kills(saga, name, lines_when_failed(saga, name))
]


def _id(value: object) -> str:
    return value.kind if isinstance(value, SagaDef) else str(getattr(value, "name", value)).replace(" ", "-")


def test_every_saga_has_a_scenario() -> None:
    assert SCENARIOS.keys() == SAGAS.keys()


async def _arranged(stowage: Fleet, saga: SagaDef) -> None:
    """The hosts and what else the scenario needs, made by a manager that is whole."""
    for name in SCENARIOS[saga.kind].hosts:
        await stowage.agent(name)
    await SCENARIOS[saga.kind].arrange(stowage)


@pytest.mark.parametrize(("saga", "name"), _BREAKABLE, ids=_id)
async def test_step_fails_after_its_work_leaves_a_clean_slate(stowage: Fleet, saga: SagaDef, name: str) -> None:
    scenario = SCENARIOS[saga.kind]
    await stowage.manager(host_silent_s=30.0, definitions=failing_at(SAGAS, saga.kind, name))
    await _arranged(stowage, saga)
    before = await scenario.look(stowage)

    answer = await scenario.ask(stowage.api)

    assert (answer.status, answer.body["code"]) == (422, "probe_failed"), answer
    await stowage.settle()
    assert before == scenario.when_undone
    assert await scenario.look(stowage) == scenario.when_failed


@pytest.mark.parametrize(("saga", "step"), _STEPS, ids=_id)
async def test_step_run_twice_ends_the_same(stowage: Fleet, saga: SagaDef, step: object) -> None:
    scenario = SCENARIOS[saga.kind]
    await stowage.manager(host_silent_s=30.0, definitions=twice_at(SAGAS, saga.kind, _id(step)))
    await _arranged(stowage, saga)

    answer = await scenario.ask(stowage.api)

    assert answer.status < 300, answer
    await stowage.settle()
    assert await scenario.look(stowage) == scenario.when_complete


@pytest.mark.parametrize(("saga", "name"), _BREAKABLE, ids=_id)
async def test_undo_run_twice_leaves_a_clean_slate(stowage: Fleet, saga: SagaDef, name: str) -> None:
    scenario = SCENARIOS[saga.kind]
    await stowage.manager(host_silent_s=30.0, definitions=undone_twice(failing_at(SAGAS, saga.kind, name), saga.kind))
    await _arranged(stowage, saga)

    answer = await scenario.ask(stowage.api)

    assert answer.status == 422, answer
    await stowage.settle()
    assert await scenario.look(stowage) == scenario.when_failed


@pytest.mark.parametrize(("saga", "fails", "line"), _KILLS, ids=_id)
async def test_manager_killed_at_a_journal_line_ends_complete_or_gone(
    stowage: Fleet, saga: SagaDef, fails: str | None, line: str
) -> None:
    scenario = SCENARIOS[saga.kind]
    fail_at = (saga.kind, fails) if fails else None
    # Agents share this busy process: silence for a few seconds must not count as death here.
    await stowage.child_manager(kill_at=line, fail_at=fail_at, host_silent_s=30.0)
    await _arranged(stowage, saga)

    answer: object = "none"
    with contextlib.suppress(aiohttp.ClientError):
        answer = await scenario.ask(stowage.api)

    async def is_dead() -> bool:
        return stowage.is_dead("manager-1")

    await until(is_dead, f"the manager to reach {line!r}; the request was answered with {answer}")
    # The next life has no failing step: what was on its way forward may complete, what turned back stays undone.
    await stowage.manager("manager-1", host_silent_s=30.0)
    await stowage.settle()
    found = await scenario.look(stowage)
    assert found in (scenario.when_complete, scenario.when_undone)
    if fails and not line.startswith(f"before {saga.kind} {fails} failed"):
        assert found == scenario.when_failed, "what had turned back must not go forward again"
    await _events_fit(stowage)


async def _events_fit(stowage: Fleet) -> None:
    """Each thing that ever was has one created event, and one deleted event if and only if it is gone."""
    rows = await stowage.sql(
        "SELECT subject_id, array_agg(type) AS types FROM event WHERE type LIKE '%.created' OR type LIKE '%.deleted' GROUP BY 1"
    )
    for row in rows:
        assert sorted(type_.partition(".")[2] for type_ in row["types"]) in (["created"], ["created", "deleted"]), row
    alive = {row["subject_id"] for row in rows if len(row["types"]) == 1}
    there = await stowage.sql(
        "SELECT id FROM backend WHERE deleted_at IS NULL UNION ALL SELECT id FROM volume WHERE deleted_at IS NULL"
    )
    assert alive == {row["id"] for row in there}
