"""LVM on one device: every command sees that device alone, whatever lvm.conf, the devices file and hints say.

`--devices` hides all else (lvm(8)), so a guest's PV inside a volume or a stranger's VG of the same name is never touched, and
no command waits for another backend's dead disk. Formats and exit codes were seen with lvm2 2.03.16 on a loop device (2026-11-23).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agent.drivers.base import CommandResult, Commands
from agent.errors import AgentFault
from agent.tool_faults import tool_fault
from schemas.faults import FaultCode

T = TypeVar("T", bound=msgspec.Struct)

#: One extent in which every host has a block of its own to prove writes; at most 1024 hosts share one without luck.
PROBE_LV = "stowage_probe"
THIN_POOL_LV = "stowage_pool"
_REPORT_TIMEOUT_S = 15.0
#: Metadata commands took up to 3 s with three hosts on one LUN (lab, 2026-11-23).
_CHANGE_TIMEOUT_S = 30.0
_PARTITION_TABLES = frozenset(("gpt", "PMBR", "dos", "mac", "sun", "sgi", "bsd", "atari"))


@dataclass(frozen=True)
class VolumeGroup:
    name: str
    uuid: str
    size_bytes: int
    free_bytes: int
    tags: tuple[str, ...]
    pv_count: int


@dataclass(frozen=True)
class LogicalVolume:
    """data_percent: of a thin pool that is active here, else None."""

    name: str
    size_bytes: int
    is_active: bool
    data_percent: float | None


@dataclass(frozen=True)
class DeviceContent:
    """What is on a device. signatures: "type at offset". foreign_vg: its VG's name, whoever's. is_blank: nothing that a wipe would destroy."""

    signatures: tuple[str, ...]
    partition_table: str | None
    vg_name: str | None
    is_blank: bool


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """--reportformat json: every value is text. A device that is in no VG gives an empty list."""

    report: list[dict[str, list[dict[str, str]]]]


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    offset: str


class _Signatures(msgspec.Struct, frozen=True, kw_only=True):
    """wipefs --json."""

    signatures: list[_Signature] = []


class Lvm:
    """LVM commands. No lock of ours: LVM has its own for each VG, and one of ours would let a dead disk delay all others."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def volume_groups(self, device: str) -> tuple[VolumeGroup, ...]:
        """The VGs that the device belongs to: none or one."""
        rows = await self._report("vgs", device, "vg", "vg_name,vg_uuid,vg_size,vg_free,vg_tags,pv_count")
        return tuple(
            VolumeGroup(
                name=row["vg_name"],
                uuid=row["vg_uuid"],
                size_bytes=int(row["vg_size"]),
                free_bytes=int(row["vg_free"]),
                tags=tuple(filter(None, row["vg_tags"].split(","))),
                pv_count=int(row["pv_count"]),
            )
            for row in rows
        )

    async def logical_volumes(self, device: str, vg_name: str) -> tuple[LogicalVolume, ...]:
        """The VG's LVs, inner ones of a pool left out."""
        rows = await self._report("lvs", device, "lv", "lv_name,lv_size,lv_active,data_percent", "--", vg_name)
        return tuple(
            LogicalVolume(
                name=row["lv_name"],
                size_bytes=int(row["lv_size"]),
                is_active=row["lv_active"] == "active",
                data_percent=float(row["data_percent"]) if row["data_percent"] else None,
            )
            for row in rows
        )

    async def content(self, device: str) -> DeviceContent:
        """What lies on the device, found without writing. A PV that is in no VG holds nothing, so it counts as blank."""
        result = await self._run(["wipefs", "--no-act", "--json", "--", device], _REPORT_TIMEOUT_S)
        found = [(row.type, row.offset) for row in _decoded(result, _Signatures).signatures]
        rows = await self._report("pvs", device, "pv", "pv_name,vg_name,pv_in_use")
        vg_name = next((row["vg_name"] for row in rows if row["vg_name"]), None)
        is_orphan = bool(rows) and vg_name is None and not any(row["pv_in_use"] for row in rows)
        return DeviceContent(
            signatures=tuple(f"{type_} at {offset}" for type_, offset in found),
            partition_table=next((type_ for type_, _ in found if type_ in _PARTITION_TABLES), None),
            vg_name=vg_name,
            is_blank=all(type_ == "LVM2_member" for type_, _ in found) and (not found or is_orphan) and vg_name is None,
        )

    async def wipe(self, device: str) -> None:
        """No signature is left on the device. The caller has made sure that nobody wants them."""
        # --force: without it wipefs leaves a partition table alone (wipefs(8)).
        await self._run(["wipefs", "--all", "--force", "--", device], _CHANGE_TIMEOUT_S)

    async def create_group(self, device: str, vg_name: str, tags: Sequence[str]) -> None:
        """The VG exists on the device alone, tagged, and no host activates its volumes by itself."""
        options = [word for tag in tags for word in ("--addtag", tag)]
        await self._run(["pvcreate", *_scope(device), "--yes", "--", device], _CHANGE_TIMEOUT_S)
        await self._run(
            ["vgcreate", *_scope(device), "--yes", "--setautoactivation", "n", *options, "--", vg_name, device],
            _CHANGE_TIMEOUT_S,
        )

    async def add_tags(self, device: str, vg_name: str, tags: Sequence[str]) -> None:
        options = [word for tag in tags for word in ("--addtag", tag)]
        await self._run(["vgchange", *_scope(device), *options, "--", vg_name], _CHANGE_TIMEOUT_S)

    async def remove_tags(self, device: str, vg_name: str, tags: Sequence[str]) -> None:
        options = [word for tag in tags for word in ("--deltag", tag)]
        await self._run(["vgchange", *_scope(device), *options, "--", vg_name], _CHANGE_TIMEOUT_S)

    async def create_probe_volume(self, device: str, vg_name: str) -> None:
        """The LV of one extent exists, inactive."""
        await self._run(
            ["lvcreate", *_scope(device), "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n",
             "--extents", "1", "--name", PROBE_LV, "--", vg_name], _CHANGE_TIMEOUT_S,
        )  # fmt: skip

    async def create_thin_pool(self, device: str, vg_name: str) -> None:
        """The pool exists and takes 95 % of what is free; the rest is for its metadata to grow."""
        await self._run(
            [
                "lvcreate",
                *_scope(device),
                "--yes",
                "--type",
                "thin-pool",
                "--extents",
                "95%FREE",
                "--name",
                THIN_POOL_LV,
                "--",
                vg_name,
            ],
            _CHANGE_TIMEOUT_S,
        )
        await self._run(
            ["lvchange", *_scope(device), "--activate", "n", "--", f"{vg_name}/{THIN_POOL_LV}"], _CHANGE_TIMEOUT_S
        )

    async def remove_volume(self, device: str, vg_name: str, lv_name: str) -> None:
        await self._run(["lvremove", *_scope(device), "--yes", "--", f"{vg_name}/{lv_name}"], _CHANGE_TIMEOUT_S)

    async def activate(self, device: str, vg_name: str, lv_name: str) -> None:
        await self._run(
            ["lvchange", *_scope(device), "--activate", "y", "--", f"{vg_name}/{lv_name}"], _CHANGE_TIMEOUT_S
        )

    async def deactivate_group(self, device: str, vg_name: str) -> None:
        """None of the VG's LVs is active here. Raises AgentFault in_use while one is open."""
        await self._run(["vgchange", *_scope(device), "--activate", "n", "--", vg_name], _CHANGE_TIMEOUT_S)

    async def remove_mapping(self, name: str) -> None:
        """The dm device is gone, without a look at the disk below: for one that is dead, or whose metadata another host has changed."""
        await self._run(["dmsetup", "remove", "--", name], _CHANGE_TIMEOUT_S)

    async def _report(self, tool: str, device: str, section: str, columns: str, *names: str) -> list[dict[str, str]]:
        argv = [
            tool,
            *_scope(device),
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
            "--options",
            columns,
            *names,
        ]
        result = await self._run(argv, _REPORT_TIMEOUT_S)
        # With exit 0 and an empty list, as for a blank device (seen with 2.03.16): a device that is gone must not look blank.
        if "Device not found" in result.stderr:
            raise tool_fault(result)
        return [row for part in _decoded(result, _Report).report for row in part.get(section, [])]

    async def _run(self, argv: list[str], timeout_s: float) -> CommandResult:
        result = await self._commands.run(argv, timeout_s=timeout_s)
        if result.exit_code != 0:
            raise tool_fault(result)
        return result


def mapper_name(vg_name: str, lv_name: str) -> str:
    """The dm name of an LV: hyphens doubled within, one between (lvm2, build_dm_name)."""
    return f"{vg_name.replace('-', '--')}-{lv_name.replace('-', '--')}"


def _scope(device: str) -> tuple[str, ...]:
    return ("--devices", device, "--nohints", "--config", "devices/obtain_device_list_from_udev=0")


def _decoded(result: CommandResult, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(result.stdout, type=shape)
    except msgspec.DecodeError as error:
        raise AgentFault.of(FaultCode.FAILED, f"{result.argv[0]} answered something that is not its report") from error
