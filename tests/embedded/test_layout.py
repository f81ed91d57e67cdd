"""Names and files of the data folder."""

import os
import stat
import tomllib
from pathlib import Path

import pytest

from manager.embedded.errors import StartError
from manager.embedded.layout import Layout, agent_names, default_data_dir, toml, write_private
from manager.embedded.lock import DataLock
from schemas.ids import HOST_NAME
from tests.embedded.conftest import NOBODY, as_root


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("hv1", "hv1"),
        ("HV1.example.org", "hv1"),
        ("my_host!", "my-host"),
        ("-", "host"),
        ("x" * 80, "x" * 63),
    ],
)
def test_agent_name_of_any_hostname_is_a_dns_label(hostname: str, name: str) -> None:
    assert agent_names(1, hostname) == [name]
    assert all(HOST_NAME.fullmatch(each) for each in agent_names(12, hostname))


def test_agent_names_of_several_are_numbered_from_two() -> None:
    assert agent_names(3, "hv") == ["hv", "hv-2", "hv-3"]
    assert len(set(agent_names(12, "x" * 80))) == 12


def test_default_data_dir_follows_the_environment_and_never_the_checkout() -> None:
    assert default_data_dir({"STOWAGE_DATA_DIR": "/somewhere"}) == Path("/somewhere")
    checkout = Path(__file__).parents[2]
    assert not default_data_dir({}).is_relative_to(checkout)


def test_data_folder_made_by_us_can_be_passed_only_by_who_must(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    layout.create()
    assert stat.S_IMODE(layout.data.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)
    for folder in (layout.keys, layout.postgres, layout.nats, layout.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((layout.data / "agents").stat().st_mode) == 0o711
    assert stat.S_IMODE(layout.images.stat().st_mode) == 0o755


def test_data_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o750)
    Layout(tmp_path / "data").create()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o750


@as_root
def test_data_folder_of_another_user_is_refused_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(StartError, match=r"belongs to nobody, and this runs as root.*chown root"):
        Layout(tmp_path / "data").create()
    assert list((tmp_path / "data").iterdir()) == []


@as_root
def test_data_folder_that_others_may_write_to_is_refused_to_root(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o1777)
    with pytest.raises(StartError, match="chmod go-w"):
        Layout(tmp_path / "data").create()


def test_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(StartError, match="no folder"):
        Layout(tmp_path / "data").create()


def test_logs_rotated_begin_anew_but_our_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    layout.create()
    layout.log("nats").write_text("old")
    layout.own_log.write_text("ours")
    layout.rotate_logs()
    assert not layout.log("nats").exists()
    assert layout.log("nats").with_name("nats.log.1").read_text() == "old"
    assert layout.own_log.read_text() == "ours"


def test_toml_of_awkward_strings_reads_back() -> None:
    values = {"path": '/a "quoted" \\ folder\n\t', "urls": ["nats://[::1]:4222", "ü"]}
    assert tomllib.loads(toml(values)) == values


def test_private_file_over_a_public_one_is_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("held", ["notes", "postgres/PG_VERSION"])
def test_data_folder_with_other_things_in_it_is_refused_and_untouched(tmp_path: Path, held: str) -> None:
    (tmp_path / held).parent.mkdir(exist_ok=True)
    (tmp_path / held).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StartError, match="holds other things"):
        Layout(tmp_path).create()
    assert sorted(tmp_path.rglob("*")) == before


def test_root_folder_is_refused() -> None:
    with pytest.raises(StartError):  # to others than root it belongs to another user
        Layout(Path("/")).create()


def test_image_folder_that_a_person_has_closed_stays_closed_and_is_no_place_for_a_backend(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    layout.create()
    layout.images.chmod(0o700)
    layout.create()
    assert stat.S_IMODE(layout.images.stat().st_mode) == 0o700
    assert layout.images in layout.reserved()


@pytest.mark.parametrize("made", range(7))
def test_first_start_killed_before_its_lock_goes_on(tmp_path: Path, made: int) -> None:
    (tmp_path / "lost+found").mkdir()
    for name in ("postgres", "nats", "keys", "log", "agents", "images", "lock")[: made + 1]:
        (tmp_path / name).mkdir() if name != "lock" else (tmp_path / name).touch()
    Layout(tmp_path).create()


def test_data_folder_used_before_is_taken_whatever_lies_beside(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    layout.create()
    DataLock(layout.data).release()
    (layout.postgres / "data").mkdir()
    (layout.data / "notes").touch()
    layout.create()
