"""What can be done to volumes, images and snapshots: choose who works, start the saga, wait for its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from manager.actor import Actor
from manager.errors import Refused
from manager.operations import Operations, Pending
from manager.placement import Placement, Seat
from manager.registry import Registry
from manager.replacements import (
    as_source,
    key_of,
    migration_params,
    replacement_params,
    source_place,
    subject_of,
)
from manager.sagas.delete_volume import deletion_params, stale
from manager.sagas.detach_volume import refuse_without_answer
from manager.sagas.engine import Engine
from manager.sagas.resize_volume import resize_params
from manager.store import attachments, events
from manager.store import volumes as store
from manager.store.backends import BackendRow
from manager.store.hosts import HostRow
from manager.store.pool import Pool, transaction
from manager.store.volumes import VolumeRow
from manager.volume_place import new_locator, volume_params
from manager.volume_reads import VolumeReads
from schemas.events import EventType
from schemas.ids import is_id, new_id
from schemas.kinds import KINDS
from schemas.problems import FieldError, ProblemCode
from schemas.volume_requests import (
    AttachBody,
    CloneBody,
    CreateImage,
    CreateSnapshot,
    CreateVolume,
    DetachBody,
    EditVolume,
    MigrateBody,
    ResizeBody,
    UploadImage,
    VolumeSourceRef,
)
from schemas.volume_rpc import AttachMode, FileSource, PathSource, Source, UrlSource, VolumeFormat
from schemas.volumes import AttachAnswer, Image, Snapshot, Volume, VolumeRole

_UPDATED = {
    VolumeRole.VOLUME: ("volumes", EventType.VOLUME_UPDATED),
    VolumeRole.IMAGE: ("images", EventType.IMAGE_UPDATED),
}


@dataclass(frozen=True)
class ImagePlace:
    """Where a new image is to lie, as what, and who fetches or receives it."""

    backend: BackendRow
    seat: Seat
    format: VolumeFormat


class Volumes:
    """Use cases. Each that changes something returns Pending when its saga goes on beyond wait_s."""

    def __init__(
        self,
        pool: Pool,
        registry: Registry,
        engine: Engine,
        operations: Operations,
        placement: Placement,
        reads: VolumeReads,
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._engine = engine
        self._operations = operations
        self._placement = placement
        self._reads = reads

    # ---- making

    async def create(self, body: CreateVolume, actor: Actor, wait_s: float) -> Volume | Pending:
        """A new volume, empty or with the source's content."""
        backend = self._placement.named(body.backend, f"/{body.backend_field}")
        source = await self._source(body.source) if body.source else None
        size_bytes = self._placement.place(backend).rounded(body.size_bytes or (source.size_bytes if source else 0))
        if source and size_bytes < source.size_bytes:
            raise Refused.for_fields(
                [
                    FieldError(
                        pointer="/size_bytes", detail=f"must be at least {source.size_bytes}, the size of its source"
                    )
                ]
            )
        format_ = _format(backend, body.format)
        # What a host may be writing to can be frozen there alone, at once.
        writer = await self._writer(source) if source else None
        if writer and body.host not in (None, writer, name := self._registry.host_name(writer)):
            words = f"must be {name}, which may be writing to its source now, or be left out"
            raise Refused.for_fields([FieldError(pointer="/host", detail=words)])
        beside = [(self._placement.backend(source.backend_id), source)] if source else []
        seat = await self._placement.seat_new(backend, writer or body.host, size_bytes or 1, beside=beside)
        volume_id = new_id()
        operation_id = await self._start_create(
            volume_id=volume_id,
            role=VolumeRole.VOLUME,
            name=body.name,
            backend=backend,
            seat=seat,
            format=format_,
            size_bytes=size_bytes,
            labels=body.labels,
            source=as_source(source) if source else None,
            source_row=source,
            source_words=await self._words(source) if source else None,
            is_instant=writer is not None,
            actor=actor,
        )
        return await self._ended(operation_id, volume_id, wait_s)

    async def clone(self, ref: str, body: CloneBody, actor: Actor, wait_s: float) -> Volume | Pending:
        """A new volume with this one's content, on its backend and in its format unless others are asked for."""
        row = await self._reads.row(ref)
        backend = self._placement.named(body.backend or row.backend_id)
        as_it_is = row.format if row.format in KINDS[backend.kind].formats else None
        wanted = CreateVolume(
            name=body.name,
            size_bytes=body.size_bytes,
            backend=backend.id,
            host=body.host,
            format=body.format or as_it_is,
            source=VolumeSourceRef(kind="volume", ref=row.id),
            labels=body.labels,
        )
        return await self.create(wanted, actor, wait_s)

    async def create_image(self, body: CreateImage, actor: Actor, wait_s: float) -> Image | Pending:
        """A new image, its source fetched, checked against its digest, and kept on a backend."""
        place, image_id = await self.image_place(body, 1), new_id()
        source: FileSource
        if body.path is not None:
            source = PathSource(path=body.path, format=body.source_format, sha256=body.sha256)
        else:
            source = UrlSource(url=str(body.url), format=body.source_format, sha256=body.sha256)
        # What stands behind the `?` may be a signature that opens the address, and these words everybody reads.
        words = body.path or str(body.url).partition("?")[0]
        operation_id = await self.start_image(image_id, body, place, source, words, actor)
        return await self.image_ended(operation_id, image_id, wait_s)

    async def image_place(self, body: CreateImage | UploadImage, size_bytes: int) -> ImagePlace:
        """Where the image would come to lie now. Raises Refused, pointing at the field."""
        backend = self._placement.named(body.backend)
        format_ = _format(backend, body.format)
        return ImagePlace(backend, await self._placement.seat_new(backend, body.host, size_bytes), format_)

    async def start_image(
        self,
        image_id: str,
        body: CreateImage | UploadImage,
        place: ImagePlace,
        source: FileSource,
        source_words: str,
        actor: Actor,
    ) -> str:
        """The id of the operation that makes the image from a source which its worker can read."""
        return await self._start_create(
            volume_id=image_id,
            role=VolumeRole.IMAGE,
            name=body.name,
            backend=place.backend,
            seat=place.seat,
            format=place.format,
            size_bytes=0,
            labels=body.labels,
            source=source,
            source_words=source_words,
            sha256=body.sha256,
            actor=actor,
        )

    async def image_ended(self, operation_id: str, image_id: str, wait_s: float) -> Image | Pending:
        done = await self._operations.outcome(operation_id, wait_s) if wait_s > 0 else None
        return await self._reads.get_image(image_id) if done else Pending(operation_id)

    async def create_snapshot(self, ref: str, body: CreateSnapshot, actor: Actor, wait_s: float) -> Snapshot | Pending:
        """The volume as it is now, frozen. While a host writes to it, only storage that shares blocks can do that."""
        volume = await self._reads.row(ref)
        await self._placement.refuse_unready(volume)
        backend = self._placement.backend(volume.backend_id)
        is_instant = await self._writer(volume) is not None
        worker = await self._placement.worker(volume, new_bytes=volume.size_bytes)
        snapshot_id = new_id()
        operation_id = await self._start_create(
            volume_id=snapshot_id,
            role=VolumeRole.SNAPSHOT,
            name=body.name,
            backend=backend,
            seat=Seat(worker, volume.host_id),
            format=volume.format,
            size_bytes=volume.size_bytes,
            labels=body.labels,
            source=as_source(volume),
            source_row=volume,
            source_words=await self._words(volume),
            is_instant=is_instant,
            parent_id=volume.id,
            actor=actor,
        )
        done = await self._operations.outcome(operation_id, wait_s) if wait_s > 0 else None
        if not done:
            return Pending(operation_id)
        return await self._reads.get_snapshot(volume.id, snapshot_id)

    # ---- changing

    async def edit(self, ref: str, body: EditVolume, if_match: int | None, actor: Actor) -> Volume:
        row = await self._edited(await self._reads.row(ref), body, if_match, actor)
        return await self._reads.get(row.id)

    async def edit_image(self, ref: str, body: EditVolume, if_match: int | None, actor: Actor) -> Image:
        row = await self._edited(await self._reads.row(ref, VolumeRole.IMAGE), body, if_match, actor)
        return await self._reads.get_image(row.id)

    async def resize(
        self, ref: str, body: ResizeBody, if_match: int | None, actor: Actor, wait_s: float
    ) -> Volume | Pending:
        row = await self._reads.row(ref)
        await self._placement.refuse_unready(row)
        size_bytes = self._placement.place_of(row).rounded(body.size_bytes)
        if size_bytes < row.size_bytes and not body.may_shrink:
            raise Refused.for_fields(
                [
                    FieldError(
                        pointer="/size_bytes",
                        detail=f"is less than the present {row.size_bytes}; what lies behind it would be cut off:"
                        " shrink the guest's file system first, then ask again with may_shrink",
                    )
                ]
            )
        worker = await self._placement.worker(row)
        params = resize_params(
            row,
            self._placement.place_of(row),
            worker.id,
            size_bytes,
            may_shrink=body.may_shrink,
            if_match=if_match,
        )
        operation_id = await self._engine.start(
            "volume.resize", key=key_of(row), subject=subject_of(row), params=params, actor=actor
        )
        return await self._ended(operation_id, row.id, wait_s)

    async def attach(self, ref: str, body: AttachBody, actor: Actor, wait_s: float) -> AttachAnswer | Pending:
        """The path to give to the hypervisor. Attached there already with this mode: the same again, made ready anew."""
        row, host = await self._reads.row(ref), self._placement.host(body.host)
        await self._placement.refuse_unready(row)
        if await self._writer(row) in (None, host.id):
            # Otherwise the operation refuses it at once, naming who has it.
            await self._placement.worker(_unbound(row), host=host.name)
        operation_id = await self._start(
            "volume.attach", row, host, actor, mode=body.mode.value, attachment_id=new_id()
        )
        done = await self._operations.outcome(operation_id, wait_s) if wait_s > 0 else None
        if not done or not done.result:
            return Pending(operation_id)
        return AttachAnswer(host=host.name, mode=body.mode, **done.result)

    async def detach(self, ref: str, body: DetachBody, actor: Actor, wait_s: float) -> dict[str, Any] | Pending:
        """{"is_confirmed"}: whether the host has said that it lets go; without that only with force."""
        row = await self._reads.row(ref)
        async with self._pool.acquire() as connection:
            held = await attachments.of_volume(connection, row.id)
        if body.host is not None:
            host = self._placement.host(body.host)
        elif not held:
            raise Refused.because(ProblemCode.NOT_FOUND, f"{row.name} is not attached to any host")
        elif len(held) == 1:
            found = self._registry.host_row(held[0].host_id)
            assert found is not None, "a host's row outlives its attachments"
            host = found
        else:
            names = ", ".join(self._registry.host_name(each.host_id) for each in held)
            raise Refused.for_fields([FieldError(pointer="/host", detail=f"is needed: it is attached to {names}")])
        backend = self._placement.backend(row.backend_id)
        if body.force and self._placement.place(backend).is_one_host and not self._registry.is_online(host.id):
            raise Refused(refuse_without_answer(backend.name, host.name))
        operation_id = await self._start("volume.detach", row, host, actor, is_forced=body.force)
        done = await self._operations.outcome(operation_id, wait_s) if wait_s > 0 else None
        return (done.result or {}) if done else Pending(operation_id)

    async def migrate(
        self, row: VolumeRow, body: MigrateBody, if_match: int | None, actor: Actor, wait_s: float
    ) -> Pending | None:
        """The bytes are on another backend, compared before they changed hands. None: done."""
        target = self._placement.named(body.backend)
        params = await migration_params(self._placement, row, target.id, body.host, if_match=if_match)
        operation_id = await self._engine.start(
            "volume.migrate", key=key_of(row), subject=subject_of(row), params=params, actor=actor
        )
        if wait_s <= 0 or await self._operations.outcome(operation_id, wait_s) is None:
            return Pending(operation_id)
        return None

    async def revert(
        self, row: VolumeRow, snapshot: str, if_match: int | None, actor: Actor, wait_s: float
    ) -> Volume | Pending:
        """The volume as it was when the snapshot was made, its size too. The snapshot stays."""
        await self._placement.refuse_unready(row)
        frozen = await self._reads.row(snapshot, VolumeRole.SNAPSHOT, row.id)
        await self._placement.refuse_unready(frozen)
        backend = self._placement.backend(row.backend_id)
        beside = [(self._placement.backend(frozen.backend_id), frozen)]
        worker = await self._placement.worker(row, beside=beside)
        seat = Seat(worker, row.host_id)
        params = replacement_params(self._placement, row, backend, seat, row.format, frozen, if_match=if_match)
        operation_id = await self._engine.start(
            "volume.revert", key=key_of(row), subject=subject_of(row), params=params, actor=actor
        )
        return await self._ended(operation_id, row.id, wait_s)

    async def delete(self, row: VolumeRow, if_match: int | None, actor: Actor, wait_s: float) -> Pending | None:
        """Gone, its bytes first. None: done."""
        worker = await self._placement.eraser(row)
        operation_id = await self._engine.start(
            "volume.delete",
            key=key_of(row),
            subject=subject_of(row),
            params=deletion_params(row, self._placement.place_of(row), worker, if_match),
            actor=actor,
        )
        if wait_s <= 0 or await self._operations.outcome(operation_id, wait_s) is None:
            return Pending(operation_id)
        return None

    # ---- inside

    async def _start_create(
        self,
        *,
        volume_id: str,
        role: VolumeRole,
        name: str,
        backend: BackendRow,
        seat: Seat,
        format: VolumeFormat,
        size_bytes: int,
        labels: Mapping[str, str],
        source: Source | None,
        actor: Actor,
        source_row: VolumeRow | None = None,
        source_words: str | None = None,
        sha256: str = "",
        is_instant: bool = False,
        parent_id: str | None = None,
    ) -> str:
        place = self._placement.place(backend)
        can_share = source_row is not None and source_row.backend_id == backend.id and source_row.format is format
        return await self._engine.start(
            "volume.create",
            key=f"volume:{volume_id}",
            subject=f"{role.value}s/{volume_id}",
            params={
                "volume_id": volume_id,
                "role": role.value,
                "name": name,
                "backend_id": backend.id,
                "place": msgspec.to_builtins(place),
                "worker": seat.worker.id,
                "host_id": seat.host_id,
                "format": format.value,
                "size_bytes": place.rounded(size_bytes),
                "labels": dict(labels),
                "locator": new_locator(),
                "source": msgspec.to_builtins(source),
                "source_id": source_row.id if source_row else None,
                "source_place": source_place(self._placement, source_row, backend) if source_row else None,
                "source_words": source_words,
                "origin": msgspec.to_builtins(source_row.spec) if source_row and can_share else None,
                "is_instant": is_instant,
                "sha256": sha256,
                "parent_id": parent_id,
            },
            actor=actor,
        )

    async def _start(self, kind: str, row: VolumeRow, worker: HostRow, actor: Actor, **more: Any) -> str:
        """A saga on a volume that is there."""
        params = {**volume_params(row, self._placement.place_of(row), worker.id), **more}
        return await self._engine.start(kind, key=key_of(row), subject=subject_of(row), params=params, actor=actor)

    async def _edited(self, row: VolumeRow, body: EditVolume, if_match: int | None, actor: Actor) -> VolumeRow:
        # Of one that is being made there is nothing to tell yet: its first event says that it was created.
        await self._placement.refuse_unready(row)
        async with transaction(self._pool) as connection:
            before = await store.lock(connection, row.id)
            if before is None:
                raise Refused.because(ProblemCode.NOT_FOUND, f"there is no {row.role.value} {row.name}")
            if if_match is not None and before.version != if_match:
                raise stale(before.name, before.version, if_match)
            name = before.name if body.name is None else body.name
            labels = before.labels if body.labels is None else body.labels
            if (name, labels) == (before.name, before.labels):
                return before
            try:
                after = await store.change(connection, row.id, name=name, labels=labels)
            except asyncpg.UniqueViolationError:
                raise Refused.because(
                    ProblemCode.NAME_TAKEN,
                    f"there is {'an' if row.role is VolumeRole.IMAGE else 'a'} {row.role.value} named {name} already",
                ) from None
            collection, type_ = _UPDATED[row.role]
            await events.append(
                connection,
                type=type_,
                collection=collection,
                subject_id=row.id,
                actor=actor.name,
                request_id=actor.request_id,
                data={"name": after.name, "before": store.shown(before), "after": store.shown(after)},
            )
        return after

    async def _source(self, wanted: VolumeSourceRef) -> VolumeRow:
        """The row to copy from. Raises Refused naming the field."""
        role = VolumeRole(wanted.kind)
        ref, parent_id = wanted.ref, None
        try:
            if role is VolumeRole.SNAPSHOT and not is_id(ref):
                volume, slash, ref = ref.rpartition("/")
                if not slash:
                    raise Refused.for_fields(
                        [FieldError(pointer="/source/snapshot", detail="must be a snapshot's id, or VOLUME/SNAPSHOT")]
                    )
                parent_id = (await self._reads.row(volume)).id
            row = await self._reads.row(ref, role, parent_id)
        except Refused as error:
            if error.problem.code is not ProblemCode.NOT_FOUND:
                raise
            raise Refused.for_fields(
                [FieldError(pointer=f"/source/{wanted.kind}", detail=error.problem.detail)]
            ) from error
        await self._placement.refuse_unready(row)
        return row

    async def _writer(self, row: VolumeRow) -> str | None:
        """The host that may be writing to it."""
        async with self._pool.acquire() as connection:
            held = await attachments.of_volume(connection, row.id)
        return next((each.host_id for each in held if each.mode is AttachMode.RW), None)

    async def _words(self, source: VolumeRow) -> str:
        """What it was made from, for people."""
        if source.role is VolumeRole.SNAPSHOT and source.parent_id:
            parent = await self._reads.row(source.parent_id)
            return f"snapshot {source.name} of {parent.name}"
        return f"{source.role.value} {source.name}"

    async def _ended(self, operation_id: str, volume_id: str, wait_s: float) -> Volume | Pending:
        done = await self._operations.outcome(operation_id, wait_s) if wait_s > 0 else None
        return await self._reads.get(volume_id) if done else Pending(operation_id)


def _unbound(row: VolumeRow) -> VolumeRow:
    """As one that no host works on: who is to attach it is asked for, and what is under way refuses it by itself."""
    return msgspec.structs.replace(row, worker_id=None)


def _format(backend: BackendRow, wanted: VolumeFormat | None) -> VolumeFormat:
    """Raises Refused when the backend cannot keep a volume in it."""
    formats = KINDS[backend.kind].formats
    if wanted is None:
        return formats[0]
    if wanted not in formats:
        raise Refused.for_fields(
            [
                FieldError(
                    pointer="/format",
                    detail=f"must be {' or '.join(formats)} on {backend.name}, which is {KINDS[backend.kind].title}",
                )
            ]
        )
    return wanted
