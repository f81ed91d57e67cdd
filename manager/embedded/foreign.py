"""What we do with files in the folders of the servers' user: nothing that he may have put there leads us elsewhere.

The servers run as somebody else when we are root, and whoever has that account (`nobody` is shared) may at any
moment replace what lies in their folders by a link, a pipe or a second name of a file of ours. So those folders
are opened without following links, and what is opened is what is asked and changed; files of ours do not lie
in them at all, but beside them, in the data folder, where he cannot write.
"""

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from manager.embedded.errors import StartError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_BYTES = 16 * 1024


@contextmanager
def opened(folder: Path) -> Generator[int]:
    """A descriptor of the folder itself. Raises FileNotFoundError, and StartError where it is a link or no folder."""
    try:
        descriptor = os.open(folder, _FOLDER)
    except NotADirectoryError as error:  # the kernel's word for a link too, with these flags
        raise StartError(f"{folder} is a link or a file where a folder should be; look who put it there") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def exists(name: str, folder: int) -> bool:
    """Whether there is a plain file of that name in the opened folder."""
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def read_start(name: str, folder: int) -> str | None:
    """The first 16 KiB of a plain file in the opened folder; None where there is none. Never waits, as for a pipe."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.read(descriptor, _MOST_BYTES).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def remove(name: str, folder: int) -> None:
    """No file of that name is in the opened folder; a link goes, not what it names."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except IsADirectoryError as error:
        raise StartError(f"{name} is a folder where the server keeps a file; look who put it there") from error


def make_folder(path: Path, owner: tuple[int, int]) -> None:
    """The folder exists, 0700, and belongs to the owner. In its parent nobody but us may rename or delete what is ours.

    Raises StartError where something else of that name is there.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    with opened(path) as folder:
        if os.geteuid() == 0:
            os.fchown(folder, *owner)
        elif (uid := os.fstat(folder).st_uid) != os.geteuid():
            raise StartError(f"{path} belongs to somebody else (user {uid}); remove it, or choose another data folder")
        os.fchmod(folder, 0o700)


def write_readable(path: Path, text: str, owner: tuple[int, int]) -> None:
    """A fresh file with the text, 0400, that the owner may read. Its parent must be one that only we may write to."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if os.geteuid() == 0:
            os.fchown(descriptor, *owner)


def give(folder: Path, owner: tuple[int, int]) -> None:
    """The folder and all in it belong to the owner, links themselves too and not what they name.

    Each is opened and then asked and changed as what it is. Raises StartError for a file with a second name: it may
    be one from elsewhere, and would change its owner there too.
    """
    # The folder itself lies where only we may write, so a link in its place is one of ours.
    for parent, folders, files, descriptor in os.fwalk(folder.resolve()):
        for name in folders + files:
            entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            try:
                found = os.fstat(entry)
                if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                    raise StartError(f"{os.path.join(parent, name)} has a second name; look who made it, and remove it")
                os.chown(f"/proc/self/fd/{entry}", *owner)  # of a link itself too: it is not followed from here
            finally:
                os.close(entry)
    os.chown(folder, *owner)  # last, so that a start killed here begins anew
