"""An agent that is enrolled and answers wrongly, late or not at all: the caller is told, and nothing is left behind."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from manager.sagas.catalog import SAGAS
from schemas import subjects
from schemas.agent_rpc import Beat, SyncRequest
from schemas.bus import Bus, Message
from schemas.hosts import AgentFacts
from schemas.ids import HostId
from schemas.subjects import Uplink
from tests.fleet.fleet import Fleet, until
from tests.sagas.scenarios import SMB, backends

pytestmark = pytest.mark.slow

#: The sagas with a budget that a test can wait for.
_QUICK = {kind: dataclasses.replace(saga, budget_s=1.0) for kind, saga in SAGAS.items()}

Answer = Callable[[Message], Awaitable[bytes | None]]


async def _garbage(_: Message) -> bytes:
    return b"\xff{"


async def _wrong_shape(_: Message) -> bytes:
    return b'{"outcome": "ok", "result": [1, 2]}'


async def _unknown_outcome(_: Message) -> bytes:
    return b'{"outcome": "perhaps"}'


async def _empty(_: Message) -> bytes:
    return b""


async def _silence(_: Message) -> None:
    return None


class _Impostor:
    """Has a host's identity, shows signs of life, and answers commands in its own way."""

    def __init__(self, fleet: Fleet, name: str, host_id: str, answer: Answer) -> None:
        self._host_id = HostId(host_id)
        self._answer = answer
        self.bus = Bus(
            servers=[fleet.nats.url],
            creds_file=fleet.states[name].bus_creds_file,
            name="impostor",
            inbox_prefix=subjects.agent_inbox(self._host_id),
            fail_fast=False,
        )
        self.bus.subscribe(subjects.commands_of(self._host_id), self._handle)

    async def beat(self) -> None:
        request = SyncRequest(facts=AgentFacts(agent_version="odd", kinds=("smb", "local_file")))
        await self.bus.request(subjects.uplink(self._host_id, Uplink.SYNC), msgspec.json.encode(request), timeout_s=5)
        await self.bus.publish(subjects.uplink(self._host_id, Uplink.BEAT), msgspec.json.encode(Beat(sequence=1)))

    async def _handle(self, message: Message) -> None:
        if message.reply:
            answer = await self._answer(message)
            if answer is not None:
                await self.bus.publish(message.reply, answer)


@pytest.fixture
async def impostor_at(stowage: Fleet) -> AsyncIterator[Callable[[Answer], Awaitable[None]]]:
    """Puts an impostor in the place of the one host of a running fleet."""
    made: list[_Impostor] = []
    await stowage.manager(definitions=_QUICK, command_ttl_s=0.2, host_silent_s=60.0)
    await stowage.agent("hv1")

    async def put(answer: Answer) -> None:
        await stowage.stop_agent("hv1")
        host_id = (await stowage.api("GET", "/v1/hosts/hv1")).body["id"]
        made.append(_Impostor(stowage, "hv1", host_id, answer))
        await made[-1].bus.start(10)
        await made[-1].beat()

    yield put
    for impostor in made:
        await impostor.bus.close()


@pytest.mark.parametrize("answer", [_garbage, _wrong_shape, _unknown_outcome, _empty, _silence])
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
