"""Worker job that finds the file that an image is read from: in one of the host's image folders, wherever links lead."""

import os
import stat
from collections.abc import Callable
from typing import Any

from agent.job_io import JobFault, is_plain, with_faults


@with_faults
def locate_image(args: dict[str, Any]) -> dict[str, Any]:
    """Where the file really is: {"folder", "name"}, without a link in either. args: path (absolute), dirs.

    Raises JobFault source_unreadable where it is no regular file with one name, or in none of the folders once all links are resolved, their
    own too.
    """
    path, dirs = str(args["path"]), [str(folder) for folder in args["dirs"]]
    if not os.path.isabs(path) or "\0" in path:
        raise _refused(f"{path!r} is no absolute path")
    real = os.path.realpath(path)
    # Before it is looked at: whether a file outside is there is nobody's business.
    if not any(_is_below(real, os.path.realpath(folder)) for folder in dirs):
        raise _refused(f"{path} is in none of this host's image folders")
    try:
        found = os.stat(real, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise _refused(f"{path} is not there") from None
    if not stat.S_ISREG(found.st_mode):
        raise _refused(f"{path} is no regular file")
    if not is_plain(found):
        # Of a file outside, which nobody named as one to be read.
        raise _refused(f"{path} is also known by another name (a hard link); copy the file into the folder")
    return {"folder": os.path.dirname(real), "name": os.path.basename(real)}


def _is_below(path: str, folder: str) -> bool:
    return path != folder and os.path.commonpath((path, folder)) == folder


def _refused(detail: str) -> JobFault:
    return JobFault("source_unreadable", detail)


IMAGE_JOBS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (locate_image,)
