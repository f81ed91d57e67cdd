"""A host that is root on its machine, and by now somebody else's: what it says and sends harms no other host and no saga."""

import asyncio
import datetime as dt
from collections import Counter
from typing import Any

import msgspec
import pytest

from manager.agents import PER_HOST
from manager.watch import TURNS_AT_ONCE
from schemas import sealing, subjects
from schemas.agent_rpc import Held, Nonce, Observation, Ok, ResealCredentials, Sealed
from schemas.backends import HealthStatus
from schemas.bus import Message
from schemas.credentials import Credentials
from schemas.subjects import Uplink
from tests.fleet.fleet import Fleet, until
from tests.fleet.impostor import in_the_place_of, silence, sync_request, verb_of
from tests.sagas.scenarios import SMB

pytestmark = pytest.mark.slow

BACKENDS = "/v1/storage_backends"


def _seen(backend_id: str, **changes: Any) -> Observation:
    now = dt.datetime.now(dt.UTC)
    seen = Observation(backend_id=backend_id, generation=1, status=HealthStatus.HEALTHY, observed_at=now)
    return msgspec.structs.replace(seen, **changes)


def _ok(result: object) -> bytes:
    return msgspec.json.encode(Ok(result=msgspec.Raw(msgspec.json.encode(result))))


async def _add(fleet: Fleet, body: dict[str, Any] = SMB) -> str:
    added = await fleet.api("POST", BACKENDS, body)
    assert added.status == 201, added
    return str(added.body["id"])


async def test_answer_of_nothing_but_brackets_holds_up_no_removal(stowage: Fleet) -> None:
    await stowage.manager(command_ttl_s=1.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    backend_id = await _add(stowage)
    other = await _add(stowage, SMB | {"name": "other"})

    async def brackets(_: Message) -> bytes:
        return b'{"outcome":"ok","result":' + b"[" * 50_000 + b"]" * 50_000 + b"}"

    async with in_the_place_of(stowage, "hv2", brackets):
        removed = await stowage.api("DELETE", f"{BACKENDS}/{backend_id}", Prefer="return=representation")
        assert (removed.status, removed.body["pending_hosts"]) == (200, ["hv2"]), removed
        assert (await stowage.api("POST", f"{BACKENDS}/{other}/probe")).status == 200
    assert list(stowage.world.mounts("hv1")) == [other]


@pytest.mark.parametrize("changes", [{"credential_version": 2**40}, {"generation": 2**70}, {"order": 2**70}])
async def test_number_beyond_every_column_holds_up_no_edit(stowage: Fleet, changes: dict[str, int]) -> None:
    await stowage.manager(command_ttl_s=1.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    backend_id = await _add(stowage)

    async def boast(message: Message) -> bytes:
        return _ok(msgspec.to_builtins(_seen(backend_id)) | changes) if verb_of(message) != "release" else _ok(None)

    async with in_the_place_of(stowage, "hv2", boast):
        edited = await stowage.api("PATCH", f"{BACKENDS}/{backend_id}", {"config": {"server": "nas2"}})
        assert (edited.status, edited.body["generation"]) == (200, 2), edited
        probed = await stowage.api("POST", f"{BACKENDS}/{backend_id}/probe")
        seen = {host["host"]: (host["status"], host["code"]) for host in probed.body["hosts"]}
        # What it said before it went odd is not what it sees now.
        assert seen == {"hv1": ("healthy", None), "hv2": ("unknown", "timed_out")}
        everything = await stowage.api("POST", f"{BACKENDS}/probe")
        assert everything.status == 200 and "did not answer this probe" in str(everything.body)


async def test_host_that_was_never_brought_credentials_is_never_asked_for_them(stowage: Fleet) -> None:
    await stowage.manager(command_ttl_s=3.0, host_silent_s=2.0)
    for name in ("hv1", "hv2", "hv3"):
        await stowage.agent(name)
    stowage.world.passwords.add("planted")
    backend_id = await _add(stowage, SMB | {"hosts": {"names": ["hv1"]}})
    asked: list[str] = []

    async def plant(message: Message) -> bytes | None:
        asked.append(verb_of(message))
        if verb_of(message) != "reseal_credentials":
            return None
        command = msgspec.json.decode(message.data, type=ResealCredentials)
        box = sealing.box(
            Credentials({"username": "svc", "password": "planted"}),
            host_id=command.to_host,
            host_key=bytes.fromhex(command.to_key),
            backend_id=backend_id,
            version=command.version,
            nonce=command.nonce,
        )
        return _ok(Sealed(sealed=box))

    async with in_the_place_of(stowage, "hv3", plant) as impostor:
        await impostor.sync([Held(backend_id=backend_id, generation=1, credential_version=1, fence=0)])
        await stowage.stop_agent("hv1")  # so that nobody else could be asked

        async def is_offline() -> bool:
            return bool((await stowage.api("GET", "/v1/hosts/hv1")).body["state"] == "offline")

        await until(is_offline, "hv1 to be offline")
        widened = await stowage.api("PATCH", f"{BACKENDS}/{backend_id}", {"hosts": {"names": ["hv1", "hv2"]}})
        assert widened.status == 200, widened

        async def says_what_it_lacks() -> bool:
            hosts = (await stowage.api("GET", f"{BACKENDS}/{backend_id}/hosts")).body["hosts"]
            return bool({host["host"]: host["code"] for host in hosts}["hv2"] == "needs_credentials")

        await until(says_what_it_lacks, "hv2 to say that it has no credentials")
        await stowage.start_agent("hv1")

        async def is_right() -> bool:
            return [mount["password"] for mount in stowage.world.mounts("hv2").values()] == ["right"]

        await until(is_right, "hv2 to have them from hv1")
    assert "reseal_credentials" not in asked


async def test_flood_of_syncs_keeps_no_other_host_waiting(stowage: Fleet) -> None:
    await stowage.child_manager()
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    async with (
        in_the_place_of(stowage, "hv1", silence) as victim,
        in_the_place_of(stowage, "hv2", silence) as loud,
    ):
        subject, request = subjects.uplink(loud.host_id, Uplink.SYNC), sync_request()
        for _ in range(4000):
            await loud.bus.publish(subject, request)
        await victim.sync()  # within the 5 s that an agent has
    assert "host asks faster than it is served" in stowage.log_of("manager-1").read_text()


async def test_junk_without_end_does_not_fill_the_log(stowage: Fleet) -> None:
    await stowage.child_manager()
    await stowage.agent("hv1")
    log = stowage.log_of("manager-1")
    async with in_the_place_of(stowage, "hv1", silence) as loud:
        before = log.stat().st_size
        for _ in range(5000):
            await loud.bus.publish(subjects.uplink(loud.host_id, Uplink.STATUS), b"[" * 300)
        await loud.sync()

        async def has_said_so() -> bool:
            return '"count": 1024' in log.read_text() or '"count":1024' in log.read_text()

        await until(has_said_so, "the log to tell of a thousand")
        assert log.stat().st_size - before < 200_000


async def test_backend_that_flaps_makes_few_events(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    backend_id = await _add(stowage)

    async def status() -> str:
        return str((await stowage.api("GET", f"{BACKENDS}/{backend_id}")).body["health"]["status"])

    async def turns() -> int:
        return len(await stowage.sql("SELECT FROM event WHERE type = 'backend.health_changed'"))

    async with in_the_place_of(stowage, "hv1", silence) as loud:
        for number in range(4 * TURNS_AT_ONCE):
            wanted = HealthStatus.HEALTHY if number % 2 else HealthStatus.UNREACHABLE
            before = await turns()
            await loud.report(_seen(backend_id, order=2**62 + number, status=wanted, credential_version=1))

            async def is_seen(wanted: str = wanted, before: int = before) -> bool:
                return await status() == wanted and (before >= TURNS_AT_ONCE or await turns() > before)

            await until(is_seen, f"turn {number} to be seen")
    assert await turns() == TURNS_AT_ONCE


async def test_questions_that_hang_hold_up_no_saga(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    backend_id = await _add(stowage)
    hangs, asked = asyncio.Event(), Counter[str]()

    async def answer(message: Message) -> bytes | None:
        verb = verb_of(message)
        asked[verb] += 1
        if verb in ("probe", "preflight"):
            await hangs.wait()
            return None
        return _ok(_seen(msgspec.json.decode(message.data)["backend_id"]))

    body = {"name": "other", "kind": "local_file", "config": {"root_dir": "/srv/x"}}
    async with in_the_place_of(stowage, "hv1", answer):
        asking = [asyncio.create_task(stowage.api("POST", f"{BACKENDS}/{backend_id}/probe")) for _ in range(8)]
        asking += [asyncio.create_task(stowage.api("POST", f"{BACKENDS}/preflight", body)) for _ in range(PER_HOST)]

        async def is_busy() -> bool:
            return asked["probe"] + asked["preflight"] == PER_HOST

        await until(is_busy, "every place for questions to be taken")
        assert (await stowage.api("POST", BACKENDS, body)).status == 201
        assert not any(task.done() for task in asking)
        assert asked["probe"] == 1, "those who ask for the same wait for the same answer"
        hangs.set()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_host_that_has_seen_higher_fences_is_heeded_after_a_restore(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    backend_id = await _add(stowage)
    # As an older database would have it:
    await stowage.sql("SELECT setval('fence_seq', 1)")
    edited = await stowage.api("PATCH", f"{BACKENDS}/{backend_id}", {"config": {"server": "nas2"}})
    assert edited.status == 200, edited
    await stowage.sql("SELECT setval('fence_seq', 1)")
    await stowage.stop_agent("hv1")
    await stowage.sql('UPDATE backend SET config = config || \'{"server": "nas3"}\', generation = generation + 1')
    await stowage.start_agent("hv1")

    async def is_right() -> bool:
        return [mount["config"]["server"] for mount in stowage.world.mounts("hv1").values()] == ["nas3"]

    await until(is_right, "hv1 to follow the list that it was given")


async def test_holder_whose_answer_to_its_credentials_is_lost_is_known_as_one(stowage: Fleet) -> None:
    """It has them and works with them, so nobody brings them again: when hv1 goes, others have them from it."""
    await stowage.manager(command_ttl_s=1.0)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    backend_id = await _add(stowage, SMB | {"hosts": {"names": ["hv1"]}})
    is_told = asyncio.Event()

    async def keep_silent(message: Message) -> bytes | None:
        if verb_of(message) == "credential_nonce":
            return _ok(Nonce(nonce=b"n" * 16))
        if verb_of(message) == "store_credentials":
            is_told.set()
        return None

    holders = "SELECT name FROM credential_holder JOIN host ON host.id = host_id ORDER BY name"
    async with in_the_place_of(stowage, "hv2", keep_silent) as newcomer:
        widened = await stowage.api("PATCH", f"{BACKENDS}/{backend_id}", {"hosts": {"names": ["*"]}})
        assert widened.status == 200, widened
        await newcomer.sync()
        async with asyncio.timeout(20):
            await is_told.wait()
        assert [row["name"] for row in await stowage.sql(holders)] == ["hv1", "hv2"]
    assert (await stowage.api("DELETE", "/v1/hosts/hv2")).status == 204
    assert [row["name"] for row in await stowage.sql(holders)] == ["hv1"]
