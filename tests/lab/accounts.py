"""What is on a guest that somebody has to account for, and whether the manager does."""

from typing import Any

from tests.lab.client import Api
from tests.lab.host import STATE_DIR, Host
from tests.lab.storage import Storage

#: Runs in the guest's courier, with its standard library.
_LOOK = f"""
import glob, os
state = {str(STATE_DIR)!r}
def text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read().strip().strip(chr(0))
    except OSError:
        return ""
def names(pattern):
    return sorted(glob.glob(pattern, recursive=True, include_hidden=True))
def files(folder):
    return [path for path in names(folder + "/**") if os.path.lexists(path) and not os.path.isdir(path)]
processes = {{}}
for entry in glob.glob("/proc/[0-9]*/stat"):
    words = text(entry).rpartition(")")[2].split()
    if words:
        processes[int(entry.split("/")[2])] = (int(words[1]), text(os.path.dirname(entry) + "/cmdline").replace(chr(0), " "))
agents = [pid for pid, (_, line) in processes.items() if "stowage-agent run" in line and "/lab/" not in line]
zygotes = [pid for pid, (_, line) in processes.items() if "agent.worker_main" in line and processes[pid][0] in agents]
mounts = []
for line in text("/proc/self/mountinfo").splitlines():
    left, _, right = line.partition(" - ")
    kind = right.split()[0]
    if kind in ("nfs", "nfs4", "cifs", "smb3") or left.split()[4].startswith(state):
        mounts.append(left.split()[4])
# Not below mounts: there a look would wait for the server.
places = [state] + [state + "/" + name for name in ("backends/**", "credentials/**", "run/**")]
drafts = [path for place in places for pattern in ("/.new-*", "/*.part") for path in names(place + pattern)]
answer = {{
    "mounts": mounts,
    "mount folders": names(state + "/mounts/*") + names(state + "/trials/*"),
    "driver folders": names(state + "/backends/*"),
    "credential files": files(state + "/credentials"),
    "secret files": files(state + "/run"),
    "sessions": [text(entry + "/targetname") + " " + text(entry + "/ifacename") for entry in names("/sys/class/iscsi_session/session*")],
    "node records": files("/etc/iscsi/nodes") + files("/var/lib/iscsi/nodes"),
    "iface records": names("/etc/iscsi/ifaces/stowage*") + names("/etc/iscsi/.stowage*") + names("/run/lock/iscsi/*stowage*"),
    "mapped volumes": [text(entry) for entry in names("/sys/class/block/dm-*/dm/name")],
    "disks": [os.path.basename(entry) for entry in names("/sys/class/block/sd*")],
    "workers": [line for pid, (parent, line) in processes.items() if parent in zygotes],
    "tools": [line for pid, (parent, line) in processes.items() if parent in agents and pid not in zygotes],
    "downloads": files(state + "/downloads"),
    "temporary files": names("/tmp/*") + names("/run/udev/rules.d/*.part") + drafts,
}}
"""
#: Runs in the storage guest: files of volumes, and the LVs of volumes in the newest metadata of each LUN's VG, which LVM keeps as
#: text in a ring behind the PV's label (LVM's format_text/layout.h). LVM itself would first have to have the LUN as a device.
_LOOK_AT_SERVER = """
import glob, os, re, struct
def group(path):
    with open(path, "rb") as file:
        file.seek(4096)
        head = file.read(512)
        if head[4:20] != b" LVM2 x[5A%r0N*>":
            return ""
        start, size = struct.unpack("<QQ", head[24:40])
        place, length = struct.unpack("<QQ", head[40:56])
        file.seek(start + place)
        text = file.read(min(length, size - place))
        file.seek(start + 512)
        return (text + file.read(length - len(text))).decode(errors="replace")
answer = {
    "files": glob.glob("/srv/*/*/**/volumes/*", recursive=True, include_hidden=True),
    "lvs": [f"{path} {lv}" for path in glob.glob("/srv/luns/*.img") for lv in re.findall(r"(?m)^\\s*(sv_[0-9a-f]+) \\{", group(path))],
}
"""
#: Of which the manager may know while backends are there; names hold the backend's id, or belong to its session.
_BY_ID = ("mounts", "mount folders", "driver folders", "credential files")
_BY_SESSION = ("sessions", "node records", "mapped volumes", "disks")
#: In a session or record of a trial, which is over; ours of the backends have the bare name.
_TRIAL_IFACE = "stowage-"
#: In the name of a mapped LV of a volume.
_VOLUME_LV = "-sv_"


def on(host: Host) -> dict[str, list[str]]:
    """What is there now, by what it is."""
    found: dict[str, list[str]] = host.courier.look(_LOOK)
    return found


def unaccounted(host: Host, api: Api) -> dict[str, list[str]]:
    """What is there and belongs to no backend that the manager knows. What a probe has open at this moment is left out."""
    backends: list[dict[str, Any]] = api.get("/storage_backends")["items"]
    ids = [backend["id"] for backend in backends]
    has_luns = any(backend["kind"] == "iscsi_lvm" for backend in backends)
    found = on(host)
    excused = {what: [path for path in found[what] if any(id_ in path for id_ in ids)] for what in _BY_ID}
    if has_luns:
        excused |= {what: [one for one in found[what] if _TRIAL_IFACE not in one] for what in _BY_SESSION}
        attached = _attached_on(host, api)
        excused["mapped volumes"] = [
            one for one in found["mapped volumes"] if _VOLUME_LV not in one or any(name in one for name in attached)
        ]
    if backends:
        excused |= {"workers": found["workers"], "tools": found["tools"]}
        if has_luns:
            excused["iface records"] = found["iface records"]
    return {
        what: left for what, paths in found.items() if (left := [p for p in paths if p not in excused.get(what, ())])
    }


def _attached_on(host: Host, api: Api) -> list[str]:
    """Locators of the volumes that the host may have open."""
    found: list[dict[str, Any]] = api.get(f"/volumes?limit=500&host={host.name}")["items"]
    return [each["locator"] for each in found if any(held["host"] == host.name for held in each["attachments"])]


def left_on_server(storage: Storage) -> list[str]:
    """Files that probes or trials have left on what the server serves, markers without a backend, and bytes of volumes."""
    return storage.courier.run("find /srv -name '.stowage*'").out.split() + volumes_on_server(storage)


def volumes_on_server(storage: Storage) -> list[str]:
    """Files in folders of volumes, and LVs of volumes with their LUN's file before them."""
    found = storage.courier.look(_LOOK_AT_SERVER)
    return [*found["files"], *found["lvs"]]
