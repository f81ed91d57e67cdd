"""Rows of volumes as the API shows them: ids beside the names that people know."""

from collections.abc import Sequence

from manager.registry import Registry
from manager.store.attachments import AttachmentRow
from manager.store.volumes import Listed, VolumeRow
from schemas.volumes import Attachment, Image, Snapshot, Volume


def volume(listed: Listed, held: Sequence[AttachmentRow], registry: Registry) -> Volume:
    row = listed.row
    return Volume(
        id=row.id,
        name=row.name,
        backend=_backend(row, registry),
        backend_id=row.backend_id,
        host=_host(row, registry),
        locator=row.locator,
        format=row.format,
        size_bytes=row.size_bytes,
        state=row.state,
        source=row.source,
        labels=row.labels,
        attachments=tuple(_attachment(each, registry) for each in held),
        snapshots=listed.snapshots,
        operation=_operation(listed),
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def image(listed: Listed, registry: Registry) -> Image:
    row = listed.row
    return Image(
        id=row.id,
        name=row.name,
        backend=_backend(row, registry),
        backend_id=row.backend_id,
        host=_host(row, registry),
        locator=row.locator,
        format=row.format,
        size_bytes=row.size_bytes if row.has_size else None,
        state=row.state,
        source=row.source,
        sha256=row.sha256,
        labels=row.labels,
        operation=_operation(listed),
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def snapshot(listed: Listed, parent: VolumeRow, registry: Registry) -> Snapshot:
    row = listed.row
    return Snapshot(
        id=row.id,
        name=row.name,
        volume=parent.name,
        volume_id=parent.id,
        backend=_backend(row, registry),
        backend_id=row.backend_id,
        host=_host(row, registry),
        locator=row.locator,
        format=row.format,
        size_bytes=row.size_bytes,
        state=row.state,
        labels=row.labels,
        operation=_operation(listed),
        created_at=row.created_at,
    )


def _attachment(row: AttachmentRow, registry: Registry) -> Attachment:
    return Attachment(
        host=registry.host_name(row.host_id),
        host_id=row.host_id,
        mode=row.mode,
        state=row.state,
        epoch=row.epoch,
        path=row.path,
        type=row.type,
        since=row.since,
    )


def _backend(row: VolumeRow, registry: Registry) -> str:
    found = registry.row(row.backend_id)
    return found.name if found else row.backend_id


def _host(row: VolumeRow, registry: Registry) -> str | None:
    return registry.host_name(row.host_id) if row.host_id else None


def _operation(listed: Listed) -> str | None:
    return f"/v1/operations/{listed.operation_id}" if listed.operation_id else None
