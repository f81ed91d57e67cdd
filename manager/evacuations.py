"""Emptying a backend that drains: the plan, and the run of it."""

from typing import Any

from manager.actor import Actor
from manager.errors import Refused
from manager.operations import Operations, Pending
from manager.placement import Placement
from manager.registry import Registry
from manager.replacements import migration_params
from manager.sagas.engine import Engine
from manager.store import attachments, volumes
from manager.store.pool import Pool
from schemas.problems import FieldError
from schemas.volume_requests import Evacuate
from schemas.volumes import VolumeRole


class Evacuations:
    """Use cases."""

    def __init__(
        self, pool: Pool, registry: Registry, engine: Engine, operations: Operations, placement: Placement
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._engine = engine
        self._operations = operations
        self._placement = placement

    async def plan(self, ref: str, body: Evacuate) -> dict[str, Any]:
        """{"to", "total_bytes", "available_bytes": there, or None; "items": in the order of moving, "blockers": what cannot move now,
        and why; "warnings": words}. Changes nothing.
        """
        backend = self._placement.backend(ref)
        target = self._target(backend.id, body)
        async with self._pool.acquire() as connection:
            rows = await volumes.on_backend(connection, backend.id)
            held = await attachments.of_volumes(connection, [row.id for row in rows])
        items: list[dict[str, Any]] = []
        blockers: list[dict[str, str]] = []
        for row in rows:
            if row.role is VolumeRole.TRANSIENT:
                continue
            shown = {"id": row.id, "name": row.name, "type": row.role.value}
            if row.id in held:
                names = ", ".join(self._registry.host_name(each.host_id) for each in held[row.id])
                blockers.append({**shown, "reason": f"it is attached to {names}: detach it first"})
                continue
            try:
                await migration_params(self._placement, row, target, None)
            except Refused as error:
                blockers.append({**shown, "reason": error.problem.detail})
            else:
                items.append({**shown, "size_bytes": row.size_bytes})
        total = sum(item["size_bytes"] for item in items)
        there = self._placement.backend(target)
        available = self._placement.available_bytes(there)
        warnings: list[str] = []
        if available is not None and total > available:
            warnings.append(
                f"{total} bytes are to come to {there.name}, which has {available} free:"
                " what holds less than its size may fit all the same, and what does not stays where it is"
            )
        return {
            "to": there.name,
            "total_bytes": total,
            "available_bytes": available,
            "items": items,
            "blockers": blockers,
            "warnings": warnings,
        }

    async def run(self, ref: str, body: Evacuate, actor: Actor, wait_s: float) -> dict[str, Any] | Pending:
        """Everything has moved. Raises the operation's problem, which names what has not."""
        backend = self._placement.backend(ref)
        target = self._target(backend.id, body)
        async with self._pool.acquire() as connection:
            rows = await volumes.on_backend(connection, backend.id)
        operation_id = await self._engine.start(
            "backend.evacuate",
            key=f"evacuate:{backend.id}",
            subject=f"storage_backends/{backend.id}",
            params={
                "backend_id": backend.id,
                "name": backend.name,
                "to": target,
                "total_bytes": sum(row.size_bytes for row in rows if row.role is not VolumeRole.TRANSIENT),
            },
            actor=actor,
        )
        done = await self._operations.outcome(operation_id, wait_s) if wait_s > 0 else None
        return (done.result or {}) if done else Pending(operation_id)

    def _target(self, backend_id: str, body: Evacuate) -> str:
        target = self._placement.named(body.to, "/to")
        if target.id == backend_id:
            raise Refused.for_fields([FieldError(pointer="/to", detail="is the backend that is to be emptied")])
        self._placement.refuse_new(target)
        return target.id
