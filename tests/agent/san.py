"""A host with iscsi_lvm and a target with one LUN: recorded tools, and what each of their steps does to a fake sysfs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.base import Deadline, ProbeReport, Workspace, boot_time_s
from agent.drivers.iscsi_lvm import IscsiLvm
from agent.errors import AgentFault
from agent.iscsiadm import Iscsi
from agent.lvm import Lvm
from agent.scsi import Disks, dm_uuid_of
from agent.workers import WorkerPool
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import Fault
from tests.agent.fake_kernel import FakeIscsi
from tests.agent.recorded_commands import RecordedCommands, Step, replay
from tests.agent.spaces import make_space

BACKEND = "01900000-0000-7000-8000-000000000001"
OTHER_BACKEND = "01900000-0000-7000-8000-000000000002"
FLEET = "01900000-0000-7000-8000-00000000ffff"
IQN = "iqn.2026-01.org.example:vms"
CHAP = Credentials({"username": "chap", "password": "chap-canary"})
TRIAL_IFACE = "stowage-000000000001"
OTHER_TRIAL_IFACE = "stowage-000000000002"
TAGS = (f"stowage_backend_{BACKEND}", f"stowage_fleet_{FLEET}")
OTHER_TAGS = (f"stowage_backend_{OTHER_BACKEND}", f"stowage_fleet_{FLEET}")
SCOPE = ("--devices", "/dev/sdb", "--nohints", "--config", "devices/obtain_device_list_from_udev=0")
REPORT = ("--shared", "--reportformat", "json", "--units", "b", "--nosuffix", "--options")
WWID = "naa.6001405"
DM_NAME = "vg_vms-stowage_probe"
VG_UUID = "EAJJxm-e0jP-4VzX-TTTT-2222-3333-aaaaaa"
PROBE_UUID = "6q9OWI-nF0X-qbI8-HP00-lpnf-glcx-tvGJMr"
DM_UUID = dm_uuid_of(VG_UUID, PROBE_UUID)
PROBE = "stowage_probe"
POOL = "stowage_pool"


def target_for(backend_id: str = BACKEND, version: int = 1, **config: Any) -> Target:
    config = {"portal": "10.0.0.9", "target_iqn": IQN, "vg_name": "vg_vms", **config}
    return Target(
        backend_id=backend_id, fleet_id=FLEET, kind="iscsi_lvm", config=config, generation=1, credential_version=version
    )


async def fault_of(awaitable: Any) -> Fault:
    with pytest.raises(AgentFault) as caught:
        await awaitable
    return caught.value.fault


class FakeBlocks:
    """Workers that touch no device of this machine: the probe LV is a file, what lies on the LUN is another, sysfs is the fake one.

    on_scan, on_delete, on_write: what happens then. busy: the device that somebody has open. jobs: all that ran, with its device.
    """

    def __init__(self, pool: WorkerPool, folder: Path) -> None:
        self._pool = pool
        self._probe_lv = folder / "blocks"
        self._probe_lv.write_bytes(bytes(4 * 1024 * 1024))
        self.lun = folder / "lun"
        self.lun.write_bytes(bytes(16 * 1024 * 1024))
        self.jobs: list[tuple[str, str]] = []
        self.dm_uuids: list[str] = []
        self.on_scan: Callable[[], object] = lambda: None
        self.on_delete: Callable[[], object] = lambda: None
        self.on_write: Callable[[], object] = lambda: None
        self.busy = ""
        self.faults: dict[str, AgentFault] = {}

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        if job == "write_sysfs":
            answer = await self._pool.run(job, args, key=key, timeout_s=timeout_s)
            (self.on_scan if args["path"].endswith("scan") else self.on_delete)()
            return answer
        if job in self.faults:
            raise self.faults[job]
        if job == "find_busy":
            self.jobs += [(job, device) for device in args["devices"]]
            return {"busy": self.busy if self.busy in args["devices"] else ""}
        self.jobs.append((job, args["device"]))
        if job == "write_block":
            self.on_write()
            self.dm_uuids.append(args["dm_uuid"])
            args = {**args, "dm_uuid": ""}
        file = self.lun if job == "look_for_data" else self._probe_lv
        return await self._pool.run(job, {**args, "device": str(file)}, key=key, timeout_s=timeout_s)


class San:
    """The host's parts, and steps by name."""

    def __init__(self, folder: Path, pool: WorkerPool) -> None:
        self.host = FakeIscsi(folder)
        self.state = folder / "state"
        self.space = make_space(self.state, BACKEND)
        self.commands = RecordedCommands()
        self.blocks = FakeBlocks(pool, folder)
        self.now_s = boot_time_s()
        self.blocks.on_scan = self.add_disk
        self.block_dir = Path()
        self.driver = self.restarted()

    def restarted(self) -> IscsiLvm:
        """The driver as a new agent process has it."""
        iscsi = Iscsi(
            self.commands,
            reach=self.host.reach,
            sysfs=self.host.sysfs,
            config_dirs=(self.host.config_dir,),
            lock_dir=self.host.lock_dir,
            udev_rules=self.host.udev_rules,
        )
        return IscsiLvm(self.commands, self.blocks, iscsi, Disks(self.blocks, self.host.sysfs), Lvm(self.commands))

    def other_space(self) -> Workspace:
        return make_space(self.state, OTHER_BACKEND)

    def then(self, *steps: Step | tuple[Step, ...]) -> None:
        for step in steps:
            self.commands.then(*(step if isinstance(step, tuple) else (step,)))

    async def attach(self, **config: Any) -> ProbeReport:
        """Attached to a VG that is ours already."""
        self.then(self.comes(), vgs(*TAGS), lvs(PROBE), self.activates())
        return await self.driver.attach(target_for(**config), CHAP, self.space, establish=False)

    async def initialize(
        self, *, force: bool = False, wwid: str = WWID, left_s: float = 20.0, **config: Any
    ) -> ProbeReport:
        """left_s: what is left of the command's time; it passes by now_s alone."""
        deadline = Deadline(self.now_s + left_s, lambda: self.now_s)
        return await self.driver.initialize(
            target_for(**config), CHAP, self.space, wwid=wwid, force=force, deadline=deadline
        )

    # What the kernel has.

    def hold(self, dm_name: str = DM_NAME, uuid: str = DM_UUID, number: int = 0) -> Path:
        return self.host.add_holder(self.block_dir, dm_name, number, uuid)

    def add_disk(self, lun: int = 0, wwid: str = "naa.6001405", number: int = 1) -> None:
        self.block_dir = self.host.add_disk(lun, wwid=wwid, number=number)

    def has_session(self, number: int = 1) -> bool:
        return (self.host.sysfs / f"class/iscsi_session/session{number}").exists()

    # Steps.

    def discover(self, portal: str = "10.0.0.9:3260") -> Step:
        return replay(
            "successes",
            "sendtargets",
            ("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal, "-o", "nonpersistent"),
        )

    def node(self, *operation: str, iface: str = "stowage") -> tuple[str, ...]:
        return ("iscsiadm", "-m", "node", "-T", IQN, "-p", "10.0.0.9:3260,1", "-I", iface, *operation)

    def new_record(self, iface: str = "stowage") -> Step:
        return Step(
            self.node("-o", "new", iface=iface), effect=lambda: self.host.make_record(IQN, "10.0.0.9", 3260, 1, iface)
        )

    def login(self, iface: str = "stowage", number: int = 1) -> Step:
        return Step(
            self.node("--login", iface=iface), effect=lambda: self.host.login(IQN, "10.0.0.9", 3260, iface, number)
        )

    def logout(self, iface: str = "stowage", number: int = 1) -> Step:
        return Step(self.node("--logout", iface=iface), effect=lambda: self.host.logout(number))

    def delete_record(self, iface: str = "stowage") -> Step:
        return Step(
            self.node("-o", "delete", iface=iface),
            effect=lambda: self.host.record(IQN, "10.0.0.9", 3260, 1, iface).unlink(),
        )

    def comes(self) -> tuple[Step, ...]:
        return (self.discover(), self.new_record(), self.login())

    def goes(self) -> tuple[Step, ...]:
        return (self.logout(), self.delete_record())

    def beside(self, *middle: Step, iface: str = TRIAL_IFACE, number: int = 2) -> tuple[Step, ...]:
        """A login of its own through a trial's iface, and its end."""
        return (
            self.new_record(iface),
            self.login(iface, number),
            *middle,
            self.logout(iface, number),
            self.delete_record(iface),
        )

    def activates(self, uuid: str = DM_UUID) -> Step:
        return Step(
            ("lvchange", *SCOPE, "--activate", "y", "--", f"vg_vms/{PROBE}"), effect=lambda: self._hold_if_free(uuid)
        )

    def deactivates(self, lv_uuid: str = PROBE_UUID) -> Step:
        return Step(
            ("lvchange", *SCOPE, "--activate", "n", "--select", f"lv_uuid={lv_uuid}"),
            effect=lambda: self.host.drop_holders(self.block_dir),
        )

    def removes_probe_lv(self) -> Step:
        """lvremove deactivates it first."""
        return Step(
            ("lvremove", *SCOPE, "--yes", "--", f"vg_vms/{PROBE}"),
            effect=lambda: self.host.drop_holders(self.block_dir),
        )

    def _hold_if_free(self, uuid: str) -> None:
        if not (self.block_dir / "holders/dm-0").exists():
            self.hold(uuid=uuid)


def vgs(
    *tags: str,
    name: str = "vg_vms",
    uuid: str = VG_UUID,
    pv_count: int = 1,
    is_there: bool = True,
    is_autoactivated: bool = False,
    lock_type: str = "none",
    extent_bytes: int = 4 * 1024**2,
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
            "vg_autoactivation": "enabled" if is_autoactivated else "",
            "vg_extent_size": str(extent_bytes),
            "vg_lock_type": lock_type,
        }
    ]
    columns = "vg_name,vg_uuid,vg_size,vg_free,vg_tags,pv_count,vg_autoactivation,vg_extent_size,vg_lock_type"
    argv = ("vgs", "--devices", device, *SCOPE[2:], *REPORT, columns)
    return Step(argv, stdout=json.dumps({"report": [{"vg": rows if is_there else []}]}))


def lvs(
    *names: str,
    pool_percent: str = "",
    thin_count: str = "1",
    tags: Mapping[str, str] | None = None,
    probe_uuid: str = PROBE_UUID,
    probe_size: int = 4194304,
    zero: str = "zero",
    device: str = "/dev/sdb",
) -> Step:
    """zero: what LVM says of the pool; of what is none, as of the others."""
    rows = [
        {
            "lv_name": name,
            "lv_uuid": probe_uuid if name == PROBE else f"{name}-uuid",
            "lv_size": str(probe_size) if name == PROBE else "20000000",
            "lv_tags": (tags or {}).get(name, ""),
            "data_percent": pool_percent if name == POOL else "",
            "thin_count": thin_count if name == POOL else "",
            "zero": zero if name == POOL else "unknown",
        }
        for name in names
    ]
    return Step(
        (
            "lvs",
            "--devices",
            device,
            *SCOPE[2:],
            *REPORT,
            "lv_name,lv_uuid,lv_size,lv_tags,data_percent,thin_count,zero",
            "--",
            "vg_vms",
        ),
        stdout=json.dumps({"report": [{"lv": rows}]}),
    )


def content(
    *types: str, vg_name: str = "", pe_start: int = 1024**2, uuid: str | None = None, device: str = "/dev/sdb"
) -> tuple[Step, Step]:
    found = [{"device": "sdb", "offset": "0x218", "type": type_, "uuid": uuid, "label": None} for type_ in types]
    row = {"pv_name": device, "vg_name": vg_name, "pv_in_use": "used" if vg_name else "", "pe_start": str(pe_start)}
    pvs = [row] if "LVM2_member" in types else []
    return (
        Step(("wipefs", "--no-act", "--json", "--", device), stdout=json.dumps({"signatures": found})),
        Step(
            ("pvs", "--devices", device, *SCOPE[2:], *REPORT, "pv_name,vg_name,pv_in_use,pe_start"),
            stdout=json.dumps({"report": [{"pv": pvs}]}),
        ),
    )


def looks(*types: str, name: str = "", tags: tuple[str, ...] = (), uuid: str | None = None) -> tuple[Step, ...]:
    """What initialize sees at one look: these signatures, and with `name` a VG."""
    return (vgs(*tags, name=name or "vg_vms", is_there=name != ""), *content(*types, vg_name=name, uuid=uuid))


WIPE = Step(("wipefs", "--all", "--force", "--", "/dev/sdb"))
MAKES_PROBE_LV = Step(
    ("lvcreate", *SCOPE, "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n",
     "--size", "4m", "--addtag", TAGS[0], "--name", PROBE, "--", "vg_vms")
)  # fmt: skip
MAKES_POOL = (
    Step(("lvcreate", *SCOPE, "--yes", "--type", "thin-pool", "--zero", "y", "--extents", "95%FREE", "--addtag", TAGS[0], "--name", POOL, "--", "vg_vms")),
    Step(("lvchange", *SCOPE, "--activate", "n", "--", f"vg_vms/{POOL}")),
)  # fmt: skip
ADDS_TAGS = Step(("vgchange", *SCOPE, "--addtag", TAGS[0], "--addtag", TAGS[1], "--", "vg_vms"))
REMOVES_TAGS = Step(("vgchange", *SCOPE, "--deltag", TAGS[0], "--deltag", TAGS[1], "--", "vg_vms"))
REMOVES_POOL = Step(("lvremove", *SCOPE, "--yes", "--select", f"lv_uuid={POOL}-uuid && thin_count=0", "--", "vg_vms"))
OURS = {PROBE: TAGS[0], POOL: TAGS[0]}
