"""A host with an attached iscsi_lvm backend and its volumes: what LVM reports of LVs, and what its commands do to the kernel."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.lv_volumes import LvVolumes
from agent.lvm import mapper_name
from agent.scsi import dm_uuid_of
from agent.workers import WorkerPool
from schemas.volume_rpc import VolumeFormat, VolumeSpec
from tests.agent.recorded_commands import Step
from tests.agent.san import POOL, REPORT, SCOPE, TAGS, VG_UUID, San, target_for, vgs

MIB = 1024 * 1024
EXTENT = 4 * MIB
LOCATOR = "0" * 31 + "1"
OTHER_LOCATOR = "0" * 31 + "2"
NAME = f"sv_{LOCATOR}"
OTHER_NAME = f"sv_{OTHER_LOCATOR}"
LV_UUID = "VVVVVV-vvvv-vvvv-vvvv-vvvv-vvvv-vvvvv1"
OTHER_UUID = "VVVVVV-vvvv-vvvv-vvvv-vvvv-vvvv-vvvvv2"
UUIDS = {NAME: LV_UUID, OTHER_NAME: OTHER_UUID}
LV_TAGS = f"{TAGS[0]},stowage_volume"
COLUMNS = "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,origin,data_percent,zero"
#: Of the volume's mapping; the probe LV's is 0.
NUMBER = 5
DM_NAME = mapper_name("vg_vms", NAME)
DM_UUID = dm_uuid_of(VG_UUID, LV_UUID)
SPEC = VolumeSpec(locator=LOCATOR, format=VolumeFormat.RAW, size_bytes=12 * MIB)
ORIGIN = VolumeSpec(locator=OTHER_LOCATOR, format=VolumeFormat.RAW, size_bytes=8 * MIB)


class LvSan:
    """The backend is attached. kernel_bytes: the size that the mapping has; is_suspended, has_node: likewise. jobs: what ran on it."""

    def __init__(self, san: San, **config: Any) -> None:
        self.san = san
        self.target = target_for(**config)
        self.kernel_bytes = 12 * MIB
        self.is_suspended = False
        self.has_node = True
        self.jobs: list[tuple[str, Mapping[str, Any]]] = []
        self._run = san.blocks.run

    @classmethod
    async def make(cls, folder: Path, pool: WorkerPool, **config: Any) -> "LvSan":
        made = cls(San(folder, pool), **config)
        made.san.blocks.run = made.run  # type: ignore[method-assign]
        await made.san.attach(**config)
        made.san.commands.calls.clear()
        return made

    @property
    def volumes(self) -> LvVolumes:
        return self.san.driver.volumes(self.target, self.san.space)

    @property
    def calls(self) -> list[str]:
        """The tools that ran, without those that look."""
        return [call[0] for call in self.san.commands.calls if call[0] not in ("vgs", "lvs")]

    def restart(self) -> None:
        """The agent was killed."""
        self.san.driver = self.san.restarted()

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        if job == "wait_for_node":
            assert args["dm_uuid"] == DM_UUID
            self.jobs.append((job, {"path": args["path"]}))
            return {"is_there": self.has_node, "size_bytes": self.kernel_bytes, "is_suspended": self.is_suspended}
        if job in ("zero_device", "discard_device"):
            assert args["extent"] == {"folder": "/dev", "name": f"dm-{NUMBER}", "dm_uuid": DM_UUID}
            assert self.is_active
            self.jobs.append((job, {name: word for name, word in args.items() if name != "extent"}))
            return {}
        return await self._run(job, args, key=key, timeout_s=timeout_s)

    @property
    def is_active(self) -> bool:
        return (self.san.host.sysfs / f"class/block/dm-{NUMBER}").exists()

    def changes(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The jobs that write, forgotten then."""
        found = [each for each in self.jobs if each[0] != "wait_for_node"]
        self.jobs.clear()
        return found

    def map(self, dm_name: str = DM_NAME, uuid: str = DM_UUID, number: int = NUMBER) -> None:
        self.san.hold(dm_name, uuid, number)

    def unmap(self, number: int = NUMBER) -> None:
        self.san.host.drop_mapping(number)

    def then(self, *steps: Step | tuple[Step, ...]) -> None:
        self.san.then(*steps)

    # Steps.

    def activates(self, how: str = "y", *, scope: tuple[str, ...] = SCOPE) -> Step:
        argv = ("lvchange", *scope, "--activate", how, "--", f"vg_vms/{NAME}")
        return Step(argv, effect=lambda: None if self.is_active else self.map())

    def deactivates(self, *, scope: tuple[str, ...] = SCOPE) -> Step:
        argv = ("lvchange", *scope, "--activate", "n", "--select", f"lv_uuid={LV_UUID}")
        return Step(argv, effect=lambda: self.unmap() if self.is_active else None)

    def refreshes(self, kernel_bytes: int = 12 * MIB) -> Step:
        def refresh() -> None:
            self.kernel_bytes, self.is_suspended = kernel_bytes, False

        return Step(("lvchange", *SCOPE, "--refresh", "--", f"vg_vms/{NAME}"), effect=refresh)

    def removes_mapping(self, number: int = NUMBER, dm_name: str = DM_NAME) -> Step:
        return Step(("dmsetup", "remove", "--", dm_name), effect=lambda: self.unmap(number))

    def resizes(self, tool: str, size_bytes: int) -> Step:
        options = ("--yes",) if tool == "lvreduce" else ()
        argv = (tool, *SCOPE, *options, "--size", f"{size_bytes}b", "--", f"vg_vms/{NAME}")

        def resize() -> None:
            self.kernel_bytes = size_bytes

        return Step(argv, effect=resize)

    def marks(self, own_bytes: int) -> Step:
        return Step(("lvchange", *SCOPE, "--addtag", tail(own_bytes), "--", f"vg_vms/{NAME}"))

    def unmarks(self, *own_bytes: int) -> Step:
        words = [word for each in own_bytes for word in ("--deltag", tail(each))]
        return Step(("lvchange", *SCOPE, *words, "--", f"vg_vms/{NAME}"))


def tail(own_bytes: int) -> str:
    """The mark of an LV of which only so many bytes are the volume's."""
    return f"stowage_tail_{own_bytes}"


def row(
    name: str = NAME,
    size_bytes: int = 12 * MIB,
    *,
    tags: str = LV_TAGS,
    pool: str = "",
    origin: str = "",
    percent: str = "",
    own: int | None = None,
    zero: str | None = None,
) -> dict[str, str]:
    """own: marked, with so many bytes. zero: as LVM says it; None: as it is mostly."""
    if own is not None:
        tags = f"{tags},{tail(own)}"
    return {
        "lv_name": name,
        "lv_uuid": UUIDS.get(name, f"{name}-uuid"),
        "lv_size": str(size_bytes),
        "lv_tags": tags,
        "pool_lv": pool,
        "origin": origin,
        "data_percent": percent,
        "zero": zero if zero is not None else "zero" if pool or name == POOL else "unknown",
    }


def lv_report(*rows: dict[str, str]) -> Step:
    return Step(("lvs", *SCOPE, *REPORT, COLUMNS, "--", "vg_vms"), stdout=json.dumps({"report": [{"lv": list(rows)}]}))


def seen(*rows: dict[str, str], lock_type: str = "none") -> tuple[Step, Step]:
    """What every verb looks at first."""
    return vgs(*TAGS, lock_type=lock_type), lv_report(*rows)


CREATES = Step(
    ("lvcreate", *SCOPE, "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n", "--size", f"{12 * MIB}b",
     "--addtag", TAGS[0], "--addtag", "stowage_volume", "--name", NAME, "--", "vg_vms")
)  # fmt: skip
CREATES_THIN = Step(
    ("lvcreate", *SCOPE, "--yes", "--activate", "n", "--setactivationskip", "n", "--thin", "--virtualsize", f"{12 * MIB}b",
     "--thinpool", "stowage_pool", "--addtag", TAGS[0], "--addtag", "stowage_volume", "--name", NAME, "--", "vg_vms")
)  # fmt: skip
SNAPSHOTS = Step(
    ("lvcreate", *SCOPE, "--yes", "--activate", "n", "--setactivationskip", "n", "--snapshot",
     "--addtag", TAGS[0], "--addtag", "stowage_volume", "--name", NAME, "--", f"vg_vms/{OTHER_NAME}")
)  # fmt: skip
REMOVES = Step(("lvremove", *SCOPE, "--yes", "--select", f"lv_uuid={LV_UUID} && lv_tags={TAGS[0]}", "--", "vg_vms"))
