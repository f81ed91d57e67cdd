"""Node records as files: where the secrets are, and whose lock is removed and whose is waited for."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from agent.errors import AgentFault
from agent.node_records import NodeRecords
from agent.portals import Node, Portal
from schemas.faults import FaultCode
from tests.agent.fake_kernel import FakeIscsi
from tests.agent.locks import leave_lock, take_lock

IQN = "iqn.2026-01.org.example:vms"
NODE = Node(IQN, Portal("10.0.0.9", 3260), 1)
SECRET = {"node.session.auth.password": "canary"}


@pytest.fixture
def world(tmp_path: Path) -> FakeIscsi:
    world = FakeIscsi(tmp_path)
    world.make_record(IQN, "10.0.0.9", 3260, 1)
    return world


@pytest.fixture
def records(world: FakeIscsi) -> NodeRecords:
    return NodeRecords((world.config_dir,), world.lock_dir)


def text_of(world: FakeIscsi) -> str:
    return world.record(IQN, "10.0.0.9", 3260, 1).read_text()


async def test_edit_writes_the_record_and_leaves_nothing_beside_it(world: FakeIscsi, records: NodeRecords) -> None:
    await records.edit(NODE, SECRET)
    assert "node.session.auth.password = canary" in text_of(world)
    assert os.listdir(world.config_dir) == ["nodes"] and os.listdir(world.lock_dir) == []


async def test_edit_waits_for_the_lock_that_iscsiadm_holds(world: FakeIscsi, records: NodeRecords) -> None:
    take_lock(world.lock_dir)
    task = asyncio.create_task(records.edit(NODE, SECRET))
    done, _ = await asyncio.wait({task}, timeout=0.1)
    assert not done and "canary" not in text_of(world)
    (world.lock_dir / "lock.write").unlink()
    await asyncio.wait_for(task, 5)
    assert "canary" in text_of(world)


async def test_edit_with_a_lock_of_iscsiadm_that_stays_is_timed_out_and_leaves_it(
    world: FakeIscsi, records: NodeRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.node_records._LOCK_TIMEOUT_S", 0.05)
    take_lock(world.lock_dir)
    with pytest.raises(AgentFault) as caught:
        await records.edit(NODE, SECRET)
    assert caught.value.fault.code is FaultCode.TIMED_OUT and "lock.write" in caught.value.fault.remedy
    assert sorted(os.listdir(world.lock_dir)) == ["lock", "lock.write"]


async def test_edit_after_an_agent_was_killed_with_the_lock_goes_on(world: FakeIscsi, records: NodeRecords) -> None:
    leave_lock(world.lock_dir)
    await asyncio.wait_for(records.edit(NODE, SECRET), 5)
    assert "canary" in text_of(world) and os.listdir(world.lock_dir) == []


async def test_remove_stale_lock_leaves_that_of_an_agent_that_lives(world: FakeIscsi, records: NodeRecords) -> None:
    async with records._lock():  # pyright: ignore[reportPrivateUsage]
        await records.remove_stale_lock()
        assert (world.lock_dir / "lock.write").exists()


async def test_edit_drafts_in_the_folder_that_has_the_record(world: FakeIscsi, tmp_path: Path) -> None:
    """Both may have `nodes`, and lie on two file systems."""
    other = tmp_path / "var/iscsi"
    (other / "nodes").mkdir(parents=True)
    records = NodeRecords((other, world.config_dir), world.lock_dir)
    other.chmod(0o500)
    before = other.stat().st_mtime_ns
    await records.edit(NODE, SECRET)
    assert "canary" in text_of(world) and other.stat().st_mtime_ns == before


async def test_remove_takes_record_and_the_draft_that_a_kill_left(
    world: FakeIscsi, records: NodeRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Path, target: Path) -> Path:
        raise SystemExit

    def do_nothing(self: Path, *, missing_ok: bool = False) -> None:
        """Nothing is cleaned up after a kill."""

    with monkeypatch.context() as context:
        context.setattr(Path, "rename", die)
        context.setattr(Path, "unlink", do_nothing)
        with pytest.raises(SystemExit):
            await records.edit(NODE, SECRET)
    drafts = [name for name in os.listdir(world.config_dir) if name != "nodes"]
    assert len(drafts) == 1 and "canary" in (world.config_dir / drafts[0]).read_text()
    (world.lock_dir / "lock.write").unlink()
    await records.remove(NODE)
    assert os.listdir(world.config_dir) == ["nodes"]
    assert not world.record(IQN, "10.0.0.9", 3260, 1).exists()


async def test_iface_record_is_not_written_again_while_another_uses_it(world: FakeIscsi, records: NodeRecords) -> None:
    """The other's iscsiadm may be reading it."""
    path = world.config_dir / "ifaces" / "stowage"
    async with records.iface("stowage"):
        written = path.stat()
        path.write_text("read by the first one")
        async with records.iface("stowage"):
            assert path.read_text() == "read by the first one"
        assert path.stat().st_ino == written.st_ino
    assert not path.exists()


async def test_a_lock_that_a_killed_iscsiadm_left_is_removed_once_it_has_stood_for_long(
    world: FakeIscsi, records: NodeRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_lock(world.lock_dir)
    await records.remove_stale_lock()
    assert (world.lock_dir / "lock.write").exists()

    monkeypatch.setattr("agent.node_records._LOCK_STALE_S", -1.0)
    await records.edit(NODE, SECRET)

    assert "canary" in text_of(world)
    assert os.listdir(world.lock_dir) == ["lock"]


async def test_a_lock_is_left_alone_while_an_iscsiadm_runs_that_may_hold_it(
    world: FakeIscsi, records: NodeRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.node_records._LOCK_STALE_S", -1.0)
    # By its name alone, which is what is looked at.
    shutil.copy("/bin/sleep", tmp_path / "iscsiadm")
    process = await asyncio.create_subprocess_exec(str(tmp_path / "iscsiadm"), "60")
    try:
        take_lock(world.lock_dir)
        await records.remove_stale_lock()
        assert (world.lock_dir / "lock.write").exists()

        # One that came after the lock waits for it, as every other will.
        monkeypatch.setattr("agent.node_records._ROUNDING_S", -3600.0)
        await records.remove_stale_lock()
        assert not (world.lock_dir / "lock.write").exists()
    finally:
        process.kill()
        await process.wait()
