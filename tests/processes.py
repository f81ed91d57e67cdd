"""Whether a process still runs, whoever is to reap it."""

from pathlib import Path


def runs(pid: int) -> bool:
    """Whether it lives. A zombie does not: some machines' process 1 takes seconds to reap an orphan (seen 2026-11-25)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
