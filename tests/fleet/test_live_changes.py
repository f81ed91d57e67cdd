"""What happens in a fleet is in the stream of whoever watches, within seconds and without reading anything again."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from tests.fleet.fleet import PATIENCE_S, Api, Fleet, until

NFS = {"name": "tank", "kind": "nfs", "config": {"server": "nas", "export": "/tank"}}


@asynccontextmanager
async def watched(api: Api) -> AsyncGenerator[Callable[[Callable[[dict[str, Any]], bool]], Any]]:
    """Waits for a frame of changes of which the condition is true."""
    headers = {"Authorization": f"Bearer {api.token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{api.url}/v1/events/stream?changes=true", headers=headers) as response,
    ):

        async def frame(is_meant: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    text = (await response.content.readuntil(b"\n\n")).decode()
                    if text.startswith("event: changes\n"):
                        changes: dict[str, Any] = msgspec.json.decode(text.split("data: ", 1)[1])
                        if is_meant(changes):
                            return changes

        yield frame


async def test_cell_that_a_failing_driver_turns_arrives_in_the_stream(stowage: Fleet) -> None:
    await stowage.manager()
    for name in ("hv1", "hv2"):
        await stowage.agent(name)
    added = await stowage.api("POST", "/v1/storage_backends", NFS)
    assert added.status == 201, added
    await stowage.settle()
    async with watched(stowage.api) as frame:
        stowage.world.fail("hv2", "probe")
        matrix = (await stowage.api("GET", "/v1/matrix")).body
        (host_id,) = [host["id"] for host in matrix["hosts"] if host["name"] == "hv2"]

        def is_it(changes: dict[str, Any]) -> bool:
            return any(cell["host_id"] == host_id and cell["status"] == "unreachable" for cell in changes["cells"])

        changes = await frame(is_it)
        (cell,) = [each for each in changes["cells"] if each["host_id"] == host_id]
        assert (cell["backend_id"], cell["code"]) == (added.body["id"], "io_error")
        (backend,) = changes["backends"]
        assert (backend["name"], backend["health"]["status"]) == ("tank", "degraded")
        # And when it is well again.
        del stowage.world.script["hv2", "probe"]
        await frame(
            lambda changes: any(cell["host_id"] == host_id and cell["status"] == "healthy" for cell in changes["cells"])
        )


async def test_patch_and_its_operation_arrive_from_this_and_from_another_replica(stowage: Fleet) -> None:
    first = await stowage.manager()
    await stowage.agent("hv1")
    assert (await stowage.api("POST", "/v1/storage_backends", NFS)).status == 201
    second = await stowage.manager("manager-2")

    async def has_heard() -> bool:
        hosts = (await second("GET", "/v1/hosts")).body["items"]
        return all(host["state"] == "online" for host in hosts)

    await until(has_heard, "the second manager to hear the host")
    async with watched(first) as frame:
        for replica, label in ((first, "own"), (second, "other")):
            heard: set[str] = set()
            patched = await replica("PATCH", "/v1/storage_backends/tank", {"config": {"server": label}})
            assert patched.status == 200, patched
            operations = (await replica("GET", "/v1/operations?kind=backend.edit&limit=1")).body["items"]

            def is_it(changes: dict[str, Any], label: str = label, heard: set[str] = heard) -> bool:
                heard.update(changes["operations"])
                return any(backend["config"]["server"] == label for backend in changes["backends"])

            await frame(is_it)

            def has_operation(changes: dict[str, Any], wanted: str = operations[0]["id"]) -> bool:
                return wanted in changes["operations"]

            if operations[0]["id"] not in heard:
                await frame(has_operation)


async def test_operation_that_waits_in_its_first_step_is_told_by_its_start(stowage: Fleet) -> None:
    await stowage.manager()
    await stowage.agent("hv1")
    assert (await stowage.api("POST", "/v1/storage_backends", NFS)).status == 201
    with stowage.world.gate("hv1", "make") as gate:
        async with watched(stowage.api) as frame:
            body = {"name": "disk", "backend": "tank", "size_bytes": 2**20}
            started = await stowage.api("POST", "/v1/volumes", body, Prefer="respond-async")
            assert started.status == 202, started
            await frame(lambda changes: started.body["id"] in changes["operations"])
            await gate.reached.wait()
        gate.open()
    await stowage.settle()


async def test_lost_notifications_make_every_watcher_read_again(stowage: Fleet) -> None:
    await stowage.manager()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {stowage.api.token}"}) as session,
        session.get(f"{stowage.api.url}/v1/events/stream?changes=true") as response,
    ):
        await response.content.readuntil(b"\n\n")
        cut = await stowage.sql(
            "SELECT pg_terminate_backend(pid) AS is_cut FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 7310)"
        )
        assert cut
        async with asyncio.timeout(PATIENCE_S):
            while await response.content.readuntil(b"\n\n") != b"event: resync\ndata: {}\n\n":
                pass
