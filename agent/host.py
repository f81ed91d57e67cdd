"""The verbs of this host, over the drivers: what is recorded before, what is kept and dropped after.

Whoever calls a verb that changes something holds `lock` of the backend; `probe` takes it itself. The
record of a backend is written before its driver acts, so that a kill leaves a trace (journal.py).
"""

import asyncio
import contextlib
import datetime as dt
import logging
import shutil
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from agent.config import AgentConfig, StateDir
from agent.credentials import CredentialStore
from agent.drivers.base import Deadline, Driver, ProbeReport, Workspace
from agent.errors import AgentFault
from agent.journal import Journal, Record, RecordState
from agent.private_files import make_private_dir
from agent.status import Board, assess, failing
from agent.volumes import VolumeStore
from schemas.agent_rpc import Check, Discovery, Held, Inspection, Observation, PreflightReport, ReleaseReport
from schemas.backends import HealthStatus
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import Fault, FaultCode, fault
from schemas.ids import is_id
from schemas.kinds import KINDS
from schemas.validation import validate_config

log = logging.getLogger(__name__)

#: A question to the kernel, not to the storage; still it runs beside mounts.
_IS_ATTACHED_S = 10.0
_CLEAN_TRIAL_S = 60.0
#: The driver's own deadline comes first and says more; this one is for a driver that forgot it.
_PROBE_GRACE_S = 2.0


class Host:
    """See the module. Every verb raises AgentFault and can be repeated."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        state: StateDir,
        journal: Journal,
        store: CredentialStore,
        drivers: Mapping[str, Driver],
        board: Board,
    ) -> None:
        self._config = config
        self._state = state
        self._journal = journal
        self._store = store
        self._drivers = drivers
        self._board = board
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._probes: dict[str, asyncio.Task[Observation]] = {}

    def lock(self, backend_id: str) -> asyncio.Lock:
        """The backend's lock, first come, first served."""
        lock = self._locks.get(backend_id)
        if lock is None:
            lock = self._locks[backend_id] = asyncio.Lock()
        return lock

    def held(self) -> tuple[Held, ...]:
        """Each backend of which anything is here. generation 0: not attached; credential_version: the newest held."""
        records, credentials = self._journal.records(), self._store.held()
        trials = {target.backend_id for target in self._journal.trials()}
        return tuple(
            Held(
                backend_id=backend_id,
                generation=_attached_generation(records.get(backend_id)),
                credential_version=max(credentials.get(backend_id, (0,))),
                fence=self._journal.fence(backend_id) or 0,
            )
            for backend_id in sorted(records.keys() | credentials.keys() | trials)
        )

    def watched(self) -> frozenset[str]:
        """Ids of the backends that are attached, by our record, and of those that are wanted and could not be."""
        attached = (i for i, record in self._journal.records().items() if record.state is RecordState.ATTACHED)
        return frozenset(attached) | self._board.unreachable()

    def forget_all_but(self, wanted: frozenset[str]) -> None:
        """Of what is neither wanted nor held nothing is reported any more."""
        self._board.forget_all_but(wanted | {line.backend_id for line in self.held()})

    def checked(self, target: Target) -> Target:
        """The target with its config's defaults filled in. Raises AgentFault: not for this agent, or not valid here."""
        if not is_id(target.backend_id) or target.fleet_id != self._config.fleet_id:
            raise AgentFault.of(FaultCode.FAILED, "the backend belongs to another fleet than this host")
        self._driver(target.kind)
        config, errors = validate_config(KINDS[target.kind], target.config)
        if errors:
            said = "; ".join(f"{error.pointer} {error.detail}" for error in errors)
            raise AgentFault.of(FaultCode.FAILED, f"this host's agent does not accept the config: {said}")
        return msgspec.structs.replace(target, config=config)

    async def attach(self, target: Target, *, establish: bool) -> Observation:
        """Attached and proven with this config and these credentials; only then are older credentials dropped.

        On failure the record says `attaching`, or what was attached before if that still is.
        """
        target = self.checked(target)
        credentials = self._store.get(target.backend_id, target.credential_version)
        driver, space = self._driver(target.kind), self._space(target.backend_id)
        return await self._bring_up(target, driver.attach(target, credentials, space, establish=establish))

    def may_establish(self, target: Target) -> bool:
        """Whether a marker may be made though no add asks for it: the storage is not shared, and new here."""
        record = self._journal.record(target.backend_id)
        is_new = record is None or (record.state is RecordState.ATTACHING and record.previous is None)
        return is_new and not KINDS[target.kind].is_shared

    def drop_staged(self, target: Target) -> None:
        """Credentials newer than the wanted ones are of a rotation that was undone while this host was away."""
        self._store.drop_from(target.backend_id, target.credential_version + 1)

    async def is_current(self, target: Target) -> bool:
        """Whether the (checked) target's config and credentials are attached, by our record and by the kernel."""
        record = self._journal.record(target.backend_id)
        if record is None or record.state is not RecordState.ATTACHED:
            return False
        if await self.has_lost(target.backend_id):
            self._note_loss(record.target)
            return False
        return _is_same(record.target, target)

    async def has_lost(self, backend_id: str) -> bool:
        """Whether our record calls it attached and the kernel does not, or what is attached is, or may be, a handle of nothing."""
        record = self._journal.record(backend_id)
        if record is None or record.state is not RecordState.ATTACHED:
            return False
        latest = self._board.latest(backend_id)
        if latest is not None and latest.code is FaultCode.STALE_HANDLE:
            return True
        if self._board.has_symptom(backend_id):
            return True
        return not await self._is_attached(record.target)

    async def needs_sync(self, backend_id: str) -> bool:
        """Whether it has lost what was attached, and no attempt to attach it anew has told why: then the next one has its time."""
        return not self._board.has_reason(backend_id) and await self.has_lost(backend_id)

    def adopt(self, target: Target) -> bool:
        """What is attached counts as this generation from now on; whether that is news."""
        self._board.set_concern(target.backend_id, None)
        record = self._journal.record(target.backend_id)
        if record is None or record.target == target:
            return False
        self._journal.put_record(Record(target, RecordState.ATTACHED))
        if latest := self._board.latest(target.backend_id):
            self._board.report(msgspec.structs.replace(latest, generation=target.generation))
        return True

    def _note_loss(self, target: Target) -> None:
        """What was last said of it is no longer so: after a power cut the manager would show it green until the next mount has ended."""
        # Not where this agent has seen it already: a share in use keeps to its old credentials, which counts as lost, and works.
        if self._board.latest(target.backend_id) is None:
            detail = "it is not attached on this host any more and is being attached again"
            self._board.report(failing(target, fault(FaultCode.CONVERGING, detail), status=HealthStatus.PENDING))

    def note_failure(self, target: Target, what: Fault) -> None:
        """The manager learns that the target could not be attached: amber where an older form works on, else red."""
        record = self._journal.record(target.backend_id)
        if record is None or record.state is not RecordState.ATTACHED:
            self._board.report(failing(target, what))
            return
        if self._board.has_symptom(target.backend_id) and record.target.config == target.config:
            # Newer credentials than those that are attached: what keeps them out is what keeps it from working.
            self._board.set_reason(target.backend_id, what)
            self._board.report(failing(record.target, what))
            return
        self._board.set_concern(target.backend_id, what)
        if latest := self._board.latest(target.backend_id):
            self._board.report(latest)

    async def release(self, backend_id: str, *, remove_marker: bool) -> ReleaseReport:
        """Nothing of the backend is held here: no mount, no session, no credentials, no files of its driver."""
        record = self._journal.record(backend_id)
        report = ReleaseReport()
        await self._clean_trial_of(backend_id)
        if record is not None:
            self._journal.put_record(Record(record.target, RecordState.RELEASING, record.previous))
            for target in filter(None, (record.target, record.previous)):
                driver = self._driver(target.kind)
                said = await driver.release(target, self._space(backend_id), remove_marker=remove_marker)
                report = ReleaseReport(
                    left=tuple(dict.fromkeys((*report.left, *said.left))),
                    was_lazy=report.was_lazy or said.was_lazy,
                    is_unmarked=report.is_unmarked or said.is_unmarked,
                )
        self._store.drop_from(backend_id, 0)
        shutil.rmtree(self._state.backends / backend_id, ignore_errors=True)
        self._journal.drop_record(backend_id)
        self._board.forget(backend_id)
        log.info("released", extra={"was_lazy": report.was_lazy, "left": list(report.left)})
        return report

    async def trial(self, target: Target, credentials: Credentials | None = None) -> Observation:
        """The target proven beside what is attached, with the held credentials of its version or those given."""
        target = self.checked(target)
        if credentials is None:
            credentials = self._store.get(target.backend_id, target.credential_version)
        await self._clean_trial_of(target.backend_id)
        self._journal.begin_trial(target)
        driver = self._driver(target.kind)
        try:
            report = await driver.trial(target, credentials, self._space(target.backend_id))
        except AgentFault:
            # The fault may be that of its own clean-up. What stays is in the journal, and the next sweep ends it.
            with contextlib.suppress(AgentFault):
                await self._clean_trial_of(target.backend_id)
            raise
        self._end_trial(target.backend_id)
        return assess(target, report, limit_s=self._config.intervals.probe_timeout_s)

    async def probe(self, backend_id: str) -> Observation:
        """What a probe finds now. Who asks while one is under way gets that one's answer."""
        task = self._probes.get(backend_id)
        if task is None:
            task = asyncio.create_task(self._probe(backend_id), name=f"probe {backend_id}")
            self._probes[backend_id] = task
            task.add_done_callback(lambda _: self._probes.pop(backend_id, None))
        # Shielded: one asker's cancellation must not end what another waits for.
        return await asyncio.shield(task)

    def volumes(self, backend_id: str) -> VolumeStore:
        """The volumes of a backend that is attached. Raises AgentFault: it is not, or not yet again."""
        record = self._journal.record(backend_id)
        if record is None or record.state is not RecordState.ATTACHED:
            raise AgentFault.of(FaultCode.CONVERGING, "the backend is not attached on this host", is_retryable=True)
        return self._driver(record.target.kind).volumes(record.target, self._space(backend_id))

    def volumes_to_fence(self, backend_id: str) -> list[VolumeStore]:
        """The volumes of all that is, or may be, held of the backend here: of a path that is down who has them open must not wait
        for it, or it would write on when it comes back.
        """
        record = self._journal.record(backend_id)
        targets = (record.target, record.previous) if record is not None else ()
        space = self._space(backend_id)
        return [self._driver(each.kind).volumes(each, space, is_to_fence=True) for each in targets if each is not None]

    async def discover(
        self, kind: str, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> Discovery:
        """What a server offers; the credentials stay in memory."""
        driver = self._driver(kind)
        partial, errors = validate_config(KINDS[kind], config, is_partial=True)
        if errors:
            raise AgentFault.of(FaultCode.FAILED, "; ".join(f"{error.pointer} {error.detail}" for error in errors))
        return Discovery(items=await driver.discover(partial, credentials, deadline))

    async def inspect(self, target: Target) -> Inspection:
        """What is on the target's device. Recorded as `attaching`, for a kill may leave a session behind."""
        target = self.checked(target)
        credentials = self._store.get(target.backend_id, target.credential_version)
        if self._journal.record(target.backend_id) is None:
            self._journal.put_record(Record(target, RecordState.ATTACHING))
        return await self._driver(target.kind).inspect(target, credentials, self._space(target.backend_id))

    async def initialize(self, target: Target, *, wwid: str, force: bool, deadline: Deadline) -> Observation:
        """Initialized, and attached."""
        target = self.checked(target)
        credentials = self._store.get(target.backend_id, target.credential_version)
        driver, space = self._driver(target.kind), self._space(target.backend_id)
        acting = driver.initialize(target, credentials, space, wwid=wwid, force=force, deadline=deadline)
        return await self._bring_up(target, acting)

    async def preflight(self, target: Target, credentials: Credentials) -> PreflightReport:
        """An add's checks, and a trial where none of them fails; the credentials stay in memory."""
        target = self.checked(target)
        checks = await self._driver(target.kind).checks(target)
        if not all(check.is_ok for check in checks):
            return PreflightReport(checks=checks)
        try:
            observation = await self.trial(target, credentials)
        except AgentFault as error:
            what = error.fault
            failed = Check(name="use", is_ok=False, code=what.code, detail=what.detail, remedy=what.remedy)
            return PreflightReport(checks=(*checks, failed), observation=failing(target, what))
        return PreflightReport(checks=(*checks, Check(name="use", is_ok=True)), observation=observation)

    async def clean_trials(self) -> None:
        """What trials left behind that were killed, or could not clean up, is gone, or logged where it is not."""
        for target in self._journal.trials():
            if self.lock(target.backend_id).locked():  # under way
                continue
            async with self.lock(target.backend_id):
                try:
                    await self._clean_trial_of(target.backend_id)
                except AgentFault as error:
                    log.warning("trial not cleaned up", extra={"backend_id": target.backend_id, "reason": str(error)})

    async def close(self) -> None:
        """No probe is under way any more."""
        probes = list(self._probes.values())
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    async def _bring_up(self, target: Target, acting: Coroutine[Any, Any, ProbeReport]) -> Observation:
        """The target is recorded, brought about by `acting`, and recorded as attached."""
        backend_id = target.backend_id
        previous = _possibly_attached(self._journal.record(backend_id), target)
        self._journal.put_record(Record(target, RecordState.ATTACHING, previous))
        try:
            report = await acting
        except AgentFault:
            if previous is not None and await self._may_be_attached(previous):
                self._journal.put_record(Record(previous, RecordState.ATTACHED))
            raise
        self._journal.put_record(Record(target, RecordState.ATTACHED))
        self._store.drop_older(backend_id, target.credential_version)
        self._board.set_concern(backend_id, None)
        log.info("attached", extra={"kind": target.kind, "generation": target.generation})
        return self._board.report(assess(target, report, limit_s=self._config.intervals.probe_timeout_s))

    async def _probe(self, backend_id: str) -> Observation:
        async with self.lock(backend_id):
            record = self._journal.record(backend_id)
            if record is None or record.state is not RecordState.ATTACHED:
                return self._not_attached(backend_id, record)
            driver, space = self._driver(record.target.kind), self._space(backend_id)
            limit_s = self._config.intervals.probe_timeout_s
            try:
                async with asyncio.timeout(limit_s + _PROBE_GRACE_S):
                    report = await driver.probe(record.target, space)
                observation = assess(record.target, report, limit_s=limit_s)
            except AgentFault as error:
                observation = failing(record.target, error.fault)
            except TimeoutError:
                what = fault(FaultCode.TIMED_OUT, f"the storage did not answer within {limit_s:g} s")
                observation = failing(record.target, what)
            return self._board.report(observation)

    def _not_attached(self, backend_id: str, record: Record | None) -> Observation:
        latest = self._board.latest(backend_id)
        if latest is not None and latest.status is HealthStatus.UNREACHABLE:
            # Still true, and known now: the reconciler tries again on its own plan.
            return self._board.report(msgspec.structs.replace(latest, observed_at=dt.datetime.now(dt.UTC)))
        if record is None:
            raise AgentFault.of(FaultCode.CONVERGING, "the backend is not attached on this host", is_retryable=True)
        what = fault(FaultCode.CONVERGING, "the backend is not attached on this host yet")
        return failing(record.target, what, status=HealthStatus.PENDING)

    async def _is_attached(self, target: Target) -> bool:
        try:
            async with asyncio.timeout(_IS_ATTACHED_S):
                return await self._driver(target.kind).is_attached(target, self._space(target.backend_id))
        except TimeoutError as error:
            raise AgentFault.of(
                FaultCode.TIMED_OUT, "this host does not say what it has attached", is_retryable=True
            ) from error

    async def _may_be_attached(self, target: Target) -> bool:
        """`_is_attached`, where an unanswered question counts as yes: the fault that led here is the one to be told."""
        try:
            return await self._is_attached(target)
        except AgentFault:
            return True

    async def _clean_trial_of(self, backend_id: str) -> None:
        for target in self._journal.trials():
            if target.backend_id != backend_id:
                continue
            try:
                async with asyncio.timeout(_CLEAN_TRIAL_S):
                    await self._driver(target.kind).clean_trial(target, self._space(backend_id))
            except TimeoutError as error:
                raise AgentFault.of(FaultCode.TIMED_OUT, "an earlier trial does not end", is_retryable=True) from error
            self._end_trial(backend_id)

    def _end_trial(self, backend_id: str) -> None:
        self._journal.end_trial(backend_id)
        if self._journal.record(backend_id) is None:
            shutil.rmtree(self._state.backends / backend_id, ignore_errors=True)

    def _driver(self, kind: str) -> Driver:
        if kind not in self._drivers or kind not in KINDS:
            raise AgentFault.of(FaultCode.KIND_UNSUPPORTED, f"this host's agent does not know the kind {kind[:40]}")
        return self._drivers[kind]

    def _space(self, backend_id: str) -> Workspace:
        folder = self._state.backends / backend_id
        make_private_dir(folder)
        return Workspace(
            host_id=self._config.host_id,
            host_name=self._config.host_name,
            dir=folder,
            mount_dir=self._state.mounts / backend_id,
            trial_dir=self._state.trials / backend_id,
            run_dir=self._state.run,
            reserved=(self._state.root, *map(Path, self._config.reserved_dirs)),
        )


def _is_same(one: Target, other: Target) -> bool:
    """Whether the two differ in their generation at most."""
    return one.config == other.config and one.credential_version == other.credential_version


def _possibly_attached(before: Record | None, target: Target) -> Target | None:
    """What may be attached while the target is being attached: what was, or what an attach that was killed began."""
    if before is None:
        return None
    if before.state is not RecordState.ATTACHING:
        return before.target
    if before.previous is None and before.target.config != target.config:
        return before.target
    return before.previous


def _attached_generation(record: Record | None) -> int:
    if record is None:
        return 0
    if record.state is RecordState.ATTACHED:
        return record.target.generation
    return 0 if record.previous is None else record.previous.generation
