"""A driver's workspace, as the agent lays it out."""

from pathlib import Path

from agent.drivers.base import Deadline, Workspace

HOST_ID = "01900000-0000-7000-8000-00000000aaaa"

#: Of a command that has ten seconds left.
SOON = Deadline(10.0, lambda: 0.0)


def make_space(state: Path, backend_id: str) -> Workspace:
    """A workspace laid out as the agent does: state/{backends,mounts,trials}/<id>, state/run."""
    for name in ("backends", "mounts", "trials", "run"):
        (state / name).mkdir(parents=True, exist_ok=True)
    folder = state / "backends" / backend_id
    folder.mkdir(exist_ok=True)
    return Workspace(
        host_id=HOST_ID,
        host_name="hv1",
        dir=folder,
        mount_dir=state / "mounts" / backend_id,
        trial_dir=state / "trials" / backend_id,
        run_dir=state / "run",
        reserved=(state,),
    )
