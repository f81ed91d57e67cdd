"""What a driver must remember across kill -9: one small JSON file in the backend's workspace."""

import json
from pathlib import Path

from agent.private_files import remove, write_private


class Memory:
    """Words by name. Written before the act that they describe, so that what was begun can always be undone. Holds no secret."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.json"

    def read(self) -> dict[str, str]:
        """What was written last; empty when nothing was, or when the file is unreadable as JSON."""
        try:
            found = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def write(self, **words: str) -> None:
        """Exactly these words are remembered, durably."""
        write_private(self._path, json.dumps(words).encode())

    def forget(self) -> None:
        """Nothing is remembered."""
        remove(self._path)
