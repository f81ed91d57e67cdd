"""Edits that meet: each other, volumes, a host that alone holds the credentials, a database restored from yesterday."""

import asyncio
import dataclasses
from typing import Any

from manager.sagas.catalog import SAGAS
from manager.sagas.steps import Run
from tests.fleet.fleet import Fleet, until
from tests.sagas.scenarios import SMB, backends


async def _two_hosts(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    await stowage.agent("hv2")


async def test_last_holder_of_credentials_holds_on_until_the_newly_chosen_host_has_them(stowage: Fleet) -> None:
    await _two_hosts(stowage)
    added = await stowage.api("POST", "/v1/storage_backends", {**SMB, "hosts": {"names": ["hv1"]}})
    assert added.status == 201, added
    assert stowage.credentials("hv2") == {}

    moved = await stowage.api("PATCH", "/v1/storage_backends/office", {"hosts": {"names": ["hv2"]}})

    assert moved.status == 200, moved
    backend_id = added.body["id"]

    async def has_moved() -> bool:
        return (
            set(stowage.world.mounts("hv2")) == {backend_id}
            and not stowage.world.mounts("hv1")
            and stowage.credentials("hv2") == {backend_id: [1]}
            and stowage.credentials("hv1") == {}
        )

    await until(has_moved, "the backend and its credentials to move from hv1 to hv2")


async def test_edit_under_an_older_version_is_refused_also_when_the_version_changed_during_the_trial(
    stowage: Fleet,
) -> None:
    await _two_hosts(stowage)
    added = await stowage.api("POST", "/v1/storage_backends", SMB)
    in_trial, go_on = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        in_trial.set()
        await go_on.wait()

    whole = SAGAS["backend.edit"]
    trial = next(step for step in whole.steps if step.name == "try")

    async def do(run: Run) -> dict[str, Any]:
        assert trial.do is not None
        output = await trial.do(run)
        await pause()
        return output

    steps = tuple(dataclasses.replace(step, do=do) if step is trial else step for step in whole.steps)
    edit = dataclasses.replace(whole, steps=steps)
    other = await stowage.manager("manager-2", definitions={**SAGAS, "backend.edit": edit})

    async def has_heard_the_hosts() -> bool:
        hosts = (await other("GET", "/v1/hosts")).body["items"]
        return len(hosts) == 2 and all(host["state"] == "online" for host in hosts)

    await until(has_heard_the_hosts, "the second manager to hear both hosts")
    slow = asyncio.create_task(
        other(
            "PATCH",
            "/v1/storage_backends/office",
            {"config": {"server": "nas2"}, "labels": {"who": "first"}},
            If_Match=f'"{added.body["version"]}"',
        )
    )
    await asyncio.wait_for(in_trial.wait(), 20)
    quick = await stowage.api("PATCH", "/v1/storage_backends/office", {"labels": {"who": "second"}})
    assert quick.status == 200, quick
    go_on.set()
    refused = await slow
    assert (refused.status, refused.body["code"]) == (412, "stale_version"), refused
    shown = (await stowage.api("GET", "/v1/storage_backends/office")).body
    assert (shown["labels"], shown["config"]["server"]) == ({"who": "second"}, "nas")
    await stowage.settle()


async def test_host_is_not_taken_from_a_backend_with_live_volumes(stowage: Fleet) -> None:
    await _two_hosts(stowage)
    added = await stowage.api("POST", "/v1/storage_backends", SMB)
    await stowage.sql(
        "INSERT INTO volume (id, name, backend_id, size_bytes, worker_id)"
        " SELECT gen_random_uuid(), 'disk', $1, 512, id FROM host WHERE name = 'hv2'",
        added.body["id"],
    )
    refused = await stowage.api("PATCH", "/v1/storage_backends/office", {"hosts": {"names": ["hv1"]}})
    assert (refused.status, refused.body["code"]) == (409, "backend_in_use"), refused
    assert "hv2" in refused.body["detail"]
    assert [blocker["name"] for blocker in refused.body["blockers"]] == ["disk"]


async def test_agents_that_saw_higher_fences_than_a_restored_database_are_outbid(stowage: Fleet) -> None:
    await _two_hosts(stowage)
    assert (await stowage.api("POST", "/v1/storage_backends", SMB)).status == 201
    await stowage.settle()
    # What a restore of yesterday's database does to the sequence, seen from the agents.
    await stowage.sql("SELECT setval('fence_seq', 5)")

    edited = await stowage.api("PATCH", "/v1/storage_backends/office", {"config": {"server": "nas2"}})

    assert edited.status == 200, edited
    await stowage.settle()
    assert (await backends(stowage))["office"][1] == "nas2"


async def test_revocation_that_is_asked_for_again_is_told_to_the_bus_again(stowage: Fleet) -> None:
    await _two_hosts(stowage)
    host_id = (await stowage.api("GET", "/v1/hosts/hv2")).body["id"]
    for _ in range(2):
        assert (await stowage.api("DELETE", f"/v1/hosts/{host_id}")).status == 204
    left = await stowage.sql("SELECT type FROM event WHERE type = 'host.left'")
    assert len(left) == 1
    assert (await stowage.api("GET", f"/v1/hosts/{host_id}")).body["state"] == "revoked"
