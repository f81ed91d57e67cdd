"""Bodies that clients send: every wrong field is reported, at its place, and nothing of it is repeated."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.backends import BackendState
from schemas.fields import InvalidFields, MalformedBody, parse_object
from schemas.hosts import HostSelector
from schemas.problems import FieldError
from schemas.requests import (
    decode_add_backend,
    decode_create_join_token,
    decode_discover_storage,
    decode_edit_backend,
    decode_enrol,
)

ADD: dict[str, Any] = {
    "name": "office",
    "kind": "smb",
    "config": {"server": "nas", "share": "vms"},
    "credentials": {"username": "svc", "password": "c4n4ry", "domain": ""},
    "hosts": {"names": ["hv1", "hv2", "hv1"], "labels": {"zone": "a"}},
    "labels": {"tier": "gold", "example.org/owner": "A. N. Other"},
}

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_fields = st.sampled_from(["name", "kind", "config", "credentials", "is_default", "hosts", "labels", "state"])


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def _errors(decode: Callable[[bytes], object], body: object) -> tuple[FieldError, ...]:
    try:
        decode(_encode(body))
    except InvalidFields as error:
        return error.errors
    return ()


def test_add_fills_defaults_and_keeps_credentials_masked() -> None:
    body = decode_add_backend(_encode(ADD))
    assert body.config == {"server": "nas", "share": "vms", "subdir": "", "smb_version": "default", "options": ""}
    assert body.credentials.reveal() == {"username": "svc", "password": "c4n4ry"}
    assert body.hosts == HostSelector(names=("hv1", "hv2"), labels={"zone": "a"})
    assert "c4n4ry" not in repr(body)


def test_add_with_null_or_blank_credentials_is_guest() -> None:
    for credentials in (None, {}, {"username": "", "password": ""}):
        assert not decode_add_backend(_encode(ADD | {"credentials": credentials})).credentials


def test_edit_tells_absent_from_given_and_drops_blank_credentials() -> None:
    empty = decode_edit_backend(b"{}")
    assert (empty.name, empty.config, empty.is_default, empty.hosts, empty.labels, empty.state) == (None,) * 6
    assert not empty.credentials
    edit = decode_edit_backend(
        b'{"credentials": {"password": "", "username": null}, "labels": {}, "is_default": true, "state": "draining"}'
    )
    assert not edit.credentials
    assert (edit.labels, edit.is_default, edit.state) == ({}, True, BackendState.DRAINING)
    assert decode_edit_backend(b'{"credentials": {"password": "n"}}').credentials.reveal() == {"password": "n"}


def test_join_token_lives_an_hour_unless_told() -> None:
    assert decode_create_join_token(b"").ttl_s == 3600
    assert decode_create_join_token(b'{"ttl_s": 5}').ttl_s == 5


def test_enrol_tolerates_what_a_newer_agent_adds() -> None:
    body = {
        "token": "t", "name": "hv1", "identity_key": "U", "sealing_key": "s", "signature": "x", "later": 1,
        "facts": {"agent_version": "2", "kinds": ["nfs", "ceph"], "later": 2},
    }  # fmt: skip
    assert decode_enrol(_encode(body)).facts.kinds == ("nfs", "ceph")


def test_nested_key_given_twice_is_malformed() -> None:
    with pytest.raises(MalformedBody):
        parse_object(b'{"a": [{"b": 1, "b": 1}]}')


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_malformed(raw: bytes) -> None:
    with contextlib.suppress(MalformedBody):
        assert isinstance(parse_object(raw), dict)


@given(st.dictionaries(_fields | st.text(max_size=12), _json, max_size=8))
def test_any_object_decodes_or_names_its_wrong_fields(body: dict[str, Any]) -> None:
    for decode in (decode_add_backend, decode_edit_backend, decode_enrol):
        for error in _errors(decode, body):
            assert error.pointer.startswith("/")
            assert error.detail


@given(st.dictionaries(_fields, _json, max_size=4))
def test_add_with_any_other_value_still_names_only_that_field(changes: dict[str, Any]) -> None:
    """What is right is never blamed for what is wrong beside it."""
    if "kind" in changes:
        return  # config and credentials are judged by it
    errors = _errors(decode_add_backend, ADD | changes)
    assert {error.pointer.split("/")[1] for error in errors} <= changes.keys()


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "nfs", "config": {}}, "/config/server"),
        ({"kind": "smb", "config": {"share": "vms"}}, "/config/server"),
        ({"kind": "iscsi_lvm", "config": {}}, "/config/portal"),
        ({"kind": "local_file", "config": {}}, "/kind"),
        ({"kind": "nfs", "config": {"server": "-o"}}, "/config/server"),
        ({"kind": "nfs", "config": {"server": "nas"}, "credentials": {"password": "canary"}}, "/credentials"),
        ({"kind": "smb", "config": {"server": "nas"}, "credentials": {"username": "a,b"}}, "/credentials/username"),
        ({"kind": "smb", "config": {"server": "nas"}, "credentials": {"pin": "canary"}}, "/credentials/pin"),
        (
            {"kind": "smb", "config": {"server": "nas"}, "credentials": {"password": ["canary"]}},
            "/credentials/password",
        ),
        ({"kind": "smb", "config": {"server": "nas"}, "credentials": "canary"}, "/credentials"),
    ],
)
def test_discovery_that_cannot_be_made_is_refused_at_its_field(body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        decode_discover_storage(msgspec.json.encode(body))
    assert [error.pointer for error in caught.value.errors] == [pointer]
    assert "canary" not in str(caught.value.errors)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, {}),
        ({"username": "", "password": None}, {}),
        ({"password": "right"}, {"password": "right"}),
        ({"username": "svc", "password": "right", "domain": ""}, {"username": "svc", "password": "right"}),
    ],
)
def test_discovery_takes_partial_credentials_and_blank_ones_for_none(
    given: dict[str, Any] | None, taken: dict[str, str]
) -> None:
    body = {"kind": "smb", "config": {"server": "nas"}, "credentials": given}
    assert decode_discover_storage(msgspec.json.encode(body)).credentials.reveal() == taken
