"""iSCSI by iscsiadm(8), with the CHAP secrets written into the node record and never into argv.

Why the record's file (node_records.py): `iscsiadm -o update -v SECRET` shows the secret to every process of the host. What is
logged in is read from sysfs, never from a tool. Every record and session is of an iface of our own: the operator's, of
`default`, are never read, written or ended. Each command needs the iface's own record (2.1.8 ends with 3 without).
"""

import asyncio
import contextlib
import errno
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.drivers.base import CommandResult, Commands, Deadline
from agent.errors import AgentFault
from agent.node_records import NodeRecords
from agent.portals import Node, Portal, choose_node
from agent.reach import bare_host, normalized, server_checks
from agent.tool_faults import tool_fault
from agent.udev_rule import UdevRule
from schemas.agent_rpc import Check
from schemas.credentials import Credentials
from schemas.faults import FaultCode

_DISCOVER_TIMEOUT_S = 20.0
#: Above login_timeout below, so that iscsid's own answer comes first.
_LOGIN_TIMEOUT_S = 30.0
_LOGOUT_TIMEOUT_S = 40.0
_RECORD_TIMEOUT_S = 35.0
#: Exit codes of iscsiadm(8).
_SESSION_EXISTS = 15
_FATAL_LOGIN = 19
_NOTHING_FOUND = 21
_AUTH_FAILED = 24
_AUTH = "node.session.auth."
_OPEN_LIST = (
    "Let the portal list its targets without CHAP (that of the targets stays), or write discovery.sendtargets.auth into"
    " iscsid.conf on this host"
)
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
        reach: Callable[[str, int], Awaitable[tuple[Check, ...]]] = server_checks,
        sysfs: Path = Path("/sys"),
        config_dirs: tuple[Path, ...] = (Path("/etc/iscsi"), Path("/var/lib/iscsi")),
        lock_dir: Path = Path("/run/lock/iscsi"),
        udev_rules: Path = Path("/run/udev/rules.d"),
    ) -> None:
        self._commands = commands
        self._reach = reach
        self._sysfs = sysfs
        self._files = NodeRecords(config_dirs, lock_dir)
        self._records = asyncio.Lock()
        self._rule = UdevRule(commands, udev_rules)

    async def discover(self, portal: Portal, deadline: Deadline | None = None) -> tuple[Node, ...]:
        """What the portal offers to this host's initiator; nothing is recorded.

        Without CHAP of ours: open-iscsi takes that of a discovery from iscsid.conf or from its record of the portal, which are
        the operator's. Raises AgentFault, auth_failed for a portal that asks for it.
        """
        # iscsiadm tries six times to connect: 18 s at a dead address, 5 s where nothing listens (lab, 2026-11-28).
        for check in await self._reach(portal.host, portal.port):
            if not check.is_ok and check.code is not None:
                raise AgentFault.of(check.code, check.detail or "", check.remedy, is_retryable=True)
        argv = ["iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", str(portal), "-o", "nonpersistent"]
        limit_s = _DISCOVER_TIMEOUT_S if deadline is None else deadline.room_s(_DISCOVER_TIMEOUT_S)
        result = await self._run(argv, limit_s)
        if result.exit_code == _NOTHING_FOUND:
            return ()
        if result.exit_code == _AUTH_FAILED:
            raise AgentFault.of(FaultCode.AUTH_FAILED, f"portal {portal} wants CHAP before it lists its targets, which takes other credentials",
                                _OPEN_LIST)  # fmt: skip
        if result.exit_code != 0:
            raise tool_fault(result)
        found = (_LISTED.fullmatch(line.strip()) for line in result.stdout.splitlines())
        return tuple(
            Node(m["iqn"], Portal(bare_host(m["address"]), int(m["port"])), int(m["tpgt"])) for m in found if m
        )

    async def find_target(self, iqn: str, portal: Portal) -> Node:
        """The target's node at the configured portal. Raises AgentFault target_not_found, name_not_resolved."""
        return await choose_node(iqn, portal, await self.discover(portal))

    async def login(self, node: Node, chap: Credentials) -> None:
        """A session of the node exists, made with these secrets unless one was there. Raises AgentFault and leaves no record."""
        await self._rule.ensure()
        await self.write_record(node, chap)
        try:
            result = await self._run_for(node, "--login", timeout_s=_LOGIN_TIMEOUT_S)
            # Exit 15: a login that we gave up on has succeeded. Never a reason to tear it down.
            if result.exit_code == _FATAL_LOGIN and chap.reveal().get("mutual_username"):
                # Ours to refuse the target's proof, which iscsiadm tells from no other refusal (2.1.8 in the lab, 2026-11-28).
                raise AgentFault.of(FaultCode.AUTH_FAILED, f"{node.iqn} did not prove itself by mutual CHAP, or does not let this host in",
                                    "Check the mutual CHAP user name and secret on the target, and give the right ones")  # fmt: skip
            if result.exit_code not in (0, _SESSION_EXISTS):
                raise tool_fault(result, chap)
        except BaseException:
            with contextlib.suppress(AgentFault):
                await self.logout(node)
                await self.delete_record(node)
            raise

    async def logout(self, node: Node) -> None:
        """No session of the node exists."""
        self._accept_absent(await self._run_for(node, "--logout", timeout_s=_LOGOUT_TIMEOUT_S))

    async def write_record(self, node: Node, chap: Credentials) -> None:
        """The node's record exists and holds our settings and these secrets; a session that exists is not touched."""
        settings = {**_SETTINGS, **_auth_settings(chap)}
        async with self._records:
            result = await self._run_for(node, "-o", "new", timeout_s=_RECORD_TIMEOUT_S)
            if result.exit_code != 0:
                raise tool_fault(result)
            await self._files.edit(node, settings)

    async def delete_record(self, node: Node) -> None:
        """No record of the node is left, and so no secret."""
        async with self._records:
            self._accept_absent(await self._run_for(node, "-o", "delete", timeout_s=_RECORD_TIMEOUT_S))
            # What iscsiadm does not see: the draft of an edit that was killed.
            await self._files.remove(node)

    def session(self, node: Node) -> Session | None:
        """The node's session by sysfs. Portals are compared as the record names them (persistent_*), not as NAT shows them.

        Raises AgentFault io_error when sysfs does not tell.
        """
        for entry in sorted((self._sysfs / "class/iscsi_session").glob("session*")):
            words = _read_words(entry, "targetname", "ifacename", "state")
            if (words.get("targetname"), words.get("ifacename")) != (node.iqn, node.iface):
                continue
            number = entry.name.removeprefix("session")
            connection = _read_words(
                self._sysfs / f"class/iscsi_connection/connection{number}:0", "persistent_address", "persistent_port"
            )
            address, port = connection.get("persistent_address", ""), connection.get("persistent_port")
            if (normalized(address), port) == (normalized(node.portal.host), str(node.portal.port)):
                return Session(entry.name, words.get("state", ""), (entry / "device").resolve())
        return None

    async def _run_for(self, node: Node, *operation: str, timeout_s: float) -> CommandResult:
        async with self._files.iface(node.iface):
            return await self._run(node.argv(*operation), timeout_s)

    async def _run(self, argv: Sequence[str], timeout_s: float) -> CommandResult:
        # Each iscsiadm takes the database's lock, and would wait 30 s for one that a killed agent left.
        await self._files.remove_stale_lock()
        return await self._commands.run(argv, timeout_s=timeout_s)

    def _accept_absent(self, result: CommandResult) -> None:
        if result.exit_code not in (0, _NOTHING_FOUND):
            raise tool_fault(result)


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


def _read_words(folder: Path, *names: str) -> dict[str, str]:
    """Attributes of a sysfs folder; one that is gone is absent, for sessions come and go. Raises AgentFault io_error otherwise."""
    words: dict[str, str] = {}
    for name in names:
        try:
            words[name] = (folder / name).read_text().strip()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # ENODEV and ENOTCONN: it is just going, or between two connections.
            if folder.exists() and error.errno not in (errno.ENODEV, errno.ENOTCONN):
                raise AgentFault.of(
                    FaultCode.IO_ERROR,
                    f"this host does not tell {folder.name}/{name} ({error.strerror})",
                    is_retryable=True,
                ) from error
    return words
