"""Asking the storage itself through the hosts: preflight, probe, inspection. Nothing is persisted but what was observed."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from manager.actor import Actor
from manager.agents import Agents, offline_fault
from manager.errors import AgentError, AgentFailed, AgentOffline, Refused
from manager.host_choice import HostChoice
from manager.observations import answered
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
    Target,
)
from schemas.backends import Backend, BackendState, HealthStatus, HostObservation
from schemas.credentials import Credentials
from schemas.faults import Fault, FaultCode, fault
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
        self._probes: dict[tuple[str, str], asyncio.Task[None]] = {}

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
        await asyncio.gather(*(self._probe_once(host_id, backend.id, actor) for host_id in hosts))
        if self._registry.row(backend.id) is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {ref[:80]} any more")
        return self._registry.cells(backend.id)

    async def probe_all(self, actor: Actor) -> Sequence[tuple[Backend, tuple[HostObservation, ...]]]:
        ids = [backend.id for backend in self._registry.backends()]
        await asyncio.gather(*(self.probe(backend_id, actor) for backend_id in ids), return_exceptions=True)
        found = [self._registry.find(backend_id) for backend_id in ids]
        return [(backend, self._registry.cells(backend.id)) for backend in found if backend]

    async def inspection(self, ref: str, actor: Actor) -> dict[str, Any]:
        """What one online host finds on the device of a backend that needs initialization."""
        row = initializable(self._registry, ref)
        host = self._choice.first_online(row)
        try:
            found = await self._agents.ask(
                host.id, Inspect(**self._question(row.id, actor), target=self._target(row)), Inspection
            )
        except AgentError as error:
            raise _refusal(error, host.name, row.name) from error
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
            return _unanswered(host.name, HealthStatus.UNKNOWN, fault(FaultCode.TIMED_OUT, str(error)))
        seen = report.observation
        failed = next((check for check in report.checks if not check.is_ok), None)
        return {
            "host": host.name,
            "status": seen.status if seen else HealthStatus.UNREACHABLE,
            "code": seen.code if seen else (failed and failed.code) or FaultCode.FAILED,
            "detail": seen.detail if seen else failed and failed.detail,
            "remedy": seen.remedy if seen else failed and failed.remedy,
            "latency_ms": seen.latency_ms if seen else None,
            "capacity": seen.capacity if seen else None,
            "checks": [msgspec.to_builtins(check) for check in report.checks],
        }

    async def _probe_once(self, host_id: str, backend_id: str, actor: Actor) -> None:
        """`_probe_on`, however many ask for it at the same time."""
        place = host_id, backend_id
        task = self._probes.get(place)
        if task is None:
            task = self._probes[place] = asyncio.create_task(
                self._probe_on(host_id, backend_id, actor), name=f"probe {backend_id} on {host_id}"
            )
            task.add_done_callback(lambda _: self._probes.pop(place, None))
        # Shielded: one caller's leaving must not end what the others wait for.
        await asyncio.shield(task)

    async def _probe_on(self, host_id: str, backend_id: str, actor: Actor) -> None:
        try:
            seen = await self._agents.ask(host_id, Probe(**self._question(backend_id, actor)), Observation)
        except AgentOffline:
            self._registry.silence(host_id)
            return
        except AgentFailed as error:
            row = self._registry.row(backend_id)
            seen = Observation(
                backend_id=backend_id,
                generation=row.generation if row else 0,
                status=HealthStatus.UNREACHABLE,
                code=error.fault.code,
                detail=error.fault.detail,
                remedy=error.fault.remedy,
                observed_at=dt.datetime.now(dt.UTC),
            )
        except AgentError:
            return  # nobody knows; the last observation grows stale by itself
        fit = answered(seen, backend_id)
        self._registry.observe(host_id, fit)
        async with self._pool.acquire() as connection:
            await store.record(connection, host_id, fit)

    def _target(self, row: BackendRow) -> Target:
        return Target(
            backend_id=row.id,
            fleet_id=self._fleet_id,
            kind=row.kind,
            config=row.config,
            generation=row.generation,
            credential_version=row.credential_version,
        )

    def _question(self, backend_id: str, actor: Actor) -> dict[str, Any]:
        """The head of a command that changes nothing: fence 0."""
        return {
            "command_id": new_id(),
            "backend_id": backend_id,
            "fence": 0,
            "ttl_ms": self._agents.ttl_ms,
            "request_id": actor.request_id,
        }


def _unanswered(host: str, status: HealthStatus, what: Fault) -> dict[str, Any]:
    return {
        "host": host,
        "status": status,
        "checks": [],
        "code": what.code,
        "detail": what.detail,
        "remedy": what.remedy,
    }


def _refusal(error: AgentError, host: str, name: str) -> Refused:
    """What a caller is told when the one host that was asked could not answer."""
    if isinstance(error, AgentFailed):
        return Refused.because(ProblemCode.PROBE_FAILED, f"{name} could not be read on {host}", faults=(error.fault,))
    if isinstance(error, AgentOffline):
        return Refused.because(ProblemCode.NO_AGENT, str(error), faults=(offline_fault(host),), retry_after_s=5)
    return Refused.because(ProblemCode.AGENT_TIMEOUT, str(error))
