"""Agents that come back, join, leave; managers that die: whoever returns is right soon, untouched by hand."""

import asyncio
import base64
import contextlib
import functools
import json
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from schemas.bus import Handler, Message
from schemas.ids import HostId
from tests.bus.nats_server import RawPeer
from tests.fleet.audit import event_violations
from tests.fleet.fleet import Answer, Api, Fleet, until
from tests.fleet.lossy_bus import LossyBus, Weather

#: Seconds; the agents of a fleet reconcile every 2 s with jitter, and a change takes its time.
ONE_INTERVAL_S = 5.0
_BACKENDS = "/v1/storage_backends"


def _smb(name: str, password: str = "right") -> dict[str, Any]:
    credentials = {"username": "svc", "password": password}
    return {"name": name, "kind": "smb", "config": {"server": "nas", "share": name}, "credentials": credentials}


def _nfs(name: str) -> dict[str, Any]:
    return {"name": name, "kind": "nfs", "config": {"server": "nas", "export": f"/tank/{name}"}}


async def _add(api: Api, body: dict[str, Any]) -> Answer:
    answer = await api("POST", _BACKENDS, body)
    assert answer.status == 201, answer
    return answer


#: change -> (the request, the driver's verb in the middle of which an agent is stopped)
_CHANGES: dict[str, tuple[Callable[[Api], Any], str]] = {
    "add": (lambda api: api("POST", _BACKENDS, _smb("new")), "attach"),
    "edit": (lambda api: api("PATCH", f"{_BACKENDS}/edited", {"config": {"server": "nas2"}}), "attach"),
    "rotate": (lambda api: api("PATCH", f"{_BACKENDS}/rotated", {"credentials": {"password": "newer"}}), "trial"),
    "delete": (lambda api: api("DELETE", f"{_BACKENDS}/deleted"), "release"),
}


async def _arrange(stowage: Fleet) -> None:
    await stowage.manager(command_ttl_s=0.5)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    stowage.world.passwords.add("newer")
    for name in ("edited", "rotated", "deleted"):
        await _add(stowage.api, _smb(name))


async def _is_right_soon(stowage: Fleet) -> None:
    async def is_right() -> bool:
        return await stowage.disagreement() is None

    try:
        await until(is_right, "the host to be right again", patience_s=ONE_INTERVAL_S)
    except AssertionError:
        raise AssertionError(await stowage.disagreement()) from None

    async def is_healthy() -> bool:
        listed = (await stowage.api("GET", _BACKENDS)).body["items"]
        return all(item["health"]["status"] == "healthy" for item in listed)

    await until(is_healthy, "everything to be green", patience_s=ONE_INTERVAL_S)


def _check_outcome(stowage: Fleet, host: str) -> None:
    servers = sorted(mount["config"]["server"] for mount in stowage.world.mounts(host).values())
    assert servers == ["nas", "nas", "nas2"], "the new and the rotated one, and the edited one with its new server"
    assert sorted(mount["config"]["share"] for mount in stowage.world.mounts(host).values()) == [
        "edited",
        "new",
        "rotated",
    ]


async def test_agent_stopped_before_every_change_is_right_after_its_return(stowage: Fleet) -> None:
    await _arrange(stowage)
    await stowage.stop_agent("hv2")

    for ask, _ in _CHANGES.values():
        answer = await ask(stowage.api)
        assert answer.status < 300, answer

    assert set(stowage.world.mounts("hv2")) != set(stowage.world.mounts("hv1"))
    await stowage.start_agent("hv2")
    await _is_right_soon(stowage)
    _check_outcome(stowage, "hv2")


async def test_agent_stopped_in_the_middle_of_every_change_is_right_after_its_return(stowage: Fleet) -> None:
    await _arrange(stowage)

    for ask, verb in _CHANGES.values():
        is_hit = asyncio.Event()

        def die(is_hit: asyncio.Event = is_hit) -> None:
            # Neither an answer nor a word more, as when its process is killed here.
            if not is_hit.is_set():
                is_hit.set()
                stowage.end_agent("hv2")
            raise asyncio.CancelledError

        stowage.world.script["hv2", verb] = die
        answer = await ask(stowage.api)
        assert answer.status < 300, answer
        assert is_hit.is_set(), "the step never reached the host"
        del stowage.world.script["hv2", verb]
        await stowage.stop_agent("hv2")
        await stowage.start_agent("hv2")
        await _is_right_soon(stowage)

    _check_outcome(stowage, "hv2")


class _Recording(LossyBus):
    """Keeps every command that comes and every answer that goes."""

    def __init__(self, *, seen: list[tuple[str, bytes]], **settings: Any) -> None:
        super().__init__(weather=Weather(), **settings)
        self._seen = seen

    async def publish(self, subject: str, payload: bytes) -> None:
        self._seen.append((subject, payload))
        await super().publish(subject, payload)

    async def _arrive(self, handler: Handler, message: Message) -> None:
        self._seen.append((message.subject, message.data))
        await handler(message)


async def test_credentials_reach_who_lacks_them_from_who_holds_them_unread_by_the_manager(stowage: Fleet) -> None:
    secret = "correct-horse-battery"
    stowage.world.passwords.add(secret)
    seen: list[tuple[str, bytes]] = []
    stowage.make_bus = functools.partial(_Recording, seen=seen)
    await stowage.manager()
    await stowage.agent("hv1")
    await _add(stowage.api, _smb("office", secret))
    # Another manager than the one that was told the password, so this one cannot know it.
    seen.clear()
    await stowage.manager("manager-2")

    await stowage.agent("hv2")
    await _is_right_soon(stowage)

    assert [mount["password"] for mount in stowage.world.mounts("hv2").values()] == [secret]
    asked = [
        json.loads(data) for subject, data in seen if subject.endswith((".reseal_credentials", ".store_credentials"))
    ]
    assert [command["verb"] for command in asked] == ["reseal_credentials", "store_credentials"]
    sealed = base64.b64decode(asked[1]["sealed"])
    assert len(sealed) > 64
    for haystack in (sealed, *(data for _, data in seen)):
        assert secret.encode() not in haystack
        assert base64.b64encode(secret.encode())[:20] not in haystack


async def test_credentials_that_nobody_holds_are_asked_for_and_an_edit_heals(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    await _add(stowage.api, _smb("office"))
    for host in ("hv1", "hv2"):  # both restored with their identity alone: nothing mounted, no journal, no credentials
        await stowage.stop_agent(host)
        state = stowage.states[host]
        lost = (state.credentials.iterdir(), state.root.glob("journal.db*"), (stowage.world.folder / host).iterdir())
        for path in (path for paths in lost for path in paths):
            path.unlink()
    for host in ("hv1", "hv2"):
        await stowage.start_agent(host)

    async def says_so() -> bool:
        cells = (await stowage.api("GET", f"{_BACKENDS}/office/hosts")).body["hosts"]
        return {cell["code"] for cell in cells} == {"needs_credentials"} and all(cell["remedy"] for cell in cells)

    await until(says_so, "both hosts to ask for credentials")
    health = (await stowage.api("GET", f"{_BACKENDS}/office")).body["health"]
    assert (health["status"], health["code"]) == ("unreachable", "needs_credentials")

    part = await stowage.api("PATCH", f"{_BACKENDS}/office", {"credentials": {"password": "right"}})
    assert (part.status, part.body["code"]) == (400, "invalid_field"), "there is no user name left to go with it"
    assert [error["pointer"] for error in part.body["errors"]] == ["/credentials/username"]

    credentials = {"username": "svc", "password": "right"}
    healed = await stowage.api("PATCH", f"{_BACKENDS}/office", {"credentials": credentials})
    assert healed.status == 200, healed
    await _is_right_soon(stowage)


async def test_host_that_joins_later_gets_everything(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    for body in (_smb("a"), _smb("b"), _nfs("c")):
        await _add(stowage.api, body)

    await stowage.agent("hv2")

    await _is_right_soon(stowage)
    assert len(stowage.world.mounts("hv2")) == 3


async def test_host_revoked_is_cut_from_the_bus_and_its_cells_vanish(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    await _add(stowage.api, _nfs("tank"))
    creds = stowage.states["hv2"].bus_creds_file
    peer = await RawPeer.connect(stowage.nats.port, creds)
    (row,) = await stowage.sql("SELECT id::text FROM host WHERE name = 'hv2'")

    answer = await stowage.api("DELETE", "/v1/hosts/hv2")

    assert answer.status == 204, answer
    async with asyncio.timeout(1.0):
        with contextlib.suppress(ConnectionError):
            while (await peer.read_line()) not in (b"", b"-ERR 'Authentication Revoked'\r\n"):
                pass
    with pytest.raises(PermissionError):
        await RawPeer.connect(stowage.nats.port, creds)
    await peer.close()
    backend = (await stowage.api("GET", f"{_BACKENDS}/tank")).body
    assert backend["host_summary"] == {"total": 1, "healthy": 1}
    cells = (await stowage.api("GET", f"{_BACKENDS}/tank/hosts")).body["hosts"]
    assert [cell["host"] for cell in cells] == ["hv1"]
    assert await stowage.sql("SELECT FROM backend_host WHERE host_id = $1", HostId(row["id"])) == []
    await stowage.stop_agent("hv2")
    await _add(stowage.api, _nfs("later"))
    await stowage.settle()


async def test_either_of_two_managers_killed_leaves_the_other_whole_and_the_events_in_order(stowage: Fleet) -> None:
    first = await stowage.child_manager("manager-1")
    second = await stowage.child_manager("manager-2")
    stowage.api = first
    await stowage.agent("hv1")

    async def knows_the_host() -> bool:
        return bool((await second("GET", "/v1/hosts")).body["items"][0]["state"] == "online")

    await until(knows_the_host, "the other replica to know the host")
    apis = {"manager-1": first, "manager-2": second}
    for number in range(6):
        writer, reader = (first, second) if number % 2 else (second, first)
        await _add(writer, _nfs(f"b{number}"))
        await _reads_soon(reader, f"b{number}", {"labels": {}})
        changed = await writer("PATCH", f"{_BACKENDS}/b{number}", {"labels": {"tier": "gold"}})
        assert changed.status == 200
        await _reads_soon(reader, f"b{number}", {"labels": {"tier": "gold"}})

    for killed, alive in (("manager-1", "manager-2"), ("manager-2", "manager-1")):
        load = asyncio.create_task(_change_labels(apis[alive], 30))
        lost = asyncio.create_task(_change_labels(apis[killed], 30))
        stowage.signal(killed, signal.SIGKILL)
        with contextlib.suppress(aiohttp.ClientError):
            await lost
        await load
        await _add(apis[alive], _nfs(f"after-{killed}"))
        apis[killed] = await stowage.child_manager(killed)
        stowage.api = apis[killed]
        await _reads_soon(apis[killed], f"after-{killed}", {})

        async def is_online(api: Api = apis[killed]) -> bool:
            return bool((await api("GET", "/v1/hosts")).body["items"][0]["state"] == "online")

        await until(is_online, "the reborn replica to know the host")

    await stowage.settle()
    assert await event_violations(stowage) == []


async def _reads_soon(api: Api, name: str, wanted: dict[str, Any]) -> None:
    async def is_there() -> bool:
        answer = await api("GET", f"{_BACKENDS}/{name}")
        return answer.status == 200 and wanted.items() <= answer.body.items()

    await until(is_there, f"{name} to be read through the other replica", patience_s=1.0)


async def _change_labels(api: Api, count: int) -> None:
    for number in range(count):
        answer = await api("PATCH", f"{_BACKENDS}/b{number % 6}", {"labels": {"n": f"x{number}"}})
        assert answer.status == 200, answer
