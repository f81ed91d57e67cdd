"""What agents say unasked: signs of life, what they see, and the question what is wanted of them.

Every replica hears everything (its registry is live); of each sync, renewal and status one replica, the
queue group's choice, answers or records it. Who speaks is read from the subject, never from the body.
"""

import asyncio
import logging
from collections import Counter
from typing import TypeVar

import msgspec

from manager.agents import Agents, target_of
from manager.errors import AgentError, StaleFence
from manager.hosts import Hosts
from manager.observations import believable
from manager.registry import Registry, is_settled
from manager.store import attachments as attachment_store
from manager.store import backends as backend_store
from manager.store import hosts as host_store
from manager.store import operations as journal
from manager.store.backends import WantedRow
from manager.store.pool import DATABASE_AWAY, Pool, transaction
from manager.turns import Turns
from manager.vault import Vault
from schemas import subjects
from schemas.agent_rpc import Held, Intent, Observation, RenewReply, Status, SyncReply, SyncRequest, Wanted
from schemas.bus import Bus, Message
from schemas.ids import HostId
from schemas.kinds import KINDS
from schemas.subjects import Uplink

log = logging.getLogger(__name__)

StructT = TypeVar("StructT")


class UplinkListener:
    """Subscribes at construction; answers nothing to a reply subject that is not the speaker's own inbox."""

    def __init__(
        self, bus: Bus, pool: Pool, registry: Registry, hosts: Hosts, agents: Agents, vault: Vault, *, fleet_id: str
    ) -> None:
        self._bus = bus
        self._pool = pool
        self._registry = registry
        self._hosts = hosts
        self._agents = agents
        self._vault = vault
        self._fleet_id = fleet_id
        self._deliveries: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # Few at once, for they share the pool with the API: a fleet that returns must not starve it.
        self._turns = {kind: Turns(at_once=4, most_waiting=4) for kind in (Uplink.SYNC, Uplink.RENEW, Uplink.STATUS)}
        self._unserved: Counter[str] = Counter()
        bus.subscribe(subjects.ALL_UPLINKS, self._hear)
        for kind in self._turns:
            # Many, so that those who wait for their own host's turn keep no other's message.
            bus.subscribe(f"stowage.up.*.{kind}", self._serve, queue=subjects.UPLINK_QUEUE, concurrency=1024)

    async def _hear(self, message: Message) -> None:
        """Any word is a sign of life; a status is news for this replica's registry."""
        speaker = self._speaker(message)
        if speaker is None:
            return
        host_id, kind = speaker
        if self._registry.alive(host_id) and kind is not Uplink.SYNC:
            # It was frozen, or cut off from us alone: it does not know what it has missed.
            await self._agents.nudge(host_id)
        if kind is Uplink.STATUS:
            self._registry.observe(host_id, _reported(message))
        elif kind is Uplink.SYNC:
            held = _decode(message, SyncRequest).held
            self._registry.note_held(host_id, {item.backend_id: item.credential_version for item in held})

    async def _serve(self, message: Message) -> None:
        speaker = self._speaker(message)
        if speaker is None:
            return
        host_id, kind = speaker
        async with self._turns[kind].turn(host_id) as is_its_turn:
            if is_its_turn:
                await self._serve_now(host_id, kind, message)
                return
        self._unserved[host_id] += 1
        count = self._unserved[host_id]
        if count & (count - 1) == 0:
            log.warning(
                "host asks faster than it is served", extra={"host_id": host_id, "kind": kind, "unserved": count}
            )

    async def _serve_now(self, host_id: str, kind: Uplink, message: Message) -> None:
        try:
            match kind:
                case Uplink.STATUS:
                    async with self._pool.acquire() as connection:
                        await backend_store.record(connection, host_id, _reported(message))
                case Uplink.SYNC:
                    await self._answer(host_id, message, await self._sync(host_id, _decode(message, SyncRequest)))
                case Uplink.RENEW:
                    user_jwt = await self._hosts.renewed_jwt(host_id)
                    if user_jwt:
                        await self._answer(host_id, message, RenewReply(user_jwt=user_jwt))
                case Uplink.BEAT:
                    return
        except DATABASE_AWAY as error:
            # The agent asks again; no answer is better than a wrong one.
            log.warning("uplink not served", extra={"host_id": host_id, "kind": kind, "error": repr(error)})

    def _speaker(self, message: Message) -> tuple[str, Uplink] | None:
        speaker = subjects.parse_uplink(message.subject)
        if speaker is None:
            return None
        row = self._registry.host_row(speaker[0])
        return speaker if row is not None and not row.revoked_at else None

    async def _answer(self, host_id: str, message: Message, reply: msgspec.Struct) -> None:
        if not subjects.is_own_inbox(message.reply, HostId(host_id)):
            log.warning("host named a foreign reply subject", extra={"host_id": host_id})
            return
        await self._bus.publish(message.reply, msgspec.json.encode(reply))

    async def _sync(self, host_id: str, request: SyncRequest) -> SyncReply:
        """What is wanted of the host, as of one fence; what it confirmed is noted, what it lacks is sent after it."""
        held = {item.backend_id: item for item in request.held}
        highest = max((item.fence for item in request.held), default=0)
        async with transaction(self._pool) as connection:
            fence, rows = await backend_store.wanted_by(connection, host_id)
            if highest >= fence:
                # Our database is an older one, restored: under its fences the host would ignore every line.
                await journal.raise_fences(connection, above=highest)
                fence, rows = await backend_store.wanted_by(connection, host_id)
            # From the same database as the list: a registry that lags would have a host let go and take up again.
            host = await host_store.get(connection, host_id)
            attached = await attachment_store.held_by(connection, host_id)
        if host is None or host.revoked_at:
            raise LookupError(f"host {host_id} was revoked a moment ago")
        wanted: list[Wanted] = []
        for row in rows:
            intent = _intent(row, host.name, host.labels)
            if intent is None:
                if row.id not in held:
                    continue
                if self._registry.is_last_holder(host_id, row.id, row.credential_version):
                    # Not this host's concern any more, but the hosts whose concern it is have their credentials from it.
                    intent = Intent.HOLD
                elif is_settled(row.state) and not _is_shared(row.kind):
                    # It is no longer for this host, and the marker is this host's alone.
                    intent = Intent.ABSENT
                else:
                    continue
            wanted.append(
                Wanted(
                    target=target_of(row, self._fleet_id),
                    intent=intent,
                    fence=fence if row.operation_fence is None else row.operation_fence,
                    remove_marker=_takes_marker(row) if row.is_deleted else intent is Intent.ABSENT,
                )
            )
            if intent is Intent.ATTACHED and _lacks_credentials(row, held.get(row.id)):
                self._deliver_soon(host_id, row.id, row.credential_version, fence)
        async with self._pool.acquire() as connection:
            # Only tombstones that were there before the agent drew up its list can be confirmed by it.
            gone = [row.id for row in rows if row.is_tombstone and row.id not in held]
            if gone:
                await backend_store.confirm_absent(connection, host_id, gone)
            await host_store.update_facts(connection, host_id, request.facts)
        return SyncReply(fence=fence, host_name=host.name, wanted=tuple(wanted), attachments=tuple(attached))

    def _deliver_soon(self, host_id: str, backend_id: str, version: int, fence: int) -> None:
        """One delivery at a time a host and backend; the host is nudged when it has them."""
        if (host_id, backend_id) in self._deliveries:
            return
        self._deliveries.add((host_id, backend_id))
        task = asyncio.create_task(
            self._deliver(host_id, backend_id, version, fence), name=f"credentials of {backend_id} to {host_id}"
        )
        self._tasks.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._tasks.discard(finished)
            self._deliveries.discard((host_id, backend_id))
            if not finished.cancelled() and (error := finished.exception()):
                log.error("credentials were not delivered", exc_info=error, extra={"host_id": host_id})

        task.add_done_callback(done)

    async def _deliver(self, host_id: str, backend_id: str, version: int, fence: int) -> None:
        """Some holder seals them for the newcomer; we only pass the box on."""
        for holder_id in self._registry.holders(backend_id, version):
            if holder_id == host_id:
                continue
            heads = {
                "nonce": self._agents.head(backend_id, fence=fence),
                "reseal": self._agents.head(backend_id),
                "store": self._agents.head(backend_id, fence=fence),
            }
            # Before they are brought: an answer that is lost would leave a holder of whom nobody knows. One too many does no
            # harm, for it counts only with the host's own word.
            async with self._pool.acquire() as connection:
                await backend_store.note_holders(connection, backend_id, version, [host_id])
            try:
                await self._vault.reseal(holder_id, host_id, version, heads=heads)
            except StaleFence:
                # The host has synced again since: the next sync, which we ask for, delivers under its own fence.
                await self._agents.nudge(host_id)
                return
            except AgentError as error:
                log.info(
                    "credentials not resealed", extra={"host_id": host_id, "holder": holder_id, "error": repr(error)}
                )
                continue
            log.info("credentials resealed", extra={"host_id": host_id, "holder": holder_id, "backend_id": backend_id})
            await self._agents.nudge(host_id)
            # It may have been asked to hold on to them for this newcomer's sake alone.
            await self._agents.nudge(holder_id)
            return

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _intent(row: WantedRow, name: str, labels: dict[str, str]) -> Intent | None:
    """None: not this host's concern, so an agent that holds it lets go."""
    if row.operation_fence is not None and not row.is_deleted:
        return Intent.HOLD
    if row.is_tombstone:
        return Intent.ABSENT
    if row.selector.matches(name, labels) and is_settled(row.state):
        return Intent.ATTACHED
    return None


def _takes_marker(row: WantedRow) -> bool:
    spec = KINDS.get(row.kind)
    return row.is_marks_turn or spec is None or not spec.marks_alone_at


def _is_shared(kind: str) -> bool:
    spec = KINDS.get(kind)
    return spec is None or spec.is_shared


def _lacks_credentials(row: WantedRow, held: Held | None) -> bool:
    return row.credential_version > 0 and (held is None or held.credential_version < row.credential_version)


def _reported(message: Message) -> list[Observation]:
    status = _decode(message, Status)
    return believable(status.observations, sent_at=status.sent_at)


def _decode(message: Message, type_: type[StructT]) -> StructT:
    """The body; a broken one is the bus edge's to log (bus.py), with the subject, and harms nobody else."""
    return msgspec.json.decode(message.data, type=type_)
