"""Long work: begun once, looked at, stalled, ended, forgotten."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import works as module
from agent.errors import AgentFault
from agent.job_io import Progress
from agent.works import Begin, Works
from schemas.faults import FaultCode
from schemas.volume_rpc import WorkReport
from tests.agent.waiting import until

LONG_S = 30.0


class Work:
    """What a work does: it waits for `gate`, and then answers or fails."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.error: BaseException | None = None
        self.begun = 0
        self.ended = 0
        self.progress = Path()

    async def __call__(self, progress: Path) -> int | None:
        self.begun += 1
        self.progress = progress
        try:
            await self.gate.wait()
        finally:
            self.ended += 1
        if self.error is not None:
            raise self.error
        return 4096

    def move(self, done_bytes: int, total_bytes: int = 100) -> None:
        Progress(str(self.progress)).report(done_bytes, total_bytes)


@pytest.fixture
async def works(tmp_path: Path) -> AsyncIterator[Works]:
    works = Works(tmp_path)
    yield works
    await works.close()


async def fault_of(works: Works, key: str, begin: Begin) -> AgentFault:
    with pytest.raises(AgentFault) as caught:
        await works.look(key, begin, LONG_S)
    return caught.value


async def test_look_begins_once_and_tells_how_far_it_is_until_it_is_done(works: Works, tmp_path: Path) -> None:
    work = Work()
    assert await works.look("k", work, 0) == WorkReport(is_done=False)
    await until(lambda: work.begun)
    work.move(30)
    assert await works.look("k", work, 0) == WorkReport(is_done=False, done_bytes=30, total_bytes=100)
    work.move(100)
    work.gate.set()
    done = WorkReport(is_done=True, done_bytes=100, total_bytes=100, size_bytes=4096)
    assert await works.look("k", work, LONG_S) == done
    assert await works.look("k", work, 0) == done
    assert work.begun == 1
    assert list(tmp_path.iterdir()) == []


async def test_look_by_many_at_once_is_one_work(works: Works) -> None:
    work = Work()
    looks = [asyncio.create_task(works.look("k", work, LONG_S)) for _ in range(5)]
    await until(lambda: work.begun)
    looks[0].cancel()
    work.gate.set()
    reports = await asyncio.gather(*looks[1:])
    assert all(report.is_done for report in reports)
    assert work.begun == 1


async def test_look_at_a_failure_raises_once_and_then_begins_anew(works: Works) -> None:
    work = Work()
    work.gate.set()
    work.error = AgentFault.of(FaultCode.NO_SPACE, "full")
    assert (await fault_of(works, "k", work)).fault.code is FaultCode.NO_SPACE
    work.error = None
    assert (await works.look("k", work, LONG_S)).is_done
    assert work.begun == 2


async def test_bug_in_a_work_is_logged_and_told_without_its_text(
    works: Works, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work()
    work.gate.set()
    work.error = ValueError("canary")
    caught = await fault_of(works, "k", work)
    assert (caught.fault.code, caught.fault.detail) == (FaultCode.FAILED, "internal error on the host")
    assert "canary" in caplog.text


async def test_works_beyond_the_limit_wait_in_the_order_they_came(tmp_path: Path) -> None:
    works = Works(tmp_path, parallel=2)
    jobs = [Work() for _ in range(4)]
    for number, work in enumerate(jobs):
        assert not (await works.look(str(number), work, 0)).is_done
    await until(lambda: jobs[0].begun and jobs[1].begun)
    assert [work.begun for work in jobs] == [1, 1, 0, 0]
    jobs[1].gate.set()
    await until(lambda: jobs[2].begun)
    assert jobs[3].begun == 0
    await works.close()
    assert [work.begun - work.ended for work in jobs] == [0] * 4


async def test_works_of_one_backend_leave_places_to_the_others(works: Works) -> None:
    """Its server is dead, and they wait for a time-out."""
    jobs = {key: Work() for key in ("dead:1", "dead:2", "dead:3", "well:1", "well:2")}
    for key, work in jobs.items():
        await works.look(key, work, 0)
    await until(lambda: jobs["well:2"].begun)
    assert [work.begun for work in jobs.values()] == [1, 1, 0, 1, 1]
    jobs["dead:1"].gate.set()
    await until(lambda: jobs["dead:3"].begun)


async def test_work_that_nobody_asks_about_is_ended(tmp_path: Path) -> None:
    """Another host may have been given what it writes to."""
    now = [0.0]
    works, work = Works(tmp_path, stall_s=1000.0, orphan_s=2.0, clock=lambda: now[0]), Work()
    for _ in range(4):
        await works.look("k", work, 0)
        await until(lambda: work.begun)
        now[0] += 1.5
    assert work.ended == 0
    now[0] += 1.0
    await until(lambda: work.ended)
    caught = await fault_of(works, "k", work)
    assert (caught.fault.code, caught.is_retryable) == (FaultCode.TIMED_OUT, True)
    assert "nobody has asked" in caught.fault.detail
    assert not (await works.look("k", work, 0)).is_done
    assert work.begun == 2
    await works.close()


async def test_work_that_does_not_move_is_ended_and_timed_out(tmp_path: Path) -> None:
    works, work = Works(tmp_path, stall_s=0.2), Work()
    caught = await fault_of(works, "k", work)
    assert (caught.fault.code, caught.is_retryable) == (FaultCode.TIMED_OUT, True)
    assert "no byte was moved in 0.2 s" in caught.fault.detail
    assert work.ended == 1


async def test_work_that_moves_outlives_the_stall_limit_also_when_it_counts_anew(tmp_path: Path) -> None:
    now = [0.0]
    works, work = Works(tmp_path, stall_s=2.0, clock=lambda: now[0]), Work()
    await works.look("k", work, 0)
    await until(lambda: work.begun)
    for done_bytes in (10, 20, 90, 5, 6):
        work.move(done_bytes)
        assert (await works.look("k", work, 0)).done_bytes == done_bytes
        now[0] += 1.5
    work.gate.set()
    assert (await works.look("k", work, LONG_S)).is_done


async def test_stalled_work_that_says_why_is_believed(tmp_path: Path) -> None:
    async def begin(_: Path) -> int | None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise AgentFault.of(FaultCode.HUNG, "it waits in the kernel") from None
        return None

    caught = await fault_of(Works(tmp_path, stall_s=0.2), "k", begin)
    assert caught.fault.code is FaultCode.HUNG


async def test_cancel_ends_what_begins_so_and_nothing_else(works: Works) -> None:
    jobs = {key: Work() for key in ("b:1:fill", "b:1:compare", "c:1:fill")}
    for key, work in jobs.items():
        await works.look(key, work, 0)
    await until(lambda: all(work.begun for work in jobs.values()))
    looking = asyncio.create_task(works.look("b:1:fill", jobs["b:1:fill"], LONG_S))
    await asyncio.sleep(0)
    await works.cancel("b:1:")
    with pytest.raises(AgentFault, match="ended before it was done"):
        await looking
    assert [work.ended for work in jobs.values()] == [1, 1, 0]


async def test_cancel_forgets_what_ended_well(works: Works) -> None:
    work = Work()
    work.gate.set()
    await works.look("k", work, LONG_S)
    await works.cancel("k")
    assert (await works.look("k", work, LONG_S)).is_done
    assert work.begun == 2


async def test_cancel_before_the_first_step_of_a_work_leaves_nothing_waiting(works: Works) -> None:
    work = Work()
    looking = asyncio.create_task(works.look("k", work, LONG_S))
    await asyncio.sleep(0)
    assert work.begun == 0
    await works.cancel("k")
    with pytest.raises(AgentFault):
        await looking
    assert work.begun == 0


async def test_cancel_twice_leaves_a_clean_up_undisturbed(works: Works) -> None:
    cleaning, clean, is_clean = asyncio.Event(), asyncio.Event(), False

    async def begin(_: Path) -> int | None:
        nonlocal is_clean
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await clean.wait()
            is_clean = True
        return None

    await works.look("k", begin, 0.01)
    both = [asyncio.create_task(works.cancel("k")) for _ in range(2)]
    await cleaning.wait()
    await asyncio.sleep(0)
    clean.set()
    await asyncio.gather(*both)
    assert is_clean


async def test_cancel_of_what_does_not_end_is_hung(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_S", 0.05)
    gate = asyncio.Event()

    async def begin(_: Path) -> int | None:
        try:
            await asyncio.Event().wait()
        finally:
            await gate.wait()
        return None

    await works.look("k", begin, 0.01)
    with pytest.raises(AgentFault) as caught:
        await works.cancel("k")
    assert caught.value.fault.code is FaultCode.HUNG
    gate.set()
    await works.cancel("k")


async def test_end_of_a_work_is_forgotten_by_age_and_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    now = [0.0]
    works, work = Works(tmp_path, clock=lambda: now[0]), Work()
    work.gate.set()
    for key in ("a", "b", "c"):
        now[0] += 1
        await works.look(key, work, LONG_S)
    await works.look("a", work, LONG_S)
    assert work.begun == 4, "of three ends two are remembered"
    now[0] += 599
    await works.look("a", work, LONG_S)
    assert work.begun == 4
    now[0] += 2
    await works.look("a", work, LONG_S)
    assert work.begun == 5


@pytest.mark.parametrize(
    ("cause", "is_shown"), [(None, False), (OSError(5, "x"), False), (TimeoutError(), False), (ValueError("x"), True)]
)
async def test_failure_of_a_work_is_logged_with_a_trace_of_what_nobody_expects(
    cause: Exception | None, is_shown: bool, works: Works, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work()
    work.gate.set()
    work.error = AgentFault.of(FaultCode.NO_SPACE, "full")
    work.error.__cause__ = cause
    await fault_of(works, "k", work)
    (line,) = [record for record in caplog.records if record.message == "work failed"]
    assert bool(line.exc_info and line.exc_info[0]) is is_shown


async def test_failure_of_a_work_is_logged_with_its_code(works: Works, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    work = Work()
    work.gate.set()
    work.error = AgentFault.of(FaultCode.NO_SPACE, "full")
    await fault_of(works, "k", work)
    (line,) = [record for record in caplog.records if record.message == "work failed"]
    assert (vars(line)["code"], vars(line)["work"]) == ("no_space", "k")
