"""The folder of credentials, one file a version, and the nonces under which new ones are accepted.

This is the only place where a secret rests. A guest backend (version 0) has no file at all.
"""

import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import nacl.public
import nacl.signing

from agent import private_files
from agent.errors import AgentFault
from schemas import sealing
from schemas.credentials import Credentials
from schemas.faults import FaultCode

_NAME = re.compile(r"([0-9a-f-]{36})\.([1-9][0-9]{0,9})\.json")
_fields_decoder = msgspec.json.Decoder(dict[str, str])


class CredentialStore:
    """`<backend id>.<version>.json`, 0600, in a folder 0700; versions of a backend may lie beside each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        private_files.make_private_dir(folder)
        private_files.purge_temp(folder)

    def put(self, backend_id: str, version: int, credentials: Credentials) -> None:
        """The version is held, durably. Empty credentials are guest access: then there is no file."""
        path = self._path(backend_id, version)
        if credentials:
            private_files.write_private(path, msgspec.json.encode(credentials.reveal()))
        else:
            private_files.remove(path)

    def get(self, backend_id: str, version: int) -> Credentials:
        """The version's credentials; none for version 0. Raises AgentFault needs_credentials."""
        if version == 0:
            return Credentials({})
        try:
            content = self._path(backend_id, version).read_bytes()
            return Credentials(_fields_decoder.decode(content))
        except (FileNotFoundError, msgspec.DecodeError):
            # `from None`: a decoder's message may quote the content.
            raise AgentFault.of(
                FaultCode.NEEDS_CREDENTIALS,
                f"version {version} of the credentials is not held on this host",
                is_retryable=True,
            ) from None

    def drop_from(self, backend_id: str, version: int) -> None:
        """Neither this version nor a newer one is held."""
        self._drop(backend_id, lambda held: held >= version)

    def drop_older(self, backend_id: str, version: int) -> None:
        """No version before this one is held."""
        self._drop(backend_id, lambda held: held < version)

    def held(self) -> dict[str, tuple[int, ...]]:
        """Backend id -> versions held, ascending."""
        found: dict[str, list[int]] = {}
        for name in os.listdir(self._folder):
            if match := _NAME.fullmatch(name):
                found.setdefault(match[1], []).append(int(match[2]))
        return {backend_id: tuple(sorted(versions)) for backend_id, versions in found.items()}

    def versions(self, backend_id: str) -> tuple[int, ...]:
        """Those held of one backend, ascending."""
        return self.held().get(backend_id, ())

    def _drop(self, backend_id: str, is_doomed: Callable[[int], bool]) -> None:
        for version in self.versions(backend_id):
            if is_doomed(version):
                private_files.remove(self._path(backend_id, version))

    def _path(self, backend_id: str, version: int) -> Path:
        name = f"{backend_id}.{version}.json"
        if not _NAME.fullmatch(name):
            raise ValueError("not a backend id and a version from 1 on")
        return self._folder / name


class Deliveries:
    """Opens what the manager signed for this host and for a nonce of ours; seals what we hold for another host.

    A nonce lives in memory alone, 60 s, for one attempt: a restart of the agent voids it, and the manager asks anew.
    """

    def __init__(
        self,
        *,
        host_id: str,
        key: nacl.public.PrivateKey,
        manager_key: nacl.signing.VerifyKey,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host_id = host_id
        self._key = key
        self._manager_key = manager_key
        self._clock = clock
        self._nonces: dict[tuple[str, int], tuple[bytes, float]] = {}

    def nonce(self, backend_id: str, version: int) -> bytes:
        """A fresh nonce; an older one for the same backend and version is void."""
        now = self._clock()
        self._nonces = {key: (nonce, until) for key, (nonce, until) in self._nonces.items() if until > now}
        nonce = secrets.token_bytes(sealing.NONCE_BYTES)
        self._nonces[backend_id, version] = (nonce, now + sealing.LIFETIME_S)
        return nonce

    def open(self, backend_id: str, version: int, sealed: bytes) -> Credentials:
        """The credentials in the box; the attempt spends the nonce. AgentFault failed says nothing of the content."""
        nonce, until = self._nonces.pop((backend_id, version), (b"", 0.0))
        if not nonce or self._clock() > until:
            raise AgentFault.of(
                FaultCode.FAILED, "no delivery of these credentials is open; ask for a nonce first", is_retryable=True
            )
        try:
            return sealing.open_sealed(
                sealed,
                host_id=self._host_id,
                host_key=self._key,
                manager_key=self._manager_key,
                backend_id=backend_id,
                version=version,
                nonce=nonce,
            )
        except sealing.SealRefused as error:
            raise AgentFault.of(FaultCode.FAILED, f"the delivered credentials were refused: {error}") from error

    def reseal(
        self, credentials: Credentials, *, backend_id: str, version: int, to_host: str, to_key: bytes, nonce: bytes
    ) -> bytes:
        """A box for another host, worth nothing until the manager signs it."""
        try:
            return sealing.box(
                credentials, host_id=to_host, host_key=to_key, backend_id=backend_id, version=version, nonce=nonce
            )
        except (ValueError, TypeError) as error:
            raise AgentFault.of(FaultCode.FAILED, "the other host's key is not an X25519 key") from error
