"""What can be done with backends: the use cases behind the API, the command line and the page.

Reads come from the registry. A change of name, labels, hosts, state or default is one transaction; a
change that hosts must prove or undo is a saga, awaited here as long as the caller cares to wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from manager.actor import Actor
from manager.agents import Agents
from manager.errors import Refused
from manager.host_choice import HostChoice
from manager.operations import Operations, Pending
from manager.probing import initializable
from manager.registry import Registry, is_settled
from manager.sagas.default import make_default
from manager.sagas.delete_backend import removal_refusal
from manager.sagas.edit_backend import check_narrowing, check_state
from manager.sagas.engine import Engine
from manager.store import backends as store
from manager.store import events, places
from manager.store.backends import BackendRow
from manager.store.hosts import HostRow
from manager.store.pool import Connection, Pool, transaction
from schemas.backends import Backend, BackendState, HostObservation, ProbeNote
from schemas.credentials import Credentials
from schemas.events import EventType
from schemas.hosts import HostSelector
from schemas.ids import is_id, new_id
from schemas.kinds import KINDS, KindSpec
from schemas.problems import FieldError, ProblemCode
from schemas.requests import AddBackend, EditBackend, InitializeBackend
from schemas.validation import fixed_fields, validate_config, validate_credentials

#: How often an edit without If-Match reads again when somebody was faster.
_MOST_REREADS = 8


@dataclass(frozen=True)
class Removed:
    """result: what was left on the storage and where, and the hosts that let go when they return."""

    operation_id: str
    result: dict[str, Any]


@dataclass(frozen=True)
class _Author:
    actor_name: str
    request_id: str


class Backends:
    """Use cases. Every method may raise Refused; those that change something journal it under the actor's name."""

    def __init__(
        self,
        pool: Pool,
        registry: Registry,
        engine: Engine,
        operations: Operations,
        agents: Agents,
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._engine = engine
        self._operations = operations
        self._agents = agents
        self._choice = HostChoice(registry, agents)

    # ---- reading

    def list(self) -> Sequence[Backend]:
        return self._registry.backends()

    def get(self, ref: str) -> Backend:
        return self._registry.require(ref)

    def observations(self, ref: str) -> tuple[HostObservation, ...]:
        return self._registry.cells(self.get(ref).id)

    def probes(self, ref: str, host_ref: str) -> tuple[ProbeNote, ...]:
        """The last probes of the backend by that host, the newest first, as this replica heard them since its start."""
        backend, host = self.get(ref), self._registry.find_host(host_ref)
        if host is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no host {host_ref[:80]}")
        return self._registry.probes(backend.id, host.id)

    # ---- adding

    async def add(self, body: AddBackend, actor: Actor, wait_s: float) -> Backend | Pending:
        """The new backend, proven on every online host that it is for; or nothing of it anywhere."""
        # From the database: a registry that lags would refuse a name that an undone add has just set free, and the
        # refusal would be kept under the caller's Idempotency-Key (seen 2026-11-23 on a replica that had been paused).
        async with self._pool.acquire() as connection:
            is_taken = await store.find(connection, body.name, is_id=False) is not None
        if is_taken:
            raise Refused.because(ProblemCode.NAME_TAKEN, f"a backend named {body.name} exists already")
        chosen = self._choice.by_selector(body.hosts)
        self._choice.require_online(chosen, body.name)
        backend_id = new_id()
        params = {
            "backend_id": backend_id,
            "name": body.name,
            "kind": body.kind,
            "config": body.config,
            "credential_version": 1 if body.credentials else 0,
            "is_default": body.is_default,
            "labels": body.labels,
            "selector": msgspec.to_builtins(body.hosts),
            "hosts": [host.id for host in chosen],
            "first": next((h.id for h in chosen if self._registry.is_online(h.id)), None),
        }
        operation_id = await self._engine.start(
            "backend.add",
            key=_key(backend_id),
            subject=_subject(backend_id),
            params=params,
            actor=actor,
            credentials=body.credentials or None,
        )
        return await self._finish(operation_id, backend_id, wait_s)

    # ---- editing

    async def edit(
        self, ref: str, body: EditBackend, if_match: int | None, actor: Actor, wait_s: float
    ) -> Backend | Pending:
        """The backend as changed. Config and credentials are proven on the hosts first; the rest is one transaction."""
        for attempt in range(_MOST_REREADS):
            try:
                return await self._edit(ref, body, if_match, actor, wait_s)
            except Refused as error:
                is_race = error.problem.code is ProblemCode.STALE_VERSION and if_match is None
                if not is_race or attempt == _MOST_REREADS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _edit(
        self, ref: str, body: EditBackend, if_match: int | None, actor: Actor, wait_s: float
    ) -> Backend | Pending:
        row = await self._true_row(ref)
        _check_version(row, if_match)
        spec = KINDS[row.kind]
        # What is laid over credentials that nobody has any more must be whole.
        base_version = 0 if self._registry.has_lost_credentials(row.id) else row.credential_version
        config, credentials = _merged(row, spec, body, has_base=base_version > 0)
        patch: dict[str, Any] = {}
        if body.name is not None and body.name != row.name:
            patch["name"] = body.name
        if body.labels is not None and body.labels != row.labels:
            patch["labels"] = body.labels
        if body.hosts is not None and body.hosts != row.selector:
            self._choice.by_selector(body.hosts)
            patch["selector"] = msgspec.to_builtins(body.hosts)
        if body.state is not None and body.state != row.state:
            patch["state"] = body.state.value
        if body.is_default:
            patch["is_default"] = True
        check_state(row, patch)
        if "selector" in patch:
            async with self._pool.acquire() as connection:
                await check_narrowing(connection, self._registry, row, HostSelector(**patch["selector"]))
        if config == row.config and not credentials:
            return await self._change(row, patch, if_match, actor)
        hosts = self._registry.chosen(row)
        credential_version = row.credential_version
        if credentials:
            async with self._pool.acquire() as connection:
                credential_version = await store.next_credential_version(connection)
        params = {
            "backend_id": row.id,
            "name": row.name,
            "kind": row.kind,
            "version": row.version,
            "is_version_asked": if_match is not None,
            "generation": row.generation,
            "config": config,
            "credential_version": credential_version,
            "base_credential_version": base_version,
            "is_rotation": bool(credentials),
            "patch": patch,
            "hosts": [host.id for host in hosts],
        }
        operation_id = await self._engine.start(
            "backend.edit",
            key=_key(row.id),
            subject=_subject(row.id),
            params=params,
            actor=actor,
            credentials=credentials or None,
        )
        return await self._finish(operation_id, row.id, wait_s)

    async def _change(self, row: BackendRow, patch: dict[str, Any], if_match: int | None, actor: Actor) -> Backend:
        """Name, labels, hosts, state and default: one transaction with its events."""
        touched = {row.id}
        async with transaction(self._pool) as connection:
            if patch.get("is_default"):
                await store.hold_default(connection)
            before = await store.lock(connection, row.id)
            if before is None:
                raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {row.name}")
            _check_version(before, if_match)
            if not is_settled(before.state):
                raise Refused.because(ProblemCode.WRONG_STATE, f"{row.name} is {before.state.value}")
            if "selector" in patch:
                await check_narrowing(connection, self._registry, before, HostSelector(**patch["selector"]))
            check_state(before, patch)
            if patch.keys() - {"is_default"}:
                await self._write_change(connection, before, patch, actor)
            if patch.get("is_default"):
                author = _Author(actor.name, actor.request_id)
                previous = await make_default(connection, author, before)
                touched |= {previous} if previous else set()
        await self._registry.refresh(list(touched))
        if "selector" in patch:
            await self._agents.nudge_all()
        return self.get(row.id)

    async def _write_change(
        self, connection: Connection, before: BackendRow, patch: dict[str, Any], actor: Actor
    ) -> None:
        try:
            after = await store.change(
                connection,
                before.id,
                name=patch.get("name", before.name),
                config=before.config,
                credential_version=before.credential_version,
                labels=patch.get("labels", before.labels),
                selector=HostSelector(**patch["selector"]) if "selector" in patch else before.selector,
                state=BackendState(patch.get("state", before.state)),
                is_reconfigured=False,
            )
        except asyncpg.UniqueViolationError:
            raise Refused.because(ProblemCode.NAME_TAKEN, f"a backend named {patch['name']} exists already") from None
        await events.append(
            connection,
            type=EventType.BACKEND_UPDATED,
            collection="storage_backends",
            subject_id=after.id,
            actor=actor.name,
            request_id=actor.request_id,
            data={"name": after.name, "kind": after.kind, "before": store.shown(before), "after": store.shown(after)},
        )

    # ---- removing

    async def remove(self, ref: str, if_match: int | None, actor: Actor, wait_s: float) -> "Removed | Pending":
        """Gone, here and on every online host; offline hosts let go when they return. Data stays where it is."""
        row = await self._true_row(ref)
        hosts = await self._holders_of(row)
        operation_id = await self._engine.start(
            "backend.delete",
            key=_key(row.id),
            subject=_subject(row.id),
            params={
                "backend_id": row.id,
                "name": row.name,
                "kind": row.kind,
                "if_match": if_match,
                "hosts": [host.id for host in hosts],
            },
            actor=actor,
        )
        await self._registry.refresh([row.id])
        done = await self._operations.outcome(operation_id, wait_s)
        await self._registry.refresh([row.id])
        return Removed(operation_id, done.result or {}) if done else Pending(operation_id)

    async def plan_removal(self, ref: str) -> dict[str, Any]:
        """What a removal would do, and what blocks it; `refusal` are the words in which it would be refused, or null."""
        backend = self.get(ref)
        async with self._pool.acquire() as connection:
            count, volumes = await store.live_volumes(connection, backend.id)
        blockers = list(volumes)
        if backend.is_default:
            blockers.append({"type": "default", "id": backend.id, "name": backend.name})
        row = self._registry.row(backend.id)
        hosts: Sequence[HostRow] = await self._holders_of(row) if row else ()
        refusal = removal_refusal(row, count, volumes) if row else None
        return {
            "is_allowed": refusal is None,
            "refusal": str(refusal) if refusal else None,
            "live_volumes": count,
            "blockers": blockers,
            "hosts": [
                {
                    "host": host.name,
                    "action": "release now" if self._registry.is_online(host.id) else "release when it returns",
                }
                for host in hosts
            ],
            "left": "data on the storage is left alone; only the backend's marker is removed, and an empty folder that Stowage made",
        }

    async def initialize(self, ref: str, body: InitializeBackend, actor: Actor, wait_s: float) -> Backend | Pending:
        """Ready after our structures are on the confirmed device."""
        row = initializable(self._registry, ref)
        if body.confirm != row.name:
            raise Refused.because(
                ProblemCode.INVALID_FIELD,
                "the confirmation does not fit",
                errors=(FieldError(pointer="/confirm", detail=f"must be the backend's name, {row.name}"),),
            )
        chosen = self._registry.chosen(row)
        first = await self._initializer(row)
        operation_id = await self._engine.start(
            "backend.initialize",
            key=_key(row.id),
            subject=_subject(row.id),
            params={
                "backend_id": row.id,
                "name": row.name,
                "kind": row.kind,
                "config": row.config,
                "generation": row.generation,
                "credential_version": row.credential_version,
                "wwid": body.wwid,
                "force": body.force,
                "first": first.id,
                "others": [h.id for h in chosen if h.id != first.id and self._registry.is_online(h.id)],
                "hosts": [host.id for host in chosen],
            },
            actor=actor,
        )
        return await self._finish(operation_id, row.id, wait_s)

    # ---- inside

    async def _initializer(self, row: BackendRow) -> HostRow:
        """The host to initialize on: the one that has not answered an earlier try if it is back, for it alone may go on at once."""
        first = self._choice.first_online(row)
        async with self._pool.acquire() as connection:
            owing = await places.owing(connection, row.id)
        chosen = self._registry.chosen(row)
        return next((h for h in chosen if owing and h.id == owing.host_id and self._registry.is_online(h.id)), first)

    async def _holders_of(self, row: BackendRow) -> Sequence[HostRow]:
        """The hosts that may hold something of the backend: those chosen for it first, then those that once were."""
        async with self._pool.acquire() as connection:
            touched = await store.touched_hosts(connection, row.id)
        ids = dict.fromkeys((*(host.id for host in self._registry.chosen(row)), *touched))
        return [host for host_id in ids if (host := self._registry.host_row(host_id))]

    async def _true_row(self, ref: str) -> BackendRow:
        """The row as the database has it now, whatever this replica's registry has heard yet."""
        async with self._pool.acquire() as connection:
            row = await store.find(connection, ref, is_id=is_id(ref))
        if row is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {ref[:80]}")
        return row

    async def _finish(self, operation_id: str, backend_id: str, wait_s: float) -> Backend | Pending:
        if wait_s <= 0:
            await self._registry.refresh([backend_id])
            return Pending(operation_id)
        try:
            done = await self._operations.outcome(operation_id, wait_s)
        finally:
            # A write is readable at once on the replica that made it, a failed one's end too.
            await self._registry.refresh([backend_id])
        if done is None:
            return Pending(operation_id)
        await self._nudge_behind(backend_id)
        return self.get(backend_id)

    async def _nudge_behind(self, backend_id: str) -> None:
        """Hosts that came in the meantime and were told to keep their hands off may converge now."""
        row = self._registry.row(backend_id)
        if row is None:
            return
        for cell in self._registry.cells(backend_id):
            if cell.observed_generation != row.generation and self._registry.is_online(cell.host_id):
                await self._agents.nudge(cell.host_id)


def _key(backend_id: str) -> str:
    return f"backend:{backend_id}"


def _subject(backend_id: str) -> str:
    return f"storage_backends/{backend_id}"


def _check_version(row: BackendRow, if_match: int | None) -> None:
    if if_match is not None and row.version != if_match:
        raise Refused.because(
            ProblemCode.STALE_VERSION, f"{row.name} is at version {row.version}, not {if_match}; read it again"
        )


def _merged(
    row: BackendRow, spec: KindSpec, body: EditBackend, *, has_base: bool
) -> tuple[dict[str, Any], Credentials]:
    """The whole config after the edit, and the new credentials. Raises Refused with every wrong field.

    has_base: the new credentials may be a part, for they are laid over older ones.
    """
    errors: list[FieldError] = []
    config = row.config
    if body.config:
        # As RFC 7396 has it: null takes the field away, and what is absent has its default.
        merged = {key: value for key, value in {**row.config, **body.config}.items() if value is not None}
        config, errors = validate_config(spec, merged)
        # A frozen field is reported by name alone: the new value was never going to be used.
        errors += [
            FieldError(
                pointer=f"/config/{name}",
                detail="cannot be changed, for the volumes would stay behind at the old place; add a new backend instead",
            )
            for name in sorted(fixed_fields(spec) & body.config.keys())
            if config.get(name, row.config.get(name)) != row.config.get(name)
        ]
    credentials, wrong = validate_credentials(spec, body.credentials.reveal(), is_partial=has_base)
    errors += wrong
    if body.is_default is False:
        errors.append(
            FieldError(pointer="/is_default", detail="cannot be switched off; make a different backend default instead")
        )
    if errors:
        raise Refused.for_fields(errors)
    return config, credentials
