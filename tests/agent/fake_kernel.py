"""What the kernel shows of mounts and of iSCSI, as files that the effects of recorded tools change."""

import subprocess
from pathlib import Path

NFS4 = "nfs4 10.0.0.5:/tank/vms rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.0.1.12,addr=10.0.0.5"
FLAGS = "rw,nosuid,nodev,noexec,relatime"


class FakeKernel:
    """A mountinfo file that tools' effects change."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "mountinfo"
        self.lines: list[str] = ["22 27 0:21 / /proc rw,relatime - proc proc rw"]
        self._write()

    def mount(self, where: Path, words: str = NFS4, flags: str = FLAGS) -> None:
        escaped = str(where).replace(" ", "\\040")
        self.lines.append(f"{100 + len(self.lines)} 27 0:50 / {escaped} {flags} shared:5 - {words}")
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
