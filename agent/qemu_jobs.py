"""Worker jobs on images: what one is, converting it to another format, and comparing two.

The format is given by us and never asked of the image, whose first bytes a guest or a server may have written; and one that has
its content in another file too is refused before it is read.
"""

import errno
import json
import os
from typing import Any

from agent import qemu_img
from agent.copy_jobs import is_device, length_of, taken_by
from agent.device_jobs import zero_out
from agent.file_users import refuse_users
from agent.job_io import (
    Job,
    JobFault,
    Progress,
    forget_cached,
    identity_of,
    naming,
    opened,
    path_of,
    refuse_changed,
    refuse_no_room,
    with_faults,
)
from agent.qcow2 import header_size, refuse_cut, refuse_references, refuse_snapshots

SECTOR_BYTES = 512
#: Of `qemu-img info`, on what may be anybody's.
_INFO_LIMITS = qemu_img.Limits(memory_bytes=1024 * 1024 * 1024, processor_s=30)
_CHUNK_BYTES = 4 * 1024 * 1024


def inspect_image(args: dict[str, Any]) -> dict[str, Any]:
    """{"size_bytes", "identity"}: the image as a VM would see it, rounded up to whole sectors; what the file is (job_io.identity_of).

    args: folder, name, is_resolved, format, sha256 (of the file; empty: not asked for), digested (the identity that a file with that
    digest was seen to have, or nothing: it is not read a second time then), progress. Faults: wrong_digest, backing_file,
    unsupported, source_unreadable. The digest comes first, so that only what was vouched for is parsed.
    """
    try:
        with opened(args, os.O_RDONLY) as descriptor:
            identity = identity_of(descriptor)
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise JobFault("source_unreadable", f"{path_of(args)} is empty")
            if args["sha256"] and args["digested"] != identity:
                found = _digest(descriptor, size, Progress(args["progress"]))
                if found != args["sha256"]:
                    detail = f"{path_of(args)} has the sha256 {found}, and {args['sha256']} was asked for"
                    raise JobFault("wrong_digest", detail)
            if args["format"] == "qcow2":
                size = checked_size(descriptor, path_of(args), "source_unreadable")
                if size == 0:
                    raise JobFault("source_unreadable", f"{path_of(args)} is an image of 0 bytes")
                refuse_snapshots(descriptor, path_of(args), "source_unreadable")
            refuse_changed(descriptor, {**args, "identity": identity})
    except JobFault as error:
        if error.code in ("volume_missing", "path_not_found", "foreign_data"):
            raise JobFault("source_unreadable", str(error)) from None
        raise
    return {"size_bytes": -(-size // SECTOR_BYTES) * SECTOR_BYTES, "identity": identity}


def convert_image(args: dict[str, Any]) -> dict[str, Any]:
    """The target holds the source's content and zeros behind it, on stable storage; whatever it held before is gone.

    args: source and target (extents), progress. Answers {"done_bytes"}. Faults: wrong_size, backing_file, unsupported, in_use,
    no_space, source_unreadable where the source was changed meanwhile.
    """
    source, target, progress = args["source"], args["target"], Progress(args["progress"])
    with opened(source, os.O_RDONLY) as source_fd, opened(target, os.O_RDWR) as target_fd:
        size = virtual_size(source_fd, source)
        if source["format"] == "qcow2":
            refuse_snapshots(source_fd, path_of(source), "source_unreadable")
        if size > target["size_bytes"]:
            detail = f"{path_of(source)} has {size} bytes, and {path_of(target)} only {target['size_bytes']}"
            raise JobFault("wrong_size", detail)
        is_zero = bool(target["is_zero"])
        if not is_device(target_fd):
            refuse_users(target, os.fstat(target_fd), only_writers=True)
            refuse_no_room(target_fd, taken_by(source_fd, size), path_of(target))
            make_empty(target_fd, target)
            is_zero = True
        # -W: in any order, so that reading and writing go side by side.
        argv = ["convert", "-n", "-p", "-U", "-W", "-f", source["format"], "-O", target["format"]]
        argv += [*(["--target-is-zero"] if is_zero else []), qemu_img.node(source_fd, source)]
        run = qemu_img.run(
            [*argv, qemu_img.node(target_fd, target)], (source_fd, target_fd),
            progress=progress, total_bytes=size, flushed_fd=target_fd,
        )  # fmt: skip
        run.refuse_failure(f"{path_of(source)} to {path_of(target)}")
        if not is_zero:
            end = os.lseek(target_fd, 0, os.SEEK_END)
            zero_out(target_fd, size, end, lambda at: progress.report(at, end))
        # It flushes nothing itself where it was told that a crash does no harm, which `convert` takes for granted.
        os.fsync(target_fd)
        os.posix_fadvise(target_fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return {"done_bytes": size}


def blank_image(args: dict[str, Any]) -> dict[str, Any]:
    """The target, a file, is an image of its size that holds nothing but zeros, on stable storage. args: target, progress."""
    target = args["target"]
    with opened(target, os.O_RDWR) as target_fd:
        refuse_users(target, os.fstat(target_fd), only_writers=True)
        make_empty(target_fd, target)
        os.fsync(target_fd)
    return {}


def compare_images(args: dict[str, Any]) -> dict[str, Any]:
    """Both have the same content up to the source's size, and the target zeros behind it; read anew from the storage.

    args: source and target (extents), progress. Raises OSError EIO when they differ.
    """
    source, target, progress = args["source"], args["target"], Progress(args["progress"])
    with opened(source, os.O_RDONLY) as source_fd, opened(target, os.O_RDONLY) as target_fd:
        size, end = virtual_size(source_fd, source), virtual_size(target_fd, target)
        if size > end:
            raise OSError(errno.EIO, f"is shorter than {path_of(source)}", path_of(target))
        for descriptor in (source_fd, target_fd):
            forget_cached(descriptor)
        argv = ["compare", "-p", "-U", "-f", source["format"], "-F", target["format"]]
        argv += [qemu_img.node(source_fd, source), qemu_img.node(target_fd, target)]
        run = qemu_img.run(argv, (source_fd, target_fd), progress=progress, total_bytes=end)
    if run.exit_code == 1:
        raise OSError(errno.EIO, f"the copy differs from {path_of(source)}", path_of(target))
    run.refuse_failure(f"{path_of(source)} and {path_of(target)}")
    return {"done_bytes": end}


def make_empty(descriptor: int, extent: dict[str, Any]) -> None:
    """The file is an image of the extent's format and size that reads as zeros and takes no space; what was in it is gone."""
    if extent["format"] == "raw":
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, extent["size_bytes"])
        return
    # It cuts the file to nothing itself, under its lock: a qemu-img that was given up and lives on is not written into.
    argv = ["create", "-q", "-f", "qcow2", f"/proc/self/fd/{descriptor}", str(extent["size_bytes"])]
    qemu_img.run(argv, (descriptor,)).refuse_failure(path_of(extent))


def change_size(descriptor: int, extent: dict[str, Any], size_bytes: int) -> None:
    """The image has that size; what was added reads as zeros, what was cut off is gone."""
    if extent["format"] == "raw":
        os.ftruncate(descriptor, size_bytes)
        return
    refuse_references(descriptor, path_of(extent), "wrong_size")
    shrink = ["--shrink"] if size_bytes < header_size(descriptor, path_of(extent), "wrong_size") else []
    argv = ["resize", "-q", "-f", "qcow2", *shrink, f"/proc/self/fd/{descriptor}", str(size_bytes)]
    qemu_img.run(argv, (descriptor,)).refuse_failure(path_of(extent))


def virtual_size(descriptor: int, extent: dict[str, Any]) -> int:
    """Bytes that a VM sees, by length or header. Raises JobFault backing_file where it cannot stand alone."""
    if extent["format"] != "qcow2":
        return length_of(descriptor, extent)
    with naming(path_of(extent)):
        refuse_references(descriptor, path_of(extent), "source_unreadable")
        return header_size(descriptor, path_of(extent), "source_unreadable")


def checked_size(descriptor: int, shown: str, code: str) -> int:
    """The size of a qcow2 that stands alone, is whole and can be opened, by qemu-img's word. Raises JobFault: backing_file, or the code."""
    refuse_references(descriptor, shown, code)
    argv = ["info", "-U", "-f", "qcow2", "--output", "json", f"/proc/self/fd/{descriptor}"]
    run = qemu_img.run(argv, (descriptor,), limits=_INFO_LIMITS)
    if run.exit_code != 0 and run.errno is None:
        raise JobFault(code, f"{shown} cannot be read as qcow2: {run.words}")
    run.refuse_failure(shown)
    try:
        facts = json.loads(run.stdout)
        size, details = int(facts["virtual-size"]), facts["format-specific"]["data"]
        # Version 2 has no such mark.
        is_corrupt = bool(details.get("corrupt"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise JobFault(code, f"what qemu-img says of {shown} cannot be read") from None
    if "backing-filename" in facts or "data-file" in details:
        raise JobFault("backing_file", f"{shown} refers to another file")
    if facts.get("encrypted"):
        raise JobFault(code, f"{shown} is encrypted")
    if is_corrupt:
        raise JobFault(code, f"{shown} is marked as corrupt")
    refuse_cut(descriptor, shown, code)
    return size


def _digest(descriptor: int, size: int, progress: Progress) -> str:
    import hashlib

    digest, view, done = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES)), 0
    while count := os.preadv(descriptor, [view], done):
        digest.update(view[:count])
        done += count
        progress.report(done, max(size, done))
    return digest.hexdigest()


QEMU_JOBS: tuple[Job, ...] = tuple(map(with_faults, (inspect_image, convert_image, blank_image, compare_images)))
