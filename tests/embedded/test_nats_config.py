"""`stowage nats-config` writes what a nats-server accepts, and no secret."""

import subprocess
from pathlib import Path

from click.testing import CliRunner

from manager.cli.nats_config import nats_config
from manager.embedded import nats


def test_nats_config_written_twice_is_for_the_same_fleet_and_accepted(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    written: list[str] = []
    for name in ("one.conf", "two.conf"):
        args = ["--keys-dir", str(keys), "--output", str(tmp_path / name), "--data-dir", str(tmp_path / "data")]
        done = CliRunner().invoke(nats_config, args, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        written.append((tmp_path / name).read_text())
    account = [next(line for line in text.splitlines() if line.startswith("system_account")) for text in written]
    assert account[0] == account[1]
    tested = subprocess.run(
        [str(nats.binary()), "-t", "--config", str(tmp_path / "two.conf")], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stderr


def test_nats_config_printed_holds_no_seed(tmp_path: Path) -> None:
    done = CliRunner().invoke(nats_config, ["--keys-dir", str(tmp_path / "keys")], catch_exceptions=False)
    assert "system_account" in done.output
    for file in (tmp_path / "keys").iterdir():
        for word in file.read_text().replace('"', " ").split():
            assert len(word) < 40 or word not in done.output
