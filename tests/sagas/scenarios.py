"""How to bring each saga about. A saga without a scenario fails the test that counts them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from manager.sagas.catalog import SAGAS
from manager.sagas.steps import SagaDef
from tests.fleet.fleet import Answer, Api, Fleet
from tests.fleet.world import WWID

SMB = {
    "name": "office",
    "kind": "smb",
    "config": {"server": "nas", "share": "vms"},
    "credentials": {"username": "svc", "password": "right"},
}
SAN = {
    "name": "san",
    "kind": "iscsi_lvm",
    "config": {"portal": "10.0.0.9:3260", "target_iqn": "iqn.2026-01.org.example:vms", "vg_name": "vg_vms"},
    "credentials": {"username": "chap", "password": "right"},
}


@dataclass(frozen=True)
class Scenario:
    """arrange: what must be there before. ask: the request that starts the saga. names: of backends, when it is complete
    and when it is as if nothing had been asked."""

    arrange: Callable[[Fleet], Awaitable[None]]
    ask: Callable[[Api], Awaitable[Answer]]
    when_complete: dict[str, Any]
    when_undone: dict[str, Any]


async def _nothing(_: Fleet) -> None:
    return


async def _smb(fleet: Fleet) -> None:
    answer = await fleet.api("POST", "/v1/storage_backends", SMB)
    assert answer.status == 201, answer


async def _blank_san(fleet: Fleet) -> None:
    fleet.world.blank.add("iqn.2026-01.org.example:vms")
    answer = await fleet.api("POST", "/v1/storage_backends", SAN)
    assert (answer.status, answer.body["state"]) == (201, "needs_initialization"), answer


async def _add(api: Api) -> Answer:
    return await api("POST", "/v1/storage_backends", SMB)


async def _edit(api: Api) -> Answer:
    body = {"config": {"server": "nas2"}, "credentials": {"password": "newer"}, "labels": {"tier": "gold"}}
    return await api("PATCH", "/v1/storage_backends/office", body)


async def _rotatable(fleet: Fleet) -> None:
    fleet.world.passwords.add("newer")
    await _smb(fleet)


async def _delete(api: Api) -> Answer:
    return await api("DELETE", "/v1/storage_backends/office")


async def _initialize(api: Api) -> Answer:
    return await api("POST", "/v1/storage_backends/san/initialize", {"confirm": "san", "wwid": WWID})


SCENARIOS: dict[str, Scenario] = {
    "backend.add": Scenario(_nothing, _add, {"office": ("ready", "nas", 1)}, {}),
    "backend.edit": Scenario(_rotatable, _edit, {"office": ("ready", "nas2", 2)}, {"office": ("ready", "nas", 1)}),
    "backend.delete": Scenario(_smb, _delete, {}, {"office": ("ready", "nas", 1)}),
    "backend.initialize": Scenario(
        _blank_san, _initialize, {"san": ("ready", None, 1)}, {"san": ("needs_initialization", None, 1)}
    ),
}


async def backends(fleet: Fleet) -> dict[str, Any]:
    """name -> (state, server, credential version) of the live backends."""
    rows = await fleet.sql(
        "SELECT name, state, config::jsonb ->> 'server' AS server, credential_version FROM backend WHERE deleted_at IS NULL"
    )
    return {r["name"]: (r["state"], r["server"], r["credential_version"]) for r in rows}


def steps_before_pivot(saga: SagaDef) -> list[str]:
    """Names of the steps whose failure is undone; the first runs inside the start and has no failure of its own."""
    return [step.name for step in saga.steps[1 : saga.pivot_index + 1]]


def lines_when_complete(saga: SagaDef) -> list[str]:
    return [f"{when} {saga.kind} {step.name} done" for step in saga.steps for when in ("before", "after")]


def lines_when_failed(saga: SagaDef, failed: str) -> list[str]:
    """The journal lines from the failure on."""
    names = [step.name for step in saga.steps]
    undone = names[: names.index(failed) + 1][::-1]
    words = [f"{failed} failed", *(f"{name} undone" for name in undone)]
    return [f"{when} {saga.kind} {word}" for word in words for when in ("before", "after")]


ALL = list(SAGAS.values())
