"""agent.toml, the environment, the state folder."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig, Intervals, StateDir, load_config, save_config
from agent.errors import ConfigError

CONFIG = AgentConfig(
    host_id="h",
    host_name="hv1",
    fleet_id="f",
    manager_url="https://m",
    nats_urls=("nats://a", "nats://b"),
    manager_key="00",
    labels={"rack": 'r "1"\\', "ünï.code": "x"},
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    state.prepare()
    return state


def test_save_and_load_gives_the_same(state: StateDir) -> None:
    save_config(state, CONFIG)
    assert load_config(state, {}) == CONFIG
    assert state.config_file.stat().st_mode & 0o777 == 0o600


def test_load_environment_and_command_line_lie_over_the_file(state: StateDir) -> None:
    save_config(state, CONFIG)
    environ = {"STOWAGE_AGENT_PROBE_S": "2.5", "STOWAGE_AGENT_NATS_URLS": "nats://c,nats://d", "HOME": "/"}
    loaded = load_config(state, environ)
    assert loaded.intervals == Intervals(probe_s=2.5)
    assert loaded.nats_urls == ("nats://c", "nats://d")
    assert load_config(state, environ, ("nats://e",)).nats_urls == ("nats://e",)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"STOWAGE_AGENT_PROBES": "1"}, "STOWAGE_AGENT_PROBES"),
        ({"STOWAGE_AGENT_PROBE_S": "soon"}, "probe_s"),
        ({"STOWAGE_AGENT_BEAT_S": "0"}, "beat_s"),
    ],
)
def test_load_bad_environment_is_refused_by_name(state: StateDir, environ: dict[str, str], named: str) -> None:
    save_config(state, CONFIG)
    with pytest.raises(ConfigError, match=named):
        load_config(state, environ)


@pytest.mark.parametrize(
    "text", ["unknown = 1\n", "[intervals]\nprobe_s = 'x'\n", "not toml", "[intervals]\nprobe = 1\n"]
)
def test_load_file_with_an_unknown_key_or_type_is_refused(state: StateDir, text: str) -> None:
    save_config(state, msgspec.structs.replace(CONFIG, labels={}))
    good = state.config_file.read_text().replace("[labels]\n", "")
    state.config_file.write_text(good + text)
    with pytest.raises(ConfigError, match=r"agent\.toml"):
        load_config(state, {})


def test_load_before_join_says_what_to_do(state: StateDir) -> None:
    with pytest.raises(ConfigError, match="join"):
        load_config(state, {})


def test_prepare_makes_folders_private_but_for_the_way_to_the_mounts_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        StateDir(tmp_path / "s").prepare()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s").iterdir()}
    assert modes == {**dict.fromkeys(("credentials", "backends", "trials", "downloads", "run"), 0o700), "mounts": 0o711}
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o711


def test_state_folder_behind_a_link_is_known_as_the_kernel_knows_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert StateDir(tmp_path / "link" / "s").mounts == (tmp_path / "real" / "s" / "mounts").resolve()


def test_locked_refuses_a_second_agent_and_is_free_after_kill(state: StateDir) -> None:
    code = (
        "import sys, pathlib; from agent.config import StateDir\n"
        "with StateDir(pathlib.Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, state.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another agent"), state.locked():
            pytest.fail("two agents on one state folder")
        other.kill()
        other.wait()
    with state.locked():
        pass


def test_load_reserved_folders_behind_links_are_known_as_the_kernel_knows_them(state: StateDir, tmp_path: Path) -> None:
    for name in ("docker", "postgres"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}-link").symlink_to(tmp_path / name)
    save_config(state, CONFIG)
    with state.config_file.open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write(f'reserved_dirs = ["{tmp_path}/docker-link"]\n{text}')
    config = load_config(state, {}, (), (f"{tmp_path}/postgres-link",))
    assert config.reserved_dirs == (f"{tmp_path}/docker", f"{tmp_path}/postgres")


def test_load_image_folders_of_file_and_command_line_are_together_and_as_written(
    state: StateDir, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("gone")
    save_config(state, CONFIG)
    text = state.config_file.read_text()
    state.config_file.write_text(f'image_dirs = ["{tmp_path}/link"]\n{text}')
    config = load_config(state, {}, (), (), ("/srv/images",))
    assert config.image_dirs == (f"{tmp_path}/link", "/srv/images")


def test_load_image_folder_that_is_no_absolute_path_is_refused(state: StateDir) -> None:
    save_config(state, CONFIG)
    with pytest.raises(ConfigError, match="'images' is no absolute path"):
        load_config(state, {}, (), (), ("images",))


def test_left_overs_are_removed_and_a_fresh_download_that_is_whole_stays(state: StateDir) -> None:
    doomed = [state.run / "secret", state.works / "progress", state.downloads / "v.part", state.downloads / "old.image"]
    for path in (*doomed, state.downloads / "new.image"):
        path.touch()
    os.utime(state.downloads / "old.image", (0, 0))
    state.remove_left_overs()
    assert [path for path in doomed if path.exists()] == []
    assert (state.downloads / "new.image").exists()
    assert state.works.is_dir()
