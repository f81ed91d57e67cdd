"""Credentials on their way to hosts: sealed for one host's key, signed by the manager, never kept.

There are two ways to a host: `deliver` seals what a caller just gave us; `reseal` has a host that holds
them seal them for a newcomer, so the manager passes on bytes that it cannot read.
"""

from collections.abc import Mapping
from typing import Any

import nacl.signing

from manager.agents import Agents
from manager.registry import Registry
from schemas import sealing
from schemas.agent_rpc import CredentialNonce, Nonce, ResealCredentials, Sealed, StoreCredentials
from schemas.credentials import Credentials


class Vault:
    """All methods raise what Agents.ask raises."""

    def __init__(self, agents: Agents, registry: Registry, signing_key: nacl.signing.SigningKey) -> None:
        self._agents = agents
        self._registry = registry
        self._key = signing_key

    async def deliver(
        self,
        host_id: str,
        credentials: Credentials,
        version: int,
        *,
        base_version: int = 0,
        nonce_head: Mapping[str, Any],
        store_head: Mapping[str, Any],
    ) -> None:
        """The host holds this version of the backend's credentials, laid over the base version if one is named."""
        nonce = await self._agents.ask(host_id, CredentialNonce(**nonce_head, version=version), Nonce)
        sealed = self.seal(host_id, str(store_head["backend_id"]), credentials, version, nonce.nonce)
        command = StoreCredentials(**store_head, version=version, sealed=sealed, base_version=base_version)
        await self._agents.ask(host_id, command, object)

    async def reseal(
        self,
        holder_id: str,
        host_id: str,
        version: int,
        *,
        heads: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """The newcomer holds what the holder holds. heads: of nonce, reseal and store."""
        host = self._registry.host_row(host_id)
        if host is None:
            return
        nonce = await self._agents.ask(host_id, CredentialNonce(**heads["nonce"], version=version), Nonce)
        command = ResealCredentials(
            **heads["reseal"], version=version, to_host=host_id, to_key=host.sealing_key.hex(), nonce=nonce.nonce
        )
        box = await self._agents.ask(holder_id, command, Sealed)
        sealed = sealing.sign(box.sealed, self._key)
        await self._agents.ask(host_id, StoreCredentials(**heads["store"], version=version, sealed=sealed), object)

    def seal(self, host_id: str, backend_id: str, credentials: Credentials, version: int, nonce: bytes) -> bytes:
        """The signed box for one host; KeyError when the host is not known."""
        host = self._registry.host_row(host_id)
        if host is None:
            raise KeyError(host_id)
        box = sealing.box(
            credentials, host_id=host_id, host_key=host.sealing_key, backend_id=backend_id, version=version, nonce=nonce
        )
        return sealing.sign(box, self._key)
