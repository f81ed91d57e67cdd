"""Which hosts a backend is for, and which of them can be asked now."""

from collections.abc import Sequence

from manager.agents import Agents, offline_fault
from manager.errors import Refused
from manager.registry import Registry
from manager.store.backends import BackendRow
from manager.store.hosts import HostRow
from schemas.hosts import HostSelector
from schemas.problems import FieldError, ProblemCode


class HostChoice:
    """Reads the registry; every refusal names the hosts and changes nothing."""

    def __init__(self, registry: Registry, agents: Agents) -> None:
        self._registry = registry
        self._agents = agents

    def by_selector(self, selector: HostSelector) -> Sequence[HostRow]:
        """The live hosts of a selector. Raises Refused when a name in it is nobody's, or nobody bears the labels."""
        live = self._registry.live_hosts()
        names = {host.name for host in live}
        unknown = [(place, name) for place, name in enumerate(selector.names) if name != "*" and name not in names]
        if unknown:
            raise Refused.for_fields(
                [
                    FieldError(pointer=f"/hosts/names/{place}", detail=f"there is no host {name}")
                    for place, name in unknown
                ]
            )
        chosen = [host for host in live if selector.matches(host.name, host.labels)]
        if not chosen and live:
            raise Refused.for_fields([FieldError(pointer="/hosts", detail="no host has such a name and such labels")])
        return chosen

    def require_online(self, chosen: Sequence[HostRow], name: str) -> None:
        """Raises Refused unless one of the hosts chosen for the backend of that name can be asked."""
        if not self._agents.is_connected:
            raise Refused.because(
                ProblemCode.NO_AGENT,
                "this manager has no connection to the bus now, so it reaches no host; nothing was changed",
                retry_after_s=5,
            )
        if not any(self._registry.is_online(host.id) for host in chosen):
            raise Refused.because(
                ProblemCode.NO_AGENT,
                f"none of the hosts chosen for {name} is online; nothing was changed",
                faults=tuple(offline_fault(host.name) for host in chosen),
                retry_after_s=5,
            )

    def first_online(self, row: BackendRow) -> HostRow:
        """One host to ask about the backend. Raises Refused when none can be asked."""
        chosen = self._registry.chosen(row)
        self.require_online(chosen, row.name)
        return next(host for host in chosen if self._registry.is_online(host.id))
