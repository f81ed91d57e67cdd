"""Bodies that clients send: decoded field by field, so that every wrong field is reported at once.

msgspec stops at the first error (ui/NOTES.md, trap 8); here each field is read by itself, what was not
read is unknown, and the words never repeat a value, for it may be a secret in the wrong place.
"""

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn, TypeVar, cast

import msgspec

from schemas.backends import BackendState
from schemas.credentials import Credentials
from schemas.hosts import AgentFacts, EnrolRequest, HostSelector
from schemas.ids import HOST_NAME, is_id
from schemas.kinds import KINDS, KindSpec, validate_config, validate_credentials
from schemas.problems import FieldError

_T = TypeVar("_T")

#: Sub-routes of /v1/storage_backends that a backend's name must not hide behind.
RESERVED_NAMES = frozenset(("probe", "preflight"))
MAX_LABELS = 64
MAX_SELECTOR_NAMES = 1024
#: Seconds; a join token is typed soon or not at all.
MAX_JOIN_TTL_S = 24 * 3600

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._ -]{0,61}[A-Za-z0-9])?")
_NAME_WORDS = (
    "must have 1 to 63 letters, digits, dots, dashes, underscores or blanks, and begin and end with a letter or digit"
)
_LABEL_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9 ._:/@+-]{0,61}[A-Za-z0-9])?)?")


class MalformedBody(Exception):
    """The bytes are not what a body may be; the text says why, and quotes nothing of them."""


class InvalidFields(Exception):
    """Every wrong field of a body, a query or the headers."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("; ".join(f"{e.pointer} {e.detail}" for e in errors))
        self.errors = errors


@dataclass(frozen=True, kw_only=True)
class AddBackend:
    """config has its defaults filled in; both it and the credentials fit the kind."""

    name: str
    kind: str
    config: dict[str, Any]
    credentials: Credentials
    is_default: bool = False
    hosts: HostSelector = field(default_factory=HostSelector)
    labels: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class EditBackend:
    """None: not mentioned. config is partial; it and the credentials' names are unchecked, for that takes the kind."""

    name: str | None = None
    config: dict[str, Any] | None = None
    credentials: Credentials = field(default_factory=lambda: Credentials({}))
    is_default: bool | None = None
    hosts: HostSelector | None = None
    labels: dict[str, str] | None = None
    state: BackendState | None = None


@dataclass(frozen=True, kw_only=True)
class InitializeBackend:
    """confirm: the backend's name, as typed."""

    confirm: str
    wwid: str
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class CreateJoinToken:
    ttl_s: int


@dataclass(frozen=True, kw_only=True)
class DiscoverStorage:
    kind: str
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CreateToken:
    name: str
    role: str
    expires_at: dt.datetime | None


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object, or MalformedBody: broken, not UTF-8, nested too deep, NaN, a key twice, or no object."""
    try:
        value = msgspec.json.decode(raw)
        # A second reader, because msgspec lets the last of two equal keys win without a word.
        json.loads(raw.decode(), object_pairs_hook=_distinct)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise MalformedBody("the body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise MalformedBody("the body is nested too deep") from None
    if not isinstance(value, dict):
        raise MalformedBody("the body must be a JSON object")
    return cast("dict[str, Any]", value)


def decode_add_backend(raw: bytes) -> AddBackend:
    body = _Fields(parse_object(raw))
    name = body.take("name", _name, "", is_required=True)
    spec = body.take("kind", _kind, None, is_required=True)
    config = body.take("config", _object, None, is_required=True)
    given = body.take("credentials", _object_or_null, dict[str, Any]())
    is_default = body.take("is_default", _boolean, False)
    hosts = body.take("hosts", _selector, HostSelector())
    labels = body.take("labels", _labels, dict[str, str]())
    credentials = Credentials({})
    if spec is not None and config is not None:
        config, errors = validate_config(spec, config)
        body.errors += errors
    if spec is not None:
        credentials, errors = validate_credentials(spec, given)
        body.errors += errors
    body.finish()
    assert spec is not None, "required, so finish() has raised"
    assert config is not None, "required, so finish() has raised"
    return AddBackend(
        name=name,
        kind=spec.kind,
        config=config,
        credentials=credentials,
        is_default=is_default,
        hosts=hosts,
        labels=labels,
    )


def decode_edit_backend(raw: bytes) -> EditBackend:
    body = _Fields(parse_object(raw))
    body.refuse("kind", "cannot be changed; add another backend and remove this one")
    edit = EditBackend(
        name=body.take("name", _name, None),
        config=body.take("config", _object, None),
        credentials=body.take("credentials", _credential_texts, Credentials({})),
        is_default=body.take("is_default", _only_true, None),
        hosts=body.take("hosts", _selector, None),
        labels=body.take("labels", _labels, None),
        state=body.take("state", _wanted_state, None),
    )
    body.finish()
    return edit


def decode_initialize_backend(raw: bytes) -> InitializeBackend:
    body = _Fields(parse_object(raw))
    initialize = InitializeBackend(
        confirm=body.take("confirm", _text(63), "", is_required=True),
        wwid=body.take("wwid", _text(256), "", is_required=True),
        force=body.take("force", _boolean, False),
    )
    body.finish()
    return initialize


def decode_create_join_token(raw: bytes) -> CreateJoinToken:
    """An empty body asks for an hour."""
    body = _Fields(parse_object(raw or b"{}"))
    request = CreateJoinToken(ttl_s=body.take("ttl_s", _whole(1, MAX_JOIN_TTL_S), 3600))
    body.finish()
    return request


def decode_discover_storage(raw: bytes) -> DiscoverStorage:
    body = _Fields(parse_object(raw))
    spec = body.take("kind", _kind, None, is_required=True)
    config = body.take("config", _object, None, is_required=True)
    if spec is not None and config is not None:
        config, errors = validate_config(spec, config, is_partial=True)
        body.errors += errors
    body.finish()
    assert spec is not None, "required, so finish() has raised"
    assert config is not None, "required, so finish() has raised"
    return DiscoverStorage(kind=spec.kind, config=config)


def decode_create_token(raw: bytes) -> CreateToken:
    body = _Fields(parse_object(raw))
    request = CreateToken(
        name=body.take("name", _name, "", is_required=True),
        role=body.take("role", _one_of("viewer", "operator", "admin"), "", is_required=True),
        expires_at=body.take("expires_at", _future, None),
    )
    body.finish()
    return request


def decode_enrol(raw: bytes) -> EnrolRequest:
    """Unknown fields are tolerated: an agent may be newer than its manager. The keys are checked by who uses them."""
    body = _Fields(parse_object(raw))
    request = EnrolRequest(
        token=body.take("token", _text(512), "", is_required=True),
        name=body.take("name", _host_name, "", is_required=True),
        identity_key=body.take("identity_key", _text(128), "", is_required=True),
        sealing_key=body.take("sealing_key", _text(128), "", is_required=True),
        facts=body.take("facts", _facts, AgentFacts(agent_version=""), is_required=True),
        signature=body.take("signature", _text(256), "", is_required=True),
    )
    body.finish(is_unknown_allowed=True)
    return request


class _Wrong(Exception):
    """What is wrong with one value: (pointer below it, words) each."""

    def __init__(self, *errors: tuple[str, str]) -> None:
        super().__init__()
        self.errors = errors


class _Fields:
    """The fields of one object, taken one by one. After a wrong one `take` goes on with a blank; finish() raises."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw
        self._taken: set[str] = set()
        self.errors: list[FieldError] = []

    def take(self, name: str, read: Callable[[object], _T], blank: _T, *, is_required: bool = False) -> _T:
        self._taken.add(name)
        if name not in self._raw:
            if is_required:
                self._wrong(name, "is required")
            return blank
        try:
            return read(self._raw[name])
        except _Wrong as wrong:
            for below, detail in wrong.errors:
                self._wrong(name + below, detail)
            return blank

    def refuse(self, name: str, detail: str) -> None:
        """The field is known and must not be there."""
        if name in self._raw:
            self._wrong(name, detail)
            self._raw = {key: value for key, value in self._raw.items() if key != name}

    def finish(self, *, is_unknown_allowed: bool = False) -> None:
        if not is_unknown_allowed:
            known = ", ".join(sorted(self._taken))
            for key in self._raw.keys() - self._taken:
                self._wrong(_token(key), f"is not a field here; known are {known}")
        if self.errors:
            raise InvalidFields(*sorted(self.errors, key=lambda e: e.pointer))

    def _wrong(self, below: str, detail: str) -> None:
        self.errors.append(FieldError(pointer=f"/{below}", detail=detail))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBody("an object in the body has the same key twice")
    return found


def _token(key: str) -> str:
    """RFC 6901; an unknown key is cut, for somebody may have pasted anything there."""
    return key[:64].replace("~", "~0").replace("/", "~1")


def _fail(detail: str) -> NoReturn:
    raise _Wrong(("", detail))


def _boolean(value: object) -> bool:
    return value if isinstance(value, bool) else _fail("must be true or false")


def _only_true(value: object) -> bool:
    return True if value is True else _fail("can only be set to true; make another backend the default instead")


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else _fail("must be an object")


def _object_or_null(value: object) -> dict[str, Any]:
    return {} if value is None else _object(value)


def _text(max_length: int) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= max_length or not value.isprintable():
            _fail(f"must be text of 1 to {max_length} characters without control characters")
        return value

    return read


def _whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            _fail(f"must be a whole number from {low} to {high}")
        return value

    return read


def _one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        return value if isinstance(value, str) and value in words else _fail(f"must be one of {', '.join(words)}")

    return read


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _fail(_NAME_WORDS)
    if is_id(value.lower()):
        _fail("must not look like an id")
    if value.lower() in RESERVED_NAMES:
        _fail(f"must not be one of {', '.join(sorted(RESERVED_NAMES))}, which are parts of addresses")
    return value


def _kind(value: object) -> KindSpec | None:
    spec = KINDS.get(value) if isinstance(value, str) else None
    return spec or _fail(f"is not a known kind; known are {', '.join(KINDS)}")


def _wanted_state(value: object) -> BackendState:
    return BackendState(_one_of(BackendState.READY, BackendState.DRAINING)(value))


def _labels(value: object) -> dict[str, str]:
    labels = _object(value)
    if len(labels) > MAX_LABELS:
        _fail(f"must have at most {MAX_LABELS} labels")
    wrong: list[tuple[str, str]] = []
    for key, text in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            wrong.append(
                (f"/{_token(key)}", "a label's key must have 1 to 63 letters, digits or . _ / - and no : in it")
            )
        elif not isinstance(text, str) or not _LABEL_VALUE.fullmatch(text):
            wrong.append(
                (
                    f"/{_token(key)}",
                    "a label's value must be text of at most 63 letters, digits, blanks or . _ : / @ + -",
                )
            )
    if wrong:
        raise _Wrong(*wrong)
    return labels


def _selector(value: object) -> HostSelector:
    selector = _object(value)
    wrong = [
        (f"/{_token(key)}", "is not a field here; known are labels, names")
        for key in selector.keys() - {"names", "labels"}
    ]
    names: object = selector.get("names", ["*"])
    chosen: list[str] = []
    if not isinstance(names, list) or not 1 <= len(cast("list[object]", names)) <= MAX_SELECTOR_NAMES:
        wrong.append(("/names", f'must be a list of 1 to {MAX_SELECTOR_NAMES} host names, or ["*"] for every host'))
    else:
        for index, name in enumerate(cast("list[object]", names)):
            if isinstance(name, str) and (name == "*" or HOST_NAME.fullmatch(name)):
                chosen.append(name)
            else:
                wrong.append((f"/names/{index}", "must be a host's name or *"))
    labels: dict[str, str] = {}
    try:
        labels = _labels(selector.get("labels", {}))
    except _Wrong as error:
        wrong += [(f"/labels{below}", detail) for below, detail in error.errors]
    if wrong:
        raise _Wrong(*wrong)
    return HostSelector(names=tuple(dict.fromkeys(chosen)), labels=labels)


def _credential_texts(value: object) -> Credentials:
    """Blank or null keeps what is there, so both are left out."""
    texts = _object_or_null(value)
    wrong = [
        (f"/{_token(key)}", "must be text")
        for key, text in texts.items()
        if text is not None and not isinstance(text, str)
    ]
    if wrong:
        raise _Wrong(*wrong)
    return Credentials({key: text for key, text in texts.items() if text})


def _future(value: object) -> dt.datetime | None:
    if value is None:
        return None
    try:
        moment: dt.datetime = msgspec.convert(value, Annotated[dt.datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        _fail("must be a time such as 2030-01-31T12:00:00Z, with its zone")
    return moment if moment > dt.datetime.now(dt.UTC) else _fail("must lie in the future")


def _host_name(value: object) -> str:
    if not isinstance(value, str) or not HOST_NAME.fullmatch(value):
        _fail("must have 1 to 63 lower-case letters, digits or dashes, and begin and end with a letter or digit")
    return value


def _facts(value: object) -> AgentFacts:
    try:
        facts = msgspec.convert(value, AgentFacts)
    except msgspec.ValidationError:
        _fail("must hold agent_version, protocol_min, protocol_max, kinds and labels of the right types")
    _text(64)(facts.agent_version)
    for kind in facts.kinds:
        _text(64)(kind)
    _labels(facts.labels)
    return facts
