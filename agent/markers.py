"""Whose place it is: what our marker says, and what another's or a missing one means.

The marker is the file `.stowage-backend.json` in the backend's folder, or for LVM two tags of the VG.
Its id is the backend's, so all hosts of a backend share one marker.
"""

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from agent.drivers.base import Workspace
from agent.errors import AgentFault
from agent.jobs import MARKER_NAME
from schemas.command import Target
from schemas.faults import FaultCode

_BACKEND_TAG = "stowage_backend_"
_FLEET_TAG = "stowage_fleet_"
_SHOWN_ID = re.compile(r"[0-9a-f-]{1,36}")


def content_for(target: Target) -> dict[str, str]:
    """What the marker of this backend says."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return {"backend_id": target.backend_id, "fleet_id": target.fleet_id, "created_at": now}


def probe_file(space: Workspace) -> str:
    """The one name under which this host's probes of this backend write; two adds of one place must not share it."""
    return f".stowage-probe-{space.host_id}-{space.dir.name}"


def trial_file(space: Workspace) -> str:
    """The same for trials, which may run beside a probe of the same place."""
    return f".stowage-trial-{space.host_id}-{space.dir.name}"


def tags_for(target: Target) -> tuple[str, str]:
    """The VG tags of this backend (characters as lvm(8) allows in tags)."""
    return f"{_BACKEND_TAG}{target.backend_id}", f"{_FLEET_TAG}{target.fleet_id}"


def read_tags(tags: tuple[str, ...], target: Target) -> dict[str, Any]:
    """The answer of jobs.read_marker for a VG's tags: {"marker": ours | other | missing, "found": …}."""
    ours = tags_for(target)
    marks = [tag for tag in tags if tag.startswith((_BACKEND_TAG, _FLEET_TAG))]
    if not marks:
        return {"marker": "missing"}
    found: dict[str, str] = {}
    # Ours first: beside another's they are those of two who came at once, and it is the other who is to be named.
    for tag in sorted(marks, key=lambda tag: tag not in ours):
        for prefix, field in ((_BACKEND_TAG, "backend_id"), (_FLEET_TAG, "fleet_id")):
            if tag.startswith(prefix):
                found[field] = tag.removeprefix(prefix)
    return {"marker": "ours" if sorted(marks) == sorted(ours) else "other", "found": found}


def refuse_other(answer: Mapping[str, Any], target: Target, where: str, *, clear_with: str | None = None) -> None:
    """Raises marker_mismatch when the answer shows another backend's marker.

    clear_with: how to clear it when that backend is gone; for a folder the marker file is removed.
    """
    if answer["marker"] != "other":
        return
    found = answer.get("found", {})
    if not found:
        raise AgentFault.of(
            FaultCode.MARKER_MISMATCH,
            f"{where} has a marker that cannot be read",
            f"Look whose it is; if nobody's, {clear_with or f'delete {where}/{MARKER_NAME}'}",
        )
    # What lies on a share was written by anybody: only what looks like an id is repeated.
    other = found.get("backend_id", "")
    shown = other if _SHOWN_ID.fullmatch(other) else "with an unreadable id"
    is_foreign = found.get("fleet_id") != target.fleet_id
    raise AgentFault.of(
        FaultCode.MARKER_MISMATCH,
        f"{where} belongs to backend {shown}{' of another fleet' if is_foreign else ''}",
        f"Remove that backend first, or choose another place; if that backend is gone, {clear_with or f'delete {where}/{MARKER_NAME}'}",
    )


def refuse_missing(answer: Mapping[str, Any], where: str) -> None:
    """Raises marker_missing when the answer shows no marker."""
    if answer["marker"] == "missing":
        raise AgentFault.of(FaultCode.MARKER_MISSING, f"{where} has no marker of this backend any more")
