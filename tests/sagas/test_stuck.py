"""An undo that keeps failing: the saga says so, keeps its key, and goes on when a person has mended the cause."""

import dataclasses

import pytest

from manager.sagas import engine
from manager.sagas.catalog import SAGAS
from manager.sagas.steps import Run
from tests.fleet.broken_sagas import failing_at
from tests.fleet.fleet import Fleet
from tests.sagas.scenarios import SMB, backends


async def test_undo_that_fails_gets_stuck_and_a_retry_frees_it(stowage: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MOST_UNDO_FAILURES", 2)
    is_broken = True
    sagas = failing_at(SAGAS, "backend.add", "attach")
    step = next(step for step in sagas["backend.add"].steps if step.name == "attach")

    async def undo(run: Run) -> None:
        if is_broken:
            raise RuntimeError("the disk of the undo is on fire")
        assert step.undo is not None
        await step.undo(run)

    steps = tuple(dataclasses.replace(s, undo=undo) if s is step else s for s in sagas["backend.add"].steps)
    sagas["backend.add"] = dataclasses.replace(sagas["backend.add"], steps=steps)
    await stowage.manager(definitions=sagas)
    await stowage.agent("hv1")

    answer = await stowage.api("POST", "/v1/storage_backends", SMB)

    assert (answer.status, answer.body["code"]) == (500, "saga_stuck")
    assert "on fire" not in str(answer.body), "what failed inside is for the log"
    assert (await stowage.api("GET", "/v1/storage_backends/office")).body["state"] == "stuck"
    again = await stowage.api("POST", "/v1/storage_backends", SMB)
    assert (again.status, again.body["code"]) == (409, "name_taken")
    operation = answer.body["operation"]
    assert (await stowage.api("GET", operation)).body["state"] == "stuck"

    is_broken = False
    retried = await stowage.api("POST", f"{operation}/retry")
    assert retried.status == 200
    await stowage.settle()
    assert (await stowage.api("GET", operation)).body["state"] == "failed"
    assert await backends(stowage) == {}
    refused = await stowage.api("POST", f"{operation}/retry")
    assert (refused.status, refused.body["code"]) == (409, "wrong_state")
