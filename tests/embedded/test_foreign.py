"""What lies in the folder of another user leads nobody elsewhere."""

import os
import stat
from pathlib import Path

import pytest

from manager.embedded import foreign
from manager.embedded.errors import StartError
from tests.embedded.conftest import NOBODY, as_root

_OWNER = (NOBODY.pw_uid, NOBODY.pw_gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


@as_root
def test_give_changes_the_owner_of_all_but_what_links_name(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "deep" / "deeper").mkdir(parents=True)
    (home / "deep" / "deeper" / "file").touch()
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (home / "deep" / "folder").symlink_to(elsewhere)
    (home / "file").symlink_to(elsewhere / "file")
    foreign.give(home, _OWNER)
    given = [home, home / "deep", home / "deep" / "deeper", home / "deep" / "deeper" / "file"]
    assert {path.stat().st_uid for path in given} == {NOBODY.pw_uid}
    assert {path.stat().st_uid for path in (elsewhere, elsewhere / "file")} == {0}


@as_root
def test_give_of_a_file_with_a_second_name_is_refused(tmp_path: Path) -> None:
    """The other name may be a file of root's, which would change its owner too."""
    (tmp_path / "home").mkdir()
    (tmp_path / "secret").touch()
    (tmp_path / "home" / "file").hardlink_to(tmp_path / "secret")
    with pytest.raises(StartError, match="second name"):
        foreign.give(tmp_path / "home", _OWNER)
    assert (tmp_path / "secret").stat().st_uid == 0


@as_root
def test_give_of_a_folder_moved_elsewhere_by_a_link_of_ours_follows_it(tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "file").touch()
    (tmp_path / "home").symlink_to("fast")
    foreign.give(tmp_path / "home", _OWNER)
    assert {path.stat().st_uid for path in (tmp_path / "fast", tmp_path / "fast" / "file")} == {NOBODY.pw_uid}


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "nothing"])
def test_read_start_of_what_is_no_plain_file_is_none(what: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    match what:
        case "link":
            (tmp_path / "name").symlink_to("secret")
        case "pipe":
            os.mkfifo(tmp_path / "name")
        case "folder":
            (tmp_path / "name").mkdir()
        case _:
            pass
    with foreign.opened(tmp_path) as folder:
        assert foreign.read_start("name", folder) is None
        assert not foreign.exists("name", folder)
        assert len(foreign.read_start("secret", folder) or "") == 6


def test_read_start_of_a_huge_file_is_its_start(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("x" * 100_000)
    with foreign.opened(tmp_path) as folder:
        assert len(foreign.read_start("name", folder) or "") == 16 * 1024


def test_remove_of_a_link_keeps_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    (tmp_path / "name").symlink_to("kept")
    (tmp_path / "folder").mkdir()
    with foreign.opened(tmp_path) as folder:
        foreign.remove("name", folder)
        foreign.remove("name", folder)
        with pytest.raises(StartError, match="is a folder"):
            foreign.remove("folder", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "kept"]


def test_make_folder_again_sets_owner_and_mode(tmp_path: Path) -> None:
    for _ in range(2):
        foreign.make_folder(tmp_path / "name", _OWNER)
        found = (tmp_path / "name").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*_OWNER, 0o700)
        (tmp_path / "name").chmod(0o755)


def test_make_folder_where_a_link_is_refuses(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "name").symlink_to("elsewhere")
    with pytest.raises(StartError, match="is a link"):
        foreign.make_folder(tmp_path / "name", _OWNER)
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755


def test_write_readable_over_a_link_keeps_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "name").symlink_to("kept")
    foreign.write_readable(tmp_path / "name", "text", _OWNER)
    assert ((tmp_path / "kept").read_text(), (tmp_path / "name").read_text()) == ("kept", "text")
    assert stat.S_IMODE((tmp_path / "name").lstat().st_mode) == 0o400
