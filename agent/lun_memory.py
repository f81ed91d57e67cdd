"""What a backend remembers of its LUN across kill -9, in its workspace; and what the other backends of the host do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.drivers.base import Workspace
from agent.errors import AgentFault
from agent.memory import Memory
from agent.portals import Node, Portal
from schemas.faults import FaultCode

_NAME = "iscsi"
#: What stays true of the LUN, whichever way leads to it.
_PROVEN = ("wwid", "vg_uuid", "probe_uuid", "marked", "making")


class LunMemory:
    """Words by name. Each is written before the act that it speaks of, but for those that only a proof makes true.

    iqn, host, port, tpgt, iface, lun: the node and LUN that this backend uses. portal: as configured.
    credential_version: of the credentials that the target has accepted. login_version: of those that the session was made with.
    active_vg: UUID of the VG whose volumes may be active here by our doing.
    locked_vg: name of the VG, where it is a shared one whose lockspace we start.
    wwid, vg_uuid, probe_uuid: LUN, VG and probe LV, proven by a write.
    making: what an add that has not come to its end has made in the VG. marked: "yes" where this host wrote our tags.
    """

    def __init__(self, folder: Path) -> None:
        self._memory = Memory(folder, _NAME)

    def read(self) -> dict[str, str]:
        return self._memory.read()

    def add(self, **words: str) -> None:
        """These words are remembered besides the others; an empty one is forgotten."""
        merged = {**self.read(), **words}
        self._memory.write(**{name: word for name, word in merged.items() if word})

    def forget_way(self) -> None:
        """Only what stays true of the LUN is remembered."""
        self._memory.write(**{name: word for name, word in self.read().items() if name in _PROVEN})

    def forget(self) -> None:
        self._memory.forget()


@dataclass(frozen=True)
class Neighbour:
    """Another backend of this host: the node and LUN it uses, and the VGs that may be active for it."""

    node: Node
    lun: int
    vg_uuids: frozenset[str]


def node_words(node: Node) -> dict[str, str]:
    return {
        "iqn": node.iqn,
        "host": node.portal.host,
        "port": str(node.portal.port),
        "tpgt": str(node.tpgt),
        "iface": node.iface,
    }


def node_of(words: Mapping[str, str]) -> Node:
    return Node(words["iqn"], Portal(words["host"], int(words["port"])), int(words["tpgt"]), words["iface"])


def remembered_node(words: Mapping[str, str]) -> Node | None:
    return node_of(words) if words.get("iqn") else None


def active_vgs(words: Mapping[str, str]) -> frozenset[str]:
    """UUIDs of the VGs whose volumes are ours to deactivate."""
    return frozenset(filter(None, (words.get("vg_uuid"), words.get("active_vg"))))


def neighbours(space: Workspace) -> tuple[Neighbour, ...]:
    """The other backends of this host that use a LUN; their workspaces lie beside ours. Raises AgentFault when that cannot be read."""
    found: list[Neighbour] = []
    try:
        for folder in sorted(space.dir.parent.iterdir()):
            words = LunMemory(folder).read() if folder != space.dir and folder.is_dir() else {}
            node = remembered_node(words)
            if node is not None:
                found.append(Neighbour(node, int(words["lun"]), active_vgs(words)))
    except (OSError, KeyError, ValueError) as error:
        raise AgentFault.of(
            FaultCode.FAILED, "what other backends of this host use cannot be read", is_retryable=True
        ) from error
    return tuple(found)
