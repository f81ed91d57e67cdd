"""Long work on volumes: how far it is, its cancelling, and who dies in the middle of it."""

import contextlib
import dataclasses
import hashlib
import signal
from collections.abc import Generator

import aiohttp
import pytest

from manager import leftovers
from manager.sagas import steps, volume_moves
from manager.sagas.catalog import SAGAS
from schemas.faults import FaultCode
from tests.fleet.fleet import Api, Fleet, until
from tests.fleet.volume_calls import (
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
    volume,
)
from tests.fleet.world import Gate
from tests.sagas.scenarios import MIB

CLONE = f"{VOLUMES}/web/clone"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and reports come often, a silent host is asked but once to clean up, and what is left is not left for long."""
    monkeypatch.setattr(volume_moves, "LOOK_MS", 100)
    monkeypatch.setattr(volume_moves, "_GIVE_UP", 1)
    monkeypatch.setattr(steps, "_REPORT_EVERY_S", 0.05)
    monkeypatch.setattr(leftovers, "LOOK_S", 0.2)
    monkeypatch.setattr(leftovers, "REST_S", 0.2)


@contextlib.contextmanager
def gates(stowage: Fleet, verb: str) -> Generator[list[Gate]]:
    """On both hosts."""
    with stowage.world.gate("hv1", verb) as one, stowage.world.gate("hv2", verb) as other:
        yield [one, other]


async def _reached(*some: Gate) -> None:
    async def is_there() -> bool:
        return any(gate.reached.is_set() for gate in some)

    await until(is_there, "the work to come to its gate")


async def _is_gone(api: Api, name: str) -> None:
    assert refused(await api("GET", f"{VOLUMES}/{name}"), 404, "not_found")


async def test_copy_tells_its_progress_and_is_cancelled_without_a_trace(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    backend = await share(api, "fast")
    web = await volume(stowage, "web", "fast")
    with gates(stowage, "settle") as held:
        operation = await begun(api, "POST", CLONE, {"name": "copy"})
        await _reached(*held)

        async def tells() -> bool:
            progress = (await api("GET", operation)).body["progress"]
            return progress["rate_bytes_s"] is not None and progress["total_bytes"] == MIB

        await until(tells, "the progress to be told")
        assert done(await api("GET", operation))["progress"]["done_bytes"] == MIB
        making = done(await api("GET", f"{VOLUMES}/copy"))
        assert (making["state"], making["operation"]) == ("creating", operation)
        explained = done(await api("GET", f"{VOLUMES}/copy/explain?host=hv1"))["reasons"]
        assert explained == ["the volume is creating", f"operation {operation.rpartition('/')[2]} is under way on it"]
        assert done(await api("POST", f"{operation}/cancel"))["is_cancelled"]
        over = await ended(api, operation)
    assert (over["state"], over["error"]["code"]) == ("cancelled", "cancelled")
    assert done(await api("POST", f"{operation}/cancel"))["state"] == "cancelled"
    await _is_gone(api, "copy")
    assert set(stowage.world.contents(backend["id"])) == {web["locator"]}
    await stowage.settle()


async def test_cancel_after_the_volume_has_its_new_bytes_is_refused(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await share(api, "slow")
    await volume(stowage, "web", "fast")
    with gates(stowage, "erase") as held:
        operation = await begun(api, "POST", f"{VOLUMES}/web/migrate", {"backend": "slow"})
        await _reached(*held)
        assert "past the point" in refused(await api("POST", f"{operation}/cancel"), 409, "wrong_state")
    assert (await ended(api, operation))["state"] == "succeeded"
    moved = done(await api("GET", f"{VOLUMES}/web"))
    assert (moved["backend"], content(stowage, moved)) == ("slow", "a")
    assert "succeeded" in refused(await api("POST", f"{operation}/cancel"), 409, "wrong_state")
    await stowage.settle()


async def test_agent_that_starts_again_in_the_middle_of_a_copy_makes_it_whole(stowage: Fleet) -> None:
    api = await two_hosts(stowage, command_ttl_s=1.0, host_silent_s=10.0)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    with stowage.world.gate("hv2", "open") as held:
        operation = await begun(api, "POST", CLONE, {"name": "copy", "host": "hv2"})
        await _reached(held)
        await stowage.stop_agent("hv2")
    await stowage.start_agent("hv2")
    assert (await ended(api, operation))["state"] == "succeeded"
    assert content(stowage, done(await api("GET", f"{VOLUMES}/copy"))) == "a"
    await stowage.settle()


async def test_manager_killed_in_the_middle_of_a_copy_is_followed_by_another(stowage: Fleet) -> None:
    stowage.world.is_cloning = False
    dying = await stowage.child_manager("manager-1")
    heir = await stowage.manager("manager-2")
    await stowage.agent("hv1")
    await share(heir, "fast")
    await volume(stowage, "web", "fast")

    async def knows_the_host() -> bool:
        return bool((await dying("GET", "/v1/hosts/hv1")).body.get("state") == "online")

    await until(knows_the_host, "the other manager to know the host")
    with stowage.world.gate("hv1", "open") as held:
        operation = await begun(dying, "POST", CLONE, {"name": "copy"})
        await _reached(held)
        stowage.signal("manager-1", signal.SIGKILL)
    assert (await ended(heir, operation))["state"] == "succeeded"
    assert content(stowage, done(await heir("GET", f"{VOLUMES}/copy"))) == "a"
    await stowage.settle()


async def test_copy_on_a_host_that_stays_away_is_given_up_and_goes_when_it_is_back(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_moves, "PATIENCE_S", 0.3)
    # On a VG none but the host that was at work may take away what is left.
    api = await two_hosts(stowage, command_ttl_s=1.0, host_silent_s=10.0)
    backend = await san(api)
    web = await volume(stowage, "web", "san")
    with stowage.world.gate("hv2", "open") as held:
        operation = await begun(api, "POST", CLONE, {"name": "copy", "host": "hv2"})
        await _reached(held)
        await stowage.stop_agent("hv2")
        over = await ended(api, operation)
    assert (over["state"], over["error"]["code"]) in (("failed", "no_agent"), ("failed", "agent_timeout"))
    assert [each["host"] for each in over["error"]["faults"]] == ["hv2"]
    await _is_gone(api, "copy")
    left = await stowage.sql("SELECT role, state, locator FROM volume WHERE name = 'copy'")
    assert [(row["role"], row["state"]) for row in left] == [("transient", "deleting")]
    assert set(stowage.world.contents(backend["id"])) == {web["locator"], left[0]["locator"]}
    assert [each["type"] for each in (await api("DELETE", "/v1/storage_backends/san")).body["blockers"]] == [
        "volume",
        "transient",
    ]
    # The name is free again.
    await volume(stowage, "copy", "san", host="hv1")
    await stowage.start_agent("hv2")
    await stowage.settle()
    assert len(stowage.world.contents(backend["id"])) == 2


async def test_host_that_is_silent_in_the_making_of_a_file_is_waited_for_before_its_row_goes(stowage: Fleet) -> None:
    """Another host that sees the share could find nothing there yet, and then nobody would know of the file."""
    quick = {kind: dataclasses.replace(saga, budget_s=1.0) for kind, saga in SAGAS.items()}
    api = await two_hosts(stowage, definitions=quick, command_ttl_s=0.3, host_silent_s=30.0)
    await share(api, "fast")
    with stowage.world.gate("hv2", "make"):
        body = {"name": "web", "size_bytes": MIB, "backend": "fast", "host": "hv2"}
        assert (await ended(api, await begun(api, "POST", VOLUMES, body)))["error"]["code"] == "agent_timeout"
        await _is_gone(api, "web")

        async def is_tried() -> bool:
            tries = "SELECT FROM operation WHERE kind = 'volume.delete' AND state NOT IN ('running', 'undoing')"
            return await stowage.sql(tries) != []

        await until(is_tried, "what is left to be looked after")
        assert [row["role"] for row in await stowage.sql("SELECT role FROM volume WHERE deleted_at IS NULL")] == [
            "transient"
        ]
    await stowage.settle()
    assert await stowage.sql("SELECT FROM volume WHERE deleted_at IS NULL") == []


async def test_volume_that_is_read_is_neither_changed_nor_written_to_meanwhile(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await share(api, "slow")
    await volume(stowage, "web", "fast")
    with gates(stowage, "open") as held:
        operation = await begun(api, "POST", CLONE, {"name": "copy"})
        await _reached(*held)
        for method, verb, body in (
            ("DELETE", "", None),
            ("POST", "/resize", {"size_bytes": 2 * MIB}),
            ("POST", "/attach", {"host": "hv1", "mode": "rw"}),
            ("POST", "/migrate", {"backend": "slow"}),
        ):
            answer = await api(method, f"{VOLUMES}/web{verb}", body)
            assert "or reads it" in refused(answer, 409, "wrong_state")
            assert answer.body["operation"] == operation
        other = await begun(api, "POST", CLONE, {"name": "another"})
    assert [(await ended(api, each))["state"] for each in (operation, other)] == ["succeeded", "succeeded"]
    assert content(stowage, done(await api("GET", f"{VOLUMES}/another"))) == "a"
    done(await api("DELETE", f"{VOLUMES}/web"), 204)
    assert content(stowage, done(await api("GET", f"{VOLUMES}/copy"))) == "a"
    await stowage.settle()


async def test_volume_that_is_written_to_is_frozen_by_its_writer_at_once_or_not_at_all(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    backend = await share(api, "fast")
    web = await volume(stowage, "web", "fast")
    done(await attach(api, "web", "hv2"))
    for path in (f"{VOLUMES}/web/snapshots", CLONE):
        answer = await api("POST", path, {"name": "frozen"})
        assert "cannot freeze or clone it at once" in refused(answer, 409, "unsupported")
        assert [each["host"] for each in answer.body["faults"]] == ["hv2"]
    assert set(stowage.world.contents(backend["id"])) == {web["locator"]}

    stowage.world.is_cloning = True
    snapshot = done(await api("POST", f"{VOLUMES}/web/snapshots", {"name": "frozen", "labels": {"day": "monday"}}), 201)
    clone = done(await api("POST", CLONE, {"name": "twin"}), 201)
    assert (content(stowage, snapshot), content(stowage, clone)) == ("a", "a")
    assert (snapshot["backend"], snapshot["format"], snapshot["host"], snapshot["labels"]) == (
        "fast",
        "raw",
        None,
        {"day": "monday"},
    )
    assert done(await api("GET", f"{VOLUMES}/web/snapshots?limit=1"))["items"] == [snapshot]
    rows = await stowage.sql("SELECT params ->> 'worker' AS worker FROM operation WHERE kind = 'volume.create'")
    writer = done(await api("GET", "/v1/hosts/hv2"))["id"]
    assert {row["worker"] for row in rows[-2:]} == {writer}
    await stowage.settle()


async def test_image_shows_no_size_before_it_is_there(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    (stowage.images / "debian.raw").write_bytes(b"i" * MIB)
    sha256 = hashlib.sha256(b"i" * MIB).hexdigest()
    body = {"name": "debian", "path": f"{stowage.images}/debian.raw", "source_format": "raw", "sha256": sha256}
    with gates(stowage, "make") as held:
        operation = await begun(api, "POST", "/v1/images", {**body, "backend": "fast"})
        await _reached(*held)
        making = done(await api("GET", "/v1/images/debian"))
        early = await api("PATCH", "/v1/images/debian", {"labels": {"os": "debian"}})
        assert "wait for the operation" in refused(early, 409, "wrong_state")
        assert early.body["operation"] == operation
        early = await api("POST", VOLUMES, {"name": "web", "source": {"image": "debian"}, "backend": "fast"})
        assert (early.body["operation"], early.headers["Retry-After"]) == (operation, "1")
    assert (making["state"], making["size_bytes"], making["sha256"]) == ("creating", None, None)
    assert (await ended(api, operation))["state"] == "succeeded"
    made = done(await api("GET", "/v1/images/debian"))
    assert (made["state"], made["size_bytes"], made["sha256"], made["version"]) == ("ready", MIB, sha256, 1)
    assert content(stowage, made) == "i"


async def test_address_of_an_image_keeps_no_signature_when_its_operation_has_ended(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    body = {"name": "debian", "url": "http://127.0.0.1:1/debian.raw?signature=hush", "source_format": "raw"}
    failed = await api("POST", "/v1/images", {**body, "sha256": "0" * 64, "backend": "fast"})
    refused(failed, 422, "probe_failed")
    assert "hush" not in str(failed.body)
    [row] = await stowage.sql("SELECT params #>> '{source,url}' AS url FROM operation WHERE kind = 'volume.create'")
    assert row["url"] == "http://127.0.0.1:1/debian.raw"


@pytest.mark.parametrize("verb", ["make", "settle"])
async def test_what_is_left_of_an_image_that_was_cancelled_goes_with_the_storage_back(
    stowage: Fleet, verb: str
) -> None:
    """Its row had no size yet, and a host is told nothing of a volume without one."""
    api = await two_hosts(stowage)
    backend = await share(api, "fast")
    (stowage.images / "debian.raw").write_bytes(b"i" * MIB)
    sha256 = hashlib.sha256(b"i" * MIB).hexdigest()
    body = {"name": "debian", "path": f"{stowage.images}/debian.raw", "source_format": "raw", "sha256": sha256}
    with gates(stowage, verb) as held:
        operation = await begun(api, "POST", "/v1/images", {**body, "backend": "fast"})
        await _reached(*held)
        for host in ("hv1", "hv2"):
            stowage.world.fail(host, "erase", FaultCode.HUNG)
        assert (await api("POST", f"{operation}/cancel")).status == 200
    assert (await ended(api, operation))["state"] == "cancelled"
    left = await stowage.sql("SELECT role, state FROM volume WHERE name = 'debian'")
    assert [(row["role"], row["state"]) for row in left] == [("transient", "deleting")]
    stowage.world.script.clear()
    await stowage.settle()
    assert stowage.world.contents(backend["id"]) == {}


async def test_create_repeated_after_a_crash_is_the_same_volume(stowage: Fleet) -> None:
    await stowage.child_manager(kill_at="after volume.create make done", host_silent_s=30.0)
    await stowage.agent("hv1")
    await share(stowage.api, "fast")
    body = {"name": "web", "size_bytes": MIB, "backend": "fast"}
    with contextlib.suppress(aiohttp.ClientError):
        await stowage.api("POST", VOLUMES, body, Idempotency_Key="once")

    async def is_dead() -> bool:
        return stowage.is_dead("manager-1")

    await until(is_dead, "the manager to die")
    api = await stowage.manager("manager-1", host_silent_s=30.0)

    async def is_answered() -> bool:
        return (await api("POST", VOLUMES, body, Idempotency_Key="once")).status == 201

    await until(is_answered, "the repeated request to be answered")
    again = await api("POST", VOLUMES, body, Idempotency_Key="once")
    assert again.headers["Idempotency-Replayed"] == "true"
    made = done(await api("GET", f"{VOLUMES}/web"))
    assert (again.body["id"], made["version"]) == (made["id"], 1)
    assert len(await stowage.sql("SELECT FROM event WHERE type = 'volume.created'")) == 1
    refused(await api("POST", VOLUMES, {**body, "name": "db"}, Idempotency_Key="once"), 409, "idempotency_mismatch")
    await stowage.settle()
