"""Which driver serves which kind: the only place on a host that knows."""

from agent.drivers.base import Commands, Driver, Workers
from agent.drivers.local_file import LocalFile
from agent.probes import PROBE_TIMEOUT_S


def drivers(commands: Commands, workers: Workers, *, probe_timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Driver]:
    """A driver for every kind of schemas.kinds.KINDS, by the kind's name; one line a kind."""
    return {
        "local_file": LocalFile(workers, probe_timeout_s),
    }
