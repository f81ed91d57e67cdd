"""What it costs to create a volume from an image, beside `cp` of the same image on the same file system, in turns.

    .venv/bin/python scripts/bench/create_from_image.py [--dir DIR] [--mib 1024] [--holes PERCENT] [--rounds 7]

Starts `stowage up` in DIR, registers an image of that size as one would, and then, in turns: creates a volume from it over the API,
until the answer says that it is ready, on stable storage; and runs `cp --sparse=always --reflink=auto` of the image's own file, with
and without `sync` of the copy. Ratios are of medians. As root, DIR may be a mount of any kind (XFS: both share blocks).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
TARGET = 1.1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", default="/var/tmp")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--holes", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stowage-bench-", dir=given.dir) as folder:
        Path(folder).chmod(0o711)
        data = Path(folder) / "data"
        stack = [sys.executable, "-m", "manager.cli", "up", "--data-dir", str(data), "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(stack, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (data / "ready.json").exists():
                if process.poll() is not None:
                    sys.exit("stowage up ended; run it by hand to see why")
                time.sleep(0.1)
            measure(Api(json.loads((data / "ready.json").read_text())), data, given.mib, given.holes, given.rounds)
        finally:
            process.terminate()
            process.wait(60)


class Api:
    def __init__(self, ready: dict[str, Any]) -> None:
        self._url = ready["url"].rstrip("/")
        self._token = Path(ready["token_file"]).read_text().strip()

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """The answer; of what goes on beyond it, the end is waited for."""
        request = urllib.request.Request(
            f"{self._url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            content = answer.read()
            if answer.status != 202:
                return json.loads(content) if content else None
        operation = json.loads(content)["operation"]
        while (state := self("GET", operation)["state"]) in ("running", "undoing"):
            time.sleep(0.02)
        if state != "succeeded":
            sys.exit(f"{method} {path} {state}: {self('GET', operation)['error']}")
        return None


def measure(api: Api, data: Path, mib: int, holes: int, rounds: int) -> None:
    """Prints the medians and their ratios."""
    image = make_image(data / "images/bench.raw", mib, holes)
    digest = subprocess.run(["sha256sum", image], capture_output=True, text=True, check=True).stdout.split()[0]
    body = {"name": "bench", "path": str(image), "source_format": "raw", "format": "raw", "sha256": digest}
    api("POST", "/v1/images", body)
    shown = api("GET", "/v1/images/bench")
    image.unlink()
    kept = data / "volumes/volumes" / f"{shown['locator']}.raw"
    copy = kept.parent.parent / "copy"
    taken: dict[str, list[float]] = {"create": [], "cp": [], "cp and sync": []}
    for number in range(rounds + 1):
        os.sync()
        created = timed(lambda: api("POST", "/v1/volumes", {"name": "disk", "source": {"image": "bench"}}))
        api("DELETE", "/v1/volumes/disk")
        os.sync()
        plain = timed(lambda: run("cp", "--sparse=always", "--reflink=auto", kept, copy))
        synced = plain + timed(lambda: run("sync", copy))
        copy.unlink()
        if number:
            # The first is for the caches.
            for name, value in zip(taken, (created, plain, synced), strict=True):
                taken[name].append(value)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"image                    {mib} MiB, {holes} % of it holes, on {file_system(data)}; {rounds} rounds")
    for name, value in medians.items():
        print(f"{name:<24} {value:.3f} s   ({min(taken[name]):.3f} to {max(taken[name]):.3f})")
    for name in ("cp and sync", "cp"):
        ratio = medians["create"] / medians[name]
        verdict = f"   target <= {TARGET:g}: {'met' if ratio <= TARGET else 'MISSED'}" if name == "cp and sync" else ""
        print(f"create / {name:<15} {ratio:.2f}{verdict}")


def make_image(path: Path, mib: int, holes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(mib * MIB)
        for number in range(mib):
            if number % 100 >= holes:
                file.seek(number * MIB)
                file.write(os.urandom(MIB))
    return path


def file_system(path: Path) -> str:
    shown = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True)
    return shown.stdout.strip()


def timed(act: Any) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True)


if __name__ == "__main__":
    main()
