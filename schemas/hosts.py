"""Hosts: what the API shows of them, how a backend selects them, how one enrols."""

import datetime as dt
import enum
from typing import Annotated

import msgspec
from msgspec import Meta

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1


class HostState(enum.StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"
    REVOKED = "revoked"


class HostSelector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hosts a backend is for: any of the names (`*` = every host) that also bear all the labels."""

    names: tuple[str, ...] = ("*",)
    labels: dict[str, str] = {}

    def matches(self, name: str, labels: dict[str, str]) -> bool:
        return ("*" in self.names or name in self.names) and self.labels.items() <= labels.items()


class Host(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    state: HostState
    kinds: tuple[str, ...]
    labels: dict[str, str]
    agent_version: str
    joined_at: dt.datetime
    last_seen_at: dt.datetime | None


class AgentFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says of itself at enrolment and on every sync; its labels count at enrolment alone."""

    agent_version: Annotated[str, Meta(max_length=64, pattern=r"^[ -~]*$")]
    protocol_min: Annotated[int, Meta(ge=0, le=10_000)] = PROTOCOL_MIN
    protocol_max: Annotated[int, Meta(ge=0, le=10_000)] = PROTOCOL_MAX
    kinds: Annotated[tuple[Annotated[str, Meta(max_length=64, pattern=r"^[a-z0-9_]*$")], ...], Meta(max_length=64)] = ()
    labels: dict[str, str] = {}


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/enrol. `signature` (hex) is the identity nkey's Ed25519 signature over `enrol_message`."""

    token: str
    name: str
    identity_key: str
    sealing_key: str
    facts: AgentFacts
    signature: str


class EnrolReply(msgspec.Struct, frozen=True, kw_only=True):
    """The same answer again for the same identity key within ten minutes: a lost reply costs nothing."""

    host_id: str
    fleet_id: str
    user_jwt: str
    nats_urls: tuple[str, ...]
    manager_key: str


def enrol_message(token: str, name: str, identity_key: str, sealing_key: str) -> bytes:
    """The bytes that the newcomer signs, so that nobody enrols a key he does not hold."""
    return "\n".join(("stowage-enrol-v1", token, name, identity_key, sealing_key)).encode()
