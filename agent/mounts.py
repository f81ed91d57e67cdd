"""Mounting and unmounting by mount(8) and umount(8), and what the kernel says is mounted.

A tool's exit is never the last word: /proc/self/mountinfo is (proc(5); reading it touches no mounted
file system, so it cannot hang). No path below a mount is touched here.
"""

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from agent.drivers.base import Commands
from agent.errors import AgentFault
from agent.private_files import remove, write_private
from agent.tool_faults import tool_fault
from schemas.credentials import Credentials
from schemas.faults import FaultCode

log = logging.getLogger(__name__)

#: Seconds; below the 20 after which the manager gives a command up, so that the answer says what is wrong. A dead NFS address took
#: 4 s with retry=0, a dead SMB server 6 s for each of up to three tries (lab, 2026-11-28).
MOUNT_TIMEOUT_S = 16.0
#: Seconds for each of the three ways to unmount; a dead SMB share took 10.2 s (lab).
UNMOUNT_TIMEOUT_S = 15.0
#: On every mount of ours, whatever the operator's options say: the kernel must show them.
ALWAYS = ("nosuid", "nodev", "noexec")
_MAX_STACKED = 8
_VERSION_TIMEOUT_S = 5.0
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. options are the mount's, super_options the file system's, device its number: major:minor."""

    mount_id: int
    device: str
    where: Path
    fstype: str
    source: str
    options: frozenset[str]
    super_options: frozenset[str]


@dataclass(frozen=True)
class MountPlan:
    """What shall be mounted, and how the kernel will show it.

    options: as given to mount -o, in order. shown_fstypes: nfs 4 shows as nfs4. shown_version: what `vers=` must show
    as a whole; any when empty. helper_type: the -t of mount(8).
    """

    helper_type: str
    source: str
    options: tuple[str, ...]
    shown_fstypes: frozenset[str]
    shown_version: str = ""

    def mismatch(self, mount: Mount) -> str | None:
        """What differs between this and the kernel's word; None when they agree."""
        if mount.fstype not in self.shown_fstypes:
            return f"file system type {mount.fstype}"
        if _plain(mount.source) != _plain(self.source):
            return f"source {mount.source}"
        missing = [option for option in ALWAYS if option not in mount.options]
        if missing:
            return f"no {missing[0]}"
        if self.shown_version and not any(
            re.fullmatch(f"vers={self.shown_version}", option) for option in mount.super_options
        ):
            return f"version {next((o for o in sorted(mount.super_options) if o.startswith('vers=')), 'unknown')}"
        return None


@dataclass(frozen=True)
class SecretFile:
    """A file that a mount helper reads, there only while it runs; `path` is named in the plan's options."""

    path: Path
    credentials: Credentials
    content: bytes

    def __repr__(self) -> str:
        return f"<secret file {self.path.name}>"


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Every mount in the kernel's order: of several at one place the last is the visible one. Lines it can't read are left out."""
    mounts: list[Mount] = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3 or not fields[0].isdigit():
            continue
        mounts.append(
            Mount(
                mount_id=int(fields[0]),
                device=fields[2],
                where=Path(_unescape(fields[4])),
                fstype=tail[0],
                source=_unescape(tail[1]),
                options=frozenset(fields[5].split(",")),
                super_options=frozenset(tail[2].split(",")),
            )
        )
    return tuple(mounts)


class Mounts:
    """Mounts of this host. Safe to call for a dead server: every tool has its limit."""

    def __init__(self, commands: Commands, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        self._commands = commands
        self._mountinfo = mountinfo

    def at(self, where: Path) -> Mount | None:
        """What is visible at the place, if anything is mounted there."""
        return next((mount for mount in reversed(self._all()) if mount.where == where), None)

    def below(self, folder: Path) -> tuple[Mount, ...]:
        """What is mounted on the folder's own children, one entry a place."""
        return tuple({mount.where: mount for mount in self._all() if mount.where.parent == folder}.values())

    async def mount(self, plan: MountPlan, where: Path, secret: SecretFile | None = None) -> None:
        """The plan is mounted there, as the kernel confirms. Raises AgentFault and leaves nothing mounted and no folder.

        The place must be free; its folder is made with mode 0000, so that nobody writes into it while nothing is mounted.
        """
        try:
            _make_folder(where)
            await self._mount_and_check(plan, where, secret)
        except BaseException:
            if self.at(where) is not None:
                await self.unmount_anyhow(where)
            _remove_folder(where)
            raise

    async def unmount_idle(self, where: Path) -> None:
        """Nothing is mounted there. Raises AgentFault in_use when something uses it; nothing is forced."""
        for _ in range(_MAX_STACKED):
            if self.at(where) is None:
                return
            result = await self._commands.run(["umount", "-c", "--", str(where)], timeout_s=UNMOUNT_TIMEOUT_S)
            if result.exit_code != 0 and self.at(where) is not None:
                raise tool_fault(result)
        raise AgentFault.of(FaultCode.FAILED, f"{where} is still mounted after {_MAX_STACKED} unmounts")

    async def unmount_anyhow(self, where: Path, *, spare_busy: bool = False) -> bool:
        """Nothing is mounted there and the folder is gone; whether it took a lazy unmount. Plain, then forced, then lazy.

        Busy goes straight to lazy: the server answers, and MNT_FORCE would fail the writes of whoever still uses it. So does what
        shares its file system with another mount, as two backends on one export do: MNT_FORCE would fail the other's writes too.
        With spare_busy it stays: raises AgentFault in_use.
        """
        was_lazy = False
        try:
            await self.unmount_idle(where)
        except AgentFault as error:
            if spare_busy and error.fault.code is FaultCode.IN_USE:
                raise
            log.warning("plain unmount failed", extra={"mount_dir": str(where), "code": str(error.fault.code)})
            may_force = error.fault.code is not FaultCode.IN_USE and not self._is_shared(where)
            if not (may_force and await self._try_harder(where, "-f")):
                was_lazy = True
                if not await self._try_harder(where, "-l"):
                    raise
        _remove_folder(where)
        return was_lazy

    def _is_shared(self, where: Path) -> bool:
        """Whether the same file system is mounted elsewhere as well."""
        present = self.at(where)
        return present is not None and any(m.device == present.device and m.where != where for m in self._all())

    def _all(self) -> tuple[Mount, ...]:
        return parse_mountinfo(self._mountinfo.read_text(encoding="utf-8", errors="surrogateescape"))

    async def _try_harder(self, where: Path, way: str) -> bool:
        """Whether nothing is mounted there any more. -i: without the helper, which would ask a dead server first."""
        for _ in range(_MAX_STACKED):
            try:
                result = await self._commands.run(
                    ["umount", "-c", "-i", way, "--", str(where)], timeout_s=UNMOUNT_TIMEOUT_S
                )
            except AgentFault:
                return self.at(where) is None
            if self.at(where) is None:
                return True
            if result.exit_code != 0:
                return False
        return False

    async def _mount_and_check(self, plan: MountPlan, where: Path, secret: SecretFile | None) -> None:
        argv = ["mount", "-t", plan.helper_type, "-o", ",".join(plan.options), "--", plan.source, str(where)]
        try:
            if secret is not None:
                write_private(secret.path, secret.content)
            result = await self._commands.run(argv, timeout_s=MOUNT_TIMEOUT_S)
        finally:
            if secret is not None:
                remove(secret.path)
        if result.exit_code != 0:
            what = tool_fault(result, secret.credentials if secret is not None else None)
            if what.fault.code is FaultCode.KIND_UNSUPPORTED:
                # mount(8) says the same where the kernel lacks the file system and where only its own helper is missing.
                await self._commands.run([f"mount.{plan.helper_type}", "-V"], timeout_s=_VERSION_TIMEOUT_S)
            raise what
        shown = self.at(where)
        if shown is None:
            raise AgentFault.of(FaultCode.FAILED, f"mount reported success, but nothing is mounted at {where}")
        difference = plan.mismatch(shown)
        if difference is not None:
            raise AgentFault.of(
                FaultCode.FAILED, f"{plan.source} was asked for, but the kernel shows {difference} at {where}"
            )


def _make_folder(where: Path) -> None:
    """The folder exists. No exist_ok: that would stat, and on a mount that appeared meanwhile a stat may hang."""
    with contextlib.suppress(FileExistsError):
        where.mkdir(mode=0)


def _remove_folder(where: Path) -> None:
    """The empty folder is gone; one in use is left, for a later mount will find it."""
    with contextlib.suppress(FileNotFoundError, OSError):
        where.rmdir()


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def _plain(source: str) -> str:
    return source.rstrip("/")
