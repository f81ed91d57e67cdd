"""What a driver must remember across kill -9: one small JSON file in the backend's workspace."""

from pathlib import Path

import msgspec

from agent.private_files import remove, write_private


class Memory:
    """Words by name. Written before the act that they describe, so that what was begun can always be undone. Holds no secret."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.json"

    def read(self) -> dict[str, str]:
        """What was written last; empty when nothing was, or when the file is not such JSON."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}

    def write(self, **words: str) -> None:
        """Exactly these words are remembered, durably."""
        write_private(self._path, msgspec.json.encode(words))

    def forget(self) -> None:
        """Nothing is remembered."""
        remove(self._path)
