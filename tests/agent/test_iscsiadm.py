"""iscsiadm: the exact command lines, the node record with its secrets, and sessions by sysfs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import AgentFault
from agent.iscsiadm import Iscsi
from agent.node_records import NodeRecords
from agent.portals import Node, Portal
from schemas.agent_rpc import Check
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.fake_kernel import FakeIscsi
from tests.agent.locks import leave_lock
from tests.agent.recorded_commands import RecordedCommands, Step, replay

IQN = "iqn.2026-01.org.example:vms"
NODE = Node(IQN, Portal("10.0.0.9", 3260), 1)
CHAP = Credentials(
    {"username": "chap", "password": "chap-canary 0", "mutual_username": "them", "mutual_password": "mutual-canary"}
)
NONE = Credentials({})
BASE = ("iscsiadm", "-m", "node", "-T", IQN, "-p", "10.0.0.9:3260,1", "-I", "stowage")
DISCOVER = ("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", "10.0.0.9:3260", "-o", "nonpersistent")


@pytest.fixture
def world(tmp_path: Path) -> FakeIscsi:
    return FakeIscsi(tmp_path)


def iscsi_with(world: FakeIscsi, *steps: Step) -> Iscsi:
    return iscsi_of(world, RecordedCommands(*steps))


def iscsi_of(world: FakeIscsi, commands: RecordedCommands) -> Iscsi:
    return Iscsi(
        commands,
        reach=world.reach,
        sysfs=world.sysfs,
        config_dirs=(world.config_dir,),
        lock_dir=world.lock_dir,
        udev_rules=world.udev_rules,
    )


def makes_record(world: FakeIscsi) -> Step:
    return Step((*BASE, "-o", "new"), effect=lambda: world.make_record(IQN, "10.0.0.9", 3260, 1))


def words_of(world: FakeIscsi) -> dict[str, str]:
    lines = world.record(IQN, "10.0.0.9", 3260, 1).read_text().splitlines()
    pairs = (line.partition(" = ") for line in lines)
    return {name: value for name, separator, value in pairs if separator}


async def test_discover_reads_addresses_of_version_6(world: FakeIscsi) -> None:
    nodes = await iscsi_with(world, replay("successes", "sendtargets", DISCOVER)).discover(Portal("10.0.0.9", 3260))
    assert nodes[2] == Node(IQN, Portal("fd00::9", 3260), 2)


async def test_find_target_of_a_portal_that_offers_nothing_is_target_not_found(world: FakeIscsi) -> None:
    step = Step(DISCOVER, 21, stderr="iscsiadm: No portals found\n")
    with pytest.raises(AgentFault) as caught:
        await iscsi_with(world, step).find_target(IQN, Portal("10.0.0.9", 3260))
    assert caught.value.fault.code is FaultCode.TARGET_NOT_FOUND


async def test_login_writes_the_secrets_into_the_record_and_never_into_argv(world: FakeIscsi) -> None:
    commands = RecordedCommands(makes_record(world), Step((*BASE, "--login")))
    iscsi = iscsi_of(world, commands)
    await iscsi.login(NODE, CHAP)
    words = words_of(world)
    assert words["node.session.auth.authmethod"] == "CHAP"
    assert (words["node.session.auth.username"], words["node.session.auth.password"]) == ("chap", "chap-canary 0")
    assert (words["node.session.auth.username_in"], words["node.session.auth.password_in"]) == ("them", "mutual-canary")
    assert (words["node.startup"], words["node.session.scan"], words["node.name"]) == ("manual", "manual", IQN)
    path = world.record(IQN, "10.0.0.9", 3260, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("# BEGIN RECORD") and path.read_text().endswith("# END RECORD\n")
    assert not any("canary" in word for call in commands.calls for word in call)
    assert os.listdir(path.parent) == ["stowage"] and sorted(os.listdir(world.config_dir)) == ["ifaces", "nodes"]
    assert os.listdir(world.lock_dir) == []


async def test_login_without_chap_takes_old_secrets_out_of_the_record(world: FakeIscsi) -> None:
    await iscsi_with(world, makes_record(world)).write_record(NODE, CHAP)
    await iscsi_with(world, Step((*BASE, "-o", "new"))).write_record(NODE, NONE)
    assert words_of(world)["node.session.auth.authmethod"] == "None"
    assert "canary" not in world.record(IQN, "10.0.0.9", 3260, 1).read_text()


async def test_login_of_a_session_that_exists_is_success(world: FakeIscsi) -> None:
    stderr = (
        "iscsiadm: default: 1 session requested, but 1 already present.\niscsiadm: Could not log into all portals\n"
    )
    await iscsi_with(world, makes_record(world), Step((*BASE, "--login"), 15, stderr=stderr)).login(NODE, CHAP)


@pytest.mark.parametrize(
    ("recording", "code"),
    [
        ("wrong_chap", "auth_failed"),
        ("fatal_login", "auth_failed"),
        ("timed_out", "server_unreachable"),
        ("iscsid_stopped", "tool_missing"),
    ],
)
async def test_login_that_fails_leaves_no_session_and_no_record(world: FakeIscsi, recording: str, code: str) -> None:
    commands = RecordedCommands(
        makes_record(world),
        replay("iscsiadm", recording, (*BASE, "--login")),
        Step((*BASE, "--logout"), 21, stderr="iscsiadm: No matching sessions found\n"),
        Step((*BASE, "-o", "delete")),
    )
    iscsi = iscsi_of(world, commands)
    with pytest.raises(AgentFault) as caught:
        await iscsi.login(NODE, CHAP)
    assert caught.value.fault.code == code and "canary" not in str(caught.value)
    commands.assert_done()


async def test_login_that_is_fatal_without_mutual_chap_is_target_not_found(world: FakeIscsi) -> None:
    steps = (
        makes_record(world),
        replay("iscsiadm", "fatal_login", (*BASE, "--login")),
        Step((*BASE, "--logout"), 21),
        Step((*BASE, "-o", "delete")),
    )
    with pytest.raises(AgentFault) as caught:
        await iscsi_with(world, *steps).login(NODE, Credentials({"username": "chap", "password": "chap-canary 0"}))
    assert caught.value.fault.code is FaultCode.TARGET_NOT_FOUND and "non-retryable" in caught.value.fault.detail


async def test_discover_at_a_portal_that_does_not_answer_starts_no_tool(world: FakeIscsi) -> None:
    what = FaultCode.SERVER_UNREACHABLE
    world.unreached = (Check(name="name", is_ok=True), Check(name="port", is_ok=False, code=what, detail="silent"))
    with pytest.raises(AgentFault) as caught:
        await iscsi_with(world).discover(Portal("10.0.0.9", 3260))
    assert caught.value.fault.code is FaultCode.SERVER_UNREACHABLE and caught.value.is_retryable


@pytest.mark.parametrize("password", [" leading", "trailing ", "two\nlines", "x" * 256, "zero\0"])
async def test_login_with_a_secret_that_the_record_cannot_hold_runs_nothing(world: FakeIscsi, password: str) -> None:
    with pytest.raises(AgentFault) as caught:
        await iscsi_with(world).login(NODE, Credentials({"username": "chap", "password": password}))
    assert caught.value.fault.code is FaultCode.AUTH_FAILED and password not in str(caught.value)


@pytest.mark.parametrize("half", ["mutual_username", "mutual_password"])
async def test_login_with_half_of_the_mutual_pair_runs_nothing(world: FakeIscsi, half: str) -> None:
    chap = Credentials({"username": "chap", "password": "secret", half: "canary"})
    with pytest.raises(AgentFault) as caught:
        await iscsi_with(world).login(NODE, chap)
    assert caught.value.fault.code is FaultCode.AUTH_FAILED and "canary" not in str(caught.value)


async def test_logout_without_the_record_of_its_iface_is_no_success(world: FakeIscsi) -> None:
    with pytest.raises(AgentFault):
        await iscsi_with(world, replay("iscsiadm", "no_iface", (*BASE, "--logout"))).logout(NODE)


async def test_iface_has_a_record_while_a_command_needs_it_and_no_longer(world: FakeIscsi) -> None:
    record = world.config_dir / "ifaces/stowage"
    seen: list[str] = []
    new = Step((*BASE, "-o", "new"), effect=lambda: world.make_record(IQN, "10.0.0.9", 3260, 1))
    steps = [new, *(Step((*BASE, *operation)) for operation in (("--login",), ("--logout",), ("-o", "delete")))]
    watched = [Step(step.argv, effect=noting(step, seen, record)) for step in steps]
    iscsi = iscsi_with(world, *watched)
    await iscsi.login(NODE, CHAP)
    assert not record.exists()
    await iscsi.logout(NODE)
    await iscsi.delete_record(NODE)
    assert seen == ["iface.iscsi_ifacename = stowage\niface.transport_name = tcp\n"] * 4
    assert os.listdir(world.config_dir / "ifaces") == []


def noting(step: Step, seen: list[str], record: Path) -> Callable[[], None]:
    def note() -> None:
        seen.append(record.read_text())
        step.effect()

    return note


async def test_iface_that_two_commands_need_stays_until_the_last_has_ended(world: FakeIscsi) -> None:
    records = NodeRecords((world.config_dir,), world.lock_dir)
    async with records.iface("stowage"):
        async with records.iface("stowage"):
            pass
        assert (world.config_dir / "ifaces/stowage").exists()
    assert not (world.config_dir / "ifaces/stowage").exists()


async def test_each_command_first_removes_a_lock_that_a_killed_agent_left(world: FakeIscsi) -> None:
    leave_lock(world.lock_dir)

    def is_free() -> None:
        assert not (world.lock_dir / "lock.write").exists()

    await iscsi_with(world, Step((*BASE, "--logout"), 21, effect=is_free)).logout(NODE)


def test_session_is_told_apart_by_target_iface_and_portal(world: FakeIscsi) -> None:
    world.login(IQN, "10.0.0.9", 3260, "default", number=4)
    world.login(IQN, "10.0.0.9", 3260, number=1)
    world.login(IQN, "10.0.0.9", 3260, "stowage-1", number=2)
    world.login(IQN, "10.0.0.10", 3260, number=3)
    iscsi = iscsi_with(world)
    found = [
        iscsi.session(node)
        for node in (
            NODE,
            Node(IQN, NODE.portal, 1, "stowage-1"),
            Node(IQN, Portal("10.0.0.10", 3260), 1),
            Node(IQN, Portal("10.0.0.11", 3260), 1),
        )
    ]
    assert [session and session.name for session in found] == ["session1", "session2", "session3", None]
    assert iscsi.session(Node(IQN, NODE.portal, 1, "default")) is not None
    assert found[0] is not None and (found[0].host, found[0].state) == ("host3", "LOGGED_IN")
