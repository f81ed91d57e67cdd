"""Volumes as files, in real worker processes."""

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import byte_copies
from agent.drivers.local_file import LocalFile
from agent.errors import AgentFault
from agent.file_volumes import FileVolumes
from agent.jobs import MARKER_NAME
from agent.packages import how_to_install
from agent.volumes import VolumeStore
from agent.workers import WorkerPool
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.faults import Fault, FaultCode
from schemas.volume_rpc import AttachedAt, AttachMode, FoundVolume, VolumeFormat, VolumeSpec, Wipe
from tests.agent.mounting import needs_root, tmpfs
from tests.agent.spaces import make_space
from tests.agent.volume_files import (
    LOCATOR,
    MARKER,
    MIB,
    OTHER,
    backend_folder,
    content_of,
    holder,
    needs_qemu,
    needs_xfs,
    xfs,
)
from tests.processes import runs

BACKEND = MARKER["backend_id"]
TARGET = Target(backend_id=BACKEND, fleet_id=MARKER["fleet_id"], kind="nfs", config={}, generation=1)
SHOWN = "10.0.0.5:/tank/vms"
RAW = VolumeSpec(locator=LOCATOR, format=VolumeFormat.RAW, size_bytes=2 * MIB)
QCOW2 = VolumeSpec(locator=OTHER, format=VolumeFormat.QCOW2, size_bytes=2 * MIB)
both_formats = pytest.mark.parametrize(
    "spec", [pytest.param(RAW, id="raw"), pytest.param(QCOW2, id="qcow2", marks=needs_qemu)]
)


@pytest.fixture
async def workers() -> AsyncIterator[WorkerPool]:
    async with WorkerPool() as pool:
        yield pool


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    return backend_folder(tmp_path / "backend")


@pytest.fixture
def store(workers: WorkerPool, backend: Path) -> FileVolumes:
    return FileVolumes(workers, backend, None, TARGET, SHOWN)


def path_of(backend: Path, spec: VolumeSpec) -> Path:
    return backend / "volumes" / f"{spec.locator}.{spec.format}"


async def fault_of(awaitable: Any) -> Fault:
    with pytest.raises(AgentFault) as caught:
        await awaitable
    return caught.value.fault


def sized(spec: VolumeSpec, size_bytes: int) -> VolumeSpec:
    return msgspec.structs.replace(spec, size_bytes=size_bytes)


def is_a_volume_store(store: FileVolumes) -> VolumeStore:
    return store


@both_formats
async def test_volume_is_made_filled_settled_attached_detached_and_erased(
    spec: VolumeSpec, store: FileVolumes, backend: Path, workers: WorkerPool, tmp_path: Path
) -> None:
    assert await is_a_volume_store(store).make(spec, None) is False
    (tmp_path / "image").write_bytes(b"x" * MIB)
    async with store.opened(spec, is_writable=True) as target:
        source = replace(target, folder=tmp_path, name="image", format=VolumeFormat.RAW, size_bytes=MIB)
        await byte_copies.copy(workers, source, target, key="k", progress=tmp_path / "progress")
    await store.settle(spec)
    for mode in AttachMode:
        assert await store.attach(spec, mode) == AttachedAt(path=str(path_of(backend, spec)), type="file")
    assert content_of(path_of(backend, spec), str(spec.format), tmp_path) == b"x" * MIB + bytes(MIB)
    for _ in range(2):
        await store.detach(spec)
    await store.wipe(spec, Wipe.ZERO, tmp_path / "progress")
    assert path_of(backend, spec).exists()
    for _ in range(2):
        await store.erase(spec)
    assert os.listdir(backend / "volumes") == []


@needs_qemu
async def test_volume_whose_filling_was_killed_amid_its_header_is_filled_anew(
    store: FileVolumes, backend: Path, workers: WorkerPool, tmp_path: Path
) -> None:
    await store.make(QCOW2, None)
    path_of(backend, QCOW2).write_bytes(b"QFI")
    fault = await fault_of(store.opened(QCOW2, is_writable=False).__aenter__())
    assert fault.code is FaultCode.WRONG_SIZE
    async with store.opened(QCOW2, is_writable=True) as target:
        await byte_copies.blank(workers, target, key="k", progress=tmp_path / "progress")
    await store.settle(QCOW2)


@both_formats
async def test_volume_that_is_gone_is_volume_missing_under_the_place_that_the_operator_knows(
    spec: VolumeSpec, store: FileVolumes, backend: Path
) -> None:
    (backend / "volumes").mkdir()
    for awaitable in (
        store.attach(spec, AttachMode.RW),
        store.settle(spec),
        store.resize(spec, 4 * MIB, may_shrink=False),
        store.opened(spec, is_writable=False).__aenter__(),
    ):
        fault = await fault_of(awaitable)
        assert fault.code is FaultCode.VOLUME_MISSING
        assert fault.detail == f"{SHOWN}/volumes/{spec.locator}.{spec.format} is not there"
    await store.detach(spec)
    await store.fence_off(spec)


@both_formats
async def test_volume_of_another_size_is_wrong_size(spec: VolumeSpec, store: FileVolumes) -> None:
    await store.make(spec, None)
    for wanted in (MIB, 3 * MIB):
        for awaitable in (
            store.attach(sized(spec, wanted), AttachMode.RW),
            store.settle(sized(spec, wanted)),
            store.opened(sized(spec, wanted), is_writable=False).__aenter__(),
        ):
            fault = await fault_of(awaitable)
            assert "drift report" in fault.remedy
            assert fault.code is FaultCode.WRONG_SIZE
            assert str(2 * MIB) in fault.detail and str(wanted) in fault.detail and SHOWN in fault.detail


async def test_volume_of_which_a_process_writes_cannot_be_detached_or_erased_and_is_fenced_off(
    store: FileVolumes, backend: Path
) -> None:
    await store.make(RAW, None)
    with holder(path_of(backend, RAW)) as process:
        fault = await fault_of(store.detach(RAW))
        assert fault.code is FaultCode.IN_USE
        assert f"({process.pid})" in fault.detail and f"{SHOWN}/volumes/{LOCATOR}.raw" in fault.detail
        assert (await fault_of(store.erase(RAW))).code is FaultCode.IN_USE
        assert runs(process.pid)
        for _ in range(2):
            await store.fence_off(RAW)
        assert not runs(process.pid)
    await store.detach(RAW)


async def test_volume_of_which_a_process_writes_is_no_source_but_one_that_is_read_is(
    store: FileVolumes, backend: Path
) -> None:
    await store.make(RAW, None)
    with holder(path_of(backend, RAW)) as process:
        fault = await fault_of(store.opened(RAW, is_writable=False).__aenter__())
        assert fault.code is FaultCode.IN_USE
        assert f"({process.pid})" in fault.detail and "Stop the VM" in fault.remedy
        await store.attach(RAW, AttachMode.RW)
    with holder(path_of(backend, RAW), "rb"):
        async with store.opened(RAW, is_writable=False) as source:
            assert source.size_bytes == 2 * MIB


@needs_qemu
async def test_volume_that_was_cut_short_is_neither_attached_nor_a_source(store: FileVolumes, backend: Path) -> None:
    await store.make(QCOW2, None)
    os.truncate(path_of(backend, QCOW2), 100_000)
    for awaitable in (store.attach(QCOW2, AttachMode.RW), store.opened(QCOW2, is_writable=False).__aenter__()):
        fault = await fault_of(awaitable)
        assert fault.code is FaultCode.WRONG_SIZE
        assert "cut short" in fault.detail and "drift report" in fault.remedy


async def test_volume_at_whose_place_is_a_link_tells_what_to_move_under_the_name_that_is_known(
    store: FileVolumes, backend: Path
) -> None:
    (backend / "volumes").mkdir()
    path_of(backend, RAW).symlink_to("/etc/hostname")
    fault = await fault_of(store.attach(RAW, AttachMode.RW))
    place = f"{SHOWN}/volumes/{LOCATOR}.raw"
    assert (fault.code, fault.detail) == (FaultCode.FOREIGN_DATA, f"a symbolic link lies at {place}")
    assert place in fault.remedy
    assert [volume.locator for volume in await store.list()] == [""]


async def test_volume_that_a_process_has_open_by_another_name_is_not_detached_and_is_fenced_off(
    store: FileVolumes, backend: Path, tmp_path: Path
) -> None:
    """As Firecracker's jailer, which links disks into the folder that it locks a machine into."""
    await store.make(RAW, None)
    os.link(path_of(backend, RAW), tmp_path / "disk")
    with holder(tmp_path / "disk") as process:
        fault = await fault_of(store.detach(RAW))
        assert (fault.code, f"({process.pid})" in fault.detail) == (FaultCode.IN_USE, True)
        await store.fence_off(RAW)
        assert not runs(process.pid)
    await store.detach(RAW)


class Unable:
    """Workers that find no users under the file's name, and fail to say which file it is."""

    def __init__(self, code: FaultCode) -> None:
        self._code = code

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        if job == "identify_volume_file":
            raise AgentFault.of(self._code, "told to fail")
        assert args["file"] is None
        return {"killed": 0, "users": [], "count": 0}


async def test_volume_whose_other_users_cannot_be_told_is_neither_detached_nor_fenced_off(backend: Path) -> None:
    """On a kernel that tells no inodes; while the storage is dead, its name must do."""
    store = FileVolumes(Unable(FaultCode.FOREIGN_DATA), backend, None, TARGET, SHOWN)
    for awaitable in (store.detach(RAW), store.fence_off(RAW)):
        assert (await fault_of(awaitable)).code is FaultCode.FOREIGN_DATA
    dead = FileVolumes(Unable(FaultCode.HUNG), backend, None, TARGET, SHOWN)
    await dead.detach(RAW)
    await dead.fence_off(RAW)


class Undying:
    """Workers whose kills help nothing."""

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        users = [[number, "qemu-system-x86", True] for number in range(1, 6)]
        return {"killed": 5, "users": users, "count": 25, "file": None}


async def test_volume_whose_users_do_not_die_is_not_fenced_off(backend: Path) -> None:
    fault = await fault_of(FileVolumes(Undying(), backend, None, TARGET, SHOWN).fence_off(RAW))
    assert fault.code is FaultCode.IN_USE
    assert "qemu-system-x86 (1), qemu-system-x86 (2), qemu-system-x86 (3) and 22 more" in fault.detail


class Hung:
    """Workers of which those that touch the storage hang."""

    def __init__(self, workers: WorkerPool) -> None:
        self._workers = workers

    async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
        if not key.endswith(":users"):
            raise AgentFault.of(FaultCode.HUNG, "an earlier job on this storage is still stuck in the kernel")
        return await self._workers.run(job, args, key=key, timeout_s=timeout_s)


async def test_volume_on_storage_that_hangs_is_fenced_off_all_the_same(
    store: FileVolumes, workers: WorkerPool, backend: Path
) -> None:
    await store.make(RAW, None)
    hung = FileVolumes(Hung(workers), backend, None, TARGET, SHOWN)
    with holder(path_of(backend, RAW)) as process:
        assert (await fault_of(hung.erase(RAW))).code is FaultCode.HUNG
        await hung.fence_off(RAW)
        assert not runs(process.pid)
    await hung.detach(RAW)


@both_formats
async def test_volume_grows_and_shrinks_only_where_it_may(spec: VolumeSpec, store: FileVolumes) -> None:
    await store.make(spec, None)
    await store.resize(spec, 4 * MIB, may_shrink=False)
    await store.settle(sized(spec, 4 * MIB))
    fault = await fault_of(store.resize(sized(spec, 4 * MIB), MIB, may_shrink=False))
    assert fault.code is FaultCode.UNSUPPORTED
    await store.resize(sized(spec, 4 * MIB), MIB, may_shrink=True)
    await store.settle(sized(spec, MIB))


async def test_volume_with_a_larger_origin_is_wrong_size_and_not_made(store: FileVolumes, backend: Path) -> None:
    await store.make(sized(QCOW2, 512), None)
    assert (await fault_of(store.make(RAW, sized(QCOW2, 4 * MIB)))).code is FaultCode.WRONG_SIZE
    assert not path_of(backend, RAW).exists()


async def test_volume_with_an_origin_of_another_format_is_left_to_be_filled(store: FileVolumes) -> None:
    await store.make(QCOW2, None)
    assert await store.make(RAW, QCOW2) is False


@needs_xfs
async def test_volume_with_an_origin_on_storage_that_shares_blocks_is_filled_at_once(
    workers: WorkerPool, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with xfs(place, tmp_path / "image"):
        backend_folder(place)
        store = FileVolumes(workers, place, place, TARGET, SHOWN)
        await store.make(RAW, None)
        path_of(place, RAW).write_bytes(b"x" * 2 * MIB)
        clone = VolumeSpec(locator=OTHER, format=VolumeFormat.RAW, size_bytes=3 * MIB)
        assert await store.make(clone, RAW) is True
        await store.settle(clone)
        assert path_of(place, clone).read_bytes() == b"x" * 2 * MIB + bytes(MIB)


@needs_root
async def test_volumes_of_a_mount_that_went_away_are_not_touched(workers: WorkerPool, tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    store = FileVolumes(workers, root, root, TARGET, SHOWN)
    with tmpfs(root):
        backend_folder(root)
        await store.make(RAW, None)
    for awaitable in (store.make(RAW, None), store.erase(RAW), store.list(), store.attach(RAW, AttachMode.RW)):
        with pytest.raises(AgentFault) as caught:
            await awaitable
        assert caught.value.fault.code is FaultCode.NOT_A_MOUNTPOINT
        assert caught.value.fault.detail == f"{SHOWN} is not mounted on this host"
        assert caught.value.is_retryable
    assert os.listdir(root) == []


async def test_volumes_without_the_marker_are_neither_made_nor_taken_for_absent(
    workers: WorkerPool, tmp_path: Path
) -> None:
    store = FileVolumes(workers, tmp_path, None, TARGET, SHOWN)
    for awaitable in (store.make(RAW, None), store.erase(RAW), store.list()):
        fault = await fault_of(awaitable)
        assert (fault.code, SHOWN in fault.detail) == (FaultCode.MARKER_MISSING, True)
    assert os.listdir(tmp_path) == []


async def test_volumes_under_another_backend_s_marker_are_neither_made_nor_taken_for_absent(
    workers: WorkerPool, backend: Path
) -> None:
    for field in MARKER:
        other = msgspec.structs.replace(TARGET, **{field: "other"})
        store = FileVolumes(workers, backend, None, other, SHOWN)
        for awaitable in (store.make(RAW, None), store.erase(RAW), store.list()):
            fault = await fault_of(awaitable)
            assert (fault.code, SHOWN in fault.detail) == (FaultCode.MARKER_MISMATCH, True)
            assert (BACKEND in fault.detail, "mounted" in fault.remedy) == (True, True)
    assert os.listdir(backend) == [MARKER_NAME]


async def test_volumes_without_the_tool_name_its_package(
    workers: WorkerPool, backend: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.qemu_img._PATH", "/nowhere")

    class Here:
        """Workers that are this process, so that the patch holds."""

        async def run(self, job: str, args: Mapping[str, Any], *, key: str, timeout_s: float) -> dict[str, Any]:
            from agent.jobs import JOBS
            from agent.workers import _outcome  # pyright: ignore[reportPrivateUsage]

            return _outcome(job, msgspec.json.encode({"answer": JOBS[job](dict(args))}))

    fault = await fault_of(FileVolumes(Here(), backend, None, TARGET, SHOWN).make(QCOW2, None))
    assert (fault.code, fault.remedy) == (FaultCode.TOOL_MISSING, how_to_install("qemu-img"))
    assert "qemu-utils" in fault.remedy
    assert os.listdir(backend / "volumes") == []


@needs_qemu
async def test_list_of_volumes_names_ours_and_others_in_order(store: FileVolumes, backend: Path) -> None:
    assert await store.list() == ()
    await store.make(RAW, None)
    await store.make(QCOW2, None)
    for name in ("a.img", f"{LOCATOR}.vmdk", f"{'A' * 32}.raw", "b\udcff"):
        (backend / "volumes" / name).write_bytes(b"x" * 5000)
    found = await store.list()
    assert [volume.name for volume in found] == sorted(
        [f"{LOCATOR}.raw", f"{LOCATOR}.vmdk", f"{'A' * 32}.raw", "a.img", "b\\xff", f"{OTHER}.qcow2"]
    )
    assert msgspec.json.decode(msgspec.json.encode(found), type=tuple[FoundVolume, ...]) == found
    by_name = {volume.name: volume for volume in found}
    assert by_name[f"{LOCATOR}.raw"] == FoundVolume(
        name=f"{LOCATOR}.raw", locator=LOCATOR, format="raw", size_bytes=2 * MIB, allocated_bytes=0
    )
    assert (by_name[f"{OTHER}.qcow2"].locator, by_name[f"{OTHER}.qcow2"].size_bytes) == (OTHER, 2 * MIB)
    assert {volume.locator for volume in found} == {LOCATOR, OTHER, ""}
    assert by_name["a.img"].size_bytes == 5000


async def test_list_of_volumes_in_many_pages_is_whole(store: FileVolumes, backend: Path) -> None:
    (backend / "volumes").mkdir()
    names = [f"{number:032x}.raw" for number in range(3000)]
    for name in names:
        (backend / "volumes" / name).touch()
    assert [volume.name for volume in await store.list()] == names


async def test_volumes_of_a_local_folder_are_there_once_it_is_attached(workers: WorkerPool, tmp_path: Path) -> None:
    driver, space = LocalFile(workers), make_space(tmp_path / "state", BACKEND)
    target = Target(
        backend_id=BACKEND, fleet_id="f-1", kind="local_file", config={"root_dir": str(tmp_path / "vms")}, generation=1
    )
    with pytest.raises(AgentFault) as caught:
        driver.volumes(target, space)
    assert (caught.value.fault.code, caught.value.is_retryable) == (FaultCode.CONVERGING, True)
    # Who has one open is ended all the same.
    (tmp_path / "vms/volumes").mkdir(parents=True)
    (tmp_path / "vms/volumes" / f"{LOCATOR}.raw").touch()
    with holder(tmp_path / "vms/volumes" / f"{LOCATOR}.raw") as process:
        await driver.volumes(target, space, is_to_fence=True).fence_off(RAW)
        assert not runs(process.pid)
    shutil.rmtree(tmp_path / "vms")
    await driver.attach(target, Credentials({}), space, establish=True)
    store = driver.volumes(target, space)
    await store.make(RAW, None)
    assert (await store.attach(RAW, AttachMode.RW)).path == str(tmp_path / "vms/volumes" / f"{LOCATOR}.raw")
    await store.erase(RAW)
    assert (await driver.release(target, space, remove_marker=True)).left == ()
    assert not (tmp_path / "vms").exists()
