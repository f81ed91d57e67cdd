"""Portals: as they are written, and which of a target's is the one that was meant."""

from typing import Any

import pytest

from agent.errors import AgentFault
from agent.portals import Node, Portal, choose_node
from schemas.faults import FaultCode

IQN = "iqn.2026-01.org.example:vms"
#: A target in a storage network and in a network for management.
HOMES = (
    Node("iqn.2026-01.org.example:other", Portal("10.0.0.9", 3260), 1),
    Node(IQN, Portal("192.168.1.9", 3260), 1),
    Node(IQN, Portal("10.0.0.9", 3260), 1),
    Node(IQN, Portal("fd00:0:0::9", 3260), 1),
)


@pytest.mark.parametrize(
    ("text", "portal", "shown"),
    [
        ("10.0.0.9", Portal("10.0.0.9", 3260), "10.0.0.9:3260"),
        ("10.0.0.9:3261", Portal("10.0.0.9", 3261), "10.0.0.9:3261"),
        ("san.example:860", Portal("san.example", 860), "san.example:860"),
        ("[fd00::9]", Portal("fd00::9", 3260), "[fd00::9]:3260"),
        ("[fd00::9]:860", Portal("fd00::9", 860), "[fd00::9]:860"),
    ],
)
def test_portal_is_parsed_and_shown(text: str, portal: Portal, shown: str) -> None:
    assert Portal.parse(text) == portal
    assert str(portal) == shown


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr("asyncio.BaseEventLoop.getaddrinfo", resolve)


@pytest.mark.parametrize(
    ("configured", "chosen"),
    [
        ("10.0.0.9", Portal("10.0.0.9", 3260)),
        ("192.168.1.9", Portal("192.168.1.9", 3260)),
        ("[fd00::9]", Portal("fd00:0:0::9", 3260)),
        # Behind NAT the target knows neither this address nor this port.
        ("203.0.113.5", Portal("203.0.113.5", 3260)),
        ("10.0.0.9:13260", Portal("10.0.0.9", 13260)),
    ],
)
async def test_choose_node_of_a_target_with_several_homes_stays_at_the_configured_address(
    configured: str, chosen: Portal
) -> None:
    assert await choose_node(IQN, Portal.parse(configured), HOMES) == Node(IQN, chosen, 1)


async def test_choose_node_by_name_takes_the_address_that_the_target_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "198.51.100.1", "10.0.0.9")
    assert (await choose_node(IQN, Portal("san.example", 3260), HOMES)).portal == Portal("10.0.0.9", 3260)


async def test_choose_node_by_name_that_the_target_does_not_know_takes_its_first_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve_to(monkeypatch, "198.51.100.1", "198.51.100.2")
    assert (await choose_node(IQN, Portal("san.example", 3260), HOMES)).portal == Portal("198.51.100.1", 3260)


async def test_choose_node_by_a_name_that_does_not_resolve_is_name_not_resolved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: Any, **__: Any) -> list[Any]:
        raise OSError("Name or service not known")

    monkeypatch.setattr("asyncio.BaseEventLoop.getaddrinfo", fail)
    with pytest.raises(AgentFault) as caught:
        await choose_node(IQN, Portal("san.example", 3260), HOMES)
    assert caught.value.fault.code is FaultCode.NAME_NOT_RESOLVED


async def test_choose_node_of_an_address_that_no_portal_group_claims_names_those_that_exist() -> None:
    offered = (*HOMES, Node(IQN, Portal("172.16.0.9", 3260), 2))
    with pytest.raises(AgentFault) as caught:
        await choose_node(IQN, Portal("203.0.113.5", 3260), offered)
    fault = caught.value.fault
    assert fault.code is FaultCode.TARGET_NOT_FOUND and "172.16.0.9:3260" in fault.detail


async def test_choose_node_of_a_target_that_is_not_offered_is_target_not_found() -> None:
    with pytest.raises(AgentFault) as caught:
        await choose_node("iqn.2026-01.org.example:nope", Portal("10.0.0.9", 3260), HOMES)
    assert caught.value.fault.code is FaultCode.TARGET_NOT_FOUND
