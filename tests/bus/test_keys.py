"""The manager's keys on disk, and nkeys against the Python library of that name."""

import importlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manager.errors import ConfigError
from manager.keys import Keys
from schemas import nkey
from schemas.nkey import Role

_SECRETS = ("operator", "account", "system_account", "agent_signer", "commands", "uplink", "relay", "system", "auditor")


def _fingerprint(keys: Keys) -> tuple[object, ...]:
    return (*(getattr(keys, name) for name in _SECRETS), bytes(keys.sealing), keys.mac)


def _load(folder: Path, gate: str) -> tuple[object, ...]:
    with open(gate, "rb") as fifo:  # opens, for all at once, when the test opens the other end
        fifo.read()
    return _fingerprint(Keys.load_or_create(folder))


def _lose(folder: Path, name: str) -> dict[str, str]:
    """The key of that name is gone from the file; what it holds now."""
    path = folder / "keys.json"
    texts: dict[str, str] = json.loads(path.read_text())
    del texts[name]
    path.write_text(json.dumps(texts))
    return texts


def test_load_or_create_twice_same_keys_all_different_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "keys"
    first = Keys.load_or_create(folder)
    assert _fingerprint(Keys.load_or_create(folder)) == _fingerprint(first)
    assert len(set(_fingerprint(first))) == len(_SECRETS) + 2
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert not list(folder.glob("*.tmp")) and len(list(folder.iterdir())) == 2


def test_load_or_create_many_processes_at_once_agree(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        loads = [pool.apply_async(_load, (tmp_path / "keys", str(gate))) for _ in range(4)]
        with gate.open("wb"):
            pass
        # A process that opened the gate late waits for a writer of its own.
        found: set[tuple[object, ...]] = set()
        for load in loads:
            while not load.ready():
                try:
                    os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
                except OSError:
                    load.wait(0.01)
            found.add(load.get(10))
    assert len(found) == 1


def test_load_or_create_key_missing_is_made_and_the_others_kept(tmp_path: Path) -> None:
    before = Keys.load_or_create(tmp_path)
    _lose(tmp_path, "auditor")
    after = Keys.load_or_create(tmp_path)
    assert (after.operator, after.mac) == (before.operator, before.mac)
    assert after.auditor != before.auditor
    assert Keys.load_or_create(tmp_path).auditor == after.auditor


def test_load_without_a_file_or_a_folder_is_refused_and_makes_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"keys\.json does not hold .* missing"):
            Keys.load(folder)
    assert not (tmp_path / "keys.json").exists()
    assert not (tmp_path / "none").exists()


def test_load_with_a_key_missing_that_nobody_else_knows_makes_it(tmp_path: Path) -> None:
    before = Keys.load_or_create(tmp_path)
    _lose(tmp_path, "relay")
    after = Keys.load(tmp_path)
    assert after.trusted == before.trusted
    assert after.relay != before.relay


@pytest.mark.parametrize("name", ["operator", "account", "system_account", "agent_signer", "sealing"])
def test_load_with_a_trusted_key_missing_is_refused_and_the_file_left(tmp_path: Path, name: str) -> None:
    Keys.load_or_create(tmp_path)
    texts = _lose(tmp_path, name)
    with pytest.raises(ConfigError, match=f"lacks {name}"):
        Keys.load(tmp_path)
    assert json.loads((tmp_path / "keys.json").read_text()) == texts


def test_trusted_keys_hold_no_secret(tmp_path: Path) -> None:
    keys = Keys.load_or_create(tmp_path)
    secrets = set(json.loads((tmp_path / "keys.json").read_text()).values())
    assert set(keys.trusted) == {"operator", "account", "system_account", "agent_signer", "sealing"}
    assert not secrets & set(keys.trusted.values())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"operator": "SOAAAA"}', b'{"mac": "00"}', b'{"operator": 7}', b"\xff", b'{"mac": "zz"}'],
)
def test_load_or_create_file_broken_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="broken"):
        Keys.load_or_create(tmp_path)
    assert path.read_bytes() == content


def test_load_or_create_seed_of_another_role_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"operator": nkey.new_seed(Role.USER)}))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="broken"):
        Keys.load_or_create(tmp_path)


def test_load_or_create_file_open_to_others_or_a_link_refused(tmp_path: Path) -> None:
    Keys.load_or_create(tmp_path / "a")
    (tmp_path / "a" / "keys.json").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keys.load_or_create(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "keys.json").symlink_to(tmp_path / "a" / "keys.json")
    with pytest.raises(ConfigError):
        Keys.load_or_create(tmp_path / "b")


def test_keys_repr_shows_nothing(tmp_path: Path) -> None:
    keys = Keys.load_or_create(tmp_path)
    assert repr(keys) == str(keys) == f"{keys}" == "<keys>"


@pytest.mark.parametrize("role", Role)
def test_nkey_agrees_with_the_library(role: Role) -> None:
    seed = nkey.new_seed(role)
    library: Any = importlib.import_module("nkeys")  # it has no types
    pair = library.from_seed(bytearray(seed.encode()))
    assert nkey.public_key(seed) == pair.public_key.decode()
    assert nkey.sign(seed, b"x") == pair.sign(b"x")
    assert seed[:2] == {Role.OPERATOR: "SO", Role.ACCOUNT: "SA", Role.USER: "SU"}[role]
    public = nkey.public_key(seed)
    assert nkey.verify(public, role, b"x", nkey.sign(seed, b"x"))
    assert not nkey.verify(public, role, b"y", nkey.sign(seed, b"x"))
    assert not nkey.verify(public, role, b"x", b"short")


_SPOILED: dict[str, Callable[[str], str]] = {
    "cut": lambda key: key[:-1],
    "foreign letter": lambda key: key[:-1] + "!",
    "longer": lambda key: key + "A",
    "lower case": lambda key: key.lower(),
    "nothing": lambda _: "",
}


@pytest.mark.parametrize("how", _SPOILED)
def test_nkey_out_of_form_is_no_key(how: str) -> None:
    spoil = _SPOILED[how]
    seed = nkey.new_seed(Role.USER)
    public = nkey.public_key(seed)
    assert nkey.is_public_key(public, Role.USER)
    assert not nkey.is_public_key(public, Role.ACCOUNT)
    assert not nkey.is_public_key(seed, Role.USER)
    assert not nkey.is_public_key(spoil(public), Role.USER)
    with pytest.raises(nkey.BadKey):
        nkey.public_key(spoil(seed))
    with pytest.raises(nkey.BadKey):
        nkey.public_key(public)
