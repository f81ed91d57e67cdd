"""iSCSI by iscsiadm(8), with the CHAP secrets written into the node record and never into argv.

Why the record file: `iscsiadm -o update -v SECRET` shows the secret to every process of the host. The record is edited
under open-iscsi's own lock (idbm_lock in its usr/idbm.c: a hard link lock.write beside the file lock, tried
every 10 ms for 30 s), so that no iscsiadm reads half of it. What is logged in is read from sysfs, never from a tool.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent.drivers.base import CommandResult, Commands
from agent.errors import AgentFault
from agent.private_files import sync_dir
from agent.reach import bare_host, is_ipv6
from agent.tool_faults import tool_fault
from schemas.credentials import Credentials
from schemas.faults import FaultCode

DEFAULT_PORT = 3260
DEFAULT_IFACE = "default"
_DISCOVER_TIMEOUT_S = 20.0
#: Above login_timeout below, so that iscsid's own answer comes first.
_LOGIN_TIMEOUT_S = 30.0
_LOGOUT_TIMEOUT_S = 40.0
_RECORD_TIMEOUT_S = 35.0
_LOCK_TIMEOUT_S = 30.0
_LOCK_POLL_S = 0.01
#: Exit codes of iscsiadm(8).
_SESSION_EXISTS = 15
_NOTHING_FOUND = 21
_AUTH = "node.session.auth."
#: manual scan: only the LUN that was asked for becomes a disk here, not its neighbours.
_SETTINGS = {
    "node.startup": "manual",
    "node.conn[0].startup": "manual",
    "node.session.scan": "manual",
    "node.session.initial_login_retry_max": "1",
    "node.conn[0].timeo.login_timeout": "15",
}
_LISTED = re.compile(r"(?P<address>\S+):(?P<port>\d+),(?P<tpgt>\d+) (?P<iqn>\S+)")


@dataclass(frozen=True)
class Portal:
    """host: a name or address without brackets. tpgt: the target's portal group tag, as discovery says."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Portal":
        """ADDRESS, ADDRESS:PORT or [IPv6]:PORT, as the schema lets through."""
        address, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            return cls(bare_host(text), DEFAULT_PORT)
        return cls(bare_host(address), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if is_ipv6(self.host) else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Node:
    """A target's portal as seen through an iface of this host: what open-iscsi keeps one record for."""

    iqn: str
    portal: Portal
    tpgt: int
    iface: str = DEFAULT_IFACE

    def argv(self, *operation: str) -> list[str]:
        return [
            "iscsiadm",
            "-m",
            "node",
            "-T",
            self.iqn,
            "-p",
            f"{self.portal},{self.tpgt}",
            "-I",
            self.iface,
            *operation,
        ]


@dataclass(frozen=True)
class Session:
    """A session as sysfs shows it. device_dir: …/hostH/sessionS, below which its disks are."""

    name: str
    state: str
    device_dir: Path

    @property
    def host(self) -> str:
        return self.device_dir.parent.name


class Iscsi:
    """iSCSI of this host. One for the process: its lock keeps our own record edits apart, which open-iscsi would only make wait."""

    def __init__(
        self,
        commands: Commands,
        *,
        sysfs: Path = Path("/sys"),
        config_dirs: tuple[Path, ...] = (Path("/etc/iscsi"), Path("/var/lib/iscsi")),
        lock_dir: Path = Path("/run/lock/iscsi"),
    ) -> None:
        self._commands = commands
        self._sysfs = sysfs
        self._config_dirs = config_dirs
        self._lock_dir = lock_dir
        self._records = asyncio.Lock()

    async def discover(self, portal: Portal) -> tuple[Node, ...]:
        """What the portal offers to this host's initiator; nothing is recorded."""
        argv = ["iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", str(portal), "-o", "nonpersistent"]
        result = await self._commands.run(argv, timeout_s=_DISCOVER_TIMEOUT_S)
        if result.exit_code == _NOTHING_FOUND:
            return ()
        if result.exit_code != 0:
            raise tool_fault(result)
        found = (_LISTED.fullmatch(line.strip()) for line in result.stdout.splitlines())
        return tuple(
            Node(m["iqn"], Portal(bare_host(m["address"]), int(m["port"])), int(m["tpgt"])) for m in found if m
        )

    async def find_target(self, iqn: str, portal: Portal) -> Node:
        """The target's node at the configured portal, else at the first that the target names (a portal may be given by name)."""
        nodes = [node for node in await self.discover(portal) if node.iqn == iqn]
        if not nodes:
            raise AgentFault.of(FaultCode.TARGET_NOT_FOUND, f"{portal} does not offer {iqn} to this host")
        return next((node for node in nodes if node.portal == portal), nodes[0])

    async def login(self, node: Node, chap: Credentials) -> None:
        """A session of the node exists, made with these secrets unless one was there. Raises AgentFault and leaves no record."""
        await self.write_record(node, chap)
        try:
            result = await self._commands.run(node.argv("--login"), timeout_s=_LOGIN_TIMEOUT_S)
            # Exit 15: somebody was faster, or a login that we gave up on has succeeded. Never a reason to tear it down.
            if result.exit_code not in (0, _SESSION_EXISTS):
                raise tool_fault(result, chap)
        except BaseException:
            with contextlib.suppress(AgentFault):
                await self.logout(node)
                await self.delete_record(node)
            raise

    async def logout(self, node: Node) -> None:
        """No session of the node exists."""
        result = await self._commands.run(node.argv("--logout"), timeout_s=_LOGOUT_TIMEOUT_S)
        self._accept_absent(result)

    async def write_record(self, node: Node, chap: Credentials) -> None:
        """The node's record exists and holds our settings and these secrets; a session that exists is not touched."""
        settings = {**_SETTINGS, **_auth_settings(chap)}
        async with self._records:
            result = await self._commands.run(node.argv("-o", "new"), timeout_s=_RECORD_TIMEOUT_S)
            if result.exit_code != 0:
                raise tool_fault(result)
            async with self._database_lock():
                path = self._record_path(node)
                text = path.read_text()
                _replace_file(path, self._draft_path(node), _edited(text, settings))

    async def delete_record(self, node: Node) -> None:
        """No record of the node is left, and so no secret."""
        async with self._records:
            self._draft_path(node).unlink(missing_ok=True)
            result = await self._commands.run(node.argv("-o", "delete"), timeout_s=_RECORD_TIMEOUT_S)
            self._accept_absent(result)

    async def make_iface(self, name: str) -> None:
        """An iface record for plain TCP: a session through it stands beside one through `default`."""
        async with self._records:
            for operation in (("-o", "new"), ("-o", "update", "-n", "iface.transport_name", "-v", "tcp")):
                result = await self._commands.run(
                    ["iscsiadm", "-m", "iface", "-I", name, *operation], timeout_s=_RECORD_TIMEOUT_S
                )
                if result.exit_code != 0:
                    raise tool_fault(result)

    async def delete_iface(self, name: str) -> None:
        async with self._records:
            result = await self._commands.run(
                ["iscsiadm", "-m", "iface", "-I", name, "-o", "delete"], timeout_s=_RECORD_TIMEOUT_S
            )
            self._accept_absent(result)

    def session(self, node: Node) -> Session | None:
        """The node's session by sysfs. Portals are compared as the record names them (persistent_*), not as NAT shows them."""
        for entry in sorted((self._sysfs / "class/iscsi_session").glob("session*")):
            words = _read_words(entry, "targetname", "ifacename", "state")
            if (words.get("targetname"), words.get("ifacename")) != (node.iqn, node.iface):
                continue
            number = entry.name.removeprefix("session")
            connection = _read_words(
                self._sysfs / f"class/iscsi_connection/connection{number}:0", "persistent_address", "persistent_port"
            )
            if (connection.get("persistent_address"), connection.get("persistent_port")) == (
                node.portal.host,
                str(node.portal.port),
            ):
                return Session(entry.name, words.get("state", ""), (entry / "device").resolve())
        return None

    def _accept_absent(self, result: CommandResult) -> None:
        if result.exit_code not in (0, _NOTHING_FOUND):
            raise tool_fault(result)

    def _record_path(self, node: Node) -> Path:
        below = Path("nodes", node.iqn, f"{node.portal.host},{node.portal.port},{node.tpgt}", node.iface)
        for folder in self._config_dirs:
            if (folder / below).is_file():
                return folder / below
        places = " or ".join(map(str, self._config_dirs))
        raise AgentFault.of(FaultCode.FAILED, f"iscsiadm made no record of {node.iqn} in {places}")

    def _draft_path(self, node: Node) -> Path:
        """Of a fixed name, so that what a kill leaves is removed with the record; not beside it, where iscsiadm would read it."""
        folder = next((folder for folder in self._config_dirs if (folder / "nodes").is_dir()), self._config_dirs[0])
        return folder / f".stowage-{node.iface}-{node.iqn}"

    @asynccontextmanager
    async def _database_lock(self) -> AsyncGenerator[None]:
        """Open-iscsi's lock is held. Raises AgentFault timed_out after 30 s, as iscsiadm gives up."""
        self._lock_dir.mkdir(mode=0o770, parents=True, exist_ok=True)
        lock, write_lock = self._lock_dir / "lock", self._lock_dir / "lock.write"
        lock.touch(mode=0o666)
        try:
            async with asyncio.timeout(_LOCK_TIMEOUT_S):
                while True:
                    try:
                        os.link(lock, write_lock)
                        break
                    except FileExistsError:
                        await asyncio.sleep(_LOCK_POLL_S)
        except TimeoutError as error:
            remedy = f"If no iscsiadm runs on this host, remove {write_lock}"
            raise AgentFault.of(
                FaultCode.TIMED_OUT, "the iSCSI record database of this host is locked", remedy, is_retryable=True
            ) from error
        try:
            yield
        finally:
            write_lock.unlink(missing_ok=True)


def trial_node(node: Node, iface: str) -> Node:
    """The same target through another iface."""
    return replace(node, iface=iface)


def _auth_settings(chap: Credentials) -> dict[str, str]:
    """The record's words for the secrets; empty ones are absent from the file. Raises AgentFault for what the file can't hold.

    idbm_recinfo_config takes a value from its first to its last character that is no blank, and a line of at most 2047.
    """
    fields = chap.reveal()
    for name, value in fields.items():
        if value != value.strip() or any(char in value for char in "\n\r\0") or len(value.encode()) > 255:
            raise AgentFault.of(FaultCode.AUTH_FAILED, f"the CHAP {name} cannot be kept by open-iscsi",
                                "Use CHAP names and secrets of at most 255 bytes that neither begin nor end with a blank")  # fmt: skip
    if bool(fields.get("mutual_username")) != bool(fields.get("mutual_password")):
        # Left out of the record, half a pair would be logged in with as if the target had nothing to prove.
        raise AgentFault.of(FaultCode.AUTH_FAILED, "mutual CHAP has a user name or a password, not both",
                            "Give mutual_username and mutual_password together")  # fmt: skip
    return {
        f"{_AUTH}authmethod": "CHAP" if fields.get("username") else "None",
        f"{_AUTH}username": fields.get("username", ""),
        f"{_AUTH}password": fields.get("password", ""),
        f"{_AUTH}username_in": fields.get("mutual_username", ""),
        f"{_AUTH}password_in": fields.get("mutual_password", ""),
    }


def _edited(text: str, settings: Mapping[str, str]) -> str:
    """The record with the settings in place of its own lines for them; before the end mark, if it has one."""
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in settings]
    added = [f"{name} = {value}" for name, value in settings.items() if value]
    end = next((number for number, line in enumerate(kept) if line.startswith("# END RECORD")), len(kept))
    return "\n".join((*kept[:end], *added, *kept[end:])) + "\n"


def _replace_file(path: Path, draft: Path, text: str) -> None:
    """As write_private, but with a draft of a known name."""
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def _read_words(folder: Path, *names: str) -> dict[str, str]:
    """Attributes of a sysfs folder; one that is gone or unreadable is absent, for sessions come and go."""
    words: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(OSError):
            words[name] = (folder / name).read_text().strip()
    return words
