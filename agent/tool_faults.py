"""What a tool's failure means: the one table from (tool, exit code, stderr) to a fault and its remedy.

Sources: exit codes of iscsiadm(8) and open-iscsi's iscsi_err.h; messages in the binaries of Debian 12 (nfs-utils
2.6.2, cifs-utils 7.0, lvm2 2.03.16, open-iscsi 2.1.8, smbclient 4.17); what the lab showed (2026-11-23). The number in
mount.cifs' "mount error(N)" is an errno. Every row is met by a recording in tests/agent/recorded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.drivers.base import CommandResult
from agent.errors import AgentFault
from agent.packages import how_to_install
from schemas.credentials import Credentials
from schemas.faults import FaultCode

#: Characters of a tool's own words in a fault's detail.
MAX_DETAIL_CHARS = 300
#: With these the same command may succeed later, untouched.
_RETRYABLE = frozenset(
    (
        FaultCode.SERVER_UNREACHABLE,
        FaultCode.NAME_NOT_RESOLVED,
        FaultCode.IN_USE,
        FaultCode.TIMED_OUT,
        FaultCode.STALE_HANDLE,
        FaultCode.CONVERGING,
    )
)


@dataclass(frozen=True)
class Row:
    """exit_code None: any but 0. The pattern is searched in stderr, letter case ignored; the line it is in is shown."""

    tool: str
    exit_code: int | None
    pattern: str
    code: FaultCode
    remedy: str | None = None


_NFS_PACKAGE, _SMB_PACKAGE = how_to_install("mount.nfs"), how_to_install("mount.cifs")

TABLE: tuple[Row, ...] = (
    # mount -t nfs
    Row("mount.nfs", None, r"mount\.<type> helper program", FaultCode.TOOL_MISSING, _NFS_PACKAGE),
    Row("mount.nfs", None, r"unknown filesystem type|No such device", FaultCode.KIND_UNSUPPORTED,
        "This host's kernel has no NFS client: load the module nfs, or install the full kernel"),
    Row("mount.nfs", None, r"rpc\.statd is not running", FaultCode.TOOL_MISSING,
        "Start rpc-statd on this host (package nfs-common), or choose NFS version 4"),
    Row("mount.nfs", None, r"Failed to resolve server", FaultCode.NAME_NOT_RESOLVED),
    # All that it says where no name server answers: it shows EAI_AGAIN as the errno EAGAIN.
    Row("mount.nfs", None, r"Resource temporarily unavailable", FaultCode.NAME_NOT_RESOLVED),
    Row("mount.nfs", None, r"access denied by server", FaultCode.EXPORT_NOT_FOUND),
    Row("mount.nfs", None, r"reason given by server: No such file or directory", FaultCode.EXPORT_NOT_FOUND),
    Row("mount.nfs", None, r"reason given by server: Not a directory", FaultCode.NOT_A_DIRECTORY),
    Row("mount.nfs", None, r"reason given by server: (Permission denied|Operation not permitted)", FaultCode.PERMISSION_DENIED),
    Row("mount.nfs", None, r"requested NFS version or transport protocol is not supported|Protocol not supported|NFS version \d+ is not supported",
        FaultCode.VERSION_REJECTED, "See that the NFS server runs, and choose a version that it offers"),
    Row("mount.nfs", None, r"incorrect mount option|Unsupported nfs4? mount option|Bad nfs mount parameter|invalid value for|Invalid argument",
        FaultCode.OPTION_REJECTED),
    Row("mount.nfs", None, r"Failed to find '\S+' protocol", FaultCode.OPTION_REJECTED),
    Row("mount.nfs", None, r"Stale file handle", FaultCode.STALE_HANDLE),
    Row("mount.nfs", None, r"is busy or already mounted", FaultCode.IN_USE),
    Row("mount.nfs", None, r"timed out|No route to host|is unreachable|Connection (refused|reset)|Host is down|mount to NFS server .* failed",
        FaultCode.SERVER_UNREACHABLE),
    # EIO in its words: a soft mount, as a trial is, that waited in vain.
    Row("mount.nfs", None, r"mount system call failed$", FaultCode.SERVER_UNREACHABLE),
    Row("mount.nfs", None, r"Input/output error", FaultCode.IO_ERROR),
    Row("mount.nfs", None, r"Permission denied|Operation not permitted", FaultCode.PERMISSION_DENIED),
    # mount -t cifs
    Row("mount.cifs", None, r"mount\.<type> helper program", FaultCode.TOOL_MISSING, _SMB_PACKAGE),
    Row("mount.cifs", None, r"unknown filesystem type|filesystem not supported by the system|mount error\((19|79)\)", FaultCode.KIND_UNSUPPORTED,
        "This host's kernel has no SMB client or lacks its crypto modules: load the module cifs, or install the full kernel"),
    Row("mount.cifs", None, r"could not resolve address", FaultCode.NAME_NOT_RESOLVED),
    Row("mount.cifs", None, r"mount error\(13\)", FaultCode.AUTH_FAILED,
        "Check the user name, password and domain and give the right ones, or let this user use the share on the server"),
    Row("mount.cifs", None, r"mount error\((126|127|128|129)\)", FaultCode.AUTH_FAILED,
        "The account's key or password is expired or revoked: renew it on the server, then give the new one"),
    Row("mount.cifs", None, r"mount error\((2|6)\)", FaultCode.SHARE_NOT_FOUND),
    Row("mount.cifs", None, r"mount error\((101|103|104|107|110|111|112|113|115)\)|could not connect to|abruptly closed the connection",
        FaultCode.SERVER_UNREACHABLE),
    Row("mount.cifs", None, r"mount error\((93|95)\)", FaultCode.VERSION_REJECTED),
    Row("mount.cifs", None, r"mount error\(22\)|Options string too long|bad option|requires a numerical argument", FaultCode.OPTION_REJECTED),
    Row("mount.cifs", None, r"mount error\(16\)", FaultCode.IN_USE),
    Row("mount.cifs", None, r"mount error\(1\)", FaultCode.PERMISSION_DENIED),
    Row("mount.cifs", None, r"mount error\(30\)", FaultCode.READ_ONLY),
    Row("mount.cifs", None, r"mount error\(5\)", FaultCode.IO_ERROR),
    # umount
    Row("umount", None, r"target is busy|device is busy", FaultCode.IN_USE),
    # iscsiadm: the exit code says it all (iscsiadm(8), EXIT STATUS)
    Row("iscsiadm", 24, r"", FaultCode.AUTH_FAILED, "Check the CHAP user name and password on the target, and give the right ones"),
    Row("iscsiadm", 19, r"", FaultCode.TARGET_NOT_FOUND),
    Row("iscsiadm", 21, r"", FaultCode.TARGET_NOT_FOUND),
    Row("iscsiadm", 23, r"", FaultCode.NAME_NOT_RESOLVED),
    Row("iscsiadm", None, r"cannot resolve host name|Name or service not known|Temporary failure in name resolution", FaultCode.NAME_NOT_RESOLVED),
    Row("iscsiadm", 4, r"", FaultCode.SERVER_UNREACHABLE),
    Row("iscsiadm", 5, r"", FaultCode.SERVER_UNREACHABLE),
    Row("iscsiadm", 8, r"", FaultCode.SERVER_UNREACHABLE),
    Row("iscsiadm", 11, r"", FaultCode.SERVER_UNREACHABLE),
    # Of a logout: iscsid, just started anew or with its target away, is about to log in again.
    Row("iscsiadm", 32, r"", FaultCode.SERVER_UNREACHABLE),
    Row("iscsiadm", 33, r"", FaultCode.TIMED_OUT),
    Row("iscsiadm", 12, r"", FaultCode.KIND_UNSUPPORTED, "Load the kernel module iscsi_tcp on this host"),
    Row("iscsiadm", 18, r"", FaultCode.TOOL_MISSING, "Restart iscsid on this host (package open-iscsi)"),
    Row("iscsiadm", 20, r"", FaultCode.TOOL_MISSING, "Start iscsid on this host (package open-iscsi)"),
    Row("iscsiadm", None, r"can not connect to iSCSI daemon", FaultCode.TOOL_MISSING, "Start iscsid on this host (package open-iscsi)"),
    Row("iscsiadm", 13, r"", FaultCode.PERMISSION_DENIED, "Run the agent as root"),
    Row("iscsiadm", 28, r"", FaultCode.IN_USE),
    # LVM and the block tools
    Row("lvm", None, r"/dev/mapper/control.*(No such file|failed)|Is device-mapper driver missing", FaultCode.KIND_UNSUPPORTED,
        "This host's kernel has no device mapper: load the module dm_mod"),
    Row("lvm", None, r"thin_check.*(failed|not found)|thin-pool.*not found|Required device-mapper target.*not detected", FaultCode.TOOL_MISSING,
        "Install thin-provisioning-tools and load the module dm_thin_pool on this host"),
    Row("lvm", None, r"unrecognized option|Unrecognised field", FaultCode.KIND_UNSUPPORTED, "Install lvm2 2.03.12 or newer on this host"),
    Row("lvm", None, r"lock start in progress", FaultCode.CONVERGING, "Wait: the volume group's lockspace is starting, which takes up to half a minute"),
    Row("lvm", None, r"lvmlockd (process )?is not running", FaultCode.TOOL_MISSING,
        "Start sanlock and lvmlockd on this host (packages sanlock, lvm2-lockd): the volume group is a shared one"),
    Row("lvm", None, r"invalid parameters for sanlock|did not find one running", FaultCode.TOOL_MISSING,
        "Start sanlock and then lvmlockd on this host, and give it a host_id of its own in lvmlocal.conf"),
    Row("lvm", None, r"lock (failed|skipped): held by other host", FaultCode.IN_USE, "Try again: another host is changing the volume group"),
    Row("lvm", None, r"lock (failed|skipped): storage \w+ for sanlock leases", FaultCode.IO_ERROR),
    # Alone, which is how it is said where the lockspace was never started; a reason before it is met above.
    Row("lvm", None, r"due to failed lock", FaultCode.CONVERGING, "Wait: the volume group's lockspace is started with the next attempt"),
    Row("lvm", None, r"LVs must first be deactivated", FaultCode.IN_USE),
    Row("lvm", None, r"Cannot access VG", FaultCode.FOREIGN_DATA,
        "The volume group belongs to one host or to a lock manager: run vgchange --systemid '' there, or choose another LUN"),
    Row("lvm", None, r"Device or resource busy", FaultCode.IN_USE),
    Row("lvm", None, r"used by another device", FaultCode.IN_USE),
    Row("lvm", None, r"in use|still (open|active)|Can't open .* exclusively|contains a filesystem in use|open LV count|Mounted filesystem", FaultCode.IN_USE),
    Row("lvm", None, r"existing signatures? left on the device|device has a signature", FaultCode.FOREIGN_DATA),
    Row("lvm", None, r"insufficient free (space|extents)|volume too large|free space in (thin )?pool .* threshold", FaultCode.NO_SPACE),
    Row("lvm", None, r"failed to find logical volume|(logical volume|origin LV) \S+ not found in volume group", FaultCode.VOLUME_MISSING),
    Row("lvm", None, r"Input/output error|error reading|read failed|write failed", FaultCode.IO_ERROR),
    Row("lvm", None, r"locked by other host|VG lock failed", FaultCode.IN_USE),
    Row("lvm", None, r"Permission denied|Read-only file system|write protected|open rw .* errno 30", FaultCode.READ_ONLY, "Map the LUN writable for this host"),
    Row("lvm", None, r"Device not found|No device found|No such device", FaultCode.LUN_NOT_FOUND),
    Row("wipefs", None, r"Device or resource busy", FaultCode.IN_USE),
    Row("wipefs", None, r"Input/output error", FaultCode.IO_ERROR),
    Row("wipefs", None, r"No such file or directory", FaultCode.LUN_NOT_FOUND),
    # discovery
    Row("showmount", None, r"Name or service not known|unknown host|Temporary failure in name resolution", FaultCode.NAME_NOT_RESOLVED),
    Row("showmount", None, r"Program not registered", FaultCode.KIND_UNSUPPORTED,
        "The server offers NFS version 4 only and cannot list its exports; type the export's path"),
    Row("showmount", None, r"Timed out|Port mapper failure|Unable to receive|No route to host|Connection refused|is unreachable",
        FaultCode.SERVER_UNREACHABLE),
    Row("smbclient", None, r"NT_STATUS_(LOGON_FAILURE|ACCESS_DENIED|ACCOUNT_DISABLED)", FaultCode.AUTH_FAILED,
        "The server lists its shares to known users only; give a user name and password, or type the share's name"),
    Row("smbclient", None, r"NT_STATUS_(NOT_FOUND|BAD_NETWORK_NAME|INVALID_PARAMETER)", FaultCode.NAME_NOT_RESOLVED),
    Row("smbclient", None, r"NT_STATUS_(CONNECTION_\w+|HOST_UNREACHABLE|NETWORK_UNREACHABLE|IO_TIMEOUT|UNSUCCESSFUL)", FaultCode.SERVER_UNREACHABLE),
)  # fmt: skip

_LVM_TOOLS = frozenset(
    (
        "pvs",
        "vgs",
        "lvs",
        "pvcreate",
        "vgcreate",
        "vgchange",
        "lvcreate",
        "lvchange",
        "lvextend",
        "lvreduce",
        "lvremove",
        "dmsetup",
    )
)


def tool_of(argv: Sequence[str]) -> str:
    """The table's word for a command line: `mount -t nfs …` is mount.nfs, every LVM command is lvm."""
    name = argv[0].rsplit("/", 1)[-1]
    if name == "mount" and "-t" in argv:
        return f"mount.{argv[argv.index('-t') + 1]}"
    return "lvm" if name in _LVM_TOOLS else name


def tool_fault(result: CommandResult, credentials: Credentials | None = None) -> AgentFault:
    """The fault of a tool that failed. An unknown failure is FAILED with the tool's first line.

    credentials: what the tool was given; no tool of ours prints them, but a text that held one would lose it here.
    """
    tool = tool_of(result.argv)
    for row in TABLE:
        if row.tool != tool or row.exit_code not in (None, result.exit_code):
            continue
        found = re.search(row.pattern, result.stderr, re.IGNORECASE)
        if found:
            line = _line_at(result.stderr, found.start()) if row.pattern else _line_of(result.stderr, result.exit_code)
            detail = _shown(line, tool, result.exit_code, credentials)
            return AgentFault.of(row.code, detail, row.remedy, is_retryable=row.code in _RETRYABLE)
    return AgentFault.of(FaultCode.FAILED, _shown(_lines(result.stderr)[0], tool, result.exit_code, credentials))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()] or [""]


def _line_at(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[start : end if end >= 0 else len(text)].strip()


def _line_of(text: str, exit_code: int) -> str:
    """The line that names the error of this exit code, as iscsiadm's login does before its last one; else the last."""
    lines = _lines(text)
    return next((line for line in lines if f"({exit_code} - " in line), lines[-1])


def _shown(line: str, tool: str, exit_code: int, credentials: Credentials | None) -> str:
    for secret in credentials.reveal().values() if credentials is not None else ():
        # Shorter ones would blacken ordinary words, and the schema's minimum is one character.
        if len(secret) >= 4:
            line = line.replace(secret, "…")
    printable = "".join(char if char.isprintable() else " " for char in line)
    if not printable:
        return f"{tool} ended with code {exit_code} and said nothing"
    # Tools begin their lines with their own name, more or less: "mount.nfs4: …", "iscsiadm: …".
    if not printable.startswith(tool.split(".", maxsplit=1)[0]):
        printable = f"{tool}: {printable}"
    return printable[:MAX_DETAIL_CHARS]
