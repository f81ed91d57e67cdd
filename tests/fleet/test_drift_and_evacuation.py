"""What lies on a backend and should not, or the other way round; and a backend that is emptied and removed."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from manager import leftovers
from manager.sagas import steps, volume_moves
from schemas.faults import FaultCode
from schemas.ids import new_id
from schemas.volume_rpc import VolumeFormat, VolumeSpec
from tests.fleet.fleet import Fleet, until
from tests.fleet.volume_calls import (
    BACKENDS,
    VOLUMES,
    attach,
    begun,
    content,
    done,
    ended,
    folder,
    refused,
    share,
    two_hosts,
    until_offline,
    volume,
)
from tests.sagas.scenarios import MIB

_LOCATOR = "cd" * 16


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_moves, "LOOK_MS", 100)
    monkeypatch.setattr(steps, "_REPORT_EVERY_S", 0.05)
    monkeypatch.setattr(leftovers, "LOOK_S", 0.2)


def _strand(stowage: Fleet, backend_id: str, host: str = "") -> None:
    """Bytes that bear a locator, and that no row knows."""
    place = stowage.world.volumes_folder(backend_id) / host
    spec = VolumeSpec(locator=_LOCATOR, format=VolumeFormat.RAW, size_bytes=MIB)
    (place / f"{_LOCATOR}.json").write_bytes(msgspec.json.encode(spec))
    (place / f"{_LOCATOR}.data").write_bytes(b"s" * MIB)


def _names(lines: list[dict[str, Any]]) -> list[str]:
    return [line["name"] for line in lines]


async def test_drift_tells_what_is_missing_stray_foreign_or_of_another_size(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    backend = await share(api, "fast")
    path = f"{BACKENDS}/fast/drift"
    there, gone, short = [await volume(stowage, name, "fast") for name in ("there", "gone", "short")]
    place = stowage.world.volumes_folder(backend["id"])
    for suffix in ("data", "json"):
        (place / f"{gone['locator']}.{suffix}").unlink()
    (place / f"{short['locator']}.data").write_bytes(b"a" * 1000)
    (place / "notes.txt").write_text("somebody's")
    _strand(stowage, backend["id"])

    report = done(await api("GET", path))
    assert (_names(report["missing"]), _names(report["sizes"])) == (["gone"], ["short"])
    assert (report["sizes"][0]["size_bytes"], report["sizes"][0]["found_bytes"]) == (MIB, 1000)
    assert [line["locator"] for line in report["strays"]] == [_LOCATOR]
    assert (_names(report["foreign"]), report["unseen_hosts"]) == (["notes.txt"], [])
    assert content(stowage, there) == "a", "nothing was mended"

    taken = await api("POST", f"{path}/adopt", {"locator": _LOCATOR, "name": "there"})
    assert "named there" in refused(taken, 409, "name_taken")
    answers = await asyncio.gather(
        *(api("POST", f"{path}/adopt", {"locator": _LOCATOR, "name": name}) for name in ("one", "two"))
    )
    assert sorted(answer.status for answer in answers) == [201, 409]
    [lost] = [answer for answer in answers if answer.status == 409]
    assert "no stray" in refused(lost, 409, "wrong_state")
    [adopted] = [answer.body for answer in answers if answer.status == 201]
    assert (content(stowage, adopted), adopted["version"]) == ("s", 1)
    [event] = await stowage.sql("SELECT data FROM event WHERE type = 'volume.adopted'")
    assert json.loads(event["data"])["after"]["locator"] == _LOCATOR
    refused(await api("POST", f"{path}/delete", {"locator": gone["locator"]}), 409, "wrong_state")

    # What is missing is deleted from here; what is too short has its size again by a resize.
    done(await api("DELETE", f"{VOLUMES}/gone"), 204)
    done(await api("POST", f"{VOLUMES}/short/resize", {"size_bytes": 2 * MIB}))
    (place / "notes.txt").unlink()
    healed = done(await api("GET", path))
    assert all(not lines for lines in healed.values()), healed
    await stowage.settle()


async def test_drift_of_hosts_own_folders_names_the_host_and_who_could_not_be_asked(stowage: Fleet) -> None:
    api = await two_hosts(stowage, host_silent_s=1.5)
    backend = await folder(api, "own")
    await volume(stowage, "web", "own", host="hv1")
    for host in ("hv1", "hv2"):
        done(await api("POST", VOLUMES, {"name": host, "size_bytes": MIB, "backend": "own", "host": host}), 201)
    _strand(stowage, backend["id"], "hv2")
    report = done(await api("GET", f"{BACKENDS}/own/drift"))
    assert [(line["locator"], line["host"]) for line in report["strays"]] == [(_LOCATOR, "hv2")]
    assert report["missing"] == report["sizes"] == []
    wrong_host = {"locator": _LOCATOR, "host": "hv1", "name": "found"}
    refused(await api("POST", f"{BACKENDS}/own/drift/adopt", wrong_host), 404, "not_found")
    adopted = done(await api("POST", f"{BACKENDS}/own/drift/adopt", {"locator": _LOCATOR, "name": "found"}), 201)
    assert (adopted["host"], content(stowage, adopted)) == ("hv2", "s")

    await stowage.stop_agent("hv2")
    await until_offline(api, "hv2")
    report = done(await api("GET", f"{BACKENDS}/own/drift"))
    assert (report["missing"], report["unseen_hosts"]) == ([], ["hv2"])


async def test_evacuation_moves_what_it_can_tells_what_it_cannot_and_is_cancelled(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await share(api, "slow")
    path, order = f"{BACKENDS}/slow/evacuate", {"to": "fast"}
    await volume(stowage, "big", "slow", "b", size_bytes=2 * MIB)
    await volume(stowage, "web", "slow")
    await volume(stowage, "db", "slow", "d")
    done(await api("POST", f"{VOLUMES}/web/snapshots", {"name": "monday"}), 201)
    done(await attach(api, "db", "hv1"))
    assert "set its state to draining" in refused(await api("POST", path, order), 409, "wrong_state")
    done(await api("PATCH", f"{BACKENDS}/slow", {"state": "draining"}))

    plan = done(await api("POST", path, {**order, "dry_run": True}))
    assert (plan["to"], plan["total_bytes"]) == ("fast", 4 * MIB)
    assert _names(plan["items"]) == ["web", "monday", "big"], "the smallest first"
    assert [(line["name"], line["reason"]) for line in plan["blockers"]] == [
        ("db", "it is attached to hv1: detach it first")
    ]
    with stowage.world.gate("hv1", "settle") as one, stowage.world.gate("hv2", "settle") as other:
        operation = await begun(api, "POST", path, order)

        async def is_at_it() -> bool:
            return one.reached.is_set() or other.reached.is_set()

        await until(is_at_it, "the first to be copied")
        assert done(await api("POST", f"{operation}/cancel"))["is_cancelled"]
        assert (await ended(api, operation))["state"] == "cancelled"
    await stowage.settle()
    assert _names(done(await api("GET", f"{VOLUMES}?backend=slow"))["items"]) == ["big", "web", "db"]

    partly = await api("POST", path, order)
    assert "1 of the volumes of slow could not be moved; the others were" in refused(partly, 409, "backend_in_use")
    assert [(line["type"], line["name"], line["reason"]) for line in partly.body["blockers"]] == [
        ("volume", "db", "it is attached to hv1: detach it first")
    ]
    assert _names(done(await api("GET", f"{VOLUMES}?backend=slow"))["items"]) == ["db"]
    done(await api("POST", f"{VOLUMES}/db/detach"))
    assert done(await api("POST", path, order))["moved_bytes"] == MIB
    letters = {name: content(stowage, done(await api("GET", f"{VOLUMES}/{name}"))) for name in ("big", "web", "db")}
    assert letters == {"big": "b", "web": "a", "db": "d"}
    assert content(stowage, done(await api("GET", f"{VOLUMES}/web/snapshots/monday"))) == "a"
    done(await api("DELETE", f"{BACKENDS}/slow"), 204)
    await stowage.settle()


async def test_evacuation_waits_for_what_others_do_and_never_ends_it(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    for name in ("fast", "slow"):
        await share(api, name)
    await volume(stowage, "web", "slow")
    done(await api("PATCH", f"{BACKENDS}/slow", {"state": "draining"}))
    path, order = f"{BACKENDS}/slow/evacuate", {"to": "fast"}
    with stowage.world.gate("hv1", "blank") as one, stowage.world.gate("hv2", "blank") as other:
        resize = await begun(api, "POST", f"{VOLUMES}/web/resize", {"size_bytes": 2 * MIB})

        async def is_at_it() -> bool:
            return one.reached.is_set() or other.reached.is_set()

        await until(is_at_it, "the volume to be resized")
        ended_early = await begun(api, "POST", path, order)
        done(await api("POST", f"{ended_early}/cancel"))
        assert (await ended(api, ended_early))["state"] == "cancelled"
        assert not done(await api("GET", resize))["is_cancelled"]
        waits = await begun(api, "POST", path, order)
        assert done(await api("GET", waits))["state"] == "running"
    assert (await ended(api, resize))["state"] == "succeeded"
    over = await ended(api, waits)
    assert (over["state"], over["result"]["moved_bytes"]) == ("succeeded", 2 * MIB)
    moved = done(await api("GET", f"{VOLUMES}/web"))
    assert (moved["backend"], moved["size_bytes"]) == ("fast", 2 * MIB)
    done(await api("DELETE", f"{BACKENDS}/slow"), 204)


async def test_stray_that_somebody_has_open_is_refused_and_not_deleted_later(stowage: Fleet) -> None:
    """A database that is older than the storage takes the disk of a running VM for one."""
    api = await two_hosts(stowage)
    backend = await share(api, "fast")
    await volume(stowage, "web", "fast")
    _strand(stowage, backend["id"])
    order = ("POST", f"{BACKENDS}/fast/drift/delete", {"locator": _LOCATOR})
    for host in ("hv1", "hv2"):
        stowage.world.in_use[host].add(_LOCATOR)
    assert "nothing was deleted" in refused(await api(*order), 409, "volume_in_use")
    assert await stowage.sql("SELECT FROM volume WHERE locator = $1", _LOCATOR) == []
    assert _LOCATOR in stowage.world.contents(backend["id"])
    for host in ("hv1", "hv2"):
        stowage.world.in_use[host].clear()
    done(await api(*order), 204)
    assert _LOCATOR not in stowage.world.contents(backend["id"])
    [event] = await stowage.sql("SELECT actor, data FROM event WHERE type = 'volume.stray_deleted'")
    assert (event["actor"], json.loads(event["data"])["before"]["locator"]) == ("token:admin", _LOCATOR)


async def test_drift_of_hosts_own_folders_goes_without_the_host_that_cannot_tell(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    backend = await folder(api, "own")
    for host in ("hv1", "hv2"):
        done(await api("POST", VOLUMES, {"name": host, "size_bytes": MIB, "backend": "own", "host": host}), 201)
    _strand(stowage, backend["id"], "hv2")
    stowage.world.fail("hv1", "list")
    report = done(await api("GET", f"{BACKENDS}/own/drift"))
    assert ([line["host"] for line in report["strays"]], report["unseen_hosts"]) == (["hv2"], ["hv1"])
    nothing = await api("POST", f"{BACKENDS}/own/drift/delete", {"locator": "ef" * 16})
    assert "hv1 could not be asked" in refused(nothing, 404, "not_found")
    done(await api("POST", f"{BACKENDS}/own/drift/delete", {"locator": _LOCATOR}), 204)
    stowage.world.fail("hv2", "list")
    refused(await api("GET", f"{BACKENDS}/own/drift"), 422, "probe_failed")


async def test_stray_of_a_shared_backend_is_asked_for_without_a_host(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    order = {"locator": _LOCATOR, "host": "hv2"}
    assert "/host must be left out" in refused(
        await api("POST", f"{BACKENDS}/fast/drift/delete", order), 400, "invalid_field"
    )


async def test_leftovers_that_nobody_can_reach_do_not_keep_the_others(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "REST_S", 0.2)
    api = await two_hosts(stowage)
    dead, well = await share(api, "dead"), await share(api, "well")
    for host in ("hv1", "hv2"):
        stowage.world.fail(host, "probe", FaultCode.SERVER_UNREACHABLE)
    done(await api("POST", f"{BACKENDS}/dead/probe"))
    stowage.world.script.clear()
    rows = [(dead["id"], number) for number in range(20)] + [(well["id"], 20)]
    for backend_id, number in rows:
        await stowage.sql(
            "INSERT INTO volume (id, name, backend_id, size_bytes, role, locator, format, state, updated_at)"
            " VALUES ($1, 'left', $2, 1048576, 'transient', $3, 'raw', 'deleting', now() - make_interval(secs => $4))",
            new_id(), backend_id, f"{number:032x}", 100.0 - number,
        )  # fmt: skip

    async def is_gone() -> bool:
        return await stowage.sql("SELECT FROM volume WHERE backend_id = $1 AND deleted_at IS NULL", well["id"]) == []

    await until(is_gone, "the leftover that can be reached to go")


async def test_evacuation_plan_tells_when_the_target_has_too_little_room(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await share(api, "slow")
    await volume(stowage, "web", "slow")
    await stowage.sql("UPDATE volume SET size_bytes = $1", 2**50)
    plan = done(await api("POST", f"{BACKENDS}/slow/evacuate", {"to": "fast", "dry_run": True}))
    assert plan["total_bytes"] == 2**50 > plan["available_bytes"] > 0
    assert "fast, which has" in plan["warnings"][0]
