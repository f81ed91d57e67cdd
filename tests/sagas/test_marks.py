"""Who takes the marks from the storage when a backend goes, and how the caller learns what stays on it."""

from collections.abc import Mapping

import pytest

from tests.fleet.fleet import Fleet, until
from tests.fleet.impostor import in_the_place_of, silence
from tests.sagas.scenarios import SAN, SMB

BACKENDS = "/v1/storage_backends"
LOCAL = {"name": "local", "kind": "local_file", "config": {"root_dir": "/vms"}}
ONLY_HV2 = {"hosts": {"names": ["hv2"]}}


@pytest.fixture
async def two(stowage: Fleet) -> Fleet:
    await stowage.manager(host_silent_s=1.0, command_ttl_s=2.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    return stowage


async def add(fleet: Fleet, body: Mapping[str, object]) -> None:
    answer = await fleet.api("POST", BACKENDS, body)
    assert answer.status == 201, answer


async def remove(fleet: Fleet, name: str) -> list[str]:
    """The hosts that have not let go yet."""
    answer = await fleet.api("DELETE", f"{BACKENDS}/{name}", Prefer="return=representation, wait=20")
    assert answer.status == 200, answer
    return list(answer.body["pending_hosts"])


async def until_offline(fleet: Fleet, *names: str) -> None:
    for name in names:

        async def is_offline(name: str = name) -> bool:
            return bool((await fleet.api("GET", f"/v1/hosts/{name}")).body["state"] == "offline")

        await until(is_offline, f"{name} to be offline")


async def until_released(fleet: Fleet, *expected: tuple[str, bool]) -> None:
    async def is_so() -> bool:
        return sorted(fleet.world.marks) == sorted(expected)

    await until(is_so, f"{expected}, not {fleet.world.marks}")


async def test_removal_has_one_host_take_the_marks_and_the_others_let_go(two: Fleet) -> None:
    await add(two, SAN)
    assert await remove(two, "san") == []
    assert two.world.marks == [("hv1", True), ("hv2", False)]


async def test_removal_of_what_may_be_marked_at_once_has_every_host_take_the_marks(two: Fleet) -> None:
    await add(two, SMB)
    await remove(two, "office")
    assert sorted(two.world.marks) == [("hv1", True), ("hv2", True)]


async def test_removal_has_another_host_take_the_marks_when_the_one_that_made_them_is_not_chosen_any_more(
    two: Fleet,
) -> None:
    await add(two, SAN)
    assert (await two.api("PATCH", f"{BACKENDS}/san", ONLY_HV2)).status == 200
    await until_released(two, ("hv1", False))
    assert await remove(two, "san") == []
    assert two.world.marks == [("hv1", False), ("hv2", True)]


async def test_removal_has_the_next_host_take_the_marks_when_one_fails(two: Fleet) -> None:
    await add(two, SAN)
    two.world.fail("hv1", "release")
    assert await remove(two, "san") == ["hv1"]
    assert two.world.marks == [("hv2", True)]


async def test_removal_has_no_second_host_take_the_marks_while_one_is_silent(two: Fleet) -> None:
    """It may be writing the metadata still."""
    await add(two, SAN)
    async with in_the_place_of(two, "hv1", silence) as frozen:
        assert await remove(two, "san") == ["hv1"]
        assert "release" in frozen.heard
    assert two.world.marks == [("hv2", False)]


async def test_hosts_that_return_after_a_removal_take_the_marks_one_of_them(two: Fleet) -> None:
    await add(two, SAN)
    for name in ("hv1", "hv2"):
        await two.stop_agent(name)
    await until_offline(two, "hv1", "hv2")
    assert await remove(two, "san") == ["hv1", "hv2"]
    for name in ("hv2", "hv1"):
        await two.start_agent(name)
    await until_released(two, ("hv1", True), ("hv2", False))


async def test_undone_add_has_the_host_that_may_have_made_the_marks_take_them(two: Fleet) -> None:
    two.world.fail("hv2", "attach")
    answer = await two.api("POST", BACKENDS, SAN)
    assert answer.status == 422, answer
    assert two.world.marks == [("hv1", True), ("hv2", False)]


async def test_host_that_may_have_made_the_marks_of_an_undone_add_takes_them_later(two: Fleet) -> None:
    """Though another one that has not confirmed joined before it."""
    await two.stop_agent("hv1")
    await until_offline(two, "hv1")
    two.world.fail("hv2", "attach")
    two.world.fail("hv2", "release")
    answer = await two.api("POST", BACKENDS, SAN)
    assert answer.status == 422, answer
    assert two.world.marks == []
    two.world.script.clear()
    await two.api("POST", BACKENDS, {**SMB, "hosts": {"names": ["hv2"]}})
    await until_released(two, ("hv2", True))


async def test_undone_add_says_what_is_left_and_where(two: Fleet) -> None:
    two.world.fail("hv2", "attach")
    answer = await two.api("POST", BACKENDS, SMB)
    assert answer.status == 422, answer
    operation = (await two.api("GET", answer.body["operation"])).body
    assert (operation["state"], operation["result"]) == (
        "failed",
        {"left": {"hv1": ["the data"], "hv2": ["the data"]}, "pending_hosts": []},
    )


async def test_folder_of_a_host_that_is_not_chosen_any_more_loses_its_marker(two: Fleet) -> None:
    """Each host has a folder of its own, so nobody else would ever take the marker from this one."""
    await add(two, LOCAL)
    assert (await two.api("PATCH", f"{BACKENDS}/local", ONLY_HV2)).status == 200
    await until_released(two, ("hv1", True))


async def test_folder_of_a_host_that_was_away_when_it_was_not_chosen_any_more_loses_its_marker(two: Fleet) -> None:
    await add(two, LOCAL)
    await two.stop_agent("hv1")
    await until_offline(two, "hv1")
    assert (await two.api("PATCH", f"{BACKENDS}/local", ONLY_HV2)).status == 200
    assert await remove(two, "local") == ["hv1"]
    await two.start_agent("hv1")
    await until_released(two, ("hv1", True), ("hv2", True))
