"""Secrets that tests have given to the product, and the search for them where they must not be."""

import json
from collections.abc import Callable

from tests.lab.lab import Lab

#: Notes that a text is a secret, and returns it.
Secrets = Callable[[str], str]
_CANARY = "/tmp/canary"


def refuse(lab: Lab, secrets: set[str]) -> None:
    """None of them is in a file of the stack's data folder (PostgreSQL's and JetStream's too) or of a host, where by now no backend is."""
    needles = sorted({form.encode() for secret in secrets for form in _forms(secret)})
    if not needles:
        return
    found = [
        str(path.relative_to(lab.stack.data))
        for path in lab.stack.data.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]
    for host in lab.hosts:
        host.courier.put("/run/needles", b"\n".join(needles) + b"\n", 0o600)
        host.courier.put(_CANARY, needles[0])
        # It fails at a file that goes while it reads, so its exit code says nothing; that it finds the canary does.
        there = host.courier.run(
            f"grep -rlaFf /run/needles --exclude=needles /var /etc /tmp /run /root /dev/shm 2>/dev/null; rm /run/needles {_CANARY}"
        ).out.split()
        assert _CANARY in there, f"the search on {host.name} does not find what is there"
        found += [path for path in there if path != _CANARY]
    assert not found, f"secrets are in {found[:10]}"


def _forms(secret: str) -> tuple[str, ...]:
    """As it is, and as a JSON text shows it."""
    return secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]
