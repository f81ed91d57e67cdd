"""What may be cancelled, by the real journal: an operation on its way forward, up to its pivot."""

from typing import cast

import pytest

from manager.actor import SYSTEM
from manager.errors import ManagerError
from manager.operations import Operations
from manager.sagas.catalog import SAGAS
from manager.sagas.engine import Engine
from manager.store.pool import Pool
from schemas.ids import new_id
from schemas.problems import ProblemCode

_PIVOT = SAGAS["volume.create"].pivot_index


@pytest.fixture
def operations(pool: Pool) -> Operations:
    return Operations(pool, cast("Engine", None))


async def _insert(pool: Pool, state: str, step: int, *, kind: str = "volume.create", is_cancelled: bool = False) -> str:
    operation_id = new_id()
    await pool.execute(
        "INSERT INTO operation (id, kind, version, key, subject, params, state, step, deadline, fence, actor, request_id,"
        " is_cancelled) VALUES ($1, $2, 1, $3, 'volumes/v', '{}', $4, $5, now(), 1, 'a', 'r', $6)",
        operation_id, kind, operation_id, state, step, is_cancelled,
    )  # fmt: skip
    return operation_id


@pytest.mark.parametrize("step", [1, _PIVOT])
async def test_cancel_of_a_running_operation_is_noted_and_may_be_repeated(
    pool: Pool, operations: Operations, step: int
) -> None:
    operation_id = await _insert(pool, "running", step)
    for _ in range(2):
        operation = await operations.cancel(operation_id, SYSTEM)
        assert (operation.id, operation.state, operation.is_cancelled) == (operation_id, "running", True)


@pytest.mark.parametrize("state", ["undoing", "cancelled"])
async def test_cancel_of_what_has_turned_back_for_it_is_no_error(
    pool: Pool, operations: Operations, state: str
) -> None:
    operation_id = await _insert(pool, state, 0, is_cancelled=True)
    assert (await operations.cancel(operation_id, SYSTEM)).state == state


@pytest.mark.parametrize(
    ("state", "step", "kind", "is_cancelled", "words"),
    [
        ("running", _PIVOT + 1, "volume.create", False, "past the point"),
        ("running", 1, "volume.of_a_newer_manager", False, "past the point"),
        ("undoing", 1, "volume.create", False, "undoing"),
        ("succeeded", _PIVOT + 1, "volume.create", False, "succeeded"),
        ("succeeded", _PIVOT + 1, "volume.create", True, "succeeded"),
        ("failed", 0, "volume.create", False, "failed"),
        ("stuck", 1, "volume.create", False, "stuck"),
    ],
)
async def test_cancel_that_comes_too_late_is_refused_in_words(
    pool: Pool, operations: Operations, state: str, step: int, kind: str, is_cancelled: bool, words: str
) -> None:
    operation_id = await _insert(pool, state, step, kind=kind, is_cancelled=is_cancelled)
    with pytest.raises(ManagerError, match=words) as refused:
        await operations.cancel(operation_id, SYSTEM)
    assert refused.value.problem.code is ProblemCode.WRONG_STATE
    now = await pool.fetchval("SELECT is_cancelled FROM operation WHERE id = $1", operation_id)
    assert now is is_cancelled


async def test_cancel_of_an_unknown_operation_is_not_found(operations: Operations) -> None:
    with pytest.raises(ManagerError) as refused:
        await operations.cancel(new_id(), SYSTEM)
    assert refused.value.problem.code is ProblemCode.NOT_FOUND
