"""A disk of a host: a file behind a loop device behind a device-mapper table, so that it can be made to fail."""

from types import TracebackType

from tests.lab.host import Host

#: File system -> its mkfs, quiet and forced, with reflinks where it has them.
MAKES = {"ext4": "mkfs.ext4 -q -F -m 0", "xfs": "mkfs.xfs -q -f -m reflink=1", "btrfs": "mkfs.btrfs -q -f"}


class Disk:
    """Mounted at `where` for as long as the block lasts, unless a test unmounts it."""

    def __init__(self, host: Host, name: str, mkfs: str, *, mib: int = 64) -> None:
        self.where = f"/var/tmp/{name}"
        self._host = host
        self._name = f"lab-{name}"
        self._image = f"/var/tmp/{name}.img"
        self._mkfs = mkfs
        self._mib = mib

    @property
    def device(self) -> str:
        return f"/dev/mapper/{self._name}"

    def __enter__(self) -> "Disk":
        self._run(f"truncate -s {self._mib}M {self._image} && mkdir -p {self.where}")
        self.build()
        self._run(f"{self._mkfs} {self.device}")
        self.mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(
            f"while umount -l {self.where} 2>/dev/null; do :; done; dmsetup remove --retry --force {self._name};"
            f" losetup -j {self._image} | cut -d: -f1 | xargs -r losetup -d;"
            f" rm -f {self._image}; rmdir {self.where}"
        )

    def build(self) -> None:
        """The device is there, also after a power cut."""
        loop = self._run(f"losetup --find --show {self._image}").strip()
        self._run(f"dmsetup create {self._name} --table '0 {self._sectors} linear {loop} 0'")

    def mount(self, where: str = "") -> None:
        self._run(f"mount {self.device} {where or self.where}")

    def unmount(self) -> None:
        self._run(f"umount {self.where}")

    def mount_again(self) -> None:
        """As an operator does after an error: what the file system holds back for the dead disk is given up."""
        self._run(f"umount -l {self.where}; sync; mount {self.device} {self.where}")

    def fail(self) -> None:
        """Every request ends with an error from now on."""
        self._load(f"0 {self._sectors} error")

    def work(self) -> None:
        loop = self._run(f"losetup -j {self._image} | cut -d: -f1").strip()
        self._load(f"0 {self._sectors} linear {loop} 0")

    @property
    def _sectors(self) -> int:
        return self._mib * 2048

    def _load(self, table: str) -> None:
        # noflush: what the file system has not written meets the new table, as it would a disk that broke.
        self._run(
            f"dmsetup suspend --noflush --nolockfs {self._name} && dmsetup load {self._name} --table '{table}'"
            f" && dmsetup resume {self._name}"
        )

    def _run(self, command: str) -> str:
        return self._host.courier.run(command).out
