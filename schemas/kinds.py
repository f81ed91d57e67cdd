"""The kinds of backends: each a struct of its config and, where it has them, of its credentials.

From a field's annotation come its validation, its words, its place in the web form, its CLI option
and its line in the API document. `Meta(extra=…)` carries what JSON Schema has no word for:
`error` (what is wrong, in words, where a pattern or bound is not met), `change` (`fixed`: never,
`remount`: at the next mount, `live`: at once), `advanced`, `secret`, `placeholder`, `goes_with` (the
field without which this one means nothing).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.backends import Capability
from schemas.volume_rpc import VolumeFormat

# One word, no blank, comma, control character or leading dash: it becomes a part of a mount source.
# What is all digits and dots must be an address: no name ends in a number (RFC 1123, 2.1).
_IPV4 = r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_HOST = rf"(?:{_IPV4}|(?![0-9.]+(?::|$))[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)"
_IPV6 = r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?"
_PORT = r"(?:6553[0-5]|655[0-2]\d|65[0-4]\d{2}|6[0-4]\d{3}|[1-5]\d{4}|[1-9]\d{0,3})"
_SERVER = rf"^(?:{_HOST}|\[?{_IPV6}\]?)$"
_SERVER_ERROR = "must be a host name, an IPv4 address or an IPv6 address"
# Absolute, no empty, `.` or `..` segment, no comma, blank-free of control characters (checked apart).
_PATH = r"^(?:/(?!\.{1,2}(?:/|$))[^/,\\]+)+/?$"
# Each slash belongs to exactly one segment: where a pattern can split a text in two ways, one POST can freeze the manager.
_SUBDIR = r"^(?:(?!\.{1,2}(?:/|$))[^/,\\]+(?:/(?!\.{1,2}(?:/|$))[^/,\\]+)*/?)?$"

_CLONE = Capability.CLONE_FROM_IMAGE
_SNAPSHOT = Capability.SNAPSHOT
_EXTERNAL = Capability.EXTERNAL


def field_hints(
    change: str,
    *,
    error: str = "",
    placeholder: str = "",
    is_advanced: bool = False,
    is_secret: bool = False,
    goes_with: str = "",
) -> dict[str, Any]:
    return {
        "error": error,
        "change": change,
        "placeholder": placeholder,
        "advanced": is_advanced,
        "secret": is_secret,
        "goes_with": goes_with,
    }


Server = Annotated[
    str,
    Meta(
        title="Server",
        description="Host name or address of the server",
        pattern=_SERVER,
        min_length=1,
        max_length=255,
        extra=field_hints("remount", error=_SERVER_ERROR, placeholder="10.0.0.5"),
    ),
]
Subdir = Annotated[
    str,
    Meta(
        title="Sub-folder",
        description="Use only this folder below it",
        pattern=_SUBDIR,
        max_length=1024,
        extra=field_hints("fixed", error="must be a relative path without `..` and without commas", is_advanced=True),
    ),
]
Options = Annotated[
    str,
    Meta(
        title="Mount options",
        description="More options, separated by commas; only those of the kind's allow-list",
        max_length=1024,
        extra=field_hints("remount", placeholder="noatime", is_advanced=True),
    ),
]


class LocalFileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    root_dir: Annotated[
        str,
        Meta(
            title="Folder",
            description="Absolute path on each host; made when missing, its parent must exist",
            pattern=_PATH,
            min_length=2,
            max_length=1024,
            extra=field_hints(
                "fixed",
                error="must be an absolute path below / without `..` and without commas",
                placeholder="/var/lib/vms",
            ),
        ),
    ]
    require_mountpoint: Annotated[
        bool,
        Meta(
            title="Must be a mount point",
            description="Refuse the folder while nothing is mounted there",
            extra=field_hints("live", is_advanced=True),
        ),
    ] = False


class NfsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    server: Server
    export: Annotated[
        str,
        Meta(
            title="Export",
            description="Path that the server exports",
            pattern=r"^(?:/|(?:/(?!\.{1,2}(?:/|$))[^/,\\]+)+/?)$",
            min_length=1,
            max_length=1024,
            extra=field_hints(
                "fixed", error="must begin with / and have no `..` and no commas", placeholder="/tank/vms"
            ),
        ),
    ]
    nfs_version: Annotated[
        Literal["default", "3", "4", "4.0", "4.1", "4.2"],
        Meta(
            title="NFS version",
            description="default lets client and server agree; 4 leaves the minor version to them",
            extra=field_hints("remount", is_advanced=True),
        ),
    ] = "default"
    subdir: Subdir = ""
    options: Options = ""


class SmbConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    server: Server
    share: Annotated[
        str,
        Meta(
            title="Share",
            description="Name of the share, without slashes",
            pattern=r"^(?!-|\.{1,2}$)[^/\\,:*?\"<>|;\[\]]+$",
            min_length=1,
            max_length=80,
            extra=field_hints(
                "fixed",
                error="must be a share's name without slashes, commas or any of : * ? \" < > | ; [ ]",
                placeholder="vms",
            ),
        ),
    ]
    subdir: Subdir = ""
    smb_version: Annotated[
        Literal["default", "2.0", "2.1", "3", "3.0", "3.11"],
        Meta(
            title="SMB version",
            description="default lets client and server agree",
            extra=field_hints("remount", is_advanced=True),
        ),
    ] = "default"
    options: Options = ""


class SmbCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None of them: guest."""

    username: Annotated[
        str,
        Meta(
            title="User name",
            description="Account on the server; none for guest access",
            min_length=1,
            max_length=256,
            # mount.cifs pastes it into the kernel's options, where a comma begins the next one.
            pattern=r"^[^,]*$",
            extra=field_hints("remount", error="must have 1 to 256 characters and no comma"),
        ),
    ]
    password: Annotated[
        str,
        Meta(
            title="Password",
            description="Its password; kept on the hosts alone",
            min_length=1,
            max_length=512,
            extra=field_hints("remount", error="must have 1 to 512 characters", is_secret=True),
        ),
    ]
    domain: Annotated[
        str,
        Meta(
            title="Domain",
            description="Windows domain or workgroup of the account, where the server asks for it",
            max_length=256,
            pattern=r"^[^,]*$",
            extra=field_hints("remount", error="must have at most 256 characters and no comma", is_advanced=True),
        ),
    ] = ""


class IscsiLvmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    portal: Annotated[
        str,
        Meta(
            title="Portal",
            description="Address of the target's portal; port 3260 unless given",
            min_length=1,
            max_length=270,
            pattern=rf"^(?:{_HOST}|\[{_IPV6}\])(?::{_PORT})?$",
            extra=field_hints(
                "remount", error="must be ADDRESS or ADDRESS:PORT, an IPv6 address in [ ]", placeholder="10.0.0.9:3260"
            ),
        ),
    ]
    target_iqn: Annotated[
        str,
        Meta(
            title="Target",
            description="The target's qualified name",
            min_length=1,
            max_length=223,
            pattern=r"^(?:iqn\.\d{4}-(?:0[1-9]|1[0-2])\.[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[A-Za-z0-9._:-]+)?|eui\.[0-9A-Fa-f]{16}|naa\.[0-9A-Fa-f]{16}(?:[0-9A-Fa-f]{16})?)$",
            extra=field_hints(
                "fixed",
                error="must be an iSCSI name such as iqn.2026-01.org.example:vms",
                placeholder="iqn.2026-01.org.example:vms",
            ),
        ),
    ]
    vg_name: Annotated[
        str,
        Meta(
            title="Volume group",
            description="LVM volume group on the LUN",
            min_length=1,
            max_length=127,
            pattern=r"^(?!\.{1,2}$)[A-Za-z0-9_.+][A-Za-z0-9_.+-]*$",
            extra=field_hints(
                "fixed", error="must have only letters, digits and _ . + - and not begin with -", placeholder="vg_vms"
            ),
        ),
    ]
    lun: Annotated[
        int,
        Meta(
            title="LUN",
            description="Number of the logical unit",
            ge=0,
            le=16383,
            extra=field_hints("fixed", error="must be a whole number from 0 to 16383", is_advanced=True),
        ),
    ] = 0
    thin: Annotated[
        bool,
        Meta(
            title="Thin pool",
            description="Carve thin volumes from a pool, which one host at a time can use",
            extra=field_hints("fixed", is_advanced=True),
        ),
    ] = False
    wipe_on_delete: Annotated[
        Literal["none", "discard", "zero"],
        Meta(
            title="Wipe on delete",
            description="What is done to a deleted volume's blocks; new volumes are zeroed whatever it is",
            extra=field_hints("live", is_advanced=True),
        ),
    ] = "none"


class IscsiLvmCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CHAP; none of them: the target asks for nothing. The mutual pair lets the target prove itself to us."""

    username: Annotated[
        str,
        Meta(
            title="CHAP user name",
            description="Name by which this fleet logs in to the target; none where it asks for none",
            min_length=1,
            max_length=255,
            extra=field_hints("remount", error="must have 1 to 255 characters"),
        ),
    ]
    password: Annotated[
        str,
        Meta(
            title="CHAP password",
            description="Its secret; kept on the hosts alone",
            min_length=1,
            max_length=255,
            extra=field_hints("remount", error="must have 1 to 255 characters", is_secret=True),
        ),
    ]
    mutual_username: Annotated[
        str,
        Meta(
            title="Mutual CHAP user name",
            description="Name by which the target proves itself to us",
            max_length=255,
            extra=field_hints(
                "remount", error="must have at most 255 characters", is_advanced=True, goes_with="mutual_password"
            ),
        ),
    ] = ""
    mutual_password: Annotated[
        str,
        Meta(
            title="Mutual CHAP password",
            description="The target's secret; kept on the hosts alone",
            max_length=255,
            extra=field_hints(
                "remount",
                error="must have at most 255 characters",
                is_advanced=True,
                is_secret=True,
                goes_with="mutual_username",
            ),
        ),
    ] = ""


#: Of a volume group whose volumes have whole sizes everywhere; bytes.
EXTENT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class KindSpec:
    """A kind: its name on the wire, its structs, and what is possible at best (a probe says what is true).

    is_shared: all hosts see the same storage, so one host's marker must be seen by the others.
    can_initialize: an empty device can be made ready on command.
    marks_alone_at: our marks are metadata that two hosts must not write at the same moment, whichever backends they do it for;
        the fields that tell one such place from another. None of them: marks may be made at once.
    formats: in which a volume can lie there. grain_bytes: volumes there are whole multiples of it; what is asked is rounded up. wipe_field: the config's field with what is done to a deleted volume's blocks.
    one_host_when: the config's field that, when true, lets one host at a time use any volume.
    marks_growth: what a resize has added is known on the storage as that, and needs no leave to shrink to be taken back.
    discover_by: the field without which nothing can be looked for; None: there is nothing to discover.
    mount_options: names that `options` may hold; a name that ends in `=` wants a value, in `=#` a whole number.
    """

    kind: str
    title: str
    config: type[msgspec.Struct]
    credentials: type[msgspec.Struct] | None
    capabilities: tuple[Capability, ...]
    is_shared: bool
    can_initialize: bool = False
    marks_alone_at: tuple[str, ...] = ()
    mount_options: frozenset[str] = frozenset()
    discover_by: str | None = None
    formats: tuple[VolumeFormat, ...] = (VolumeFormat.RAW, VolumeFormat.QCOW2)
    grain_bytes: int = 512
    wipe_field: str | None = None
    one_host_when: str | None = None
    marks_growth: bool = False


def _options(words: str) -> frozenset[str]:
    return frozenset(words.split())


LOCAL_FILE = KindSpec("local_file", "Local file", LocalFileConfig, None, (_CLONE, _SNAPSHOT), is_shared=False)
NFS = KindSpec(
    "nfs",
    "NFS",
    NfsConfig,
    None,
    (_EXTERNAL, _CLONE, _SNAPSHOT),
    is_shared=True,
    discover_by="server",
    mount_options=_options(
        "hard soft softerr noatime nodiratime relatime timeo=# retrans=# rsize=# wsize=# nconnect=# "
        "max_connect=# proto= port=# mountport=# mountproto= nolock lock local_lock= ac noac actimeo=# "
        "acregmin=# acregmax=# acdirmin=# acdirmax=# lookupcache= nosharecache sharecache resvport "
        "noresvport sec= async sync fsc nofsc trunkdiscovery notrunkdiscovery clientaddr= xprtsec= "
        "nocto cto rdirplus nordirplus write="
    ),
)
SMB = KindSpec(
    "smb",
    "SMB / CIFS",
    SmbConfig,
    SmbCredentials,
    (_EXTERNAL, _CLONE, _SNAPSHOT),
    is_shared=True,
    discover_by="server",
    mount_options=_options(
        "noatime nodiratime relatime seal sign sec= port=# cache= actimeo=# acregmax=# acdirmax=# rsize=# "
        "wsize=# nobrl hard soft echo_interval=# handletimeout=# max_credits=# multichannel max_channels=# "
        "nosharesock noserverino serverino mfsymlinks uid= gid= file_mode= dir_mode= iocharset= "
        "resilienthandles persistenthandles nopersistenthandles retrans=# closetimeo=#"
    ),
)
ISCSI_LVM = KindSpec(
    "iscsi_lvm",
    "iSCSI + LVM",
    IscsiLvmConfig,
    IscsiLvmCredentials,
    (_EXTERNAL, _CLONE, _SNAPSHOT),
    is_shared=True,
    can_initialize=True,
    marks_alone_at=("target_iqn", "lun"),
    discover_by="portal",
    formats=(VolumeFormat.RAW,),
    # The extent of a VG that Stowage makes. A VM must not see more than the row tells, nor a copy leave out what it wrote there.
    grain_bytes=EXTENT_BYTES,
    wipe_field="wipe_on_delete",
    one_host_when="thin",
    marks_growth=True,
)

KINDS: dict[str, KindSpec] = {spec.kind: spec for spec in (LOCAL_FILE, NFS, SMB, ISCSI_LVM)}
