"""TLS 1.3 from a pinned CA, handshake first."""

import subprocess
from pathlib import Path

import pytest

from manager.bus_auth import TlsFiles
from schemas.bus import BusDown
from tests.bus.conftest import MakeBus
from tests.bus.nats_server import NatsServer


def _certificate(folder: Path, name: str) -> TlsFiles:
    """A self-signed certificate for the loopback address, which is its own CA."""
    files = TlsFiles(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    what = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -addext subjectAltName=IP:127.0.0.1"
    where = ["-subj", f"/CN={name}", "-keyout", str(files.key), "-out", str(files.certificate)]
    subprocess.run(["openssl", *what.split(), *where], check=True, capture_output=True)
    return files


async def test_bus_tls_right_ca_works_another_ca_or_none_does_not(tmp_path: Path, make_bus: MakeBus) -> None:
    ours, foreign = _certificate(tmp_path, "ours"), _certificate(tmp_path, "foreign")
    server = NatsServer(tmp_path, tls=ours)
    server.start()
    try:
        bus = make_bus(server.url, server.creds.commands, tls_ca=ours.certificate)
        await bus.start(5)
        await bus.flush()
        with pytest.raises(BusDown, match="CERTIFICATE_VERIFY_FAILED"):
            await make_bus(server.url, server.creds.commands, tls_ca=foreign.certificate).start(1)
        with pytest.raises(BusDown):
            await make_bus(server.url, server.creds.commands).start(0.5)
    finally:
        server.stop()
