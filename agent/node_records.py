"""Open-iscsi's records as files: of nodes, so that secrets come near no argv, and of ifaces, so that they are there only while needed.

The lock is idbm_lock of its usr/idbm.c: who makes lock.write, by a hard link, holds it; others try every 10 ms for
30 s, and nobody ever breaks it. So one that a killed agent left would stop every iscsiadm of the host for good. Ours
is therefore a link to a file that names its holder, and is removed when that process is no more. That of an iscsiadm that was
killed, as ours are with the agent, names nobody: it is removed when it has stood for longer than any work takes and no iscsiadm
of that time runs.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from agent.errors import AgentFault
from agent.portals import Node
from agent.private_files import write_private
from schemas.faults import FaultCode

log = logging.getLogger(__name__)

_LOCK_TIMEOUT_S = 30.0
_LOCK_POLL_S = 0.1
#: iscsiadm and iscsid hold the lock while they read or write a record.
_LOCK_STALE_S = 10.0
#: In /proc/PID/stat, behind the name: when the process started, in ticks since the boot (proc(5), field 22).
_START_WORD = 19
_ROUNDING_S = 1.0
#: Longer than any holder's text; iscsiadm's own lock file is empty.
_HOLDER_MAX_BYTES = 512


class _Holder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who holds the lock. started: clock ticks since the boot (proc(5), stat, 22), so that no later process is taken for it."""

    stowage_agent: int
    started: str
    boot_id: str


class NodeRecords:
    """The records below the first of config_dirs that has them. One user at a time in this process: the caller's lock sees to it."""

    def __init__(self, config_dirs: tuple[Path, ...], lock_dir: Path) -> None:
        self._config_dirs = config_dirs
        self._lock_dir = lock_dir
        self._iface_users: Counter[str] = Counter()

    @asynccontextmanager
    async def iface(self, name: str) -> AsyncGenerator[None]:
        """The iface's record exists meanwhile: plain TCP, so that a session through it stands beside one through `default`.

        No longer than that, for a discovery of the operator's without -I binds what it finds to every iface that has a
        record, and overwrites ours (idbm_bind_ifaces_to_nodes; seen with 2.1.8 and a target, 2026-11-25). By file, for
        `iscsiadm -m iface -o new` refuses while the iface has a session.
        """
        self._iface_users[name] += 1
        try:
            for path in self._iface_paths(name) if self._iface_users[name] == 1 else ():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                # No draft that is renamed: iscsiadm would take one that a kill left for an iface. Not again for the second
                # user, for the first one's iscsiadm may be reading it.
                path.write_text(f"iface.iscsi_ifacename = {name}\niface.transport_name = tcp\n")
            yield
        finally:
            self._iface_users[name] -= 1
            if not self._iface_users[name]:
                for path in self._iface_paths(name):
                    path.unlink(missing_ok=True)

    async def edit(self, node: Node, settings: Mapping[str, str]) -> None:
        """The node's record, which iscsiadm has made, holds these settings; empty ones are absent from it."""
        async with self._lock():
            path = self._find(node)
            if path is None:
                places = " or ".join(map(str, self._config_dirs))
                raise AgentFault.of(FaultCode.FAILED, f"iscsiadm made no record of {node.iqn} in {places}")
            _replace(path, _edited(path.read_text(), settings))

    async def remove(self, node: Node) -> None:
        """No record of the node is left, nor a draft of one, and so no secret."""
        async with self._lock():
            for path in self._paths(node):
                _draft(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    async def remove_stale_lock(self) -> None:
        """A lock that an agent or an iscsiadm left when it was killed is gone; one of a process that lives stays."""
        write_lock = self._lock_dir / "lock.write"
        try:
            text, stat = write_lock.read_bytes()[:_HOLDER_MAX_BYTES], write_lock.stat()
        except FileNotFoundError:
            return
        # ctime: making the link is the last that happened to the file.
        if not text:
            is_old = time.time() - stat.st_ctime > _LOCK_STALE_S
            # Those that came later wait for the lock and do not hold it.
            if is_old and not _has_process("iscsiadm", started_before=stat.st_ctime):
                log.warning("removing the lock of an iscsiadm that is no more", extra={"path": str(write_lock)})
                _unlink_unchanged(write_lock, stat)
            return
        try:
            holder = msgspec.json.decode(text, type=_Holder)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if holder == _holder(holder.stowage_agent):
            return
        _unlink_unchanged(write_lock, stat)
        (self._lock_dir / f"stowage.{holder.stowage_agent}").unlink(missing_ok=True)

    def _iface_paths(self, name: str) -> Iterable[Path]:
        """In each folder that is there: which of them iscsiadm reads was decided when it was built."""
        return (folder / "ifaces" / name for folder in self._config_dirs if folder.is_dir())

    def _paths(self, node: Node) -> Iterable[Path]:
        below = Path("nodes", node.iqn, f"{node.portal.host},{node.portal.port},{node.tpgt}", node.iface)
        return (folder / below for folder in self._config_dirs)

    def _find(self, node: Node) -> Path | None:
        return next((path for path in self._paths(node) if path.is_file()), None)

    @asynccontextmanager
    async def _lock(self) -> AsyncGenerator[None]:
        """Open-iscsi's lock is held. Raises AgentFault timed_out after 30 s, as iscsiadm gives up."""
        self._lock_dir.mkdir(mode=0o770, parents=True, exist_ok=True)
        own, write_lock = self._lock_dir / f"stowage.{os.getpid()}", self._lock_dir / "lock.write"
        own.unlink(missing_ok=True)
        own.write_bytes(msgspec.json.encode(_holder(os.getpid())))
        try:
            await self._take(own, write_lock)
            try:
                yield
            finally:
                write_lock.unlink(missing_ok=True)
        finally:
            own.unlink(missing_ok=True)

    async def _take(self, own: Path, write_lock: Path) -> None:
        try:
            async with asyncio.timeout(_LOCK_TIMEOUT_S):
                while True:
                    await self.remove_stale_lock()
                    try:
                        os.link(own, write_lock)
                        return
                    except FileExistsError:
                        await asyncio.sleep(_LOCK_POLL_S)
        except TimeoutError as error:
            remedy = f"If no iscsiadm runs on this host, remove {write_lock}"
            raise AgentFault.of(
                FaultCode.TIMED_OUT, "the iSCSI record database of this host is locked", remedy, is_retryable=True
            ) from error


def _unlink_unchanged(path: Path, stat: os.stat_result) -> None:
    """The file is gone, unless it has been made anew since: linking and unlinking change its ctime."""
    with contextlib.suppress(FileNotFoundError):
        now = path.stat()
        if (now.st_ino, now.st_ctime_ns) == (stat.st_ino, stat.st_ctime_ns):
            path.unlink()


def _has_process(name: str, *, started_before: float) -> bool:
    """Whether a process of that name runs that was there at that time, in Unix seconds; one tick of rounding counts as before."""
    ticks_s = os.sysconf("SC_CLK_TCK")
    booted_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            head, _, tail = path.read_text(errors="replace").rpartition(")")
            started_at = booted_at + int(tail.split()[_START_WORD]) / ticks_s
            if head.partition("(")[2] == name and started_at <= started_before + _ROUNDING_S:
                return True
    return False


def _holder(pid: int) -> _Holder | None:
    """The process of that number as it is now; None for none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A zombie holds nothing any more.
    return None if words[0] == "Z" else _Holder(stowage_agent=pid, started=words[_START_WORD], boot_id=boot_id)


def _draft(path: Path) -> Path:
    """Of a fixed name, so that what a kill leaves is removed with the record; beside `nodes`, for iscsiadm reads all below it."""
    root = path.parents[3]
    # The three names together may be longer than a file's name can be.
    name = hashlib.sha256(str(path.relative_to(root)).encode()).hexdigest()
    return root / f".stowage-{name}"


def _edited(text: str, settings: Mapping[str, str]) -> str:
    """The record with the settings in place of its own lines for them; before the end mark, if it has one."""
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in settings]
    added = [f"{name} = {value}" for name, value in settings.items() if value]
    end = next((number for number, line in enumerate(kept) if line.startswith("# END RECORD")), len(kept))
    return "\n".join((*kept[:end], *added, *kept[end:])) + "\n"


def _replace(path: Path, text: str) -> None:
    draft = _draft(path)
    draft.unlink(missing_ok=True)
    write_private(path, text.encode(), temp=draft)
