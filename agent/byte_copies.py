"""A volume's bytes copied, blanked and compared: the way that fits the two formats, in a worker.

None has a deadline: a copy takes as long as it takes. Who calls watches the progress file, and cancels what no longer
moves (agent/works.py); a copy that was cancelled or killed is made once more from its beginning.
"""

from pathlib import Path
from typing import Any

from agent.drivers.base import Workers
from agent.volumes import Extent
from schemas.volume_rpc import VolumeFormat

#: Seconds; longer than anything that still moves.
UNHURRIED_S = 7 * 24 * 3600.0


async def copy(workers: Workers, source: Extent, target: Extent, *, key: str, progress: Path) -> None:
    """The target holds the source's content and zeros behind it, on stable storage, whatever it held before.

    Raises AgentFault: wrong_size where the source is larger, backing_file, in_use, source_unreadable where it was changed
    meanwhile, unsupported where the copy would lack something of it, or what the storage said; the target is to be erased or
    filled once more then.
    """
    is_raw = source.format is target.format is VolumeFormat.RAW
    await _run(workers, "copy_bytes" if is_raw else "convert_image", key, progress, source=source, target=target)


async def blank(workers: Workers, target: Extent, *, key: str, progress: Path) -> None:
    """The target is at its size and holds nothing but zeros, on stable storage."""
    if target.is_zero:
        return
    await _run(
        workers, "zero_bytes" if target.format is VolumeFormat.RAW else "blank_image", key, progress, target=target
    )


async def compare(workers: Workers, source: Extent, target: Extent, *, key: str, progress: Path) -> None:
    """The target, read anew from the storage, holds what the source holds, and zeros behind it. Raises AgentFault io_error if not."""
    is_raw = source.format is target.format is VolumeFormat.RAW
    await _run(workers, "compare_bytes" if is_raw else "compare_images", key, progress, source=source, target=target)


def extent_args(extent: Extent) -> dict[str, Any]:
    """The extent as a worker's job takes it (agent/job_io.py)."""
    return {
        "folder": str(extent.folder),
        "name": extent.name,
        "format": str(extent.format),
        "size_bytes": extent.size_bytes,
        "dm_uuid": extent.dm_uuid,
        "mount_root": extent.mount_root,
        "is_zero": extent.is_zero,
        "identity": list(extent.identity),
        "is_resolved": extent.is_resolved,
    }


async def _run(workers: Workers, job: str, key: str, progress: Path, **extents: Extent) -> None:
    args = {name: extent_args(extent) for name, extent in extents.items()}
    await workers.run(job, {**args, "progress": str(progress)}, key=key, timeout_s=UNHURRIED_S)
