"""Why an embedded start failed; the message is shown to the person as it is, with its remedy."""

from pathlib import Path


class StartError(Exception):
    """Something could not be started. `log`: the file whose last lines say why, if there is one."""

    def __init__(self, message: str, *, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class AlreadyRunning(StartError):
    """Another `stowage up` holds the data folder."""

    def __init__(self, folder: Path, pid: int) -> None:
        super().__init__(
            f"stowage is already running on {folder} (process {pid}); stop it with: stowage down --data-dir {folder}"
        )
        self.pid = pid
