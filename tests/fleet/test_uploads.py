"""Uploads through everything: client, manager, bus, agent, its disk; whole, broken off, wrong, lost on the way."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest

from manager import uploads
from manager.agents import COMMAND_TTL_S
from manager.sagas.catalog import SAGAS
from manager.sagas.steps import SagaDef
from schemas.bus import Bus, Handler, Message
from schemas.volume_rpc import MAX_CHUNK_BYTES
from tests.fleet.broken_sagas import failing_at, twice_at, undone_twice
from tests.fleet.fleet import Answer, Fleet, until

MIB = 2**20
#: Agents share this busy process: silence for a few seconds must not count as death here.
PATIENT_S = 30.0
CONTENT = os.urandom(3 * MIB + 512)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def fleet(stowage: Fleet) -> Fleet:
    await _ready(stowage)
    return stowage


async def _ready(stowage: Fleet, ttl_s: float = COMMAND_TTL_S, definitions: Mapping[str, SagaDef] = SAGAS) -> None:
    """A manager, one host, and a share for the default."""
    await stowage.manager(command_ttl_s=ttl_s, definitions=definitions, host_silent_s=PATIENT_S)
    await _host_and_share(stowage)


async def _host_and_share(stowage: Fleet) -> None:
    await stowage.agent("hv1")
    body = {"name": "fast", "kind": "nfs", "config": {"server": "nas", "export": "/fast"}, "is_default": True}
    assert (await stowage.api("POST", "/v1/storage_backends", body)).status == 201


class Body:
    """A body that stops after its first `held` bytes until it is let go; those have been asked for once `is_held` is set."""

    def __init__(self, content: bytes = CONTENT, held: int = MIB) -> None:
        self._content = content
        self._held = held
        self.is_held = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content[: self._held]
        self.is_held.set()
        await self.go_on.wait()
        yield self._content[self._held :]


async def _upload(fleet: Fleet, name: str, body: Any = CONTENT, sha256: str = SHA, **query: str) -> Answer:
    body = io.BytesIO(body) if isinstance(body, bytes) else body
    asked = {"sha256": sha256, "source_format": "raw", **query}
    headers = {"Authorization": f"Bearer {fleet.api.token}", "Content-Type": "application/octet-stream"}
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{fleet.api.url}/v1/images/{name}/content", params=asked, data=body, headers=headers) as response,
    ):
        return Answer(response.status, await response.json(), dict(response.headers))


def _kept(fleet: Fleet) -> list[str]:
    return sorted(path.name for path in fleet.states["hv1"].downloads.iterdir())


async def _nothing_is_left(fleet: Fleet) -> None:
    async def is_empty() -> bool:
        return not _kept(fleet)

    await until(is_empty, "the host to keep nothing")
    await fleet.settle()
    assert (await fleet.api("GET", "/v1/images")).body["items"] == []


async def _until_received(fleet: Fleet, size_bytes: int) -> None:
    async def is_there() -> bool:
        return any(path.stat().st_size >= size_bytes for path in fleet.states["hv1"].downloads.iterdir())

    await until(is_there, f"the host to have {size_bytes} bytes")


async def test_upload_becomes_an_image_and_the_host_keeps_nothing_else(fleet: Fleet) -> None:
    answer = await _upload(fleet, "debian", label="os:debian")
    assert answer.status == 201, answer
    image = answer.body
    assert (image["name"], image["source"], image["sha256"]) == ("debian", "upload", SHA)
    assert (image["size_bytes"], image["labels"], image["state"]) == (len(CONTENT), {"os": "debian"}, "ready")
    assert fleet.world.contents(image["backend_id"]) == {image["locator"]: CONTENT}
    assert _kept(fleet) == []
    events = (await fleet.api("GET", f"/v1/events?subject=images/{image['id']}")).body["items"]
    assert [(event["type"], event["data"]["after"]["source"]) for event in events] == [("image.created", "upload")]
    volume = await fleet.api("POST", "/v1/volumes", {"name": "web", "source": {"image": "debian"}})
    assert volume.status == 201, volume
    assert set(fleet.world.contents(image["backend_id"]).values()) == {CONTENT}
    await fleet.settle()


async def test_upload_of_unknown_length_respond_async_is_an_operation(fleet: Fleet) -> None:
    body = Body()
    body.go_on.set()
    headers = {"Authorization": f"Bearer {fleet.api.token}", "Prefer": "respond-async"}
    url = f"{fleet.api.url}/v1/images/debian/content?sha256={SHA}&source_format=raw"
    async with aiohttp.ClientSession() as session, session.put(url, data=body, headers=headers) as response:
        assert response.status == 202
        operation = response.headers["Location"]

    async def is_over() -> bool:
        return bool((await fleet.api("GET", operation)).body["state"] != "running")

    await until(is_over, "the operation to end")
    shown = (await fleet.api("GET", operation)).body
    assert (shown["state"], shown["kind"]) == ("succeeded", "volume.create")
    assert [step["name"] for step in shown["steps"]] == ["reserve", "prepare", "make", "fill", "forget", "finish"]
    assert (await fleet.api("GET", "/v1/images/debian")).body["size_bytes"] == len(CONTENT)
    assert _kept(fleet) == []


async def test_upload_with_a_wrong_digest_is_refused_and_leaves_nothing(fleet: Fleet) -> None:
    answer = await _upload(fleet, "debian", sha256="00" * 32)
    assert (answer.status, answer.body["code"]) == (422, "probe_failed"), answer
    assert [(fault["host"], fault["code"]) for fault in answer.body["faults"]] == [("hv1", "wrong_digest")]
    await _nothing_is_left(fleet)
    assert (await _upload(fleet, "debian")).status == 201


async def test_client_that_breaks_off_leaves_nothing(fleet: Fleet) -> None:
    body = Body()
    sending = asyncio.create_task(_upload(fleet, "debian", body))
    await _until_received(fleet, MIB - MAX_CHUNK_BYTES)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await _nothing_is_left(fleet)
    assert [
        row["n"] for row in await fleet.sql("SELECT count(*) AS n FROM operation WHERE kind = 'volume.create'")
    ] == [0]


async def test_agent_that_goes_away_in_the_middle_is_no_agent_and_starts_again_with_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.5)
    body = Body()
    sending = asyncio.create_task(_upload(fleet, "debian", body))
    await _until_received(fleet, MIB - MAX_CHUNK_BYTES)
    await fleet.stop_agent("hv1")
    body.go_on.set()
    answer = await sending
    assert (answer.status, answer.body["code"]) == (503, "no_agent"), answer
    assert [(fault["host"], fault["code"]) for fault in answer.body["faults"]] == [("hv1", "host_offline")]
    assert answer.headers["Retry-After"] == "5"
    assert len(_kept(fleet)) == 1
    await fleet.agent("hv1")
    await _nothing_is_left(fleet)


async def test_agent_that_starts_again_in_the_middle_has_lost_it_and_says_so(fleet: Fleet) -> None:
    body = Body()
    sending = asyncio.create_task(_upload(fleet, "debian", body))
    await _until_received(fleet, MIB - MAX_CHUNK_BYTES)
    await fleet.stop_agent("hv1")
    await fleet.agent("hv1")
    body.go_on.set()
    answer = await sending
    assert (answer.status, answer.body["code"]) == (503, "no_agent"), answer
    assert "started again" in answer.body["faults"][0]["detail"]
    await _nothing_is_left(fleet)


async def test_two_uploads_at_once_do_not_mix(fleet: Fleet) -> None:
    other = os.urandom(2 * MIB)
    first, second = Body(), Body(other)
    sending = asyncio.gather(
        _upload(fleet, "one", first), _upload(fleet, "two", second, hashlib.sha256(other).hexdigest())
    )
    for body in (first, second):
        await body.is_held.wait()
    for body in (second, first):
        body.go_on.set()
    answers = await sending
    assert [answer.status for answer in answers] == [201, 201], answers
    contents = fleet.world.contents(answers[0].body["backend_id"])
    assert [contents[answer.body["locator"]] for answer in answers] == [CONTENT, other]
    await fleet.settle()


async def test_two_uploads_of_one_name_give_one_image(fleet: Fleet) -> None:
    bodies = (Body(), Body())
    sending = asyncio.gather(*(_upload(fleet, "debian", body) for body in bodies))
    for body in bodies:
        await body.is_held.wait()
        body.go_on.set()
    answers = await sending
    assert sorted(answer.status for answer in answers) == [201, 409], answers
    again = await _upload(fleet, "debian")
    assert (again.status, again.body["code"]) == (409, "name_taken")
    assert _kept(fleet) == []
    await fleet.settle()


async def test_upload_beyond_the_most_is_refused_and_later_taken(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST", 1)
    body = Body()
    sending = asyncio.create_task(_upload(fleet, "one", body))
    await _until_received(fleet, MIB - MAX_CHUNK_BYTES)
    refused = await _upload(fleet, "two")
    assert (refused.status, refused.body["code"]) == (429, "too_many_requests"), refused
    assert "Retry-After" in refused.headers
    body.go_on.set()
    assert (await sending).status == 201
    assert (await _upload(fleet, "two")).status == 201
    await fleet.settle()


async def test_upload_that_has_no_room_is_refused_before_it_is_sent(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.uploads.RESERVE_BYTES", 2**62)
    answer = await _upload(fleet, "debian")
    assert (answer.status, answer.body["code"]) == (422, "probe_failed"), answer
    assert [fault["code"] for fault in answer.body["faults"]] == ["no_space"]
    await _nothing_is_left(fleet)


async def test_upload_to_what_is_not_there_points_into_the_query(fleet: Fleet) -> None:
    for query in ({"backend": "none"}, {"host": "none"}):
        [name] = query
        answer = await _upload(fleet, "debian", **query)
        assert (answer.status, answer.body["code"]) == (400, "invalid_field"), answer
        assert [error["pointer"] for error in answer.body["errors"]] == [f"/query/{name}"]
    await _nothing_is_left(fleet)


class _Forgetful(Bus):
    """For an agent whose answer to every fifth chunk is lost, the first time."""

    def subscribe(self, subject: str, handler: Handler, *, queue: str = "", concurrency: int = 64) -> None:
        count = 0

        async def through(message: Message) -> None:
            nonlocal count
            if message.subject.endswith(".receive_chunk"):
                count += 1
                if count % 5 == 0:
                    # What it does is done, and nobody hears of it.
                    message = Message(message.subject, "", message.data)
            await handler(message)

        super().subscribe(subject, through, queue=queue, concurrency=concurrency)


async def test_upload_goes_on_over_answers_that_are_lost(stowage: Fleet) -> None:
    stowage.make_bus = _Forgetful
    await _ready(stowage, ttl_s=1.0)
    answer = await _upload(stowage, "debian")
    assert answer.status == 201, answer
    assert stowage.world.contents(answer.body["backend_id"])[answer.body["locator"]] == CONTENT
    await stowage.settle()


async def test_chunk_is_below_what_the_bus_takes(fleet: Fleet) -> None:
    """A command of a whole chunk, counted as it goes over the bus."""
    sizes: list[int] = []

    class Measured(Bus):
        def subscribe(self, subject: str, handler: Handler, *, queue: str = "", concurrency: int = 64) -> None:
            async def through(message: Message) -> None:
                sizes.append(len(message.data))
                await handler(message)

            super().subscribe(subject, through, queue=queue, concurrency=concurrency)

    fleet.make_bus = Measured
    await fleet.stop_agent("hv1")
    await fleet.agent("hv1")
    assert (await _upload(fleet, "debian")).status == 201
    assert MAX_CHUNK_BYTES * 4 // 3 < max(sizes) < 256 * 1024


# The saga behind an upload; with another source tests/sagas has it.


@pytest.mark.parametrize("step", ["prepare", "make", "fill", "forget"])
async def test_step_run_twice_ends_the_same(stowage: Fleet, step: str) -> None:
    await _ready(stowage, definitions=twice_at(SAGAS, "volume.create", step))
    answer = await _upload(stowage, "debian")
    assert answer.status == 201, answer
    assert stowage.world.contents(answer.body["backend_id"]) == {answer.body["locator"]: CONTENT}
    assert _kept(stowage) == []
    await stowage.settle()


@pytest.mark.parametrize("step", ["prepare", "make", "fill", "forget"])
async def test_step_fails_after_its_work_leaves_nothing(stowage: Fleet, step: str) -> None:
    await _ready(stowage, definitions=undone_twice(failing_at(SAGAS, "volume.create", step), "volume.create"))
    answer = await _upload(stowage, "debian")
    assert (answer.status, answer.body["code"]) == (422, "probe_failed"), answer
    await _nothing_is_left(stowage)


@pytest.mark.parametrize(
    "line",
    [
        f"{when} volume.create {step} done"
        for when in ("before", "after")
        for step in ("reserve", "prepare", "fill", "forget")
    ],
)
async def test_manager_killed_at_a_line_leaves_an_image_or_nothing(stowage: Fleet, line: str) -> None:
    await stowage.child_manager("doomed", kill_at=line, host_silent_s=PATIENT_S)
    await _host_and_share(stowage)
    with pytest.raises(aiohttp.ClientError):
        await _upload(stowage, "debian")
    await stowage.manager("manager-2", host_silent_s=PATIENT_S)
    await stowage.settle()
    images = (await stowage.api("GET", "/v1/images")).body["items"]
    if line == "before volume.create reserve done":
        # No operation ever knew of it; an hour later the agent throws it away.
        assert (images, len(_kept(stowage))) == ([], 1)
        return
    [image] = images
    assert stowage.world.contents(image["backend_id"]) == {image["locator"]: CONTENT}
    assert _kept(stowage) == []
