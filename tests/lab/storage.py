"""The lab's storage server: what a test has it export, share and serve, and how it fails."""

import itertools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from tests.lab.guest_client import Courier
from tests.lab.qemu import Machine

ADDRESS = "10.77.0.1"
ADDRESS_6 = "fd77::1"
#: As exportfs takes them; an IPv6 network in brackets, for a colon parts it from the path.
_CLIENTS = ("10.77.0.0/24", "[fd77::]/64")
#: no_root_squash: the agent writes as root.
_RIGHTS = "rw,sync,no_subtree_check,no_root_squash,insecure"
_TARGETS = "/sys/kernel/config/target/iscsi"


@dataclass(frozen=True)
class Chap:
    """A target's secrets; empty: it asks for none. The names hold no blank."""

    username: str = ""
    password: str = ""
    mutual_username: str = ""
    mutual_password: str = ""

    @property
    def credentials(self) -> dict[str, str]:
        """As the API takes them."""
        return {name: value for name, value in vars(self).items() if value}


class Storage:
    """Everything made through it goes by `clear`, which a fixture calls after each test."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._numbers = itertools.count(1)
        self._exports: set[tuple[str, str]] = set()
        self._folders: set[str] = set()
        self._shares: set[str] = set()
        self._targets: set[str] = set()
        self._luns: set[str] = set()
        self._loops: list[str] = []
        self._nfs_is_stopped = False
        self._mountd_is_stopped = False
        self._smb_is_stopped = False
        self._has_smb_options = False
        self._off_versions: frozenset[str] = frozenset()

    @property
    def courier(self) -> Courier:
        return self.machine.courier

    def unique(self, word: str) -> str:
        """A name that no other test of this lab has had."""
        return f"{word}{next(self._numbers)}"

    # NFS

    def export(self, *, rights: str = _RIGHTS, mib: int = 0, path: str = "") -> str:
        """The path of a new export to the lab's network; with mib a file system of its own of that size."""
        path = path or f"/srv/nfs/{self.unique('e')}"
        self.folder(path, mib=mib)
        for clients in _CLIENTS:
            self.courier.run("exportfs -o", rights, f"{clients}:{path}")
            self._exports.add((clients, path))
        return path

    def folder(self, path: str, *, mib: int = 0) -> str:
        """A folder of the server, everyone's; with mib a file system of its own of that size."""
        self.courier.run("mkdir -p", path)
        self._folders.add(path)
        if mib:
            image = f"/srv/{path.strip('/').replace('/', '-')}.img"
            self.courier.run(
                f"truncate -s {mib}M {image} && mkfs.ext4 -q -m 0 -F {image} && mount -o loop {image} {path}"
            )
            self._loops.append(path)
        self.courier.run("chmod 777", path)
        return path

    def withdraw(self, path: str) -> None:
        """The export is gone; its folder is not."""
        for clients in _CLIENTS:
            if (clients, path) in self._exports:
                self.courier.run("exportfs -u", f"{clients}:{path}")
                self._exports.discard((clients, path))

    def stop_nfs(self) -> None:
        """The server's threads are gone; a hard mount waits from now on."""
        self._nfs_is_stopped = True
        self.courier.run("/lab/serve nfs-stop")

    def set_nfs_version(self, version: str, *, is_on: bool) -> None:
        """The server speaks the version, or does not, from a restart on."""
        self.stop_nfs()
        self._off_versions = self._off_versions - {version} if is_on else self._off_versions | {version}
        self.start_nfs()

    def stop_mountd(self) -> None:
        """Version 3 and the list of exports are gone; version 4 goes on for exports that are known."""
        self._mountd_is_stopped = True
        self.courier.run("pkill rpc.mountd; rpcinfo -d 100005 1; rpcinfo -d 100005 2; rpcinfo -d 100005 3; true")

    def start_nfs(self) -> None:
        self._nfs_is_stopped = False
        self.courier.run("/lab/serve nfs-start", *(word for version in self._off_versions for word in ("-N", version)))

    # SMB

    def share(self, *options: str, users: str = "labuser", folder: str = "", name: str = "") -> str:
        """The name of a new share for these users; users "": guests alone."""
        name = name or self.unique("share")
        folder = self.folder(folder or f"/srv/smb/{name}")
        who = (f"valid users = {users}",) if users else ("guest ok = yes", "guest only = yes")
        self.courier.run("/lab/serve share", name, folder, "read only = no", "force user = root", *who, *options)
        self._shares.add(name)
        return name

    def unshare(self, name: str) -> None:
        self.courier.run("/lab/serve unshare", name)
        self._shares.discard(name)

    def set_password(self, user: str, password: str) -> None:
        self.courier.run("/lab/serve user", user, stdin=password + "\n")

    def set_smb(self, *options: str) -> None:
        """Options of the whole server, for what connects from now on; none: as at the start."""
        self._has_smb_options = bool(options)
        # Among the shares, and first: a section of smb.conf may be given in parts.
        text = "".join(f"{line}\n" for line in ("[global]", *options)) if options else ""
        self.courier.put("/etc/samba/shares/0-global", text)
        self.courier.run(
            "cat /etc/samba/smb.base /etc/samba/shares/* >/etc/samba/smb.conf; smbcontrol smbd reload-config"
        )

    @contextmanager
    def user_names(self, names: Mapping[str, str]) -> Generator[None]:
        """What users may call themselves at login; names: such a name -> which user it is."""
        self.courier.put("/etc/samba/users.map", "".join(f'{user} = "{name}"\n' for name, user in names.items()))
        try:
            yield
        finally:
            self.courier.put("/etc/samba/users.map", "")

    def end_sessions(self, user: str) -> None:
        """Its connections are broken, as by a restart of the server; a client has to log in anew."""
        pids = self.courier.run("smbstatus --processes").out.splitlines()
        for pid in (line.split()[0] for line in pids if line.split()[1:2] == [user]):
            self.courier.run("kill -KILL", pid)

    def stop_smb(self) -> None:
        """kill -9 of the server and of all that it had forked."""
        self._smb_is_stopped = True
        self.courier.run("killall -q -KILL smbd; while pidof smbd >/dev/null; do sleep 0.05; done")

    def start_smb(self) -> None:
        self._smb_is_stopped = False
        self.courier.run("smbd -D")

    # iSCSI

    def target(self, chap: Chap = Chap()) -> str:
        """The IQN of a new target at the portals 10.77.0.1:3260 and [fd77::1]:3260."""
        iqn = f"iqn.2026-11.lab:{self.unique('t')}"
        words = [value or "-" for value in vars(chap).values()]
        self._targets.add(iqn)
        self.courier.run("/lab/serve target", iqn, stdin=" ".join(words) + "\n")
        return iqn

    def set_chap(self, iqn: str, chap: Chap) -> None:
        """The target asks for other secrets from now on."""
        self.courier.run("/lab/serve target", iqn, stdin=" ".join(value or "-" for value in vars(chap).values()) + "\n")

    def lun(self, iqn: str, number: int = 0, *, mib: int = 256) -> str:
        """The file on the server behind a new, blank LUN."""
        name = self.unique("l")
        self._luns.add(name)
        self.courier.run("/lab/serve lun", iqn, number, name, mib)
        return f"/srv/luns/{name}.img"

    def unmap(self, iqn: str, number: int) -> None:
        self.courier.run("/lab/serve unmap", iqn, number)

    def map(self, iqn: str, number: int, image: str) -> None:
        """The LUN of that file under this number; of the target that has it already, or of another."""
        self.courier.run("/lab/serve map", iqn, number, PurePosixPath(image).stem)

    def set_write_protected(self, iqn: str) -> None:
        """Whoever logs in from now on may only read its LUNs."""
        self.courier.run(f"echo 1 >{_TARGETS}/{iqn}/tpgt_1/attrib/demo_mode_write_protect")

    def stop_target(self, iqn: str) -> None:
        """Its sessions are ended and it takes no login."""
        self.courier.run(f"echo 0 >{_TARGETS}/{iqn}/tpgt_1/enable")

    def start_target(self, iqn: str) -> None:
        self.courier.run(f"echo 1 >{_TARGETS}/{iqn}/tpgt_1/enable")

    @contextmanager
    def device_of(self, image: str) -> Generator[str]:
        """The LUN's file as a device of the server itself, for what others write on it."""
        device = self.courier.run("losetup -P -f --show", image).out.strip()
        try:
            yield device
        finally:
            # Its own udev activates what it finds.
            self.courier.run(f"udevadm settle; vgchange -q -an --devices {device} || true; losetup -d {device}")

    def volume_group(self, image: str, name: str, *, options: str = "", volumes: Sequence[str] = ()) -> str:
        """The UUID of a new VG on the LUN, as an operator makes one; `volumes`: LVs of 8 MiB in it."""
        with self.device_of(image) as device:
            scope = f"--devices {device}"
            self.courier.run(f"vgcreate -q {scope} {options} {name} {device}")
            for volume in volumes:
                self.courier.run(f"lvcreate -q -an -Zn -Wn {scope} -L 8m -n {volume} {name}")
            return self.courier.run(f"vgs {scope} --noheadings -o vg_uuid {name}").out.strip()

    def lvm(self, image: str, command: str, *words: str) -> str:
        """What an LVM command on the LUN's file says."""
        with self.device_of(image) as device:
            tool, _, options = command.partition(" ")
            return self.courier.run(f"{tool} --devices {device} {options}", *words).out.strip()

    # The end

    def recover(self) -> None:
        """Every server serves."""
        if self._nfs_is_stopped:
            self.start_nfs()
        for version in tuple(self._off_versions):
            self.set_nfs_version(version, is_on=True)
        if self._mountd_is_stopped:
            self.courier.run("pidof rpc.mountd || rpc.mountd")
            self._mountd_is_stopped = False
        if self._smb_is_stopped:
            self.start_smb()
        if self._has_smb_options:
            self.set_smb()

    def clear(self) -> None:
        """Nothing of what was made is left. After the hosts have let go of it."""
        for path in {path for _, path in self._exports}:
            self.withdraw(path)
        for name in list(self._shares):
            self.unshare(name)
        for iqn in self._targets:
            self.courier.run("/lab/serve untarget", iqn)
        for name in self._luns:
            self.courier.run("/lab/serve unlun", name)
        if self._loops:
            self.courier.run("exportfs -f")
        for path in reversed(self._loops):
            self.courier.run("umount -l", path)
        for path in sorted(self._folders, reverse=True):
            self.courier.run("rm -rf --one-file-system", path, f"/srv/{path.strip('/').replace('/', '-')}.img")
        for made in (self._folders, self._shares, self._targets, self._luns, self._loops):
            made.clear()
