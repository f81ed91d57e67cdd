"""The proof that a backend's folder is ours and takes writes, as the folder kinds share it."""

import asyncio
import datetime as dt
import enum
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent import markers
from agent.drivers.base import ProbeReport, Workers, Workspace
from agent.errors import AgentFault
from agent.jobs import MARKER_NAME
from schemas.agent_rpc import ReleaseReport
from schemas.backends import Capability, Capacity
from schemas.command import Target
from schemas.faults import FaultCode

#: Seconds for one probe of a folder, unless the agent's config says otherwise.
PROBE_TIMEOUT_S = 10.0
#: Of a release, over a connection that was just broken.
_CLEAR_TRIES = 3
_CLEAR_PAUSE_S = 0.5
#: A failure that took longer is no broken connection's.
_QUICK_S = 2.0
_PASSING = (FaultCode.SERVER_UNREACHABLE, FaultCode.IN_USE, FaultCode.STALE_HANDLE)


class OnMissing(enum.StrEnum):
    """What a missing marker means: refuse it, make it (an add), or ignore it (a trial of a backend that is not yet)."""

    REFUSE = "refuse"
    MAKE = "make"
    IGNORE = "ignore"


class FolderProbes:
    """Proves and clears folders through worker processes."""

    def __init__(self, workers: Workers, timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._workers = workers
        self._timeout_s = timeout_s

    async def prove(
        self,
        folder: Path,
        target: Target,
        space: Workspace,
        capabilities: tuple[Capability, ...],
        on_missing: OnMissing,
        *,
        mount_root: Path | None = None,
        shown_as: str = "",
        is_trial: bool = False,
    ) -> ProbeReport:
        """The report of a write that was fsynced, read back and removed. Raises AgentFault: marker_*, or what the job met.

        shown_as: what the operator knows the folder by, if not its path on this host.
        """
        where = shown_as or str(folder)
        args = {
            "dir": str(folder),
            "mount_root": str(mount_root or ""),
            "file_name": markers.trial_file(space) if is_trial else markers.probe_file(space),
            "marker": markers.content_for(target),
            "on_missing": str(on_missing),
        }
        try:
            answer = await self._workers.run(
                "prove", args, key=job_key(target, is_trial=is_trial), timeout_s=self._timeout_s
            )
        except AgentFault as error:
            raise _shown(error, folder, where) from error.__cause__
        if answer["marker"] == "unmounted":
            raise AgentFault.of(
                FaultCode.NOT_A_MOUNTPOINT,
                f"{where} is not mounted on this host",
                "Wait: the agent mounts it again",
                is_retryable=True,
            )
        markers.refuse_other(answer, target, where)
        if on_missing is OnMissing.REFUSE:
            markers.refuse_missing(answer, where)
        return report_of(answer, capabilities)

    async def clear(
        self,
        folder: Path,
        target: Target,
        space: Workspace,
        *,
        shown_as: str,
        mount_root: Path | None = None,
        is_own_folder: bool = False,
        was_attached: bool = False,
    ) -> ReleaseReport:
        """Our marker and probe files are gone, and with is_own_folder the folder if empty; says what is left. Absent is success,
        but where it was attached: then a missing marker is on a disk that is not here now.
        """
        args = {
            "dir": str(folder),
            "mount_root": str(mount_root or ""),
            "file_names": [markers.probe_file(space), markers.trial_file(space)],
            "marker": markers.content_for(target),
            "rmdir": is_own_folder,
        }
        answer = await self._clear(args, job_key(target))
        if was_attached and answer["marker"] in ("missing", "unmounted"):
            return ReleaseReport(left=(unmounted(shown_as),))
        return ReleaseReport(left=left_in(answer["entries"], shown_as))

    async def clear_trial(
        self,
        folder: Path,
        target: Target,
        space: Workspace,
        *,
        mount_root: Path | None = None,
        is_own_folder: bool = False,
    ) -> None:
        """What a killed trial left in the folder is gone; a marker stays."""
        # An empty marker is nobody's, so clear_place takes none for ours.
        args = {
            "dir": str(folder),
            "mount_root": str(mount_root or ""),
            "file_names": [markers.trial_file(space)],
            "marker": {"backend_id": "", "fleet_id": ""},
            "rmdir": is_own_folder,
        }
        await self._clear(args, job_key(target, is_trial=True))

    async def _clear(self, args: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Tried again where it failed at once and not by the storage's silence: a connection that was broken says so only once."""
        tries = _CLEAR_TRIES
        while True:
            tries -= 1
            began_s = time.monotonic()
            try:
                return await self._workers.run("clear_place", args, key=key, timeout_s=self._timeout_s)
            except AgentFault as error:
                is_quick = time.monotonic() - began_s < _QUICK_S
                if error.fault.code not in _PASSING or not is_quick or tries == 0:
                    raise
            await asyncio.sleep(_CLEAR_PAUSE_S)


def job_key(target: Target, *, is_trial: bool = False) -> str:
    """The worker key: one job at a time a backend, and its trial beside it."""
    return f"{target.backend_id}/trial" if is_trial else target.backend_id


def left_in(entries: int, where: str) -> tuple[str, ...]:
    """The release report's sentence for what stays in a folder; none for an empty one."""
    if entries == 0:
        return ()
    return (f"{entries} {'entry' if entries == 1 else 'entries'} in {where}",)


def unmounted(where: str) -> str:
    """The release report's sentence for a place that is elsewhere now."""
    return f"{MARKER_NAME} and whatever else is in {where}, which was not mounted"


def unreached(where: str, code: FaultCode) -> str:
    """The release report's sentence for a place that did not answer."""
    return f"{MARKER_NAME} and whatever else is in {where}, which could not be reached ({code})"


def _shown(error: AgentFault, folder: Path, where: str) -> AgentFault:
    """The same fault with the folder as the operator knows it: nobody looks for a path of ours, least of all for a trial's."""
    what = replace(error.fault, detail=error.fault.detail.replace(str(folder), where))
    return AgentFault(what, is_retryable=error.is_retryable)


def report_of(answer: Mapping[str, Any], capabilities: tuple[Capability, ...]) -> ProbeReport:
    """The report of a job's numbers. Whether they are slow or the space is short is judged in status.py, for all kinds alike."""
    capacity = None
    if "total_bytes" in answer:
        capacity = Capacity(
            total_bytes=answer["total_bytes"],
            used_bytes=answer["used_bytes"],
            available_bytes=answer["available_bytes"],
            observed_at=dt.datetime.now(dt.UTC),
            file_system=answer.get("file_system"),
        )
    return ProbeReport(latency_ms=float(answer["latency_ms"]), capacity=capacity, capabilities=capabilities)
