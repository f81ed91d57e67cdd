"""Use cases in memory, at the seam between the API and the rest of the manager."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from manager.actor import Actor
from manager.backends import Removed
from manager.capacity import CapacityHistory
from manager.errors import Refused
from manager.hosts import JoinToken
from manager.operations import Pending
from manager.store.capacity import Sample
from schemas.agent_rpc import Discovered
from schemas.backends import Backend, BackendState, Capability, Health, HealthStatus, HostObservation, HostSummary
from schemas.events import GENESIS, ChainReport, CloudEvent, EventType
from schemas.hosts import EnrolReply, EnrolRequest, Host, HostSelector, HostState
from schemas.ids import new_id
from schemas.operations import Operation, OperationState, Progress
from schemas.problems import Problem, ProblemCode
from schemas.requests import AddBackend, DiscoverStorage, EditBackend, InitializeBackend

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def make_host(name: str, **changes: Any) -> Host:
    host = Host(
        id=new_id(),
        name=name,
        state=HostState.ONLINE,
        kinds=("local_file", "nfs"),
        labels={},
        agent_version="1",
        joined_at=NOW,
        last_seen_at=NOW,
    )
    return msgspec.structs.replace(host, **changes)


def make_operation(
    state: OperationState,
    subject: str,
    error: Problem | None = None,
    *,
    kind: str = "backend.add",
    result: dict[str, Any] | None = None,
) -> Operation:
    return Operation(
        id=new_id(),
        kind=kind,
        subject=subject,
        state=state,
        steps=(),
        progress=Progress(),
        is_cancelled=False,
        error=error,
        result=result,
        actor="token:operator",
        created_at=NOW,
        updated_at=NOW,
    )


def make_event(sequence: int) -> CloudEvent:
    return CloudEvent(
        id=new_id(),
        source="/stowage/fleet",
        type=EventType.BACKEND_CREATED,
        subject=f"storage_backends/{new_id()}",
        time="2026-01-31T12:00:00Z",
        actor="token:operator",
        requestid="r",
        sequence=str(sequence),
        prevhash=GENESIS,
        hash=GENESIS,
        data={"name": f"b{sequence}"},
    )


class BackendsInMemory:
    """An add waits at `gate` while it is closed, raises `failure` if one is set, and goes on for ever if `is_slow`."""

    def __init__(self) -> None:
        self.rows: dict[str, Backend] = {}
        self.calls: list[tuple[str, Any]] = []
        self.actors: list[Actor] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.failure: Exception | None = None
        self.is_slow = False
        self.operation_id = new_id()

    def list(self) -> Sequence[Backend]:
        return list(self.rows.values())

    def get(self, ref: str) -> Backend:
        for row in self.rows.values():
            if ref in (row.id, row.name):
                return row
        raise Refused.because(ProblemCode.NOT_FOUND, "there is no such backend")

    def observations(self, ref: str) -> tuple[HostObservation, ...]:
        self.get(ref)
        return (HostObservation(host="hv1", host_id=new_id(), status=HealthStatus.HEALTHY),)

    async def add(self, body: AddBackend, actor: Actor, wait_s: float) -> Backend | Pending:
        self.calls.append(("add", wait_s))
        self.actors.append(actor)
        self.entered.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if self.is_slow or wait_s == 0:
            return Pending(self.operation_id)
        if any(row.name == body.name for row in self.rows.values()):
            raise Refused.because(ProblemCode.NAME_TAKEN, f"there is a backend named {body.name}")
        return self.insert(body.name, body.kind, config=body.config, labels=body.labels, hosts=body.hosts)

    async def edit(
        self, ref: str, body: EditBackend, if_match: int | None, actor: Actor, wait_s: float
    ) -> Backend | Pending:
        self.calls.append(("edit", body))
        row = self.get(ref)
        if if_match not in (None, row.version):
            raise Refused.because(ProblemCode.STALE_VERSION, "it was changed since")
        row = msgspec.structs.replace(row, version=row.version + 1, name=body.name or row.name)
        self.rows[row.id] = row
        return row

    async def remove(self, ref: str, if_match: int | None, actor: Actor, wait_s: float) -> Removed | Pending:
        self.calls.append(("remove", if_match))
        row = self.get(ref)
        if if_match not in (None, row.version):
            raise Refused.because(ProblemCode.STALE_VERSION, "it was changed since")
        if wait_s == 0:
            return Pending(self.operation_id)
        del self.rows[row.id]
        return Removed(self.operation_id, {"left": {"hv1": ["3 entries in /srv/vms"]}})

    async def plan_removal(self, ref: str) -> dict[str, Any]:
        return {"backend": self.get(ref).name, "blockers": []}

    async def initialize(self, ref: str, body: InitializeBackend, actor: Actor, wait_s: float) -> Backend | Pending:
        return self.get(ref)

    def insert(self, name: str, kind: str = "nfs", **changes: Any) -> Backend:
        row = Backend(
            id=new_id(),
            name=name,
            kind=kind,
            config={},
            has_credentials=False,
            is_default=False,
            state=BackendState.READY,
            health=Health(status=HealthStatus.HEALTHY, code=None, detail=None, since=NOW),
            capabilities=(Capability.EXTERNAL,),
            capacity=None,
            hosts=HostSelector(),
            host_summary=HostSummary(total=1, healthy=1),
            live_volumes=0,
            labels={},
            generation=1,
            version=1,
            created_at=NOW,
            updated_at=NOW,
        )
        row = msgspec.structs.replace(row, **changes)
        self.rows[row.id] = row
        return row


class ProbingInMemory:
    """Asks about the backends of the other stand-in, and fails as they do."""

    def __init__(self, backends: BackendsInMemory) -> None:
        self._backends = backends

    async def probe(self, ref: str, actor: Actor) -> tuple[HostObservation, ...]:
        if self._backends.failure is not None:
            raise self._backends.failure
        return self._backends.observations(ref)

    async def probe_all(self, actor: Actor) -> Sequence[tuple[Backend, tuple[HostObservation, ...]]]:
        return [(row, self._backends.observations(row.id)) for row in self._backends.rows.values()]

    async def preflight(self, body: AddBackend, actor: Actor) -> Sequence[dict[str, Any]]:
        return [{"host": "hv1", "checks": []}]

    async def inspection(self, ref: str, actor: Actor) -> dict[str, Any]:
        return {"wwid": "w", "size_bytes": 1, "backend": self._backends.get(ref).name}


class HostsInMemory:
    def __init__(self) -> None:
        self.rows = [
            make_host("hv1"),
            make_host("hv2", labels={"zone": "a"}),
            make_host("hv3", state=HostState.OFFLINE),
        ]
        self.made = 0
        self.discoveries: list[DiscoverStorage] = []

    def list(self) -> Sequence[Host]:
        return self.rows

    def get(self, ref: str) -> Host:
        for row in self.rows:
            if ref in (row.id, row.name):
                return row
        raise Refused.because(ProblemCode.NOT_FOUND, "there is no such host")

    async def create_join_token(self, ttl_s: int, actor: Actor) -> JoinToken:
        self.made += 1
        secret = f"join-secret-{self.made}"
        return JoinToken(token=secret, expires_at=NOW, command=f"stowage-agent join {secret}")

    async def enrol(self, request: EnrolRequest, request_id: str) -> EnrolReply:
        if request.token != "good":
            raise Refused.because(ProblemCode.UNAUTHORIZED, "the join token is unknown, used or expired")
        return EnrolReply(host_id=new_id(), fleet_id="f", user_jwt="j", nats_urls=(), manager_key="k")

    async def revoke(self, ref: str, actor: Actor) -> None:
        self.rows = [row for row in self.rows if row != self.get(ref)]

    async def discover(self, ref: str, body: DiscoverStorage, actor: Actor) -> tuple[Discovered, ...]:
        self.get(ref)
        self.discoveries.append(body)
        return (Discovered(title="/tank", config={"export": "/tank"}),)


class CapacitiesInMemory:
    def __init__(self) -> None:
        sample = Sample(at=NOW, used_bytes=3, total_bytes=10)
        self.rows = [
            CapacityHistory(backend_id=new_id(), backend="tank", full_in_days=12.5, samples=(sample,)),
            CapacityHistory(backend_id=new_id(), backend="new", full_in_days=None, samples=()),
        ]

    async def list(self) -> Sequence[CapacityHistory]:
        return self.rows


class OperationsInMemory:
    def __init__(self) -> None:
        self.rows: dict[str, Operation] = {}

    async def get(self, operation_id: str) -> Operation:
        if operation_id not in self.rows:
            raise Refused.because(ProblemCode.NOT_FOUND, "there is no such operation")
        return self.rows[operation_id]

    async def list(
        self, *, subject: str | None, state: str | None, kind: str | None, cursor: str | None, limit: int
    ) -> tuple[Sequence[Operation], str | None]:
        found = sorted(self.rows.values(), key=lambda o: o.id, reverse=True)
        found = [o for o in found if state in (None, o.state) and (cursor is None or o.id < cursor)]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def retry(self, operation_id: str, actor: Actor) -> Operation:
        return await self.get(operation_id)

    async def cancel(self, operation_id: str, actor: Actor) -> Operation:
        operation = await self.get(operation_id)
        if operation.state is not OperationState.RUNNING:
            raise Refused.because(ProblemCode.WRONG_STATE, f"the operation is {operation.state.value}")
        self.rows[operation_id] = msgspec.structs.replace(operation, is_cancelled=True)
        return self.rows[operation_id]


class EventsInMemory:
    """A subscriber gets what lies behind its last sequence, then what is put into `queue`; None is a tick."""

    def __init__(self) -> None:
        self.rows = [make_event(n) for n in range(1, 6)]
        self.queue: asyncio.Queue[CloudEvent | None] = asyncio.Queue()
        self.open_subscriptions = 0

    async def page(
        self,
        *,
        subject: str | None,
        type: str | None,
        actor: str | None,
        since: dt.datetime | None,
        limit: int,
        cursor: str | None,
        is_newest_first: bool,
    ) -> tuple[Sequence[CloudEvent], str | None]:
        found = [e for e in self.rows if int(e.sequence) > int(cursor or 0)]
        if is_newest_first:
            found = [e for e in reversed(self.rows) if int(e.sequence) < int(cursor or 99)]
        return found[:limit], found[limit - 1].sequence if len(found) > limit else None

    async def newest(self) -> int:
        return int(self.rows[-1].sequence)

    async def verified(self) -> ChainReport:
        at = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
        return ChainReport(is_intact=True, events=len(self.rows), first_broken=None, is_complete=True, verified_at=at)

    async def subscribe(self, last_event_sequence: int) -> AsyncIterator[CloudEvent | None]:
        self.open_subscriptions += 1
        try:
            for event in self.rows:
                if int(event.sequence) > last_event_sequence:
                    yield event
            while True:
                yield await self.queue.get()
        finally:
            self.open_subscriptions -= 1
