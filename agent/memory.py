"""What a driver must remember across kill -9: one small JSON file in the backend's workspace."""

from pathlib import Path

import msgspec

from agent.errors import AgentFault
from agent.private_files import remove, write_private
from schemas.faults import FaultCode


class Memory:
    """Words by name. Written before the act that they describe, so that what was begun can always be undone. Holds no secret."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.json"

    def read(self) -> dict[str, str]:
        """What was written last; empty when nothing was.

        Raises AgentFault for a damaged file: who took it for empty would take what is used here for unused.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise AgentFault.of(
                FaultCode.FAILED,
                f"{self._path} is damaged, so it is not known what is in use here",
                "Look what this host has mounted and logged in to, end it, then remove the file",
            ) from error

    def write(self, **words: str) -> None:
        """Exactly these words are remembered, durably."""
        write_private(self._path, msgspec.json.encode(words))

    def forget(self) -> None:
        """Nothing is remembered."""
        remove(self._path)
