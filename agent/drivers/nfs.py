"""nfs: an export of an NFS server, mounted hard, in a folder of the backend's own (mount.nfs(8), nfs(5))."""

from collections.abc import Mapping
from typing import Any

from agent.configs import decode_config, decode_partial, held_config, refuse_verb
from agent.drivers.base import Commands, Deadline, ProbeReport, Workers, Workspace
from agent.file_volumes import FileVolumes
from agent.mounted_folders import MountedFolders, Place
from agent.mounts import ALWAYS, MountPlan, Mounts
from agent.probes import PROBE_TIMEOUT_S
from agent.reach import bare_host, is_ipv6, server_checks, tool_check
from agent.tool_faults import tool_fault
from schemas.agent_rpc import Check, Discovered, Inspection, ReleaseReport
from schemas.command import Target
from schemas.credentials import Credentials
from schemas.kinds import NFS, NfsConfig

_PORT = 2049
_DISCOVER_TIMEOUT_S = 15.0
#: Of a soft mount: seconds, where the defaults (timeo=600, retrans=2; nfs(5)) are minutes.
_GIVES_UP = ("timeo=50", "retrans=1")
#: What mountinfo shows after `vers=` for each choice; 4 leaves the minor version to the two sides.
_SHOWN_VERSION = {"default": "", "3": r"3", "4": r"4\.\d", "4.0": r"4\.0", "4.1": r"4\.1", "4.2": r"4\.2"}


class Nfs:
    """The driver of nfs."""

    def __init__(
        self,
        commands: Commands,
        workers: Workers,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
        mounts: Mounts | None = None,
    ) -> None:
        self._commands = commands
        self._folders = MountedFolders(commands, workers, probe_timeout_s, mounts)

    async def attach(
        self, target: Target, credentials: Credentials, space: Workspace, *, establish: bool
    ) -> ProbeReport:
        return await self._folders.attach(_place(_config(target)), target, space, None, establish=establish)

    async def probe(self, target: Target, space: Workspace) -> ProbeReport:
        return await self._folders.probe(_place(_config(target)), target, space)

    async def release(self, target: Target, space: Workspace, *, remove_marker: bool) -> ReleaseReport:
        return await self._folders.release(_place(_held(target)), target, space, remove_marker=remove_marker)

    async def trial(self, target: Target, credentials: Credentials, space: Workspace) -> ProbeReport:
        return await self._folders.trial(_place(_config(target)), target, space, None, "nosharecache", *_GIVES_UP)

    async def clean_trial(self, target: Target, space: Workspace) -> None:
        await self._folders.clean_trial(_place(_held(target)), target, space)

    async def is_attached(self, target: Target, space: Workspace) -> bool:
        return self._folders.is_attached(_place(_held(target)), target, space)

    async def checks(self, target: Target) -> tuple[Check, ...]:
        config = _config(target)
        tool = await tool_check(self._commands, ["mount.nfs", "-V"])
        port = next(
            (int(option.removeprefix("port=")) for option in config.options.split(",") if option.startswith("port=")),
            _PORT,
        )
        return (tool, *await server_checks(config.server, port))

    async def discover(
        self, config: Mapping[str, Any], credentials: Credentials, deadline: Deadline
    ) -> tuple[Discovered, ...]:
        """The exports that the server's mount daemon lists; a server of version 4 only lists none."""
        server = decode_partial(NFS, config, "server")
        result = await self._commands.run(
            ["showmount", "--no-headers", "-e", "--", bare_host(server)],
            timeout_s=deadline.room_s(_DISCOVER_TIMEOUT_S),
        )
        if result.exit_code != 0:
            raise tool_fault(result)
        # "PATH   CLIENTS": padded, the path may hold blanks, the clients don't.
        exports = [line.rsplit(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("/")]
        return tuple(
            Discovered(title=f"{path} ({clients[0] if clients else 'everyone'})", config={"export": path})
            for path, *clients in exports
        )

    async def inspect(self, target: Target, credentials: Credentials, space: Workspace) -> Inspection:
        raise refuse_verb(NFS, "inspection")

    async def initialize(
        self,
        target: Target,
        credentials: Credentials,
        space: Workspace,
        *,
        wwid: str,
        force: bool,
        deadline: Deadline,
    ) -> ProbeReport:
        raise refuse_verb(NFS, "initialization")

    def volumes(self, target: Target, space: Workspace, *, is_to_fence: bool = False) -> FileVolumes:
        return self._folders.volumes(_place(_held(target)), target, space, is_to_fence=is_to_fence)


def _config(target: Target) -> NfsConfig:
    return decode_config(NFS, NfsConfig, target)


def _held(target: Target) -> NfsConfig:
    return held_config(NfsConfig, target)


def _place(config: NfsConfig) -> Place:
    """retry=0: mount.nfs tries once instead of for two minutes. hard unless the operator chose otherwise: a soft mount
    answers a guest's write with an error that its file system does not survive."""
    host = bare_host(config.server)
    chosen = tuple(option for option in config.options.split(",") if option and option != "hard")
    hard = () if {"soft", "softerr"} & set(chosen) else ("hard",)
    version = () if config.nfs_version == "default" else (f"vers={config.nfs_version}",)
    return Place(
        plan=MountPlan(
            helper_type="nfs",
            source=f"{f'[{host}]' if is_ipv6(host) else host}:{config.export.rstrip('/') or '/'}",
            options=(*ALWAYS, *hard, "retry=0", *version, *chosen),
            shown_fstypes=frozenset(("nfs", "nfs4")),
            shown_version=_SHOWN_VERSION.get(config.nfs_version, ""),
        ),
        subdir=config.subdir,
    )
