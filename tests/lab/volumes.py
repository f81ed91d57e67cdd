"""What a test does with volumes: over the public API, and in a guest through the path that an attachment gave."""

import random
from contextlib import suppress
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from tests.lab.backends import Backend
from tests.lab.client import Answer, Api
from tests.lab.host import IMAGES, Host
from tests.lab.image import LabError
from tests.lab.qemu import wait_until

MIB = 1 << 20
#: Seconds for what the manager takes away by itself: it looks each 5 s, and tries one thing again after 30 s.
LEFTOVERS_S = 90.0
_SCRATCH = "/var/tmp/stream"

_WRITE = """
import os, random
numbers, descriptor = random.Random({seed}), os.open({path!r}, os.O_WRONLY | {flags})
os.lseek(descriptor, {at}, os.SEEK_SET)
for _ in range({mib}):
    assert os.write(descriptor, numbers.randbytes(1 << 20)) == 1 << 20
os.fsync(descriptor)
os.close(descriptor)
answer = "written"
"""
#: What was written was flushed before, so nothing of it stays in the page cache.
_READ = """
import hashlib, os
with open("/proc/sys/vm/drop_caches", "w") as file:
    file.write("3")
found, left = hashlib.sha256(), {mib} << 20
with open({path!r}, "rb", buffering=0) as file:
    file.seek({at})
    while left and (piece := file.read(min(left, 1 << 20))):
        found.update(piece)
        left -= len(piece)
answer = [found.hexdigest(), left]
"""


class Volumes:
    """Each call waits for the end of its operation. What a test leaves goes by `clear`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def ask(self, path: str, body: Any = None, method: str = "POST") -> Answer:
        """What the API says to it in the end."""
        return self._api(method, path, body)

    def refused(self, status: int, path: str, body: Any = None, method: str = "POST") -> dict[str, Any]:
        """The problem that it is refused with."""
        answer = self.ask(path, body, method)
        assert answer.status == status, answer
        problem: dict[str, Any] = answer.body
        return problem

    def create(self, backend: Backend, name: str, *, mib: int = 0, **more: Any) -> dict[str, Any]:
        """mib 0: the source's size."""
        size = {"size_bytes": mib * MIB} if mib else {}
        return self._made("/volumes", {"name": name, "backend": backend.name, **size, **more})

    def create_image(self, backend: Backend, name: str, host: Host, image: "ImageFile") -> dict[str, Any]:
        return self._made("/images", image.body(backend, name, host))

    def clone(self, name: str, new: str, **more: Any) -> dict[str, Any]:
        return self._made(f"/volumes/{name}/clone", {"name": new, **more})

    def snapshot(self, name: str, snapshot: str) -> dict[str, Any]:
        return self._made(f"/volumes/{name}/snapshots", {"name": snapshot})

    def attach(self, name: str, host: Host, mode: str = "rw") -> str:
        """The path to give to a hypervisor."""
        return str(self._done(f"/volumes/{name}/attach", {"host": host.name, "mode": mode})["path"])

    def detach(self, name: str, host: Host, *, force: bool = False) -> bool:
        """Whether the host has said that it lets go."""
        return bool(self._done(f"/volumes/{name}/detach", {"host": host.name, "force": force})["is_confirmed"])

    def resize(self, name: str, mib: int) -> dict[str, Any]:
        return self._done(f"/volumes/{name}/resize", {"size_bytes": mib * MIB})

    def revert(self, name: str, snapshot: str) -> dict[str, Any]:
        return self._done(f"/volumes/{name}/snapshots/{snapshot}/revert")

    def migrate(self, name: str, backend: Backend, **more: Any) -> dict[str, Any]:
        return self._done(f"/volumes/{name}/migrate", {"backend": backend.name, **more})

    def delete(self, *paths: str) -> None:
        """paths: volumes/NAME, images/NAME, volumes/NAME/snapshots/NAME."""
        for path in paths:
            answer = self.ask(f"/{path}", method="DELETE")
            assert answer.status == 204, answer

    def get(self, name: str) -> dict[str, Any]:
        body: dict[str, Any] = self._api.get(f"/volumes/{name}")
        return body

    def all(self, collection: str = "volumes") -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._api.get(f"/{collection}?limit=500")["items"]
        return items

    def drift(self, backend: Backend) -> dict[str, Any]:
        body: dict[str, Any] = self._api.get(f"{backend.path}/drift")
        return body

    def explain(self, name: str, host: Host) -> list[str]:
        """Why it cannot be attached there now; none: it can."""
        body = self._api.get(f"/volumes/{name}/explain?host={host.name}")
        assert body["is_usable"] == (not body["reasons"])
        reasons: list[str] = body["reasons"]
        return reasons

    def wait_for_events(self, subject: str, types: list[str]) -> None:
        """These and no others have happened to it, in this order; subject: volumes/ID, images/ID, snapshots/ID."""

        def told() -> list[str]:
            return [str(event["type"]) for event in self._api.get(f"/events?limit=500&subject={subject}")["items"]]

        # One is told of once it has its place in the log, which is a moment after the change.
        with suppress(LabError):
            wait_until(lambda: told() == types, "the last event", 10.0)
        assert told() == types

    def clear(self) -> None:
        """There is none any more, attached or not, and no bytes of an earlier one wait for their deletion."""
        wait_until(self._is_idle, "all operations to end", LEFTOVERS_S)
        for volume in self.all():
            for held in volume["attachments"]:
                self._done(f"/volumes/{volume['id']}/detach", {"host": held["host"]})
            self.delete(*(f"volumes/{volume['id']}/snapshots/{each['id']}" for each in self._snapshots(volume)))
            self.delete(f"volumes/{volume['id']}")
        self.delete(*(f"images/{image['id']}" for image in self.all("images")))
        self.wait_for_no_leftovers()

    def wait_for_no_leftovers(self) -> None:
        """What an operation could not take away has gone: nothing on any backend that no volume accounts for."""
        paths = [f"/storage_backends/{b['id']}" for b in self._api.get("/storage_backends?limit=500")["items"]]

        def is_clean() -> bool:
            reports = [self._api("GET", f"{path}/drift").body for path in paths]
            # What waits for its deletion is no stray; the removal of its backend counts it.
            live = sum(self._api("DELETE", f"{path}?dry_run=true").body["live_volumes"] for path in paths)
            volumes = self.all()
            known = len(volumes) + sum(each["snapshots"] for each in volumes) + len(self.all("images"))
            is_told = all(report.get(what) == [] for report in reports for what in ("strays", "missing", "sizes"))
            return is_told and live == known

        wait_until(is_clean, "no bytes without a volume, and no volume without bytes", LEFTOVERS_S)

    def _is_idle(self) -> bool:
        return not any(self._api.get(f"/operations?state={state}")["items"] for state in ("running", "undoing"))

    def _snapshots(self, volume: dict[str, Any]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._api.get(f"/volumes/{volume['id']}/snapshots")["items"]
        return items

    def _made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.ask(path, body)
        assert answer.status == 201, answer
        made: dict[str, Any] = answer.body
        return made

    def _done(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.ask(path, body)
        assert answer.status == 200, answer
        done: dict[str, Any] = answer.body
        return done


class ImageFile:
    """A file in the image folder of a host, gone with the block."""

    def __init__(self, host: Host, name: str, *, seed: int = 0, mib: int = 0, made_by: str = "") -> None:
        """Random bytes, or what a command makes of {path}."""
        self.path = f"{IMAGES}/{name}"
        self.format = "qcow2" if name.endswith(".qcow2") else "raw"
        self._host = host
        self._seed = seed
        self._mib = mib
        self._made_by = made_by
        self.sha256 = ""

    def __enter__(self) -> "ImageFile":
        self._host.courier.run(f"mkdir -p {IMAGES}")
        if self._made_by:
            self._host.courier.run(self._made_by.format(path=self.path))
        else:
            write(self._host, self.path, self._seed, self._mib, is_new=True)
        self.sha256 = self._host.courier.run("sha256sum", self.path).out.split()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._host.courier.run(f"rm -f {self.path}")

    def body(self, backend: Backend, name: str, host: Host, **more: str) -> dict[str, Any]:
        """Of a request for an image of it."""
        return {
            "name": name,
            "backend": backend.name,
            "host": host.name,
            "path": self.path,
            "sha256": self.sha256,
            "source_format": self.format,
            **more,
        }


def stream(seed: int, mib: int) -> bytes:
    """The bytes that `write` writes."""
    numbers = random.Random(seed)
    return b"".join(numbers.randbytes(MIB) for _ in range(mib))


def digest_of(*parts: bytes) -> str:
    return sha256(b"".join(parts)).hexdigest()


def zeros(mib: int) -> bytes:
    return bytes(mib * MIB)


def write(host: Host, path: str, seed: int, mib: int, *, at_mib: int = 0, is_new: bool = False) -> None:
    """The stream of that seed is there, on stable storage; in a qcow2 by qemu-io, as a hypervisor would."""
    if PurePosixPath(path).suffix == ".qcow2":
        write(host, _SCRATCH, seed, mib, is_new=True)
        host.courier.run(
            f"qemu-io -f qcow2 -t none -c 'write -s {_SCRATCH} {at_mib}M {mib}M' -c flush {path}; rm {_SCRATCH}"
        )
        return
    flags = "os.O_CREAT | os.O_TRUNC" if is_new else "0"
    host.courier.look(_WRITE.format(path=path, seed=seed, mib=mib, at=at_mib * MIB, flags=flags))


def digest(host: Host, path: str, mib: int, *, at_mib: int = 0) -> str:
    """SHA-256 of so much, read anew from the storage."""
    if PurePosixPath(path).suffix == ".qcow2":
        host.courier.run("echo 3 >/proc/sys/vm/drop_caches; qemu-img convert -f qcow2 -O raw", path, _SCRATCH)
        try:
            return digest(host, _SCRATCH, mib, at_mib=at_mib)
        finally:
            host.courier.run("rm", _SCRATCH)
    found, left = host.courier.look(_READ.format(path=path, mib=mib, at=at_mib * MIB))
    assert left == 0, f"{path} ends {left} bytes too early"
    return str(found)
