"""A host whose agent is stopped with its connection open: nobody waits for it longer than need be, and it catches up."""

import dataclasses

import pytest

from manager.sagas.catalog import SAGAS
from tests.fleet.fleet import Fleet, until
from tests.fleet.impostor import in_the_place_of, silence
from tests.sagas.scenarios import SMB

pytestmark = pytest.mark.slow

BACKENDS = "/v1/storage_backends"


async def _until_offline(fleet: Fleet, name: str) -> None:
    async def is_offline() -> bool:
        return bool((await fleet.api("GET", f"/v1/hosts/{name}")).body["state"] == "offline")

    await until(is_offline, f"{name} to be offline")


async def test_removal_does_not_ask_a_host_that_is_known_to_be_silent(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=1.5)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    assert (await stowage.api("POST", BACKENDS, SMB)).status == 201
    async with in_the_place_of(stowage, "hv2", silence) as frozen:
        await frozen.freeze()
        await _until_offline(stowage, "hv2")
        removed = await stowage.api("DELETE", f"{BACKENDS}/office", Prefer="return=representation, wait=5")
        assert (removed.status, removed.body["pending_hosts"]) == (200, ["hv2"]), removed
        assert "release" not in frozen.heard


async def test_removal_asks_a_host_that_falls_silent_meanwhile_once(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=1.0, command_ttl_s=2.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    assert (await stowage.api("POST", BACKENDS, SMB)).status == 201
    async with in_the_place_of(stowage, "hv2", silence) as frozen:
        await frozen.freeze()
        removed = await stowage.api("DELETE", f"{BACKENDS}/office", Prefer="return=representation")
        assert (removed.status, removed.body["pending_hosts"]) == (200, ["hv2"]), removed
        assert frozen.heard.count("release") <= 1


async def test_add_on_a_frozen_host_alone_is_unknown_once_its_budget_is_spent(stowage: Fleet) -> None:
    """However long a command may take: one that begins late in the budget ends with it."""
    quick = {kind: dataclasses.replace(saga, budget_s=2.0) for kind, saga in SAGAS.items()}
    await stowage.manager(definitions=quick, host_silent_s=1.5, command_ttl_s=20.0)
    await stowage.agent("hv1")
    async with in_the_place_of(stowage, "hv1", silence) as frozen:
        await frozen.freeze()
        added = await stowage.api("POST", BACKENDS, SMB, Prefer="wait=15")
    assert (added.status, added.body["code"]) == (504, "agent_timeout"), added
    assert [(fault["host"], fault["code"]) for fault in added.body["faults"]] == [("hv1", "timed_out")]
    assert "the host's agent waits" in added.body["faults"][0]["remedy"]


async def test_host_that_is_heard_again_is_told_to_look_what_it_has_missed(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=1.0)
    await stowage.agent("hv1")
    async with in_the_place_of(stowage, "hv1", silence) as frozen:
        await frozen.freeze()
        await _until_offline(stowage, "hv1")
        frozen.heard.clear()
        await frozen.thaw()

        async def is_nudged() -> bool:
            return "nudge" in frozen.heard

        await until(is_nudged, "the host to be nudged")
        assert frozen.heard.count("nudge") == 1


async def test_edit_without_any_host_online_names_each(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=1.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    assert (await stowage.api("POST", BACKENDS, SMB)).status == 201
    await stowage.stop_agent("hv1")
    await stowage.stop_agent("hv2")
    await _until_offline(stowage, "hv1")
    await _until_offline(stowage, "hv2")
    edited = await stowage.api("PATCH", f"{BACKENDS}/office", {"config": {"server": "nas2"}})
    assert (edited.status, edited.body["code"]) == (503, "no_agent"), edited
    assert {(fault["host"], fault["code"]) for fault in edited.body["faults"]} == {
        ("hv1", "host_offline"),
        ("hv2", "host_offline"),
    }


async def test_question_to_a_frozen_host_names_it_and_says_where_to_look(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=30.0, command_ttl_s=0.5)
    await stowage.agent("hv1")
    async with in_the_place_of(stowage, "hv1", silence) as frozen:
        await frozen.freeze()
        found = await stowage.api(
            "POST", "/v1/hosts/hv1/discover", {"kind": "nfs", "config": {"server": "nas", "export": "/tank"}}
        )
    assert (found.status, found.body["code"]) == (504, "agent_timeout"), found
    (fault,) = found.body["faults"]
    assert (fault["host"], fault["code"]) == ("hv1", "timed_out") and "the host's agent waits" in fault["remedy"]
