"""What a driver is: the agent's code for one kind.

Every verb is idempotent and leaves nothing behind when it fails, is repeated or is cancelled. A
driver keeps no state of its own between calls but files in `Workspace.dir` of the backend, which
survive `kill -9`. It touches a mount only through `Workers` and runs tools only through `Commands`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.volumes import VolumeStore
from schemas.agent_rpc import Check, Discovered, Inspection, ReleaseReport
from schemas.backends import Capability, Capacity
from schemas.command import Target
from schemas.credentials import Credentials

#: Seconds that a command keeps for a tool that must be killed (2 s, agent/command.py) and for its answer; and what a tool has at least.
_ANSWER_S = 3.0
_LEAST_ROOM_S = 1.0


@dataclass(frozen=True)
class CommandResult:
    """How a tool ended. stdout and stderr are decoded with `backslashreplace` and cut at 64 KiB each."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float


class Commands(Protocol):
    """Runs tools (agent/command.py). The second implementation is the recorded one in tests."""

    async def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> CommandResult:
        """The result, whatever the exit code. Raises AgentFault: tool_missing (not found), timed_out (killed, or abandoned 2 s later)."""
        ...


class Workers(Protocol):
    """Runs a job of agent/jobs.py in a worker process (agent/workers.py)."""

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        """The job's answer. One job at a time a key: while an abandoned one still exists, raises AgentFault `hung`.

        Raises AgentFault: timed_out (the worker was killed, or abandoned and counted), hung, or what the job itself raised.
        """
        ...


@dataclass(frozen=True)
class Workspace:
    """Where a driver may put things for one backend on this host. `dir` exists, 0700; it goes when the backend is released.

    mount_dir: where it mounts (an empty folder outside `dir`, made by the driver, 0000 while nothing is mounted).
    trial_dir: the same for a trial beside what is attached.
    run_dir: for short-lived secret files (0600); emptied at the agent's start.
    reserved: folders that must be no part of a backend, nor hold one: the agent's own, and those its operator named.
    """

    host_id: str
    host_name: str
    dir: Path
    mount_dir: Path
    trial_dir: Path
    run_dir: Path
    reserved: tuple[Path, ...] = ()


def boot_time_s() -> float:
    """Seconds by the clock that goes on while the process is stopped or the machine suspended (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Deadline:
    """Until when a command may act. Past it the manager may have let another host do the same, so nothing may be overwritten."""

    ends_at_s: float
    clock: Callable[[], float] = boot_time_s

    @property
    def left_s(self) -> float:
        """Zero or less: too late."""
        return self.ends_at_s - self.clock()

    def room_s(self, most_s: float) -> float:
        """Seconds for the next tool: most_s, or so many less that its own fault is answered while somebody waits for it."""
        return max(_LEAST_ROOM_S, min(most_s, round(self.left_s - _ANSWER_S, 1)))


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found. Degraded but usable is a report with a fault code; unusable is an AgentFault."""

    latency_ms: float
    capacity: Capacity | None
    capabilities: tuple[Capability, ...]
    code: str | None = None
    detail: str | None = None


class Driver(Protocol):
    """One kind's verbs. All raise AgentFault; none logs or returns a secret."""

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        """Usable here and proven by a written, fsynced, reread and removed file. Already attached with the same config: only the proof.

        establish: a missing marker may be made. Attached with another config: detached and attached anew unless in use (fault in_use).
        """
        ...

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        """The proof alone, on what is attached. Nothing is mounted or repaired: the reconciler does that."""
        ...

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        """Nothing of it is held here. Lazy unmount only as the last step, and said so in the report."""
        ...

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        """The proof with this config and these credentials, beside what is attached, all of it gone afterwards."""
        ...

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        """What a trial that was killed left behind is gone."""
        ...

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        """Whether it is attached right now with exactly this config, by the kernel's word, not by ours."""
        ...

    async def checks(self, target: Target) -> tuple[Check, ...]:
        """Preflight's questions before any mount: tools present, name resolved, port answering."""
        ...

    async def discover(
        self, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> tuple[Discovered, ...]:
        """What the server named in the partial config offers to this host, or to whom the credentials log in, which may be partial
        too. Kinds that cannot tell raise kind_unsupported.
        """
        ...

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        """What is on the device. Only kinds that can initialize; the others raise kind_unsupported."""
        ...

    async def initialize(
        self,
        target: Target,
        credentials: Credentials,
        space: Workspace,
        *,
        wwid: str,
        force: bool,
        deadline: Deadline,
    ) -> ProbeReport:
        """Our structures are on the device whose WWID was confirmed; foreign data only with force; past the deadline nothing is overwritten."""
        ...

    def volumes(self, target: Target, space: Workspace, *, is_to_fence: bool = False) -> VolumeStore:
        """The volumes of what is attached here. Raises AgentFault converging when it is not attached.

        is_to_fence: to end their use alone, which must not wait until it is attached.
        """
        ...
