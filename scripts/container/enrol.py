"""The one-shot `enrol` of compose.yaml: a fresh one-time join token for each agent named, in a folder of its own.

An agent that has joined already needs none; its token expires unused.
"""

import sys
from pathlib import Path

from manager.embedded.client import ManagerClient
from manager.embedded.layout import write_private


def main(names: list[str], *, host: str, port: int, token_file: Path, join: Path) -> None:
    """Every agent's folder below `join` holds a token."""
    client = ManagerClient(host, port, token_file)
    for name in names:
        write_private(join / name / "token", client.join_token())


if __name__ == "__main__":
    main(sys.argv[1:], host="manager", port=8080, token_file=Path("/state/admin.token"), join=Path("/join"))
