"""A shared volume group: lvmlockd and sanlock, where the operator has chosen them. A lockspace takes its time to start."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tests.lab.backends import Backends
from tests.lab.conftest import Ran
from tests.lab.host import Host
from tests.lab.iscsi import KIND, PROBE_LV, iscsi, mapped, sessions
from tests.lab.lab import Lab
from tests.lab.storage import ADDRESS, Storage

pytestmark = pytest.mark.slow

_LOCKD = "--config global/use_lvmlockd=1"


@contextmanager
def lock_manager(host: Host) -> Generator[None]:
    """sanlock and lvmlockd run on the host, under a host_id of its own. -o: seconds; with the default of 10 all of it takes minutes."""
    number = host.machine.seat.number
    conf = "/etc/lvm/lvmlocal.conf"
    host.courier.run(f"cp {conf} {conf}.away; sed -i 's/^local {{/local {{\\n\\thost_id = {number}/' {conf}")
    host.courier.run(
        "mkdir -p /run/sanlock; sanlock daemon -w 0; while ! sanlock client status >/dev/null 2>&1; do sleep 0.1; done;"
        " lvmlockd -g sanlock -o 2; while ! lvmlockctl --info >/dev/null 2>&1; do sleep 0.1; done"
    )
    try:
        yield
    finally:
        # With a lockspace that is in use neither ends when it is asked to.
        host.courier.run(
            "pkill lvmlockd; pkill sanlock; for _ in $(seq 50); do pidof sanlock lvmlockd >/dev/null || break; sleep 0.1; done;"
            f" pkill -9 lvmlockd; pkill -9 sanlock; mv {conf}.away {conf}"
        )


@pytest.fixture
def locked(hv1: Host, hv2: Host) -> Generator[None]:
    with lock_manager(hv1), lock_manager(hv2):
        yield


@pytest.fixture
def iqn(storage: Storage) -> str:
    """A target with a LUN that has room for 256 MiB of leases."""
    iqn = storage.target()
    storage.lun(iqn, mib=640)
    return iqn


def make_shared_group(host: Host, iqn: str) -> None:
    """As an operator does it; afterwards the host has let go of it."""
    host.log_in(iqn, ADDRESS)
    disk = host.courier.run("ls /sys/block | grep ^sd").out.strip()
    host.courier.run(f"vgcreate {_LOCKD} --shared vg_vms /dev/{disk}", timeout_s=180)
    # The mapping with the leases closes a moment after sanlock has left.
    host.courier.run(
        f"vgchange {_LOCKD} --lockstop vg_vms; while dmsetup ls | grep -q lvmlock; do sleep 0.1; done", timeout_s=120
    )
    host.log_out(iqn)


def lockspaces(host: Host) -> list[str]:
    """The VGs whose lockspace is started, by lvmlockd."""
    return [
        line.split()[1] for line in host.courier.run("lvmlockctl --info").out.splitlines() if line.startswith("VG ")
    ]


def test_a_shared_volume_group_is_used_under_its_locks(
    backends: Backends, hv1: Host, hv2: Host, iqn: str, locked: None, ran: Ran
) -> None:
    make_shared_group(hv1, iqn)

    # It takes longer than a caller is kept waiting; he asks for the operation then.
    backend = backends.add(KIND, iscsi(iqn), on=(hv1, hv2))

    for host in (hv1, hv2):
        assert backend.probe(host)["status"] == "healthy"
        assert lockspaces(host) == ["vg_vms"]
        # Shared, so both hosts have it; an exclusive lock would have kept the second out.
        assert " LV sh " in host.courier.run("lvmlockctl --info").out
        activations = [c.argv for c in ran(host) if c.argv[-1] == f"vg_vms/{PROBE_LV}" and c.code == 0]
        assert activations and all("sy" in argv for argv in activations)
        changes = [c.argv for c in ran(host) if c.argv[0] in ("lvcreate", "lvchange", "vgchange")]
        assert all("global/use_lvmlockd=1" in argv[argv.index("--config") + 1] for argv in changes)

    assert backend.remove().status == 204

    for host in (hv1, hv2):
        assert lockspaces(host) == []
        assert sessions(host) == []
        assert mapped(host) == []


def test_a_host_without_lvmlockd_says_what_to_start(backends: Backends, hv1: Host, hv2: Host, iqn: str) -> None:
    with lock_manager(hv1):
        make_shared_group(hv1, iqn)

    fault = backends.refused("tool_missing", KIND, iscsi(iqn), on=(hv2,))

    assert "lvmlockd" in fault["detail"]
    assert "Start sanlock and lvmlockd" in fault["remedy"]
    assert sessions(hv2) == []


def test_a_shared_volume_group_is_never_taken_for_a_blank_lun(
    lab: Lab, backends: Backends, hv1: Host, hv2: Host, iqn: str
) -> None:
    """LVM without locks leaves such a VG out of its reports, and says nothing of it."""
    with lock_manager(hv1):
        make_shared_group(hv1, iqn)
    backend = backends.add(KIND, iscsi(iqn, vg_name="vg_other"), on=(hv2,))

    found = lab.api.get(f"{backend.path}/inspection")

    assert (found["is_blank"], found["foreign_vg"]) == (False, "vg_vms")
