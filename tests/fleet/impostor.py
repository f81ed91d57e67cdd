"""A host's identity in the hands of somebody who answers commands, and speaks, in his own way."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec

from schemas import subjects
from schemas.agent_rpc import Beat, Held, Observation, Status, SyncRequest
from schemas.bus import Bus, Message
from schemas.hosts import AgentFacts
from schemas.ids import HostId
from schemas.subjects import Uplink
from tests.fleet.fleet import Fleet

#: None: no answer at all.
Answer = Callable[[Message], Awaitable[bytes | None]]

_BEAT_S = 0.3


class Impostor:
    """Enrolled, online while it beats, and answering every command with `answer`."""

    def __init__(self, fleet: Fleet, name: str, host_id: str, answer: Answer) -> None:
        self.host_id = HostId(host_id)
        self.heard: list[str] = []
        self._answer = answer
        self._beating: asyncio.Task[None] | None = None
        self.bus = Bus(
            servers=[fleet.nats.url],
            creds_file=fleet.states[name].bus_creds_file,
            name="impostor",
            inbox_prefix=subjects.agent_inbox(self.host_id),
            fail_fast=False,
        )
        self.bus.subscribe(subjects.commands_of(self.host_id), self._handle)

    async def sync(self, held: Sequence[Held] = ()) -> None:
        """One sync, answered. held: what it says that it holds."""
        await self.bus.request(subjects.uplink(self.host_id, Uplink.SYNC), sync_request(held), timeout_s=5)

    async def beat(self) -> None:
        await self.bus.publish(subjects.uplink(self.host_id, Uplink.BEAT), msgspec.json.encode(Beat(sequence=1)))

    async def report(self, *observations: Observation) -> None:
        status = Status(sent_at=dt.datetime.now(dt.UTC), observations=observations)
        await self.bus.publish(subjects.uplink(self.host_id, Uplink.STATUS), msgspec.json.encode(status))

    async def freeze(self) -> None:
        """Connected as before, and silent: a process that was stopped looks like this."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)

    async def thaw(self) -> None:
        self._beating = asyncio.create_task(self._beat_for_ever(), name="beats of an impostor")

    async def _beat_for_ever(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(_BEAT_S)

    async def _handle(self, message: Message) -> None:
        self.heard.append(verb_of(message))
        if message.reply:
            answer = await self._answer(message)
            if answer is not None:
                await self.bus.publish(message.reply, answer)


def sync_request(held: Sequence[Held] = ()) -> bytes:
    facts = AgentFacts(agent_version="odd", kinds=("smb", "local_file"))
    return msgspec.json.encode(SyncRequest(facts=facts, held=tuple(held)))


@contextlib.asynccontextmanager
async def in_the_place_of(fleet: Fleet, name: str, answer: Answer) -> AsyncGenerator[Impostor]:
    """The host's real agent is stopped and the impostor online, for as long as the block lasts."""
    await fleet.stop_agent(name)
    host_id = (await fleet.api("GET", f"/v1/hosts/{name}")).body["id"]
    impostor = Impostor(fleet, name, host_id, answer)
    await impostor.bus.start(10)
    await impostor.sync()
    await impostor.thaw()
    try:
        yield impostor
    finally:
        await impostor.freeze()
        await impostor.bus.close()


async def silence(_: Message) -> None:
    """Answers nothing."""
    return


def verb_of(message: Message) -> str:
    return message.subject.rpartition(".")[2]
