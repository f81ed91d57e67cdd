"""What the tests of nfs have in common."""

from tests.lab.host import Host
from tests.lab.storage import ADDRESS

#: What the kernel shows for each choice of the kind, with a server that speaks them all.
SHOWN = {
    "default": "vers=4.2",
    "3": "vers=3",
    "4": "vers=4.2",
    "4.0": "vers=4.0",
    "4.1": "vers=4.1",
    "4.2": "vers=4.2",
}


def nfs(export: str, server: str = ADDRESS, **more: str) -> dict[str, str]:
    """A config."""
    return {"server": server, "export": export, **more}


def mounted(host: Host, where: str) -> str:
    """The kernel's line for what is mounted there; empty for nothing."""
    return host.courier.attempt("grep -F", f" {where} ", "/proc/mounts").out


def options_of(host: Host, where: str) -> set[str]:
    """What the kernel shows of its options; none where nothing is mounted."""
    words = mounted(host, where).split()
    return set(words[3].split(",")) if words else set()
