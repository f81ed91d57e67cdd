"""Volumes, attachments and leases in the database: what is unique, what excludes what, what a list shows."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from manager.store import attachments, backends, leases, volumes
from manager.store.migrate import migrate
from manager.store.pool import Connection, connect
from manager.store.volumes import VolumeRow
from schemas.hosts import HostSelector
from schemas.ids import new_id
from schemas.volume_rpc import AttachMode, VolumeFormat
from schemas.volumes import VolumeRole, VolumeState

MIB = 2**20


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    connection = await connect(database)
    await migrate(connection)
    yield connection
    await connection.close()


@pytest.fixture
async def backend_id(connection: Connection) -> str:
    return await add_backend(connection, "fast")


async def add_backend(connection: Connection, name: str, state: str = "ready") -> str:
    backend_id = new_id()
    await backends.insert_creating(
        connection, backend_id=backend_id, name=name, kind="local_file", config={}, credential_version=0, labels={},
        selector=HostSelector(),
    )  # fmt: skip
    await connection.execute("UPDATE backend SET state = $2 WHERE id = $1", backend_id, state)
    return backend_id


async def add_host(connection: Connection, name: str) -> str:
    host_id = new_id()
    await connection.execute(
        "INSERT INTO host (id, name, identity_key, sealing_key) VALUES ($1, $2, $2, '')", host_id, name
    )
    return host_id


async def add(connection: Connection, backend_id: str, name: str, **more: Any) -> VolumeRow:
    """A row that is ready unless `more` says otherwise."""
    volume_id = new_id()
    words: dict[str, Any] = {"role": VolumeRole.VOLUME, "state": VolumeState.READY, "size_bytes": MIB} | more
    assert await volumes.insert(
        connection, volume_id=volume_id, name=name, backend_id=backend_id, locator=new_id().replace("-", ""),
        format=VolumeFormat.RAW, **words,
    )  # fmt: skip
    row = await volumes.get(connection, volume_id)
    assert row is not None
    return row


async def attach(connection: Connection, volume_id: str, host_id: str, mode: AttachMode = AttachMode.RW) -> str | None:
    """The attachment's id; None when it is refused."""
    row = await attachments.insert(
        connection, attachment_id=new_id(), volume_id=volume_id, host_id=host_id, mode=mode,
        epoch=await volumes.raise_epoch(connection, volume_id),
    )  # fmt: skip
    return row.id if row else None


async def begin(connection: Connection, key: str, source_id: str | None = None) -> str:
    operation_id = new_id()
    await connection.execute(
        "INSERT INTO operation (id, kind, version, key, subject, params, state, step, deadline, fence, actor, request_id)"
        " VALUES ($1, 'volume.create', 1, $2, '', $3, 'running', 1, now(), 1, '', '')",
        operation_id, key, {"source_id": source_id},
    )  # fmt: skip
    return operation_id


async def names(connection: Connection, role: VolumeRole = VolumeRole.VOLUME, **filters: Any) -> list[str]:
    return [each.row.name for each in await volumes.page(connection, role, limit=10, **filters)]


async def test_name_is_unique_among_the_live_of_its_role(connection: Connection, backend_id: str) -> None:
    first = await add(connection, backend_id, "web")
    await add(connection, backend_id, "web", role=VolumeRole.IMAGE)
    await add(connection, backend_id, "web", role=VolumeRole.TRANSIENT)
    await add(connection, backend_id, "web", role=VolumeRole.TRANSIENT)
    again: dict[str, Any] = {"name": "web", "backend_id": backend_id, "size_bytes": MIB, "role": VolumeRole.VOLUME}

    assert not await volumes.insert(connection, volume_id=new_id(), locator="0" * 32, format=VolumeFormat.RAW, **again)
    await volumes.remove(connection, first.id)
    assert await volumes.insert(connection, volume_id=new_id(), locator="0" * 32, format=VolumeFormat.RAW, **again)


async def test_snapshot_name_is_its_volumes_to_give(connection: Connection, backend_id: str) -> None:
    one, other = await add(connection, backend_id, "one"), await add(connection, backend_id, "other")
    for parent in (one, other):
        await add(connection, backend_id, "before", role=VolumeRole.SNAPSHOT, parent_id=parent.id)

    assert [each.name for each in await volumes.snapshots_of(connection, one.id)] == ["before"]
    found = await volumes.find(connection, "before", is_id=False, role=VolumeRole.SNAPSHOT, parent_id=other.id)
    assert found is not None
    assert found.parent_id == other.id


@pytest.mark.parametrize("state", ["draining", "deleting", "needs_initialization"])
async def test_backend_that_is_not_ready_takes_no_volume(connection: Connection, state: str) -> None:
    backend_id = await add_backend(connection, "slow", state)

    with pytest.raises(asyncpg.CheckViolationError, match="takes no new volumes"):
        await add(connection, backend_id, "web")


async def test_draining_backend_takes_what_an_operation_leaves(connection: Connection) -> None:
    backend_id = await add_backend(connection, "slow", "draining")

    await add(connection, backend_id, "web", role=VolumeRole.TRANSIENT)

    with pytest.raises(asyncpg.CheckViolationError):
        await add(connection, await add_backend(connection, "gone", "deleting"), "web", role=VolumeRole.TRANSIENT)


async def test_exchange_gives_each_the_others_bytes(connection: Connection, backend_id: str) -> None:
    other_backend, host_id = await add_backend(connection, "other"), await add_host(connection, "hv1")
    volume = await add(connection, backend_id, "web")
    transient = await add(
        connection, other_backend, "web", role=VolumeRole.TRANSIENT, host_id=host_id, worker_id=host_id
    )

    after = await volumes.exchange(connection, volume.id, transient.id, size_bytes=2 * MIB)

    assert (after.backend_id, after.locator, after.host_id) == (other_backend, transient.locator, host_id)
    assert (after.size_bytes, after.state, after.worker_id) == (2 * MIB, VolumeState.READY, None)
    left = await volumes.get(connection, transient.id)
    assert left is not None
    assert (left.backend_id, left.locator, left.host_id) == (backend_id, volume.locator, None)
    assert (left.size_bytes, left.state, left.worker_id) == (MIB, VolumeState.DELETING, host_id)
    assert [row.id for row in await volumes.to_delete(connection, rest_s=60, limit=9)] == [transient.id]


async def test_exchange_within_a_backend_that_drains(connection: Connection, backend_id: str) -> None:
    volume = await add(connection, backend_id, "web")
    await connection.execute("UPDATE backend SET state = 'draining' WHERE id = $1", backend_id)
    transient = await add(connection, backend_id, "web", role=VolumeRole.TRANSIENT)

    after = await volumes.exchange(connection, volume.id, transient.id, size_bytes=MIB)

    assert after.locator == transient.locator


async def test_writer_excludes_another_writer_and_a_host_has_it_once(connection: Connection, backend_id: str) -> None:
    volume = await add(connection, backend_id, "web")
    one, other = await add_host(connection, "hv1"), await add_host(connection, "hv2")
    first = await attach(connection, volume.id, one)
    assert first is not None

    assert await attach(connection, volume.id, other) is None
    assert await attach(connection, volume.id, one, AttachMode.RO) is None
    await attachments.close(connection, first)
    assert await attach(connection, volume.id, other) is not None
    [held] = await attachments.of_volume(connection, volume.id)
    assert (held.host_id, held.epoch) == (other, 4)
    assert [(each.volume_id, each.epoch) for each in await attachments.held_by(connection, other)] == [(volume.id, 4)]
    assert await attachments.held_by(connection, one) == []


async def test_list_filters(connection: Connection, backend_id: str) -> None:
    other_backend, host_id = await add_backend(connection, "other"), await add_host(connection, "hv1")
    attached = await add(connection, backend_id, "attached", labels={"tier": "gold"})
    frozen = await add(connection, backend_id, "frozen")
    local = await add(connection, other_backend, "local", host_id=host_id)
    await add(connection, backend_id, "going", state=VolumeState.DELETING)
    await add(connection, backend_id, "before", role=VolumeRole.SNAPSHOT, parent_id=frozen.id)
    await attach(connection, attached.id, host_id)
    operation_id = await begin(connection, f"volume:{local.id}")

    assert await names(connection) == ["attached", "frozen", "local", "going"]
    assert await names(connection, after=frozen.id) == ["local", "going"]
    assert await names(connection, backend_id=other_backend) == ["local"]
    assert await names(connection, host_id=host_id) == ["attached", "local"]
    assert await names(connection, state=VolumeState.DELETING) == ["going"]
    assert await names(connection, is_attached=True) == ["attached"]
    assert await names(connection, is_attached=False) == ["frozen", "local", "going"]
    assert await names(connection, is_unused=True) == ["local", "going"]
    assert await names(connection, labels={"tier": "gold"}) == ["attached"]
    assert await names(connection, VolumeRole.SNAPSHOT, parent_id=frozen.id) == ["before"]
    [listed] = await volumes.page(connection, VolumeRole.VOLUME, volume_id=local.id, limit=1)
    assert (listed.operation_id, listed.snapshots) == (operation_id, 0)
    [listed] = await volumes.page(connection, VolumeRole.VOLUME, volume_id=frozen.id, limit=1)
    assert (listed.operation_id, listed.snapshots) == (None, 1)
    assert await volumes.hosts_in_use(connection, backend_id) == {host_id: 1}


async def test_operation_that_reads_a_volume_keeps_others_from_changing_it(
    connection: Connection, backend_id: str
) -> None:
    volume = await add(connection, backend_id, "web")
    assert await volumes.other_operation(connection, volume.id, None) is None

    reader = await begin(connection, "volume:another", volume.id)

    assert await volumes.other_operation(connection, volume.id, None) == reader
    assert await volumes.other_operation(connection, volume.id, reader) is None
    assert await volumes.changing_operation(connection, volume.id, None) is None
    await connection.execute("UPDATE operation SET state = 'succeeded'")
    assert await volumes.other_operation(connection, volume.id, None) is None


async def test_lease_is_one_hosts_at_a_time(connection: Connection) -> None:
    one, other = await add_host(connection, "hv1"), await add_host(connection, "hv2")
    first, second, third = await begin(connection, "1"), await begin(connection, "2"), await begin(connection, "3")

    async def take(operation_id: str, host_id: str) -> str | None:
        async with connection.transaction():
            return await leases.take(connection, "vg", operation_id=operation_id, host_id=host_id)

    assert await take(first, one) is None
    assert await take(second, one) is None
    assert await take(third, other) == one
    await leases.give_back(connection, "vg", operation_id=first, host_id=one)
    assert await take(third, other) == one
    await leases.give_back(connection, "vg", operation_id=second, host_id=one)
    assert await take(third, other) is None
    assert await take(first, one) == other


async def test_lease_of_an_operation_that_ended_without_an_answer_is_free_when_its_host_answers_another(
    connection: Connection,
) -> None:
    one, other = await add_host(connection, "hv1"), await add_host(connection, "hv2")
    silent, later = await begin(connection, "1"), await begin(connection, "2")

    async def take(operation_id: str, host_id: str) -> str | None:
        async with connection.transaction():
            return await leases.take(connection, "vg", operation_id=operation_id, host_id=host_id)

    assert await take(silent, one) is None
    await connection.execute("UPDATE operation SET state = 'failed' WHERE id = $1", silent)
    assert await take(later, other) == one
    await leases.give_back(connection, "vg", operation_id=later, host_id=other)
    assert await take(later, other) == one, "what another host answers says nothing of this one"
    await leases.give_back(connection, "vg", operation_id=later, host_id=one)
    assert await take(later, other) is None


@pytest.mark.parametrize("how", ["until = now() - interval '1 s'", "revoked"])
async def test_lease_ends_by_time_or_when_its_host_is_out(connection: Connection, how: str) -> None:
    one, other = await add_host(connection, "hv1"), await add_host(connection, "hv2")
    async with connection.transaction():
        await leases.take(connection, "vg", operation_id=new_id(), host_id=one)
    if how == "revoked":
        await connection.execute("UPDATE host SET revoked_at = now() WHERE id = $1", one)
    else:
        await connection.execute(f"UPDATE lease SET {how}")

    async with connection.transaction():
        assert await leases.take(connection, "vg", operation_id=new_id(), host_id=other) is None
