"""Where volumes may come to lie and who works on them: what is refused, in which words, and what blocks a removal."""

import asyncio
from collections import Counter
from typing import Any

from schemas.faults import FaultCode
from tests.fleet.fleet import Api, Fleet, until
from tests.fleet.volume_calls import (
    BACKENDS,
    TARGET,
    VOLUMES,
    attach,
    content,
    done,
    folder,
    refused,
    san,
    share,
    two_hosts,
    until_offline,
    volume,
)
from tests.fleet.world import TOTAL_BYTES
from tests.sagas.scenarios import MIB

_ROUNDS = 12


async def _create(api: Api, **more: Any) -> Any:
    return await api("POST", VOLUMES, {"name": "new", "size_bytes": MIB, **more})


async def _explained(api: Api, host: str, name: str = "web") -> list[str]:
    answer = done(await api("GET", f"{VOLUMES}/{name}/explain?host={host}"))
    assert answer["is_usable"] is (answer["reasons"] == [])
    return list(answer["reasons"])


async def _until_told(api: Api, backend: str, host: str, code: str) -> None:
    """The host has reported that fault of the backend."""

    async def is_told() -> bool:
        cells = (await api("GET", f"{BACKENDS}/{backend}/hosts")).body["hosts"]
        return any(cell["host"] == host and cell["code"] == code for cell in cells)

    await until(is_told, f"{host} to report {code}")


async def test_create_is_refused_where_the_backend_cannot_take_it(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    assert "there is no default backend" in refused(await _create(api), 409, "wrong_state")
    await share(api, "fast", hosts={"names": ["hv1"], "labels": {}})
    stowage.world.blank.add(f"{TARGET}-new")
    await san(api, "new")

    assert "initialize it first" in refused(await _create(api, backend="new"), 409, "wrong_state")
    assert "/host there is no host hv9" in refused(await _create(api, backend="fast", host="hv9"), 400, "invalid_field")
    assert "/host fast is not for hv2" in refused(await _create(api, backend="fast", host="hv2"), 400, "invalid_field")
    done(await api("PATCH", f"{BACKENDS}/fast", {"state": "draining"}))
    assert "set its state to ready" in refused(await _create(api, backend="fast"), 409, "wrong_state")
    done(await api("PATCH", f"{BACKENDS}/fast", {"state": "ready"}))

    stowage.world.used_bytes = TOTAL_BYTES * 99 // 100
    await _until_used(api, "fast", stowage.world.used_bytes)
    full = await _create(api, backend="fast")
    assert "fast is full" in refused(full, 422, "probe_failed")
    assert [(each["host"], each["code"]) for each in full.body["faults"]] == [("hv1", "no_space")]
    assert done(await api("GET", VOLUMES))["items"] == []
    assert await stowage.sql("SELECT FROM operation WHERE kind = 'volume.create'") == []


async def _until_used(api: Api, backend: str, used_bytes: int) -> None:
    async def is_seen() -> bool:
        [cell] = (await api("GET", f"{BACKENDS}/{backend}/hosts")).body["hosts"]
        return bool(cell["capacity"]["used_bytes"] == used_bytes)

    await until(is_seen, f"{backend} to be so full")


async def test_host_that_cannot_use_the_backend_is_refused_and_explained_with_its_own_words(stowage: Fleet) -> None:
    api = await two_hosts(stowage, host_silent_s=1.5)
    await share(api, "fast")
    await share(api, "near", hosts={"names": ["hv1"], "labels": {}})
    await volume(stowage, "web", "fast")
    await volume(stowage, "db", "near")
    assert await _explained(api, "hv1") == []

    for verb in ("probe", "attach"):
        stowage.world.fail("hv2", verb, FaultCode.SERVER_UNREACHABLE)
    await _until_told(api, "fast", "hv2", "server_unreachable")
    for answer in (await _create(api, backend="fast", host="hv2"), await attach(api, "web", "hv2")):
        assert "hv2 cannot use fast now" in refused(answer, 422, "probe_failed")
        assert [(each["host"], each["code"]) for each in answer.body["faults"]] == [("hv2", "server_unreachable")]
    [reason] = await _explained(api, "hv2")
    assert "fast cannot be used there: scripted failure of" in reason
    assert await _explained(api, "hv2", "db") == ["near is not for hv2: change its hosts first"]
    # Others still can, and who is not told where to go goes there.
    for number in range(3):
        done(await api("POST", VOLUMES, {"name": f"v{number}", "size_bytes": MIB, "backend": "fast"}), 201)

    done(await attach(api, "web", "hv1"))
    await stowage.stop_agent("hv2")
    await until_offline(api, "hv2")
    away = await _create(api, backend="fast", host="hv2")
    assert [(each["host"], each["code"]) for each in away.body["faults"]] == [("hv2", "host_offline")]
    refused(away, 503, "no_agent")
    held, offline = await _explained(api, "hv2")
    assert held == "it is attached to hv1 (rw)" and "host hv2 is offline" in offline


async def test_volume_of_a_hosts_own_folder_stays_there_until_it_moves_by_way_of_a_share(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await folder(api, "own")
    await share(api, "fast")
    web = await volume(stowage, "web", "own", host="hv1")
    assert web["host"] == "hv1"

    elsewhere = "what lies on own can be worked on by hv1 alone now, not by hv2"
    assert elsewhere in refused(await attach(api, "web", "hv2"), 409, "wrong_state")
    away = await api("POST", f"{VOLUMES}/web/clone", {"name": "twin", "host": "hv2"})
    assert elsewhere in refused(away, 409, "wrong_state")
    assert await _explained(api, "hv2") == ["it lies on hv1, and own is not shared"]
    twin = done(await api("POST", f"{VOLUMES}/web/clone", {"name": "twin"}), 201)
    snapshot = done(await api("POST", f"{VOLUMES}/twin/snapshots", {"name": "monday"}), 201)
    assert (twin["host"], snapshot["host"], content(stowage, snapshot)) == ("hv1", "hv1", "a")
    other_host = await api("POST", f"{VOLUMES}/web/migrate", {"backend": "own", "host": "hv2"})
    assert "by way of a shared backend" in refused(other_host, 400, "invalid_field")

    for place in ({"backend": "fast"}, {"backend": "own", "host": "hv2"}):
        moved = done(await api("POST", f"{VOLUMES}/web/migrate", place))
        assert (moved["backend"], content(stowage, moved)) == (place["backend"], "a")
    assert moved["host"] == "hv2"
    assert (stowage.world.volumes_folder(moved["backend_id"]) / "hv2" / f"{moved['locator']}.data").exists()
    done(await attach(api, "web", "hv2"))
    await stowage.settle()


async def test_backend_with_volumes_is_not_removed_and_names_all_that_lie_there(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    await share(api, "fast")
    await volume(stowage, "web", "fast")
    done(await api("POST", f"{VOLUMES}/web/snapshots", {"name": "monday"}), 201)
    done(await attach(api, "web", "hv1"))

    kept = await api("DELETE", f"{VOLUMES}/web")
    assert "it is attached to hv1 and it has 1 snapshot(s)" in refused(kept, 409, "volume_in_use")
    assert [(each["type"], each["name"]) for each in kept.body["blockers"]] == [
        ("attachment", "hv1"),
        ("snapshot", "monday"),
    ]
    blocked = await api("DELETE", f"{BACKENDS}/fast")
    words = "backend has 2 live volume(s); delete or migrate them before removing the backend"
    assert refused(blocked, 409, "backend_in_use") == words
    assert [(each["type"], each["name"]) for each in blocked.body["blockers"]] == [
        ("volume", "web"),
        ("snapshot", "monday"),
    ]
    plan = done(await api("DELETE", f"{BACKENDS}/fast?dry_run=true"))
    assert (plan["is_allowed"], plan["blockers"]) == (False, blocked.body["blockers"])

    done(await api("POST", f"{VOLUMES}/web/detach"))
    for path in ("/web/snapshots/monday", "/web"):
        done(await api("DELETE", f"{VOLUMES}{path}"), 204)
    done(await api("DELETE", f"{BACKENDS}/fast"), 204)


async def test_create_that_races_its_backends_removal_never_succeeds_beside_it(stowage: Fleet) -> None:
    api = await two_hosts(stowage)
    outcomes: Counter[tuple[int, int]] = Counter()

    async def race(number: int) -> None:
        name = f"b{number}"
        await share(api, name)

        async def create() -> int:
            body = {"name": name, "size_bytes": MIB, "backend": name}
            return int((await api("POST", VOLUMES, body)).status)

        async def remove() -> int:
            return int((await api("DELETE", f"{BACKENDS}/{name}")).status)

        both = (create(), remove()) if number % 2 else (remove(), create())
        found = await asyncio.gather(*both)
        outcomes[(found[0], found[1]) if number % 2 else (found[1], found[0])] += 1

    await asyncio.gather(*(race(number) for number in range(_ROUNDS)))
    # The create lost: by the database's word (409), or because the name means nothing any more (400, 404).
    assert outcomes.keys() <= {(201, 409), (409, 204), (400, 204), (404, 204)}, outcomes
    await stowage.settle()
