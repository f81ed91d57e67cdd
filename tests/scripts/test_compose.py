"""compose.yaml hangs together, and its one-shot service makes what the others read. No engine runs here."""

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from manager.config import load
from manager.embedded import nats

_ROOT = Path(__file__).parents[2]
_CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((_ROOT / "compose.yaml").read_text())
    return document


def test_compose_names_only_services_and_volumes_that_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"postgres", "nats", "manager", "agent-1", "agent-2", "init"} <= services.keys()
    used: set[str] = set()
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in services, name
            assert wait["condition"] in _CONDITIONS
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for the health of {other}"
            if wait["condition"] == "service_completed_successfully":
                assert services[other]["restart"] == "no", f"{other} would never complete"
        used |= {volume.split(":")[0] for volume in service.get("volumes", ())}
        assert "build" in service or "image" in service
    assert used == compose["volumes"].keys()


def test_compose_waits_in_no_circle(compose: dict[str, Any]) -> None:
    waits = {name: set(service.get("depends_on", ())) for name, service in compose["services"].items()}
    while waits:
        free = {name for name, others in waits.items() if not others & waits.keys()}
        assert free, f"wait for each other: {sorted(waits)}"
        waits = {name: others for name, others in waits.items() if name not in free}


def test_compose_opens_the_api_on_this_machine_only_and_keeps_secrets_to_their_readers(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    readers = {
        volume: {name for name, s in services.items() if any(v.startswith(f"{volume}:") for v in s.get("volumes", ()))}
        for volume in compose["volumes"]
    }
    assert readers["keys"] == {"init", "manager"}
    assert readers["manager-config"] == {"init", "manager"}
    assert readers["database-password"] == {"init", "postgres"}
    assert readers["manager-state"] == {"manager", "enrol"}
    assert readers["agent-1"] == {"agent-1"}


def test_compose_builds_from_files_and_stages_that_exist(compose: dict[str, Any]) -> None:
    dockerfile = (_ROOT / "scripts/container/Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    for service in compose["services"].values():
        if build := service.get("build"):
            assert (_ROOT / build["dockerfile"]).is_file()
            assert build["target"] in stages
    for source in re.findall(r"^COPY (\S+) ", dockerfile, re.MULTILINE):
        assert (_ROOT / source).exists()
    for script in re.findall(r"/opt/stowage/(\S+?\.(?:py|sh))", dockerfile + (_ROOT / "compose.yaml").read_text()):
        assert (_ROOT / script).is_file()
    assert (_ROOT / "scripts/container/agent.sh").stat().st_mode & 0o111


def test_init_makes_what_manager_nats_and_postgres_read_and_keeps_it(tmp_path: Path) -> None:
    for name in ("keys", "config", "nats", "database"):
        (tmp_path / name).mkdir()
    main = runpy.run_path(str(_ROOT / "scripts/container/init.py"))["main"]
    main(tmp_path)
    password = (tmp_path / "database/password").read_text()
    first = load(tmp_path / "config/manager.toml", {})
    main(tmp_path)
    assert load(tmp_path / "config/manager.toml", {}) == first
    assert first.database_url == f"postgresql://stowage:{password}@postgres:5432/stowage"
    assert first.listen_address == ("0.0.0.0", 8080)
    config = tmp_path / "nats/nats.conf"
    assert password not in config.read_text()
    local = tmp_path / "local.conf"
    local.write_text(config.read_text().replace('"/data', f'"{tmp_path}/data'))
    tested = subprocess.run([str(nats.binary()), "-t", "-c", str(local)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
