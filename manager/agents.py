"""Commands to agents over the bus: one request, one typed answer, or an AgentError that says what may be concluded."""

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Any, TypeVar, assert_never

import msgspec

from manager.errors import AgentError, AgentFailed, AgentOffline, AgentTimeout, Refused, StaleFence
from manager.registry import Registry
from manager.store.backends import BackendRow, WantedRow
from schemas import subjects
from schemas.agent_rpc import AnyCommand, Failed, Nudge, Ok, Reply, Stale
from schemas.bus import Bus, BusDown, BusTimeout, NoResponders
from schemas.command import Target
from schemas.faults import Fault, FaultCode, fault
from schemas.ids import HostId, new_id
from schemas.problems import ProblemCode
from schemas.volume_rpc import AnyUploadCommand

ResultT = TypeVar("ResultT")

#: Commands under way at once to one host, and from this replica in all; as many questions, which change nothing (fence 0),
#: beside them: a person who asks a dead backend again and again must not hold up the sagas of the others.
PER_HOST = 16
IN_ALL = 256
#: Seconds an agent has for one command; below the 30 s in which an API call waits for its saga.
COMMAND_TTL_S = 20.0
_MAX_WORDS = 2000
#: RecursionError: an answer of nothing but brackets.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_NAMESPACE = uuid.UUID("0192f0c4-7f7e-7000-8000-73746f776167")


def command_id(operation_id: str, step: str, phase: str, host_id: str, verb: str, attempt: int) -> str:
    """The same for a command that is repeated because nobody knows its outcome, whichever replica repeats it.

    attempt counts definite failures: trying those again is a new command.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{operation_id}:{step}:{phase}:{host_id}:{verb}:{attempt}"))


class Agents:
    """The manager's voice on the bus (user `commands`). Uploads have places of their own beside commands and questions."""

    def __init__(self, bus: Bus, registry: Registry, *, ttl_s: float = COMMAND_TTL_S) -> None:
        self._bus = bus
        self._registry = registry
        self.ttl_ms = int(ttl_s * 1000)
        self._commands, self._questions, self._uploads = _Places(), _Places(), _Places()

    async def ask(self, host_id: str, command: AnyCommand, result: type[ResultT]) -> ResultT:
        """The agent's result.

        Raises AgentOffline, AgentTimeout (outcome unknown; also a garbled answer), AgentFailed, StaleFence.
        """
        verb = str(command.__struct_config__.tag)
        subject = subjects.command(HostId(host_id), verb)
        name = self._registry.host_name(host_id)
        places = self._commands if command.fence else self._questions
        if isinstance(command, AnyUploadCommand):
            places = self._uploads
        async with places.turn(host_id, command.ttl_ms / 1000, name):
            try:
                answer = await self._bus.request(
                    subject, msgspec.json.encode(command), timeout_s=command.ttl_ms / 1000 + 1.0
                )
            except NoResponders as error:
                raise AgentOffline(host_id, f"host {name} is offline") from error
            except (BusTimeout, BusDown) as error:
                raise AgentTimeout(host_id, f"host {name} did not answer {verb} in time") from error
        try:
            reply: Reply = msgspec.json.decode(answer, type=Reply)
        except _UNREADABLE as error:
            raise AgentTimeout(host_id, f"host {name} answered {verb} with something unreadable") from error
        match reply:
            case Ok(result=raw):
                try:
                    return msgspec.json.decode(raw, type=result)
                except _UNREADABLE as error:
                    raise AgentTimeout(host_id, f"host {name} answered {verb} with something unreadable") from error
            case Failed(fault=what, is_retryable=is_retryable):
                raise AgentFailed(host_id, fit_fault(what, name), is_retryable=is_retryable)
            case Stale(fence=fence):
                raise StaleFence(host_id, fence, f"host {name} has seen fence {fence}")
            case _:
                assert_never(reply)

    def head(self, backend_id: str, *, fence: int = 0, request_id: str = "") -> dict[str, Any]:
        """What every command begins with. fence 0: it changes nothing."""
        return {
            "command_id": new_id(),
            "backend_id": backend_id,
            "fence": fence,
            "ttl_ms": self.ttl_ms,
            "request_id": request_id,
        }

    @property
    def is_connected(self) -> bool:
        """Whether commands can be sent at all."""
        return self._bus.is_usable

    async def nudge(self, host_id: str) -> None:
        """The host syncs soon. Lost nudges cost a reconcile interval, nothing else."""
        command = Nudge(command_id=new_id(), backend_id="", fence=0, ttl_ms=0)
        with contextlib.suppress(BusDown):
            await self._bus.publish(subjects.command(HostId(host_id), "nudge"), msgspec.json.encode(command))

    async def nudge_all(self) -> None:
        for host in self._registry.live_hosts():
            await self.nudge(host.id)


class _Places:
    """Who waits for one host's places holds none of the others'."""

    def __init__(self) -> None:
        self._in_all = asyncio.Semaphore(IN_ALL)
        self._per_host: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(PER_HOST))

    @contextlib.asynccontextmanager
    async def turn(self, host_id: str, patience_s: float, name: str) -> AsyncGenerator[None]:
        """A place, had within the patience. Raises AgentTimeout."""
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(patience_s):
                    await held.enter_async_context(self._per_host[host_id])
                    await held.enter_async_context(self._in_all)
            except TimeoutError as error:
                raise AgentTimeout(host_id, f"host {name} has too much under way, so it was not asked") from error
            yield


def fit_fault(what: Fault, host_name: str) -> Fault:
    """The fault under the host's name, its words bounded and without NUL, which the database does not take."""
    return Fault(
        code=what.code,
        detail=what.detail.replace("\0", "")[:_MAX_WORDS],
        remedy=what.remedy.replace("\0", "")[:_MAX_WORDS],
        host=host_name,
    )


def target_of(row: BackendRow | WantedRow, fleet_id: str) -> Target:
    """The backend as its row has it, for a host."""
    return Target(
        backend_id=row.id,
        fleet_id=fleet_id,
        kind=row.kind,
        config=row.config,
        generation=row.generation,
        credential_version=row.credential_version,
    )


def refusal(error: AgentError, host: str, failed: str) -> Refused:
    """What a caller is told when the one host that was asked could not answer. failed: in words, if the host says so itself."""
    if isinstance(error, AgentFailed):
        return Refused.because(ProblemCode.PROBE_FAILED, failed, faults=(error.fault,))
    if isinstance(error, AgentOffline):
        return Refused.because(ProblemCode.NO_AGENT, str(error), faults=(offline_fault(host),), retry_after_s=5)
    return Refused.because(ProblemCode.AGENT_TIMEOUT, str(error), faults=(silent_fault(host, str(error)),))


def silent_fault(host_name: str, detail: str) -> Fault:
    """What a host that was asked and did not answer in time looks like in a list of faults."""
    remedy = "See what the host's agent waits for (its log, same request id), and that the host reaches the bus and its storage"
    return msgspec.structs.replace(fault(FaultCode.TIMED_OUT, detail, remedy), host=host_name)


def offline_fault(host_name: str) -> Fault:
    """What a host that is not there looks like in a list of faults."""
    return msgspec.structs.replace(fault(FaultCode.HOST_OFFLINE, f"host {host_name} is offline"), host=host_name)
