"""Images that clients upload: the bytes pass through this manager to the host that makes the image, and stay nowhere on the way.

Which host that is, is chosen before the first byte; its agent keeps what comes in a file of its own. Only when all of it is
there does the operation begin that checks the digest and fills the image. Whatever ends an upload before, the host is told
to forget it; where nobody can tell it any more, its agent does so by itself after an hour.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Generator
from typing import Any

import msgspec

from manager.actor import Actor
from manager.agents import Agents, offline_fault, silent_fault
from manager.errors import AgentError, AgentFailed, AgentOffline, ManagerError, Refused
from manager.operations import Pending
from manager.registry import Registry
from manager.sagas.create_volume import name_taken
from manager.store import volumes as store
from manager.store.hosts import HostRow
from manager.store.pool import Pool
from manager.volumes import Volumes
from schemas.ids import new_id
from schemas.problems import ProblemCode
from schemas.volume_requests import UploadImage
from schemas.volume_rpc import AnyUploadCommand, BeginUpload, EndUpload, ForgetUpload, ReceiveChunk, UploadSource
from schemas.volumes import Image, VolumeRole

log = logging.getLogger(__name__)

#: Uploads at once through one manager.
MOST = 4
#: Chunks of one upload that are on their way to the host, so that none waits for the round trip of the one before. With the
#: base64 of JSON that is 1 MiB; all uploads together stay below what the bus takes before it counts as stuck (8 MiB).
WINDOW = 6
#: Seconds for which a host that does not answer is asked again, as long as it counts as online: longer than a bus needs
#: to come back.
PATIENCE_S = 15.0
_PAUSE_S = (0.2, 0.6)
#: Seconds that a host has to forget.
_FORGET_S = 5.0
#: Seconds after which a client that came too early may try again.
_BUSY_RETRY_S = 10


class Uploads:
    """See the module."""

    def __init__(self, pool: Pool, registry: Registry, agents: Agents, volumes: Volumes) -> None:
        self._pool = pool
        self._registry = registry
        self._agents = agents
        self._volumes = volumes
        self._under_way = 0

    async def create_image(
        self, body: UploadImage, content: AsyncIterator[bytes], size_bytes: int | None, actor: Actor, wait_s: float
    ) -> Image | Pending:
        """A new image of what `content` gives, chunk by chunk. size_bytes: how much that will be, None where nobody knows.

        Nothing is taken from it before everything else is known to be right. Raises Refused, then no host keeps anything; what
        content raises; and as Volumes.create_image does.
        """
        if self._under_way >= MOST:
            raise Refused.because(
                ProblemCode.TOO_MANY_REQUESTS,
                f"{MOST} uploads are under way through this manager; try again",
                retry_after_s=_BUSY_RETRY_S,
            )
        image_id = new_id()
        self._under_way += 1
        try:
            operation_id = await self._started(image_id, body, content, size_bytes, actor)
        finally:
            self._under_way -= 1
        return await self._volumes.image_ended(operation_id, image_id, wait_s)

    async def _started(
        self, image_id: str, body: UploadImage, content: AsyncIterator[bytes], size_bytes: int | None, actor: Actor
    ) -> str:
        await self._refuse_taken(body.name)
        try:
            place = await self._volumes.image_place(body, size_bytes or 1)
        except Refused as error:
            raise _in_query(error) from error
        head = self._agents.head(place.backend.id, request_id=actor.request_id)
        transfer = _Transfer(self._agents, self._registry, place.seat.worker, {**head, "volume_id": image_id})
        begun_at = time.monotonic()
        try:
            await transfer.begin(size_bytes or 0)
            sent_bytes = await transfer.send(content)
            source = UploadSource(format=body.source_format, sha256=body.sha256, size_bytes=sent_bytes)
            operation_id = await self._volumes.start_image(image_id, body, place, source, "upload", actor)
        except BaseException:
            # A task of its own: what ends this one may come twice.
            await asyncio.shield(asyncio.create_task(transfer.forget(), name=f"forget upload {image_id}"))
            raise
        duration_s = round(time.monotonic() - begun_at, 3)
        log.info(
            "image uploaded",
            extra={"image_id": image_id, "host_id": place.seat.worker.id, "size_bytes": sent_bytes, "duration_s": duration_s},
        )  # fmt: skip
        return operation_id

    async def _refuse_taken(self, name: str) -> None:
        """Not the guard, which is an index: nobody shall send gigabytes to hear of a name."""
        async with self._pool.acquire() as connection:
            if await store.find(connection, name, is_id=False, role=VolumeRole.IMAGE) is not None:
                raise name_taken(VolumeRole.IMAGE.value, name)


class _Transfer:
    """One upload on its way to one host. head: of its commands. Raises Refused for whatever the host says, or when it is away."""

    def __init__(self, agents: Agents, registry: Registry, host: HostRow, head: dict[str, Any]) -> None:
        self._agents = agents
        self._registry = registry
        self._host = host
        self._head = head

    async def begin(self, size_bytes: int) -> None:
        """The host has room, and waits for the bytes."""
        await self._ask(BeginUpload(**self._new_head(), size_bytes=size_bytes))

    async def send(self, content: AsyncIterator[bytes]) -> int:
        """All of it is on the host's disk; how much that is (bytes)."""
        sent_bytes = 0
        window = asyncio.Semaphore(WINDOW)

        async def send_one(offset: int, chunk: bytes) -> None:
            try:
                await self._ask(ReceiveChunk(**self._new_head(), offset=offset, content=chunk))
            finally:
                window.release()

        with _first_of_group():
            async with asyncio.TaskGroup() as group:
                async for chunk in content:
                    await window.acquire()
                    group.create_task(send_one(sent_bytes, chunk), name=f"chunk {sent_bytes}")
                    sent_bytes += len(chunk)
        if sent_bytes == 0:
            raise Refused.because(ProblemCode.MALFORMED_BODY, "the body is empty, and it is to be the image")
        await self._ask(EndUpload(**self._new_head(), size_bytes=sent_bytes))
        return sent_bytes

    async def forget(self) -> None:
        """The host keeps nothing of it, or does not answer now and forgets by itself."""
        command = msgspec.structs.replace(ForgetUpload(**self._new_head()), ttl_ms=int(_FORGET_S * 1000))
        try:
            await self._agents.ask(self._host.id, command, type(None))
        except AgentError as error:
            log.warning(
                "an upload that ended early stays a while", extra={"host_id": self._host.id, "reason": str(error)}
            )

    def _new_head(self) -> dict[str, Any]:
        return {**self._head, "command_id": new_id()}

    async def _ask(self, command: AnyUploadCommand) -> None:
        """Done. Where nobody knows, it is asked again: each of these commands can be repeated."""
        gives_up_at: float | None = None
        while True:
            try:
                return await self._agents.ask(self._host.id, command, type(None))
            except AgentError as error:
                now = time.monotonic()
                gives_up_at = now + PATIENCE_S if gives_up_at is None else gives_up_at
                is_final = isinstance(error, AgentFailed) or not self._registry.is_online(self._host.id)
                if is_final or now >= gives_up_at:
                    raise self._refusal(error) from error
            await asyncio.sleep(random.uniform(*_PAUSE_S))

    def _refusal(self, error: AgentError) -> ManagerError:
        name = self._host.name
        match error:
            case AgentFailed(is_retryable=False):
                return Refused.because(
                    ProblemCode.PROBE_FAILED,
                    f"{name} could not take the upload: {error.fault.detail}; nothing of it was kept",
                    faults=(error.fault,),
                )
            case AgentFailed():
                fault = error.fault
            case AgentOffline():
                fault = offline_fault(name)
            case _:
                fault = silent_fault(name, str(error))
        return Refused.because(
            ProblemCode.NO_AGENT,
            f"{name} was lost in the middle of the upload; nothing of it is kept, so send it once more",
            faults=(fault,),
            retry_after_s=5,
        )


@contextlib.contextmanager
def _first_of_group() -> Generator[None]:
    """The first error of a group by itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _in_query(error: Refused) -> Refused:
    """Its fields stand in the query here."""
    errors = tuple(msgspec.structs.replace(each, pointer=f"/query{each.pointer}") for each in error.problem.errors)
    return Refused(msgspec.structs.replace(error.problem, errors=errors), retry_after_s=error.retry_after_s)
