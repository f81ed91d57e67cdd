"""A self-signed certificate, made by the openssl tool."""

import subprocess
from pathlib import Path


def self_signed(pem: Path) -> Path:
    """Key and certificate for 127.0.0.1 in one file."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=manager", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", pem, "-out", pem.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_text(pem.read_text() + pem.with_suffix(".crt").read_text())
    return pem
