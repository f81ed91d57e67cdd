"""What can be wrong with a backend on a host: one code, one sentence for the operator, one remedy."""

import enum

import msgspec


class FaultCode(enum.StrEnum):
    AUTH_FAILED = "auth_failed"
    SERVER_UNREACHABLE = "server_unreachable"
    NAME_NOT_RESOLVED = "name_not_resolved"
    EXPORT_NOT_FOUND = "export_not_found"
    SHARE_NOT_FOUND = "share_not_found"
    TARGET_NOT_FOUND = "target_not_found"
    LUN_NOT_FOUND = "lun_not_found"
    PATH_NOT_FOUND = "path_not_found"
    NOT_A_DIRECTORY = "not_a_directory"
    NOT_A_MOUNTPOINT = "not_a_mountpoint"
    PERMISSION_DENIED = "permission_denied"
    READ_ONLY = "read_only"
    NO_SPACE = "no_space"
    IO_ERROR = "io_error"
    STALE_HANDLE = "stale_handle"
    TOOL_MISSING = "tool_missing"
    OPTION_REJECTED = "option_rejected"
    VERSION_REJECTED = "version_rejected"
    MARKER_MISMATCH = "marker_mismatch"
    MARKER_MISSING = "marker_missing"
    NEEDS_INITIALIZATION = "needs_initialization"
    NEEDS_CREDENTIALS = "needs_credentials"
    FOREIGN_DATA = "foreign_data"
    WRONG_DEVICE = "wrong_device"
    IN_USE = "in_use"
    SLOW = "slow"
    NEARLY_FULL = "nearly_full"
    TIMED_OUT = "timed_out"
    HUNG = "hung"
    HOST_OFFLINE = "host_offline"
    KIND_UNSUPPORTED = "kind_unsupported"
    SOURCE_UNREADABLE = "source_unreadable"
    WRONG_DIGEST = "wrong_digest"
    WRONG_SIZE = "wrong_size"
    BACKING_FILE = "backing_file"
    VOLUME_MISSING = "volume_missing"
    FENCED_OFF = "fenced_off"
    UNSUPPORTED = "unsupported"
    CONVERGING = "converging"
    FAILED = "failed"


REMEDIES: dict[FaultCode, str] = {
    FaultCode.AUTH_FAILED: "Check the user name, password and domain, and give the right ones; a backend that exists takes them by an edit",
    FaultCode.SERVER_UNREACHABLE: "Check that the server is up and that this host may reach its address and port",
    FaultCode.NAME_NOT_RESOLVED: "Correct the server's name, or let this host resolve it (DNS, /etc/hosts)",
    FaultCode.EXPORT_NOT_FOUND: "Export this path to this host's address on the NFS server, with the security flavour that is asked for, or correct the path",
    FaultCode.SHARE_NOT_FOUND: "Create the share on the server, or correct its name",
    FaultCode.TARGET_NOT_FOUND: "Correct the target IQN, or allow this host's initiator name on the target",
    FaultCode.LUN_NOT_FOUND: "Map the LUN to this host's initiator on the target, or correct the LUN number",
    FaultCode.PATH_NOT_FOUND: "Create the folder on this host or on the share, or correct the path",
    FaultCode.NOT_A_DIRECTORY: "Choose a path that is a folder",
    FaultCode.NOT_A_MOUNTPOINT: "Mount the file system at this path first, or switch require_mountpoint off",
    FaultCode.PERMISSION_DENIED: "Let root of this host write there (for NFS: no_root_squash; for SMB: the user's write right)",
    FaultCode.READ_ONLY: "Make the file system or export writable for this host (the root of an NFSv4 server is no export: name one below it)",
    FaultCode.NO_SPACE: "Free or add space on the storage",
    FaultCode.IO_ERROR: "Check the storage and this host's kernel log for the failing device or server",
    FaultCode.STALE_HANDLE: "The server's file system changed beneath the mount; it is remounted when nothing uses it",
    FaultCode.TOOL_MISSING: "Install the package that the detail names on this host",
    FaultCode.OPTION_REJECTED: "Correct or remove the mount option; this host's kernel log (dmesg) names it where the detail does not",
    FaultCode.VERSION_REJECTED: "Choose a protocol version that the server offers",
    FaultCode.MARKER_MISMATCH: "The place belongs to another backend; remove that backend first, or choose another place",
    FaultCode.MARKER_MISSING: "The backend's marker file is gone: check that the server, path and mount are the right ones",
    FaultCode.NEEDS_INITIALIZATION: "Inspect the backend, then initialize it",
    FaultCode.NEEDS_CREDENTIALS: "No online host holds the credentials; edit the backend and supply them",
    FaultCode.FOREIGN_DATA: "The device holds data that is not ours; choose another LUN, or initialize with force",
    FaultCode.WRONG_DEVICE: "The device seen is not the one that was confirmed; inspect it again",
    FaultCode.IN_USE: "Stop what uses the backend on this host, then try again",
    FaultCode.SLOW: "The probe took more than half its limit; check the network and the server's load",
    FaultCode.NEARLY_FULL: "Free or add space on the storage",
    FaultCode.TIMED_OUT: "The storage did not answer in time; check the server and the network between it and this host",
    FaultCode.HUNG: "A call waits in this host's kernel for the storage: check the server and the way to it; it goes on by itself when the server is back",
    FaultCode.HOST_OFFLINE: "Start the agent on this host and check its way to the bus",
    FaultCode.KIND_UNSUPPORTED: "Upgrade the agent on this host, or choose hosts that support the kind",
    FaultCode.SOURCE_UNREADABLE: "Give a path or an address that this host can read, with its right format",
    FaultCode.WRONG_DIGEST: "Compare the sha256 with what the image's publisher says, and fetch the image anew",
    FaultCode.WRONG_SIZE: "Ask for at least the size of the source; look at the storage if a volume has lost its size",
    FaultCode.BACKING_FILE: "Flatten the image first (qemu-img convert): one that refers to other files is refused",
    FaultCode.VOLUME_MISSING: "Look at the backend's drift report; restore the volume on the storage, or delete it here",
    FaultCode.FENCED_OFF: "Another host holds the volume now; detach it there first",
    FaultCode.UNSUPPORTED: "Choose another format or another backend; the detail says what this storage cannot do",
    FaultCode.CONVERGING: "Wait: the host is taking over the newest configuration",
    FaultCode.FAILED: "See the agent's log on this host under the same request id",
}


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A fault as it crosses the wire; `host` is filled in by the manager, never by the agent."""

    code: FaultCode
    detail: str
    remedy: str = ""
    host: str | None = None


def fault(code: FaultCode, detail: str, remedy: str | None = None) -> Fault:
    """The fault with the code's standing remedy unless a more precise one is given."""
    return Fault(code=code, detail=detail, remedy=remedy or REMEDIES[code])
