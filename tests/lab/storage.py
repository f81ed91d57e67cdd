"""The lab's storage server: what a test has it export, share and serve, and how it fails."""

import itertools
from dataclasses import dataclass

from tests.lab.guest_client import Courier
from tests.lab.qemu import Machine

ADDRESS = "10.77.0.1"
ADDRESS_6 = "fd77::1"
_CLIENTS = ("10.77.0.0/24", "fd77::/64")
#: no_root_squash: the agent writes as root.
_RIGHTS = "rw,sync,no_subtree_check,no_root_squash,insecure"


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
            self.courier.run("exportfs -o", rights, f"{clients}:{path}" if ":" not in clients else f"[{clients.split('/')[0]}]/64:{path}")  # fmt: skip
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
                self.courier.run("exportfs -u", f"{clients}:{path}" if ":" not in clients else f"[{clients.split('/')[0]}]/64:{path}")  # fmt: skip
                self._exports.discard((clients, path))

    def stop_nfs(self) -> None:
        """The server's threads are gone; a hard mount waits from now on."""
        self._nfs_is_stopped = True
        self.courier.run("/lab/serve nfs-stop")

    def start_nfs(self) -> None:
        self._nfs_is_stopped = False
        self.courier.run("/lab/serve nfs-start")

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

    # The end

    def recover(self) -> None:
        """Every server serves."""
        if self._nfs_is_stopped:
            self.start_nfs()

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
