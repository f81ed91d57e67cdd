"""Every NATS subject of Stowage; `<host>` is a host id, never a name, so a reused name inherits nothing."""

import enum
import re

from schemas.ids import HostId, is_id

STREAM = "STOWAGE_EVENTS"
EVENTS = "stowage.event.>"
ALL_UPLINKS = "stowage.up.*.*"
COMMANDS = "stowage.cmd.>"
UPLINK_QUEUE = "managers"
AGENT_INBOX = "_INBOX_a"
MANAGER_INBOX = "_INBOX_m"

_COMMAND = re.compile(r"stowage\.cmd\.([^.*>\s]+)\.[^.*>\s]+")
#: The word in a manager's inbox under which hosts answer, each below its own id.
_ANSWERS = "h"
_UPLINK = re.compile(r"stowage\.up\.([0-9a-f-]{36})\.([a-z]+)")


class Uplink(enum.StrEnum):
    """What an agent may say unasked. sync and renew are requests and get a reply; the others get none."""

    BEAT = "beat"
    STATUS = "status"
    SYNC = "sync"
    RENEW = "renew"


_UPLINK_KINDS = frozenset(kind.value for kind in Uplink)


def command(host: HostId, verb: str) -> str:
    return f"stowage.cmd.{host}.{verb}"


def commands_of(host: HostId) -> str:
    return f"stowage.cmd.{host}.*"


def uplink(host: HostId, kind: Uplink) -> str:
    return f"stowage.up.{host}.{kind}"


def parse_uplink(subject: str) -> tuple[HostId, Uplink] | None:
    """Who speaks, by the subject that the server let it publish on; None for what we do not know."""
    found = _UPLINK.fullmatch(subject)
    if found is None or not is_id(found[1]) or found[2] not in _UPLINK_KINDS:
        return None
    return HostId(found[1]), Uplink(found[2])


def event(event_type: str, subject_id: str) -> str:
    return f"stowage.event.{event_type}.{subject_id}"


def agent_inbox(host: HostId) -> str:
    return f"{AGENT_INBOX}.{host}"


def manager_inbox(replica: str) -> str:
    return f"{MANAGER_INBOX}.{replica}"


def commanded(subject: str) -> HostId | None:
    """The host that a command's subject names; None for any other subject."""
    found = _COMMAND.fullmatch(subject)
    return HostId(found[1]) if found else None


def answers(inbox: str, host: str, mark: str) -> str:
    """The reply subject of one command: only the host that it names may publish there (manager/bus_auth.py).

    Not by the server's `allow_responses`: that lets an agent publish to whatever reply subject a message names which it
    receives, and it may send itself a message that names another host's command (seen 2026-11-25).
    """
    return f"{inbox}.{_ANSWERS}.{host}.{mark}"


#: Where an agent may answer commands; `{host}` for the host id, or the word of a template.
ANSWERS_OF = f"{MANAGER_INBOX}.*.{_ANSWERS}.{{host}}.*"


def is_own_inbox(reply: str, host: HostId) -> bool:
    """Whether a reply subject that an agent named lies in that agent's own inbox.

    An agent could name another host's command subject there, and whoever answers with wider rights
    would send it (BUS.md 3.1), so every answer to an uplink passes this check.
    """
    return reply.startswith(agent_inbox(host) + ".") and not any(c in reply for c in "*> \t\r\n")
