"""The two frozen guests that every lab resumes: a storage server with its daemons, and a host with the project's agent installed.

The agent comes as the project's own wheel, built from this checkout and installed by the guest's pip into a venv; a host's snapshot
is therefore kept by the digest of the image and of the sources that are in the wheel.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab import image
from tests.lab.image import ROOT, LabError, building, digest_of, lab_dir
from tests.lab.qemu import Machine, Seat, Snapshot

_SOURCES = ("agent", "manager", "schemas")
#: Under emulation; 20 s were seen.
_INSTALL_TIMEOUT_S = 300.0
#: Reads what will be needed first into the guest's page cache, so that resumed guests start warm.
_WARM = """
/opt/stowage/bin/python -c 'import agent.app, agent.join, ssl, sqlite3'
lvs >/dev/null 2>&1; iscsiadm --version >/dev/null; mount.nfs -V >/dev/null; mount.cifs -V >/dev/null; udevadm settle
"""


def build() -> tuple[Path, Snapshot, Snapshot]:
    """The image, the storage guest's snapshot and the host's. Raises LabError."""
    base = image.build()
    storage = lab_dir() / f"storage-{digest_of(_own_files(), base.name)}"
    with building(storage) as draft:
        if draft is not None:
            print("lab: freezing the storage guest", flush=True)
            _freeze(base, Seat("storage", 1, "storage"), draft)
    host = lab_dir() / f"host-{digest_of([*_own_files(), *_wheel_files()], base.name)}"
    with building(host) as draft:
        if draft is not None:
            print("lab: installing the agent's wheel in a host and freezing it (half a minute)", flush=True)
            _freeze(base, Seat("hv1", 11, "host"), draft, with_agent=True)
    return base, Snapshot(storage), Snapshot(host)


def remove_stale() -> None:
    """Snapshots and images that nothing of this checkout would use any more are gone."""
    base = f"image-{image.image_digest()}"
    kept = {
        base,
        f"storage-{digest_of(_own_files(), base)}",
        f"host-{digest_of([*_own_files(), *_wheel_files()], base)}",
    }
    for folder in lab_dir().glob("*-*"):
        if folder.is_dir() and folder.name not in kept:
            shutil.rmtree(folder)


def _freeze(base: Path, seat: Seat, place: Path, *, with_agent: bool = False) -> None:
    with tempfile.TemporaryDirectory(prefix=f"stowage-lab-{os.getpid()}-", dir="/run") as scratch:
        net = Path(scratch) / "net"
        net.mkdir()
        machine = Machine(seat, base, Path(scratch) / seat.name, net)
        try:
            machine.boot()
            if with_agent:
                _install(machine, _build_wheel(Path(scratch)))
            machine.courier.run(_WARM if with_agent else "udevadm settle", timeout_s=_INSTALL_TIMEOUT_S)
            machine.freeze(place)
        finally:
            machine.stop()


def _install(machine: Machine, wheel: Path) -> None:
    inside = f"/tmp/{wheel.name}"
    machine.courier.put(inside, wheel.read_bytes())
    machine.courier.run(
        "/opt/stowage/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps", inside,
        timeout_s=_INSTALL_TIMEOUT_S,
    )  # fmt: skip
    machine.courier.run("rm -f", inside)


def _build_wheel(scratch: Path) -> Path:
    """The wheel, built from a copy: setuptools writes into the tree that it builds from."""
    tree, out = scratch / "source", scratch / "wheel"
    for path in _wheel_files():
        to = tree / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    argv: list[str | Path] = [ROOT / ".venv/bin/python", "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
            "--no-build-isolation", f"--wheel-dir={out}", tree]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"the wheel could not be built:\n{done.stderr[-3000:]}")
    return next(out.glob("stowage-*.whl"))


def _wheel_files() -> list[Path]:
    found = [path for name in _SOURCES for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return [ROOT / "pyproject.toml", *found]


def _own_files() -> list[Path]:
    return [Path(__file__), Path(__file__).parent / "qemu.py"]
