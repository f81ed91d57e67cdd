"""The manager's secret keys: made once, kept in one private file, the same for every manager on the folder.

One file, since a set of keys must appear and change as a whole. Whoever reads it can mint any identity
of the bus; nothing in it opens a stored credential, for there is none (DESIGN 1).
"""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import nacl.signing

from manager.errors import ConfigError
from schemas import nkey
from schemas.nkey import Role

_FILE = "keys.json"
_LOCK = ".lock"
_ROLES = {
    "operator": Role.OPERATOR,
    "account": Role.ACCOUNT,
    "system_account": Role.ACCOUNT,
    "agent_signer": Role.ACCOUNT,
    "commands": Role.USER,
    "uplink": Role.USER,
    "relay": Role.USER,
    "system": Role.USER,
    "auditor": Role.USER,
}
#: Of these the public halves are in nats.conf and on the hosts. The others are the manager's own affair.
_TRUSTED = ("operator", "account", "system_account", "agent_signer")


@dataclass(frozen=True, kw_only=True, repr=False)
class Keys:
    """nkey seeds but for the last two. Its repr shows nothing.

    operator signs accounts; account and system_account sign the manager's users; agent_signer signs agents, within
    the template that the account sets for it. sealing: Ed25519, signs sealed credentials. mac: 32 bytes.
    """

    operator: str
    account: str
    system_account: str
    agent_signer: str
    commands: str
    uplink: str
    relay: str
    system: str
    auditor: str
    sealing: nacl.signing.SigningKey
    mac: bytes

    @classmethod
    def load_or_create(cls, folder: Path) -> "Keys":
        """The keys of the folder; what is missing is made. Managers that start at once agree.

        For the first start of a fleet. Raises ConfigError: not readable, readable by others, or broken (it is never replaced).
        """
        return cls._kept_in(folder, is_new=True)

    @classmethod
    def load(cls, folder: Path) -> "Keys":
        """The keys of the folder, of a fleet that has some. Nothing that others trust is made anew.

        Raises ConfigError as load_or_create, and for a file that is missing or lacks such a key.
        """
        return cls._kept_in(folder, is_new=False)

    @property
    def trusted(self) -> dict[str, str]:
        """Name -> public key of those that the bus and the hosts know: with others in their place nobody takes our word."""
        public = {name: nkey.public_key(getattr(self, name)) for name in _TRUSTED}
        return public | {"sealing": bytes(self.sealing.verify_key).hex()}

    @classmethod
    def _kept_in(cls, folder: Path, *, is_new: bool) -> "Keys":
        try:
            if is_new:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not folder.is_dir():
                raise _missing(folder / _FILE, "it is missing")
            folder.chmod(0o700)
            with _locked(folder):
                return cls._from(_complete(folder, is_new=is_new))
        except OSError as error:
            raise ConfigError(f"cannot keep the manager's keys in {folder}: {error.strerror}") from error

    @classmethod
    def _from(cls, texts: dict[str, str]) -> "Keys":
        return cls(
            operator=texts["operator"],
            account=texts["account"],
            system_account=texts["system_account"],
            agent_signer=texts["agent_signer"],
            commands=texts["commands"],
            uplink=texts["uplink"],
            relay=texts["relay"],
            system=texts["system"],
            auditor=texts["auditor"],
            sealing=nacl.signing.SigningKey(bytes.fromhex(texts["sealing"])),
            mac=bytes.fromhex(texts["mac"]),
        )

    def __repr__(self) -> str:
        return "<keys>"


def write_private(path: Path, content: bytes) -> None:
    """The file holds the content, 0600, whole at every moment and after a power cut. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _complete(folder: Path, *, is_new: bool) -> dict[str, str]:
    path = folder / _FILE
    found = _read(path)
    lost = [name for name in (*_TRUSTED, "sealing") if name not in found]
    if lost and not is_new:
        raise _missing(path, f"it lacks {', '.join(lost)}" if found else "it is missing")
    missing = {name: nkey.new_seed(role) for name, role in _ROLES.items()}
    missing |= {name: secrets.token_hex(32) for name in ("sealing", "mac")}
    complete = missing | found
    if complete != found:
        write_private(path, msgspec.json.format(msgspec.json.encode(complete), indent=2))
    return complete


def _missing(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} does not hold the keys that this fleet trusts: {what}. Restore it from a backup, or copy it from another"
        " manager; with new keys every host has to join again"
    )


def _read(path: Path) -> dict[str, str]:
    """What the file holds, every key of it checked; nothing if there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ConfigError(
                f"{path} is open to other users; chmod 600 it, and replace the keys if others could read it"
            )
        content = file.read()
    try:
        texts = msgspec.json.decode(content, type=dict[str, str])
        is_sound = all(_is_sound(name, text) for name, text in texts.items())
    except (msgspec.DecodeError, UnicodeDecodeError):
        is_sound = False
        texts = {}
    if not is_sound:
        # Neither the cause nor the content: both are secret. Making new keys here would lock every agent out.
        raise ConfigError(f"{path} is broken; restore it from a backup (new keys mean that every host enrols again)")
    return texts


def _is_sound(name: str, text: str) -> bool:
    role = _ROLES.get(name)
    try:
        if role is None:
            return name not in ("sealing", "mac") or len(bytes.fromhex(text)) == 32
        return nkey.is_public_key(nkey.public_key(text), role)
    except ValueError:
        return False
