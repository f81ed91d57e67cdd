"""A host that says it is converging is waited for beyond what a failure would get; and a place is one saga's at a time."""

import asyncio
from functools import partial

from agent.errors import AgentFault
from schemas.faults import FaultCode
from tests.fleet.fleet import Fleet
from tests.sagas.scenarios import SAN, SMB, backends


async def test_add_waits_for_a_host_whose_lockspace_starts(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=30.0)
    await stowage.agent("hv1")
    asked = 0

    def converge() -> None:
        nonlocal asked
        asked += 1
        if asked <= 5:
            raise AgentFault.of(FaultCode.CONVERGING, "the lockspace is starting", is_retryable=True)

    stowage.world.script["hv1", "attach"] = converge

    answer = await stowage.api("POST", "/v1/storage_backends", SMB)

    assert answer.status == 201, answer
    assert asked == 6


async def test_host_that_was_converging_has_all_its_tries_afterwards(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=30.0)
    await stowage.agent("hv1")
    faults = [FaultCode.CONVERGING] * 4 + [FaultCode.IO_ERROR] * 2

    def fail() -> None:
        if faults:
            raise AgentFault.of(faults.pop(0), "not yet", is_retryable=True)

    stowage.world.script["hv1", "attach"] = fail

    answer = await stowage.api("POST", "/v1/storage_backends", SMB)

    assert answer.status == 201, answer


async def test_two_adds_of_one_place_go_one_after_the_other(stowage: Fleet) -> None:
    await stowage.manager(host_silent_s=30.0)
    for name in ("hv1", "hv2"):
        await stowage.agent(name)
    lines: list[str] = []
    for name in ("hv1", "hv2"):
        stowage.world.script[name, "attach"] = partial(lines.append, name)
    bodies = [{**SAN, "name": f"san-{name}", "hosts": {"names": [name]}} for name in ("hv1", "hv2")]

    answers = await asyncio.gather(*(stowage.api("POST", "/v1/storage_backends", body) for body in bodies))

    assert [answer.status for answer in answers] == [201, 201]
    rows = await stowage.sql(
        "SELECT o.id, min(s.ended_at) FILTER (WHERE s.name = 'claim') AS claimed, max(s.ended_at) AS ended"
        " FROM operation o JOIN operation_step s ON s.operation_id = o.id WHERE o.kind = 'backend.add' GROUP BY o.id ORDER BY 2"
    )
    assert rows[0]["ended"] <= rows[1]["claimed"]
    assert sorted(lines) == ["hv1", "hv2"]
    assert len(await backends(stowage)) == 2
