"""Which host may initialize a LUN, and what the others are asked before it does."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import pytest

from manager.sagas.catalog import SAGAS
from manager.sagas.steps import SagaDef
from schemas.bus import Message
from tests.fleet.fleet import Answer, Fleet, until
from tests.fleet.impostor import in_the_place_of, silence, verb_of
from tests.fleet.world import WWID
from tests.sagas.scenarios import SAN, backends

INITIALIZE = "/v1/storage_backends/san/initialize"
UNTOUCHED = {"san": ("needs_initialization", None, 1)}


def quick(budget_s: float = 2.0) -> Mapping[str, SagaDef]:
    return {kind: dataclasses.replace(saga, budget_s=budget_s) for kind, saga in SAGAS.items()}


async def initialize(fleet: Fleet, *, force: bool = False) -> Answer:
    return await fleet.api("POST", INITIALIZE, {"confirm": "san", "wwid": WWID, "force": force}, Prefer="wait=20")


async def add_blank_san(fleet: Fleet) -> list[str]:
    """The names of hosts that have begun an initialization, as they do."""
    fleet.world.blank.add("iqn.2026-01.org.example:vms")
    answer = await fleet.api("POST", "/v1/storage_backends", SAN)
    assert (answer.status, answer.body["state"]) == (201, "needs_initialization"), answer
    begun: list[str] = []
    for name in fleet.states:
        fleet.world.script[name, "initialize"] = partial(begun.append, name)
    return begun


async def test_add_of_a_blank_lun_is_shown_as_such_at_once(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    await add_blank_san(stowage)

    cells = (await stowage.api("GET", "/v1/storage_backends/san/hosts")).body["hosts"]

    assert [(cell["host"], cell["code"]) for cell in cells] == [("hv1", "needs_initialization")]
    assert "Inspect the backend" in cells[0]["remedy"]


async def until_state(fleet: Fleet, name: str, state: str) -> None:
    async def is_so() -> bool:
        return bool((await fleet.api("GET", f"/v1/hosts/{name}")).body["state"] == state)

    await until(is_so, f"{name} to be {state}")


def faults_of(answer: Answer) -> list[tuple[str, str]]:
    return [(each["host"], each["code"]) for each in answer.body["faults"]]


async def test_lun_is_for_no_other_host_while_the_one_that_was_asked_has_not_answered(stowage: Fleet) -> None:
    """The host that is back goes first, though another one joined before it."""
    await stowage.manager(definitions=quick(), host_silent_s=1.5)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    begun = await add_blank_san(stowage)
    await stowage.stop_agent("hv1")
    await until_state(stowage, "hv1", "offline")
    async with in_the_place_of(stowage, "hv2", silence) as frozen:
        unanswered = await initialize(stowage)
        assert (unanswered.status, unanswered.body["code"]) == (504, "agent_timeout"), unanswered
        assert "initialize" in frozen.heard
        await frozen.freeze()
        await stowage.start_agent("hv1")
        await until_state(stowage, "hv1", "online")
        await until_state(stowage, "hv2", "offline")

        refused = await initialize(stowage)

        assert (refused.status, refused.body["code"]) == (409, "wrong_state"), refused
        assert "wait for hv2, or revoke it" in refused.body["detail"]
    assert begun == []
    await stowage.start_agent("hv2")
    await until_state(stowage, "hv2", "online")
    done = await initialize(stowage)
    assert done.status == 200, done
    assert begun == ["hv2"]


async def test_lun_is_for_no_other_host_when_the_one_that_was_asked_went_offline(stowage: Fleet) -> None:
    """`no_agent` and `agent_timeout` say the same of a host that froze."""
    await stowage.manager(definitions=quick(6.0), host_silent_s=1.0, command_ttl_s=1.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    begun = await add_blank_san(stowage)

    async def freeze(message: Message) -> None:
        if verb_of(message) == "initialize":
            await frozen.freeze()

    async with in_the_place_of(stowage, "hv1", freeze) as frozen:
        unanswered = await initialize(stowage)
        assert (unanswered.status, unanswered.body["code"]) == (503, "no_agent"), unanswered
        refused = await initialize(stowage)
        assert (refused.status, refused.body["code"]) == (409, "wrong_state"), refused
        assert "wait for hv1, or revoke it" in refused.body["detail"]
        assert (await stowage.api("DELETE", "/v1/hosts/hv1")).status == 204
        done = await initialize(stowage)
        assert done.status == 200, done
    assert begun == ["hv2"]
    del stowage.states["hv1"]


async def test_lun_is_for_any_host_once_the_one_that_was_asked_has_answered_with_a_fault(stowage: Fleet) -> None:
    await stowage.manager(definitions=quick(), host_silent_s=1.5)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    begun = await add_blank_san(stowage)
    stowage.world.fail("hv1", "initialize")
    failed = await initialize(stowage)
    assert (failed.status, faults_of(failed)) == (422, [("hv1", "io_error")]), failed
    await stowage.stop_agent("hv1")
    await until_state(stowage, "hv1", "offline")
    done = await initialize(stowage)
    assert done.status == 200, done
    assert begun == ["hv2"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("said", "code"), [(True, "in_use"), (None, "kind_unsupported")])
async def test_lun_that_another_host_uses_or_may_use_is_not_initialized_with_force_either(
    stowage: Fleet, said: bool | None, code: str, force: bool
) -> None:
    await stowage.manager(host_silent_s=30.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    begun = await add_blank_san(stowage)
    stowage.world.using["hv2"] = said
    refused = await initialize(stowage, force=force)
    assert (refused.status, refused.body["code"], faults_of(refused)) == (422, "probe_failed", [("hv2", code)])
    assert "hv2" in refused.body["detail"]
    assert ("vg_other" in refused.body["faults"][0]["detail"]) == bool(said)
    assert begun == [] and await backends(stowage) == UNTOUCHED


async def test_lun_that_is_another_one_on_another_host_is_not_initialized(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=30.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    begun = await add_blank_san(stowage)
    # With what no database takes: an agent is root on its host, and not here.
    stowage.world.wwids["hv2"] = "naa.\0other"
    refused = await initialize(stowage, force=True)
    assert (refused.status, faults_of(refused)) == (422, [("hv2", "wrong_device")]), refused
    assert begun == [] and await backends(stowage) == UNTOUCHED


async def test_lun_is_not_initialized_while_another_host_that_was_online_says_nothing_of_it(stowage: Fleet) -> None:
    """Not once it counts as offline either: a host that froze with the LUN mounted has it mounted still."""
    await stowage.manager(definitions=quick(5.0), host_silent_s=1.0, command_ttl_s=1.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    begun = await add_blank_san(stowage)

    async def freeze(_: Message) -> None:
        await frozen.freeze()

    async with in_the_place_of(stowage, "hv2", freeze) as frozen:
        refused = await initialize(stowage, force=True)
        assert (refused.status, faults_of(refused)) == (503, [("hv2", "host_offline")]), refused
        assert "hv2" in refused.body["detail"]
        assert begun == [] and await backends(stowage) == UNTOUCHED

        done = await initialize(stowage)

        assert done.status == 200, "a host that is offline at the start is not asked"
    assert begun == ["hv1"]
