"""An agent that is enrolled and answers wrongly, late or not at all: the caller is told, and nothing is left behind."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from manager.sagas.catalog import SAGAS
from schemas.bus import Message
from tests.fleet.fleet import Fleet, until
from tests.fleet.impostor import Answer, in_the_place_of, silence
from tests.sagas.scenarios import SMB, backends

pytestmark = pytest.mark.slow

#: The sagas with a budget that a test can wait for.
_QUICK = {kind: dataclasses.replace(saga, budget_s=1.0) for kind, saga in SAGAS.items()}


async def _garbage(_: Message) -> bytes:
    return b"\xff{"


async def _wrong_shape(_: Message) -> bytes:
    return b'{"outcome": "ok", "result": [1, 2]}'


async def _unknown_outcome(_: Message) -> bytes:
    return b'{"outcome": "perhaps"}'


async def _empty(_: Message) -> bytes:
    return b""


@pytest.fixture
async def impostor_at(stowage: Fleet) -> AsyncIterator[Callable[[Answer], Awaitable[None]]]:
    """Puts an impostor in the place of the one host of a running fleet."""
    await stowage.manager(definitions=_QUICK, command_ttl_s=0.2, host_silent_s=60.0)
    await stowage.agent("hv1")
    async with contextlib.AsyncExitStack() as stack:

        async def put(answer: Answer) -> None:
            await stack.enter_async_context(in_the_place_of(stowage, "hv1", answer))

        yield put


@pytest.mark.parametrize("answer", [_garbage, _wrong_shape, _unknown_outcome, _empty, silence])
async def test_agent_that_answers_wrongly_or_not_at_all_fails_the_add_by_name_and_leaves_nothing(
    stowage: Fleet, impostor_at: Callable[[Answer], Awaitable[None]], answer: Answer
) -> None:
    await impostor_at(answer)

    added = await stowage.api("POST", "/v1/storage_backends", SMB)

    assert (added.status, added.body["code"]) == (504, "agent_timeout"), added
    assert "hv1" in added.body["detail"]
    assert [fault["host"] for fault in added.body["faults"]] == ["hv1"]
    assert await backends(stowage) == {}
    running = await stowage.sql("SELECT FROM operation WHERE state IN ('running', 'undoing', 'stuck')")
    assert running == []
    # Nobody knows what the host did, so it keeps a tombstone until it says that it holds nothing.
    assert len(await stowage.sql("SELECT FROM backend_host WHERE desired = 'absent'")) == 1

    again = await stowage.api("POST", "/v1/storage_backends", SMB)
    assert again.body["code"] == "agent_timeout", "the name is free again"


async def test_no_agent_online_is_503_with_retry_after_and_leaves_nothing(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=1.0)
    await stowage.agent("hv1")
    await stowage.stop_agent("hv1")

    async def is_offline() -> bool:
        return bool((await stowage.api("GET", "/v1/hosts/hv1")).body["state"] == "offline")

    await until(is_offline, "hv1 to be offline")
    added = await stowage.api("POST", "/v1/storage_backends", SMB)
    assert (added.status, added.body["code"]) == (503, "no_agent")
    assert added.headers["Retry-After"] == "5"
    assert [(fault["host"], fault["code"]) for fault in added.body["faults"]] == [("hv1", "host_offline")]
    assert await stowage.sql("SELECT FROM backend") == []
    assert await stowage.sql("SELECT FROM operation") == []
