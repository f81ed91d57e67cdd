"""Identities of the bus: operator, accounts and users as NATS JWTs, who may do what, and revocation.

    operator ─┬─ account STOWAGE ─┬─ agents        signed by agent_signer, whose template in the account's JWT is
              │                   │                all that a stolen agent_signer can give (it can pose as any host)
              │                   └─ commands, uplink, relay, auditor    signed by the account's own key
              └─ account SYSTEM ──── system        pushes the account's JWT, with its revocations, to the servers

JWT v2 as nats-server 2.15 takes it (BUS.md 3). The form of an account: github.com/nats-io/jwt/v2.
"""

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from manager.keys import Keys, write_private
from schemas import nkey, subjects
from schemas.agent_rpc import MAX_MESSAGE_BYTES
from schemas.bus import Bus, BusRefused, BusTimeout, creds_text
from schemas.ids import HostId, is_id
from schemas.nkey import Role

AGENT_LIFETIME_S = 7 * 24 * 3600
_AGENT_SUBSCRIPTIONS = 64
_PUSH_S = 5.0
_CLAIMS_UPDATE = "$SYS.REQ.CLAIMS.UPDATE"
AUDITOR_INBOX = "_INBOX_e"

_NO_LIMIT = -1
_ACCOUNT_LIMITS = {
    "subs": _NO_LIMIT,
    "data": _NO_LIMIT,
    "payload": _NO_LIMIT,
    "imports": 0,
    "exports": 0,
    "wildcards": True,
    "conn": _NO_LIMIT,
    "leaf": 0,
}
_JETSTREAM_LIMITS = {"mem_storage": 0, "disk_storage": _NO_LIMIT, "streams": 1, "consumer": 64}


@dataclass(frozen=True)
class _Rights:
    publish: tuple[str, ...]
    listen: tuple[str, ...]


_OWN_INBOX = f"{subjects.MANAGER_INBOX}.>"
_STREAM = subjects.STREAM

#: Each user publishes to its own inbox for the liveness echo (schemas/bus.py).
_COMMANDS = _Rights((subjects.COMMANDS, _OWN_INBOX), (_OWN_INBOX,))
_UPLINK = _Rights((f"{subjects.AGENT_INBOX}.>", _OWN_INBOX), ("stowage.up.>", _OWN_INBOX))
#: It reads the stream's end, to go on behind it; more of the stream it need not read, but the API's right is whole.
_RELAY = _Rights(
    (
        subjects.EVENTS,
        f"$JS.API.STREAM.CREATE.{_STREAM}",
        f"$JS.API.STREAM.UPDATE.{_STREAM}",
        f"$JS.API.STREAM.INFO.{_STREAM}",
        f"$JS.API.STREAM.MSG.GET.{_STREAM}",
        _OWN_INBOX,
    ),
    (_OWN_INBOX,),
)
_SYSTEM = _Rights((_CLAIMS_UPDATE, _OWN_INBOX), (_OWN_INBOX,))
#: Who may create consumers can have events delivered to any subject of the account, commands included (BUS.md 3.1).
#: An event is no command to an agent, so this disturbs at most; still, an auditor's creds are for the operator's own.
_AUDITOR = _Rights(
    (
        f"$JS.API.STREAM.INFO.{_STREAM}",
        f"$JS.API.CONSUMER.CREATE.{_STREAM}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{_STREAM}.*",
        f"$JS.API.CONSUMER.INFO.{_STREAM}.*",
        f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.*",
        f"$JS.ACK.{_STREAM}.>",
    ),
    (f"{AUDITOR_INBOX}.>",),
)


@dataclass(frozen=True)
class CredsFiles:
    """Where each user's creds file lies."""

    commands: Path
    uplink: Path
    relay: Path
    system: Path
    auditor: Path


@dataclass(frozen=True)
class TlsFiles:
    certificate: Path
    key: Path


class BusAuth:
    """Mints what the keys can sign."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def mint_agent(self, host_id: HostId, user_public_key: str, lifetime_s: int = AGENT_LIFETIME_S) -> str:
        """The user JWT of a host's agent. Its rights come from the account's template, by its name, the host id.

        Raises ValueError for an id or key out of form: an id like `*` would be a wildcard in the template.
        """
        if not is_id(host_id):
            raise ValueError("a host id must be a UUID")
        if not nkey.is_public_key(user_public_key, Role.USER):
            raise ValueError("not the public nkey of a user")
        claims = {"type": "user", "issuer_account": nkey.public_key(self._keys.account)}
        return sign_claims(
            self._keys.agent_signer, user_public_key, claims, name=host_id, expires_at=int(time.time()) + lifetime_s
        )

    def account_jwt(self, revoked: Mapping[str, int], *, version: int) -> str:
        """The account with its revocations: user public key -> when; JWTs issued until then are refused.

        Entries older than AGENT_LIFETIME_S may be left out: what they refuse has expired. version: the date of issue,
        Unix seconds or so; between servers of a cluster the newer account wins.
        """
        return _account_jwt(self._keys, revoked, issued_at=version)

    async def push_account(self, bus_system: Bus, revoked: Mapping[str, int], *, version: int) -> None:
        """The account's JWT with exactly these revocations is sent to all servers, and the first that answers keeps it.

        A server takes any account, older versions too (seen with 2.15.1), so a push of an older list that comes late
        takes revocations back: whoever pushes looks afterwards whether the list is still the newest. Live connections
        of a revoked identity are ended by the server. Raises BusError.
        """
        claims = self.account_jwt(revoked, version=version).encode()
        answer = await bus_system.request(_CLAIMS_UPDATE, claims, timeout_s=_PUSH_S)
        try:
            outcome = msgspec.json.decode(answer, type=_PushAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BusTimeout("an unreadable answer to the account's update") from error
        if outcome.data is None or outcome.data.code != 200:
            raise BusRefused("the server refused the account's update")

    def write_creds(self, folder: Path) -> CredsFiles:
        """The manager's users, each in its creds file, 0600, minted anew and without expiry. Raises OSError."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        account, system = self._keys.account, self._keys.system_account
        return CredsFiles(
            commands=_write_user(folder, "commands", account, self._keys.commands, _COMMANDS),
            uplink=_write_user(folder, "uplink", account, self._keys.uplink, _UPLINK),
            relay=_write_user(folder, "relay", account, self._keys.relay, _RELAY),
            system=_write_user(folder, "system", system, self._keys.system, _SYSTEM),
            auditor=_write_user(folder, "auditor", account, self._keys.auditor, _AUDITOR),
        )


def server_config(
    keys: Keys,
    *,
    data_dir: Path,
    ports_file_dir: Path,
    host: str = "127.0.0.1",
    port: int = -1,
    tls: TlsFiles | None = None,
) -> str:
    """The configuration of a nats-server in operator mode, without secrets. port -1: free, told in ports_file_dir.

    nats-server does not lock data_dir, two on one folder ruin it: the caller holds a lock (BUS.md 1). The
    preloaded account is dated 1970 so that it never replaces a newer one, with revocations, that was pushed.
    """
    system = nkey.public_key(keys.system_account)
    operator = sign_claims(
        keys.operator, nkey.public_key(keys.operator), {"type": "operator", "system_account": system}, name="stowage"
    )
    system_jwt = sign_claims(
        keys.operator, system, {"type": "account", "limits": _ACCOUNT_LIMITS}, name="SYSTEM", issued_at=1
    )
    account_jwt = _account_jwt(keys, {}, issued_at=1)
    lines = [
        f"host: {_quoted(host)}",
        f"port: {port}",
        f"ports_file_dir: {_quoted(ports_file_dir)}",
        "max_payload: 1MB",
        # Without max_file_store the server would take 75 % of what is free now, and refuse the stream on a fuller disk:
        # its size counts as reserved. The stream's own limit bounds what is stored.
        f"jetstream {{ store_dir: {_quoted(data_dir / 'jetstream')}, max_file_store: 1TB, sync_interval: always }}",
        f"operator: {operator}",
        f"system_account: {system}",
        f"resolver {{ type: full, dir: {_quoted(data_dir / 'accounts')}, allow_delete: false }}",
        f"resolver_preload {{ {system}: {system_jwt}, {nkey.public_key(keys.account)}: {account_jwt} }}",
    ]
    if tls is not None:
        lines.append(
            f"tls {{ cert_file: {_quoted(tls.certificate)}, key_file: {_quoted(tls.key)}, "
            'min_version: "1.3", handshake_first: true }'
        )
    return "\n".join(lines) + "\n"


def sign_claims(
    issuer_seed: str,
    subject: str,
    nats: Mapping[str, object],
    *,
    name: str,
    issued_at: int | None = None,
    expires_at: int | None = None,
) -> str:
    """A NATS JWT, version 2; the times are Unix seconds."""
    claims: dict[str, object] = {
        "iat": int(time.time()) if issued_at is None else issued_at,
        "iss": nkey.public_key(issuer_seed),
        "name": name,
        "nats": {**nats, "version": 2},
        "sub": subject,
    }
    if expires_at is not None:
        claims["exp"] = expires_at
    digest = hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    head = _base64url(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    signed = head + "." + _base64url(json.dumps(claims, separators=(",", ":")).encode())
    return signed + "." + _base64url(nkey.sign(issuer_seed, signed.encode()))


def _account_jwt(keys: Keys, revoked: Mapping[str, int], *, issued_at: int) -> str:
    claims = {
        "type": "account",
        "limits": {**_ACCOUNT_LIMITS, **_JETSTREAM_LIMITS},
        "signing_keys": [_agent_template(nkey.public_key(keys.agent_signer))],
        "revocations": dict(revoked),
    }
    return sign_claims(keys.operator, nkey.public_key(keys.account), claims, name="STOWAGE", issued_at=issued_at)


def _agent_template(signer: str) -> dict[str, object]:
    own_inbox = f"{subjects.AGENT_INBOX}.{{{{name()}}}}.>"
    return {
        "kind": "user_scope",
        "key": signer,
        "role": "agent",
        "template": {
            # No `resp`: an agent may answer in its own place of a manager's inbox, and nowhere else (subjects.answers).
            "pub": {"allow": ["stowage.up.{{name()}}.>", own_inbox, subjects.ANSWERS_OF.format(host="{{name()}}")]},
            "sub": {"allow": ["stowage.cmd.{{name()}}.>", own_inbox]},
            "subs": _AGENT_SUBSCRIPTIONS,
            "data": _NO_LIMIT,
            "payload": MAX_MESSAGE_BYTES,
        },
    }


def _write_user(folder: Path, name: str, account_seed: str, seed: str, rights: _Rights) -> Path:
    claims = {
        "type": "user",
        "pub": {"allow": list(rights.publish)},
        "sub": {"allow": list(rights.listen)},
        "subs": _NO_LIMIT,
        "data": _NO_LIMIT,
        "payload": _NO_LIMIT,
    }
    user_jwt = sign_claims(account_seed, nkey.public_key(seed), claims, name=name)
    path = folder / f"{name}.creds"
    write_private(path, creds_text(user_jwt, seed).encode())
    return path


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)


class _PushOutcome(msgspec.Struct, frozen=True, kw_only=True):
    code: int = 0


class _PushAnswer(msgspec.Struct, frozen=True, kw_only=True):
    data: _PushOutcome | None = None
