"""smb: a share of an SMB server, mounted by mount.cifs(8).

The credentials go to mount.cifs in a file that exists only while it runs. Its format (mount.cifs(8), and parse_cred_line
of cifs-utils 7.0): one `word=value` a line, the value taken to the line's end as it is, so blanks and commas in a
password are safe. A user name or domain with a comma is not: mount.cifs pastes those unescaped into the kernel's options.
Mounted hard unless the operator chose otherwise, as nfs is: a soft mount, which is what mount.cifs makes by default, answers a
guest's write with an error that its file system does not survive. Locks of byte ranges stay on this host (nobrl): at the server they
are mandatory, so those that a hypervisor takes on its disk would keep every other process of the host from reading it.
"""

import platform
import re
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.configs import decode_config, decode_partial, held_config, refuse_verb
from agent.drivers.base import Commands, Deadline, ProbeReport, Workers, Workspace
from agent.errors import SYMPTOMS, AgentFault
from agent.file_volumes import FileVolumes
from agent.mounted_folders import MountedFolders, Place
from agent.mounts import ALWAYS, MountPlan, Mounts, SecretFile
from agent.probes import PROBE_TIMEOUT_S
from agent.reach import bare_host, is_ipv6, server_checks, tool_check
from agent.tool_faults import tool_fault
from schemas.agent_rpc import Check, Discovered, Inspection, ReleaseReport
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.kinds import SMB, SmbConfig

_PORT = 445
#: smbclient is slow to start (5 to 12 s on an emulated host; lab, 2026-11-23).
_DISCOVER_TIMEOUT_S = 25.0
_WRONG_ACCOUNT = "Check the user name, password and domain and give the right ones, or type the share's name"
#: The kernel that knows closetimeo=, and any newer one.
_KERNEL_WITH_CLOSETIMEO = (6, 1)
_VERSIONS = {"2.0": "2.0", "2.1": "2.1", "3": "3", "3.0": "3.0", "3.11": "3.1.1"}
#: What mountinfo shows after `vers=`; 3 leaves the dialect of the family to the two sides.
_SHOWN_VERSION = {"default": "", "2.0": r"2\.0", "2.1": r"2\.1", "3": r"3[0-9.]*", "3.0": r"3\.0", "3.11": r"3\.1\.1"}


class Smb:
    """The driver of smb."""

    def __init__(
        self,
        commands: Commands,
        workers: Workers,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
        mounts: Mounts | None = None,
    ) -> None:
        self._commands = commands
        self._folders = MountedFolders(commands, workers, probe_timeout_s, mounts)

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        """A mount that is there and has lost its server is kept until a login beside it has succeeded.

        The kernel tells "host is down" of a password that is refused on reconnection, and after a share was withdrawn it
        never finds the same share again; so a login of our own tells why, and whether a new mount would work.
        """
        path = _secret_path(target, space)
        secret = _secret_file(path, target, credentials)
        place = _place(_config(target), target, path)
        try:
            return await self._folders.attach(place, target, space, secret, establish=establish)
        except AgentFault as error:
            if error.fault.code not in SYMPTOMS or not self._folders.is_mounted(space):
                raise
        await self.trial(target, credentials, space)
        return await self._folders.renew(place, target, space, secret, establish=establish)

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        place = _place(_config(target), target, _secret_path(target, space))
        return await self._folders.probe(place, target, space)

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        place = _place(_held(target), target, _secret_path(target, space), is_held=True)
        return await self._folders.release(place, target, space, remove_marker=remove_marker)

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        """nosharesock: on a shared connection an old session could answer for a new password."""
        path = _trial_secret_path(target, space)
        secret = _secret_file(path, target, credentials)
        place = _place(_config(target), target, path)
        return await self._folders.trial(place, target, space, secret, "nosharesock")

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        place = _place(_held(target), target, _trial_secret_path(target, space), is_held=True)
        await self._folders.clean_trial(place, target, space)

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        place = _place(_held(target), target, _secret_path(target, space), is_held=True)
        return self._folders.is_attached(place, target, space)

    async def checks(self, target: Target) -> tuple[Check, ...]:
        config = _config(target)
        tool = await tool_check(self._commands, ["mount.cifs", "-V"])
        port = next(
            (int(option.removeprefix("port=")) for option in config.options.split(",") if option.startswith("port=")),
            _PORT,
        )
        return (tool, *await server_checks(config.server, port))

    async def discover(
        self, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> tuple[Discovered, ...]:
        """The shares that the server lists to the account, or to a guest.

        smbclient opens its standard input by name, which is a file in memory (agent/command.py), and begins at its start: so the
        password is on no disk (smbclient 4.17.12, a right and a wrong one tried at a server, 2026-11-29).
        """
        server = decode_partial(SMB, config, "server")
        name, address = _unc_host(server)
        secret = _authentication_file(credentials) if credentials else None
        argv = [
            "smbclient",
            "--grepable",
            "--authentication-file=/proc/self/fd/0" if secret else "--no-pass",
            *(["--ip-address", address] if address else []),
            "--list",
            f"//{name}",
        ]
        result = await self._commands.run(argv, timeout_s=deadline.room_s(_DISCOVER_TIMEOUT_S), stdin=secret)
        # "Disk|NAME|COMMENT"; after the list smbclient may fail at the old browse protocol, which does not matter.
        rows = [line.split("|", 2) for line in result.stdout.splitlines() if line.startswith("Disk|")]
        if result.exit_code != 0 and not rows:
            # What a server refuses smbclient says on its standard output, among what it lists.
            failure = tool_fault(replace(result, stderr=f"{result.stderr}{result.stdout}"), credentials)
            if secret and failure.fault.code is FaultCode.AUTH_FAILED:
                raise AgentFault.of(FaultCode.AUTH_FAILED, failure.fault.detail, _WRONG_ACCOUNT)
            raise failure
        return tuple(
            Discovered(title=row[1] if len(row) < 3 or not row[2] else f"{row[1]} ({row[2]})", config={"share": row[1]})
            for row in rows
        )

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        raise refuse_verb(SMB, "inspection")

    async def initialize(
        self,
        target: Target,
        credentials: Credentials,
        space: Workspace,
        *,
        wwid: str,
        force: bool,
        deadline: Deadline,
    ) -> ProbeReport:
        raise refuse_verb(SMB, "initialization")

    def volumes(self, target: Target, space: Workspace, *, is_to_fence: bool = False) -> FileVolumes:
        place = _place(_held(target), target, _secret_path(target, space), is_held=True)
        return self._folders.volumes(place, target, space, is_to_fence=is_to_fence)


def _config(target: Target) -> SmbConfig:
    return decode_config(SMB, SmbConfig, target)


def _held(target: Target) -> SmbConfig:
    return held_config(SmbConfig, target)


def _place(config: SmbConfig, target: Target, secret_path: Path, *, is_held: bool = False) -> Place:
    """is_held: it was mounted before, so what would keep it from being mounted must not keep it from being let go."""
    if "," in str(secret_path) and not is_held:
        raise AgentFault.of(FaultCode.FAILED, "the agent's state folder has a comma in its path, so mount.cifs cannot read files there",
                            "Move the agent's state folder")  # fmt: skip
    name, address = _unc_host(config.server, is_held=is_held)
    chosen = tuple(option for option in config.options.split(",") if option and option != "hard")
    hard = () if "soft" in chosen else ("hard",)
    locking = () if "nobrl" in chosen else ("nobrl",)
    # credential_version 0 is guest access by definition of the target.
    login = f"credentials={secret_path}" if target.credential_version > 0 else "guest"
    version = (
        () if config.smb_version == "default" else (f"vers={_VERSIONS.get(config.smb_version, config.smb_version)}",)
    )
    ip = (f"ip={address}",) if address else ()
    return Place(
        plan=MountPlan(
            helper_type="cifs",
            source=f"//{name}/{config.share}",
            options=(*ALWAYS, *hard, *locking, *_closing(chosen), login, *version, *ip, *chosen),
            shown_fstypes=frozenset(("cifs", "smb3")),
            shown_version=_SHOWN_VERSION.get(config.smb_version, ""),
        ),
        subdir=config.subdir,
    )


def _closing(chosen: tuple[str, ...]) -> tuple[str, ...]:
    """The option by which a file is closed when it is closed, and not a second later by the kernel, unless the operator chose.

    While such a late close waits for a server that is gone, an unmount ends in a kernel BUG ("Dentry still in use"), after
    which sync(2) hangs on the whole host (Linux 6.1.176; each time in the lab, 2026-11-28).
    """
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    is_known = numbers is not None and (int(numbers[1]), int(numbers[2])) >= _KERNEL_WITH_CLOSETIMEO
    is_chosen = any(option.startswith("closetimeo=") for option in chosen)
    return ("closetimeo=0",) if is_known and not is_chosen else ()


def _unc_host(server: str, *, is_held: bool = False) -> tuple[str, str]:
    """The server's name as it stands in a UNC path, and the address for `ip=` where the name can't be resolved.

    A colon can't stand in a UNC path, so an IPv6 address is spelled as Windows does: fd00--1.ipv6-literal.net, a zone after an `s`.
    """
    host = bare_host(server)
    if not is_ipv6(host):
        return host, ""
    address, _, zone = host.partition("%")
    if zone and not zone.isdigit():
        # The kernel takes the zone as a number only.
        try:
            zone = str(socket.if_nametoindex(zone))
        except OSError as error:
            if not is_held:
                raise AgentFault.of(
                    FaultCode.NAME_NOT_RESOLVED, f"this host has no network interface {zone}"
                ) from error
    literal = address.replace(":", "-") + (f"s{zone}" if zone else "")
    return f"{literal}.ipv6-literal.net", address + (f"%{zone}" if zone else "")


def _secret_path(target: Target, space: Workspace) -> Path:
    return space.run_dir / f"{target.backend_id}.smb"


def _trial_secret_path(target: Target, space: Workspace) -> Path:
    return space.run_dir / f"{target.backend_id}.trial.smb"


def _secret_file(path: Path, target: Target, credentials: Credentials) -> SecretFile | None:
    """None for guest access. Raises AgentFault: needs_credentials, or auth_failed for what mount.cifs can't be told."""
    if target.credential_version == 0:
        return None
    fields = credentials.reveal()
    if not fields.get("username") or "password" not in fields:
        raise AgentFault.of(FaultCode.NEEDS_CREDENTIALS, "this host holds no credentials for the share")
    for name, value in fields.items():
        if any(char in value for char in "\n\r\0") or (name != "password" and "," in value):
            raise AgentFault.of(FaultCode.AUTH_FAILED, f"the {name} has a character that mount.cifs cannot take",
                                "Use an account without commas and line breaks in its name, and a password without line breaks")  # fmt: skip
    lines = [f"username={fields['username']}", f"password={fields['password']}"]
    if fields.get("domain"):
        lines.append(f"domain={fields['domain']}")
    return SecretFile(path=path, credentials=credentials, content=("\n".join(lines) + "\n").encode())


def _authentication_file(credentials: Credentials) -> bytes:
    """What smbclient(1) reads by -A. Raises AgentFault: needs_credentials, or auth_failed for what it can't be told.

    Samba takes a value to the line's end, but for the blanks before it: a password that begins with one is refused by the server
    (smbclient 4.17.12, 2026-11-29).
    """
    fields = credentials.reveal()
    if not fields.get("username") or not fields.get("password"):
        raise AgentFault.of(FaultCode.NEEDS_CREDENTIALS, "to list shares by an account takes its user name and its password",
                            "Give both, or neither to look as a guest")  # fmt: skip
    for name, value in fields.items():
        if any(char in value for char in "\n\r\0") or value[:1] in (" ", "\t"):
            raise AgentFault.of(FaultCode.AUTH_FAILED, f"the {name} begins with a blank or has a line break, which smbclient cannot take",
                                "Type the share's name, or choose another password")  # fmt: skip
    words = [f"{name} = {fields[name]}" for name in ("username", "password", "domain") if fields.get(name)]
    return ("\n".join(words) + "\n").encode()
