"""What a server offers, asked by a host with credentials that nobody keeps."""

from typing import Any

import msgspec
import pytest

from schemas.agent_rpc import Failed
from schemas.bus import Message
from schemas.faults import FaultCode, fault
from tests.fleet.fleet import Answer, Fleet
from tests.fleet.impostor import in_the_place_of, verb_of
from tests.fleet.test_canary import Canaries, Spy

_SMB = {"kind": "smb", "config": {"server": "nas"}}


async def _discover(fleet: Fleet, body: dict[str, Any], password: str = "") -> Answer:
    credentials = {"credentials": {"username": "svc", "password": password}} if password else {}
    return await fleet.api("POST", "/v1/hosts/hv1/discover", {**body, **credentials})


async def test_discovery_with_an_accepted_password_lists_the_shares_and_the_bus_hears_no_secret(stowage: Fleet) -> None:
    canaries = Canaries()
    right, wrong = canaries.new("accepted"), canaries.new("refused")
    stowage.world.passwords.add(right)
    await stowage.manager()
    await stowage.agent("hv1")
    spy = await Spy.enter(stowage)

    found = await _discover(stowage, _SMB, right)
    assert (found.status, found.body) == (200, {"items": [{"title": "vms", "config": {"share": "vms"}}]})
    refused = await _discover(stowage, _SMB, wrong)
    assert (refused.status, refused.body["code"]) == (422, "probe_failed"), refused
    (told,) = refused.body["faults"]
    assert (told["host"], told["code"]) == ("hv1", "auth_failed") and told["remedy"]

    await spy.leave()
    assert b"discover" in spy.heard and b"nas" in spy.heard, "the search does not find what is there"
    assert canaries.found_in(bytes(spy.heard)) == []
    assert canaries.found_in(msgspec.json.encode([found.body, refused.body])) == []
    assert stowage.credentials("hv1") == {}
    await stowage.settle()


@pytest.mark.parametrize(
    ("body", "config"),
    [
        (_SMB, {"share": "vms"}),
        ({"kind": "nfs", "config": {"server": "nas"}}, {"export": "/tank/vms"}),
        ({"kind": "iscsi_lvm", "config": {"portal": "10.0.0.9"}}, {"target_iqn": "iqn.2026-01.org.example:vms"}),
    ],
    ids=["smb", "nfs", "iscsi_lvm"],
)
async def test_discovery_without_credentials_needs_none(
    stowage: Fleet, body: dict[str, Any], config: dict[str, str]
) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    found = await _discover(stowage, body)
    assert (found.status, found.body["items"][0]["config"]) == (200, config), found


async def test_discovery_with_credentials_by_an_older_agent_fails_by_name_and_lists_nothing(stowage: Fleet) -> None:
    """It refuses the field that it does not know; that it is refused is in tests/agent/test_rpc.py."""
    await stowage.manager()
    await stowage.agent("hv1")
    unread = Failed(fault=fault(FaultCode.FAILED, "this host's agent cannot read the command", "Bring it up to date"))

    async def answer(message: Message) -> bytes:
        if verb_of(message) == "credential_nonce":
            return b'{"outcome": "ok", "result": {"nonce": "MDEyMzQ1Njc4OWFiY2RlZg=="}}'
        assert b'"sealed"' in message.data
        return msgspec.json.encode(unread)

    async with in_the_place_of(stowage, "hv1", answer) as old:
        found = await _discover(stowage, _SMB, "right")
    assert (found.status, found.body["code"]) == (422, "probe_failed"), found
    assert found.body["faults"][0]["remedy"] == "Bring it up to date"
    assert [verb for verb in old.heard if verb != "nudge"] == ["credential_nonce", "discover"]
