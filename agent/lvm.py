"""LVM on one device: every command sees that device alone, whatever lvm.conf, the devices file and hints say.

`--devices` hides all else (lvm(8)), so a guest's PV inside a volume or a stranger's VG of the same name is never touched, and
no command waits for another backend's dead disk. Needs lvm2 2.03.12, which brought that and the autoactivation property.
A shared VG (lvmlockd(8)) is read without its locks, for --shared shows it whatever the host runs, and changed under them.
Formats and exit codes were seen with lvm2 2.03.16 on a loop device (2026-11-23, 2026-11-25).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agent.drivers.base import CommandResult, Commands, Deadline
from agent.errors import AgentFault
from agent.tool_faults import tool_fault
from schemas.faults import FaultCode
from schemas.kinds import EXTENT_BYTES

T = TypeVar("T", bound=msgspec.Struct)


#: In which every host has a block of its own to prove writes; at most 1024 hosts share one without luck.
PROBE_LV = "stowage_probe"
#: Whatever the VG's extents are; LVM rounds up to whole ones.
PROBE_LV_BYTES = 4 * 1024 * 1024
THIN_POOL_LV = "stowage_pool"
#: LVM's own, in which sanlock has its leases; open while the lockspace is started.
LOCK_LV = "lvmlock"
_REPORT_TIMEOUT_S = 15.0
#: Metadata commands took up to 3 s with three hosts on one LUN (lab, 2026-11-23).
_CHANGE_TIMEOUT_S = 30.0
_SETTINGS = "devices/obtain_device_list_from_udev=0"
_PARTITION_TABLES = frozenset(("gpt", "PMBR", "dos", "mac", "sun", "sgi", "bsd", "atari"))


@dataclass(frozen=True)
class VolumeGroup:
    """lock_type: sanlock or dlm, for a VG that was made with --shared; else empty."""

    name: str
    uuid: str
    size_bytes: int
    free_bytes: int
    tags: tuple[str, ...]
    pv_count: int
    is_autoactivated: bool
    extent_bytes: int
    lock_type: str = ""


@dataclass(frozen=True)
class LogicalVolume:
    """data_percent: of a thin pool that is active here or has no volumes, else None. is_unused_pool: of which LVM knows no thin volume.

    is_unzeroed_pool: whose volumes show, in blocks that they get, what others left there.
    """

    name: str
    uuid: str
    size_bytes: int
    tags: tuple[str, ...]
    data_percent: float | None
    is_unused_pool: bool = False
    is_unzeroed_pool: bool = False


@dataclass(frozen=True)
class DeviceContent:
    """What LVM and libblkid know on a device. signatures: "type at offset". uuids: theirs, which tell one from another of its kind.

    vg_name: its VG's, whoever's. is_blank: nothing that they know of and that a wipe would destroy. begins_at: bytes, up to which a PV
    that is in no VG is LVM's own; what lies behind may be anything.
    """

    signatures: tuple[str, ...]
    partition_table: str | None
    vg_name: str | None
    is_blank: bool
    uuids: tuple[str, ...] = ()
    begins_at: int = 0


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """--reportformat json: every value is text. A device that is in no VG gives an empty list."""

    report: list[dict[str, list[dict[str, str]]]]


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    offset: str
    uuid: str | None = None


class _Signatures(msgspec.Struct, frozen=True, kw_only=True):
    """wipefs --json."""

    signatures: list[_Signature] = []


class Lvm:
    """LVM commands. No lock of ours: LVM has its own for each VG, and one of ours would let a dead disk delay all others."""

    def __init__(self, commands: Commands, *, is_locked: bool = False) -> None:
        """is_locked: changes are made under lvmlockd's locks."""
        self._commands = commands
        self._is_locked = is_locked

    def for_locks(self, lock_type: str) -> "Lvm":
        """These commands as a VG of that lock type needs them."""
        return Lvm(self._commands, is_locked=True) if lock_type else self

    @property
    def is_locked(self) -> bool:
        """Whether changes are made under lvmlockd's locks."""
        return self._is_locked

    async def volume_groups(self, device: str) -> tuple[VolumeGroup, ...]:
        """The VGs that the device belongs to: none or one."""
        columns = "vg_name,vg_uuid,vg_size,vg_free,vg_tags,pv_count,vg_autoactivation,vg_extent_size,vg_lock_type"
        rows = await self.report("vgs", device, "vg", columns)
        return tuple(
            VolumeGroup(
                name=row["vg_name"],
                uuid=row["vg_uuid"],
                size_bytes=int(row["vg_size"]),
                free_bytes=int(row["vg_free"]),
                tags=tuple(filter(None, row["vg_tags"].split(","))),
                pv_count=int(row["pv_count"]),
                is_autoactivated=row["vg_autoactivation"] != "",
                extent_bytes=int(row["vg_extent_size"]),
                lock_type=row["vg_lock_type"].replace("none", ""),
            )
            for row in rows
        )

    async def logical_volumes(self, device: str, vg_name: str) -> tuple[LogicalVolume, ...]:
        """The VG's LVs, inner ones of a pool left out."""
        rows = await self.report(
            "lvs", device, "lv", "lv_name,lv_uuid,lv_size,lv_tags,data_percent,thin_count,zero", "--", vg_name
        )
        # The last two are a segment's, so an LV has a row for each of its segments.
        of_each = {row["lv_uuid"]: row for row in reversed(rows)}
        return tuple(
            LogicalVolume(
                name=row["lv_name"],
                uuid=row["lv_uuid"],
                size_bytes=int(row["lv_size"]),
                tags=tuple(filter(None, row["lv_tags"].split(","))),
                # LVM asks the kernel for what is used, so of an inactive pool it tells only whether anything can be.
                data_percent=float(row["data_percent"] or 0)
                if row["data_percent"] or row["thin_count"] == "0"
                else None,
                is_unused_pool=row["thin_count"] == "0",
                # Of what is no pool "unknown", of one that zeroes "zero" (seen with 2.03.16).
                is_unzeroed_pool=row["zero"] == "",
            )
            for row in reversed(of_each.values())
        )

    async def content(self, device: str) -> DeviceContent:
        """What lies on the device, found without writing. A PV that is in no VG holds nothing, so it counts as blank."""
        result = await self._run(["wipefs", "--no-act", "--json", "--", device], _REPORT_TIMEOUT_S)
        signatures = _decoded(result, _Signatures).signatures
        found = [(row.type, row.offset) for row in signatures]
        rows = await self.report("pvs", device, "pv", "pv_name,vg_name,pv_in_use,pe_start")
        vg_name = next((row["vg_name"] for row in rows if row["vg_name"]), None)
        is_orphan = bool(rows) and vg_name is None and not any(row["pv_in_use"] for row in rows)
        return DeviceContent(
            signatures=tuple(f"{type_} at {offset}" for type_, offset in found),
            partition_table=next((type_ for type_, _ in found if type_ in _PARTITION_TABLES), None),
            vg_name=vg_name,
            is_blank=all(type_ == "LVM2_member" for type_, _ in found) and (not found or is_orphan) and vg_name is None,
            uuids=tuple(row.uuid or "" for row in signatures),
            begins_at=int(rows[0]["pe_start"] or 0) if is_orphan else 0,
        )

    async def wipe(self, device: str, deadline: Deadline) -> None:
        """No signature is left on the device. The caller has made sure that nobody wants them."""
        # --force: without it wipefs leaves a partition table alone (wipefs(8)).
        await self._overwrite(["wipefs", "--all", "--force", "--", device], deadline)

    async def create_group(self, device: str, vg_name: str, tags: Sequence[str], deadline: Deadline) -> None:
        """The VG exists on the device alone, tagged, of no one host, and no host activates its volumes by itself.

        Raises AgentFault foreign_data when a signature has appeared: without --yes LVM asks, and its empty input answers no.
        """
        await self._overwrite(["pvcreate", *self._scope(device), "--", device], deadline)
        # A host with a system ID would give it to the VG, and hide the VG from all others (lvmsystemid(7)).
        # And of lvm.conf's extents the kind's sizes need not be multiples.
        extents = ("--physicalextentsize", f"{EXTENT_BYTES // 1024**2}m")
        options = ["--systemid", "", "--setautoactivation", "n", *extents, *_words("--addtag", tags)]
        await self._overwrite(["vgcreate", *self._scope(device), *options, "--", vg_name, device], deadline)

    async def mark_group(self, device: str, group: VolumeGroup, tags: Sequence[str]) -> None:
        """The VG has the tags, and no host activates its volumes by itself; one write of the metadata for both."""
        # Where it is off already, vgchange ends with 5 and adds no tag (seen with 2.03.16).
        options = [*(("--setautoactivation", "n") if group.is_autoactivated else ()), *_words("--addtag", tags)]
        if options:
            await self._run(["vgchange", *self._scope(device), *options, "--", group.name], _CHANGE_TIMEOUT_S)

    async def unmark_group(self, device: str, group: VolumeGroup, tags: Sequence[str], *, autoactivate: bool) -> None:
        """The tags are gone; with `autoactivate` the VG is activated by itself again."""
        turns_on = autoactivate and not group.is_autoactivated
        options = [*(("--setautoactivation", "y") if turns_on else ()), *_words("--deltag", tags)]
        if options:
            await self._run(["vgchange", *self._scope(device), *options, "--", group.name], _CHANGE_TIMEOUT_S)

    async def create_probe_volume(self, device: str, vg_name: str, tag: str) -> None:
        """The LV exists, inactive, with the tag of who made it."""
        await self._run(
            ["lvcreate", *self._scope(device), "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n",
             "--size", f"{PROBE_LV_BYTES // 1024**2}m", "--addtag", tag, "--name", PROBE_LV, "--", vg_name], _CHANGE_TIMEOUT_S,
        )  # fmt: skip

    async def create_thin_pool(self, device: str, vg_name: str, tag: str) -> None:
        """The pool exists, inactive, with the tag of who made it, and takes 95 % of what is free; the rest is for its metadata to grow.

        Whatever lvm.conf says, it zeroes what it gives out: its blocks are larger than what a VM, or a copy that is sparse, writes there.
        """
        await self._run(
            ["lvcreate", *self._scope(device), "--yes", "--type", "thin-pool", "--zero", "y", "--extents", "95%FREE",
             "--addtag", tag, "--name", THIN_POOL_LV, "--", vg_name], _CHANGE_TIMEOUT_S,
        )  # fmt: skip
        await self._run(
            ["lvchange", *self._scope(device), "--activate", "n", "--", f"{vg_name}/{THIN_POOL_LV}"], _CHANGE_TIMEOUT_S
        )

    async def remove_volume(self, device: str, vg_name: str, lv_name: str) -> None:
        await self._run(["lvremove", *self._scope(device), "--yes", "--", f"{vg_name}/{lv_name}"], _CHANGE_TIMEOUT_S)

    async def remove_unused_pool(self, device: str, vg_name: str, pool: LogicalVolume) -> None:
        """The thin pool is gone, or stays because it has a thin volume: LVM itself looks, with the VG locked (seen with 2.03.16).

        By its name it would go with all that is in it.
        """
        chosen = f"lv_uuid={pool.uuid} && thin_count=0"
        await self._run(
            ["lvremove", *self._scope(device), "--yes", "--select", chosen, "--", vg_name], _CHANGE_TIMEOUT_S
        )

    async def activate(self, device: str, vg_name: str, lv_name: str) -> None:
        """The LV is active here; under locks shared with other hosts."""
        how = "sy" if self._is_locked else "y"
        await self._run(
            ["lvchange", *self._scope(device), "--activate", how, "--", f"{vg_name}/{lv_name}"], _CHANGE_TIMEOUT_S
        )

    async def start_locking(self, device: str, vg_name: str) -> None:
        """The VG's lockspace starts, if it has not; until it has, which takes sanlock 20 to 30 s, changes fail with converging."""
        await self._run(
            ["vgchange", *self._scope(device), "--lockstart", "--lockopt", "nowait", "--", vg_name], _CHANGE_TIMEOUT_S
        )

    async def stop_locking(self, device: str, vg_name: str) -> None:
        """This host is in the VG's lockspace no more. Raises AgentFault in_use while an LV of it is active here."""
        await self._run(["vgchange", *self._scope(device), "--lockstop", "--", vg_name], _CHANGE_TIMEOUT_S)

    async def deactivate(self, device: str, lv_uuids: Sequence[str]) -> None:
        """These LVs are inactive here, and no others. Raises AgentFault in_use while one is open."""
        chosen = " || ".join(f"lv_uuid={uuid}" for uuid in lv_uuids)
        await self._run(["lvchange", *self._scope(device), "--activate", "n", "--select", chosen], _CHANGE_TIMEOUT_S)

    async def remove_mapping(self, name: str) -> None:
        """The dm device is gone, without a look at the disk below: for one that is dead, or whose metadata another host has changed."""
        await self.change_mapping("remove", "--", name)

    async def change(self, tool: str, device: str, *words: str) -> None:
        """The tool has run, seeing this device alone; for what knows more of LVs than this file (lv_commands.py)."""
        await self._run([tool, *self._scope(device), *words], _CHANGE_TIMEOUT_S)

    async def change_mapping(self, verb: str, *words: str) -> None:
        """dmsetup has run, which looks at no disk."""
        await self._run(["dmsetup", verb, *words], _CHANGE_TIMEOUT_S)

    def _scope(self, device: str) -> tuple[str, ...]:
        settings = _SETTINGS + (" global/use_lvmlockd=1" if self._is_locked else "")
        return ("--devices", device, "--nohints", "--config", settings)

    async def report(self, tool: str, device: str, section: str, columns: str, *names: str) -> list[dict[str, str]]:
        """The rows of one section of a report on this device, each column's value as text; sizes in bytes."""
        how = ("--shared", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", columns)
        argv = [tool, "--devices", device, "--nohints", "--config", _SETTINGS, *how, *names]
        result = await self._run(argv, _REPORT_TIMEOUT_S)
        # With exit 0 and an empty list, as for a blank device (seen with 2.03.16): a device that is gone must not look blank.
        # Likewise for the VG of another host's system ID, or of a lock manager: it is there and must not look absent.
        if "Device not found" in result.stderr or "Cannot access VG" in result.stderr:
            raise tool_fault(result)
        return [row for part in _decoded(result, _Report).report for row in part.get(section, [])]

    async def _overwrite(self, argv: list[str], deadline: Deadline) -> None:
        """The tool has run, and has not gone on past the deadline. Raises AgentFault timed_out when that is over before it starts."""
        left_s = deadline.left_s
        if left_s <= 0:
            raise AgentFault.of(
                FaultCode.TIMED_OUT,
                f"the command's time was over before {argv[0]}, which was not run: this host was too slow, or stood still",
                "Inspect the device again, then repeat",
                is_retryable=True,
            )
        await self._run(argv, min(_CHANGE_TIMEOUT_S, left_s))

    async def _run(self, argv: list[str], timeout_s: float) -> CommandResult:
        result = await self._commands.run(argv, timeout_s=timeout_s)
        if result.exit_code != 0:
            raise tool_fault(result)
        return result


def mapper_name(vg_name: str, lv_name: str) -> str:
    """The dm name of an LV: hyphens doubled within, one between (lvm2, build_dm_name)."""
    return f"{vg_name.replace('-', '--')}-{lv_name.replace('-', '--')}"


def _words(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _decoded(result: CommandResult, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(result.stdout, type=shape)
    except msgspec.DecodeError as error:
        raise AgentFault.of(FaultCode.FAILED, f"{result.argv[0]} answered something that is not its report") from error
