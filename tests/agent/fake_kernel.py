"""What the kernel shows of mounts and of iSCSI, as files that the effects of recorded tools change."""

import shutil
import subprocess
from pathlib import Path

from schemas.agent_rpc import Check

NFS4 = "nfs4 10.0.0.5:/tank/vms rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.0.1.12,addr=10.0.0.5"
FLAGS = "rw,nosuid,nodev,noexec,relatime"


class FakeKernel:
    """A mountinfo file that tools' effects change."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "mountinfo"
        self.lines: list[str] = ["22 27 0:21 / /proc rw,relatime - proc proc rw"]
        self._write()

    def mount(self, where: Path, words: str = NFS4, flags: str = FLAGS, device: str = "") -> None:
        """device: that of another mount, where both are of one file system."""
        escaped = str(where).replace(" ", "\\040")
        number = 100 + len(self.lines)
        self.lines.append(f"{number} 27 {device or f'0:{number}'} / {escaped} {flags} shared:5 - {words}")
        self._write()

    def unmount(self, where: Path) -> None:
        escaped = str(where).replace(" ", "\\040")
        last = max(number for number, line in enumerate(self.lines) if f" {escaped} " in line)
        del self.lines[last]
        self._write()

    def _write(self) -> None:
        self.file.write_text("\n".join(self.lines) + "\n")


class FakeServer:
    """An export that many places can mount: a tmpfs, bound there for real and shown by the fake kernel as network storage."""

    def __init__(self, folder: Path, kernel: FakeKernel) -> None:
        self.folder = folder
        self.kernel = kernel
        self._mounted: list[Path] = []
        folder.mkdir()
        _run("mount", "-t", "tmpfs", "tmpfs", str(folder))

    def mount(self, where: Path, words: str, flags: str = FLAGS) -> None:
        _run("mount", "--bind", str(self.folder), str(where))
        self._mounted.append(where)
        self.kernel.mount(where, words, flags)

    def unmount(self, where: Path) -> None:
        _run("umount", "-l", str(where))
        self._mounted.remove(where)
        self.kernel.unmount(where)

    def close(self) -> None:
        for where in [*self._mounted, self.folder]:
            _run("umount", "-l", str(where))


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=10)


class FakeIscsi:
    """/sys and /etc/iscsi of a host whose iscsiadm is a recording: its effects make and end sessions, disks and records."""

    def __init__(self, folder: Path) -> None:
        self.sysfs = folder / "sys"
        self.config_dir = folder / "etc/iscsi"
        self.lock_dir = folder / "lock/iscsi"
        self.udev_rules = folder / "run/udev/rules.d"  # not there: a host without udev
        for name in ("class/iscsi_session", "class/block", "class/scsi_host/host3"):
            (self.sysfs / name).mkdir(parents=True)
        (self.sysfs / "class/scsi_host/host3/scan").touch()
        (self.config_dir / "nodes").mkdir(parents=True)
        self.unreached: tuple[Check, ...] = ()

    async def reach(self, host: str, port: int) -> tuple[Check, ...]:
        """What Iscsi asks before a discovery: passed unless `unreached` says otherwise."""
        return self.unreached

    def record(self, iqn: str, host: str, port: int, tpgt: int, iface: str = "stowage") -> Path:
        return self.config_dir / "nodes" / iqn / f"{host},{port},{tpgt}" / iface

    def make_record(self, iqn: str, host: str, port: int, tpgt: int, iface: str = "stowage") -> None:
        """As `-o new` leaves it (a part of what open-iscsi 2.1.8 writes)."""
        path = self.record(iqn, host, port, tpgt, iface)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "# BEGIN RECORD 2.1.8\n"
            f"node.name = {iqn}\nnode.tpgt = {tpgt}\nnode.startup = automatic\niface.iscsi_ifacename = {iface}\n"
            "node.session.auth.authmethod = None\nnode.session.scan = auto\nnode.conn[0].timeo.login_timeout = 15\n# END RECORD\n"
        )

    def login(
        self, iqn: str, host: str, port: int, iface: str = "stowage", number: int = 1, state: str = "LOGGED_IN"
    ) -> None:
        device_dir = self.sysfs / f"devices/platform/host3/session{number}"
        device_dir.mkdir(parents=True)
        entry = self.sysfs / f"class/iscsi_session/session{number}"
        entry.mkdir()
        (entry / "device").symlink_to(device_dir)
        for name, text in (("targetname", iqn), ("ifacename", iface), ("state", state)):
            (entry / name).write_text(text + "\n")
        connection = self.sysfs / f"class/iscsi_connection/connection{number}:0"
        connection.mkdir(parents=True)
        (connection / "persistent_address").write_text(host + "\n")
        (connection / "persistent_port").write_text(f"{port}\n")

    def set_state(self, state: str, number: int = 1) -> None:
        (self.sysfs / f"class/iscsi_session/session{number}/state").write_text(state + "\n")

    def add_disk(
        self, lun: int = 0, name: str = "sdb", wwid: str = "naa.6001405", number: int = 1, sectors: int = 2097152
    ) -> Path:
        """Returns the disk's block folder."""
        scsi_dir = self.sysfs / f"devices/platform/host3/session{number}/target3:0:0/3:0:0:{lun}"
        block_dir = scsi_dir / "block" / name
        (block_dir / "holders").mkdir(parents=True)
        (block_dir / "device").symlink_to(scsi_dir)
        (self.sysfs / "class/block" / name).symlink_to(block_dir)
        (scsi_dir / "wwid").write_text(wwid + "\n")
        (scsi_dir / "delete").touch()
        (block_dir / "size").write_text(f"{sectors}\n")
        (block_dir / "ro").write_text("0\n")
        return block_dir

    def add_partition(self, block_dir: Path, number: int = 1) -> Path:
        part = block_dir / f"{block_dir.name}{number}"
        (part / "holders").mkdir(parents=True)
        (part / "partition").write_text(f"{number}\n")
        (self.sysfs / "class/block" / part.name).symlink_to(part)
        return part

    def add_holder(self, block_dir: Path, dm_name: str, number: int = 0, uuid: str = "LVM-x") -> Path:
        """A dm device upon the disk, or upon one more disk if it is there already."""
        folder = self.sysfs / f"devices/virtual/block/dm-{number}"
        if not folder.exists():
            for name in ("dm", "holders", "slaves"):
                (folder / name).mkdir(parents=True)
            (folder / "dm/name").write_text(dm_name + "\n")
            (folder / "dm/uuid").write_text(uuid + "\n")
            (self.sysfs / "class/block" / folder.name).symlink_to(folder)
        (block_dir / "holders" / folder.name).symlink_to(folder)
        (folder / "slaves" / block_dir.name).symlink_to(block_dir)
        return folder

    def drop_holders(self, block_dir: Path) -> None:
        for link in (block_dir / "holders").iterdir():
            (self.sysfs / "class/block" / link.name).unlink()
            shutil.rmtree(link.resolve())
            link.unlink()

    def drop_mapping(self, number: int = 0) -> None:
        """Whatever it lies on."""
        for link in self.sysfs.glob(f"**/holders/dm-{number}"):
            link.unlink()
        (self.sysfs / f"class/block/dm-{number}").unlink()
        shutil.rmtree(self.sysfs / f"devices/virtual/block/dm-{number}")

    def drop_disk(self, block_dir: Path) -> None:
        """As its `delete` does; what was mapped upon it stays."""
        (self.sysfs / "class/block" / block_dir.name).unlink()
        shutil.rmtree(block_dir.parents[1])

    def logout(self, number: int = 1) -> None:
        for folder in (
            f"class/iscsi_session/session{number}",
            f"class/iscsi_connection/connection{number}:0",
            f"devices/platform/host3/session{number}",
        ):
            shutil.rmtree(self.sysfs / folder)
        for link in (self.sysfs / "class/block").iterdir():
            if not link.exists():
                link.unlink()
