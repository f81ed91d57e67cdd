"""A driver that does as it is told, a world that survives the agent, and a host built on both."""

import asyncio
import functools
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nacl.public
import nacl.signing

from agent.config import AgentConfig, Intervals, StateDir
from agent.credentials import CredentialStore, Deliveries
from agent.drivers.base import Deadline, ProbeReport, Workspace
from agent.errors import AgentFault
from agent.held_volumes import HeldVolumes
from agent.host import Host
from agent.journal import Journal
from agent.rpc import CommandServer
from agent.sources import Sources
from agent.status import Board
from agent.uploads import Uploads
from agent.volume_host import VolumeHost
from agent.volumes import VolumeStore
from agent.workers import WorkerPool
from agent.works import Works
from schemas import sealing
from schemas.agent_rpc import Check, Discovered, Inspection, Observation, ReleaseReport, Status
from schemas.backends import Capability
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.ids import new_id
from tests.agent.fake_volumes import FakePlace, FakeStore

FLEET = new_id()
HOST = new_id()

REPORT = ProbeReport(latency_ms=3.0, capacity=None, capabilities=(Capability.SNAPSHOT,))
FAST = Intervals(beat_s=0.1, probe_s=0.3, reconcile_s=5.0, probe_timeout_s=1.0)


def target(backend_id: str, *, kind: str = "nfs", server: str = "nas", generation: int = 1, version: int = 0) -> Target:
    config = {"root_dir": f"/srv/{server}"} if kind == "local_file" else {"server": server, "export": "/tank"}
    return Target(
        backend_id=backend_id,
        fleet_id=FLEET,
        kind=kind,
        config=config,
        generation=generation,
        credential_version=version,
    )


@dataclass
class World:
    """What is outside of the agent: mounts, markers, what the storage does when asked. Survives the agent.

    in_use, fenced: locators of volumes that a process has open, and that were fenced off. is_cloning: volumes are cloned at once.
    """

    mounted: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    markers: set[str] = field(default_factory=set[str])
    trials: set[str] = field(default_factory=set[str])
    faults: dict[str, AgentFault] = field(default_factory=dict[str, AgentFault])
    reports: dict[str, ProbeReport] = field(default_factory=dict[str, ProbeReport])
    gates: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    password: str | None = None
    in_use: set[str] = field(default_factory=set[str])
    fenced: list[str] = field(default_factory=list[str])
    is_cloning: bool = False
    deadlines: list[Deadline] = field(default_factory=list[Deadline])
    calls: Counter[str] = field(default_factory=Counter[str])
    running: Counter[str] = field(default_factory=Counter[str])
    most_running: Counter[str] = field(default_factory=Counter[str])

    def fail(self, verb: str, code: FaultCode, backend_id: str = "") -> None:
        """The verb fails from now on, for that backend or for all."""
        self.faults[verb + backend_id] = AgentFault.of(code, f"{verb} was told to fail")

    def heal(self) -> None:
        self.faults.clear()

    def hold(self, verb: str, backend_id: str = "") -> asyncio.Event:
        """The verb waits for the event, for that backend or for all."""
        self.gates[verb + backend_id] = asyncio.Event()
        return self.gates[verb + backend_id]

    async def act(self, verb: str, backend_id: str) -> None:
        self.calls[verb] += 1
        self.calls[verb + backend_id] += 1
        self.running[verb + backend_id] += 1
        self.most_running[verb + backend_id] = max(
            self.most_running[verb + backend_id], self.running[verb + backend_id]
        )
        try:
            for key in (verb, verb + backend_id):
                if key in self.gates:
                    await self.gates[key].wait()
                if key in self.faults:
                    raise self.faults[key]
        finally:
            self.running[verb + backend_id] -= 1


class FakeDriver:
    """Satisfies Driver over a World. Idempotent and leaving nothing on failure, as a driver has to be."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        assert space.dir.is_dir()
        if self._world.mounted.get(target.backend_id) != dict(target.config):
            await self._world.act("attach", target.backend_id)
            self._check(credentials)
            self._world.mounted.pop(target.backend_id, None)
            if not establish and target.backend_id not in self._world.markers:
                raise AgentFault.of(FaultCode.MARKER_MISSING, "no marker")
            self._world.mounted[target.backend_id] = dict(target.config)
            self._world.markers.add(target.backend_id)
        else:
            await self._world.act("prove", target.backend_id)
            self._check(credentials)
        (space.dir / "driver.json").write_text("{}")
        return self._world.reports.get(target.backend_id, REPORT)

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        await self._world.act("probe", target.backend_id)
        if target.backend_id not in self._world.mounted:
            raise AgentFault.of(FaultCode.NOT_A_MOUNTPOINT, "nothing is mounted")
        return self._world.reports.get(target.backend_id, REPORT)

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        await self._world.act("release", target.backend_id)
        self._world.mounted.pop(target.backend_id, None)
        if remove_marker:
            self._world.markers.discard(target.backend_id)
        return ReleaseReport(left=("some files on nas:/tank",))

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        self._world.trials.add(target.backend_id)
        try:
            await self._world.act("trial", target.backend_id)
            self._check(credentials)
        except AgentFault:
            self._world.trials.discard(target.backend_id)
            raise
        self._world.trials.discard(target.backend_id)
        return REPORT

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        await self._world.act("clean_trial", target.backend_id)
        self._world.trials.discard(target.backend_id)

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        await self._world.act("is_attached", target.backend_id)
        return self._world.mounted.get(target.backend_id) == dict(target.config)

    async def checks(self, target: Target) -> tuple[Check, ...]:
        await self._world.act("checks", target.backend_id)
        return (Check(name="tool", is_ok=True),)

    async def discover(
        self, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> tuple[Discovered, ...]:
        await self._world.act("discover", "")
        if credentials:
            self._check(credentials)
        return (Discovered(title="/tank", config={"export": "/tank"}),)

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        await self._world.act("inspect", target.backend_id)
        return Inspection(wwid="w1", size_bytes=1)

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
        self._world.deadlines.append(deadline)
        await self._world.act("initialize", target.backend_id)
        return REPORT

    def volumes(self, target: Target, space: Workspace, *, is_to_fence: bool = False) -> VolumeStore:
        place = FakePlace(
            folder=space.dir / "volumes",
            attached=space.dir / "attached",
            in_use=self._world.in_use,
            on_fenced=self._world.fenced.append,
            is_cloning=self._world.is_cloning,
        )
        return FakeStore(place, functools.partial(self._world.act, backend_id=target.backend_id))

    def _check(self, credentials: Credentials) -> None:
        if self._world.password is not None and credentials.get("password") != self._world.password:
            raise AgentFault.of(FaultCode.AUTH_FAILED, "the server refused the password")


class Rig:
    """A host's parts on a state folder; another Rig on the same folder and world is the agent after `kill -9`."""

    def __init__(self, folder: Path, world: World, *, intervals: Intervals = FAST) -> None:
        self.world = world
        self.state = StateDir(folder / "state")
        self.state.prepare()
        self.manager_key = nacl.signing.SigningKey(b"m" * 32)
        self.key = nacl.public.PrivateKey(b"h" * 32)
        self.config = AgentConfig(
            host_id=HOST,
            host_name="hv1",
            fleet_id=FLEET,
            manager_url="http://127.0.0.1:1",
            nats_urls=("nats://127.0.0.1:1",),
            manager_key=bytes(self.manager_key.verify_key).hex(),
            intervals=intervals,
        )
        self.sent: list[Observation] = []
        self.replies: dict[str, bytes] = {}
        self.nudges = 0
        self.now = 1000.0
        self.journal = Journal(self.state.journal_file)
        self.store = CredentialStore(self.state.credentials)
        self.deliveries = Deliveries(
            host_id=HOST, key=self.key, manager_key=self.manager_key.verify_key, clock=lambda: self.now
        )
        self.board = Board(self._send_status, batch_s=0.05)
        driver = FakeDriver(world)
        self.host = Host(
            config=self.config,
            state=self.state,
            journal=self.journal,
            store=self.store,
            drivers={"nfs": driver, "smb": driver, "local_file": driver, "iscsi_lvm": driver},
            board=self.board,
        )
        self.held = HeldVolumes(host=self.host, journal=self.journal)
        self.workers = WorkerPool()
        self.works = Works(self.state.works)
        self.sources = Sources(workers=self.workers, state=self.state, image_dirs=(str(folder / "images"),))
        self.uploads = Uploads(self.state.downloads, clock=lambda: self.now)
        self.volumes = VolumeHost(
            host=self.host,
            works=self.works,
            workers=self.workers,
            sources=self.sources,
            uploads=self.uploads,
            held=self.held,
        )
        self.server = CommandServer(
            host=self.host,
            volumes=self.volumes,
            held=self.held,
            journal=self.journal,
            store=self.store,
            deliveries=self.deliveries,
            send=self._send_reply,
            nudge=self._nudge,
        )

    def lock(self, backend_id: str) -> AbstractAsyncContextManager[None]:
        return self.host.lock(backend_id)

    def hold_credentials(self, backend_id: str, version: int, password: str = "pw") -> None:
        self.store.put(backend_id, version, Credentials({"username": "u", "password": password}))

    def seal(self, backend_id: str, version: int, nonce: bytes, password: str = "pw") -> bytes:
        box = sealing.box(
            Credentials({"username": "u", "password": password}),
            host_id=HOST,
            host_key=bytes(self.key.public_key),
            backend_id=backend_id,
            version=version,
            nonce=nonce,
        )
        return sealing.sign(box, self.manager_key)

    async def close(self) -> None:
        await self.works.close()
        await self.host.close()
        await self.workers.__aexit__()
        self.journal.close()

    async def _send_status(self, status: Status) -> None:
        self.sent.extend(status.observations)

    async def _send_reply(self, subject: str, payload: bytes) -> None:
        assert subject not in self.replies, "a second reply to one request"
        self.replies[subject] = payload

    def _nudge(self) -> None:
        self.nudges += 1
