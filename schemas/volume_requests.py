"""Bodies that clients send about volumes, images and snapshots: decoded field by field, as in requests.py."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from schemas.fields import Fields, boolean, fail, json_object, one_of, parse_object, text, whole
from schemas.ids import is_id
from schemas.problems import FieldError
from schemas.requests import read_labels, read_name
from schemas.volume_rpc import AttachMode, VolumeFormat

#: Of volumes: whole sectors, below what a file can hold everywhere.
SECTOR_BYTES = 512
MAX_SIZE_BYTES = 2**62
#: Whoever it names is asked by a host; a user name or password would go into the journal.
_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?:[/?][!\x22$-~]*)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class VolumeSourceRef:
    """What a volume is made from. kind: image, volume or snapshot; a snapshot by its id, or by VOLUME/SNAPSHOT."""

    kind: str
    ref: str


@dataclass(frozen=True, kw_only=True)
class CreateVolume:
    """size_bytes None: the source's. backend None: the default; backend_field: the one that names it. host: where it is to lie,
    or who is to do the work.
    """

    name: str
    size_bytes: int | None
    backend: str | None = None
    backend_field: str = "backend"
    host: str | None = None
    format: VolumeFormat | None = None
    source: VolumeSourceRef | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class EditVolume:
    """None: not mentioned."""

    name: str | None = None
    labels: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class ResizeBody:
    size_bytes: int
    may_shrink: bool = False


@dataclass(frozen=True, kw_only=True)
class AttachBody:
    host: str
    mode: AttachMode = AttachMode.RW


@dataclass(frozen=True, kw_only=True)
class DetachBody:
    """host None: the only one that has it."""

    host: str | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class MigrateBody:
    backend: str
    host: str | None = None


@dataclass(frozen=True, kw_only=True)
class CloneBody:
    """As CreateVolume, with this volume for a source."""

    name: str
    size_bytes: int | None = None
    backend: str | None = None
    host: str | None = None
    format: VolumeFormat | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class CreateSnapshot:
    name: str
    labels: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class CreateImage:
    """One of path and url. source_format: what the source is, for it is never guessed. format: as what it is kept."""

    name: str
    path: str | None
    url: str | None
    sha256: str
    source_format: VolumeFormat
    format: VolumeFormat | None = None
    backend: str | None = None
    host: str | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class UploadImage:
    """As CreateImage; the bytes come with the request."""

    name: str
    sha256: str
    source_format: VolumeFormat
    format: VolumeFormat | None = None
    backend: str | None = None
    host: str | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Evacuate:
    to: str
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class SettleStray:
    """One line of a drift report: adopt it under a name, or delete it. host: where it lies, of a backend that is not shared."""

    locator: str
    host: str | None = None
    name: str | None = None


def decode_create_volume(raw: bytes) -> CreateVolume:
    given = parse_object(raw)
    body = Fields(given)
    source = body.take("source", _source, None)
    given_backend = body.take("backend", text(64), None)
    backend_id = body.take("backend_id", _id, None)
    if given_backend is not None and backend_id is not None:
        body.errors.append(FieldError(pointer="/backend_id", detail="must not be given beside backend"))
    request = CreateVolume(
        name=body.take("name", read_name, "", is_required=True),
        size_bytes=body.take("size_bytes", _size, None, is_required="source" not in given),
        backend=given_backend or backend_id,
        backend_field="backend" if backend_id is None else "backend_id",
        host=body.take("host", text(64), None),
        format=body.take("format", _format, None),
        source=source,
        labels=body.take("labels", read_labels, dict[str, str]()),
    )
    body.finish()
    return request


def decode_edit_volume(raw: bytes) -> EditVolume:
    body = Fields(parse_object(raw))
    body.refuse("size_bytes", "is changed by POST …/resize")
    body.refuse("backend", "is changed by POST …/migrate")
    edit = EditVolume(name=body.take("name", read_name, None), labels=body.take("labels", read_labels, None))
    body.finish()
    return edit


def decode_resize(raw: bytes) -> ResizeBody:
    body = Fields(parse_object(raw))
    request = ResizeBody(
        size_bytes=body.take("size_bytes", _size, 0, is_required=True),
        may_shrink=body.take("may_shrink", boolean, False),
    )
    body.finish()
    return request


def decode_attach(raw: bytes) -> AttachBody:
    body = Fields(parse_object(raw))
    request = AttachBody(
        host=body.take("host", text(64), "", is_required=True),
        mode=AttachMode(body.take("mode", one_of("rw", "ro"), "rw")),
    )
    body.finish()
    return request


def decode_detach(raw: bytes) -> DetachBody:
    body = Fields(parse_object(raw or b"{}"))
    request = DetachBody(host=body.take("host", text(64), None), force=body.take("force", boolean, False))
    body.finish()
    return request


def decode_migrate(raw: bytes) -> MigrateBody:
    body = Fields(parse_object(raw))
    request = MigrateBody(
        backend=body.take("backend", text(64), "", is_required=True), host=body.take("host", text(64), None)
    )
    body.finish()
    return request


def decode_clone(raw: bytes) -> CloneBody:
    body = Fields(parse_object(raw))
    request = CloneBody(
        name=body.take("name", read_name, "", is_required=True),
        size_bytes=body.take("size_bytes", _size, None),
        backend=body.take("backend", text(64), None),
        host=body.take("host", text(64), None),
        format=body.take("format", _format, None),
        labels=body.take("labels", read_labels, dict[str, str]()),
    )
    body.finish()
    return request


def decode_create_snapshot(raw: bytes) -> CreateSnapshot:
    body = Fields(parse_object(raw))
    request = CreateSnapshot(
        name=body.take("name", read_name, "", is_required=True),
        labels=body.take("labels", read_labels, dict[str, str]()),
    )
    body.finish()
    return request


def decode_create_image(raw: bytes) -> CreateImage:
    body = Fields(parse_object(raw))
    path, url = body.take("path", _path, None), body.take("url", _url, None)
    if (path is None) == (url is None) and not body.errors:
        body.errors.append(FieldError(pointer="/path", detail="give either path or url"))
    request = CreateImage(
        name=body.take("name", read_name, "", is_required=True),
        path=path,
        url=url,
        sha256=body.take("sha256", _sha256, "", is_required=True),
        source_format=body.take("source_format", _format, VolumeFormat.RAW, is_required=True),
        format=body.take("format", _format, None),
        backend=body.take("backend", text(64), None),
        host=body.take("host", text(64), None),
        labels=body.take("labels", read_labels, dict[str, str]()),
    )
    body.finish()
    return request


def decode_upload_image(name: str, query: Mapping[str, Sequence[str]], noted: Sequence[FieldError] = ()) -> UploadImage:
    """From the address: its name, and every value of each parameter. noted: what else is wrong with the request. Raises InvalidFields."""
    address, given = Fields({"name": name}, at="/path"), Fields(query, at="/query")
    request = UploadImage(
        name=address.take("name", read_name, ""),
        sha256=given.take("sha256", _once(_sha256), "", is_required=True),
        source_format=given.take("source_format", _once(_format), VolumeFormat.RAW, is_required=True),
        format=given.take("format", _once(_format), None),
        backend=given.take("backend", _once(text(64)), None),
        host=given.take("host", _once(text(64)), None),
        labels=given.take("label", _query_labels, dict[str, str]()),
    )
    given.errors += [*address.errors, *noted]
    given.finish()
    return request


def decode_evacuate(raw: bytes) -> Evacuate:
    body = Fields(parse_object(raw))
    request = Evacuate(to=body.take("to", text(64), "", is_required=True), dry_run=body.take("dry_run", boolean, False))
    body.finish()
    return request


def decode_settle_stray(raw: bytes, *, is_adoption: bool) -> SettleStray:
    body = Fields(parse_object(raw))
    request = SettleStray(
        locator=body.take("locator", _locator, "", is_required=True),
        host=body.take("host", text(64), None),
        name=body.take("name", read_name, None, is_required=True) if is_adoption else None,
    )
    body.finish()
    return request


def _once(read: Callable[[object], _T]) -> Callable[[object], _T]:
    """Of a query's parameter, which may be there more than once."""

    def read_one(values: object) -> _T:
        [value, *more] = _texts(values)
        return fail("is given more than once") if more else read(value)

    return read_one


def _query_labels(values: object) -> dict[str, str]:
    """KEY:VALUE each."""
    labels: dict[str, str] = {}
    for given in _texts(values):
        key, colon, worth = given.partition(":")
        if not colon or key in labels:
            fail("must be KEY:VALUE, each key once")
        labels[key] = worth
    return read_labels(labels)


def _texts(values: object) -> list[str]:
    return cast("list[str]", values)


def _size(value: object) -> int:
    size = whole(SECTOR_BYTES, MAX_SIZE_BYTES)(value)
    return size if size % SECTOR_BYTES == 0 else fail(f"must be a multiple of {SECTOR_BYTES}, a disk's sectors")


def _format(value: object) -> VolumeFormat:
    return VolumeFormat(one_of(*VolumeFormat)(value))


def _id(value: object) -> str:
    return value if isinstance(value, str) and is_id(value) else fail("must be the id of a backend")


def _source(value: object) -> VolumeSourceRef:
    given: dict[str, Any] = json_object(value)
    known = ("image", "volume", "snapshot")
    if len(given) != 1 or next(iter(given)) not in known:
        fail(f"must be an object with one of {', '.join(known)}")
    kind, ref = next(iter(given.items()))
    return VolumeSourceRef(kind=kind, ref=text(128)(ref))


def _path(value: object) -> str:
    path = text(4096)(value)
    return path if path.startswith("/") else fail("must be an absolute path on the host")


def _url(value: object) -> str:
    url = text(2048)(value)
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 80) <= 65535:
        fail("must be an http or https address, in ASCII, without a user name")
    return url


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value.lower()):
        fail("must be a SHA-256 in 64 hexadecimal digits")
    return value.lower()


def _locator(value: object) -> str:
    is_right = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value)
    return str(value) if is_right else fail("must be a locator of the drift report, 32 hexadecimal digits")
