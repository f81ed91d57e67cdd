"""Where credentials rest, and under which conditions they come in."""

import os
from collections.abc import Iterator
from pathlib import Path

import nacl.signing
import pytest

from agent.credentials import CredentialStore
from agent.errors import AgentFault
from schemas import sealing
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from tests.agent.fakes import HOST, Rig


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CredentialStore]:
    before = os.umask(0)
    yield CredentialStore(tmp_path / "credentials")
    os.umask(before)


def creds(password: str = "p,ä\"'") -> Credentials:
    return Credentials({"username": "u", "password": password})


def test_put_and_get_gives_the_same_from_a_0600_file_in_a_0700_folder(
    store: CredentialStore, tmp_path: Path, backend_id: str
) -> None:
    store.put(backend_id, 1, creds())
    assert store.get(backend_id, 1) == creds()
    files = list((tmp_path / "credentials").iterdir())
    assert [file.name for file in files] == [f"{backend_id}.1.json"]
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "credentials").stat().st_mode & 0o777 == 0o700


def test_put_empty_credentials_leaves_no_file(store: CredentialStore, tmp_path: Path, backend_id: str) -> None:
    store.put(backend_id, 1, Credentials({}))
    assert not list((tmp_path / "credentials").iterdir())
    assert not store.get(backend_id, 0)


def test_get_version_not_held_is_needs_credentials(store: CredentialStore, backend_id: str) -> None:
    store.put(backend_id, 1, creds())
    with pytest.raises(AgentFault) as caught:
        store.get(backend_id, 2)
    assert caught.value.fault.code is FaultCode.NEEDS_CREDENTIALS


def test_get_damaged_file_is_needs_credentials_and_quotes_nothing(
    store: CredentialStore, tmp_path: Path, backend_id: str
) -> None:
    store.put(backend_id, 1, creds("canary"))
    path = tmp_path / "credentials" / f"{backend_id}.1.json"
    path.write_text('{"password": "canary"')
    with pytest.raises(AgentFault) as caught:
        store.get(backend_id, 1)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_staged_version_lies_beside_the_active_one_and_can_be_dropped(store: CredentialStore, backend_id: str) -> None:
    store.put(backend_id, 1, creds("old"))
    store.put(backend_id, 2, creds("new"))
    assert store.held() == {backend_id: (1, 2)}
    store.drop_from(backend_id, 2)
    assert store.get(backend_id, 1) == creds("old")
    assert store.versions(backend_id) == (1,)


def test_drop_older_keeps_the_proven_one_and_newer(store: CredentialStore, backend_id: str) -> None:
    for version in (1, 2, 10):
        store.put(backend_id, version, creds())
    store.drop_older(backend_id, 2)
    assert store.versions(backend_id) == (2, 10)


def test_start_purges_files_of_killed_writes_and_nothing_else(
    store: CredentialStore, tmp_path: Path, backend_id: str
) -> None:
    store.put(backend_id, 1, creds())
    (tmp_path / "credentials" / ".new-0123").write_text("half a secr")
    CredentialStore(tmp_path / "credentials")
    assert [path.name for path in (tmp_path / "credentials").iterdir()] == [f"{backend_id}.1.json"]


@pytest.mark.parametrize("name", ["../../etc/shadow", "x", "0" * 36 + "/.."])
def test_put_id_that_is_a_path_is_refused(store: CredentialStore, name: str) -> None:
    with pytest.raises(ValueError, match="not a backend id"):
        store.put(name, 1, creds())


async def test_delivery_with_its_nonce_opens(rig: Rig, backend_id: str) -> None:
    sealed = rig.seal(backend_id, 1, rig.deliveries.nonce(backend_id, 1))
    assert rig.deliveries.open(backend_id, 1, sealed).get("password") == "pw"


async def test_delivery_twice_is_refused(rig: Rig, backend_id: str) -> None:
    sealed = rig.seal(backend_id, 1, rig.deliveries.nonce(backend_id, 1))
    rig.deliveries.open(backend_id, 1, sealed)
    with pytest.raises(AgentFault, match="nonce"):
        rig.deliveries.open(backend_id, 1, sealed)


async def test_delivery_for_an_older_nonce_is_refused(rig: Rig, backend_id: str) -> None:
    sealed = rig.seal(backend_id, 1, rig.deliveries.nonce(backend_id, 1))
    rig.deliveries.nonce(backend_id, 1)
    with pytest.raises(AgentFault, match="another request"):
        rig.deliveries.open(backend_id, 1, sealed)


async def test_delivery_after_a_minute_is_refused(rig: Rig, backend_id: str) -> None:
    sealed = rig.seal(backend_id, 1, rig.deliveries.nonce(backend_id, 1))
    rig.now += sealing.LIFETIME_S + 1
    with pytest.raises(AgentFault, match="nonce"):
        rig.deliveries.open(backend_id, 1, sealed)


async def test_delivery_not_signed_by_the_manager_is_refused_without_a_word_of_it(rig: Rig, backend_id: str) -> None:
    rig.manager_key = nacl.signing.SigningKey(b"x" * 32)
    sealed = rig.seal(backend_id, 1, rig.deliveries.nonce(backend_id, 1), password="canary")
    with pytest.raises(AgentFault, match="signature") as caught:
        rig.deliveries.open(backend_id, 1, sealed)
    assert "canary" not in repr(caught.value.__cause__)


async def test_reseal_makes_a_box_that_the_newcomer_opens_once_signed(rig: Rig, backend_id: str) -> None:
    nonce = rig.deliveries.nonce(backend_id, 3)
    box = rig.deliveries.reseal(
        Credentials({"password": "pw"}),
        backend_id=backend_id,
        version=3,
        to_host=HOST,
        to_key=bytes(rig.key.public_key),
        nonce=nonce,
    )
    sealed = sealing.sign(box, rig.manager_key)
    assert rig.deliveries.open(backend_id, 3, sealed).get("password") == "pw"
