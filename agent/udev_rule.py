"""A udev rule for the disks of our own iSCSI sessions, and for our volumes on them: nobody but the driver, or the virtual machine that a
volume is for, assembles or activates what is on them. A guest writes what it likes on its disk, md and LVM headers too.

Without it LVM's own rule activates every VG that it finds when a disk comes, on each host at once and also what belongs to others;
and if the disk goes meanwhile, a mapping of a dead disk is left (lab, 2026-11-28). The flag is the one by which device-mapper
devices are kept from rules such as LVM's (69-lvm.rules of Debian 12, 69-dm-lvm.rules elsewhere), which ask for it of every disk;
SYSTEMD_READY is what mdadm's rule asks for (64-md-raid-assembly.rules).
"""

import logging
from pathlib import Path

from agent.drivers.base import Commands
from agent.errors import AgentFault

log = logging.getLogger(__name__)

_NAME = "61-stowage-agent.rules"
_RELOAD_TIMEOUT_S = 10.0
#: A disk and a partition: the session's folder is four and five above. The ifaces: portals.IFACE, and that of a trial (luns.py).
_RULE = """\
# Made by stowage-agent, and gone with the next boot: what is on the disks of its iSCSI sessions is left to it.
SUBSYSTEM=="block", DEVPATH=="*/session*/target*/block/*", \\
  PROGRAM=="/bin/sh -c 'cat /sys%p/../../../../iscsi_session/*/ifacename /sys%p/../../../../../iscsi_session/*/ifacename 2>/dev/null; true'", \\
  RESULT=="stowage|stowage-????????????", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", ENV{SYSTEMD_READY}="0"
SUBSYSTEM=="block", ENV{DM_NAME}=="*-sv_????????????????????????????????", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", ENV{SYSTEMD_READY}="0"
"""


class UdevRule:
    """The rule in udev's folder for the running system. A host without udev has nothing that it would hold back."""

    def __init__(self, commands: Commands, folder: Path = Path("/run/udev/rules.d")) -> None:
        self._commands = commands
        self._path = folder / _NAME

    async def ensure(self) -> None:
        """It is there and known to udev, before a session of ours begins. A failure is logged: the driver lets go of what udev activates."""
        if not self._path.parent.parent.is_dir() or self._is_there():
            return
        try:
            self._path.parent.mkdir(mode=0o755, exist_ok=True)
            self._write()
        except OSError as error:
            log.warning("no udev rule for our disks", extra={"path": str(self._path), "error": str(error)})
            return
        # udev looks into its folders by itself too, but not more often than every three seconds.
        try:
            result = await self._commands.run(["udevadm", "control", "--reload"], timeout_s=_RELOAD_TIMEOUT_S)
            said = "" if result.exit_code == 0 else result.stderr or f"exit code {result.exit_code}"
        except AgentFault as error:
            said = str(error)
        if said:
            log.warning("udev was not told of its new rule", extra={"path": str(self._path), "error": said})

    def _is_there(self) -> bool:
        try:
            return self._path.read_text() == _RULE
        except (OSError, UnicodeDecodeError):
            return False

    def _write(self) -> None:
        draft = self._path.with_suffix(".part")
        draft.write_text(_RULE)
        draft.chmod(0o644)
        draft.rename(self._path)
