"""nfs against a real server: versions, options, capacity, refusals, and what the server does to a mount beneath it."""

import pytest

from tests.lab.backends import Backends
from tests.lab.host import Host
from tests.lab.storage import ADDRESS, ADDRESS_6, Storage

SHOWN = {"3": "vers=3", "4": "vers=4.2", "4.1": "vers=4.1", "4.2": "vers=4.2", "default": "vers=4.2"}


def nfs(export: str, server: str = ADDRESS, **more: str) -> dict[str, str]:
    return {"server": server, "export": export, **more}


def mounted(host: Host, where: str) -> str:
    """The kernel's line for what is mounted there."""
    return str(host.courier.run("grep -F", where, "/proc/mounts").out)


@pytest.mark.parametrize("version", SHOWN)
def test_a_version_is_spoken_as_asked(storage: Storage, backends: Backends, hv1: Host, version: str) -> None:
    backend = backends.add("nfs", nfs(storage.export(), nfs_version=version))

    assert SHOWN[version] in mounted(hv1, backend.mount_dir).split(" ")[3].split(",")
    assert backend.probe(hv1)["status"] == "healthy"


def test_capacity_is_the_servers_own(storage: Storage, backends: Backends, hv1: Host) -> None:
    export = storage.export(mib=64)
    backend = backends.add("nfs", nfs(export))

    def servers() -> list[int]:
        return [int(word) for word in storage.courier.run("stat -f -c '%b %f %a %S'", export).out.split()]

    storage.courier.run(f"dd if=/dev/zero of={export}/ballast bs=1M count=20 conv=fsync status=none")
    seen = backend.probe(hv1)["capacity"]
    blocks, free, available, size = servers()

    # The NFS client counts in blocks of its own, of 64 KiB here.
    assert seen["total_bytes"] == pytest.approx(blocks * size, abs=1 << 16)
    assert seen["available_bytes"] == pytest.approx(available * size, abs=1 << 20)
    assert seen["used_bytes"] == pytest.approx((blocks - free) * size, abs=1 << 20)
    assert seen["used_bytes"] > 20 << 20


def test_ipv6(storage: Storage, backends: Backends, hv1: Host) -> None:
    backend = backends.add("nfs", nfs(storage.export(), ADDRESS_6))

    assert mounted(hv1, backend.mount_dir).startswith(f"[{ADDRESS_6}]:")
