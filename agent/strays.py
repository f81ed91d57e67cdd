"""Mounts below the agent's own folders that no record knows of.

`kill -9` of the agent ends mount(8), but not the helper that it has forked: mount.nfs or mount.cifs may mount on,
after the backend was released by a later life of the agent. So the kernel's list is held against the journal.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.config import StateDir
from agent.errors import AgentFault
from agent.journal import Journal
from agent.mounts import Mounts

log = logging.getLogger(__name__)


class Strays:
    """lock: of a backend; who holds it works on the backend, so nothing of it is a stray. clean_trials: ends those that are
    on record but over, whose clean-up failed before.
    """

    def __init__(
        self,
        *,
        state: StateDir,
        journal: Journal,
        mounts: Mounts,
        lock: Callable[[str], asyncio.Lock],
        clean_trials: Callable[[], Awaitable[None]],
        interval_s: float,
    ) -> None:
        self._state = state
        self._journal = journal
        self._mounts = mounts
        self._lock = lock
        self._clean_trials = clean_trials
        self._interval_s = interval_s

    async def run(self) -> None:
        """Sweeps for ever."""
        while True:
            try:
                await self.sweep()
            except Exception:
                # The edge of this loop; for one, the host's own disk may be full for a while.
                log.exception("sweep raised")
            await asyncio.sleep(self._interval_s)

    async def sweep(self) -> None:
        """No trial is left, and no mount of which the journal knows nothing; one that does not go is logged, and tried again."""
        await self._clean_trials()
        for folder in (self._state.mounts, self._state.trials):
            for mount in self._mounts.below(folder):
                lock = self._lock(mount.where.name)
                if lock.locked():
                    continue
                async with lock:
                    if mount.where.name in self._known(is_trial=folder == self._state.trials):
                        continue
                    log.warning("unmounting a stray", extra={"mount_dir": str(mount.where), "source": mount.source})
                    try:
                        # What a killed helper has mounted, nobody uses. In use it is something that a lost journal knew.
                        await self._mounts.unmount_anyhow(mount.where, spare_busy=True)
                    except AgentFault as error:
                        log.warning("stray stays", extra={"mount_dir": str(mount.where), "reason": str(error)})

    def _known(self, *, is_trial: bool) -> set[str]:
        if is_trial:
            return {target.backend_id for target in self._journal.trials()}
        return set(self._journal.records())
