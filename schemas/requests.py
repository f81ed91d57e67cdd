"""Bodies that clients send: decoded field by field (fields.py), so that every wrong field is reported at once."""

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import msgspec

from schemas.backends import BackendState
from schemas.credentials import Credentials
from schemas.fields import (
    Fields,
    Wrong,
    boolean,
    fail,
    json_object,
    object_or_null,
    one_of,
    parse_object,
    pointer_token,
    text,
    whole,
)
from schemas.hosts import AgentFacts, EnrolRequest, HostSelector
from schemas.ids import HOST_NAME, is_id
from schemas.kinds import KINDS, KindSpec
from schemas.problems import FieldError
from schemas.validation import validate_config, validate_credentials

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
    """config and credentials may be partial; what is given fits the kind."""

    kind: str
    config: dict[str, Any]
    credentials: Credentials = field(default_factory=lambda: Credentials({}))


@dataclass(frozen=True, kw_only=True)
class CreateToken:
    name: str
    role: str
    expires_at: dt.datetime | None


def decode_add_backend(raw: bytes) -> AddBackend:
    body = Fields(parse_object(raw))
    name = body.take("name", read_name, "", is_required=True)
    spec = body.take("kind", _kind, None, is_required=True)
    config = body.take("config", json_object, None, is_required=True)
    given = body.take("credentials", object_or_null, dict[str, Any]())
    is_default = body.take("is_default", boolean, False)
    hosts = body.take("hosts", _selector, HostSelector())
    labels = body.take("labels", read_labels, dict[str, str]())
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
    body = Fields(parse_object(raw))
    body.refuse("kind", "cannot be changed; add another backend and remove this one")
    edit = EditBackend(
        name=body.take("name", read_name, None),
        config=body.take("config", json_object, None),
        credentials=body.take("credentials", _credential_texts, Credentials({})),
        is_default=body.take("is_default", _only_true, None),
        hosts=body.take("hosts", _selector, None),
        labels=body.take("labels", read_labels, None),
        state=body.take("state", _wanted_state, None),
    )
    body.finish()
    return edit


def decode_initialize_backend(raw: bytes) -> InitializeBackend:
    body = Fields(parse_object(raw))
    initialize = InitializeBackend(
        confirm=body.take("confirm", text(63), "", is_required=True),
        wwid=body.take("wwid", text(256), "", is_required=True),
        force=body.take("force", boolean, False),
    )
    body.finish()
    return initialize


def decode_create_join_token(raw: bytes) -> CreateJoinToken:
    """An empty body asks for an hour."""
    body = Fields(parse_object(raw or b"{}"))
    request = CreateJoinToken(ttl_s=body.take("ttl_s", whole(1, MAX_JOIN_TTL_S), 3600))
    body.finish()
    return request


def decode_discover_storage(raw: bytes) -> DiscoverStorage:
    body = Fields(parse_object(raw))
    spec = body.take("kind", _kind, None, is_required=True)
    config = body.take("config", json_object, None, is_required=True)
    given = body.take("credentials", object_or_null, dict[str, Any]())
    credentials = Credentials({})
    if spec is not None:
        credentials, errors = validate_credentials(spec, given, is_partial=True)
        body.errors += errors
    if spec is not None and config is not None:
        config, errors = validate_config(spec, config, is_partial=True)
        body.errors += errors
        if spec.discover_by is None:
            body.errors.append(FieldError(pointer="/kind", detail=f"{spec.title} has nothing to discover"))
        elif spec.discover_by not in config and not errors:
            body.errors.append(FieldError(pointer=f"/config/{spec.discover_by}", detail="is required"))
    body.finish()
    assert spec is not None, "required, so finish() has raised"
    assert config is not None, "required, so finish() has raised"
    return DiscoverStorage(kind=spec.kind, config=config, credentials=credentials)


def decode_create_token(raw: bytes) -> CreateToken:
    body = Fields(parse_object(raw))
    request = CreateToken(
        name=body.take("name", read_name, "", is_required=True),
        role=body.take("role", one_of("viewer", "operator", "admin"), "", is_required=True),
        expires_at=body.take("expires_at", _future, None),
    )
    body.finish()
    return request


def decode_enrol(raw: bytes) -> EnrolRequest:
    """Unknown fields are tolerated: an agent may be newer than its manager. The keys are checked by who uses them."""
    body = Fields(parse_object(raw))
    request = EnrolRequest(
        token=body.take("token", text(512), "", is_required=True),
        name=body.take("name", _host_name, "", is_required=True),
        identity_key=body.take("identity_key", text(128), "", is_required=True),
        sealing_key=body.take("sealing_key", text(128), "", is_required=True),
        facts=body.take("facts", _facts, AgentFacts(agent_version=""), is_required=True),
        signature=body.take("signature", text(256), "", is_required=True),
    )
    body.finish(is_unknown_allowed=True)
    return request


def _only_true(value: object) -> bool:
    return True if value is True else fail("can only be set to true; make another backend the default instead")


def read_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        fail(_NAME_WORDS)
    if is_id(value.lower()):
        fail("must not look like an id")
    if value.lower() in RESERVED_NAMES:
        fail(f"must not be one of {', '.join(sorted(RESERVED_NAMES))}, which are parts of addresses")
    return value


def _kind(value: object) -> KindSpec | None:
    spec = KINDS.get(value) if isinstance(value, str) else None
    return spec or fail(f"is not a known kind; known are {', '.join(KINDS)}")


def _wanted_state(value: object) -> BackendState:
    return BackendState(one_of(BackendState.READY, BackendState.DRAINING)(value))


def read_labels(value: object) -> dict[str, str]:
    labels = json_object(value)
    if len(labels) > MAX_LABELS:
        fail(f"must have at most {MAX_LABELS} labels")
    wrong: list[tuple[str, str]] = []
    for key, worth in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            wrong.append(
                (f"/{pointer_token(key)}", "a label's key must have 1 to 63 letters, digits or . _ / - and no : in it")
            )
        elif not isinstance(worth, str) or not _LABEL_VALUE.fullmatch(worth):
            wrong.append(
                (
                    f"/{pointer_token(key)}",
                    "a label's value must be text of at most 63 letters, digits, blanks or . _ : / @ + -",
                )
            )
    if wrong:
        raise Wrong(*wrong)
    return labels


def _selector(value: object) -> HostSelector:
    selector = json_object(value)
    wrong = [
        (f"/{pointer_token(key)}", "is not a field here; known are labels, names")
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
        labels = read_labels(selector.get("labels", {}))
    except Wrong as error:
        wrong += [(f"/labels{below}", detail) for below, detail in error.errors]
    if wrong:
        raise Wrong(*wrong)
    return HostSelector(names=tuple(dict.fromkeys(chosen)), labels=labels)


def _credential_texts(value: object) -> Credentials:
    """Blank or null keeps what is there, so both are left out."""
    texts = object_or_null(value)
    wrong = [
        (f"/{pointer_token(key)}", "must be text")
        for key, each in texts.items()
        if each is not None and not isinstance(each, str)
    ]
    if wrong:
        raise Wrong(*wrong)
    return Credentials({key: each for key, each in texts.items() if each})


def _future(value: object) -> dt.datetime | None:
    if value is None:
        return None
    try:
        moment: dt.datetime = msgspec.convert(value, Annotated[dt.datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        fail("must be a time such as 2030-01-31T12:00:00Z, with its zone")
    if moment.year > 9000:
        fail("must lie before the year 9000")
    return moment if moment > dt.datetime.now(dt.UTC) else fail("must lie in the future")


def _host_name(value: object) -> str:
    if not isinstance(value, str) or not HOST_NAME.fullmatch(value):
        fail("must have 1 to 63 lower-case letters, digits or dashes, and begin and end with a letter or digit")
    return value


def _facts(value: object) -> AgentFacts:
    try:
        facts = msgspec.convert(value, AgentFacts)
    except msgspec.ValidationError:
        fail("must hold agent_version, protocol_min, protocol_max, kinds and labels of the right types")
    text(64)(facts.agent_version)
    for kind in facts.kinds:
        text(64)(kind)
    read_labels(facts.labels)
    return facts
