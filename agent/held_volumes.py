"""Which volumes this host may use: what commands say, what the manager's word takes away, what comes back with a backend.

An attachment is noted before it is made, so that after `kill -9` it is known what may be open here. The manager's word (a sync)
lists what the host may use; what is noted and not in it went to another host while this one was away, and is fenced off.
"""

import asyncio
import dataclasses
import logging
from collections import defaultdict
from dataclasses import dataclass

from agent.errors import AgentFault
from agent.host import Host
from agent.journal import Journal, NotedAttachment
from schemas.faults import FaultCode
from schemas.logs import about
from schemas.volume_rpc import AttachedAt, AttachVolume, DetachVolume, HeldVolume, VolumeSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Word:
    """Of a sync: the (volume id, epoch) that the host may use, as of the fence."""

    held: frozenset[tuple[str, int]]
    fence: int


class HeldVolumes:
    """`fence_off` takes the lock of each backend; for all else that changes something the caller holds it."""

    def __init__(self, *, host: Host, journal: Journal) -> None:
        self._host = host
        self._journal = journal
        self._word: _Word | None = None
        self._unrestored: set[str] = set()

    async def attach(self, command: AttachVolume) -> AttachedAt:
        """See AttachVolume. Where a first attach fails nothing is left of it, or it stays noted until it can be undone.

        Under a newer epoch whoever has had it under an older one is fenced off first: the manager took it away meanwhile.
        """
        volume_id, spec = command.volume_id, command.spec
        newest = self._journal.epoch(volume_id)
        if command.epoch < newest:
            raise AgentFault.of(
                FaultCode.FENCED_OFF, f"the volume was attached with epoch {newest} since, and this is {command.epoch}"
            )
        store = self._host.volumes(command.backend_id)
        before = self._journal.attachment(volume_id)
        if before is not None and (before.backend_id, before.spec.locator) != (command.backend_id, spec.locator):
            detail = f"the volume is still attached on this host as {before.spec.locator}, with epoch {before.epoch}"
            raise AgentFault.of(FaultCode.IN_USE, detail, "Detach it on this host first", is_retryable=True)
        if before is not None and before.epoch < command.epoch:
            await self._end(before)
            before = None
        note = NotedAttachment(
            volume_id=volume_id,
            backend_id=command.backend_id,
            epoch=command.epoch,
            fence=command.fence,
            mode=command.mode,
            spec=spec,
        )
        self._journal.note_attachment(note)
        try:
            return await store.attach(spec, command.mode)
        except AgentFault:
            if before is None:
                await self._undo(note)
            raise

    async def detach(self, command: DetachVolume) -> None:
        """See DetachVolume. Of a backend of which nothing is held here, nothing is attached either."""
        volume_id = command.volume_id
        note = self._journal.attachment(volume_id)
        if note is not None and command.epoch < note.epoch:
            raise AgentFault.of(
                FaultCode.FENCED_OFF, f"the volume is attached with epoch {note.epoch}, and this is {command.epoch}"
            )
        self._journal.remember_epoch(volume_id, command.epoch)
        if self._journal.record(command.backend_id) is not None:
            await self._host.volumes(command.backend_id).detach(command.spec)
        self.drop(volume_id, command.spec)

    def drop(self, volume_id: str, spec: VolumeSpec) -> None:
        """This incarnation is not attached here any more; another one stays as it is."""
        note = self._journal.attachment(volume_id)
        if note is not None and note.spec.locator == spec.locator:
            self._journal.drop_attachment(volume_id)

    async def refuse_release(self, backend_id: str) -> None:
        """Nothing of the backend is attached here any more, or AgentFault in_use: who has a volume open keeps it beyond a mount that
        is taken away, and nobody would find him. What the word takes away is fenced off.
        """
        for note in self._journal.attachments():
            if note.backend_id != backend_id:
                continue
            if self._is_lost(note):
                await self._fence_off_one(note)
            if self._journal.attachment(note.volume_id) == note:
                raise AgentFault.of(
                    FaultCode.IN_USE,
                    f"the volume {note.spec.locator} is attached on this host",
                    "Detach it first; what was detached with force is closed as soon as who has it open ends",
                    is_retryable=True,
                )

    def note_size(self, volume_id: str, spec: VolumeSpec) -> None:
        """Where this incarnation is attached here, it is attached with this size from now on."""
        note = self._journal.attachment(volume_id)
        if note is not None and note.spec.locator == spec.locator:
            self._journal.note_attachment(dataclasses.replace(note, spec=spec))

    def hear(self, held: tuple[HeldVolume, ...], fence: int) -> None:
        """This is the manager's word from now on; `fence_off` makes it true."""
        self._word = _Word(frozenset((line.volume_id, line.epoch) for line in held), fence)

    async def fence_off(self) -> None:
        """What the last word takes away is not usable here any more. What fails is logged, stays noted, and is tried again the
        next time. A dead backend does not hold up the others.
        """
        lost: defaultdict[str, list[NotedAttachment]] = defaultdict(list)
        for note in self._journal.attachments():
            if self._is_lost(note):
                lost[note.backend_id].append(note)
        await asyncio.gather(
            *(self._settle(backend_id, tuple(lost[backend_id])) for backend_id in sorted({*lost, *self._unrestored}))
        )

    async def restore(self, backend_id: str) -> None:
        """After the backend was attached anew: so are its volumes that are noted here. Failures are logged.

        Not before a word was heard: since this agent last ran, another host may have been given them.
        """
        if self._word is None:
            self._unrestored.add(backend_id)
            return
        self._unrestored.discard(backend_id)
        for note in self._journal.attachments():
            if note.backend_id == backend_id and not self._is_lost(note):
                try:
                    await self._host.volumes(backend_id).attach(note.spec, note.mode)
                except AgentFault as error:
                    _warn("attachment not restored", note, error)

    def _is_lost(self, note: NotedAttachment) -> bool:
        """Whether the word takes it away; one that was made by a newer command than that, it knows nothing of."""
        word = self._word
        return word is not None and note.fence <= word.fence and (note.volume_id, note.epoch) not in word.held

    async def _settle(self, backend_id: str, lost: tuple[NotedAttachment, ...]) -> None:
        with about(backend_id=backend_id):
            async with self._host.lock(backend_id):
                for note in lost:
                    # Meanwhile a command may have attached it anew, or detached it.
                    if self._journal.attachment(note.volume_id) == note and self._is_lost(note):
                        await self._fence_off_one(note)
                if backend_id in self._unrestored:
                    await self.restore(backend_id)

    async def _fence_off_one(self, note: NotedAttachment) -> None:
        try:
            await self._end(note)
        except AgentFault as error:
            _warn("attachment not fenced off", note, error)
        except Exception:
            # An edge: a bug met with one volume must not keep the others open.
            log.exception("fencing raised", extra={"volume_id": note.volume_id})

    async def _end(self, note: NotedAttachment) -> None:
        """Nobody here writes to it any more. Of a backend that is gone from here nothing is open: `refuse_release` sees to it."""
        for store in self._host.volumes_to_fence(note.backend_id):
            await store.fence_off(note.spec)
        self._journal.drop_attachment(note.volume_id)
        log.warning("attachment fenced off", extra={"volume_id": note.volume_id, "epoch": note.epoch})

    async def _undo(self, note: NotedAttachment) -> None:
        try:
            await self._host.volumes(note.backend_id).detach(note.spec)
        except AgentFault as error:
            # It stays noted, so the next sync, or the command that gives up the attachment, ends it.
            _warn("failed attachment not undone", note, error)
        else:
            self._journal.drop_attachment(note.volume_id)


def _warn(message: str, note: NotedAttachment, error: AgentFault) -> None:
    facts = {"volume_id": note.volume_id, "epoch": note.epoch, "code": error.fault.code.value}
    log.warning(message, extra=facts | {"detail": error.fault.detail}, exc_info=error.__cause__)
