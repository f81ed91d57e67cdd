"""What an edit, a switch of the default and a removal say: in answers and in events."""

import asyncio
import dataclasses
import json
from typing import Any

import asyncpg
import pytest

from manager.sagas.catalog import SAGAS
from manager.sagas.steps import Run
from schemas.faults import FaultCode
from tests.fleet.fleet import Fleet
from tests.sagas.scenarios import SMB

BACKENDS = "/v1/storage_backends"
_FOLDER = {"name": "fast", "kind": "local_file", "config": {"root_dir": "/srv/fast", "require_mountpoint": True}}
_VOLUME = (
    "INSERT INTO volume (id, name, backend_id, size_bytes, worker_id)"
    " SELECT gen_random_uuid(), 'disk', $1::uuid, 512, id FROM host ORDER BY name DESC LIMIT 1"
)


async def _added(fleet: Fleet, body: dict[str, Any]) -> dict[str, Any]:
    answer = await fleet.api("POST", BACKENDS, body)
    assert answer.status == 201, answer
    added: dict[str, Any] = answer.body
    return added


async def _event(fleet: Fleet, type_: str) -> dict[str, Any]:
    row = (await fleet.sql("SELECT data FROM event WHERE type = $1 ORDER BY n DESC LIMIT 1", type_))[0]
    data: dict[str, Any] = json.loads(row["data"])
    return data


async def test_null_in_a_config_is_the_fields_default_and_never_moves_a_fixed_field(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    await _added(stowage, _FOLDER)
    edited = await stowage.api("PATCH", f"{BACKENDS}/fast", {"config": {"require_mountpoint": None}})
    assert (edited.status, edited.body["config"]["require_mountpoint"]) == (200, False), edited
    refused = await stowage.api("PATCH", f"{BACKENDS}/fast", {"config": {"root_dir": None}})
    assert [error["pointer"] for error in refused.body["errors"]] == ["/config/root_dir"]
    await _added(stowage, {**SMB, "config": {"server": "nas", "share": "vms", "subdir": "a"}})
    refused = await stowage.api("PATCH", f"{BACKENDS}/office", {"config": {"subdir": None}})
    assert (refused.status, refused.body["errors"][0]["pointer"]) == (400, "/config/subdir")


async def test_trial_that_fails_on_the_first_host_says_that_the_others_were_not_tried(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    await _added(stowage, SMB)
    stowage.world.fail("hv1", "trial", FaultCode.SHARE_NOT_FOUND)
    edited = await stowage.api("PATCH", f"{BACKENDS}/office", {"config": {"server": "nas2"}})
    assert edited.status == 422
    assert "could not be used on hv1, tried first of 2 hosts" in edited.body["detail"]


async def test_hosts_are_not_taken_from_volumes_that_came_while_the_edit_was_tried(stowage: Fleet) -> None:
    whole = SAGAS["backend.edit"]
    trial = next(step for step in whole.steps if step.name == "try")
    in_trial, go_on = asyncio.Event(), asyncio.Event()

    async def do(run: Run) -> dict[str, Any]:
        assert trial.do is not None
        output = await trial.do(run)
        in_trial.set()
        await go_on.wait()
        return output

    steps = tuple(dataclasses.replace(step, do=do) if step is trial else step for step in whole.steps)
    await stowage.manager(definitions={**SAGAS, "backend.edit": dataclasses.replace(whole, steps=steps)})
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    added = await _added(stowage, SMB)
    body = {"config": {"server": "nas2"}, "hosts": {"names": ["hv1"]}}
    editing = asyncio.create_task(stowage.api("PATCH", f"{BACKENDS}/office", body))
    await in_trial.wait()
    await stowage.sql(_VOLUME, added["id"])
    go_on.set()
    edited = await editing
    assert (edited.status, edited.body["code"]) == (409, "backend_in_use"), edited
    shown = (await stowage.api("GET", f"{BACKENDS}/office")).body
    assert (shown["hosts"]["names"], shown["config"]["server"]) == (["*"], "nas")


async def test_default_with_volumes_names_everything_that_keeps_it(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    added = await _added(stowage, {**SMB, "is_default": True})
    await stowage.sql(_VOLUME, added["id"])
    refused = await stowage.api("DELETE", f"{BACKENDS}/office")
    assert (refused.status, refused.body["code"]) == (409, "backend_is_default")
    assert [blocker["type"] for blocker in refused.body["blockers"]] == ["default", "volume"]


async def test_volume_cannot_come_back_to_a_backend_that_takes_none(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    added = await _added(stowage, SMB)
    await stowage.sql(_VOLUME, added["id"])
    await stowage.sql("UPDATE volume SET deleted_at = now()")
    assert (await stowage.api("PATCH", f"{BACKENDS}/office", {"state": "draining"})).status == 200
    with pytest.raises(asyncpg.CheckViolationError, match="takes no new volumes"):
        await stowage.sql("UPDATE volume SET deleted_at = NULL")


async def test_events_show_the_backend_before_and_after(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    first = await _added(stowage, {**SMB, "is_default": True})
    await _added(stowage, _FOLDER)
    await stowage.api("PATCH", f"{BACKENDS}/fast", {"is_default": True})
    changed = await _event(stowage, "backend.default_changed")
    assert (changed["before"]["is_default"], changed["after"]["is_default"]) == (False, True)
    assert (changed["after"]["name"], changed["previous_default"]) == ("fast", first["id"])
    await stowage.api("DELETE", f"{BACKENDS}/office")
    removed = await _event(stowage, "backend.deleted")
    shown = removed["before"]
    assert (shown["state"], shown["config"], removed["after"]) == ("ready", first["config"], None)
