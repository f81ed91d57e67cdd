"""What volumes, images and snapshots are: read from the database, one query a page, whatever replica answers."""

from collections.abc import Mapping, Sequence

from manager import volume_views as views
from manager.errors import Refused
from manager.operations import bad_cursor
from manager.placement import Placement
from manager.registry import Registry
from manager.store import attachments
from manager.store import volumes as store
from manager.store.pool import Pool
from manager.store.volumes import Listed, VolumeRow
from schemas.ids import is_id
from schemas.problems import FieldError, ProblemCode
from schemas.volume_rpc import AttachMode
from schemas.volumes import Explanation, Image, Snapshot, Volume, VolumeRole, VolumeState


class VolumeReads:
    """Each list gives those behind the id `after`, oldest first. What is not there is refused (not_found)."""

    def __init__(self, pool: Pool, registry: Registry, placement: Placement) -> None:
        self._pool = pool
        self._registry = registry
        self._placement = placement

    async def list(
        self,
        *,
        backend: str | None = None,
        host: str | None = None,
        state: VolumeState | None = None,
        is_attached: bool | None = None,
        is_unused: bool | None = None,
        labels: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[Volume]:
        """host: they lie on it, or are attached to it; also one that was revoked."""
        _check_cursor(after)
        backend_id = self._backend_id(backend)
        host_id = self._host_id(host)
        async with self._pool.acquire() as connection:
            found = await store.page(
                connection,
                VolumeRole.VOLUME,
                backend_id=backend_id,
                host_id=host_id,
                state=state,
                is_attached=is_attached,
                is_unused=is_unused,
                labels=labels,
                after=after,
                limit=limit,
            )
            held = await attachments.of_volumes(connection, [each.row.id for each in found])
        return [views.volume(each, held.get(each.row.id, ()), self._registry) for each in found]

    async def get(self, ref: str) -> Volume:
        row = await self.row(ref)
        listed = await self._listed(row)
        async with self._pool.acquire() as connection:
            held = await attachments.of_volume(connection, row.id)
        return views.volume(listed, held, self._registry)

    async def list_images(
        self, *, backend: str | None, labels: Mapping[str, str] | None, after: str | None, limit: int
    ) -> Sequence[Image]:
        _check_cursor(after)
        backend_id = self._backend_id(backend)
        async with self._pool.acquire() as connection:
            found = await store.page(
                connection, VolumeRole.IMAGE, backend_id=backend_id, labels=labels, after=after, limit=limit
            )
        return [views.image(each, self._registry) for each in found]

    async def get_image(self, ref: str) -> Image:
        return views.image(await self._listed(await self.row(ref, VolumeRole.IMAGE)), self._registry)

    async def list_snapshots(self, ref: str, *, after: str | None, limit: int) -> Sequence[Snapshot]:
        _check_cursor(after)
        volume = await self.row(ref)
        async with self._pool.acquire() as connection:
            found = await store.page(connection, VolumeRole.SNAPSHOT, parent_id=volume.id, after=after, limit=limit)
        return [views.snapshot(each, volume, self._registry) for each in found]

    async def get_snapshot(self, ref: str, snapshot: str) -> Snapshot:
        volume = await self.row(ref)
        listed = await self._listed(await self.row(snapshot, VolumeRole.SNAPSHOT, volume.id))
        return views.snapshot(listed, volume, self._registry)

    async def explain(self, ref: str, host: str, mode: AttachMode) -> Explanation:
        """Why the volume can or cannot be attached on the host now with that mode."""
        row, chosen = await self.row(ref), self._placement.host(host, "/query/host")
        reasons = await self._placement.explain(row, chosen, mode)
        return Explanation(host=chosen.name, is_usable=not reasons, reasons=tuple(reasons))

    async def row(self, ref: str, role: VolumeRole = VolumeRole.VOLUME, parent_id: str | None = None) -> VolumeRow:
        """The live one of that role, by id or name."""
        async with self._pool.acquire() as connection:
            row = await store.find(connection, ref, is_id=is_id(ref), role=role, parent_id=parent_id)
        if row is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no {role.value} {ref[:80]}")
        return row

    async def _listed(self, row: VolumeRow) -> Listed:
        async with self._pool.acquire() as connection:
            found = await store.page(connection, row.role, volume_id=row.id, limit=1)
        if not found:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no {row.role.value} {row.name} any more")
        return found[0]

    def _host_id(self, ref: str | None) -> str | None:
        """Of the host that a query names, a revoked one by its id; None: any."""
        if ref is None:
            return None
        host = self._registry.find_host(ref)
        if host is None:
            raise Refused.for_fields([FieldError(pointer="/query/host", detail=f"there is no host {ref[:64]}")])
        return host.id

    def _backend_id(self, ref: str | None) -> str | None:
        """Of the backend that a query names; None: any."""
        return self._placement.named(ref, "/query/backend").id if ref is not None else None


def _check_cursor(after: str | None) -> None:
    if after is not None and not is_id(after):
        raise bad_cursor()
