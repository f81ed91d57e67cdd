"""iscsi_lvm from login to release, with recorded tools, a fake sysfs, and a real block file as the probe LV."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.base import ProbeReport, Workspace
from agent.drivers.iscsi_lvm import IscsiLvm
from agent.errors import AgentFault
from agent.iscsiadm import Iscsi
from agent.lvm import Lvm
from agent.scsi import Disks
from agent.workers import WorkerPool
from schemas.agent_rpc import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.drivers.conftest import make_space
from tests.agent.fake_kernel import FakeIscsi
from tests.agent.recorded_commands import RecordedCommands, Step, replay

BACKEND = "01900000-0000-7000-8000-000000000001"
OTHER_BACKEND = "01900000-0000-7000-8000-000000000002"
FLEET = "01900000-0000-7000-8000-00000000ffff"
IQN = "iqn.2026-01.org.example:vms"
CHAP = Credentials({"username": "chap", "password": "chap-canary"})
IFACE = "stowage-000000000001"
TAGS = (f"stowage_backend_{BACKEND}", f"stowage_fleet_{FLEET}")
SCOPE = ("--devices", "/dev/sdb", "--nohints", "--config", "devices/obtain_device_list_from_udev=0")
REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options")
DM_NAME = "vg_vms-stowage_probe"
MAKES_PROBE_LV = Step(
    ("lvcreate", *SCOPE, "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n",
     "--extents", "1", "--name", "stowage_probe", "--", "vg_vms")
)  # fmt: skip


def target_for(backend_id: str = BACKEND, version: int = 1, **config: Any) -> Target:
    config = {"portal": "10.0.0.9", "target_iqn": IQN, "vg_name": "vg_vms", **config}
    return Target(
        backend_id=backend_id, fleet_id=FLEET, kind="iscsi_lvm", config=config, generation=1, credential_version=version
    )


class FakeBlocks:
    """Workers that touch no device of this machine: blocks are a file, sysfs is the fake one. on_scan and on_delete: what the kernel does then."""

    def __init__(self, pool: WorkerPool, file: Path) -> None:
        self._pool = pool
        self._file = file
        self._file.write_bytes(bytes(4 * 1024 * 1024))
        self.opened: list[str] = []
        self.on_scan: Callable[[], object] = lambda: None
        self.on_delete: Callable[[], object] = lambda: None
        self.fault: AgentFault | None = None

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        if job == "write_sysfs":
            answer = await self._pool.run(job, args, key=key, timeout_s=timeout_s)
            (self.on_scan if args["path"].endswith("scan") else self.on_delete)()
            return answer
        if self.fault is not None:
            raise self.fault
        self.opened.append(args["device"])
        return await self._pool.run(job, {**args, "device": str(self._file)}, key=key, timeout_s=timeout_s)


class San:
    """Steps of a target with one LUN, and what each does to the fake host."""

    def __init__(self, host: FakeIscsi) -> None:
        self.host = host
        self.block_dir = Path()

    def discover(self, portal: str = "10.0.0.9:3260") -> Step:
        return replay(
            "successes",
            "sendtargets",
            ("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal, "-o", "nonpersistent"),
        )

    def node(self, *operation: str, iface: str = "default") -> tuple[str, ...]:
        return ("iscsiadm", "-m", "node", "-T", IQN, "-p", "10.0.0.9:3260,1", "-I", iface, *operation)

    def new_record(self, iface: str = "default") -> Step:
        return Step(
            self.node("-o", "new", iface=iface), effect=lambda: self.host.make_record(IQN, "10.0.0.9", 3260, 1, iface)
        )

    def login(self, iface: str = "default", number: int = 1) -> Step:
        return Step(
            self.node("--login", iface=iface), effect=lambda: self.host.login(IQN, "10.0.0.9", 3260, iface, number)
        )

    def logout(self, iface: str = "default", number: int = 1) -> Step:
        return Step(self.node("--logout", iface=iface), effect=lambda: self.host.logout(number))

    def delete_record(self, iface: str = "default") -> Step:
        return Step(
            self.node("-o", "delete", iface=iface),
            effect=lambda: self.host.record(IQN, "10.0.0.9", 3260, 1, iface).unlink(),
        )

    def hold(self, dm_name: str) -> None:
        self.host.add_holder(self.block_dir, dm_name)

    def add_disk(self, lun: int = 0, wwid: str = "naa.6001405") -> None:
        self.block_dir = self.host.add_disk(lun, wwid=wwid)


def vgs(
    *tags: str,
    name: str = "vg_vms",
    uuid: str = "uuid-1",
    pv_count: int = 1,
    is_there: bool = True,
    device: str = "/dev/sdb",
) -> Step:
    rows = [
        {
            "vg_name": name,
            "vg_uuid": uuid,
            "vg_size": "100000000",
            "vg_free": "60000000",
            "vg_tags": ",".join(tags),
            "pv_count": str(pv_count),
        }
    ]
    argv = ("vgs", "--devices", device, *SCOPE[2:], *REPORT, "vg_name,vg_uuid,vg_size,vg_free,vg_tags,pv_count")
    return Step(argv, stdout=json.dumps({"report": [{"vg": rows if is_there else []}]}))


def lvs(*names: str, pool_percent: str = "") -> Step:
    rows = [
        {
            "lv_name": name,
            "lv_size": "20000000",
            "lv_active": "",
            "data_percent": pool_percent if name == "stowage_pool" else "",
        }
        for name in names
    ]
    return Step(
        ("lvs", *SCOPE, *REPORT, "lv_name,lv_size,lv_active,data_percent", "--", "vg_vms"),
        stdout=json.dumps({"report": [{"lv": rows}]}),
    )


def content(*types: str, vg_name: str = "") -> tuple[Step, Step]:
    found = [{"device": "sdb", "offset": "0x218", "type": type_, "uuid": None, "label": None} for type_ in types]
    pvs = (
        [{"pv_name": "/dev/sdb", "vg_name": vg_name, "pv_in_use": "used" if vg_name else ""}]
        if "LVM2_member" in types
        else []
    )
    return (
        Step(("wipefs", "--no-act", "--json", "--", "/dev/sdb"), stdout=json.dumps({"signatures": found})),
        Step(("pvs", *SCOPE, *REPORT, "pv_name,vg_name,pv_in_use"), stdout=json.dumps({"report": [{"pv": pvs}]})),
    )


@pytest.fixture
def san(tmp_path: Path) -> San:
    return San(FakeIscsi(tmp_path))


@pytest.fixture
def commands() -> Iterator[RecordedCommands]:
    commands = RecordedCommands()
    yield commands
    commands.assert_done()


@pytest.fixture
def blocks(workers: WorkerPool, tmp_path: Path, san: San) -> FakeBlocks:
    blocks = FakeBlocks(workers, tmp_path / "blocks")
    blocks.on_scan = san.add_disk
    return blocks


@pytest.fixture
def driver(commands: RecordedCommands, blocks: FakeBlocks, san: San) -> IscsiLvm:
    iscsi = Iscsi(commands, sysfs=san.host.sysfs, config_dirs=(san.host.config_dir,), lock_dir=san.host.lock_dir)
    return IscsiLvm(commands, blocks, iscsi, Disks(blocks, san.host.sysfs), Lvm(commands))


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return make_space(tmp_path / "state", BACKEND)


async def fault_of(awaitable: Any) -> Any:
    with pytest.raises(AgentFault) as caught:
        await awaitable
    return caught.value.fault


def activates(san: San) -> Step:
    return Step(
        ("lvchange", *SCOPE, "--activate", "y", "--", "vg_vms/stowage_probe"),
        effect=lambda: san.hold(DM_NAME),
    )


def deactivates(san: San) -> Step:
    return Step(
        ("vgchange", *SCOPE, "--activate", "n", "--", "vg_vms"), effect=lambda: san.host.drop_holders(san.block_dir)
    )


async def attach(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, **config: Any
) -> ProbeReport:
    """Attached to a VG that is ours already."""
    commands.then(san.discover(), san.new_record(), san.login(), vgs(*TAGS), lvs("stowage_probe"), activates(san))
    return await driver.attach(target_for(**config), CHAP, space, establish=False)


async def test_attach_logs_in_activates_and_proves(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    report = await attach(driver, commands, san, space)
    assert report.latency_ms > 0
    assert report.capacity is not None and (report.capacity.total_bytes, report.capacity.available_bytes) == (
        100000000,
        60000000,
    )
    assert blocks.opened == ["/dev/sdb", f"/dev/mapper/{DM_NAME}"]
    assert (san.host.sysfs / "class/scsi_host/host3/scan").read_text() == "- - 0"
    assert "chap-canary" in san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()
    assert not any("canary" in word for call in commands.calls for word in call)
    assert not any(b"canary" in file.read_bytes() for file in space.dir.iterdir())
    assert await driver.is_attached(target_for(), space)
    assert not await driver.is_attached(target_for(portal="10.0.0.9:3261"), space)


async def test_attach_again_takes_the_session_that_is_there(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    await attach(driver, commands, san, space)
    commands.then(
        vgs(*TAGS), lvs("stowage_probe"), Step(("lvchange", *SCOPE, "--activate", "y", "--", "vg_vms/stowage_probe"))
    )
    await driver.attach(target_for(), CHAP, space, establish=False)


async def test_attach_with_new_credentials_keeps_the_session_and_records_them(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    await attach(driver, commands, san, space)
    assert not await driver.is_attached(target_for(version=2), space)
    commands.then(
        san.new_record(),
        vgs(*TAGS),
        lvs("stowage_probe"),
        Step(("lvchange", *SCOPE, "--activate", "y", "--", "vg_vms/stowage_probe")),
    )
    await driver.attach(
        target_for(version=2), Credentials({"username": "chap", "password": "newer-secret"}), space, establish=False
    )
    record = san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()
    assert "newer-secret" in record and "chap-canary" not in record
    assert await driver.is_attached(target_for(version=2), space)


async def test_attach_to_a_vg_that_the_operator_made_adds_the_tags_last(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    commands.then(
        san.discover(), san.new_record(), san.login(), vgs("theirs"), lvs("disk"),
        MAKES_PROBE_LV,
        Step(("vgchange", *SCOPE, "--addtag", TAGS[0], "--addtag", TAGS[1], "--", "vg_vms")),
        activates(san),
    )  # fmt: skip
    await driver.attach(target_for(), CHAP, space, establish=True)


def ends_session(san: San, blocks: FakeBlocks) -> tuple[Step, ...]:
    return (san.logout(), san.delete_record())


@pytest.mark.parametrize(
    ("steps", "establish", "code", "words"),
    [
        ((vgs(is_there=False), *content()), True, "needs_initialization", "is blank"),
        ((vgs(is_there=False), *content("ext4")), True, "needs_initialization", "ext4 at 0x218"),
        (
            (vgs(name="other"), *content("LVM2_member", vg_name="other")),
            True,
            "needs_initialization",
            "volume group other",
        ),
        ((vgs(f"stowage_backend_{OTHER_BACKEND}", f"stowage_fleet_{FLEET}"),), True, "marker_mismatch", OTHER_BACKEND),
        ((vgs(), lvs("stowage_probe")), False, "marker_missing", "tags"),
        ((vgs(*TAGS), lvs()), False, "marker_missing", "stowage_probe"),
        ((vgs(*TAGS, pv_count=2),), True, "wrong_device", "2 devices"),
    ],
)
async def test_attach_that_finds_another_vg_than_ours_logs_out_again(
    steps: tuple[Step, ...],
    establish: bool,
    code: str,
    words: str,
    driver: IscsiLvm,
    commands: RecordedCommands,
    san: San,
    space: Workspace,
    blocks: FakeBlocks,
) -> None:
    commands.then(san.discover(), san.new_record(), san.login(), *steps, *ends_session(san, blocks))
    fault = await fault_of(driver.attach(target_for(), CHAP, space, establish=establish))
    assert fault.code == code and words in fault.detail
    if code == "marker_mismatch":
        assert f"vgchange --deltag stowage_backend_{OTHER_BACKEND}" in fault.remedy
    assert list((san.host.config_dir / "nodes").rglob("default")) == []


async def test_attach_without_the_lun_logs_out_again(
    driver: IscsiLvm,
    commands: RecordedCommands,
    san: San,
    space: Workspace,
    blocks: FakeBlocks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.scsi.DISK_TIMEOUT_S", 0.05)
    blocks.on_scan = lambda: None
    commands.then(san.discover(), san.new_record(), san.login(), *ends_session(san, blocks))
    assert (await fault_of(driver.attach(target_for(), CHAP, space, establish=True))).code is FaultCode.LUN_NOT_FOUND


async def test_attach_without_credentials_that_the_target_has_is_needs_credentials(
    driver: IscsiLvm, commands: RecordedCommands, space: Workspace
) -> None:
    assert (
        await fault_of(driver.attach(target_for(), Credentials({}), space, establish=True))
    ).code is FaultCode.NEEDS_CREDENTIALS
    assert commands.calls == []


async def test_attach_after_the_lun_was_exchanged_is_wrong_device(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    await attach(driver, commands, san, space)
    (san.block_dir.parents[1] / "wwid").write_text("naa.other\n")
    for awaitable in (driver.probe(target_for(), space), driver.attach(target_for(), CHAP, space, establish=False)):
        assert (await fault_of(awaitable)).code is FaultCode.WRONG_DEVICE
    assert not await driver.is_attached(target_for(), space)


async def test_probe_writes_first_and_then_looks_at_the_vg(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    await attach(driver, commands, san, space)
    commands.then(vgs(*TAGS), lvs("stowage_probe"))
    assert (await driver.probe(target_for(), space)).latency_ms > 0
    blocks.fault = AgentFault.of(FaultCode.HUNG, "stuck")
    assert (await fault_of(driver.probe(target_for(), space))).code is FaultCode.HUNG


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ((vgs(*TAGS, uuid="uuid-2"),), "wrong_device"),
        ((vgs(), lvs("stowage_probe")), "marker_missing"),
        ((vgs(is_there=False), *content()), "needs_initialization"),
    ],
)
async def test_probe_of_a_vg_that_changed_is_noticed(
    steps: tuple[Step, ...], code: str, driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    await attach(driver, commands, san, space)
    commands.then(*steps)
    assert (await fault_of(driver.probe(target_for(), space))).code == code


async def test_probe_of_a_session_that_failed_starts_no_tool(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    assert (await fault_of(driver.probe(target_for(), space))).code is FaultCode.CONVERGING
    await attach(driver, commands, san, space)
    san.host.set_state("FAILED")
    assert (await fault_of(driver.probe(target_for(), space))).code is FaultCode.SERVER_UNREACHABLE
    assert not await driver.is_attached(target_for(), space)


async def test_release_deactivates_removes_the_disk_logs_out_and_forgets_the_secrets(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    await attach(driver, commands, san, space)
    delete = san.block_dir.parents[1] / "delete"
    seen: list[str] = []
    blocks.on_delete = lambda: seen.append(delete.read_text())
    commands.then(deactivates(san), *ends_session(san, blocks))
    assert (await driver.release(target_for(), space, remove_marker=False)).left == ()
    assert seen == ["1"]
    assert not san.host.record(IQN, "10.0.0.9", 3260, 1).exists() and os.listdir(space.dir) == []
    assert (await driver.release(target_for(), space, remove_marker=True)).left == ()


ADDS_TAGS = Step(("vgchange", *SCOPE, "--addtag", TAGS[0], "--addtag", TAGS[1], "--", "vg_vms"))
REMOVES_TAGS = Step(("vgchange", *SCOPE, "--deltag", TAGS[0], "--deltag", TAGS[1], "--", "vg_vms"))
REMOVES_PROBE_LV = Step(("lvremove", *SCOPE, "--yes", "--", "vg_vms/stowage_probe"))


async def test_release_by_the_host_that_marked_the_vg_removes_tags_and_says_what_is_left(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    commands.then(
        san.discover(), san.new_record(), san.login(), vgs(), lvs(), MAKES_PROBE_LV, ADDS_TAGS, activates(san),
        vgs(*TAGS), deactivates(san), lvs("stowage_probe", "disk1", "disk2"), REMOVES_PROBE_LV, REMOVES_TAGS,
        *ends_session(san, blocks),
    )  # fmt: skip
    await driver.attach(target_for(), CHAP, space, establish=True)
    report = await driver.release(target_for(), space, remove_marker=True)
    assert report.left == (f"volume group vg_vms with 2 logical volumes on LUN 0 of {IQN}",)


async def test_release_by_another_host_leaves_the_metadata_alone(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    await attach(driver, commands, san, space)
    commands.then(vgs(*TAGS), deactivates(san), lvs("stowage_probe"), *ends_session(san, blocks))
    report = await driver.release(target_for(), space, remove_marker=True)
    assert report.left == (f"volume group vg_vms on LUN 0 of {IQN}",)


async def test_attach_that_marked_the_vg_and_cannot_be_proven_unmarks_it(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    def activate_and_break() -> None:
        san.hold(DM_NAME)
        blocks.fault = AgentFault.of(FaultCode.READ_ONLY, "read-only LUN")

    commands.then(
        san.discover(), san.new_record(), san.login(), vgs(), lvs(), MAKES_PROBE_LV, ADDS_TAGS,
        Step(activates(san).argv, effect=activate_and_break),
        vgs(*TAGS), deactivates(san), lvs("stowage_probe"), REMOVES_PROBE_LV, REMOVES_TAGS, *ends_session(san, blocks),
    )  # fmt: skip
    assert (await fault_of(driver.attach(target_for(), CHAP, space, establish=True))).code is FaultCode.READ_ONLY


async def test_release_of_a_vg_in_use_is_in_use_and_keeps_all(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    await attach(driver, commands, san, space)
    commands.then(replay("lvm", "lv_open", ("vgchange", *SCOPE, "--activate", "n", "--", "vg_vms")))
    assert (await fault_of(driver.release(target_for(), space, remove_marker=False))).code is FaultCode.IN_USE
    assert await driver.is_attached(target_for(), space)


async def test_release_of_a_dead_target_removes_the_mappings_by_hand(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    await attach(driver, commands, san, space)
    timed_out = AgentFault.of(FaultCode.TIMED_OUT, "vgs did not end")
    vgs_step = vgs()
    commands.then(
        Step(vgs_step.argv, fault=timed_out),
        Step(("vgchange", *SCOPE, "--activate", "n", "--", "vg_vms"), fault=timed_out),
        Step(("dmsetup", "remove", "--", DM_NAME), effect=lambda: san.host.drop_holders(san.block_dir)),
        *ends_session(san, blocks),
    )
    report = await driver.release(target_for(), space, remove_marker=True)
    assert "timed_out" in report.left[0]


async def test_release_leaves_a_session_that_another_backend_uses_to_it(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks, tmp_path: Path
) -> None:
    await attach(driver, commands, san, space)
    first_block_dir = san.block_dir
    other_space = make_space(tmp_path / "state", OTHER_BACKEND)
    other = target_for(OTHER_BACKEND, lun=1, vg_name="vg_two")
    blocks.on_scan = lambda: san.host.add_disk(1, "sdc", "naa.two")
    empty = vgs(is_there=False, device="/dev/sdc")
    commands.then(
        san.discover(), empty,
        Step(("wipefs", "--no-act", "--json", "--", "/dev/sdc"), stdout='{"signatures": []}'),
        Step(("pvs", "--devices", "/dev/sdc", *SCOPE[2:], *REPORT, "pv_name,vg_name,pv_in_use"), stdout='{"report": [{"pv": []}]}'),
    )  # fmt: skip
    # It did not log in, so its failure leaves the session, and it is remembered as a sharer.
    assert (
        await fault_of(driver.attach(other, CHAP, other_space, establish=True))
    ).code is FaultCode.NEEDS_INITIALIZATION
    san.block_dir = first_block_dir
    commands.then(deactivates(san))
    await driver.release(target_for(), space, remove_marker=False)
    assert san.host.record(IQN, "10.0.0.9", 3260, 1).exists()
    commands.then(*ends_session(san, blocks))
    await driver.release(other, other_space, remove_marker=False)


async def test_release_leaves_a_session_that_was_there_before(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    san.host.login(IQN, "10.0.0.9", 3260)
    commands.then(san.discover(), vgs(*TAGS), lvs("stowage_probe"), activates(san))
    await driver.attach(target_for(), CHAP, space, establish=False)
    commands.then(deactivates(san))
    await driver.release(target_for(), space, remove_marker=False)
    assert (san.host.sysfs / "class/iscsi_session/session1").exists()


async def test_attach_at_another_portal_detaches_the_old_one_first(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    await attach(driver, commands, san, space)
    commands.then(
        deactivates(san), *ends_session(san, blocks),
        san.discover("san.example:3260"), san.new_record(), san.login(), vgs(*TAGS), lvs("stowage_probe"), activates(san),
    )  # fmt: skip
    await driver.attach(target_for(portal="san.example"), CHAP, space, establish=False)
    assert await driver.is_attached(target_for(portal="san.example"), space)


def trial_steps(san: San, *middle: Step) -> tuple[Step, ...]:
    iface = ("iscsiadm", "-m", "iface", "-I", IFACE)
    return (
        san.discover(), Step((*iface, "-o", "new")), Step((*iface, "-o", "update", "-n", "iface.transport_name", "-v", "tcp")),
        san.new_record(IFACE), san.login(IFACE, 2), *middle,
        san.logout(IFACE, 2), san.delete_record(IFACE), Step((*iface, "-o", "delete")),
    )  # fmt: skip


async def test_trial_logs_in_beside_the_session_in_use_and_leaves_nothing(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    await attach(driver, commands, san, space)
    blocks.on_scan = lambda: san.host.add_disk(0, "sdc", number=2)
    commands.then(*trial_steps(san, vgs(*TAGS, device="/dev/sdc")))
    report = await driver.trial(target_for(version=2), Credentials({"username": "chap", "password": "newer"}), space)
    assert report.latency_ms > 0 and report.capacity is not None
    assert "newer" not in san.host.record(IQN, "10.0.0.9", 3260, 1).read_text()
    assert await driver.is_attached(target_for(), space)
    assert os.listdir(space.dir) == ["iscsi.json"]


async def test_trial_with_a_wrong_password_is_auth_failed_and_leaves_nothing(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    iface = ("iscsiadm", "-m", "iface", "-I", IFACE)
    commands.then(
        san.discover(), Step((*iface, "-o", "new")), Step((*iface, "-o", "update", "-n", "iface.transport_name", "-v", "tcp")),
        san.new_record(IFACE), replay("iscsiadm", "wrong_chap", san.node("--login", iface=IFACE)),
        Step(san.node("--logout", iface=IFACE), 21), san.delete_record(IFACE),
        Step(san.node("-o", "delete", iface=IFACE), 21), Step((*iface, "-o", "delete")),
    )  # fmt: skip
    assert (await fault_of(driver.trial(target_for(), CHAP, space))).code is FaultCode.AUTH_FAILED
    assert os.listdir(space.dir) == []


async def test_inspect_shows_what_is_there_and_logs_out(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    commands.then(
        san.discover(),
        san.new_record(),
        san.login(),
        *content("LVM2_member", vg_name="other"),
        vgs(name="other"),
        *ends_session(san, blocks),
    )
    found = await driver.inspect(target_for(), CHAP, space)
    assert (found.wwid, found.size_bytes, found.foreign_vg, found.is_blank) == ("naa.6001405", 1024**3, "other", False)
    assert found.signatures == ("LVM2_member at 0x218",)


def creates() -> tuple[Step, ...]:
    return (
        Step(("pvcreate", *SCOPE, "--yes", "--", "/dev/sdb")),
        Step(
            (
                "vgcreate",
                *SCOPE,
                "--yes",
                "--setautoactivation",
                "n",
                "--addtag",
                TAGS[0],
                "--addtag",
                TAGS[1],
                "--",
                "vg_vms",
                "/dev/sdb",
            )
        ),
        vgs(*TAGS),
        lvs(),
        MAKES_PROBE_LV,
    )


async def test_initialize_of_a_blank_lun_makes_the_vg_and_attaches(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    commands.then(
        san.discover(), san.new_record(), san.login(), vgs(is_there=False), *content(), *creates(), activates(san)
    )
    assert (await driver.initialize(target_for(), CHAP, space, wwid="naa.6001405", force=False)).latency_ms > 0
    assert await driver.is_attached(target_for(), space)


async def test_initialize_with_thin_makes_the_pool_too(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    commands.then(
        san.discover(), san.new_record(), san.login(), vgs(is_there=False), *content(), *creates(),
        Step(("lvcreate", *SCOPE, "--yes", "--type", "thin-pool", "--extents", "95%FREE", "--name", "stowage_pool", "--", "vg_vms")),
        Step(("lvchange", *SCOPE, "--activate", "n", "--", "vg_vms/stowage_pool")),
        activates(san), lvs("stowage_probe", "stowage_pool", pool_percent="50.00"),
    )  # fmt: skip
    report = await driver.initialize(target_for(thin=True), CHAP, space, wwid="naa.6001405", force=False)
    assert report.capacity is not None and report.capacity.available_bytes == 60000000 + 10000000


async def test_initialize_twice_finds_its_own_work_and_completes_it(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    commands.then(san.discover(), san.new_record(), san.login(), vgs(*TAGS), *creates()[2:], activates(san))
    await driver.initialize(target_for(), CHAP, space, wwid="naa.6001405", force=False)


async def test_initialize_after_a_kill_between_pvcreate_and_vgcreate_goes_on(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace
) -> None:
    wipe = Step(("wipefs", "--all", "--force", "--", "/dev/sdb"))
    commands.then(
        san.discover(),
        san.new_record(),
        san.login(),
        vgs(is_there=False),
        *content("LVM2_member"),
        wipe,
        *creates(),
        activates(san),
    )
    await driver.initialize(target_for(), CHAP, space, wwid="naa.6001405", force=False)


async def test_initialize_of_foreign_data_needs_force(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    commands.then(
        san.discover(),
        san.new_record(),
        san.login(),
        vgs(is_there=False),
        *content("gpt", "PMBR"),
        *ends_session(san, blocks),
    )
    fault = await fault_of(driver.initialize(target_for(), CHAP, space, wwid="naa.6001405", force=False))
    assert fault.code is FaultCode.FOREIGN_DATA and "gpt" in fault.detail
    wipe = Step(("wipefs", "--all", "--force", "--", "/dev/sdb"))
    commands.then(
        san.discover(),
        san.new_record(),
        san.login(),
        vgs(is_there=False),
        *content("gpt", "PMBR"),
        wipe,
        *creates(),
        activates(san),
    )
    await driver.initialize(target_for(), CHAP, space, wwid="naa.6001405", force=True)


@pytest.mark.parametrize("force", [True, False])
async def test_initialize_of_another_backends_vg_is_refused_even_with_force(
    force: bool, driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    others = vgs(f"stowage_backend_{OTHER_BACKEND}", f"stowage_fleet_{FLEET}", name="elsewhere")
    commands.then(san.discover(), san.new_record(), san.login(), others, *ends_session(san, blocks))
    assert (
        await fault_of(driver.initialize(target_for(), CHAP, space, wwid="naa.6001405", force=force))
    ).code is FaultCode.MARKER_MISMATCH


async def test_initialize_of_another_lun_than_confirmed_is_wrong_device(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    commands.then(san.discover(), san.new_record(), san.login(), *ends_session(san, blocks))
    assert (
        await fault_of(driver.initialize(target_for(), CHAP, space, wwid="naa.other", force=True))
    ).code is FaultCode.WRONG_DEVICE


async def test_multipath_map_is_what_is_opened(
    driver: IscsiLvm, commands: RecordedCommands, san: San, space: Workspace, blocks: FakeBlocks
) -> None:
    def add() -> None:
        san.add_disk()
        san.host.add_holder(san.block_dir, "mpatha", 5, uuid="mpath-36001405")

    blocks.on_scan = add
    argv = tuple("/dev/dm-5" if word == "/dev/sdb" else word for word in vgs().argv)
    commands.then(
        san.discover(),
        san.new_record(),
        san.login(),
        Step(argv, fault=AgentFault.of(FaultCode.IO_ERROR, "x")),
        *ends_session(san, blocks),
    )
    assert (await fault_of(driver.attach(target_for(), CHAP, space, establish=True))).code is FaultCode.IO_ERROR
    assert blocks.opened == ["/dev/dm-5"]


@pytest.mark.parametrize(
    "config",
    [{"portal": "-o"}, {"portal": "1.2.3.4:99999"}, {"portal": "a b"}, {"portal": "nas\n"}, {"target_iqn": "--logout"}, {"target_iqn": "iqn.2026-01.a,b"},
     {"vg_name": "-y"}, {"vg_name": "a/b"}, {"vg_name": "a b"}, {"vg_name": ".."}, {"lun": -1}, {"lun": "0"}],
)  # fmt: skip
async def test_attach_with_words_that_could_reach_argv_runs_nothing(
    config: dict[str, Any], driver: IscsiLvm, commands: RecordedCommands, space: Workspace
) -> None:
    assert (
        await fault_of(driver.attach(target_for(**config), CHAP, space, establish=True))
    ).code is FaultCode.KIND_UNSUPPORTED
    assert commands.calls == []


async def test_discover_lists_each_target_once(driver: IscsiLvm, commands: RecordedCommands, san: San) -> None:
    commands.then(san.discover())
    items = await driver.discover({"portal": "10.0.0.9"})
    assert [item.config["target_iqn"] for item in items] == ["iqn.2026-01.org.example:other", IQN]
