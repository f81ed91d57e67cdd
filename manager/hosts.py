"""What can be done with hosts: join tokens, enrolment, revocation, discovery of what a server offers."""

import datetime as dt
import hashlib
import logging
import re
import secrets
from collections.abc import Sequence

import msgspec
import nacl.signing

from manager.actor import Actor
from manager.agents import Agents, refusal
from manager.bus_auth import BusAuth
from manager.errors import AgentError, Refused
from manager.registry import Registry
from manager.revocations import Revocations
from manager.store import attachments, events
from manager.store import hosts as store
from manager.store.hosts import HostRow
from manager.store.pool import Connection, Pool, transaction
from manager.vault import Vault
from schemas import nkey
from schemas.agent_rpc import CredentialNonce, Discover, Discovered, Discovery, Nonce
from schemas.events import EventType
from schemas.hosts import EnrolReply, EnrolRequest, Host, enrol_message
from schemas.ids import HostId, new_id
from schemas.problems import FieldError, ProblemCode
from schemas.requests import DiscoverStorage
from schemas.volumes import AttachmentState

log = logging.getLogger(__name__)

#: Seconds in which the caller of a revocation learns that the bus knows it; above one push.
_TOLD_S = 6.0
#: Seconds until asking again makes sense.
_TOLD_AGAIN_S = 5
_TOKEN = re.compile(
    r"stj1\.([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\.([A-Za-z0-9_-]{43})\.([0-9a-f]{64}|-)"
)


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time token, shown once, and the command to type on the newcomer."""

    token: str
    expires_at: dt.datetime
    command: str


class Hosts:
    """Use cases. fingerprint: SHA-256 (hex) of the API's TLS certificate, or None on plain HTTP."""

    def __init__(
        self,
        pool: Pool,
        registry: Registry,
        agents: Agents,
        bus_auth: BusAuth,
        revocations: Revocations,
        vault: Vault,
        *,
        fleet_id: str,
        manager_key: nacl.signing.VerifyKey,
        nats_urls: Sequence[str],
        public_url: str,
        fingerprint: str | None,
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._agents = agents
        self._bus_auth = bus_auth
        self._revocations = revocations
        self._vault = vault
        self._fleet_id = fleet_id
        self._manager_key = manager_key
        self._nats_urls = tuple(nats_urls)
        self._public_url = public_url
        self._fingerprint = fingerprint

    def list(self) -> Sequence[Host]:
        return self._registry.hosts()

    def get(self, ref: str) -> Host:
        host = self._registry.find_host(ref)
        if host is None:
            raise Refused.because(ProblemCode.NOT_FOUND, f"there is no host {ref[:80]}")
        return host

    async def create_join_token(self, ttl_s: int, actor: Actor) -> JoinToken:
        """A token that one host may use once within `ttl_s` seconds; only its digest is kept."""
        token_id, secret = new_id(), secrets.token_urlsafe(32)
        async with self._pool.acquire() as connection:
            expires_at = await store.insert_join_token(
                connection, token_id=token_id, secret_hash=_digest(secret), created_by=actor.name, ttl_s=ttl_s
            )
        token = f"stj1.{token_id}.{secret}.{self._fingerprint or '-'}"
        return JoinToken(token=token, expires_at=expires_at, command=f"stowage-agent join {self._public_url} {token}")

    async def enrol(self, request: EnrolRequest, request_id: str) -> EnrolReply:
        """The newcomer's identity. The same keys with the same token get the same answer for ten minutes.

        Raises Refused: unauthorized for any doubt about the token, invalid_field, name_taken.
        """
        match = _TOKEN.fullmatch(request.token)
        if match is None:
            raise _bad_token()
        sealing_key = _checked_keys(request)
        token_id, digest = match[1], _digest(match[2])
        async with transaction(self._pool) as connection:
            known = await store.by_identity(connection, request.identity_key)
            if known is not None:
                if known.revoked_at or not await store.may_replay(connection, token_id, digest, known.id):
                    raise _bad_token()
                return self._reply(known)
            if not await store.use_join_token(connection, token_id, digest):
                raise _bad_token()
            row = await store.insert(
                connection,
                host_id=new_id(),
                name=request.name,
                identity_key=request.identity_key,
                sealing_key=sealing_key,
                facts=request.facts,
            )
            if row is None:
                raise Refused.because(
                    ProblemCode.NAME_TAKEN, f"a host named {request.name} is enrolled already; revoke it first"
                )
            await store.link_join_token(connection, token_id, row.id)
            await _append_event(connection, EventType.HOST_JOINED, row, actor=f"host:{row.name}", request_id=request_id)
        await self._registry.refresh_hosts()
        log.info("host joined", extra={"host_id": row.id, "host": row.name})
        return self._reply(row)

    async def renewed_jwt(self, host_id: str) -> str | None:
        """A fresh bus identity for a host that is live by the database's word."""
        async with self._pool.acquire() as connection:
            row = await store.get(connection, host_id)
        if row is None or row.revoked_at:
            return None
        return self._bus_auth.mint_agent(HostId(row.id), row.identity_key)

    async def revoke(self, ref: str, actor: Actor) -> None:
        """The host is out: its bus identity ends at once, its cells are gone. What it has mounted stays mounted there.

        When the bus cannot be told now, the caller learns that, and it is told as soon as it can be.
        """
        host = self.get(ref)
        async with transaction(self._pool) as connection:
            row = await store.revoke(connection, host.id)
            if row is not None:
                await _append_event(connection, EventType.HOST_LEFT, row, actor=actor.name, request_id=actor.request_id)
            # Who revokes a host says that it is out for ever: its volumes are free for others.
            for name, closed in await attachments.close_all_of(connection, host.id):
                if closed.state is AttachmentState.ATTACHING:
                    continue  # nobody was told that it opened
                await events.append(
                    connection,
                    type=EventType.ATTACHMENT_CLOSED,
                    collection="volumes",
                    subject_id=closed.volume_id,
                    actor=actor.name,
                    request_id=actor.request_id,
                    data={
                        "name": name,
                        "host": host.name,
                        "before": attachments.shown(closed),
                        "after": None,
                        "is_confirmed": False,
                    },
                )
        # Told again to who asks again: the first telling may have failed.
        await self._registry.refresh_hosts()
        if not await self._revocations.told(_TOLD_S):
            log.error("the bus was not told of a revocation yet", extra={"host_id": host.id})
            raise Refused.because(
                ProblemCode.INTERNAL,
                f"{host.name} is revoked here, but the bus does not know it yet and is told again until it does;"
                f" to see whether it does, revoke it again by its id {host.id}",
                retry_after_s=_TOLD_AGAIN_S,
            )
        log.info("host revoked", extra={"host_id": host.id, "host": host.name})

    async def discover(self, ref: str, body: DiscoverStorage, actor: Actor) -> tuple[Discovered, ...]:
        """What a server offers to that host, to whom the credentials log in where some are given. Nobody keeps these."""
        host = self.get(ref)
        # Deliveries go by backend, and there is none: each question has an id of its own.
        delivery = new_id() if body.credentials else ""
        try:
            sealed = b""
            if body.credentials:
                asked = CredentialNonce(**self._agents.head(delivery, request_id=actor.request_id), version=1)
                nonce = await self._agents.ask(host.id, asked, Nonce)
                sealed = self._vault.seal(host.id, delivery, body.credentials, 1, nonce.nonce)
            command = Discover(
                **self._agents.head(delivery, request_id=actor.request_id),
                kind=body.kind,
                config=body.config,
                sealed=sealed,
            )
            found = await self._agents.ask(host.id, command, Discovery)
        except AgentError as error:
            raise refusal(error, host.name, f"{host.name} could not find out") from error
        return found.items

    def _reply(self, row: HostRow) -> EnrolReply:
        return EnrolReply(
            host_id=row.id,
            fleet_id=self._fleet_id,
            user_jwt=self._bus_auth.mint_agent(HostId(row.id), row.identity_key),
            nats_urls=self._nats_urls,
            manager_key=bytes(self._manager_key).hex(),
        )


async def _append_event(connection: Connection, type: EventType, row: HostRow, *, actor: str, request_id: str) -> None:
    shown = {"id": row.id, "name": row.name, "labels": row.labels, "kinds": list(row.kinds)}
    is_joined = type is EventType.HOST_JOINED
    await events.append(
        connection,
        type=type,
        collection="hosts",
        subject_id=row.id,
        actor=actor,
        request_id=request_id,
        data={"name": row.name, "before": None if is_joined else shown, "after": shown if is_joined else None},
    )


def _checked_keys(request: EnrolRequest) -> bytes:
    """The raw sealing key. Raises Refused naming the field that does not fit."""

    def refuse(field: str, detail: str) -> Refused:
        return Refused.because(
            ProblemCode.INVALID_FIELD, "the keys do not fit", errors=(FieldError(pointer=f"/{field}", detail=detail),)
        )

    try:
        sealing_key = bytes.fromhex(request.sealing_key)
    except ValueError:
        sealing_key = b""
    if len(sealing_key) != 32:
        raise refuse("sealing_key", "must be 64 hexadecimal digits")
    message = enrol_message(request.token, request.name, request.identity_key, request.sealing_key)
    try:
        is_signed = nkey.verify(request.identity_key, nkey.Role.USER, message, bytes.fromhex(request.signature))
    except ValueError:
        is_signed = False
    if not is_signed:
        raise refuse("signature", "is not the identity key's signature of this request")
    return sealing_key


def _bad_token() -> Refused:
    return Refused.because(ProblemCode.UNAUTHORIZED, "the join token is unknown, used or expired; ask for a new one")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
