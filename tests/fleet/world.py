"""A pretend storage estate under the real agent: the one fake, at the lowest seam, the Driver.

What a driver would do to the kernel it does to a folder: a mount is a file `<host>/<backend id>` that holds the config and
the credentials it was made with. So it outlives an agent or a manager that is killed, and a test can compare.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.drivers.base import Commands, Deadline, Driver, ProbeReport, Workers, Workspace
from agent.errors import AgentFault
from agent.volumes import VolumeStore
from schemas.agent_rpc import Check, Discovered, Inspection, ReleaseReport
from schemas.backends import Capability, Capacity
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.kinds import KINDS, KindSpec
from tests.agent.fake_volumes import FakePlace, FakeStore

WWID = "3600140500000000000000000000000aa"
TOTAL_BYTES = 2**40
#: What every server offers, by kind.
_OFFERED = {
    "nfs": {"export": "/tank/vms"},
    "smb": {"share": "vms"},
    "iscsi_lvm": {"target_iqn": "iqn.2026-01.org.example:vms"},
}


class Gate:
    """Where a verb waits. reached: it has come there; it goes on when the gate is open."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def go_through(self) -> None:
        self.reached.set()
        await self._opened.wait()


@dataclass
class World:
    """passwords: those that servers accept. blank: targets without a VG. script: (host, verb) -> what to do first.
    waits: (host, verb about volumes, or mount) -> what to wait for before that.

    closed: (host, server) of servers that let the host in for nothing. using: host -> whether it uses the LUN for something else;
    None where its agent cannot tell.
    wwids: host -> the LUN that it sees, where that is another one. marks: every release, (host, whether it took the marks).
    in_use: host -> locators of volumes that a process of it has open. fenced: every volume that was fenced off, (host, locator).
    is_cloning: storage makes a volume with its origin's content at once. used_bytes: of TOTAL_BYTES, on every backend.
    """

    folder: Path
    passwords: set[str] = field(default_factory=lambda: {"right"})
    blank: set[str] = field(default_factory=lambda: set[str]())
    script: dict[tuple[str, str], Callable[[], None]] = field(
        default_factory=lambda: dict[tuple[str, str], Callable[[], None]]()
    )
    closed: set[tuple[str, str]] = field(default_factory=lambda: set[tuple[str, str]]())
    using: dict[str, bool | None] = field(default_factory=lambda: dict[str, bool | None]())
    wwids: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    marks: list[tuple[str, bool]] = field(default_factory=lambda: list[tuple[str, bool]]())
    in_use: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict[str, set[str]](set))
    fenced: list[tuple[str, str]] = field(default_factory=lambda: list[tuple[str, str]]())
    is_cloning: bool = True
    waits: dict[tuple[str, str], Callable[[], Awaitable[None]]] = field(
        default_factory=lambda: dict[tuple[str, str], Callable[[], Awaitable[None]]]()
    )
    used_bytes: int = 2**30
    #: Targets whose LUN holds what is not ours.
    foreign: set[str] = field(default_factory=lambda: set[str]())
    #: backend id -> the same of that backend alone.
    used_bytes_of: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    #: (host, backend id) -> the fault of that backend on that host, and what is said of it.
    ill: dict[tuple[str, str], tuple[FaultCode, str]] = field(
        default_factory=lambda: dict[tuple[str, str], tuple[FaultCode, str]]()
    )
    #: (host, backend id) -> milliseconds that a probe takes there, where it is not one.
    latencies: dict[tuple[str, str], float] = field(default_factory=lambda: dict[tuple[str, str], float]())

    @contextmanager
    def gate(self, host: str, verb: str) -> Generator[Gate]:
        """Within the block, until it is opened, the verb about volumes waits on the host."""
        gate = Gate()
        self.waits[host, verb] = gate.go_through
        try:
            yield gate
        finally:
            self.waits.pop((host, verb), None)
            gate.open()

    def mounts(self, host: str) -> dict[str, dict[str, Any]]:
        """backend id -> {config, password} of everything that is mounted on the host."""
        folder = self.folder / host
        return {path.name: json.loads(path.read_text()) for path in folder.iterdir()} if folder.exists() else {}

    def contents(self, backend_id: str) -> dict[str, bytes]:
        """locator -> bytes of every volume on the backend; of one that is not shared, on whichever host."""
        return {path.stem: path.read_bytes() for path in self.volumes_folder(backend_id).rglob("*.data")}

    def attached(self, host: str) -> set[str]:
        """Locators of the volumes that the host may use."""
        return {path.name for path in self.attached_folder(host).glob("*")}

    def volumes_folder(self, backend_id: str) -> Path:
        return self.folder / "volumes" / backend_id

    def attached_folder(self, host: str) -> Path:
        return self.folder / "attached" / host

    def fail(self, host: str, verb: str, code: FaultCode = FaultCode.IO_ERROR) -> None:
        """From now on the verb fails on the host."""

        def refuse() -> None:
            raise AgentFault.of(code, f"scripted failure of {verb}")

        self.script[host, verb] = refuse

    def drivers(self, host: str) -> Callable[[Commands, Workers, float], Mapping[str, Driver]]:
        """For agent.app.run."""

        def make(_commands: Commands, _workers: Workers, _timeout_s: float) -> Mapping[str, Driver]:
            return {spec.kind: PretendDriver(self, spec, host) for spec in KINDS.values()}

        return make


class PretendDriver:
    """Keeps the Driver's promises on files."""

    def __init__(self, world: World, spec: KindSpec, host: str) -> None:
        self._world = world
        self._spec = spec
        self._host = host

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        if wait := self._world.waits.get((self._host, "mount")):
            await wait()
        self._act("attach")
        self._ail(target)
        self._check(target, credentials)
        mount = self._mount(target)
        mount.parent.mkdir(exist_ok=True)
        words = {"config": target.config, "password": credentials.get("password")}
        temporary = space.dir / "mount.new"
        temporary.write_text(json.dumps(words))
        temporary.rename(mount)
        return _report(self._world.used_bytes)

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        self._act("probe")
        self._ail(target)
        if not self._mount(target).exists():
            raise AgentFault.of(FaultCode.PATH_NOT_FOUND, "it is not mounted")
        world, of = self._world, target.backend_id
        return _report(world.used_bytes_of.get(of, world.used_bytes), world.latencies.get((self._host, of), 1.0))

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        self._act("release")
        self._world.marks.append((self._host, remove_marker))
        self._mount(target).unlink(missing_ok=True)
        return ReleaseReport(left=("the data",), is_unmarked=remove_marker)

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        self._act("trial")
        self._check(target, credentials)
        return _report(self._world.used_bytes)

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        return

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        mount = self._mount(target)
        return mount.exists() and json.loads(mount.read_text())["config"] == target.config

    async def checks(self, target: Target) -> tuple[Check, ...]:
        return (Check(name="reach", is_ok=True),)

    async def discover(
        self, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> tuple[Discovered, ...]:
        self._act("discover")
        (offered,) = _OFFERED[self._spec.kind].items()
        # A portal lists its targets to whoever asks.
        if "share" in offered and credentials and credentials.get("password") not in self._world.passwords:
            raise AgentFault.of(FaultCode.AUTH_FAILED, "session setup failed: NT_STATUS_LOGON_FAILURE")
        return (Discovered(title=offered[1], config=dict((offered,))),)

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        self._act("inspect")
        return Inspection(
            wwid=self._world.wwids.get(self._host, WWID),
            size_bytes=2**30,
            is_blank=self._is_blank(target),
            signatures=("ext4 at 0x438",) if self._is_foreign(target) else (),
            is_used=self._world.using.get(self._host, False),
            foreign_vg="vg_other" if self._world.using.get(self._host) else None,
        )

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
        self._act("initialize")
        if wwid != WWID:
            raise AgentFault.of(FaultCode.WRONG_DEVICE, f"the device seen is {WWID}")
        if self._is_foreign(target) and not force:
            raise AgentFault.of(FaultCode.FOREIGN_DATA, "the device holds ext4")
        self._world.blank.discard(target.config["target_iqn"])
        self._world.foreign.discard(target.config["target_iqn"])
        return await self.attach(target, credentials, space, establish=True)

    def volumes(self, target: Target, space: Workspace, *, is_to_fence: bool = False) -> VolumeStore:
        world, folder = self._world, self._world.volumes_folder(target.backend_id)
        place = FakePlace(
            folder=folder if self._spec.is_shared else folder / self._host,
            attached=world.attached_folder(self._host),
            in_use=world.in_use[self._host],
            on_fenced=lambda locator: world.fenced.append((self._host, locator)),
            is_cloning=world.is_cloning,
        )

        async def act(verb: str) -> None:
            if wait := world.waits.get((self._host, verb)):
                await wait()
            self._act(verb)

        return FakeStore(place, act)

    def _act(self, verb: str) -> None:
        first = self._world.script.get((self._host, verb))
        if first:
            first()

    def _ail(self, target: Target) -> None:
        if fault := self._world.ill.get((self._host, target.backend_id)):
            raise AgentFault.of(*fault)

    def _check(self, target: Target, credentials: Credentials) -> None:
        if (self._host, target.config.get("server")) in self._world.closed:
            raise AgentFault.of(FaultCode.EXPORT_NOT_FOUND, "access denied by server while mounting")
        if target.credential_version and credentials.get("password") not in self._world.passwords:
            raise AgentFault.of(FaultCode.AUTH_FAILED, "mount error(13): Permission denied")
        if self._is_blank(target) or self._is_foreign(target):
            raise AgentFault.of(FaultCode.NEEDS_INITIALIZATION, "the LUN has no volume group of ours")

    def _is_blank(self, target: Target) -> bool:
        return self._spec.can_initialize and target.config["target_iqn"] in self._world.blank

    def _is_foreign(self, target: Target) -> bool:
        return self._spec.can_initialize and target.config["target_iqn"] in self._world.foreign

    def _mount(self, target: Target) -> Path:
        return self._world.folder / self._host / target.backend_id


def _report(used_bytes: int, latency_ms: float = 1.0) -> ProbeReport:
    capacity = Capacity(
        total_bytes=TOTAL_BYTES,
        used_bytes=used_bytes,
        available_bytes=TOTAL_BYTES - used_bytes,
        observed_at=datetime.now(UTC),
    )
    return ProbeReport(
        latency_ms=latency_ms, capacity=capacity, capabilities=(Capability.CLONE_FROM_IMAGE, Capability.SNAPSHOT)
    )
