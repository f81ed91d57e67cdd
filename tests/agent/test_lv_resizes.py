"""Resizes of one LV on a pretend VG, stopped before and behind every tool and job, whoever goes on: no byte of another, none lost.

The bytes are kept by MiB: the volume's own, others' (what lvextend gives), zeros, or forgotten by a discard.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.drivers.base import CommandResult
from agent.errors import AgentFault
from agent.workers import WorkerPool
from schemas.faults import FaultCode
from schemas.volume_rpc import AttachMode, VolumeSpec
from tests.agent.lv_san import DM_UUID, LV_TAGS, MIB, NUMBER, SPEC, LvSan, row
from tests.agent.san import TAGS, vgs

SHORT, LONG = 8, 12
OWN, FOREIGN, ZERO, FORGOTTEN = "own", "foreign", "zero", "forgotten"


class Killed(BaseException):
    """The agent ends here."""


@dataclass
class PretendLv:
    """Satisfies Commands and Workers for one thick LV. stop_at: the number of the change before which, or with `is_behind` behind
    which, the agent is killed; was_stopped: it has come to that. cut: what its blocks held that were given back to the VG.
    """

    host: LvSan
    blocks: list[str]
    tags: str = LV_TAGS
    stop_at: int = -1
    is_behind: bool = False
    changes: int = 0
    cut: list[str] = field(default_factory=lambda: list[str]())

    def __post_init__(self) -> None:
        self.host.san.commands.run = self.run  # type: ignore[method-assign]
        self.host.san.blocks.run = self.work  # type: ignore[method-assign]

    async def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> CommandResult:
        stdout = ""
        match argv[0]:
            case "vgs":
                stdout = vgs(*TAGS).stdout
            case "lvs":
                stdout = json.dumps({"report": [{"lv": [row(size_bytes=len(self.blocks) * MIB, tags=self.tags)]}]})
            case "lvchange" if "--activate" in argv:
                (self.host.map if "y" in argv else self.host.unmap)()
            case tool:
                self._change(lambda: self._act(tool, argv))
        return CommandResult(tuple(argv), 0, stdout, "", 0.01)

    async def work(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        if job == "wait_for_node":
            return {"is_there": True, "size_bytes": len(self.blocks) * MIB, "is_suspended": False}
        if job == "read_block":
            return {"latency_ms": 1.0}
        assert args["extent"] == {"folder": "/dev", "name": f"dm-{NUMBER}", "dm_uuid": DM_UUID}
        begin, end = (args[name] // MIB for name in ("from_bytes", "to_bytes"))
        becomes = {"zero_device": ZERO, "discard_device": FORGOTTEN}[job]
        for number in range(begin, end):
            self._change(functools.partial(self.blocks.__setitem__, number, becomes))
        return {}

    def _act(self, tool: str, argv: Sequence[str]) -> None:
        match tool:
            case "lvextend" | "lvreduce":
                count = int(argv[argv.index("--size") + 1].removesuffix("b")) // MIB
                assert (count > len(self.blocks)) == (tool == "lvextend") and count != len(self.blocks)
                self.cut += self.blocks[count:]
                self.blocks = self.blocks[:count] + [FOREIGN] * (count - len(self.blocks))
            case _:
                assert tool == "lvchange"
                tags = set(self.tags.split(","))
                for option, tag in itertools.pairwise(argv):
                    tags |= {tag} if option == "--addtag" else set()
                    tags -= {tag} if option == "--deltag" else set()
                self.tags = ",".join(sorted(tags))

    @property
    def was_stopped(self) -> bool:
        return self.changes >= self.stop_at > 0

    def _change(self, act: Callable[[], None]) -> None:
        self.changes += 1
        if self.changes == self.stop_at and not self.is_behind:
            raise Killed
        act()
        if self.changes == self.stop_at:
            raise Killed


class Caller:
    """What the saga sends (manager/sagas/resize_volume.py). mib: what the volume's row says."""

    def __init__(self, lv: PretendLv, mib: int, progress: Path) -> None:
        self.lv = lv
        self.mib = mib
        self._progress = progress

    async def resize(self, mib: int, *, may_shrink: bool = False) -> None:
        """To its end."""
        if mib == self.mib:
            await self._blank(mib)
            await self._resize(mib, mib, may_shrink=may_shrink)
            return
        await self._resize(self.mib, mib, may_shrink=may_shrink)
        is_blanked = await self._blank(mib)
        self.mib = mib
        if is_blanked:
            await self._resize(mib, mib)

    async def undo(self, mib: int) -> None:
        """Of a resize to that, if the row does not say it yet."""
        if mib == self.mib:
            return
        with contextlib.suppress(AgentFault):
            await self._resize(mib, self.mib)
            if await self._blank(self.mib):
                await self._resize(self.mib, self.mib)

    async def _blank(self, mib: int) -> bool:
        """Whether there was anything to blank."""
        before = self.lv.changes
        await self.lv.host.volumes.blank(self._spec(mib), min(self.mib, mib) * MIB, self._progress)
        return self.lv.changes > before

    async def _resize(self, before: int, mib: int, *, may_shrink: bool = False) -> None:
        await self.lv.host.volumes.resize(self._spec(before), mib * MIB, may_shrink=may_shrink)

    async def is_handed_out(self) -> bool:
        """Whether a VM gets it now; if so, of its size and with no byte of another."""
        try:
            await self.lv.host.volumes.attach(self._spec(self.mib), AttachMode.RW)
        except AgentFault as error:
            return error.fault.code is not FaultCode.WRONG_SIZE
        assert FOREIGN not in self.lv.blocks
        assert FORGOTTEN not in self.lv.blocks
        assert len(self.lv.blocks) == self.mib
        await self.lv.host.volumes.detach(self._spec(self.mib))
        return True

    def _spec(self, mib: int) -> VolumeSpec:
        return msgspec.structs.replace(SPEC, size_bytes=mib * MIB)


@dataclass(frozen=True)
class Case:
    """A resize of a volume full of its own bytes, and who goes on after it was stopped."""

    before: int
    after: int
    policy: str
    goes_on: str

    def __str__(self) -> str:
        return f"{self.before}-{self.after}-{self.policy}-{self.goes_on}"


CASES = [
    Case(before, after, policy, goes_on)
    for before, after in ((SHORT, LONG), (LONG, SHORT))
    for policy in ("none", "zero", "discard")
    for goes_on in ("undo", "again", "to its size", "larger", "undo, then again")
]


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    async with WorkerPool() as pool:
        yield pool


async def _stopped(host: LvSan, case: Case, progress: Path, stop_at: int, *, is_behind: bool) -> Caller:
    """Whose resize was stopped there, or had come to its end before."""
    lv = PretendLv(host, [OWN] * case.before, stop_at=stop_at, is_behind=is_behind)
    caller = Caller(lv, case.before, progress)
    with contextlib.suppress(Killed):
        await caller.resize(case.after, may_shrink=case.after < case.before)
    host.restart()
    return caller


async def _go_on(caller: Caller, case: Case) -> None:
    """Raises AgentFault where what was cut off would have to grow again, of which nobody says that it may be lost."""
    may_shrink = case.after < case.before
    match case.goes_on:
        case "undo":
            await caller.undo(case.after)
        case "again":
            await caller.resize(case.after, may_shrink=may_shrink)
        case "to its size":
            await caller.resize(caller.mib)
        case "larger":
            await caller.resize(LONG + 4)
        case _:
            await caller.undo(case.after)
            await caller.resize(case.after, may_shrink=may_shrink)


@pytest.mark.parametrize("is_behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_resize_that_is_stopped_anywhere_shows_no_others_bytes_and_loses_none(
    case: Case, is_behind: bool, tmp_path: Path, pool: WorkerPool
) -> None:
    host, stop_at = await LvSan.make(tmp_path, pool, wipe_on_delete=case.policy), 1
    caller = await _stopped(host, case, tmp_path / "progress", stop_at, is_behind=is_behind)
    while caller.lv.was_stopped:
        lv, is_past = caller.lv, caller.mib == case.after
        is_cut = len(lv.blocks) < caller.mib
        await caller.is_handed_out()
        if is_cut and case.goes_on in ("to its size", "larger"):
            with pytest.raises(AgentFault):
                await _go_on(caller, case)
            await caller.resize(case.after, may_shrink=True)
        else:
            await _go_on(caller, case)
        if is_past and case.goes_on == "undo":
            # Nothing is undone there; the host was away for longer than the saga waits.
            await caller.resize(caller.mib)
        assert await caller.is_handed_out()
        assert lv.blocks[:SHORT] == [OWN] * SHORT
        assert case.policy == "none" or OWN not in lv.cut
        stop_at += 1
        caller = await _stopped(host, case, tmp_path / "progress", stop_at, is_behind=is_behind)
    assert await caller.is_handed_out()
    assert caller.mib == case.after
    assert stop_at > 1, "it was stopped"


async def test_undo_of_a_shrink_that_was_refused_keeps_what_it_would_have_cut(tmp_path: Path, pool: WorkerPool) -> None:
    """A VM has it open that nobody has attached here by us."""
    host = await LvSan.make(tmp_path, pool)
    lv = PretendLv(host, [OWN] * LONG)
    caller = Caller(lv, LONG, tmp_path / "progress")
    await caller.undo(SHORT)
    assert lv.blocks == [OWN] * LONG and lv.changes == 0
    assert await caller.is_handed_out()


@pytest.mark.parametrize("mib", [SHORT, SHORT + 1, LONG, LONG + 1])
async def test_resize_of_what_the_database_knows_too_little_of_loses_nothing(
    mib: int, tmp_path: Path, pool: WorkerPool
) -> None:
    host = await LvSan.make(tmp_path, pool)
    lv = PretendLv(host, [OWN] * LONG)
    caller = Caller(lv, SHORT, tmp_path / "progress")
    with pytest.raises(AgentFault):
        await caller.resize(mib)
    await caller.undo(mib)
    assert lv.blocks == [OWN] * LONG and lv.changes == 0
    await caller.resize(mib, may_shrink=True)
    assert await caller.is_handed_out()
    assert lv.blocks == [OWN] * SHORT + [ZERO] * (mib - SHORT)
