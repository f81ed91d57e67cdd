"""Tools: exit codes, output, deadlines, and what they may not inherit."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from agent.command import MAX_OUTPUT_BYTES, ToolRunner
from agent.errors import AgentFault
from schemas.faults import FaultCode
from tests.agent.waiting import until
from tests.processes import runs


async def test_run_failing_tool_gives_exit_code_and_both_outputs() -> None:
    result = await ToolRunner().run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=5)
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")


async def test_run_stdin_is_given_and_not_needed_to_be_read() -> None:
    secret = b"user\npass, with comma\n" + b"x" * 200_000
    result = await ToolRunner().run(["wc", "-c"], timeout_s=5, stdin=secret)
    assert result.stdout.strip() == str(len(secret))
    assert (await ToolRunner().run(["true"], timeout_s=5, stdin=secret)).exit_code == 0


async def test_run_stdin_may_be_opened_by_name_and_begins_at_its_start() -> None:
    """As smbclient reads its credentials."""
    script = 'head -c 2 >/dev/null; cat /dev/stdin; stat -L -c " %s" /dev/stdin'
    result = await ToolRunner().run(["sh", "-c", script], timeout_s=5, stdin=b"secret")
    assert result.stdout == "secret 6\n"


async def test_run_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_AGENT", "1")
    result = await ToolRunner().run(["env"], timeout_s=5, env={"EXTRA": "2"})
    names = {line.partition("=")[0] for line in result.stdout.splitlines()}
    assert {"PATH", "LC_ALL", "HOME", "EXTRA"} <= names
    assert "SECRET_OF_AGENT" not in names
    assert "LC_ALL=C" in result.stdout.splitlines()


async def test_run_no_shell_interprets_arguments() -> None:
    result = await ToolRunner().run(["printf", "%s", "$(id); `id` | x"], timeout_s=5)
    assert result.stdout == "$(id); `id` | x"


async def test_run_output_is_cut_and_undecodable_bytes_escaped() -> None:
    result = await ToolRunner().run(["sh", "-c", r"printf '\377'; head -c 1000000 /dev/zero"], timeout_s=5)
    assert result.stdout.startswith("\\xff")
    assert len(result.stdout) == MAX_OUTPUT_BYTES + 3


async def test_run_missing_tool_is_tool_missing() -> None:
    with pytest.raises(AgentFault) as caught:
        await ToolRunner().run(["mount.nothing"], timeout_s=5)
    assert caught.value.fault.code is FaultCode.TOOL_MISSING
    assert "mount.nothing" in caught.value.fault.detail


async def test_run_past_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(AgentFault) as caught:
        await ToolRunner().run(["sh", "-c", f"sleep 60 & echo $! $$ > {pids}; wait"], timeout_s=0.5)
    assert caught.value.fault.code is FaultCode.TIMED_OUT
    assert time.monotonic() - started < 2
    await until(lambda: not any(runs(int(pid)) for pid in pids.read_text().split()))


async def test_run_cancelled_kills_the_tool(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(ToolRunner().run(["sh", "-c", f"echo $$ > {pid_file}; sleep 60"], timeout_s=60))
    await until(lambda: pid_file.exists() and pid_file.read_text().strip())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not runs(int(pid_file.read_text())))


async def test_run_daemon_that_keeps_the_pipes_is_not_waited_for(tmp_path: Path) -> None:
    """mount.nfs starts rpc.statd, which may keep its parent's stdout for ever."""
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    result = await ToolRunner().run(["sh", "-c", f"setsid sleep 60 & echo $! > {pid_file}; echo done"], timeout_s=20)
    assert (result.exit_code, result.stdout) == (0, "done\n")
    assert time.monotonic() - started < 2
    os.kill(int(pid_file.read_text()), 9)


async def test_run_many_tools_leaks_no_descriptor() -> None:
    tools = ToolRunner()
    await tools.run(["true"], timeout_s=5)
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(tools.run(["true"], timeout_s=5) for _ in range(10)))
    assert len(os.listdir("/proc/self/fd")) == before
    assert tools.abandoned_count == 0
