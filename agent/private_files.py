"""Files that only root may read and that are there whole or not at all."""

import os
import secrets
from pathlib import Path

TEMP_PREFIX = ".new-"


def make_private_dir(path: Path, mode: int = 0o700) -> None:
    """The folder exists with this mode, whatever the umask and whoever made it before."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(mode)


def write_private(path: Path, content: bytes, *, temp: Path | None = None) -> None:
    """The file holds exactly `content`, mode 0600, also after a power loss; a reader sees the old or the new one.

    A crash may leave a `.new-…` file beside it: see `purge_temp`. temp: another name for it, in the same file system.
    """
    temp = temp or path.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def remove(path: Path) -> bool:
    """The file is gone, durably; whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_dir(path.parent)
    return True


def purge_temp(folder: Path) -> int:
    """How many left-overs of killed writes were removed."""
    leftovers = list(folder.glob(f"{TEMP_PREFIX}*"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def sync_dir(folder: Path) -> None:
    """A rename or unlink in the folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
