"""Use cases of volumes in memory, at the seam between the API and the rest of the manager."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from manager.actor import Actor
from manager.errors import Refused
from manager.operations import Pending
from manager.store.volumes import VolumeRow
from schemas.ids import new_id
from schemas.problems import FieldError, ProblemCode
from schemas.volume_requests import (
    AttachBody,
    CloneBody,
    CreateImage,
    CreateSnapshot,
    CreateVolume,
    DetachBody,
    EditVolume,
    Evacuate,
    MigrateBody,
    ResizeBody,
    SettleStray,
    UploadImage,
)
from schemas.volume_rpc import AttachMode, VolumeFormat
from schemas.volumes import (
    AttachAnswer,
    Attachment,
    AttachmentState,
    Explanation,
    Image,
    Snapshot,
    Volume,
    VolumeRole,
    VolumeState,
)
from tests.manager.api.stand_ins import NOW

MIB = 1024 * 1024


class VolumesInMemory:
    """Each change is noted in `calls`, raises `failure` if one is set, and goes on for ever without a wait or if `is_slow`."""

    def __init__(self) -> None:
        self.rows: dict[str, VolumeRow] = {}
        self.held: dict[str, Attachment] = {}
        self.calls: list[tuple[str, Any]] = []
        self.actors: list[Actor] = []
        self.asked: dict[str, Any] = {}
        self.failure: Exception | None = None
        self.is_slow = False
        self.operation_id = new_id()

    # ---- reading

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
    ) -> Sequence[Volume]:
        self.asked = {
            "backend": backend,
            "host": host,
            "state": state,
            "is_attached": is_attached,
            "is_unused": is_unused,
            "labels": labels,
            "limit": limit,
        }
        return [self._volume(row) for row in self._page(VolumeRole.VOLUME, after, limit)]

    async def get(self, ref: str) -> Volume:
        return self._volume(await self.row(ref))

    async def list_images(
        self, *, backend: str | None, labels: Mapping[str, str] | None, after: str | None, limit: int
    ) -> Sequence[Image]:
        self.asked = {"backend": backend, "labels": labels, "limit": limit}
        return [_image(row) for row in self._page(VolumeRole.IMAGE, after, limit)]

    async def get_image(self, ref: str) -> Image:
        return _image(await self.row(ref, VolumeRole.IMAGE))

    async def list_snapshots(self, ref: str, *, after: str | None, limit: int) -> Sequence[Snapshot]:
        volume = await self.row(ref)
        found = self._page(VolumeRole.SNAPSHOT, after, limit)
        return [_snapshot(row, volume) for row in found if row.parent_id == volume.id]

    async def get_snapshot(self, ref: str, snapshot: str) -> Snapshot:
        volume = await self.row(ref)
        return _snapshot(await self.row(snapshot, VolumeRole.SNAPSHOT, volume.id), volume)

    async def explain(self, ref: str, host: str, mode: AttachMode) -> Explanation:
        await self.row(ref)
        self.asked = {"host": host, "mode": mode}
        return Explanation(host=host, is_usable=False, reasons=("it is attached to hv2 (rw)",))

    async def row(self, ref: str, role: VolumeRole = VolumeRole.VOLUME, parent_id: str | None = None) -> VolumeRow:
        for row in self.rows.values():
            if ref in (row.id, row.name) and row.role is role and parent_id in (None, row.parent_id):
                return row
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no {role.value} {ref[:80]}")

    # ---- making and changing

    async def create(self, body: CreateVolume, actor: Actor, wait_s: float) -> Volume | Pending:
        if self.goes_on("create", body, actor, wait_s):
            return Pending(self.operation_id)
        self._refuse_taken(VolumeRole.VOLUME, body.name)
        made = self.insert(body.name, size_bytes=body.size_bytes or MIB, labels=body.labels)
        return self._volume(made)

    async def clone(self, ref: str, body: CloneBody, actor: Actor, wait_s: float) -> Volume | Pending:
        row = await self.row(ref)
        if self.goes_on("clone", body, actor, wait_s):
            return Pending(self.operation_id)
        return self._volume(self.insert(body.name, source=f"volume {row.name}"))

    async def create_image(self, body: CreateImage, actor: Actor, wait_s: float) -> Image | Pending:
        if self.goes_on("create_image", body, actor, wait_s):
            return Pending(self.operation_id)
        return _image(self.insert(body.name, VolumeRole.IMAGE, sha256=body.sha256))

    async def create_snapshot(self, ref: str, body: CreateSnapshot, actor: Actor, wait_s: float) -> Snapshot | Pending:
        volume = await self.row(ref)
        if self.goes_on("create_snapshot", body, actor, wait_s):
            return Pending(self.operation_id)
        return _snapshot(self.insert(body.name, VolumeRole.SNAPSHOT, parent_id=volume.id), volume)

    async def edit(self, ref: str, body: EditVolume, if_match: int | None, actor: Actor) -> Volume:
        return self._volume(self._edited(await self.row(ref), body, if_match, actor))

    async def edit_image(self, ref: str, body: EditVolume, if_match: int | None, actor: Actor) -> Image:
        return _image(self._edited(await self.row(ref, VolumeRole.IMAGE), body, if_match, actor))

    async def resize(
        self, ref: str, body: ResizeBody, if_match: int | None, actor: Actor, wait_s: float
    ) -> Volume | Pending:
        row = await self.row(ref)
        _refuse_stale(row, if_match)
        if self.goes_on("resize", body, actor, wait_s):
            return Pending(self.operation_id)
        return self._volume(self._replace(row, size_bytes=body.size_bytes))

    async def attach(self, ref: str, body: AttachBody, actor: Actor, wait_s: float) -> AttachAnswer | Pending:
        row = await self.row(ref)
        if self.goes_on("attach", body, actor, wait_s):
            return Pending(self.operation_id)
        held = self.hold(row, body.host, body.mode)
        return AttachAnswer(path=str(held.path), type="file", epoch=held.epoch, host=body.host, mode=body.mode)

    async def detach(self, ref: str, body: DetachBody, actor: Actor, wait_s: float) -> dict[str, Any] | Pending:
        row = await self.row(ref)
        if self.goes_on("detach", body, actor, wait_s):
            return Pending(self.operation_id)
        self.held.pop(row.id, None)
        return {"is_confirmed": not body.force}

    async def migrate(
        self, row: VolumeRow, body: MigrateBody, if_match: int | None, actor: Actor, wait_s: float
    ) -> Pending | None:
        _refuse_stale(row, if_match)
        if self.goes_on("migrate", body, actor, wait_s):
            return Pending(self.operation_id)
        self._replace(row, backend_id=body.backend)
        return None

    async def revert(
        self, row: VolumeRow, snapshot: str, if_match: int | None, actor: Actor, wait_s: float
    ) -> Volume | Pending:
        _refuse_stale(row, if_match)
        frozen = await self.row(snapshot, VolumeRole.SNAPSHOT, row.id)
        if self.goes_on("revert", frozen.name, actor, wait_s):
            return Pending(self.operation_id)
        return self._volume(self._replace(row, size_bytes=frozen.size_bytes))

    async def delete(self, row: VolumeRow, if_match: int | None, actor: Actor, wait_s: float) -> Pending | None:
        _refuse_stale(row, if_match)
        if self.goes_on("delete", row.name, actor, wait_s):
            return Pending(self.operation_id)
        del self.rows[row.id]
        return None

    # ---- for the tests and the other stand-ins

    def insert(self, name: str, role: VolumeRole = VolumeRole.VOLUME, **changes: Any) -> VolumeRow:
        row = VolumeRow(
            id=new_id(),
            name=name,
            backend_id=new_id(),
            size_bytes=MIB,
            state=VolumeState.READY,
            role=role,
            parent_id=None,
            locator="ab" * 16,
            format=VolumeFormat.RAW,
            host_id=None,
            worker_id=None,
            source=None,
            sha256=None,
            labels={},
            epoch=0,
            version=1,
            created_at=NOW,
            updated_at=NOW,
        )
        row = msgspec.structs.replace(row, **changes)
        self.rows[row.id] = row
        return row

    def hold(self, row: VolumeRow, host: str, mode: AttachMode = AttachMode.RW) -> Attachment:
        """Attached there, under an epoch that none before had."""
        row = self._replace(row, epoch=row.epoch + 1)
        self.held[row.id] = Attachment(
            host=host,
            host_id=new_id(),
            mode=mode,
            state=AttachmentState.ATTACHED,
            epoch=row.epoch,
            path=f"/srv/{row.locator}.raw",
            type="file",
            since=NOW,
        )
        return self.held[row.id]

    def goes_on(self, verb: str, what: Any, actor: Actor, wait_s: float) -> bool:
        """Whether the change, which is noted, goes on beyond the wait."""
        self.calls.append((verb, what))
        self.actors.append(actor)
        if self.failure is not None:
            raise self.failure
        return self.is_slow or wait_s == 0

    def _page(self, role: VolumeRole, after: str | None, limit: int) -> Sequence[VolumeRow]:
        found = sorted((row for row in self.rows.values() if row.role is role), key=lambda row: row.id)
        return [row for row in found if after is None or row.id > after][:limit]

    def _edited(self, row: VolumeRow, body: EditVolume, if_match: int | None, actor: Actor) -> VolumeRow:
        _refuse_stale(row, if_match)
        self.goes_on("edit", body, actor, 1.0)
        return self._replace(row, name=body.name or row.name, labels=row.labels if body.labels is None else body.labels)

    def _replace(self, row: VolumeRow, **changes: Any) -> VolumeRow:
        self.rows[row.id] = msgspec.structs.replace(row, **changes, version=row.version + 1)
        return self.rows[row.id]

    def _refuse_taken(self, role: VolumeRole, name: str) -> None:
        if any(row.name == name and row.role is role for row in self.rows.values()):
            raise Refused.because(ProblemCode.NAME_TAKEN, f"there is a {role.value} named {name} already")

    def _volume(self, row: VolumeRow) -> Volume:
        return Volume(
            id=row.id,
            name=row.name,
            backend="tank",
            backend_id=row.backend_id,
            host=None,
            locator=row.locator,
            format=row.format,
            size_bytes=row.size_bytes,
            state=row.state,
            source=row.source,
            labels=row.labels,
            attachments=(self.held[row.id],) if row.id in self.held else (),
            snapshots=sum(each.parent_id == row.id for each in self.rows.values()),
            operation=None,
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class DriftInMemory:
    """One stray, `STRAY`; of everything else there is nothing."""

    STRAY = "cd" * 16

    def __init__(self, volumes: VolumesInMemory) -> None:
        self._volumes = volumes

    async def report(self, ref: str, actor: Actor) -> dict[str, Any]:
        stray = {"name": f"{self.STRAY}.raw", "locator": self.STRAY, "size_bytes": MIB}
        return {"missing": [], "strays": [stray], "foreign": [], "sizes": [], "unseen_hosts": []}

    async def adopt(self, ref: str, body: SettleStray, actor: Actor) -> str:
        self._volumes.goes_on("adopt", body, actor, 1.0)
        self._refuse_unknown(body)
        return self._volumes.insert(str(body.name), locator=body.locator).id

    async def delete(self, ref: str, body: SettleStray, actor: Actor, wait_s: float) -> Pending | None:
        self._refuse_unknown(body)
        goes_on = self._volumes.goes_on("delete_stray", body, actor, wait_s)
        return Pending(self._volumes.operation_id) if goes_on else None

    def _refuse_unknown(self, body: SettleStray) -> None:
        if body.locator != self.STRAY:
            raise Refused.because(ProblemCode.NOT_FOUND, "there is nothing with this locator")


class UploadsInMemory:
    """Takes what is sent into `content`, noting the size of each chunk. failure: raised before the first, late_failure behind it."""

    def __init__(self) -> None:
        self.volumes = VolumesInMemory()
        self.calls: list[tuple[UploadImage, int | None]] = []
        self.content = b""
        self.chunks: list[int] = []
        self.failure: Exception | None = None
        self.late_failure: Exception | None = None

    async def create_image(
        self, body: UploadImage, content: AsyncIterator[bytes], size_bytes: int | None, actor: Actor, wait_s: float
    ) -> Image | Pending:
        self.calls.append((body, size_bytes))
        if self.failure is not None:
            raise self.failure
        async for chunk in content:
            self.content += chunk
            self.chunks.append(len(chunk))
            if self.late_failure is not None:
                raise self.late_failure
        if wait_s == 0:
            return Pending(self.volumes.operation_id)
        return _image(self.volumes.insert(body.name, VolumeRole.IMAGE, sha256=body.sha256, source="upload"))


class EvacuationsInMemory:
    def __init__(self, volumes: VolumesInMemory) -> None:
        self._volumes = volumes

    async def plan(self, ref: str, body: Evacuate) -> dict[str, Any]:
        if body.to == ref:
            raise Refused.for_fields([FieldError(pointer="/to", detail="is the backend that is to be emptied")])
        return {"to": body.to, "total_bytes": 0, "items": [], "blockers": []}

    async def run(self, ref: str, body: Evacuate, actor: Actor, wait_s: float) -> dict[str, Any] | Pending:
        goes_on = self._volumes.goes_on("evacuate", body, actor, wait_s)
        return Pending(self._volumes.operation_id) if goes_on else {"backend_id": ref, "moved_bytes": MIB}


def _refuse_stale(row: VolumeRow, if_match: int | None) -> None:
    if if_match not in (None, row.version):
        raise Refused.because(ProblemCode.STALE_VERSION, "it was changed since")


def _image(row: VolumeRow) -> Image:
    return Image(
        id=row.id,
        name=row.name,
        backend="tank",
        backend_id=row.backend_id,
        host=None,
        locator=row.locator,
        format=row.format,
        size_bytes=row.size_bytes,
        state=row.state,
        source=row.source,
        sha256=row.sha256,
        labels=row.labels,
        operation=None,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _snapshot(row: VolumeRow, parent: VolumeRow) -> Snapshot:
    return Snapshot(
        id=row.id,
        name=row.name,
        volume=parent.name,
        volume_id=parent.id,
        backend="tank",
        backend_id=row.backend_id,
        host=None,
        locator=row.locator,
        format=row.format,
        size_bytes=row.size_bytes,
        state=row.state,
        labels=row.labels,
        operation=None,
        created_at=row.created_at,
    )
