"""One writer: attachments on two hosts, their epochs, and what a host that was away finds taken from it."""

import dataclasses
import json
from typing import Any

import msgspec
import pytest

from manager import leftovers
from manager.sagas import volume_moves
from manager.sagas.catalog import SAGAS
from schemas.agent_rpc import Failed, Ok, Stale
from schemas.bus import Message
from schemas.faults import FaultCode, fault
from schemas.volume_rpc import Made, WorkReport
from tests.fleet.fleet import Fleet, until
from tests.fleet.impostor import in_the_place_of, verb_of
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
    san,
    share,
    two_hosts,
    until_offline,
    volume,
)
from tests.sagas.scenarios import MIB


async def _events(stowage: Fleet, type_: str) -> list[dict[str, Any]]:
    rows = await stowage.sql("SELECT data FROM event WHERE type = $1 ORDER BY n", type_)
    return [json.loads(row["data"]) for row in rows]


async def test_second_writer_is_refused_with_the_holders_name_and_epochs_grow(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    made = await volume(stowage, "web", "fast")

    first = done(await attach(api, "web", "hv1"))
    again = done(await attach(api, "web", "hv1"))
    assert (first["epoch"], again) == (1, first)
    for mode in ("rw", "ro"):
        second = await attach(api, "web", "hv2", mode)
        assert "web is attached to hv1 (rw)" in refused(second, 409, "volume_in_use")
        assert [(each["type"], each["name"]) for each in second.body["blockers"]] == [("attachment", "hv1")]
    assert "with another mode" in refused(await attach(api, "web", "hv1", "ro"), 409, "volume_in_use")
    assert stowage.world.attached("hv2") == set()
    assert done(await api("POST", f"{VOLUMES}/web/detach")) == {"is_confirmed": True}
    assert stowage.world.attached("hv1") == set()

    assert done(await attach(api, "web", "hv2"))["epoch"] == 2
    done(await api("POST", f"{VOLUMES}/web/detach"))
    readers = [done(await attach(api, "web", host, "ro"))["epoch"] for host in ("hv1", "hv2")]
    assert readers == [3, 4]
    shown = done(await api("GET", f"{VOLUMES}/web"))
    assert [(each["host"], each["mode"], each["epoch"]) for each in shown["attachments"]] == [
        ("hv1", "ro", 3),
        ("hv2", "ro", 4),
    ]
    assert "hv1, hv2" in refused(await api("POST", f"{VOLUMES}/web/detach"), 400, "invalid_field")
    done(await api("POST", f"{VOLUMES}/web/detach", {"host": "hv1"}))
    assert "attached to hv2 (ro)" in refused(await attach(api, "web", "hv1"), 409, "volume_in_use")
    assert stowage.world.attached("hv2") == {made["locator"]}
    opened, closed = await _events(stowage, "attachment.opened"), await _events(stowage, "attachment.closed")
    assert [(each["name"], each["host"], each["after"]["epoch"]) for each in opened] == [
        ("web", "hv1", 1),
        ("web", "hv2", 2),
        ("web", "hv1", 3),
        ("web", "hv2", 4),
    ]
    assert [each["is_confirmed"] for each in closed] == [True, True, True]
    await stowage.settle()


async def test_volume_forced_from_a_dead_host_is_another_ones_and_fenced_off_on_its_return(stowage: Fleet) -> None:
    api = await two_hosts(stowage, host_silent_s=1.0)
    await share(api, "fast")
    locator = (await volume(stowage, "web", "fast"))["locator"]
    done(await attach(api, "web", "hv1"))
    stowage.world.in_use["hv1"].add(locator)
    refused(await api("POST", f"{VOLUMES}/web/detach"), 409, "volume_in_use")
    assert done(await api("GET", f"{VOLUMES}/web"))["attachments"][0]["state"] == "attached"
    assert stowage.world.attached("hv1") == {locator}

    await stowage.stop_agent("hv1")
    await until_offline(api, "hv1")
    without_force = await api("POST", f"{VOLUMES}/web/detach")
    words = refused(without_force, 503, "no_agent")
    assert "may still be writing to web" in words and "data is destroyed" in words
    assert [each["host"] for each in without_force.body["faults"]] == ["hv1"]
    assert done(await api("POST", f"{VOLUMES}/web/detach", {"force": True})) == {"is_confirmed": False}
    [closed] = await _events(stowage, "attachment.closed")
    assert (closed["name"], closed["host"], closed["is_confirmed"]) == ("web", "hv1", False)
    assert done(await attach(api, "web", "hv2"))["epoch"] == 2
    assert stowage.world.attached("hv1") == {locator}, "nobody could tell it"

    await stowage.start_agent("hv1")

    async def is_fenced_off() -> bool:
        return stowage.world.fenced == [("hv1", locator)]

    await until(is_fenced_off, "the host that is back to fence itself off")
    assert (stowage.world.attached("hv1"), stowage.world.attached("hv2")) == (set(), {locator})
    await stowage.settle()


async def test_host_that_refuses_a_forced_detach_is_told_at_once_what_it_has_lost(stowage: Fleet) -> None:
    """It would sync by itself in some minutes, and write on until then."""
    api = await two_hosts(stowage, host_silent_s=30.0)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    done(await attach(api, "web", "hv1"))
    in_use = msgspec.json.encode(Failed(fault=fault(FaultCode.IN_USE, "qemu has it open")))

    async def answer(message: Message) -> bytes | None:
        return in_use if verb_of(message) in ("detach_volume", "attach_volume") else None

    async with in_the_place_of(stowage, "hv1", answer) as obstinate:
        assert "qemu has it open" in refused(await api("POST", f"{VOLUMES}/web/detach"), 409, "volume_in_use")
        obstinate.heard.clear()
        assert done(await api("POST", f"{VOLUMES}/web/detach", {"force": True})) == {"is_confirmed": False}

        async def is_nudged() -> bool:
            return "nudge" in obstinate.heard

        await until(is_nudged, "the host to be nudged")
        assert obstinate.heard.index("detach_volume") < obstinate.heard.index("nudge")


async def test_host_that_had_no_time_for_another_try_does_not_hide_what_it_said_before(stowage: Fleet) -> None:
    api = await two_hosts(stowage, host_silent_s=30.0)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    done(await attach(api, "web", "hv1"))
    in_use = msgspec.json.encode(Failed(fault=fault(FaultCode.IN_USE, "qemu has it open"), is_retryable=True))
    is_busy = msgspec.json.encode(Failed(fault=fault(FaultCode.TIMED_OUT, "a probe is under way"), is_retryable=True))

    async def answer(message: Message) -> bytes | None:
        if verb_of(message) not in ("detach_volume", "attach_volume"):
            return None
        return in_use if obstinate.heard.count("detach_volume") == 1 else is_busy

    async with in_the_place_of(stowage, "hv1", answer) as obstinate:
        assert "qemu has it open" in refused(await api("POST", f"{VOLUMES}/web/detach"), 409, "volume_in_use")
        assert obstinate.heard.count("detach_volume") > 1


async def test_revoked_host_holds_nothing_and_what_lay_on_it_can_be_deleted(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await folder(api, "own")
    await volume(stowage, "web", "fast")
    lost = await volume(stowage, "cache", "own", host="hv1")
    for name in ("web", "cache"):
        done(await attach(api, name, "hv1"))

    done(await api("DELETE", "/v1/hosts/hv1"), 204)

    closed = await _events(stowage, "attachment.closed")
    assert [(each["name"], each["host"], each["is_confirmed"]) for each in closed] == [
        ("web", "hv1", False),
        ("cache", "hv1", False),
    ]
    assert done(await attach(api, "web", "hv2"))["epoch"] == 2
    assert "hv1 (which was revoked) alone" in refused(await attach(api, "cache", "hv2"), 409, "wrong_state")
    blocked = await api("DELETE", f"{BACKENDS}/own")
    assert refused(blocked, 409, "backend_in_use").startswith("backend has 1 live volume(s)")
    done(await api("DELETE", f"{VOLUMES}/cache"), 204)
    [deleted] = await _events(stowage, "volume.deleted")
    assert (deleted["name"], deleted["is_erased"]) == ("cache", False)
    assert lost["locator"] in stowage.world.contents(lost["backend_id"]), "nobody could reach it"
    done(await api("DELETE", f"{BACKENDS}/own"), 204)


async def test_deletion_that_is_refused_because_it_is_open_deletes_nothing_then_or_later(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads 409 takes it for refused; the machine that has it open will be switched off one day."""
    monkeypatch.setattr(leftovers, "LOOK_S", 0.1)
    monkeypatch.setattr(leftovers, "REST_S", 0.1)
    api = await two_hosts(stowage)
    await share(api, "fast")
    shown = await volume(stowage, "web", "fast")
    for host in ("hv1", "hv2"):
        stowage.world.in_use[host].add(shown["locator"])

    words = refused(await api("DELETE", f"{VOLUMES}/web"), 409, "volume_in_use")

    assert "nothing was deleted" in words
    assert done(await api("GET", f"{VOLUMES}/web"))["version"] == 1, "nothing has changed"
    assert done(await api("GET", f"{VOLUMES}/web"))["state"] == "ready"
    for host in ("hv1", "hv2"):
        stowage.world.in_use[host].clear()
    done(await attach(api, "web", "hv1"))
    assert content(stowage, shown) == "a"
    assert await _events(stowage, "volume.deleted") == []
    await stowage.settle()


async def test_deletion_that_fails_is_done_later_in_the_name_of_whoever_asked(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "LOOK_S", 0.1)
    monkeypatch.setattr(leftovers, "REST_S", 0.1)
    api = await two_hosts(stowage)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    for host in ("hv1", "hv2"):
        stowage.world.fail(host, "erase")

    words = refused(await api("DELETE", f"{VOLUMES}/web"), 422, "probe_failed")

    assert "stays in deleting" in words
    stowage.world.script.clear()
    await stowage.settle()
    [row] = await stowage.sql("SELECT actor, request_id FROM event WHERE type = 'volume.deleted'")
    assert row["actor"] == "token:admin" and row["request_id"]


async def test_full_backend_lets_go_of_what_is_on_it(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    for name in ("web", "db"):
        await volume(stowage, name, "fast")
    done(await api("POST", f"{VOLUMES}/db/snapshots", {"name": "before"}), 201)
    for host in ("hv1", "hv2"):
        for verb in ("probe", "attach"):
            stowage.world.fail(host, verb, FaultCode.NO_SPACE)

    async def is_red() -> bool:
        cells = (await api("GET", f"{BACKENDS}/fast/hosts")).body["hosts"]
        return {cell["code"] for cell in cells} == {"no_space"}

    await until(is_red, "fast to be full")

    refused(await api("POST", VOLUMES, {"name": "more", "size_bytes": MIB, "backend": "fast"}), 422, "probe_failed")
    done(await attach(api, "web", "hv1"))
    done(await api("POST", f"{VOLUMES}/web/detach"))
    assert (await api("DELETE", f"{VOLUMES}/db/snapshots/before")).status == 204
    assert (await api("DELETE", f"{VOLUMES}/db")).status == 204


async def test_deletion_that_had_wiped_gives_nothing_back(stowage: Fleet) -> None:
    """What is opened between the wipe and the removal is zeros by then, and must not be called ready."""
    api = await two_hosts(stowage)
    await san(api, wipe_on_delete="zero")
    shown = await volume(stowage, "web", "san")
    for host in ("hv1", "hv2"):
        stowage.world.in_use[host].add(shown["locator"])

    words = refused(await api("DELETE", f"{VOLUMES}/web"), 422, "probe_failed")

    assert "stays in deleting" in words
    assert done(await api("GET", f"{VOLUMES}/web"))["state"] == "deleting"


async def test_repeated_attach_gives_no_path_that_is_nobodys_any_more(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    request, key = ("POST", f"{VOLUMES}/web/attach", {"host": "hv1"}), {"Idempotency-Key": "vm17-start"}
    first = done(await api(*request, **key))
    again = await api(*request, **key)
    assert (done(again), again.headers["Idempotency-Replayed"]) == (first, "true")
    done(await api("POST", f"{VOLUMES}/web/detach"))
    done(await attach(api, "web", "hv2"))
    assert "was detached since" in refused(await api(*request, **key), 409, "wrong_state")
    assert stowage.world.attached("hv1") == set()


@pytest.mark.parametrize("path", ["migrate", "snapshots/monday/revert"])
async def test_change_of_bytes_that_was_meant_for_another_version_is_refused(stowage: Fleet, path: str) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await share(api, "slow")
    web = await volume(stowage, "web", "fast")
    done(await api("POST", f"{VOLUMES}/web/snapshots", {"name": "monday"}), 201)
    changed = done(await api("PATCH", f"{VOLUMES}/web", {"labels": {"tier": "gold"}}))
    body = {"backend": "slow"} if path == "migrate" else None
    stale = await api("POST", f"{VOLUMES}/web/{path}", body, **{"If-Match": f'"{web["version"]}"'})
    assert f"at version {changed['version']}" in refused(stale, 412, "stale_version")
    done(await api("POST", f"{VOLUMES}/web/{path}", body, **{"If-Match": f'"{changed["version"]}"'}))


async def test_what_lies_on_a_host_that_was_revoked_is_still_listed_by_it(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await folder(api, "own")
    await volume(stowage, "web", "own", host="hv1")
    [row] = await stowage.sql("SELECT id::text FROM host WHERE name = 'hv1'")
    done(await api("DELETE", "/v1/hosts/hv1"), 204)
    [listed] = done(await api("GET", f"{VOLUMES}?host={row['id']}"))["items"]
    assert listed["name"] == "web"
    assert done(await api("GET", f"{BACKENDS}/own/drift"))["unseen_hosts"] == ["hv1"]


async def test_explanation_is_of_the_mode_that_is_wanted(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    done(await attach(api, "web", "hv1", "ro"))
    for host, mode, reasons in (
        ("hv2", "rw", ["it is attached to hv1 (ro)"]),
        ("hv2", "ro", []),
        ("hv1", "rw", ["it is attached to hv1 (ro), with another mode"]),
        ("hv1", "ro", []),
    ):
        told = done(await api("GET", f"{VOLUMES}/web/explain?host={host}&mode={mode}"))
        assert told["reasons"] == reasons
        assert (await attach(api, "web", host, mode)).status == (409 if reasons else 200)
        if not reasons and host == "hv2":
            done(await api("POST", f"{VOLUMES}/web/detach", {"host": "hv2"}))


_SHRUNK_BACK = [("resize", 4, 8, False), ("blank", 8, 4), ("resize", 8, 8, False)]
_GROWN = [("resize", 8, 12, True), ("blank", 12, 8), ("resize", 12, 12, False)]


@pytest.mark.parametrize(
    ("what", "wanted", "asked"),
    [
        ("answers", 12, _GROWN),
        # It stays marked, and a resize to its size takes that away.
        ("silence at the end", 12, _GROWN),
        ("answers", 8, [("blank", 8, 8), ("resize", 8, 8, True)]),
        # What was cut off may have grown again, on a VG by blocks with what others left in them.
        ("silence", 4, [("resize", 8, 4, True), *_SHRUNK_BACK]),
        # Who has the operation cancelled does not cancel that.
        ("cancel", 4, [("resize", 8, 4, True), ("blank", 4, 4), *_SHRUNK_BACK]),
        # Without leave to cut what this did not add.
        ("silence", 12, [("resize", 8, 12, True), ("resize", 12, 8, False), ("blank", 8, 8), ("resize", 8, 8, False)]),
        # Nothing was done, so nothing is undone: what is there may be more than the database knows.
        ("refusal", 12, [("resize", 8, 12, True)]),
    ],
)
async def test_resize_ends_with_the_one_size_or_the_other_and_others_bytes_in_neither(
    stowage: Fleet, what: str, wanted: int, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a VG, by a host that marks what it adds until it is told that it was blanked (agent/lv_volumes.py)."""
    monkeypatch.setattr(volume_moves, "PATIENCE_S", 0.1)
    sagas = {**SAGAS, "volume.resize": dataclasses.replace(SAGAS["volume.resize"], budget_s=1.0)}
    api = await stowage.manager(definitions=sagas, command_ttl_s=0.3, host_silent_s=30.0)
    await stowage.agent("hv1")
    await san(api)
    done(await api("POST", VOLUMES, {"name": "web", "size_bytes": 8 * MIB, "backend": "san"}), 201)
    heard: list[tuple[Any, ...]] = []
    silent_at = {"silence": ("resize", 8, wanted), "silence at the end": ("resize", 12, 12)}.get(what)

    async def answer(message: Message) -> bytes | None:
        verb, body = verb_of(message).removesuffix("_volume"), msgspec.json.decode(message.data)
        if verb not in ("resize", "blank"):
            return None
        now, to = (size // MIB for size in (body["spec"]["size_bytes"], body.get("size_bytes", body.get("from_bytes"))))
        told = (verb, now, to, *([body["may_shrink"]] if verb == "resize" else []))
        is_again = heard[-1:] == [told]
        heard.extend([] if is_again else [told])
        if told[:3] == silent_at:
            return None
        if what == "refusal":
            return msgspec.json.encode(Failed(fault=fault(FaultCode.WRONG_SIZE, "it is longer")))
        # Under way at the first look; what is to be cut off, for ever.
        report = WorkReport(is_done=is_again and now >= 8, done_bytes=0, total_bytes=4 * MIB)
        return msgspec.json.encode(Ok(result=msgspec.Raw(msgspec.json.encode(report if verb == "blank" else None))))

    async with in_the_place_of(stowage, "hv1", answer):
        body = {"size_bytes": wanted * MIB, "may_shrink": True}
        operation = await begun(api, "POST", f"{VOLUMES}/web/resize", body)
        if what == "cancel":

            async def is_wiping() -> bool:
                return ("blank", 4, 4) in heard

            await until(is_wiping, "what is to be cut off to be wiped")
            done(await api("POST", f"{operation}/cancel"))
        over = (await ended(api, operation))["state"]
    assert heard == asked
    is_done = what in ("answers", "silence at the end")
    assert over == ("succeeded" if is_done else "cancelled" if what == "cancel" else "failed")
    assert done(await api("GET", f"{VOLUMES}/web"))["size_bytes"] == (wanted if is_done else 8) * MIB


async def test_host_that_has_heard_of_higher_fences_than_its_budget_allows_for_is_asked_once_more(
    stowage: Fleet,
) -> None:
    """One that was away for longer than that learns of them when it comes back, just before the command."""
    quick = dataclasses.replace(SAGAS["volume.create"], budget_s=0.0)
    api = await two_hosts(stowage, host_silent_s=30.0, definitions={**SAGAS, "volume.create": quick})
    await share(api, "fast")
    stale = msgspec.json.encode(Stale(fence=10**6))
    made = msgspec.json.encode(Ok(result=msgspec.Raw(msgspec.json.encode(Made(is_filled=True)))))

    async def answer(message: Message) -> bytes | None:
        if verb_of(message) != "make_volume":
            return None
        return stale if asked.heard.count("make_volume") == 1 else made

    async with in_the_place_of(stowage, "hv1", answer) as asked:
        done(await api("POST", VOLUMES, {"name": "web", "size_bytes": MIB, "backend": "fast", "host": "hv1"}), 201)
        assert asked.heard.count("make_volume") == 2


async def test_host_that_is_revoked_in_the_moment_of_an_attach_gets_nothing(stowage: Fleet) -> None:
    """By the database's word, whatever this replica has heard."""
    api = await two_hosts(stowage)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    await stowage.sql("ALTER TABLE host DISABLE TRIGGER USER")
    await stowage.sql("UPDATE host SET revoked_at = now() WHERE name = 'hv1'")
    assert "hv1 was revoked" in refused(await attach(api, "web", "hv1"), 503, "no_agent")
    assert done(await api("GET", f"{VOLUMES}/web"))["attachments"] == []
    assert stowage.world.attached("hv1") == set()
