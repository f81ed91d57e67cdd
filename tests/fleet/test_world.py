"""The pretend estate's volumes keep the promises of a VolumeStore, and tell a test what became of them."""

import os
from pathlib import Path

import msgspec
import pytest

from agent.errors import AgentFault
from agent.volumes import VolumeStore
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.ids import new_id
from schemas.kinds import KINDS
from schemas.volume_rpc import AttachMode, VolumeFormat, VolumeSpec, Wipe
from tests.agent.spaces import make_space
from tests.fleet.world import PretendDriver, World

BACKEND = new_id()
SIZE = 4096


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "world").mkdir()
    return World(tmp_path / "world")


def store_of(world: World, host: str, kind: str = "nfs") -> VolumeStore:
    target = Target(backend_id=BACKEND, fleet_id=new_id(), kind=kind, config={}, generation=1)
    return PretendDriver(world, KINDS[kind], host).volumes(target, make_space(world.folder.parent / host, BACKEND))


def new_spec(size_bytes: int = SIZE) -> VolumeSpec:
    return VolumeSpec(locator=os.urandom(16).hex(), format=VolumeFormat.RAW, size_bytes=size_bytes)


async def test_shared_volume_is_seen_by_every_host_and_a_local_one_by_its_own(world: World) -> None:
    shared, local = new_spec(), new_spec()
    await store_of(world, "hv1").make(shared, None)
    await store_of(world, "hv1", "local_file").make(local, None)
    assert (await store_of(world, "hv2").list())[0].locator == shared.locator
    assert await store_of(world, "hv2", "local_file").list() == ()
    assert world.contents(BACKEND) == {shared.locator: bytes(SIZE), local.locator: bytes(SIZE)}


async def test_volume_made_from_an_origin_has_its_content_where_the_storage_clones(world: World) -> None:
    store, origin, clone, empty = store_of(world, "hv1"), new_spec(), new_spec(2 * SIZE), new_spec()
    await store.make(origin, None)
    async with store.opened(origin, is_writable=True) as extent:
        assert extent.is_zero
        (extent.folder / extent.name).write_bytes(b"x" * SIZE)
    async with store.opened(origin, is_writable=False) as extent:
        assert not extent.is_zero
    assert await store.make(clone, origin)
    world.is_cloning = False
    assert not await store_of(world, "hv1").make(empty, origin)
    assert world.contents(BACKEND)[clone.locator] == b"x" * SIZE + bytes(SIZE)
    assert world.contents(BACKEND)[empty.locator] == bytes(SIZE)


async def test_volume_attached_on_a_host_is_its_own_until_detached_or_fenced_off(world: World) -> None:
    one, other, spec = store_of(world, "hv1"), store_of(world, "hv2"), new_spec()
    await one.make(spec, None)
    answer = await one.attach(spec, AttachMode.RW)
    await other.attach(spec, AttachMode.RO)
    assert Path(answer.path).stat().st_size == SIZE
    assert (world.attached("hv1"), world.attached("hv2")) == ({spec.locator}, {spec.locator})
    world.in_use["hv1"].add(spec.locator)
    for refused in (one.detach(spec), one.erase(spec)):
        with pytest.raises(AgentFault) as caught:
            await refused
        assert caught.value.fault.code is FaultCode.IN_USE
    await one.fence_off(spec)
    await other.detach(spec)
    assert (world.attached("hv1"), world.attached("hv2")) == (set(), set())
    assert world.fenced == [("hv1", spec.locator)]
    await one.erase(spec)
    await one.erase(spec)
    assert world.contents(BACKEND) == {}


async def test_volume_that_is_missing_or_of_another_size_is_told(world: World) -> None:
    store, spec = store_of(world, "hv1"), new_spec()
    with pytest.raises(AgentFault) as caught:
        await store.attach(spec, AttachMode.RW)
    assert caught.value.fault.code is FaultCode.VOLUME_MISSING
    await store.make(spec, None)
    await store.resize(spec, 2 * SIZE, may_shrink=False)
    for refused in (store.attach(spec, AttachMode.RW), store.settle(spec), store.resize(spec, SIZE, may_shrink=False)):
        with pytest.raises(AgentFault) as caught:
            await refused
        assert caught.value.fault.code is FaultCode.WRONG_SIZE
    await store.settle(msgspec.structs.replace(spec, size_bytes=2 * SIZE))
    await store.resize(spec, SIZE, may_shrink=True)
    await store.settle(spec)


@pytest.mark.parametrize(
    "verb", ["make", "settle", "wipe", "erase", "resize", "volume_attach", "volume_detach", "fence_off"]
)
async def test_verb_that_is_told_to_fail_on_a_host_fails_there_alone(world: World, verb: str) -> None:
    spec = new_spec()
    await store_of(world, "hv1").make(spec, None)
    world.fail("hv1", verb, FaultCode.HUNG)
    await act(store_of(world, "hv2"), verb, spec)
    with pytest.raises(AgentFault) as caught:
        await act(store_of(world, "hv1"), verb, spec)
    assert caught.value.fault.code is FaultCode.HUNG


async def act(store: VolumeStore, verb: str, spec: VolumeSpec) -> None:
    match verb:
        case "make":
            await store.make(spec, None)
        case "settle":
            await store.settle(spec)
        case "wipe":
            await store.wipe(spec, Wipe.ZERO, Path("/dev/null"))
        case "erase":
            await store.erase(spec)
        case "resize":
            await store.resize(spec, SIZE, may_shrink=False)
        case "volume_attach":
            await store.attach(spec, AttachMode.RW)
        case "volume_detach":
            await store.detach(spec)
        case _:
            await store.fence_off(spec)
