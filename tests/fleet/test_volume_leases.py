"""A VG's metadata is changed by one host at a time, and a thin pool is used by one: across operations, hosts and silence."""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent.journal import Journal
from manager import leftovers
from manager.sagas import volume_moves
from manager.sagas.catalog import SAGAS
from manager.sagas.steps import Lanes
from schemas.faults import FaultCode
from tests.fleet.fleet import Api, Fleet, until
from tests.fleet.volume_calls import (
    BACKENDS,
    VOLUMES,
    attach,
    begun,
    content,
    done,
    ended,
    refused,
    san,
    share,
    two_hosts,
    until_offline,
    volume,
)
from tests.fleet.world import Gate
from tests.sagas.scenarios import MIB

_HOSTS = ("hv1", "hv2")
#: Seconds that a change of the metadata takes in the pretend world.
_CHANGE_S = 0.01
#: The sagas with a budget that a test can wait for.
_QUICK = {kind: dataclasses.replace(saga, budget_s=1.0) for kind, saga in SAGAS.items()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_moves, "LOOK_MS", 100)
    monkeypatch.setattr(volume_moves, "_GIVE_UP", 1)
    monkeypatch.setattr(leftovers, "LOOK_S", 0.2)
    monkeypatch.setattr(leftovers, "REST_S", 0.2)


class _Watched:
    """Which hosts are in a verb that changes the metadata, and how often there were two at once."""

    def __init__(self, stowage: Fleet) -> None:
        self._busy: list[str] = []
        self.done: list[str] = []
        self.clashes = 0
        for host in _HOSTS:
            for verb in ("make", "erase", "resize"):
                stowage.world.waits[host, verb] = self.by(host)

    def by(self, host: str) -> Callable[[], Awaitable[None]]:
        async def change() -> None:
            self._busy.append(host)
            await asyncio.sleep(_CHANGE_S)
            self.clashes += len(set(self._busy)) > 1
            self._busy.remove(host)
            self.done.append(host)

        return change


async def _until_known(api: Api, backend: str) -> None:
    """Another replica knows the backend and that both hosts can use it."""

    async def is_known() -> bool:
        answer = await api("GET", f"{BACKENDS}/{backend}")
        # Its hosts' reports come by another way than its row, and may be there first.
        return answer.status == 200 and answer.body["state"] == "ready" and answer.body["host_summary"]["healthy"] == 2

    await until(is_known, f"{backend} to be known")


def _new(name: str, host: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "size_bytes": MIB, "backend": "san", "host": host, **more}


async def test_many_changes_at_once_by_two_hosts_of_one_vg_all_succeed_one_host_at_a_time(stowage: Fleet) -> None:
    apis = await two_hosts(stowage), await stowage.manager("manager-2")
    api = apis[0]
    await san(api)
    await _until_known(apis[1], "san")
    watched = _Watched(stowage)

    async def change(number: int, *request: Any) -> None:
        """Whole, however long it takes on a busy machine."""
        chosen = apis[number // 2 % 2]
        operation = await ended(chosen, await begun(chosen, *request))
        assert operation["state"] == "succeeded", operation

    await asyncio.gather(*(change(n, "POST", VOLUMES, _new(f"v{n}", _HOSTS[n % 2])) for n in range(20)))
    sizes = {each["size_bytes"] for each in (await api("GET", VOLUMES)).body["items"]}
    assert sizes == {4 * MIB}, "whole extents"
    await asyncio.gather(
        *(change(n, "DELETE", f"{VOLUMES}/v{n}") for n in range(10)),
        *(change(n, "POST", f"{VOLUMES}/v{n}/resize", {"size_bytes": 8 * MIB}) for n in range(10, 15)),
    )
    assert (watched.clashes, set(watched.done)) == (0, set(_HOSTS))
    assert len(watched.done) == 35
    assert await stowage.sql("SELECT FROM lease") == []
    await stowage.settle()


async def test_saga_whose_fence_is_outdated_while_it_stands_in_line_keeps_its_place(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_line: list[str] = []
    turn = Lanes.turn

    def noted(lanes: Lanes, place: str, patience_s: float) -> contextlib.AbstractAsyncContextManager[bool]:
        in_line.append(place)
        return turn(lanes, place, patience_s)

    monkeypatch.setattr(Lanes, "turn", noted)
    api = await two_hosts(stowage)
    await san(api)
    watched, gate = _Watched(stowage), Gate()

    async def make_after_the_gate() -> None:
        await gate.go_through()
        await watched.by("hv1")()

    stowage.world.waits["hv1", "make"] = make_after_the_gate
    operations: list[str] = []
    for number, host in enumerate(("hv1", "hv1", "hv2")):
        operations.append(await begun(api, "POST", VOLUMES, _new(f"v{number}", host)))

        async def stands_in_line(count: int = number + 1) -> bool:
            return len(in_line) == count

        await until(stands_in_line, f"v{number} to stand in line")
    await gate.reached.wait()
    # As a sync does, when newer sagas than those in line have come.
    journal = Journal(stowage.states["hv1"].journal_file)
    journal.raise_floor(journal.floor() + 1000, keep=frozenset())
    journal.close()
    gate.open()
    assert [(await ended(api, each))["state"] for each in operations] == ["succeeded"] * 3
    assert watched.done == ["hv1", "hv1", "hv2"]
    await stowage.settle()


async def test_changes_that_stand_in_line_for_longer_than_their_budget_all_succeed(stowage: Fleet) -> None:
    api = await two_hosts(stowage, definitions=_QUICK)
    await san(api)
    for host in _HOSTS:
        # Six of them are twice a budget.
        stowage.world.waits[host, "make"] = functools.partial(asyncio.sleep, 0.35)

    made = await asyncio.gather(*(api("POST", VOLUMES, _new(f"v{number}", _HOSTS[number % 2])) for number in range(6)))

    assert [answer.status for answer in made] == [201] * 6
    await stowage.settle()


async def test_host_that_fell_silent_in_a_change_keeps_the_others_out_until_it_has_answered(stowage: Fleet) -> None:
    api = await two_hosts(stowage, definitions=_QUICK, command_ttl_s=0.3, host_silent_s=30.0)
    await san(api)
    with stowage.world.gate("hv1", "make"):
        silent = await ended(api, await begun(api, "POST", VOLUMES, _new("web", "hv1")))
        assert (silent["state"], silent["error"]["code"]) == ("failed", "agent_timeout")
        # Its operation is over, and hv1 may be in lvcreate all the same.
        kept_out = await api("POST", VOLUMES, _new("db", "hv2"))
        words = "one host at a time may change the storage of san: hv1 is at it, or has not answered yet"
        assert refused(kept_out, 409, "wrong_state") == words
        assert [row["role"] for row in await stowage.sql("SELECT role FROM volume")] == ["transient"]

    async def is_free() -> bool:
        return (await api("POST", VOLUMES, _new("db", "hv2"))).status == 201

    await until(is_free, "the host that answers again to free the others")
    await stowage.settle()
    assert [row["name"] for row in await stowage.sql("SELECT name FROM volume WHERE deleted_at IS NULL")] == ["db"]


async def test_host_that_fell_silent_in_a_resize_keeps_the_others_out_until_it_is_revoked(stowage: Fleet) -> None:
    api = await two_hosts(stowage, definitions=_QUICK, command_ttl_s=0.3, host_silent_s=1.0)
    await san(api)
    await volume(stowage, "web", "san")
    done(await attach(api, "web", "hv1"))
    with stowage.world.gate("hv1", "resize") as held:
        operation = await begun(api, "POST", f"{VOLUMES}/web/resize", {"size_bytes": 8 * MIB})
        await held.reached.wait()
        await stowage.stop_agent("hv1")
        assert (await ended(api, operation))["state"] == "failed"
    kept_out = await api("POST", VOLUMES, _new("db", "hv2"))
    assert "hv1 is at it, or has not answered yet" in refused(kept_out, 409, "wrong_state")
    done(await api("DELETE", "/v1/hosts/hv1"), 204)
    done(await api("POST", VOLUMES, _new("db", "hv2")), 201)

    async def is_free() -> bool:
        # What became of it is looked into first, by whoever can.
        return (await attach(api, "web", "hv2")).status == 200

    await until(is_free, "the other host to get the volume")
    [held] = done(await api("GET", f"{VOLUMES}/web"))["attachments"]
    assert (held["host"], held["epoch"]) == ("hv2", 2)


async def test_thin_pool_is_one_hosts_until_nothing_of_it_is_in_use_there(stowage: Fleet) -> None:
    api = await two_hosts(stowage, host_silent_s=1.5)
    await san(api, thin=True)
    await share(api, "fast")
    await volume(stowage, "web", "san")
    await volume(stowage, "db", "san")
    done(await attach(api, "web", "hv1"))
    second = refused(await attach(api, "db", "hv2"), 409, "wrong_state")
    assert "what lies on san can be worked on by hv1 alone now, not by hv2" in second
    explained = done(await api("GET", f"{VOLUMES}/db/explain?host=hv2"))["reasons"]
    assert explained == ["the thin pool of san is in use on hv1, and one host at a time can use it"]
    done(await attach(api, "db", "hv1"))
    done(await api("POST", f"{VOLUMES}/db/detach"))
    # Without a host named, the work goes to the one that has the pool.
    assert content(stowage, done(await api("POST", f"{VOLUMES}/db/clone", {"name": "copy"}), 201)) == "a"

    await stowage.stop_agent("hv1")
    await until_offline(api, "hv1")
    forced = refused(await api("POST", f"{VOLUMES}/web/detach", {"force": True}), 409, "wrong_state")
    assert "revoke it" in forced and "destroys" in forced
    done(await api("DELETE", "/v1/hosts/hv1"), 204)
    assert done(await attach(api, "web", "hv2"))["epoch"] == 2


@pytest.mark.parametrize("verb", ["clone", "migrate"])
async def test_thin_pool_that_is_read_by_one_host_is_not_given_to_another_meanwhile(stowage: Fleet, verb: str) -> None:
    """Its source is active there, wherever the copy goes."""
    api = await two_hosts(stowage, definitions={**SAGAS, "volume.attach": _QUICK["volume.attach"]})
    await san(api, thin=True)
    await share(api, "fast")
    await volume(stowage, "web", "san")
    await volume(stowage, "db", "san")
    body = {"backend": "fast", "host": "hv1"} | ({"name": "copy"} if verb == "clone" else {})
    with stowage.world.gate("hv1", "open") as held:
        operation = await begun(api, "POST", f"{VOLUMES}/web/{verb}", body)
        await held.reached.wait()
        other = await attach(api, "db", "hv2")
        assert "can be worked on by hv1 alone now" in refused(other, 409, "wrong_state")
        assert stowage.world.attached("hv2") == set()
    assert (await ended(api, operation))["state"] == "succeeded"
    done(await attach(api, "db", "hv2"))
    await stowage.settle()
    assert await stowage.sql("SELECT FROM lease") == []


async def test_thin_pool_is_not_taken_from_a_host_that_refuses_to_give_it_up(stowage: Fleet) -> None:
    """A second host that activates the pool destroys all that is in it."""
    api = await two_hosts(stowage)
    await san(api, thin=True)
    web = await volume(stowage, "web", "san")
    done(await attach(api, "web", "hv1"))
    stowage.world.in_use["hv1"].add(web["locator"])
    refused(await api("POST", f"{VOLUMES}/web/detach", {"force": True}), 409, "volume_in_use")
    assert [each["state"] for each in done(await api("GET", f"{VOLUMES}/web"))["attachments"]] == ["attached"]
    assert stowage.world.attached("hv1") == {web["locator"]}


async def test_host_that_fell_silent_in_an_attach_keeps_a_thin_pool_until_it_is_revoked(stowage: Fleet) -> None:
    """It may have the pool active, and nothing but its row, which is undone, would say so."""
    api = await two_hosts(stowage, definitions=_QUICK, command_ttl_s=0.3, host_silent_s=1.0)
    await san(api, thin=True)
    await volume(stowage, "web", "san")
    with stowage.world.gate("hv1", "volume_attach") as held:
        operation = await begun(api, "POST", f"{VOLUMES}/web/attach", {"host": "hv1"})
        await held.reached.wait()
        await stowage.stop_agent("hv1")
        assert (await ended(api, operation))["state"] == "failed"
    assert done(await api("GET", f"{VOLUMES}/web"))["attachments"] == []
    assert "hv1 alone" in refused(await attach(api, "web", "hv2"), 409, "wrong_state")
    explained = done(await api("GET", f"{VOLUMES}/web/explain?host=hv2"))["reasons"]
    assert explained == ["the thin pool of san is in use on hv1, and one host at a time can use it"]
    assert [row["until"] for row in await stowage.sql("SELECT until::text FROM lease")] == ["infinity"]
    done(await api("DELETE", "/v1/hosts/hv1"), 204)
    done(await attach(api, "web", "hv2"))
    done(await api("POST", f"{VOLUMES}/web/detach"))

    async def is_forgotten() -> bool:
        return await stowage.sql("SELECT FROM lease") == []

    await until(is_forgotten, "the lease of the host that is out for ever to be forgotten")


async def test_host_that_fell_silent_after_a_return_to_a_snapshot_keeps_the_others_out(stowage: Fleet) -> None:
    """Its volume has its new bytes, and it may be in lvremove of the old ones."""
    api = await two_hosts(stowage, definitions=_QUICK, command_ttl_s=0.3, host_silent_s=30.0)
    await san(api)
    await volume(stowage, "web", "san", host="hv1")
    done(await api("POST", f"{VOLUMES}/web/snapshots", {"name": "monday"}), 201)
    with stowage.world.gate("hv1", "erase") as one, stowage.world.gate("hv2", "erase") as other:
        operation = await begun(api, "POST", f"{VOLUMES}/web/snapshots/monday/revert")
        assert (await ended(api, operation))["state"] == "succeeded"
        silent, free = ("hv1", "hv2") if one.reached.is_set() else ("hv2", "hv1")
        assert one.reached.is_set() != other.reached.is_set()
        kept_out = await api("POST", VOLUMES, _new("db", free))
        assert f"{silent} is at it, or has not answered yet" in refused(kept_out, 409, "wrong_state")
    await stowage.settle()
    done(await api("POST", VOLUMES, _new("db", free)), 201)


async def test_host_that_fell_silent_in_a_resize_is_asked_before_another_gets_the_volume(stowage: Fleet) -> None:
    """It may come to cut or to blank what the other one has made of it."""
    api = await two_hosts(stowage, definitions=_QUICK, command_ttl_s=0.3, host_silent_s=1.0)
    await share(api, "fast")
    web = await volume(stowage, "web", "fast")
    with stowage.world.gate("hv1", "resize") as one, stowage.world.gate("hv2", "resize") as other:
        operation = await begun(api, "POST", f"{VOLUMES}/web/resize", {"size_bytes": 2 * MIB})

        async def is_at_it() -> bool:
            return one.reached.is_set() or other.reached.is_set()

        await until(is_at_it, "the volume to be resized")
        silent, free = ("hv1", "hv2") if one.reached.is_set() else ("hv2", "hv1")
        await stowage.stop_agent(silent)
        assert (await ended(api, operation))["state"] == "failed"
    kept = refused(await attach(api, "web", free), 409, "wrong_state")
    assert f"{silent} has not answered since a resize of web that failed" in kept
    told = done(await api("GET", f"{VOLUMES}/web/explain?host={free}"))["reasons"]
    assert told == [f"{silent} has not answered since a resize of it that failed"]
    again = await api("POST", f"{VOLUMES}/web/resize", {"size_bytes": 3 * MIB})
    assert f"{silent} cannot use fast now" in refused(again, 503, "no_agent")
    await stowage.start_agent(silent)

    async def is_free() -> bool:
        return (await attach(api, "web", free)).status == 200

    await until(is_free, "the host that answers again to free the volume")
    now = done(await api("GET", f"{VOLUMES}/web"))
    assert (now["size_bytes"], now["version"]) == (MIB, web["version"])
    await stowage.settle()


async def test_copy_that_is_cancelled_is_wiped_where_the_policy_says_so(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    backend = await san(api, wipe_on_delete="zero")
    web = await volume(stowage, "web", "san", host="hv1")
    wiped: list[str] = []

    async def note() -> None:
        wiped.append("once")

    for host in _HOSTS:
        stowage.world.waits[host, "wipe"] = note
    with stowage.world.gate("hv1", "settle") as one, stowage.world.gate("hv2", "settle") as other:
        operation = await begun(api, "POST", f"{VOLUMES}/web/clone", {"name": "copy"})

        async def is_filled() -> bool:
            return one.reached.is_set() or other.reached.is_set()

        await until(is_filled, "the copy to be filled")
        done(await api("POST", f"{operation}/cancel"))
    assert (await ended(api, operation))["state"] == "cancelled"
    await stowage.settle()
    assert set(stowage.world.contents(backend["id"])) == {web["locator"]}
    assert wiped == ["once"]


async def test_host_whose_tool_may_still_run_keeps_the_others_out_though_it_has_answered(stowage: Fleet) -> None:
    """A tool that waits in the kernel for the disk survives its deadline, and writes when that is back."""
    api = await two_hosts(stowage, definitions=_QUICK)
    await san(api)
    for verb in ("make", "erase"):
        stowage.world.fail("hv1", verb, FaultCode.TIMED_OUT)
    refused(await api("POST", VOLUMES, _new("web", "hv1")), 422, "probe_failed")
    kept_out = await api("POST", VOLUMES, _new("db", "hv2"))
    assert "hv1 is at it, or has not answered yet" in refused(kept_out, 409, "wrong_state")
    stowage.world.script.clear()

    async def is_free() -> bool:
        return (await api("POST", VOLUMES, _new("db", "hv2"))).status == 201

    await until(is_free, "the host that answers as it should to free the others")
    await stowage.settle()
