"""Asking the storage itself through the hosts: preflight, probe, inspection. Nothing is persisted but what was observed."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from manager.actor import Actor
from manager.agents import Agents, offline_fault, refusal, silent_fault, target_of
from manager.errors import AgentError, AgentFailed, AgentOffline, Refused
from manager.host_choice import HostChoice
from manager.observations import answered, failed
from manager.registry import Registry
from manager.store import backends as store
from manager.store.backends import BackendRow
from manager.store.hosts import HostRow
from manager.store.pool import Pool
from manager.vault import Vault
from schemas.agent_rpc import (
    CredentialNonce,
    Inspect,
    Inspection,
    Nonce,
    Observation,
    Preflight,
    PreflightReport,
    Probe,
)
from schemas.backends import Backend, BackendState, HealthStatus, HostObservation
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import Fault, FaultCode
from schemas.ids import new_id
from schemas.problems import ProblemCode
from schemas.requests import AddBackend


def initializable(registry: Registry, ref: str) -> BackendRow:
    """The backend, which waits for its initialization. Raises Refused."""
    row = registry.row(registry.require(ref).id)
    assert row is not None, "the registry shows only what it has"
    if row.state is not BackendState.NEEDS_INITIALIZATION:
        raise Refused.because(
            ProblemCode.WRONG_STATE, f"{row.name} is {row.state.value}, there is nothing to initialize"
        )
    return row


class Probing:
    """Questions to hosts. Each host answers for itself; one that is silent spoils no other's answer."""

    def __init__(self, pool: Pool, registry: Registry, agents: Agents, vault: Vault, *, fleet_id: str) -> None:
        self._pool = pool
        self._registry = registry
        self._agents = agents
        self._vault = vault
        self._fleet_id = fleet_id
        self._choice = HostChoice(registry, agents)
        #: Under way: who asks for the same waits for the same answer.
        self._probes: dict[tuple[str, str], asyncio.Task[bool]] = {}

    async def preflight(self, body: AddBackend, actor: Actor) -> Sequence[dict[str, Any]]:
        """One entry an online host: its checks, and what a trial saw. Nothing is persisted, nothing is left."""
        chosen = self._choice.by_selector(body.hosts)
        self._choice.require_online(chosen, body.name)
        target = Target(
            backend_id=new_id(),
            fleet_id=self._fleet_id,
            kind=body.kind,
            config=body.config,
            generation=1,
            credential_version=1 if body.credentials else 0,
        )
        return tuple(
            await asyncio.gather(*(self._preflight_on(host, target, body.credentials, actor) for host in chosen))
        )

    async def probe(self, ref: str, actor: Actor) -> tuple[HostObservation, ...]:
        """What every host sees now; hosts that are offline or silent are unknown."""
        backend = self._registry.require(ref)
        row = self._registry.row(backend.id)
        hosts = [h.id for h in self._registry.chosen(row) if self._registry.is_online(h.id)] if row else []
        said = await asyncio.gather(*(self._probe_once(host_id, backend.id, actor) for host_id in hosts))
        if self._registry.row(backend.id) is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {ref[:80]} any more")
        silent = {host_id for host_id, has_answered in zip(hosts, said, strict=True) if not has_answered}
        return tuple(_silent(cell) if cell.host_id in silent else cell for cell in self._registry.cells(backend.id))

    async def probe_all(self, actor: Actor) -> Sequence[tuple[Backend, tuple[HostObservation, ...]]]:
        """Every backend that is still there afterwards, with what `probe` says of it."""

        async def probed(backend_id: str) -> tuple[HostObservation, ...] | None:
            try:
                return await self.probe(backend_id, actor)
            except Refused:
                return None  # removed meanwhile

        ids = [backend.id for backend in self._registry.backends()]
        seen = await asyncio.gather(*map(probed, ids))
        return [
            (backend, cells)
            for backend_id, cells in zip(ids, seen, strict=True)
            if cells is not None and (backend := self._registry.find(backend_id))
        ]

    async def inspection(self, ref: str, actor: Actor) -> dict[str, Any]:
        """What one online host finds on the device of a backend that needs initialization."""
        row = initializable(self._registry, ref)
        host = self._choice.first_online(row)
        try:
            found = await self._agents.ask(
                host.id, Inspect(**self._question(row.id, actor), target=target_of(row, self._fleet_id)), Inspection
            )
        except AgentError as error:
            raise refusal(error, host.name, f"{row.name} could not be read on {host.name}") from error
        return {"host": host.name, **msgspec.to_builtins(found)}

    async def _preflight_on(
        self, host: HostRow, target: Target, credentials: Credentials, actor: Actor
    ) -> dict[str, Any]:
        if not self._registry.is_online(host.id):
            return _unanswered(host.name, HealthStatus.UNKNOWN, offline_fault(host.name))
        try:
            sealed = b""
            if credentials:
                nonce = await self._agents.ask(
                    host.id, CredentialNonce(**self._question(target.backend_id, actor), version=1), Nonce
                )
                sealed = self._vault.seal(host.id, target.backend_id, credentials, 1, nonce.nonce)
            command = Preflight(**self._question(target.backend_id, actor), target=target, sealed=sealed)
            report = await self._agents.ask(host.id, command, PreflightReport)
        except AgentFailed as error:
            return _unanswered(host.name, HealthStatus.UNREACHABLE, error.fault)
        except AgentError as error:
            return _unanswered(host.name, HealthStatus.UNKNOWN, silent_fault(host.name, str(error)))
        seen = report.observation
        broken = next((check for check in report.checks if not check.is_ok), None)
        return {
            "host": host.name,
            "status": seen.status if seen else HealthStatus.UNREACHABLE,
            "code": seen.code if seen else (broken and broken.code) or FaultCode.FAILED,
            "detail": seen.detail if seen else broken and broken.detail,
            "remedy": seen.remedy if seen else broken and broken.remedy,
            "latency_ms": seen.latency_ms if seen else None,
            "capacity": seen.capacity if seen else None,
            "checks": [msgspec.to_builtins(check) for check in report.checks],
        }

    async def _probe_once(self, host_id: str, backend_id: str, actor: Actor) -> bool:
        """`_probe_on`, however many ask for it at the same time."""
        place = host_id, backend_id
        task = self._probes.get(place)
        if task is None:
            task = self._probes[place] = asyncio.create_task(
                self._probe_on(host_id, backend_id, actor), name=f"probe {backend_id} on {host_id}"
            )
            task.add_done_callback(lambda _: self._probes.pop(place, None))
        # Shielded: one caller's leaving must not end what the others wait for.
        return await asyncio.shield(task)

    async def _probe_on(self, host_id: str, backend_id: str, actor: Actor) -> bool:
        """Whether the host has answered in a way that can be understood. If not, its last word in the registry grows stale."""
        try:
            seen = await self._agents.ask(host_id, Probe(**self._question(backend_id, actor)), Observation)
        except AgentOffline:
            self._registry.silence(host_id)
            return False
        except AgentFailed as error:
            row = self._registry.row(backend_id)
            seen = failed(backend_id, row.generation if row else 0, error.fault)
        except AgentError:
            return False
        fit = answered(seen, backend_id)
        self._registry.observe(host_id, fit)
        async with self._pool.acquire() as connection:
            await store.record(connection, host_id, fit)
        return bool(fit)

    def _question(self, backend_id: str, actor: Actor) -> dict[str, Any]:
        return self._agents.head(backend_id, request_id=actor.request_id)


def _silent(cell: HostObservation) -> HostObservation:
    """The cell of a host that was asked just now and did not answer: whatever it said before is not what it sees now."""
    if cell.code is FaultCode.HOST_OFFLINE:
        return cell
    what = silent_fault(cell.host, f"host {cell.host} did not answer this probe")
    return replace(
        cell, status=HealthStatus.UNKNOWN, code=what.code, detail=what.detail, remedy=what.remedy, latency_ms=None
    )


def _unanswered(host: str, status: HealthStatus, what: Fault) -> dict[str, Any]:
    return {
        "host": host,
        "status": status,
        "checks": [],
        "code": what.code,
        "detail": what.detail,
        "remedy": what.remedy,
    }
