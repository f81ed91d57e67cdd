"""Commands: fences, repeats, budgets, garbage."""

import asyncio
import base64
import itertools
import logging
import sqlite3
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.drivers.base import boot_time_s
from agent.rpc import CommandServer
from agent.volume_checks import objection
from schemas import sealing, subjects
from schemas.agent_rpc import (
    AnyCommand,
    Attach,
    CredentialNonce,
    Discover,
    Discovery,
    DropCredentials,
    Failed,
    Initialize,
    Inspect,
    Nonce,
    Nudge,
    Observation,
    Ok,
    Probe,
    Release,
    Reply,
    ResealCredentials,
    Sealed,
    Stale,
    StoreCredentials,
    Trial,
)
from schemas.bus import Message
from schemas.command import Command
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.ids import HostId, new_id
from schemas.volume_rpc import (
    AttachMode,
    AttachVolume,
    DetachVolume,
    EraseVolume,
    FillVolume,
    HeldVolume,
    ListVolumes,
    MakeVolume,
    PathSource,
    PrepareSource,
    ResizeVolume,
    UrlSource,
    VolumeFormat,
    VolumeListing,
    VolumeSource,
    VolumeSpec,
    WorkReport,
)
from tests.agent.conftest import MakeRig
from tests.agent.fakes import HOST, Rig, World, target
from tests.agent.waiting import until

_numbers = itertools.count()
_json = st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))


def head(backend_id: str, fence: int, **more: Any) -> dict[str, Any]:
    return {"command_id": new_id(), "backend_id": backend_id, "fence": fence, "ttl_ms": 5000, "request_id": "r1"} | more


async def ask_raw(rig: Rig, verb: str, body: bytes) -> Reply:
    reply = f"_INBOX_m.test.{next(_numbers)}"
    await rig.server.handle(Message(subjects.command(HostId(HOST), verb), reply, body))
    answer: Reply = msgspec.json.decode(rig.replies[reply], type=Reply)
    return answer


async def ask(rig: Rig, command: AnyCommand) -> Reply:
    return await ask_raw(rig, str(command.__struct_config__.tag), msgspec.json.encode(command))


def attach(backend_id: str, fence: int, **more: Any) -> Attach:
    return Attach(**head(backend_id, fence, **more), target=target(backend_id), establish=True)


async def test_attach_answers_with_an_observation(rig: Rig, backend_id: str) -> None:
    reply = await ask(rig, attach(backend_id, 5))
    assert isinstance(reply, Ok)
    assert msgspec.json.decode(reply.result, type=Observation).backend_id == backend_id


async def test_fence_lower_is_stale_equal_and_higher_act(rig: Rig, world: World, backend_id: str) -> None:
    assert isinstance(await ask(rig, attach(backend_id, 5)), Ok)
    assert await ask(rig, Release(**head(backend_id, 4))) == Stale(fence=5)
    assert backend_id in world.mounted
    assert isinstance(await ask(rig, Release(**head(backend_id, 5))), Ok)
    assert isinstance(await ask(rig, attach(backend_id, 6)), Ok)
    assert await ask(rig, Probe(**head(backend_id, 5))) == Stale(fence=6)


async def test_fence_of_a_released_backend_still_refuses_the_late_attach(
    make_rig: MakeRig, world: World, backend_id: str
) -> None:
    rig = make_rig()
    await ask(rig, attach(backend_id, 5))
    await ask(rig, Release(**head(backend_id, 6)))
    after = make_rig()
    assert await ask(after, attach(backend_id, 5)) == Stale(fence=6)
    assert world.mounted == {}


async def test_fence_below_the_floor_is_stale_for_the_unknown_alone(rig: Rig, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    rig.journal.raise_floor(100, frozenset())
    assert await ask(rig, attach(new_id(), 99)) == Stale(fence=100)
    assert isinstance(await ask(rig, attach(new_id(), 100)), Ok)
    assert isinstance(await ask(rig, Release(**head(backend_id, 6))), Ok)


async def test_fence_zero_asks_but_never_changes(rig: Rig, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    assert isinstance(await ask(rig, Probe(**head(backend_id, 0))), Ok)
    assert isinstance(await ask(rig, Trial(**head(backend_id, 0), target=target(backend_id))), Ok)
    assert await ask(rig, Release(**head(backend_id, 0))) == Stale(fence=5)


async def test_same_command_twice_acts_once_with_the_same_answer(
    make_rig: MakeRig, world: World, backend_id: str
) -> None:
    rig = make_rig()
    command = attach(backend_id, 5)
    first = await ask(rig, command)
    assert await ask(rig, command) == first
    assert await ask(make_rig(), command) == first
    assert world.calls["attach"] == 1


async def test_same_command_while_it_runs_waits_for_the_one_answer(rig: Rig, world: World, backend_id: str) -> None:
    gate = world.hold("attach")
    command = attach(backend_id, 5)
    both = [asyncio.create_task(ask(rig, command)) for _ in range(2)]
    await until(lambda: world.running["attach" + backend_id])
    gate.set()
    first, second = await asyncio.gather(*both)
    assert first == second
    assert world.calls["attach"] == 1


async def test_failed_command_may_succeed_when_repeated(rig: Rig, world: World, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    world.fail("release", FaultCode.IN_USE)
    command = Release(**head(backend_id, 6))
    failed = await ask(rig, command)
    assert isinstance(failed, Failed)
    assert failed.fault.code is FaultCode.IN_USE
    world.heal()
    assert isinstance(await ask(rig, command), Ok)


async def test_commands_of_one_backend_queue_and_leave_others_alone(rig: Rig, world: World, backend_id: str) -> None:
    gate = world.hold("attach", backend_id)
    waiting = asyncio.create_task(ask(rig, attach(backend_id, 5)))
    await until(lambda: world.running["attach" + backend_id])
    late = asyncio.create_task(ask(rig, Release(**head(backend_id, 6, ttl_ms=0))))
    assert isinstance(await ask(rig, attach(new_id(), 5)), Ok)
    gate.set()
    assert isinstance(await waiting, Ok)
    expired = await late
    assert isinstance(expired, Failed)
    assert (expired.fault.code, expired.is_retryable) == (FaultCode.TIMED_OUT, True)
    assert backend_id in world.mounted


async def test_probe_of_a_busy_backend_joins_the_probe_under_way(rig: Rig, world: World, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    gate = world.hold("probe")
    both = [asyncio.create_task(ask(rig, Probe(**head(backend_id, 0)))) for _ in range(2)]
    await until(lambda: world.running["probe" + backend_id])
    gate.set()
    await asyncio.gather(*both)
    assert world.calls["probe"] == 1


async def test_bug_in_a_driver_answers_without_its_text(
    rig: Rig, world: World, backend_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.faults["attach"] = ValueError("canary")  # type: ignore[assignment]
    reply = await ask(rig, attach(backend_id, 5))
    assert isinstance(reply, Failed)
    assert reply.fault.detail == "internal error on the host; request id r1"
    assert "canary" in caplog.text


async def test_journal_that_cannot_be_written_is_answered_and_nothing_is_done(
    rig: Rig, world: World, backend_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(rig.journal, "remember_fences", full)
    reply = await ask(rig, attach(backend_id, 5))
    assert isinstance(reply, Failed)
    assert "internal error" in reply.fault.detail
    assert not world.calls


async def test_credentials_are_delivered_once_per_nonce(rig: Rig, backend_id: str) -> None:
    async def nonce() -> bytes:
        reply = await ask(rig, CredentialNonce(**head(backend_id, 5), version=1))
        assert isinstance(reply, Ok)
        return msgspec.json.decode(reply.result, type=Nonce).nonce

    sealed = rig.seal(backend_id, 1, await nonce())
    command = StoreCredentials(**head(backend_id, 5), version=1, sealed=sealed)
    assert isinstance(await ask(rig, command), Ok)
    assert rig.store.get(backend_id, 1).get("password") == "pw"
    assert isinstance(await ask(rig, command), Ok), "a repeat is answered from the journal"
    replayed = await ask(rig, StoreCredentials(**head(backend_id, 5), version=1, sealed=sealed))
    assert isinstance(replayed, Failed)
    assert isinstance(await ask(rig, DropCredentials(**head(backend_id, 5))), Ok)
    assert rig.store.held() == {}
    assert await nonce() != await nonce()


async def test_credentials_appear_in_no_journal_and_no_log(
    rig: Rig, backend_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    reply = await ask(rig, CredentialNonce(**head(backend_id, 5), version=1))
    assert isinstance(reply, Ok)
    nonce = msgspec.json.decode(reply.result, type=Nonce).nonce
    await ask(rig, StoreCredentials(**head(backend_id, 5), version=1, sealed=rig.seal(backend_id, 1, nonce, "canary")))
    resealed = await ask(rig, reseal(rig, backend_id, nonce))
    assert isinstance(resealed, Ok)
    rig.world.password = "other"
    await ask(rig, Attach(**head(backend_id, 5), target=target(backend_id, version=1), establish=True))
    files = [path for path in rig.state.root.rglob("*") if path.is_file() and path.parent != rig.state.credentials]
    assert files
    for path in files:
        content = path.read_bytes()
        assert b"canary" not in content
        assert base64.b64encode(nonce) not in content
    assert "canary" not in caplog.text


def reseal(rig: Rig, backend_id: str, nonce: bytes, key: str = "") -> ResealCredentials:
    to_key = key or bytes(rig.key.public_key).hex()
    return ResealCredentials(**head(backend_id, 0), version=1, to_host=HOST, to_key=to_key, nonce=nonce)


async def test_reseal_gives_a_box_for_the_other_host(rig: Rig, backend_id: str) -> None:
    rig.hold_credentials(backend_id, 1)
    nonce = rig.deliveries.nonce(backend_id, 1)
    reply = await ask(rig, reseal(rig, backend_id, nonce))
    assert isinstance(reply, Ok)
    sealed = sealing.sign(msgspec.json.decode(reply.result, type=Sealed).sealed, rig.manager_key)
    assert rig.deliveries.open(backend_id, 1, sealed) == Credentials({"username": "u", "password": "pw"})


@pytest.mark.parametrize("key", ["zz", "00", "00" * 31])
async def test_reseal_for_a_bad_key_or_nothing_held_is_a_fault(rig: Rig, backend_id: str, key: str) -> None:
    missing = await ask(rig, reseal(rig, backend_id, b"n" * 16))
    assert isinstance(missing, Failed)
    assert missing.fault.code is FaultCode.NEEDS_CREDENTIALS
    rig.hold_credentials(backend_id, 1)
    assert isinstance(await ask(rig, reseal(rig, backend_id, b"n" * 16, key)), Failed)


async def test_discover_needs_no_backend(rig: Rig) -> None:
    reply = await ask(rig, Discover(**head("", 0), kind="nfs", config={"server": "nas"}))
    assert isinstance(reply, Ok)
    assert msgspec.json.decode(reply.result, type=Discovery).items[0].title == "/tank"
    assert isinstance(await ask(rig, Discover(**head("", 0), kind="floppy", config={})), Failed)


@pytest.mark.parametrize(("password", "is_right"), [("pw", True), ("wrong-canary", False)])
async def test_discover_opens_the_credentials_sealed_for_it_once(
    rig: Rig, world: World, password: str, is_right: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world.password, delivery = "pw", new_id()
    sealed = rig.seal(delivery, 1, rig.deliveries.nonce(delivery, 1), password)
    command = Discover(**head(delivery, 0), kind="nfs", config={"server": "nas"}, sealed=sealed)
    with caplog.at_level(logging.DEBUG):
        reply = await ask(rig, command)
    if is_right:
        assert isinstance(reply, Ok)
    else:
        assert isinstance(reply, Failed) and reply.fault.code is FaultCode.AUTH_FAILED
    assert "canary" not in caplog.text
    assert rig.store.held() == {}, "nobody keeps them"
    asked = world.calls["discover"]
    assert isinstance(await ask(rig, command), Failed), "the nonce is spent"
    assert 0 < asked == world.calls["discover"]


async def test_discover_with_credentials_that_are_not_sealed_for_it_asks_nothing(rig: Rig, world: World) -> None:
    delivery = new_id()
    for sealed in (b"x", rig.seal(new_id(), 1, rig.deliveries.nonce(delivery, 1))):
        rig.deliveries.nonce(delivery, 1)
        assert isinstance(await ask(rig, Discover(**head(delivery, 0), kind="nfs", config={}, sealed=sealed)), Failed)
    assert world.calls["discover"] == 0


class _DiscoverOfOld(Command, frozen=True, kw_only=True, tag="discover"):
    """As an agent knows it that was built before credentials could be given."""

    kind: str
    config: dict[str, Any]


def test_discover_is_read_by_an_older_agent_and_refused_by_it_with_credentials() -> None:
    decoder = msgspec.json.Decoder(_DiscoverOfOld)
    plain = decoder.decode(msgspec.json.encode(Discover(**head("", 0), kind="nfs", config={"server": "nas"})))
    assert (plain.kind, plain.config, plain.backend_id) == ("nfs", {"server": "nas"}, "")
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(msgspec.json.encode(Discover(**head(new_id(), 0), kind="nfs", config={}, sealed=b"s")))


async def test_nudge_wakes_and_is_not_answered(rig: Rig) -> None:
    command = Nudge(**head("", 0))
    await rig.server.handle(Message(subjects.command(HostId(HOST), "nudge"), "", msgspec.json.encode(command)))
    assert rig.nudges == 1
    assert rig.replies == {}


async def test_answer_beyond_the_bus_limit_is_a_fault(rig: Rig, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.rpc.MAX_MESSAGE_BYTES", 600)
    monkeypatch.setattr("tests.agent.fakes.FakeDriver.discover", _discover_much)
    reply = await ask(rig, Discover(**head("", 0), kind="nfs", config={}))
    assert isinstance(reply, Failed)
    assert "too long" in reply.fault.detail


async def _discover_much(*_: object) -> tuple[object, ...]:
    return ("x" * 1000,)


@pytest.mark.parametrize(
    ("verb", "change"),
    [
        ("release", {}),
        ("attach", {"surprise": 1}),
        ("attach", {"fence": -1}),
        ("attach", {"fence": 2**64}),
        ("attach", {"backend_id": "../../etc"}),
        ("attach", {"backend_id": new_id()}),
        ("attach", {"verb": "format"}),
        ("attach", {"target": None}),
        ("attach", {"ttl_ms": "soon"}),
    ],
)
async def test_command_that_may_not_be_obeyed_is_answered_and_not_done(
    rig: Rig, world: World, backend_id: str, verb: str, change: dict[str, Any]
) -> None:
    body = msgspec.json.decode(msgspec.json.encode(attach(backend_id, 5))) | change
    reply = await ask_raw(rig, verb, msgspec.json.encode(body))
    assert isinstance(reply, Failed)
    assert "cannot read" in reply.fault.detail
    assert not world.calls
    assert rig.host.held() == ()


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"{", b"null", b"[]", b'"attach"', b"[" * 100_000, b"1" * 5000, b'{"verb":1}']
)
async def test_garbage_is_answered_and_deafens_nobody(rig: Rig, backend_id: str, body: bytes) -> None:
    assert isinstance(await ask_raw(rig, "attach", body), Failed)
    assert isinstance(await ask(rig, attach(backend_id, 5)), Ok)


async def test_garbage_any_bytes_never_raise(rig: Rig) -> None:
    server: CommandServer = rig.server

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200) | _json.map(msgspec.json.encode))
    def check(body: bytes) -> None:
        handling = server.handle(Message(subjects.command(HostId(HOST), "attach"), "", body))
        with pytest.raises(StopIteration):
            handling.send(None)

    check()


async def test_inspect_then_initialize_ends_attached(rig: Rig, backend_id: str) -> None:
    assert isinstance(await ask(rig, Inspect(**head(backend_id, 0), target=target(backend_id))), Ok)
    assert rig.host.held()[0].generation == 0
    assert isinstance(await ask(rig, Initialize(**head(backend_id, 5), target=target(backend_id), wwid="w1")), Ok)
    assert rig.host.held()[0].generation == 1


async def test_initialize_is_told_until_when_it_may_overwrite_by_the_clock_that_counts_suspends(
    rig: Rig, world: World, backend_id: str
) -> None:
    command = Initialize(**head(backend_id, 5, ttl_ms=7000), target=target(backend_id), wwid="w1")
    before_s = boot_time_s()
    assert isinstance(await ask(rig, command), Ok)
    (deadline,) = world.deadlines
    assert deadline.clock is boot_time_s
    assert before_s + 7 <= deadline.ends_at_s <= boot_time_s() + 7


def test_boot_time_is_that_of_the_kernel_with_suspends() -> None:
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before_s <= boot_time_s() <= time.clock_gettime(time.CLOCK_BOOTTIME)


SPEC = VolumeSpec(locator="0123456789abcdef" * 2, format=VolumeFormat.RAW, size_bytes=4096)
VOLUME = new_id()


def volume_head(backend_id: str, fence: int, **more: Any) -> dict[str, Any]:
    return head(backend_id, fence, volume_id=VOLUME, **more)


def make(backend_id: str, fence: int) -> MakeVolume:
    return MakeVolume(**volume_head(backend_id, fence), spec=SPEC)


async def list_volumes(rig: Rig, backend_id: str) -> VolumeListing:
    reply = await ask(rig, ListVolumes(**head(backend_id, 0)))
    assert isinstance(reply, Ok)
    return msgspec.json.decode(reply.result, type=VolumeListing)


async def test_volume_verbs_from_make_to_erase_act(rig: Rig, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    assert isinstance(await ask(rig, make(backend_id, 5)), Ok)
    filled = await ask(rig, FillVolume(**volume_head(backend_id, 5), spec=SPEC, wait_ms=4000))
    assert isinstance(filled, Ok)
    assert msgspec.json.decode(filled.result, type=WorkReport).is_done
    mode = AttachMode.RW
    assert isinstance(await ask(rig, AttachVolume(**volume_head(backend_id, 6), spec=SPEC, epoch=1, mode=mode)), Ok)
    assert isinstance(await ask(rig, DetachVolume(**volume_head(backend_id, 7), spec=SPEC, epoch=1)), Ok)
    assert isinstance(await ask(rig, ResizeVolume(**volume_head(backend_id, 8), spec=SPEC, size_bytes=8192)), Ok)
    assert [item.size_bytes for item in (await list_volumes(rig, backend_id)).items] == [8192]
    assert isinstance(await ask(rig, EraseVolume(**volume_head(backend_id, 9), spec=SPEC)), Ok)
    assert (await list_volumes(rig, backend_id)).items == ()


async def test_volume_fence_is_counted_by_volume_and_not_by_backend(rig: Rig, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 50))
    assert isinstance(await ask(rig, make(backend_id, 5)), Ok)
    assert isinstance(await ask(rig, EraseVolume(**volume_head(backend_id, 7), spec=SPEC)), Ok)
    assert await ask(rig, make(backend_id, 6)) == Stale(fence=7)
    assert await ask(rig, FillVolume(**volume_head(backend_id, 6), spec=SPEC, wait_ms=0)) == Stale(fence=7)
    assert await ask(rig, Release(**head(backend_id, 49))) == Stale(fence=50)
    assert rig.journal.fence(VOLUME) == 7


async def test_volume_work_with_fence_zero_is_stale_and_begins_nothing(rig: Rig, world: World, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    await ask(rig, make(backend_id, 5))
    command = FillVolume(**volume_head(backend_id, 0), spec=SPEC, wait_ms=4000)
    assert await ask(rig, command) == Stale(fence=5)
    assert world.calls["open"] == 0


async def test_volume_command_twice_acts_once(rig: Rig, world: World, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    command = make(backend_id, 5)
    assert await ask(rig, command) == await ask(rig, command)
    assert world.calls["make"] == 1


async def test_volume_work_neither_holds_the_backend_nor_waits_for_it(rig: Rig, world: World, backend_id: str) -> None:
    await ask(rig, attach(backend_id, 5))
    await ask(rig, make(backend_id, 5))
    gate = world.hold("settle")
    filling = asyncio.create_task(ask(rig, FillVolume(**volume_head(backend_id, 5), spec=SPEC, wait_ms=4000)))
    await until(lambda: world.calls["settle"])
    assert isinstance(await ask(rig, Probe(**head(backend_id, 0))), Ok)
    async with rig.host.lock(backend_id):
        gate.set()
        assert isinstance(await filling, Ok)


async def test_volume_attached_comes_back_when_its_backend_is_attached_again(
    rig: Rig, world: World, backend_id: str
) -> None:
    await ask(rig, attach(backend_id, 5))
    await ask(rig, make(backend_id, 5))
    await ask(rig, AttachVolume(**volume_head(backend_id, 5), spec=SPEC, epoch=1, mode=AttachMode.RW))
    rig.held.hear((HeldVolume(volume_id=VOLUME, epoch=1),), 6)
    world.mounted.clear()
    await ask(rig, attach(backend_id, 7))
    assert world.calls["volume_attach"] == 2


URL = UrlSource(url="https://example.org/a", format=VolumeFormat.RAW, sha256="0" * 64)
_spec = msgspec.to_builtins(SPEC)


@pytest.mark.parametrize(
    ("command", "change"),
    [
        (make("", 5), {"volume_id": "../../etc"}),
        (make("", 5), {"spec": _spec | {"locator": "../" * 10 + "aa"}}),
        (make("", 5), {"spec": _spec | {"locator": "A" * 32}}),
        (make("", 5), {"spec": _spec | {"locator": "0" * 32 + "\n"}}),
        (make("", 5), {"spec": _spec | {"size_bytes": 0}}),
        (make("", 5), {"spec": _spec | {"size_bytes": -512}}),
        (make("", 5), {"spec": _spec | {"size_bytes": 513}}),
        (make("", 5), {"spec": _spec | {"size_bytes": 2**63}}),
        (make("", 5), {"spec": _spec | {"format": "vmdk"}}),
        (make("", 5), {"origin": _spec | {"locator": "x"}}),
        (ResizeVolume(**volume_head("", 5), spec=SPEC, size_bytes=512), {"size_bytes": 0}),
        (ResizeVolume(**volume_head("", 5), spec=SPEC, size_bytes=512), {"size_bytes": 1000}),
        (DetachVolume(**volume_head("", 5), spec=SPEC, epoch=1), {"epoch": 0}),
        (DetachVolume(**volume_head("", 5), spec=SPEC, epoch=1), {"epoch": 2**62 + 1}),
        (
            FillVolume(**volume_head("", 5), spec=SPEC, source=VolumeSource(spec=SPEC), wait_ms=1),
            {"source": {"from": "volume", "spec": _spec | {"locator": ".."}}},
        ),
        (
            FillVolume(**volume_head("", 5), spec=SPEC, source=VolumeSource(spec=SPEC), wait_ms=1),
            {"source": {"from": "volume", "spec": _spec, "backend_id": "../.."}},
        ),
        (
            PrepareSource(**volume_head("", 5), source=URL, wait_ms=1),
            {"source": {"from": "url", "url": "https://example.org/a", "format": "raw", "sha256": ""}},
        ),
        (
            PrepareSource(**volume_head("", 5), source=URL, wait_ms=1),
            {"source": {"from": "path", "path": "/a", "format": "raw", "sha256": "z" * 64}},
        ),
    ],
)
async def test_volume_command_that_may_not_be_obeyed_is_answered_and_not_done(
    rig: Rig, world: World, backend_id: str, command: AnyCommand, change: dict[str, Any]
) -> None:
    await ask(rig, attach(backend_id, 5))
    calls = world.calls.total()
    body = msgspec.json.decode(msgspec.json.encode(command)) | {"backend_id": backend_id}
    reply = await ask_raw(rig, body["verb"], msgspec.json.encode(body | change))
    assert isinstance(reply, Failed)
    assert "cannot read" in reply.fault.detail
    assert world.calls.total() == calls


@pytest.mark.parametrize(
    "source", [None, URL, PathSource(path="/a", format=VolumeFormat.RAW), VolumeSource(spec=SPEC, backend_id=new_id())]
)
def test_volume_command_in_order_is_not_objected_to(source: Any) -> None:
    assert objection(FillVolume(**volume_head(new_id(), 5), spec=SPEC, source=source, wait_ms=1)) == ""
