"""Worker processes: answers, faults, hangs, deaths of job and zygote."""

import asyncio
import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import AgentFault
from agent.workers import WorkerPool
from schemas.faults import FaultCode
from tests.agent.waiting import until
from tests.processes import runs


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    async with WorkerPool("tests.agent.jobs_for_tests") as pool:
        yield pool


async def fault_of(pool: WorkerPool, job: str, *, key: str = "k", timeout_s: float = 5.0, **args: object) -> AgentFault:
    with pytest.raises(AgentFault) as caught:
        await pool.run(job, args, key=key, timeout_s=timeout_s)
    return caught.value


async def test_run_job_that_answers_gives_its_answer_from_another_process(pool: WorkerPool) -> None:
    answer = await pool.run("echo", {"x": "ä"}, key="k", timeout_s=5)
    assert answer["x"] == "ä"
    assert answer["pid"] not in (os.getpid(), pool.zygote_pid)


async def test_run_answer_longer_than_a_pipe_arrives_whole(pool: WorkerPool) -> None:
    assert len((await pool.run("big", {"size": 200_000}, key="k", timeout_s=5))["text"]) == 200_000


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, FaultCode.NO_SPACE),
        (errno.EDQUOT, FaultCode.NO_SPACE),
        (errno.EROFS, FaultCode.READ_ONLY),
        (errno.ESTALE, FaultCode.STALE_HANDLE),
        (errno.EACCES, FaultCode.PERMISSION_DENIED),
        (errno.EIO, FaultCode.IO_ERROR),
        (errno.ENOENT, FaultCode.PATH_NOT_FOUND),
        (errno.ENOTDIR, FaultCode.NOT_A_DIRECTORY),
        (errno.EHOSTDOWN, FaultCode.SERVER_UNREACHABLE),
        (errno.EXDEV, FaultCode.FAILED),
    ],
)
async def test_run_os_error_becomes_the_fault_of_its_errno(pool: WorkerPool, number: int, code: FaultCode) -> None:
    caught = await fault_of(pool, "fail", errno=number)
    assert caught.fault.code is code
    assert "/mnt/place" in caught.fault.detail
    assert os.strerror(number) in caught.fault.detail


async def test_run_job_with_a_bug_hides_its_text(pool: WorkerPool) -> None:
    caught = await fault_of(pool, "bug")
    assert caught.fault.code is FaultCode.FAILED
    assert "private" not in caught.fault.detail


async def test_run_job_that_dies_is_a_retryable_fault(pool: WorkerPool) -> None:
    caught = await fault_of(pool, "die")
    assert caught.fault.code is FaultCode.FAILED
    assert caught.is_retryable


async def test_run_sleeping_job_is_killed_at_its_deadline(pool: WorkerPool, tmp_path: Path) -> None:
    began = tmp_path / "pid"
    started = time.monotonic()
    caught = await fault_of(pool, "sleep", timeout_s=0.3, s=60, began=str(began))
    assert caught.fault.code is FaultCode.TIMED_OUT
    assert time.monotonic() - started < 2
    pid = int(began.read_text())
    await until(lambda: not runs(pid))
    assert pool.hung_count == 0
    assert (await pool.run("echo", {}, key="k", timeout_s=5))["pid"]


async def test_run_job_that_does_not_die_counts_as_hung_and_blocks_only_its_key(
    pool: WorkerPool, tmp_path: Path
) -> None:
    stuck = tmp_path / "stuck"
    stuck.touch()
    args = {"while": str(stuck)}
    assert (await fault_of(pool, "linger", timeout_s=0.3, **args)).fault.code is FaultCode.TIMED_OUT
    assert pool.hung_count == 1
    started = time.monotonic()
    assert (await fault_of(pool, "echo", timeout_s=5)).fault.code is FaultCode.HUNG
    assert time.monotonic() - started < 0.5
    assert (await pool.run("echo", {}, key="other", timeout_s=5))["pid"]
    stuck.unlink()
    await until(lambda: pool.hung_count == 0)
    assert (await pool.run("echo", {}, key="k", timeout_s=5))["pid"]


async def test_run_job_that_waits_in_the_kernel_at_its_deadline_is_hung_even_if_it_dies(tmp_path: Path) -> None:
    began = tmp_path / "pid"
    asked: list[int] = []

    def state_of(pid: int) -> str:
        asked.append(pid)
        return "D"

    async with WorkerPool("tests.agent.jobs_for_tests", state_of=state_of) as pool:
        caught = await fault_of(pool, "sleep", timeout_s=0.5, s=60, began=str(began))
        assert caught.fault.code is FaultCode.HUNG
        assert asked == [int(began.read_text())]
        await until(lambda: pool.hung_count == 0)
        # The next one is judged by itself.
        assert (await pool.run("echo", {}, key="k", timeout_s=5))["pid"]


async def test_run_twenty_hung_keys_leave_others_at_their_pace(pool: WorkerPool, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.touch()
    hanging = [
        asyncio.create_task(fault_of(pool, "linger", key=f"k{n}", timeout_s=0.5, **{"while": str(stuck)}))
        for n in range(20)
    ]
    await pool.run("echo", {}, key="healthy", timeout_s=5)
    started = time.monotonic()
    for _ in range(20):
        await pool.run("echo", {}, key="healthy", timeout_s=5)
    assert time.monotonic() - started < 1.0
    await asyncio.gather(*hanging)
    assert pool.hung_count == 20
    stuck.unlink()
    await until(lambda: pool.hung_count == 0)


async def test_run_same_key_twice_runs_one_after_the_other(pool: WorkerPool) -> None:
    started = time.monotonic()
    jobs = [pool.run("sleep", {"s": 0.2}, key="k", timeout_s=5) for _ in range(2)]
    await asyncio.gather(*jobs)
    assert time.monotonic() - started >= 0.4


async def test_pool_remembers_a_key_only_while_something_goes_on(pool: WorkerPool, tmp_path: Path) -> None:
    """Every preflight comes under a new id, so keys that stayed would be without end."""
    began, stuck = tmp_path / "pid", tmp_path / "stuck"
    for number in range(3):
        await pool.run("echo", {}, key=f"preflight-{number}", timeout_s=5)
        await fault_of(pool, "fail", key=f"failed-{number}", errno=errno.EIO)
        await fault_of(pool, "sleep", key=f"late-{number}", timeout_s=0.1, s=60)
    await until(lambda: pool.key_count == 0)
    running = asyncio.create_task(pool.run("sleep", {"s": 60, "began": str(began)}, key="k", timeout_s=60))
    await until(lambda: began.exists() and began.read_text())
    # One that waits, and gives up, leaves the key to the one that runs.
    assert (await fault_of(pool, "echo", timeout_s=0.1)).fault.code is FaultCode.TIMED_OUT
    assert pool.key_count == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: pool.key_count == 0)
    stuck.touch()
    await fault_of(pool, "linger", timeout_s=0.3, **{"while": str(stuck)})
    assert (await fault_of(pool, "echo")).fault.code is FaultCode.HUNG
    assert pool.key_count == 1
    stuck.unlink()
    await until(lambda: pool.key_count == 0)


async def test_run_cancelled_caller_kills_the_job(pool: WorkerPool, tmp_path: Path) -> None:
    began = tmp_path / "pid"
    task = asyncio.create_task(pool.run("sleep", {"s": 60, "began": str(began)}, key="k", timeout_s=60))
    await until(lambda: began.exists() and began.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int(began.read_text())
    await until(lambda: not runs(pid))
    assert pool.hung_count == 0


async def test_zygote_killed_with_a_job_under_way_is_noticed_and_restarted(pool: WorkerPool, tmp_path: Path) -> None:
    began = tmp_path / "pid"
    task = asyncio.create_task(fault_of(pool, "sleep", timeout_s=30, s=60, began=str(began)))
    await until(lambda: began.exists() and began.read_text())
    first = pool.zygote_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    caught = await asyncio.wait_for(task, 5)
    assert caught.fault.code is FaultCode.FAILED
    await until(lambda: not runs(int(began.read_text())))
    assert (await pool.run("echo", {}, key="k", timeout_s=5))["pid"]
    assert pool.zygote_pid != first


async def test_zygote_killed_before_the_pool_is_left_harms_nothing() -> None:
    async with WorkerPool("tests.agent.jobs_for_tests") as pool:
        await pool.run("echo", {}, key="k", timeout_s=5)
        assert pool.zygote_pid is not None
        os.kill(pool.zygote_pid, signal.SIGKILL)
        await until(lambda: not runs(pool.zygote_pid or 0))
        await asyncio.sleep(0)


async def test_zygote_stopped_costs_deadlines_and_no_more(pool: WorkerPool) -> None:
    await pool.run("echo", {}, key="k", timeout_s=5)
    assert pool.zygote_pid is not None
    os.kill(pool.zygote_pid, signal.SIGSTOP)
    try:
        assert (await fault_of(pool, "echo", timeout_s=0.3)).fault.code is FaultCode.TIMED_OUT
    finally:
        os.kill(pool.zygote_pid, signal.SIGCONT)
    await until(lambda: pool.hung_count == 0)
    assert (await pool.run("echo", {}, key="k", timeout_s=5))["pid"]


async def test_pool_left_ends_zygote_and_children(tmp_path: Path) -> None:
    began = tmp_path / "pid"
    async with WorkerPool("tests.agent.jobs_for_tests") as pool:
        task = asyncio.create_task(pool.run("sleep", {"s": 60, "began": str(began)}, key="k", timeout_s=60))
        await until(lambda: began.exists() and began.read_text())
        zygote = pool.zygote_pid
    (outcome,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)
    assert isinstance(outcome, AgentFault | asyncio.CancelledError)
    assert zygote is not None
    assert not runs(zygote)
    await until(lambda: not runs(int(began.read_text())))


async def test_pool_leaks_no_descriptor(pool: WorkerPool) -> None:
    await pool.run("echo", {}, key="k", timeout_s=5)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await pool.run("echo", {}, key="k", timeout_s=5)
    await fault_of(pool, "sleep", timeout_s=0.1, s=60)
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= before
    zygote_fds = len(os.listdir(f"/proc/{pool.zygote_pid}/fd"))
    await pool.run("echo", {}, key="k", timeout_s=5)
    assert len(os.listdir(f"/proc/{pool.zygote_pid}/fd")) <= zygote_fds
