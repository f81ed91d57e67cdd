"""Which package brings a tool, for the remedy of a tool that is missing."""

_NFS = "nfs-common (Debian, Ubuntu) or nfs-utils"
_SMB = "cifs-utils"
_ISCSI = "open-iscsi (Debian, Ubuntu) or iscsi-initiator-utils"
_LVM = "lvm2"
_PACKAGES = {
    "mount.nfs": _NFS,
    "showmount": _NFS,
    "mount.cifs": _SMB,
    "smbclient": "smbclient (Debian, Ubuntu) or samba-client",
    "iscsiadm": _ISCSI,
    **dict.fromkeys(
        ("pvs", "vgs", "lvs", "pvcreate", "vgcreate", "vgchange", "lvcreate", "lvchange", "lvremove"), _LVM
    ),
    "dmsetup": "dmsetup (Debian, Ubuntu) or device-mapper",
    "qemu-img": "qemu-utils (Debian, Ubuntu) or qemu-img",
    **dict.fromkeys(("mount", "umount", "wipefs"), "util-linux"),
}


def how_to_install(tool: str) -> str:
    """The remedy for a tool that cannot be started."""
    package = _PACKAGES.get(tool)
    return f"Install {package} on this host" if package else f"Install {tool} on this host"
