"""NATS killed, away for long, an identity that expires, poison: the fleet goes on, or waits and then goes on by itself."""

import asyncio
import signal
from typing import Any

import pytest

from agent.private_files import write_private
from agent.uplink import claims_of
from schemas import subjects
from schemas.bus import creds_text
from schemas.bus_client import Identity
from schemas.ids import HostId
from schemas.subjects import Uplink
from tests.bus.nats_server import RawPeer, hpub, pub
from tests.bus.test_poison import _poisons  # pyright: ignore[reportPrivateUsage]
from tests.fleet.audit import event_violations, streamed
from tests.fleet.fleet import Fleet, until

pytestmark = pytest.mark.slow

_BACKENDS = "/v1/storage_backends"
_CHANGES = 250  # more than the relay takes in one batch


def _nfs(name: str) -> dict[str, Any]:
    return {"name": name, "kind": "nfs", "config": {"server": "nas", "export": f"/tank/{name}"}}


async def _is_all_well(stowage: Fleet) -> bool:
    hosts = (await stowage.api("GET", "/v1/hosts")).body["items"]
    listed = (await stowage.api("GET", f"{_BACKENDS}?limit=200")).body["items"]
    is_ready = (await stowage.api("GET", "/readyz")).status == 200
    return (
        is_ready
        and all(host["state"] == "online" for host in hosts)
        and all(item["health"]["status"] == "healthy" for item in listed)
    )


async def _recovers(stowage: Fleet) -> None:
    await until(lambda: _is_all_well(stowage), "hosts online, backends green, manager ready")


async def test_bus_killed_twice_under_load_costs_no_event_and_leaves_nothing_odd(stowage: Fleet) -> None:
    await stowage.manager(command_ttl_s=0.5)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    statuses: list[int] = []
    is_over = asyncio.Event()
    added: set[str] = set()

    async def be_a_client(number: int) -> None:
        count = 0
        while not is_over.is_set():
            count += 1
            name = f"b{number}-{count}"
            answer = await stowage.api("POST", _BACKENDS, _nfs(name))
            statuses.append(answer.status)
            if answer.status == 201:
                added.add(name)

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(be_a_client(number))
        for times in (1, 2):
            wanted = len(added) + 5

            async def has_load(wanted: int = wanted) -> bool:
                return len(added) >= wanted

            await until(has_load, f"adds before kill {times}")
            stowage.nats.stop(signal.SIGKILL)
            stowage.nats.start()
        await until(lambda: _is_all_well(stowage), "the fleet to recover under load")
        is_over.set()

    assert set(statuses) <= {201, 202, 422, 503, 504}, set(statuses)
    await _recovers(stowage)
    await stowage.settle()
    rows = await stowage.sql("SELECT name FROM backend WHERE deleted_at IS NULL")
    assert added <= {row["name"] for row in rows}
    assert await event_violations(stowage) == []
    assert (await stowage.api("POST", _BACKENDS, _nfs("afterwards"))).status == 201


async def test_bus_away_while_much_changes_delivers_every_event_once_in_order(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=1.5)
    await stowage.agent("hv1")
    for name in ("a", "b"):
        assert (await stowage.api("POST", _BACKENDS, _nfs(name))).status == 201
    await stowage.settle()

    stowage.nats.stop()
    for number in range(_CHANGES):
        answer = await stowage.api("PATCH", f"{_BACKENDS}/{'ab'[number % 2]}", {"labels": {"n": f"x{number}"}})
        assert answer.status == 200, "what needs no agent needs no bus"
    assert (await stowage.api("GET", "/readyz")).status == 503

    async def is_missed() -> bool:
        statuses = {item["health"]["status"] for item in (await stowage.api("GET", _BACKENDS)).body["items"]}
        return statuses == {"unknown"}

    await until(is_missed, "hosts that nobody hears to count as unknown")
    refused = await stowage.api("POST", _BACKENDS, _nfs("c"))
    assert (refused.status, refused.body["code"]) == (503, "no_agent")
    assert await stowage.sql("SELECT FROM event WHERE published_at IS NULL"), "nothing had to wait: this tests nothing"
    stowage.nats.start()

    await _recovers(stowage)
    await stowage.settle()
    assert await event_violations(stowage) == []
    labels = [event.data["after"]["labels"] for event in await streamed(stowage) if event.type == "backend.updated"]
    assert labels == [{"n": f"x{number}"} for number in range(_CHANGES)]
    assert (await stowage.api("POST", _BACKENDS, _nfs("c"))).status == 201


async def test_bus_identity_about_to_expire_is_renewed_and_the_host_stays(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    assert (await stowage.api("POST", _BACKENDS, _nfs("tank"))).status == 201
    await stowage.stop_agent("hv1")
    state = stowage.states["hv1"]
    seed = state.identity_file.read_text().strip()
    (row,) = await stowage.sql("SELECT id::text, identity_key FROM host")
    short = stowage.nats.auth.mint_agent(HostId(row["id"]), row["identity_key"], lifetime_s=2)
    write_private(state.bus_creds_file, creds_text(short, seed).encode())
    peer = await RawPeer.connect_as(stowage.nats.port, short, seed)

    await stowage.start_agent("hv1")

    # The server itself says when the short identity is over.
    async with asyncio.timeout(10):
        while b"Expired" not in (line := await _next_line(peer)) and line:
            pass
    await peer.close()
    renewed = claims_of(Identity.read(state.bus_creds_file).jwt().decode())
    assert renewed.exp - renewed.iat > 3600

    async def answers() -> bool:
        return (await stowage.api("POST", _BACKENDS, _nfs("later"))).status == 201

    # Its own connection ends in this moment too; until it has made the next one, an add is refused with 503.
    await until(answers, "the host to answer under its new identity")
    await _recovers(stowage)
    await stowage.settle()


async def _next_line(peer: RawPeer) -> bytes:
    try:
        return await peer.read_line()
    except TimeoutError:
        return b" "
    except ConnectionError:
        return b""


def _garbage(up: bytes) -> dict[str, bytes]:
    """Well-formed messages whose bodies are not; `up` as in _poisons."""
    bodies = {
        "nothing": b"",
        "no JSON": b"\xff\xfe\x00",
        "a list": b"[]",
        "null": b"null",
        "deep": b"[" * 20_000,
        "strange observation": b'{"observations":[{"backend_id":"x","generation":-1,"status":"green"}]}',
        "foreign backend": b'{"observations":[{"backend_id":"0192f0c4-7f7e-7000-8000-73746f776167","generation":1,'
        b'"status":"healthy","observed_at":"2999-01-01T00:00:00Z"}]}',
        "huge": b'{"observations":"' + b"x" * 200_000 + b'"}',
    }
    return {
        f"{kind}: {name}": pub(up + kind.encode(), body, reply=up + b"reply")
        for kind in Uplink
        for name, body in bodies.items()
    }


async def test_poison_of_every_sort_from_one_host_deafens_nobody(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    identity = stowage.states["hv2"].bus_creds_file
    (row,) = await stowage.sql("SELECT id::text FROM host WHERE name = 'hv2'")
    up = subjects.uplink(HostId(row["id"]), Uplink.BEAT).removesuffix("beat").encode()
    poisons = {**_poisons(up), **_garbage(up), "sync with poison": hpub(up + b"sync", b"NATS/1.0\r\n\r\n", b"\xff")}
    peer = await RawPeer.connect(stowage.nats.port, identity)

    for number, (name, poison) in enumerate(poisons.items()):
        await peer.ask(poison)
        if number % 4 and number >= len(_poisons(up)):
            continue
        answer = await stowage.api("POST", _BACKENDS, _nfs(f"b{number}"))
        assert answer.status == 201, f"after {name}: {answer}"
        assert answer.body["host_summary"] == {"total": 2, "healthy": 2}, f"after {name}"

    await peer.close()
    await _recovers(stowage)
    await stowage.settle()
    assert await event_violations(stowage) == []
