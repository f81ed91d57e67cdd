"""Commands from the bus: decoded, ordered by fence, answered once, whatever is sent.

Under the backend's lock: time left? -> fence not stale? -> answered before? -> act -> journal -> reply.
Only successes are journaled: a failure may be tried again under the same id, and every verb can be.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import assert_never

import msgspec

from agent.credentials import CredentialStore, Deliveries
from agent.drivers.base import Deadline, boot_time_s
from agent.errors import AgentFault
from agent.held_volumes import HeldVolumes
from agent.host import Host
from agent.journal import Journal
from agent.volume_checks import objection
from agent.volume_host import VolumeHost
from schemas.agent_rpc import (
    MAX_MESSAGE_BYTES,
    AnyCommand,
    Attach,
    CredentialNonce,
    Discover,
    DropCredentials,
    Failed,
    Initialize,
    Inspect,
    Nonce,
    Nudge,
    Ok,
    Preflight,
    Probe,
    Release,
    Reply,
    ResealCredentials,
    Sealed,
    Stale,
    StoreCredentials,
    Trial,
)
from schemas.bus import BusError, Message
from schemas.credentials import Credentials
from schemas.faults import FaultCode, fault
from schemas.ids import is_id
from schemas.logs import about
from schemas.volume_rpc import (
    AnyUploadCommand,
    AnyVolumeCommand,
    AttachVolume,
    BlankVolume,
    CompareVolume,
    DetachVolume,
    EraseVolume,
    FillVolume,
    ListVolumes,
    MakeVolume,
    PrepareSource,
    ReceiveChunk,
    ResizeVolume,
    VolumeCommand,
    WipeVolume,
)

log = logging.getLogger(__name__)

#: Their replies are kept. The others change nothing that lasts, or answer with what must not be kept (nonces, boxes).
_JOURNALED = (
    Attach,
    Release,
    StoreCredentials,
    DropCredentials,
    Initialize,
    MakeVolume,
    EraseVolume,
    ResizeVolume,
    AttachVolume,
    DetachVolume,
)
#: Without the backend's lock: a probe takes it itself, so that who asks during one joins it; work of hours would keep it from all.
#: And an upload touches no backend.
_UNLOCKED = (Probe, PrepareSource, FillVolume, CompareVolume, WipeVolume, BlankVolume, ListVolumes, AnyUploadCommand)
_MAX_FENCE = 2**63 - 1

_reply_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)
_decoder: msgspec.json.Decoder[AnyCommand] = msgspec.json.Decoder(AnyCommand)


class CommandServer:
    """`handle` is the bus subscription's handler.

    send: publishes a reply. nudge: wakes the reconciler. clock: must count the time in which this process is stopped.
    """

    def __init__(
        self,
        *,
        host: Host,
        volumes: VolumeHost,
        held: HeldVolumes,
        journal: Journal,
        store: CredentialStore,
        deliveries: Deliveries,
        send: Callable[[str, bytes], Awaitable[None]],
        nudge: Callable[[], None],
        clock: Callable[[], float] = boot_time_s,
    ) -> None:
        self._host = host
        self._volumes = volumes
        self._held = held
        self._journal = journal
        self._store = store
        self._deliveries = deliveries
        self._send = send
        self._nudge = nudge
        self._clock = clock

    async def handle(self, message: Message) -> None:
        """Answers the command; returns when that is done."""
        received_at = self._clock()
        command = _decode(message)
        if command is None:
            what = fault(
                FaultCode.FAILED,
                "this host's agent cannot read the command",
                "Bring the agent on this host to the manager's version",
            )
            await self._reply(message, Failed(fault=what))
        elif isinstance(command, Nudge):
            self._nudge()
        else:
            with about(backend_id=command.backend_id, request_id=command.request_id):
                reply = await self._answer_whatever_happens(command, received_at)
                verb, outcome = command.__struct_config__.tag, reply.__struct_config__.tag
                duration_s = round(self._clock() - received_at, 3)
                facts = {"verb": verb, "outcome": outcome, "duration_s": duration_s}
                if isinstance(command, VolumeCommand):
                    facts["volume_id"] = command.volume_id
                # An image comes in thousands of chunks.
                level = logging.DEBUG if isinstance(command, ReceiveChunk) else logging.INFO
                log.log(level, "command answered", extra=facts)
                await self._reply(message, reply)

    async def _answer_whatever_happens(self, command: AnyCommand, received_at: float) -> Reply:
        """The edge: what is no AgentFault is logged in full and answered without a word of it."""
        try:
            return await self._answer(command, received_at)
        except AgentFault as error:
            code, detail = error.fault.code.value, error.fault.detail
            log.warning("command failed", extra={"code": code, "detail": detail}, exc_info=error.__cause__)
            return Failed(fault=error.fault, is_retryable=error.is_retryable)
        except Exception:
            log.exception("command raised")
            detail = f"internal error on the host; request id {command.request_id or '-'}"
            return Failed(fault=fault(FaultCode.FAILED, detail))

    async def _answer(self, command: AnyCommand, received_at: float) -> Reply:
        deadline = Deadline(received_at + command.ttl_ms / 1000, self._clock)
        if isinstance(command, Discover):
            return await self._act(command, deadline)
        if isinstance(command, _UNLOCKED):
            return self._stale(command) or await self._act(command, deadline)
        async with self._host.lock(command.backend_id):
            if deadline.left_s < 0:
                waited_s = self._clock() - received_at
                what = fault(
                    FaultCode.TIMED_OUT, f"the host was busy with the backend for {waited_s:.0f} s; nothing was done"
                )
                return Failed(fault=what, is_retryable=True)
            if stale := self._stale(command):
                return stale
            if not isinstance(command, _JOURNALED):
                return await self._act(command, deadline)
            if kept := self._journal.answered(command.command_id):
                return _reply_decoder.decode(kept)
            reply = await self._act(command, deadline)
            self._journal.keep_answer(command.command_id, msgspec.json.encode(reply))
            return reply

    def _stale(self, command: AnyCommand) -> Stale | None:
        """The refusal of a fence that is too low; else the fence is remembered. 0 asks what changes nothing."""
        if command.fence == 0 and not isinstance(command, (*_JOURNALED, VolumeCommand)):
            return None
        subject = command.volume_id if isinstance(command, VolumeCommand) else command.backend_id
        known = self._journal.fence(subject)
        if command.fence == 0 and isinstance(command, AnyUploadCommand):
            # No saga has the volume yet, and none needs to: what is sent lies in our own folder, under an id that nobody else knows.
            return None if known is None else Stale(fence=known)
        lowest = self._journal.floor() if known is None else known
        if command.fence < lowest:
            log.warning("stale command refused", extra={"fence": command.fence, "lowest": lowest})
            return Stale(fence=lowest)
        if command.fence != known:
            self._journal.remember_fences({subject: command.fence})
        return None

    async def _act(self, command: AnyCommand, deadline: Deadline) -> Ok:
        return Ok(result=msgspec.Raw(msgspec.json.encode(await self._dispatch(command, deadline))))

    async def _dispatch(self, command: AnyCommand, deadline: Deadline) -> object:
        match command:
            case Attach(target=target, establish=establish):
                observation = await self._host.attach(target, establish=establish)
                await self._held.restore(target.backend_id)
                return observation
            case Release(backend_id=backend_id, remove_marker=remove_marker):
                await self._held.refuse_release(backend_id)
                return await self._host.release(backend_id, remove_marker=remove_marker)
            case Trial(target=target):
                return await self._host.trial(target)
            case Probe(backend_id=backend_id):
                return await self._host.probe(backend_id)
            case CredentialNonce(backend_id=backend_id, version=version):
                return Nonce(nonce=self._deliveries.nonce(backend_id, version))
            case StoreCredentials():
                self._store_credentials(command)
                return None
            case DropCredentials(backend_id=backend_id, from_version=from_version):
                self._store.drop_from(backend_id, from_version)
                return None
            case ResealCredentials():
                return Sealed(sealed=self._reseal(command))
            case Discover(backend_id=delivery, kind=kind, config=config, sealed=sealed):
                credentials = self._deliveries.open(delivery, 1, sealed) if sealed else Credentials({})
                return await self._host.discover(kind, config, credentials, deadline)
            case Inspect(target=target):
                return await self._host.inspect(target)
            case Initialize(target=target, wwid=wwid, force=force):
                return await self._host.initialize(target, wwid=wwid, force=force, deadline=deadline)
            case Preflight(target=target, sealed=sealed):
                version = target.credential_version or 1
                credentials = self._deliveries.open(target.backend_id, version, sealed) if sealed else Credentials({})
                return await self._host.preflight(target, credentials)
            case Nudge():
                return None
            case VolumeCommand() | ListVolumes():
                return await self._volumes.handle(command, deadline)
        assert_never(command)

    def _store_credentials(self, command: StoreCredentials) -> None:
        """Kept as that version; laid over the base version where only some of the fields are new."""
        given = self._deliveries.open(command.backend_id, command.version, command.sealed)
        if command.base_version:
            given = self._store.get(command.backend_id, command.base_version).merged(given)
        self._store.put(command.backend_id, command.version, given)

    def _reseal(self, command: ResealCredentials) -> bytes:
        try:
            key = bytes.fromhex(command.to_key)
        except ValueError as error:
            raise AgentFault.of(FaultCode.FAILED, "the other host's key is not hexadecimal") from error
        return self._deliveries.reseal(
            self._store.get(command.backend_id, command.version),
            backend_id=command.backend_id,
            version=command.version,
            to_host=command.to_host,
            to_key=key,
            nonce=command.nonce,
        )

    async def _reply(self, message: Message, reply: Reply) -> None:
        if not message.reply:
            return
        content = msgspec.json.encode(reply)
        if len(content) > MAX_MESSAGE_BYTES:
            what = fault(FaultCode.FAILED, "the answer is too long for one message; narrow the question")
            content = msgspec.json.encode(Failed(fault=what))
        try:
            await self._send(message.reply, content)
        except BusError as error:
            log.warning("reply lost", extra={"reason": str(error)})


def _decode(message: Message) -> AnyCommand | None:
    """The command, or None (logged) where it is not one that may be obeyed."""
    verb = message.subject.rpartition(".")[2]
    try:
        command = _decoder.decode(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("unreadable command", extra={"subject": message.subject, "reason": str(error)[:200]})
        return None
    if reason := _objection(command, verb):
        log.warning("command refused", extra={"subject": message.subject, "reason": reason})
        return None
    return command


def _objection(command: AnyCommand, verb: str) -> str:
    """Why the command may not be obeyed; empty when it may."""
    if command.__struct_config__.tag != verb:
        return "the verb in the body is not the subject's"
    if not 0 <= command.fence <= _MAX_FENCE:
        return "the fence is out of range"
    if isinstance(command, Discover | Nudge):
        return ""
    # It becomes a part of file names.
    if not is_id(command.backend_id):
        return "the backend id is none"
    if (
        isinstance(command, Attach | Trial | Inspect | Initialize | Preflight)
        and command.target.backend_id != command.backend_id
    ):
        return "head and target name different backends"
    if isinstance(command, CredentialNonce | StoreCredentials | ResealCredentials) and not 1 <= command.version < 10**9:
        return "the credential version is out of range"
    return objection(command) if isinstance(command, AnyVolumeCommand) else ""
