"""A fleet's bad day: three hosts, three kinds, one host cut off while backends are edited, rotated and removed; then it is healed."""

import datetime as dt

import pytest

from tests.lab import accounts
from tests.lab.backends import Backends
from tests.lab.host import INTERVALS, Host
from tests.lab.iscsi import initialize
from tests.lab.lab import Lab
from tests.lab.leaks import Secrets
from tests.lab.nfs import SHOWN, mounted, nfs, options_of
from tests.lab.qemu import wait_until
from tests.lab.storage import ADDRESS, Chap, Storage

pytestmark = pytest.mark.slow

#: Seconds; the default is 300, the lab's other hosts have 10, which is what logging in and mounting take under emulation.
_RECONCILE_S = 30


def test_a_host_that_was_cut_off_is_right_within_one_reconcile_interval(
    lab: Lab, storage: Storage, backends: Backends, hv1: Host, hv2: Host, hv3: Host, secrets: Secrets
) -> None:
    hosts = (hv1, hv2, hv3)
    hv3.rerun_agent(**INTERVALS | {"RECONCILE": _RECONCILE_S})
    before, after = secrets("Before-the-cut-1"), secrets("After-the-cut-2")
    storage.set_password("labuser", before)
    share = storage.share()
    chap = Chap("lab", secrets("Chap-secret-16ch"))
    iqn = storage.target(chap)
    storage.lun(iqn)
    san = backends.add(
        "iscsi_lvm",
        {"portal": f"{ADDRESS}:3260", "target_iqn": iqn, "vg_name": "vg_lab"},
        credentials=chap.credentials,
        on=hosts,
    )
    wwid = lab.api.get(f"{san.path}/inspection")["wwid"]
    # Nine tools in one command: on a busy emulated host they may outlast it, and who asks again goes on where it was.
    wait_until(
        lambda: initialize(lab.api, san, wwid).status == 200 or san.now()["state"] == "ready",
        "the LUN to be initialized",
        120,
    )
    tank = backends.add("nfs", nfs(storage.export(), nfs_version="4.2"), on=hosts)
    vault = backends.add(
        "smb", {"server": ADDRESS, "share": share}, credentials={"username": "labuser", "password": before}, on=hosts
    )
    old = backends.add("nfs", nfs(storage.export()), on=hosts)
    for backend in (tank, vault, old, san):
        for host in hosts:
            backend.wait_for(host, "healthy")

    # hv3 loses the manager as well as the storage: its agent is frozen and its cable is out.
    lab.isolate("hv3")
    hv3.courier.run("pkill -STOP -f '[s]towage-agent run'")
    tank.wait_for(hv3, "unknown", "host_offline")
    assert tank.edit(config={"nfs_version": "4.1"}).status == 200
    storage.set_password("labuser", after)
    assert vault.edit(credentials={"password": after}).status == 200
    assert old.remove().status == 204
    for host in (hv1, hv2):
        assert SHOWN["4.1"] in options_of(host, tank.mount_dir)
        assert mounted(host, old.mount_dir) == ""
        assert vault.probe(host)["status"] == "healthy"

    lab.heal()
    hv3.courier.run("pkill -CONT -f '[s]towage-agent run'")
    healed_at = dt.datetime.now(dt.UTC)
    hv3.wait_online()

    def is_right() -> bool:
        cells = [backend.cell(hv3) for backend in (tank, vault, san)]
        return (
            all(cell["status"] == "healthy" for cell in cells)
            and cells[0]["observed_generation"] == 2
            and SHOWN["4.1"] in options_of(hv3, tank.mount_dir)
            and mounted(hv3, old.mount_dir) == ""
        )

    wait_until(is_right, "hv3 to be right", 60)
    took_s = (dt.datetime.now(dt.UTC) - healed_at).total_seconds()
    assert accounts.unaccounted(hv3, lab.api) == {}
    # A tenth of an operator's interval, and its jitter of a fifth.
    assert took_s < 1.2 * _RECONCILE_S, took_s
