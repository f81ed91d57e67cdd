"""What it costs to create a volume from an image on the lab's storage, beside `cp` of the same image on the same mount, in turns.

    .venv/bin/python scripts/bench/create_in_the_lab.py [--mib 256] [--rounds 5] [STORAGE ...]

STORAGE: nfs (4.2, where the server copies), xfs (a disk of the host's, which shares blocks), ext4 (the same without). Starts a lab of one
host (docs/lab.md; as root), registers an image of random bytes on each, and then, in turns: creates a volume from it over the API, until
the answer says that it is ready, on stable storage; and runs `cp --sparse=always --reflink=auto` of the image's own file in the host, with
and without `sync` of the copy. Ratios are of medians. All is under emulation there: only the ratios say something, and the
guests' disks have room for images of 256 MiB.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.lab import lab as labs
from tests.lab.backends import Backend, Backends
from tests.lab.disks import MAKES, Disk
from tests.lab.host import IMAGES, Host
from tests.lab.lab import Lab
from tests.lab.nfs import nfs

TARGET = 1.1
#: Prints seconds for `cp` and for the `sync` of its copy, by one clock; {kept} is the image's file.
_COPY = """
set -e; sync; cd $(dirname {kept}); a=$(date +%s.%N); cp --sparse=always --reflink=auto {kept} ../copy; b=$(date +%s.%N)
sync ../copy; c=$(date +%s.%N); rm ../copy; echo $a $b $c
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("storage", nargs="*", default=["nfs", "xfs", "ext4"])
    given = parser.parse_args()
    with labs.running() as lab:
        host = lab.host("hv1")
        for word in given.storage:
            with place(lab, host, word, given.mib) as backend:
                measure(lab, host, word, backend, given.mib, given.rounds)


@contextmanager
def place(lab: Lab, host: Host, word: str, mib: int) -> Iterator[Backend]:
    """A backend with room for three of the image."""
    backends = Backends(lab.api, (host,))
    if word == "nfs":
        yield backends.add("nfs", nfs(lab.storage.export(mib=mib * 4)))
        return
    with Disk(host, lab.storage.unique(word), MAKES[word], mib=mib * 4) as disk:
        backend = backends.add("local_file", {"root_dir": disk.where})
        yield backend
        lab.api("DELETE", backend.path)


def measure(lab: Lab, host: Host, word: str, backend: Backend, mib: int, rounds: int) -> None:
    """Prints the medians and their ratios. Nothing of it is left on the backend."""
    run, path = host.courier.run, f"{IMAGES}/bench.raw"
    run(f"mkdir -p {IMAGES}; head -c {mib}M /dev/urandom >{path}", timeout_s=600)
    body = {"name": word, "backend": backend.name, "host": host.name, "path": path, "source_format": "raw"}
    digest = run(f"sha256sum {path}", timeout_s=600).out.split()[0]
    made = lab.api("POST", "/images", {**body, "format": "raw", "sha256": digest})
    assert made.status == 201, made
    run(f"rm {path}")
    kept = run(f"find / -xdev -o -name {made.body['locator']}.raw -print -quit 2>/dev/null; true").out.strip()
    kept = kept or run(f"ls {backend.added['config'].get('root_dir', backend.mount_dir)}/volumes/*.raw").out.strip()
    taken: dict[str, list[float]] = {"create": [], "cp": [], "cp and sync": []}
    for number in range(rounds + 1):
        run("sync")
        began = time.monotonic()
        answer = lab.api("POST", "/volumes", {"name": "disk", "backend": backend.name, "source": {"image": word}})
        created = time.monotonic() - began
        assert answer.status == 201, answer
        gone = lab.api("DELETE", "/volumes/disk")
        assert gone.status == 204, gone
        begun, copied, synced = map(float, run(_COPY.format(kept=kept), timeout_s=600).out.split())
        if number:
            # The first is for the caches.
            for name, value in zip(taken, (created, copied - begun, synced - begun), strict=True):
                taken[name].append(value)
    assert lab.api("DELETE", f"/images/{word}").status == 204
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"{word}: an image of {mib} MiB, {rounds} rounds")
    for name, value in medians.items():
        print(f"  {name:<22} {value:.3f} s   ({min(taken[name]):.3f} to {max(taken[name]):.3f})")
    for name in ("cp", "cp and sync"):
        ratio = medians["create"] / medians[name]
        print(f"  create / {name:<13} {ratio:.2f}   target <= {TARGET:g}: {'met' if ratio <= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
