"""Every kind's fields: what is let in, what is refused, and in which words."""

from typing import Any

import msgspec
import pytest

from schemas.kinds import ISCSI_LVM, KINDS, LOCAL_FILE, NFS, SMB, KindSpec
from schemas.validation import fixed_fields, json_schema, remount_fields, validate_config, validate_credentials

_GOOD: dict[str, dict[str, Any]] = {
    "local_file": {"root_dir": "/srv/vms"},
    "nfs": {"server": "10.0.0.5", "export": "/tank/vms"},
    "smb": {"server": "nas", "share": "vms"},
    "iscsi_lvm": {"portal": "10.0.0.9:3260", "target_iqn": "iqn.2026-01.org.example:vms", "vg_name": "vg_vms"},
}


@pytest.mark.parametrize("spec", KINDS.values(), ids=lambda spec: spec.kind)
def test_good_config_is_completed_with_its_defaults(spec: KindSpec) -> None:
    values, errors = validate_config(spec, _GOOD[spec.kind])
    assert errors == []
    assert values.keys() == {field.encode_name for field in msgspec.structs.fields(spec.config)}
    assert isinstance(msgspec.convert(values, spec.config), spec.config)


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        (LOCAL_FILE, "root_dir", "srv"),
        (LOCAL_FILE, "root_dir", "/"),
        (LOCAL_FILE, "root_dir", "/srv/../etc"),
        (LOCAL_FILE, "root_dir", "/srv/./x"),
        (LOCAL_FILE, "root_dir", "/srv//x"),
        (LOCAL_FILE, "root_dir", "/srv/a,b"),
        (LOCAL_FILE, "root_dir", "/srv/a\nb"),
        (LOCAL_FILE, "root_dir", "/srv\n"),
        (LOCAL_FILE, "root_dir", 7),
        (LOCAL_FILE, "root_dir", "/" + "x" * 2000),
        (LOCAL_FILE, "require_mountpoint", "yes"),
        (NFS, "server", ""),
        (NFS, "server", "-o"),
        (NFS, "server", "a b"),
        (NFS, "server", "999.1.1.1"),
        (NFS, "server", "5"),
        (NFS, "server", "10.0.0.5:/x"),
        (NFS, "server", "nas,nolock"),
        (NFS, "server", "nas\x00"),
        (NFS, "export", "tank"),
        (NFS, "export", "/tank/../x"),
        (NFS, "nfs_version", "5"),
        (NFS, "subdir", "../x"),
        (NFS, "subdir", "/x"),
        (NFS, "options", "exec"),
        (NFS, "options", "noatime,,hard"),
        (NFS, "options", "timeo"),
        (NFS, "options", "timeo=1;2"),
        (NFS, "options", "port=abc"),
        (NFS, "options", "port="),
        (NFS, "options", "port=65536"),
        (NFS, "options", "mountport=70000"),
        (SMB, "options", "port=65536"),
        (NFS, "options", "timeo=99999999999"),
        (NFS, "subdir", "a//b"),
        (NFS, "subdir", "a/../b"),
        (NFS, "subdir", "a/.."),
        (NFS, "subdir", "."),
        (SMB, "share", "a/b"),
        (SMB, "share", "a\\b"),
        (SMB, "share", "a,uid=0"),
        (SMB, "share", "-x"),
        (SMB, "share", ".."),
        (SMB, "share", "."),
        (SMB, "options", "ip=10.0.0.6"),
        (SMB, "options", "noatime,,seal"),
        (SMB, "options", "noatime, seal"),
        (SMB, "options", "credentials=/etc/shadow"),
        (SMB, "smb_version", "1.0"),
        (ISCSI_LVM, "portal", "10.0.0.9:0"),
        (ISCSI_LVM, "portal", "10.0.0.999:3260"),
        (ISCSI_LVM, "portal", "10.0.0.9:70000"),
        (ISCSI_LVM, "portal", "fe80::1"),
        (ISCSI_LVM, "target_iqn", "iqn.2026-13.org.example:x"),
        (ISCSI_LVM, "target_iqn", "vms"),
        (ISCSI_LVM, "vg_name", "-vg"),
        (ISCSI_LVM, "vg_name", ".."),
        (ISCSI_LVM, "vg_name", "a/b"),
        (ISCSI_LVM, "lun", -1),
        (ISCSI_LVM, "lun", "0"),
        (ISCSI_LVM, "lun", True),
    ],
)
def test_bad_value_is_refused_at_its_field_in_words(spec: KindSpec, field: str, value: object) -> None:
    _, errors = validate_config(spec, {**_GOOD[spec.kind], field: value})
    assert [error.pointer for error in errors] == [f"/config/{field}"]
    assert "regex" not in errors[0].detail


@pytest.mark.parametrize("subdir", ["", "a", "a/", "a/b", ".a/..b/c..", "a b/c"])
def test_every_way_to_name_a_sub_folder_is_let_in(subdir: str) -> None:
    assert validate_config(NFS, {**_GOOD["nfs"], "subdir": subdir})[1] == []


@pytest.mark.parametrize("unit", ["a", "/a", "a/", "a.", "a:", "-", "/.", "[a", "iqn.2026-01.a"])
@pytest.mark.parametrize("end", [",", "\n", "\\", "!", "/../"])
@pytest.mark.parametrize("spec", KINDS.values(), ids=lambda spec: spec.kind)
def test_long_text_that_almost_fits_is_judged_without_a_search_through_all_splits(
    spec: KindSpec, unit: str, end: str
) -> None:
    """A pattern that can split a text in many ways would not come back from these."""
    fields = msgspec.inspect.type_info(spec.config)
    assert isinstance(fields, msgspec.inspect.StructType)
    for field in fields.fields:
        words = field.type.type if isinstance(field.type, msgspec.inspect.Metadata) else field.type
        if isinstance(words, msgspec.inspect.StrType):
            text = (unit * 1024)[: (words.max_length or 1024) - len(end)] + end
            _, errors = validate_config(spec, {**_GOOD[spec.kind], field.encode_name: text})
            assert {error.pointer for error in errors} <= {f"/config/{field.encode_name}"}


@pytest.mark.parametrize(
    "server", ["nas", "nas.example.org", "10.0.0.5", "fe80::1", "[fe80::1]", "2001:db8::5", "fe80::1%eth0"]
)
def test_every_way_to_name_a_server_is_let_in(server: str) -> None:
    assert validate_config(NFS, {"server": server, "export": "/x"})[1] == []


@pytest.mark.parametrize("portal", ["san", "san:3260", "10.0.0.9", "[fe80::1]:3260", "[2001:db8::9]"])
def test_every_way_to_name_a_portal_is_let_in(portal: str) -> None:
    assert validate_config(ISCSI_LVM, {**_GOOD["iscsi_lvm"], "portal": portal})[1] == []


def test_all_wrong_fields_are_reported_at_once() -> None:
    _, errors = validate_config(NFS, {"export": "tank", "nfs_version": 4, "colour": "red", "options": "suid"})
    assert {error.pointer for error in errors} == {
        "/config/server",
        "/config/export",
        "/config/nfs_version",
        "/config/colour",
        "/config/options",
    }


def test_option_value_that_may_be_a_secret_is_never_repeated() -> None:
    _, errors = validate_config(SMB, {**_GOOD["smb"], "options": "password=CANARY"})
    assert errors
    assert "CANARY" not in str(errors)


@pytest.mark.parametrize(
    "raw", [{"username": "u", "password": "CANARY\n"}, {"username": 7, "password": "CANARY"}, {"pasword": "CANARY"}]
)
def test_wrong_credentials_are_refused_without_their_text(raw: dict[str, Any]) -> None:
    found, errors = validate_credentials(SMB, raw)
    assert errors
    assert "CANARY" not in str(errors) + repr(found)


def test_blank_credentials_are_guest_and_a_kind_without_any_says_so() -> None:
    found, errors = validate_credentials(SMB, {"username": "", "password": ""})
    assert (bool(found), errors) == (False, [])
    assert validate_credentials(NFS, {"password": "x"})[1][0].pointer == "/credentials"
    assert validate_credentials(NFS, {"password": ""})[1] == []


def test_edit_may_give_the_password_alone() -> None:
    found, errors = validate_credentials(SMB, {"password": 'p," =\\ '}, is_partial=True)
    assert (found.reveal(), errors) == ({"password": 'p," =\\ '}, [])


@pytest.mark.parametrize("spec", KINDS.values(), ids=lambda spec: spec.kind)
def test_every_field_has_title_and_description_and_every_constraint_its_words(spec: KindSpec) -> None:
    for struct in filter(None, (spec.config, spec.credentials)):
        schema = json_schema(struct)
        for name, prop in schema["properties"].items():
            assert prop["title"] and prop["description"] and prop["type"], name
            assert prop["x-ui"]["change"] in ("fixed", "remount", "live"), name
            if "pattern" in prop:
                assert prop["x-error"], name
    assert fixed_fields(spec) | remount_fields(spec)


@pytest.mark.parametrize(
    ("given", "missing"), [("mutual_username", "mutual_password"), ("mutual_password", "mutual_username")]
)
def test_half_of_a_mutual_pair_is_refused_where_the_other_half_is_not_known(given: str, missing: str) -> None:
    raw = {"username": "u", "password": "p", given: "x"}
    assert [error.pointer for error in validate_credentials(ISCSI_LVM, raw)[1]] == [f"/credentials/{missing}"]
    assert validate_credentials(ISCSI_LVM, {given: "x"}, is_partial=True)[1] == []
    assert ISCSI_LVM.credentials is not None
    assert json_schema(ISCSI_LVM.credentials)["dependentRequired"][given] == [missing]


def test_secrets_are_write_only_in_the_schema() -> None:
    assert SMB.credentials is not None
    password = json_schema(SMB.credentials)["properties"]["password"]
    assert (password["writeOnly"], password["format"]) == (True, "password")


@pytest.mark.parametrize(
    ("value", "words"),
    [(5, "must be text"), ("/" + "x" * 2000, "must be text of at most 1024 characters"), ("x", "must begin with /")],
)
def test_wrong_value_is_told_by_type_then_length_then_form(value: object, words: str) -> None:
    (error,) = validate_config(NFS, {**_GOOD["nfs"], "export": value})[1]
    assert error.detail.startswith(words)
