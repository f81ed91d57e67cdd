"""Which user the servers run as: PostgreSQL refuses root, and not every user can reach every folder.

Permissions are not predicted (ACLs, mounts, sandboxes): a candidate is tried by a shell that runs as
it, writes into the server's folder and executes the binaries.
"""

import ctypes
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from manager.embedded import foreign
from manager.embedded.errors import StartError

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_TRIAL_TIMEOUT_S = 10
_TRIAL = 'cd "$1" && : > .reachable && rm .reachable && shift && for b in "$@"; do "$b" --version || exit 1; done'
_NO_SUCH_NAMESPACE = 112  # the trial's exit code when the kernel or a sandbox refuses user namespaces


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A user to run a server as.

    is_mapped: in a user namespace of its own, where `uid` stands for ourselves; its files are ours outside.
    """

    uid: int
    gid: int
    name: str
    is_mapped: bool = False

    @property
    def owner(self) -> tuple[int, int]:
        """Who its files belong to, seen from outside."""
        return (os.geteuid(), os.getegid()) if self.is_mapped else (self.uid, self.gid)

    @property
    def switch(self) -> tuple[int, int] | None:
        """The uid and gid to take on when a process starts; None where none is taken on."""
        return None if self.is_mapped or self.uid == os.geteuid() else (self.uid, self.gid)

    def enter(self) -> Callable[[], None]:
        """What the forked child does once its uid is set, before exec."""
        return _enter_namespace(self.uid, self.gid) if self.is_mapped else _nothing


def choose(folder: Path, binaries: Sequence[Path]) -> Identity:
    """The first identity that reaches the binaries and may write in `folder`, which then belongs to it.

    The folder is ours, made by us; its parents are never touched. Raises StartError with the remedy.
    """
    tried: list[str] = []
    for candidate in _candidates(folder):
        own(folder, candidate)
        reason = _why_unreachable(candidate, folder, binaries)
        if reason is None:
            return candidate
        tried.append(f"  {candidate.name}: {reason}")
    raise StartError(
        f"no unprivileged user can run PostgreSQL in {folder}:\n" + "\n".join(tried) + "\n"
        "Choose a data folder that other users may pass through (chmod o+x on its parents), "
        "or run this as a normal user."
    )


def own(folder: Path, identity: Identity) -> None:
    """The folder and all in it belong to the identity. Raises StartError for what may not be ours to give."""
    if os.geteuid() == 0 and folder.stat().st_uid != identity.owner[0]:
        foreign.give(folder, identity.owner)


def _candidates(folder: Path) -> Iterator[Identity]:
    if os.geteuid() != 0:
        yield Identity(uid=os.geteuid(), gid=os.getegid(), name="this user")
        return
    nobody = _account("nobody")
    # The folder's owner (an earlier start) and the checkout's (sudo ./scripts/up) before a stranger.
    for uid in dict.fromkeys((folder.stat().st_uid, Path(sys.prefix).stat().st_uid)):
        account = _account(uid)
        if uid != 0 and account is not None:
            yield Identity(uid=uid, gid=account.pw_gid, name=account.pw_name)
    if nobody is not None:
        yield Identity(uid=nobody.pw_uid, gid=nobody.pw_gid, name=nobody.pw_name)
    # initdb looks its uid up in the passwd file, so the namespace shows an account that has a line there.
    stand_in = nobody or next((entry for entry in pwd.getpwall() if entry.pw_uid != 0), None)
    if stand_in is not None:
        name = f"{stand_in.pw_name} in a user namespace"
        yield Identity(uid=stand_in.pw_uid, gid=stand_in.pw_gid, name=name, is_mapped=True)


def _account(key: int | str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(key) if isinstance(key, str) else pwd.getpwuid(key)
    except KeyError:
        return None


def _why_unreachable(identity: Identity, folder: Path, binaries: Sequence[Path]) -> str | None:
    uid, gid = identity.switch or (None, None)
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", _TRIAL, "sh", str(folder), *map(str, binaries)],
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            preexec_fn=identity.enter(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            timeout=_TRIAL_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    if done.returncode == _NO_SUCH_NAMESPACE:
        return "user namespaces are not allowed here"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _nothing() -> None:
    pass


def _enter_namespace(uid: int, gid: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)
    outside_uid, outside_gid = os.geteuid(), os.getegid()

    def enter() -> None:
        # user_namespaces(7): setgroups must be given up before the group map may be written.
        if libc.unshare(_CLONE_NEWUSER) != 0:
            os._exit(_NO_SUCH_NAMESPACE)
        try:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {outside_uid} 1"),
                ("gid_map", f"{gid} {outside_gid} 1"),
            ):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        except OSError:
            os._exit(_NO_SUCH_NAMESPACE)

    return enter
