"""Which user the servers run as when root starts them."""

import os
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager.embedded import identity
from manager.embedded.errors import StartError
from manager.embedded.identity import Identity

_TRUE = Path("/bin/true")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


@pytest.fixture
def folder(open_dir: Path) -> Path:
    made = open_dir / "closed" / "folder"
    made.mkdir(parents=True, mode=0o700)
    made.parent.chmod(0o711)
    return made


def test_identity_in_a_reachable_folder_is_nobody_and_owns_what_is_in_it(folder: Path) -> None:
    (folder / "inside").mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    chosen = identity.choose(folder, [_TRUE])
    nobody = pwd.getpwnam("nobody")
    assert (chosen.uid, chosen.is_mapped) == (nobody.pw_uid, False)
    assert (
        folder.stat().st_uid == (folder / "inside").stat().st_uid == (folder / "link").lstat().st_uid == nobody.pw_uid
    )
    assert Path("/etc/passwd").stat().st_uid == 0


def test_identity_in_a_closed_folder_is_in_a_namespace_and_the_files_stay_ours(folder: Path) -> None:
    folder.parent.chmod(0o700)
    chosen = identity.choose(folder, [_TRUE])
    assert chosen.is_mapped
    assert chosen.owner == (0, 0)
    assert folder.stat().st_uid == 0


def test_identity_of_an_earlier_start_is_kept(folder: Path) -> None:
    daemon = pwd.getpwnam("daemon")
    os.chown(folder, daemon.pw_uid, daemon.pw_gid)
    assert identity.choose(folder, [_TRUE]).name == "daemon"


def test_identity_under_sudo_is_the_owner_of_the_checkout(
    folder: Path, open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = pwd.getpwnam("daemon")
    prefix = open_dir / "venv"
    prefix.mkdir(mode=0o700)
    os.chown(prefix, daemon.pw_uid, daemon.pw_gid)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    assert identity.choose(folder, [_TRUE]).name == "daemon"


def test_identity_that_cannot_execute_the_binary_is_passed_over(folder: Path, open_dir: Path) -> None:
    binary = open_dir / "private" / "true"
    binary.parent.mkdir(mode=0o700)
    binary.write_bytes(_TRUE.read_bytes())
    binary.chmod(0o755)
    assert identity.choose(folder, [binary]).is_mapped


def test_identity_where_nobody_will_do_says_what_was_tried_and_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartError, match=r"(?s)nobody: .+user namespace: .+chmod o\+x"):
        identity.choose(folder, [Path("/no/such/binary")])
    nobody = pwd.getpwnam("nobody")
    only = Identity(uid=nobody.pw_uid, gid=nobody.pw_gid, name="nobody")

    def candidates(_folder: Path) -> Iterator[Identity]:
        yield only

    monkeypatch.setattr(identity, "_candidates", candidates)
    folder.parent.chmod(0o700)
    with pytest.raises(StartError, match=r"nobody: .*closed"):
        identity.choose(folder, [_TRUE])
