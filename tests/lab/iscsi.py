"""What the tests of iscsi_lvm have in common."""

from typing import Any

from tests.lab.backends import Backend, Backends
from tests.lab.client import Answer, Api
from tests.lab.host import Host
from tests.lab.storage import ADDRESS, Chap, Storage

KIND = "iscsi_lvm"
PROBE_LV = "stowage_probe"
#: Seconds; above the manager's budget for an add. Whatever needs longer than an API call waits would be a 202.
BOUND_S = 28.0
_NO_CHAP = Chap()


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


def target_with_group(storage: Storage, chap: Chap = _NO_CHAP, vg_name: str = "vg_vms", *, mib: int = 256) -> str:
    """A target with this VG on LUN 0; its IQN."""
    iqn = storage.target(chap)
    storage.volume_group(storage.lun(iqn, mib=mib), vg_name)
    return iqn


def end_session(host: Host, iqn: str, iface: str = "stowage") -> None:
    """Somebody ends a session, ours unless told; its record stays."""
    name = f"/etc/iscsi/ifaces/{iface}"
    node = f"iscsiadm -m node -T {iqn} -I {iface}"
    record = f"printf 'iface.iscsi_ifacename = {iface}\\niface.transport_name = tcp\\n' >{name}"
    host.courier.run(
        f"mkdir -p /etc/iscsi/ifaces; [ {iface} = default ] || {record}; {node} --logout; code=$?; rm -f {name}; exit $code"
    )


def vgs(host: Host, iqn: str, columns: str) -> list[str]:
    """What `vgs` on the host says of the LUN's VG, in bytes."""
    return host.courier.run(
        f"vgs --devices /dev/{disk_of(host, iqn)} --noheadings --units b --nosuffix --separator ' ' -o", columns
    ).out.split()


def lvs(host: Host, iqn: str, columns: str, name: str) -> list[str]:
    """What `lvs` on the host says of the LV of vg_vms, in bytes."""
    return host.courier.run(
        f"lvs --devices /dev/{disk_of(host, iqn)} --noheadings --units b --nosuffix --separator ' ' -o",
        columns,
        f"vg_vms/{name}",
    ).out.split()


def content(storage: Storage, image: str) -> str:
    """A digest of the LUN's first 16 MiB, where the first volumes of a VG lie, and its last one; and how many blocks were ever written."""
    return storage.courier.run(f"(head -c 16M {image}; tail -c 1M {image}) | sha256sum; stat -c %b {image}").out
