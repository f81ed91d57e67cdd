"""Where database and storage differ: volumes without bytes, bytes without a volume, sizes that are not what they should be.

Nothing is mended by itself. On command a stray of ours is taken over under a name, or deleted.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from manager.actor import Actor
from manager.agents import Agents, refusal
from manager.errors import AgentError, Refused
from manager.operations import Operations, Pending
from manager.placement import Placement
from manager.registry import Registry
from manager.sagas.create_volume import name_taken, takes_none
from manager.sagas.delete_volume import deletion_of_stray, no_stray
from manager.sagas.engine import Engine
from manager.store import events, volumes
from manager.store.backends import BackendRow
from manager.store.hosts import HostRow
from manager.store.pool import Pool, transaction
from manager.store.volumes import VolumeRow
from schemas.events import EventType
from schemas.ids import new_id
from schemas.kinds import KINDS
from schemas.problems import FieldError, ProblemCode
from schemas.volume_requests import SECTOR_BYTES, SettleStray
from schemas.volume_rpc import FoundVolume, ListVolumes, VolumeFormat, VolumeListing
from schemas.volumes import VolumeRole, VolumeState

#: Pages of one host's listing; beyond, the report says that it is not whole.
_MOST_PAGES = 64


@dataclass(frozen=True)
class _Seen:
    host: HostRow
    items: tuple[FoundVolume, ...]
    is_whole: bool


class Drift:
    """Use cases."""

    def __init__(
        self,
        pool: Pool,
        registry: Registry,
        agents: Agents,
        engine: Engine,
        operations: Operations,
        placement: Placement,
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._agents = agents
        self._engine = engine
        self._operations = operations
        self._placement = placement

    async def report(self, ref: str, actor: Actor) -> dict[str, Any]:
        """{"missing", "strays", "foreign", "sizes", "unseen_hosts"}; each line says where, and what can be done about it."""
        backend = self._placement.backend(ref)
        hosts, away = await self._hosts(backend)
        # Before and after: what came or went while the storage was read is no drift.
        before = await self._rows(backend)
        seen, silent = await self._looks(hosts, backend, actor)
        after = await self._rows(backend)
        unseen = {*away, *silent, *(each.host.name for each in seen if not each.is_whole)}
        # A host that was revoked, or that the backend is not for any more, has what lies on it all the same.
        asked = {host.id for host in hosts}
        unseen |= {self._registry.host_name(row.host_id) for row in after if row.host_id and row.host_id not in asked}
        report: dict[str, Any] = {
            "missing": [],
            "strays": [],
            "foreign": [],
            "sizes": [],
            "unseen_hosts": sorted(unseen),
        }
        for each in seen:
            self._compare(report, backend, each, before, after)
        return report

    async def adopt(self, ref: str, body: SettleStray, actor: Actor) -> str:
        """The id of the volume that a stray of ours is now. Its content is not looked at."""
        backend = self._placement.backend(ref)
        host, found = await self._stray(backend, body, actor)
        if found.size_bytes != _whole_sectors(found.size_bytes):
            raise Refused.because(
                ProblemCode.WRONG_STATE,
                f"{found.name} has {found.size_bytes} bytes, which no disk has, so it cannot be adopted; it can be deleted",
            )
        volume_id = new_id()
        name = str(body.name)
        try:
            async with transaction(self._pool) as connection:
                is_free = await volumes.insert(
                    connection,
                    volume_id=volume_id,
                    name=name,
                    backend_id=backend.id,
                    size_bytes=found.size_bytes,
                    role=VolumeRole.VOLUME,
                    locator=found.locator,
                    format=VolumeFormat(found.format),
                    state=VolumeState.READY,
                    host_id=None if KINDS[backend.kind].is_shared else host.id,
                    source=f"adopted from {backend.name}",
                )
                if not is_free:
                    # Of two who settle one stray at the same moment the other was faster, or the name is somebody's.
                    rows = await volumes.on_backend(connection, backend.id)
                    raise no_stray() if _has_locator(rows, found.locator) else name_taken("volume", name)
                row = await volumes.get(connection, volume_id)
                assert row is not None, "inserted in this transaction"
                await events.append(
                    connection,
                    type=EventType.VOLUME_ADOPTED,
                    collection="volumes",
                    subject_id=volume_id,
                    actor=actor.name,
                    request_id=actor.request_id,
                    data={"name": name, "before": None, "after": volumes.shown(row)},
                )
        except asyncpg.CheckViolationError:
            raise takes_none(self._placement.place(backend)) from None
        return volume_id

    async def delete(self, ref: str, body: SettleStray, actor: Actor, wait_s: float) -> Pending | None:
        """The stray's bytes are gone. None: done."""
        backend = self._placement.backend(ref)
        host, found = await self._stray(backend, body, actor)
        operation_id = await self._engine.start(
            "volume.delete",
            **deletion_of_stray(
                self._placement.place(backend),
                host.id,
                # What is left of a making that broke off may have any size, and hosts take commands with whole sectors alone.
                found=msgspec.structs.replace(found, size_bytes=_whole_sectors(found.size_bytes)),
                host_id=None if KINDS[backend.kind].is_shared else host.id,
            ),
            actor=actor,
        )
        if wait_s <= 0 or await self._operations.outcome(operation_id, wait_s) is None:
            return Pending(operation_id)
        return None

    # ---- inside

    async def _rows(self, backend: BackendRow) -> list[VolumeRow]:
        async with self._pool.acquire() as connection:
            return await volumes.on_backend(connection, backend.id)

    async def _hosts(self, backend: BackendRow) -> tuple[list[HostRow], list[str]]:
        """(those to ask, names of those that should be asked and cannot)."""
        if KINDS[backend.kind].is_shared:
            seat = await self._placement.any_host(backend)
            return [seat], []
        chosen = self._registry.chosen(backend)
        return (
            [host for host in chosen if self._registry.is_online(host.id)],
            [host.name for host in chosen if not self._registry.is_online(host.id)],
        )

    async def _looks(
        self, hosts: Sequence[HostRow], backend: BackendRow, actor: Actor
    ) -> tuple[list[_Seen], list[str]]:
        """(what was found, names of the hosts that could not tell). Raises Refused when none could."""
        seen: list[_Seen] = []
        failed: dict[str, Refused] = {}

        async def look(host: HostRow) -> None:
            try:
                seen.append(await self._look(host, backend, actor))
            except Refused as error:
                failed[host.name] = error

        await asyncio.gather(*map(look, hosts))
        if failed and not seen:
            raise next(iter(failed.values()))
        return sorted(seen, key=lambda each: each.host.name), sorted(failed)

    async def _look(self, host: HostRow, backend: BackendRow, actor: Actor) -> _Seen:
        items: list[FoundVolume] = []
        after = ""
        for _ in range(_MOST_PAGES):
            command = ListVolumes(**self._agents.head(backend.id, request_id=actor.request_id), after=after)
            try:
                page = await self._agents.ask(host.id, command, VolumeListing)
            except AgentError as error:
                raise refusal(error, host.name, f"{host.name} could not list {backend.name}") from error
            items += page.items
            if page.is_whole or not page.items:
                return _Seen(host, tuple(items), is_whole=True)
            after = page.items[-1].name
        return _Seen(host, tuple(items), is_whole=False)

    def _compare(
        self,
        report: dict[str, Any],
        backend: BackendRow,
        seen: _Seen,
        before: Sequence[VolumeRow],
        after: Sequence[VolumeRow],
    ) -> None:
        is_shared = KINDS[backend.kind].is_shared
        there = {item.locator: item for item in seen.items if item.locator}
        known = {row.locator for row in (*before, *after)}
        stayed = {(row.id, row.locator, row.size_bytes) for row in before}
        mine = [
            row
            for row in after
            if (row.id, row.locator, row.size_bytes) in stayed and (is_shared or row.host_id == seen.host.id)
        ]
        where = {} if is_shared else {"host": seen.host.name}
        for row in mine:
            item = there.get(row.locator)
            told: dict[str, Any] = {
                "id": row.id,
                "name": row.name,
                "type": row.role.value,
                "locator": row.locator,
                **where,
            }
            if row.state is not VolumeState.READY:
                continue
            if item is None:
                if seen.is_whole:
                    words = "in the database, not on the storage: restore it there, or delete it here"
                    report["missing"].append({**told, "detail": words})
            elif row.size_bytes != item.size_bytes:
                report["sizes"].append({**told, "size_bytes": row.size_bytes, "found_bytes": item.size_bytes})
        for item in seen.items:
            shown: dict[str, Any] = {
                "name": item.name,
                "size_bytes": item.size_bytes,
                "allocated_bytes": item.allocated_bytes,
                **where,
            }
            if not item.locator:
                report["foreign"].append(shown)
            elif item.locator not in known:
                report["strays"].append({**shown, "locator": item.locator, "format": item.format})

    async def _stray(self, backend: BackendRow, body: SettleStray, actor: Actor) -> tuple[HostRow, FoundVolume]:
        """The host that sees it, and what it sees. Raises Refused when nothing of ours has this locator, or a volume has it."""
        hosts, away = await self._hosts(backend)
        if body.host is not None:
            if KINDS[backend.kind].is_shared:
                words = f"must be left out: {backend.name} is shared, and any of its hosts does it"
                raise Refused.for_fields([FieldError(pointer="/host", detail=words)])
            hosts, away = [host for host in hosts if body.host in (host.id, host.name)], []
            if not hosts:
                raise Refused.for_fields(
                    [FieldError(pointer="/host", detail="is no host that can be asked about it now")]
                )
        seen, silent = await self._looks(hosts, backend, actor)
        rows = await self._rows(backend)
        if _has_locator(rows, body.locator):
            raise no_stray()
        for each in seen:
            for item in each.items:
                if item.locator == body.locator:
                    return each.host, item
        unseen = ", ".join(sorted({*away, *silent}))
        but = f", as far as can be seen: {unseen} could not be asked" if unseen else ""
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is nothing with this locator on {backend.name}{but}")


def _has_locator(rows: Sequence[VolumeRow], locator: str) -> bool:
    return any(row.locator == locator for row in rows)


def _whole_sectors(size_bytes: int) -> int:
    """The least size of a disk that holds so many bytes."""
    return max(1, -(-size_bytes // SECTOR_BYTES)) * SECTOR_BYTES
