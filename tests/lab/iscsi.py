"""What the tests of iscsi_lvm have in common."""

from typing import Any

from tests.lab.backends import Backend, Backends
from tests.lab.client import Answer, Api
from tests.lab.host import Host
from tests.lab.storage import ADDRESS

KIND = "iscsi_lvm"
PROBE_LV = "stowage_probe"


def iscsi(iqn: str, vg_name: str = "vg_vms", portal: str = ADDRESS, **more: Any) -> dict[str, Any]:
    """A config."""
    return {"portal": portal, "target_iqn": iqn, "vg_name": vg_name, **more}


def sessions(host: Host) -> list[tuple[str, str, str]]:
    """Target, iface and portal's address of each session, by sysfs."""
    shown = host.courier.run(
        "for s in /sys/class/iscsi_session/session*; do [ -e $s ] || continue;"
        ' echo "$(cat $s/targetname) $(cat $s/ifacename) $(cat /sys/class/iscsi_connection/connection${s##*session}:0/persistent_address)"; done 2>/dev/null'
    ).out
    # One that goes while it is read has lost a word.
    return [(words[0], words[1], words[2]) for line in shown.splitlines() if len(words := line.split()) == 3]


def mapped(host: Host) -> list[str]:
    """The names of what the device mapper has."""
    return host.courier.run("dmsetup ls --noheadings 2>/dev/null | sed -n 's/\\t.*//p'").out.split()


def disk_of(host: Host, iqn: str) -> str:
    """The device of the one LUN in the host's session of our iface."""
    return host.courier.run(
        f"for s in /sys/class/iscsi_session/session*; do [ $(cat $s/targetname) = {iqn} ] && [ $(cat $s/ifacename) = stowage ]"
        " && ls $s/device/target*/*/block; done"
    ).out.strip()


def inspection(api: Api, backend: Backend) -> dict[str, Any]:
    """What its LUN holds."""
    answer: dict[str, Any] = api.get(f"{backend.path}/inspection")
    return answer


def initialize(api: Api, backend: Backend, wwid: str, *, force: bool = False) -> Answer:
    """What the API says to it."""
    return api("POST", f"{backend.path}/initialize", {"confirm": backend.name, "wwid": wwid, "force": force})


def added_blank(backends: Backends, config: dict[str, Any], **fields: Any) -> Backend:
    """Added on a LUN that needs initialization."""
    backend = backends.add(KIND, config, **fields)
    assert backend.now()["state"] == "needs_initialization"
    return backend
