"""A target's portals: as the operator writes them, as the target reports them, and which of them is the configured one."""

from collections.abc import Iterable
from dataclasses import dataclass

from agent.errors import AgentFault
from agent.reach import addresses_of, bare_host, is_ipv6, normalized
from schemas.faults import FaultCode

DEFAULT_PORT = 3260
#: Our own iface of open-iscsi (README, 5.1): its records and sessions are ours alone, those of `default` are the operator's.
IFACE = "stowage"


@dataclass(frozen=True)
class Portal:
    """host: a name or address without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Portal":
        """ADDRESS, ADDRESS:PORT or [IPv6]:PORT, as the schema lets through."""
        address, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            return cls(bare_host(text), DEFAULT_PORT)
        return cls(bare_host(address), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if is_ipv6(self.host) else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Node:
    """A target's portal as seen through an iface of this host: what open-iscsi keeps one record for.

    tpgt: the target's portal group tag, as discovery says.
    """

    iqn: str
    portal: Portal
    tpgt: int
    iface: str = IFACE

    def argv(self, *operation: str) -> list[str]:
        """Always with -I: without it iscsiadm takes the records and sessions of every iface, the operator's too."""
        where = f"{self.portal},{self.tpgt}"
        return ["iscsiadm", "-m", "node", "-T", self.iqn, "-p", where, "-I", self.iface, *operation]


async def choose_node(iqn: str, portal: Portal, offered: Iterable[Node]) -> Node:
    """The target's node at the configured portal, compared by address; never another of its portals, which may lie in
    a network that was not meant. An address that the target does not know (NAT) is used as it was given.

    offered: what the portal offers. Raises AgentFault target_not_found, name_not_resolved.
    """
    nodes = [node for node in offered if node.iqn == iqn]
    if not nodes:
        raise AgentFault.of(FaultCode.TARGET_NOT_FOUND, f"{portal} does not offer {iqn} to this host")
    addresses = await addresses_of(portal.host)
    for address in addresses:
        for node in nodes:
            if node.portal.port == portal.port and normalized(node.portal.host) == address:
                return node
    tags = {node.tpgt for node in nodes}
    if len(tags) > 1:
        shown = ", ".join(dict.fromkeys(str(node.portal) for node in nodes))
        raise AgentFault.of(
            FaultCode.TARGET_NOT_FOUND,
            f"{iqn} has several portal groups ({shown}), and none of them is at {portal}",
            "Give one of these portals in the backend's config",
        )
    return Node(iqn, Portal(addresses[0], portal.port), tags.pop())
