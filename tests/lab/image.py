"""The guests' disk image, kernel and initramfs, built from Debian's packages and kept by a digest of what they are built from.

Needs root and the tools of `TOOLS`. A finished folder is renamed into place, so an interrupted build leaves nothing
that looks like an image.
"""

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
GUEST = HERE / "guest"
ROOT = HERE.parents[1]
#: Commands that building and running needs, and the Debian packages that bring them.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "busybox": "busybox-static",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "depmod": "kmod",
    "ssh-keygen": "openssh-client",
}
_SUITE = "bookworm"
_SIZE = "2200M"
_EXECUTABLE = ("init", "boot", "identity", "host-up", "storage-up", "run-agent", "serve")
_LIBRARY = ("nats-py", "msgspec", "pynacl", "cffi", "pycparser", "uuid-utils", "typing-extensions")


class LabError(Exception):
    """The lab cannot be built or started; the message says what to do."""


def lab_dir() -> Path:
    """Where images and snapshots are kept: about 1 GB."""
    return Path(os.environ.get("STOWAGE_LAB_DIR", "/var/cache/stowage-lab"))


def log_dir() -> Path:
    """Where a test run writes the commands that agents ran."""
    return Path(os.environ.get("STOWAGE_LAB_LOG", lab_dir() / "log"))


def require_tools() -> None:
    """Raises LabError: not root, or a tool is missing."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root, for it makes file systems with files of root: run it with sudo")
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise LabError(f"some tools are missing: apt-get install --no-install-recommends {' '.join(missing)}")


def digest_of(paths: Iterable[Path], *words: str) -> str:
    """Of the files' names and contents, and of the words."""
    summed = hashlib.sha256("\0".join(words).encode())
    for path in sorted(paths):
        summed.update(f"\0{path.relative_to(ROOT)}\0".encode())
        summed.update(path.read_bytes())
    return summed.hexdigest()[:16]


def image_digest() -> str:
    return digest_of([*GUEST.iterdir(), Path(__file__), ROOT / "requirements.txt"])


@contextmanager
def building(place: Path) -> Generator[Path | None]:
    """A folder that becomes `place` when the block ends well; None if it is there already. One builder at a time."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f".{place.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            yield None
            return
        draft = place.parent / f".{place.name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        draft.rename(place)


def build() -> Path:
    """The folder with root.ext4, vmlinuz, initrd.img, ssh_key and packages.txt. Raises LabError."""
    require_tools()
    place = lab_dir() / f"image-{image_digest()}"
    with building(place) as draft:
        if draft is not None:
            print("lab: building the guests' image (about a minute)", flush=True)
            with tempfile.TemporaryDirectory(prefix="stowage-lab-", dir=lab_dir()) as scratch:
                _build(draft, Path(scratch))
    return place


def _build(place: Path, scratch: Path) -> None:
    tree, kernel = scratch / "root", scratch / "kernel"
    kernel.mkdir()
    _bootstrap(tree, kernel, place)
    version = next((kernel / "lib/modules").iterdir()).name
    shutil.copy(kernel / f"boot/vmlinuz-{version}", place / "vmlinuz")
    _run("depmod", "-b", str(kernel), version)
    _install_modules(tree, kernel, version)
    _install_files(tree, place)
    _install_python(tree, scratch)
    _make_initramfs(scratch / "initramfs", kernel, version, place / "initrd.img")
    _make_disk(tree, place / "root.ext4")


def _bootstrap(tree: Path, kernel: Path, place: Path) -> None:
    packages = ",".join(_words(GUEST / "packages"))
    # The kernel's package is only unpacked: installing it would build an initramfs of Debian's, for a minute.
    fetch = (
        f"set -e; export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG; cd {shlex.quote(str(kernel))};"
        " name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: *\\(linux-image-[^ ]*\\).*/\\1/p' | head -n 1);"
        ' apt-get download -qq "$name"; dpkg-deb -x "$name"_*.deb .; rm -- "$name"_*.deb'
    )
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")]
    _run(
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--components=main",
        "--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=force-unsafe-io",
        *excluded, f"--include={packages}", f"--customize-hook={fetch}", _SUITE, str(tree), *_mirror(),
    )  # fmt: skip
    installed = _run("chroot", str(tree), "dpkg-query", "-W", "-f", "${Package} ${Version}\\n")
    (place / "packages.txt").write_text(installed)


def _mirror() -> list[str]:
    """The mirror that mmdebstrap takes packages from: given, else this Debian's own, else mmdebstrap's."""
    if given := os.environ.get("STOWAGE_LAB_MIRROR"):
        return [given]
    for path in sorted(Path("/etc/apt").glob("sources.list*")):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            text = file.read_text() if file.suffix in (".list", ".sources") else ""
            if found := re.search(r"^(?:URIs: *|deb (?:\[[^]]*\] )?)(\S+/debian/?)(?:\s|$)", text, re.MULTILINE):
                return [found[1]]
    return []


def _install_modules(tree: Path, kernel: Path, version: str) -> None:
    base = kernel / "lib/modules" / version
    crypto = (path.stem for path in base.rglob("*.ko") if "crypto" in path.relative_to(base).parts)
    wanted = dict.fromkeys([*_words(GUEST / "modules"), *crypto])
    for path in _module_files(kernel, version, *wanted):
        to = tree / path.relative_to(kernel)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(base / name, tree / "lib/modules" / version / name)
    _run("depmod", "-b", str(tree), version)


def _module_files(kernel: Path, version: str, *names: str) -> list[Path]:
    """The modules' files and those of what they need, in the order in which they must be loaded."""
    found: dict[Path, None] = {}
    for name in names:
        shown = subprocess.run(
            ["modprobe", "-d", str(kernel), "-S", version, "--show-depends", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for line in shown.stdout.splitlines():
            if line.startswith("insmod "):
                found[Path(line.split()[1])] = None
    return list(found)


def _install_files(tree: Path, place: Path) -> None:
    lab = tree / "lab"
    lab.mkdir()
    for name in (*_EXECUTABLE, "courier.py"):
        shutil.copy(GUEST / name, lab / name)
        (lab / name).chmod(0o755)
    shutil.copy(GUEST / "inittab", tree / "etc/inittab")
    shutil.copy(GUEST / "smb.conf", tree / "etc/samba/smb.base")
    shutil.copy(GUEST / "smb.conf", tree / "etc/samba/smb.conf")
    (tree / "etc/samba/users.map").touch()
    shutil.copy(GUEST / "lvmlocal.conf", tree / "etc/lvm/lvmlocal.conf")
    (tree / "etc/fstab").write_text("/dev/vda / ext4 noatime 0 0\n")
    hosts = ["127.0.0.1 localhost", "10.0.2.2 machine", "10.77.0.1 storage", "fd77::1 storage6"]
    hosts += [f"10.77.0.{10 + number} hv{number}" for number in range(1, 5)]
    (tree / "etc/hosts").write_text("\n".join(hosts) + "\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text("")
    (tree / "etc/machine-id").write_text("uninitialized\n")
    (tree / "srv").mkdir(exist_ok=True)
    _install_ssh(tree, place)


def _install_ssh(tree: Path, place: Path) -> None:
    """sshd for `scripts/lab shell`, reached on the machine's loopback alone; the key to it is made with the image."""
    for path in (tree / "etc/ssh").glob("ssh_host_*"):
        path.unlink()
    make = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "stowage-lab", "-f")
    _run(*make, str(place / "ssh_key"))
    _run(*make, str(tree / "etc/ssh/ssh_host_ed25519_key"))
    folder = tree / "root/.ssh"
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(place / "ssh_key.pub", folder / "authorized_keys")
    (tree / "etc/ssh/sshd_config").write_text(
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nUsePAM no\nUseDNS no\n"
    )


def _install_python(tree: Path, scratch: Path) -> None:
    """The agent's locked dependencies, in a venv of the guest's own Python; the project's wheel comes later (guests.py)."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(_locked(_LIBRARY))
    wheels = scratch / "wheels"
    _pip("download", "--quiet", "--require-hashes", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp",
         "--abi=cp311", "--abi=abi3", "--abi=none", "--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64",
         "--platform=any", "--no-deps", f"--dest={wheels}", f"--requirement={wanted}")  # fmt: skip
    inside = tree / "tmp/wheels"
    shutil.copytree(wheels, inside)
    _run("chroot", str(tree), "python3", "-m", "venv", "/opt/stowage")
    _run(
        "chroot",
        str(tree),
        "sh",
        "-c",
        "/opt/stowage/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps /tmp/wheels/*",
    )
    shutil.rmtree(inside)


def _locked(names: Iterable[str]) -> str:
    """The lines of requirements.txt for these packages, with their hashes."""
    text = (ROOT / "requirements.txt").read_text()
    blocks = re.split(r"(?m)^(?=[a-z0-9])", text)
    chosen = [block for block in blocks if block.partition("==")[0] in names]
    if len(chosen) != len(set(names)):
        raise LabError(f"requirements.txt does not lock all of {', '.join(names)}")
    return "".join(chosen)


def _make_initramfs(tree: Path, kernel: Path, version: str, out: Path) -> None:
    for name in ("bin", "dev", "proc", "sys", "mnt", "m"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copy(GUEST / "initramfs-init", tree / "init")
    (tree / "init").chmod(0o755)
    _run("mknod", "-m", "600", str(tree / "dev/console"), "c", "5", "1")
    for number, path in enumerate(_module_files(kernel, version, "virtio_pci", "virtio_blk")):
        shutil.copy(path, tree / "m" / f"{number:02}-{path.name}")
    names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--quiet", "--null", "-o", "-H", "newc"],
        cwd=tree,
        input=names.encode(),
        capture_output=True,
        check=True,
    )
    out.write_bytes(packed.stdout)


def _make_disk(tree: Path, out: Path) -> None:
    for name in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(tree / name, ignore_errors=True)
    # With a journal: a power cut must leave what a real host's would.
    _run("mke2fs", "-q", "-t", "ext4", "-F", "-m", "0", "-b", "4096", "-J", "size=16", "-O", "^metadata_csum,^64bit",
         "-E", "lazy_itable_init=1,root_owner=0:0", "-L", "labroot", "-d", str(tree), str(out), _SIZE)  # fmt: skip


def _words(path: Path) -> list[str]:
    return [word for line in path.read_text().splitlines() for word in line.partition("#")[0].split()]


def _pip(*args: str) -> None:
    _run(str(ROOT / ".venv/bin/python"), "-m", "pip", *args)


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{argv[0]} failed with {done.returncode}:\n{(done.stderr or done.stdout)[-3000:]}")
    return done.stdout
