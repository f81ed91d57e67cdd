"""Which driver serves which kind: the only place on a host that knows."""

from agent.drivers.base import Commands, Driver, Workers
from agent.drivers.iscsi_lvm import IscsiLvm
from agent.drivers.local_file import LocalFile
from agent.drivers.nfs import Nfs
from agent.drivers.smb import Smb
from agent.iscsiadm import Iscsi
from agent.lvm import Lvm
from agent.probes import PROBE_TIMEOUT_S
from agent.scsi import Disks


def drivers(commands: Commands, workers: Workers, *, probe_timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Driver]:
    """A driver for every kind of schemas.kinds.KINDS, by the kind's name; one line a kind."""
    return {
        "local_file": LocalFile(workers, probe_timeout_s),
        "nfs": Nfs(commands, workers, probe_timeout_s),
        "smb": Smb(commands, workers, probe_timeout_s),
        "iscsi_lvm": IscsiLvm(commands, workers, Iscsi(commands), Disks(workers), Lvm(commands), probe_timeout_s),
    }
