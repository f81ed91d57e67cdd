"""smb: the exact command lines, the credentials file, and rotation."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.drivers.base import Deadline, Workspace
from agent.drivers.smb import Smb
from agent.errors import AgentFault
from agent.jobs import MARKER_NAME
from agent.mounts import Mounts
from agent.workers import WorkerPool
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.volume_rpc import AttachMode, VolumeFormat, VolumeSpec
from tests.agent.fake_kernel import FakeKernel, FakeServer
from tests.agent.mounting import needs_root
from tests.agent.recorded_commands import RecordedCommands, Step, replay
from tests.agent.spaces import SOON, make_space

BACKEND = "01900000-0000-7000-8000-000000000001"
FLEET = "01900000-0000-7000-8000-00000000ffff"
NONE = Credentials({})
SECRET = Credentials({"username": "svc", "password": "pw,canary", "domain": "CORP"})
SHOWN = "cifs //nas/vms rw,vers=3.1.1,cache=strict,username=svc,domain=CORP,addr=10.0.0.5,nobrl"


def target_for(version: int = 1, **config: Any) -> Target:
    config = {"server": "nas", "share": "vms", **config}
    return Target(
        backend_id=BACKEND, fleet_id=FLEET, kind="smb", config=config, generation=1, credential_version=version
    )


def mount_argv(where: Path, options: str, source: str = "//nas/vms") -> tuple[str, ...]:
    return ("mount", "-t", "cifs", "-o", options, "--", source, str(where))


def umount_argv(where: Path) -> tuple[str, ...]:
    return ("umount", "-c", "--", str(where))


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "6.1.0-50-cloud-amd64")


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


@pytest.fixture
def server(tmp_path: Path, kernel: FakeKernel) -> Iterator[FakeServer]:
    server = FakeServer(tmp_path / "server", kernel)
    yield server
    server.close()


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return make_space(tmp_path / "state", BACKEND)


@pytest.fixture
def commands() -> Iterator[RecordedCommands]:
    commands = RecordedCommands()
    yield commands
    commands.assert_done()


@pytest.fixture
def driver(commands: RecordedCommands, workers: WorkerPool, kernel: FakeKernel) -> Smb:
    return Smb(commands, workers, mounts=Mounts(commands, kernel.file))


async def fault_of(awaitable: Any) -> Any:
    with pytest.raises(AgentFault) as caught:
        await awaitable
    return caught.value.fault


def login_for(space: Workspace, name: str = "smb") -> str:
    return f"credentials={space.run_dir}/{BACKEND}.{name}"


@pytest.mark.parametrize(
    ("config", "more", "source"),
    [
        ({}, "", "//nas/vms"),
        ({"smb_version": "2.0"}, ",vers=2.0", "//nas/vms"),
        ({"smb_version": "2.1"}, ",vers=2.1", "//nas/vms"),
        ({"smb_version": "3"}, ",vers=3", "//nas/vms"),
        ({"smb_version": "3.0"}, ",vers=3.0", "//nas/vms"),
        ({"smb_version": "3.11", "options": "seal,cache=none"}, ",vers=3.1.1,seal,cache=none", "//nas/vms"),
        ({"share": "my share$"}, "", "//nas/my share$"),
        ({"server": "fd00::5"}, ",ip=fd00::5", "//fd00--5.ipv6-literal.net/vms"),
        ({"server": "[fd00::5]"}, ",ip=fd00::5", "//fd00--5.ipv6-literal.net/vms"),
        ({"server": "fe80::1%7"}, ",ip=fe80::1%7", "//fe80--1s7.ipv6-literal.net/vms"),
        ({"server": "fe80::1%lo"}, ",ip=fe80::1%1", "//fe80--1s1.ipv6-literal.net/vms"),
    ],
)
async def test_attach_calls_mount_with_exactly(
    config: dict[str, Any], more: str, source: str, driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    options = f"nosuid,nodev,noexec,hard,nobrl,closetimeo=0,{login_for(space)}{more}"
    commands.then(replay("mount_cifs", "wrong_password", mount_argv(space.mount_dir, options, source)))
    assert (
        await fault_of(driver.attach(target_for(**config), SECRET, space, establish=True))
    ).code is FaultCode.AUTH_FAILED
    assert os.listdir(space.run_dir) == []


@pytest.mark.parametrize(
    ("chosen", "release", "given"),
    [
        ("", "6.1.0", "hard,nobrl,closetimeo=0,"),
        ("", "6.0.19", "hard,nobrl,"),
        ("", "5.14.0-427.el9.x86_64", "hard,nobrl,"),
        ("", "6.18.44-fc-v669", "hard,nobrl,closetimeo=0,"),
        ("", "unheard-of", "hard,nobrl,"),
        ("closetimeo=3", "6.1.0", "hard,nobrl,"),
        ("soft", "6.1.0", "nobrl,closetimeo=0,"),
        ("hard", "6.1.0", "hard,nobrl,closetimeo=0,"),
        ("nobrl", "6.1.0", "hard,closetimeo=0,"),
    ],
)
async def test_attach_is_hard_locks_here_and_closes_at_once_unless_the_operator_or_the_kernel_will_not(
    chosen: str, release: str, given: str, driver: Smb, commands: RecordedCommands, space: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("platform.release", lambda: release)
    told = "" if chosen in ("", "hard") else f",{chosen}"
    options = f"nosuid,nodev,noexec,{given}{login_for(space)}{told}"
    commands.then(replay("mount_cifs", "wrong_password", mount_argv(space.mount_dir, options)))
    await fault_of(driver.attach(target_for(options=chosen), SECRET, space, establish=True))


async def test_attach_as_guest_writes_no_file(driver: Smb, commands: RecordedCommands, space: Workspace) -> None:
    step = replay(
        "mount_cifs",
        "wrong_password",
        mount_argv(space.mount_dir, "nosuid,nodev,noexec,hard,nobrl,closetimeo=0,guest"),
        lambda: seen.extend(os.listdir(space.run_dir)),
    )
    seen: list[str] = []
    commands.then(step)
    assert (await fault_of(driver.attach(target_for(0), NONE, space, establish=True))).code is FaultCode.AUTH_FAILED
    assert seen == []


def read_by_mount_cifs(content: bytes) -> dict[str, str]:
    """As parse_cred_line of cifs-utils 7.0 reads it: leading blanks of the line skipped, the value up to the line's end."""
    found: dict[str, str] = {}
    for line in content.decode().split("\n"):
        name, equals, value = line.lstrip(" \t").partition("=")
        if equals:
            found[next(word for word in ("user", "pass", "dom") if name.startswith(word))] = value
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    password=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=60)
    | st.sampled_from([" a ", ",", "a,b=c", "#x", "=", "'\"\\"])
)
async def test_attach_with_any_printable_password_hands_it_over_unharmed(
    password: str, driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    seen: list[bytes] = []
    path = space.run_dir / f"{BACKEND}.smb"
    options = f"nosuid,nodev,noexec,hard,nobrl,closetimeo=0,{login_for(space)}"
    commands.then(
        replay(
            "mount_cifs", "wrong_password", mount_argv(space.mount_dir, options), lambda: seen.append(path.read_bytes())
        )
    )
    credentials = Credentials({"username": "svc", "password": password, "domain": "CORP"})
    await fault_of(driver.attach(target_for(), credentials, space, establish=True))
    assert read_by_mount_cifs(seen[0]) == {"user": "svc", "pass": password, "dom": "CORP"}


@pytest.mark.parametrize(
    "fields",
    [
        {"username": "svc,sec=none", "password": "x"}, {"username": "svc", "password": "x", "domain": "a,guest"},
        {"username": "svc\npassword=y", "password": "x"}, {"username": "svc", "password": "x\nusername=root"}, {"username": "svc", "password": "x\0"},
    ],
)  # fmt: skip
async def test_attach_with_credentials_that_would_inject_runs_nothing(
    fields: dict[str, str], driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    fault = await fault_of(driver.attach(target_for(), Credentials(fields), space, establish=True))
    assert fault.code is FaultCode.AUTH_FAILED
    assert commands.calls == [] and not any(value in fault.detail for value in fields.values() if len(value) > 3)


async def test_attach_without_the_credentials_that_the_target_has_is_needs_credentials(
    driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    assert (
        await fault_of(driver.attach(target_for(), NONE, space, establish=True))
    ).code is FaultCode.NEEDS_CREDENTIALS
    assert commands.calls == []


@pytest.mark.parametrize(
    "config",
    [{"share": "-o"}, {"share": "a,b"}, {"share": "a/b"}, {"share": "a\nb"}, {"server": "nas/x"}, {"server": "-x"}, {"options": "password=x"},
     {"options": "credentials=/etc/shadow"}, {"options": "seal,suid"}, {"options": "username=x"}, {"options": "ip=1,exec"}],
)  # fmt: skip
async def test_attach_with_words_that_could_reach_argv_runs_nothing(
    config: dict[str, Any], driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    assert (
        await fault_of(driver.attach(target_for(**config), SECRET, space, establish=True))
    ).code is FaultCode.KIND_UNSUPPORTED
    assert commands.calls == []


async def test_attach_with_a_comma_in_the_agents_own_path_is_refused(
    driver: Smb, commands: RecordedCommands, tmp_path: Path
) -> None:
    space = make_space(tmp_path / "a,suid", BACKEND)
    assert (await fault_of(driver.attach(target_for(), SECRET, space, establish=True))).code is FaultCode.FAILED
    assert commands.calls == []


@needs_root
async def test_rotation_of_an_idle_share_mounts_anew_with_the_new_secret(
    driver: Smb, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    where, options = space.mount_dir, f"nosuid,nodev,noexec,hard,nobrl,closetimeo=0,{login_for(space)}"
    mounts = Step(mount_argv(where, options), effect=lambda: server.mount(where, SHOWN))
    commands.then(mounts)
    await driver.attach(target_for(1), SECRET, space, establish=True)
    assert not await driver.is_attached(target_for(2), space)
    commands.then(Step(umount_argv(where), effect=lambda: server.unmount(where)), mounts)
    await driver.attach(target_for(2), SECRET, space, establish=False)
    assert await driver.is_attached(target_for(2), space)
    assert os.listdir(space.run_dir) == [] and os.listdir(server.folder) == [MARKER_NAME]


@needs_root
async def test_rotation_of_a_share_in_use_keeps_the_mount_until_it_is_idle(
    driver: Smb, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    where, options = space.mount_dir, f"nosuid,nodev,noexec,hard,nobrl,closetimeo=0,{login_for(space)}"
    commands.then(
        Step(mount_argv(where, options), effect=lambda: server.mount(where, SHOWN)),
        replay("umount", "busy", umount_argv(where)),
    )
    await driver.attach(target_for(1), SECRET, space, establish=True)
    assert (await driver.attach(target_for(2), SECRET, space, establish=False)).latency_ms > 0
    assert not await driver.is_attached(target_for(2), space)


class LostServer:
    """Workers that do their work, but of the place the kernel says that its host is down."""

    def __init__(self, workers: WorkerPool, place: Path, code: FaultCode) -> None:
        self._workers, self._place, self._code = workers, str(place), code
        self.is_lost = True

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        if self.is_lost and job == "prove" and args["dir"] == self._place:
            raise AgentFault.of(self._code, f"{self._place}: Host is down")
        return await self._workers.run(job, args, key=key, timeout_s=timeout_s)


@needs_root
async def test_attach_of_a_mount_that_lost_its_server_keeps_it_and_tells_what_a_login_beside_it_met(
    commands: RecordedCommands, workers: WorkerPool, kernel: FakeKernel, space: Workspace, server: FakeServer
) -> None:
    lost = LostServer(workers, space.mount_dir, FaultCode.SERVER_UNREACHABLE)
    lost.is_lost = False
    driver = Smb(commands, lost, mounts=Mounts(commands, kernel.file))
    options = f"nosuid,nodev,noexec,hard,nobrl,closetimeo=0,{login_for(space)}"
    commands.then(Step(mount_argv(space.mount_dir, options), effect=lambda: server.mount(space.mount_dir, SHOWN)))
    await driver.attach(target_for(), SECRET, space, establish=True)
    lost.is_lost = True
    beside = f"nosuid,nodev,noexec,nobrl,closetimeo=0,{login_for(space, 'trial.smb')},soft,nosharesock"
    commands.then(replay("mount_cifs", "wrong_password", mount_argv(space.trial_dir, beside)))
    fault = await fault_of(driver.attach(target_for(), SECRET, space, establish=False))
    assert fault.code is FaultCode.AUTH_FAILED
    assert await driver.is_attached(target_for(), space)


@needs_root
@pytest.mark.parametrize("code", [FaultCode.SERVER_UNREACHABLE, FaultCode.SHARE_NOT_FOUND, FaultCode.PERMISSION_DENIED])
async def test_attach_of_a_mount_that_lost_its_server_mounts_anew_where_a_login_beside_it_succeeds(
    code: FaultCode, commands: RecordedCommands, workers: WorkerPool, kernel: FakeKernel, space: Workspace,
    server: FakeServer,
) -> None:  # fmt: skip
    lost = LostServer(workers, space.mount_dir, code)
    lost.is_lost = False
    driver = Smb(commands, lost, mounts=Mounts(commands, kernel.file))
    where, trial = space.mount_dir, space.trial_dir
    options = f"nosuid,nodev,noexec,hard,nobrl,closetimeo=0,{login_for(space)}"
    mounts = Step(mount_argv(where, options), effect=lambda: server.mount(where, SHOWN))
    commands.then(mounts)
    await driver.attach(target_for(), SECRET, space, establish=True)
    lost.is_lost = True

    def unmount() -> None:
        server.unmount(where)
        lost.is_lost = False

    beside = f"nosuid,nodev,noexec,nobrl,closetimeo=0,{login_for(space, 'trial.smb')},soft,nosharesock"
    commands.then(
        Step(mount_argv(trial, beside), effect=lambda: server.mount(trial, SHOWN)),
        Step(umount_argv(trial), effect=lambda: server.unmount(trial)),
        Step(umount_argv(where), effect=unmount),
        mounts,
    )
    assert (await driver.attach(target_for(), SECRET, space, establish=False)).latency_ms > 0


@needs_root
async def test_trial_takes_a_connection_of_its_own_and_a_file_of_its_own(
    driver: Smb, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    where, options = (
        space.trial_dir,
        f"nosuid,nodev,noexec,nobrl,closetimeo=0,{login_for(space, 'trial.smb')},soft,nosharesock",
    )
    commands.then(
        Step(mount_argv(where, options), effect=lambda: server.mount(where, SHOWN)),
        Step(umount_argv(where), effect=lambda: server.unmount(where)),
    )
    assert (await driver.trial(target_for(2), SECRET, space)).latency_ms > 0
    assert os.listdir(space.run_dir) == [] and os.listdir(server.folder) == []


async def test_trial_with_a_wrong_password_is_auth_failed(
    driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    options = f"nosuid,nodev,noexec,nobrl,closetimeo=0,{login_for(space, 'trial.smb')},soft,nosharesock"
    commands.then(replay("mount_cifs", "wrong_password", mount_argv(space.trial_dir, options)))
    assert (await fault_of(driver.trial(target_for(2), SECRET, space))).code is FaultCode.AUTH_FAILED
    assert not space.trial_dir.exists() and os.listdir(space.run_dir) == []


async def test_discover_lists_disk_shares(driver: Smb, commands: RecordedCommands, space: Workspace) -> None:
    commands.then(replay("successes", "smbclient", ("smbclient", "--grepable", "--no-pass", "--list", "//nas")))
    items = await driver.discover({"server": "nas"}, NONE, SOON)
    assert [(item.title, item.config) for item in items] == [
        ("private", {"share": "private"}),
        ("public (For everyone)", {"share": "public"}),
    ]


async def test_discover_by_address_of_version_6_names_it_as_unc_needs(
    driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    argv = ("smbclient", "--grepable", "--no-pass", "--ip-address", "fd00::5", "--list", "//fd00--5.ipv6-literal.net")
    commands.then(replay("other_tools", "smbclient_refused", argv))
    assert (await fault_of(driver.discover({"server": "[fd00::5]"}, NONE, SOON))).code is FaultCode.SERVER_UNREACHABLE


async def test_discover_refused_by_the_server_is_told_from_what_smbclient_says_on_its_output(
    driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    # As recorded with `restrict anonymous = 2` (lab, 2026-11-28).
    said = "tree connect failed: NT_STATUS_ACCESS_DENIED\n"
    commands.then(Step(("smbclient", "--grepable", "--no-pass", "--list", "//nas"), exit_code=1, stdout=said))
    fault = await fault_of(driver.discover({"server": "nas"}, NONE, SOON))
    assert fault.code is FaultCode.AUTH_FAILED
    assert "NT_STATUS_ACCESS_DENIED" in fault.detail


BY_ACCOUNT = ("smbclient", "--grepable", "--authentication-file=/proc/self/fd/0", "--list", "//nas")


async def test_discover_by_an_account_tells_it_to_smbclient_on_its_standard_input(
    driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    commands.then(replay("successes", "smbclient", BY_ACCOUNT))
    items = await driver.discover({"server": "nas"}, SECRET, SOON)
    assert [item.config["share"] for item in items] == ["private", "public"]
    assert commands.stdins == [b"username = svc\npassword = pw,canary\ndomain = CORP\n"]
    assert os.listdir(space.run_dir) == []


async def test_discover_ends_its_tool_while_the_manager_still_waits(driver: Smb, commands: RecordedCommands) -> None:
    late = AgentFault.of(FaultCode.TIMED_OUT, "smbclient did not end within 7 s")
    argv = ("smbclient", "--grepable", "--no-pass", "--list", "//nas")
    commands.then(Step(argv, fault=late), Step(argv, fault=late), Step(argv, fault=late))
    for left_s in (10.0, 1.0, 1000.0):
        fault = await fault_of(driver.discover({"server": "nas"}, NONE, Deadline(left_s, lambda: 0.0)))
        assert fault.code is FaultCode.TIMED_OUT
    assert commands.limits_s == [7.0, 1.0, 25.0]


@pytest.mark.parametrize("status", ["LOGON_FAILURE", "ACCESS_DENIED"])
async def test_discover_with_a_wrong_password_is_auth_failed(
    driver: Smb, commands: RecordedCommands, status: str
) -> None:
    said = f"session setup failed: NT_STATUS_{status}\n"
    commands.then(Step(BY_ACCOUNT, exit_code=1, stderr=said))
    fault = await fault_of(driver.discover({"server": "nas"}, SECRET, SOON))
    assert (fault.code, f"NT_STATUS_{status}" in fault.detail) == (FaultCode.AUTH_FAILED, True)
    assert "Check the user name, password and domain" in fault.remedy


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"password": "pw"}, FaultCode.NEEDS_CREDENTIALS),
        ({"username": "svc"}, FaultCode.NEEDS_CREDENTIALS),
        ({"username": "svc", "password": " pw-canary"}, FaultCode.AUTH_FAILED),
        ({"username": "svc", "password": "\tpw-canary"}, FaultCode.AUTH_FAILED),
        ({"username": "svc", "password": "pw-canary\ndomain = X"}, FaultCode.AUTH_FAILED),
    ],
)
async def test_discover_with_credentials_that_smbclient_cannot_be_told_runs_nothing(
    driver: Smb, commands: RecordedCommands, space: Workspace, fields: dict[str, str], code: FaultCode
) -> None:
    fault = await fault_of(driver.discover({"server": "nas"}, Credentials(fields), SOON))
    assert fault.code is code and "canary" not in fault.detail + fault.remedy
    assert commands.calls == [] and os.listdir(space.run_dir) == []


async def test_discover_without_smbclient_is_tool_missing(
    driver: Smb, commands: RecordedCommands, space: Workspace
) -> None:
    missing = AgentFault.of(FaultCode.TOOL_MISSING, "smbclient cannot be started on this host", "Install smbclient")
    commands.then(Step(("smbclient", "--grepable", "--no-pass", "--list", "//nas"), fault=missing))
    fault = await fault_of(driver.discover({"server": "nas"}, NONE, SOON))
    assert fault.code is FaultCode.TOOL_MISSING and "smbclient" in fault.remedy


@needs_root
async def test_volumes_are_there_while_the_share_is_mounted(
    driver: Smb, commands: RecordedCommands, space: Workspace, server: FakeServer
) -> None:
    with pytest.raises(AgentFault) as caught:
        driver.volumes(target_for(subdir="vms"), space)
    assert (caught.value.fault.code, caught.value.is_retryable) == (FaultCode.CONVERGING, True)
    (server.folder / "vms").mkdir()
    where, options = space.mount_dir, f"nosuid,nodev,noexec,hard,nobrl,closetimeo=0,{login_for(space)}"
    commands.then(Step(mount_argv(where, options), effect=lambda: server.mount(where, SHOWN)))
    await driver.attach(target_for(subdir="vms"), SECRET, space, establish=True)
    store = driver.volumes(target_for(subdir="vms"), space)
    spec = VolumeSpec(locator="a" * 32, format=VolumeFormat.RAW, size_bytes=4096)
    await store.make(spec, None)
    assert (server.folder / "vms/volumes" / f"{'a' * 32}.raw").stat().st_size == 4096
    assert (await store.attach(spec, AttachMode.RW)).path == str(where / "vms/volumes" / f"{'a' * 32}.raw")
    server.unmount(where)
    for awaitable in (store.attach(spec, AttachMode.RW), store.erase(spec), store.list()):
        fault = await fault_of(awaitable)
        assert (fault.code, fault.detail) == (FaultCode.NOT_A_MOUNTPOINT, "//nas/vms/vms is not mounted on this host")
