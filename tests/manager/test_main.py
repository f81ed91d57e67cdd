"""`stowage-manager` that cannot start: one line that names the key, exit code 2, no trace."""

import socket
import subprocess
import sys
from pathlib import Path


def _run(folder: Path, database_url: str, listen: str) -> "subprocess.CompletedProcess[str]":
    path = folder / "config.toml"
    path.write_text(
        f'database_url = "{database_url}"\nnats_urls = ["nats://127.0.0.1:1"]\n'
        f'keys_dir = "{folder}/keys"\nstate_dir = "{folder}/state"\nlisten = "{listen}"\n'
    )
    argv = [sys.executable, "-m", "manager", "--config", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


async def test_taken_address_is_named_without_a_trace(tmp_path: Path, database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = _run(tmp_path, database, address)
    assert done.returncode == 2
    assert f"stowage-manager: listen: cannot listen on {address}" in done.stderr
    assert "Traceback" not in done.stderr


async def test_wrong_database_is_named_without_a_trace(tmp_path: Path, database: str) -> None:
    done = _run(tmp_path, database.replace("@/", "x@/", 1), "127.0.0.1:0")
    assert done.returncode == 2
    assert "stowage-manager: database_url: " in done.stderr
    assert "Traceback" not in done.stderr
