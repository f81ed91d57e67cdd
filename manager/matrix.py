"""The matrix: every backend against every live host, from memory."""

import asyncio

from manager.registry import Registry
from schemas.backends import HostObservation, Matrix, MatrixCell, MatrixHost, MatrixRow
from schemas.hosts import HostState

#: Backends between two turns of everybody else: one of 60 hosts takes some 0.2 ms.
_AT_ONCE = 25


class Matrices:
    """Reads the registry and nothing else."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def whole(self) -> Matrix:
        """Hosts as of the beginning; a backend that goes meanwhile is left out."""
        hosts = [host for host in self._registry.hosts() if host.state is not HostState.REVOKED]
        rows: list[MatrixRow] = []
        for number, backend_id in enumerate(sorted(self._registry.backend_ids())):
            if number and number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            found = self._registry.with_cells(backend_id)
            if found is None:
                continue
            backend, seen = found
            cells = {observation.host_id: cell_of(observation) for observation in seen}
            rows.append(
                MatrixRow(
                    backend_id=backend.id, backend=backend.name, cells=tuple(cells.get(host.id) for host in hosts)
                )
            )
        shown = tuple(MatrixHost(id=host.id, name=host.name, state=host.state) for host in hosts)
        return Matrix(hosts=shown, rows=tuple(rows))


def cell_of(seen: HostObservation) -> MatrixCell:
    return MatrixCell(status=seen.status, code=seen.code, detail=seen.detail, latency_ms=seen.latency_ms)
