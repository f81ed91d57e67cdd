"""Enrolment: keys are made on the host, a one-time token is exchanged for a bus identity.

    python -m agent join https://manager:8443 stj1.<id>.<secret>.<fingerprint> --state-dir D --name N

The token's last part is the SHA-256 (hex) of the manager's TLS certificate: the join trusts that
certificate and no other, before it sends a byte. `-` there: whatever the system's own CAs vouch for.
"""

import hashlib
import hmac
import http.client
import ipaddress
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import nacl.public

from agent.config import AgentConfig, StateDir, load_config, save_config
from agent.errors import ConfigError
from agent.private_files import write_private
from schemas import nkey
from schemas.bus import creds_text
from schemas.hosts import AgentFacts, EnrolReply, EnrolRequest, enrol_message
from schemas.ids import HOST_NAME
from schemas.problems import FieldError

_TOKEN = re.compile(r"stj1\.[0-9a-f-]{36}\.[A-Za-z0-9_-]{20,200}\.(?:[0-9a-f]{64}|-)")
_TIMEOUT_S = 20.0
_MAX_ANSWER_BYTES = 64 * 1024


class JoinRefused(Exception):
    """The manager said no, or is not the one that the token names; the text says what to do."""


@dataclass(frozen=True)
class Invitation:
    """Where to join, with what; its repr shows no secret.

    fingerprint: of the manager's certificate; empty: the system's CAs decide.
    """

    url: str
    token: str
    fingerprint: str
    allow_http: bool = False

    def __repr__(self) -> str:
        return f"<invitation to {self.url}>"

    @classmethod
    def read(cls, url: str, token: str, *, allow_http: bool = False) -> "Invitation":
        """Raises ConfigError: not a token, or a URL that must not be used."""
        if not _TOKEN.fullmatch(token):
            raise ConfigError("that is not a join token; make one with POST /v1/hosts/join_tokens")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ConfigError("the URL must be https://HOST[:PORT]")
        if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname):
            raise ConfigError(
                "plain http shows the token to the network; use https, or --allow-http where that is acceptable"
            )
        fingerprint = token.rpartition(".")[2]
        return cls(url.rstrip("/"), token, "" if fingerprint == "-" else fingerprint, allow_http)


class _Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Of a problem document, what a person at the terminal needs; a proxy's answer may be anything else."""

    detail: str = "no reason given"
    errors: tuple[FieldError, ...] = ()


def join(
    state: StateDir, invitation: Invitation, *, name: str, facts: AgentFacts, say: Callable[[str], None] = print
) -> AgentConfig:
    """This host is enrolled and its config written. Run again after a failure, it goes on with the keys that it made.

    Raises ConfigError, JoinRefused; OSError when the manager cannot be reached.
    """
    if not HOST_NAME.fullmatch(name):
        raise ConfigError("the name must be a DNS label: letters a-z, digits and -, at most 63 characters")
    state.refuse_foreign()
    state.prepare()
    with state.locked():
        if state.config_file.exists():
            return _joined_before(state, invitation, name, say)
        seed = _identity(state, say)
        sealing_key = _sealing_key(state, say)
        reply = _enrol(invitation, name, seed, sealing_key, facts)
        write_private(state.bus_creds_file, creds_text(reply.user_jwt, seed).encode())
        config = AgentConfig(
            host_id=reply.host_id,
            host_name=name,
            fleet_id=reply.fleet_id,
            manager_url=invitation.url,
            nats_urls=reply.nats_urls,
            manager_key=reply.manager_key,
            labels=facts.labels,
        )
        # Last, for it is the sign that the join is complete.
        save_config(state, config)
    say(f"joined fleet {reply.fleet_id} as host {name} ({reply.host_id})")
    say(f"start the agent: stowage-agent run --state-dir {state.root}")
    return config


def _joined_before(state: StateDir, invitation: Invitation, name: str, say: Callable[[str], None]) -> AgentConfig:
    config = load_config(state, {})
    if (config.manager_url, config.host_name) != (invitation.url, name):
        raise ConfigError(
            f"{state.root} belongs to host {config.host_name} of {config.manager_url};"
            " use another --state-dir, or move this one aside; remove none below which something is mounted"
        )
    say(f"already joined as host {name} ({config.host_id}); nothing was changed")
    return config


def _identity(state: StateDir, say: Callable[[str], None]) -> str:
    """The seed of this host's bus identity, made once."""
    if not state.identity_file.exists():
        write_private(state.identity_file, nkey.new_seed(nkey.Role.USER).encode())
        say(f"made the identity key {state.identity_file}")
    return state.identity_file.read_text().strip()


def _sealing_key(state: StateDir, say: Callable[[str], None]) -> nacl.public.PrivateKey:
    """The key that credentials for this host are sealed to, made once."""
    if not state.sealing_file.exists():
        write_private(state.sealing_file, bytes(nacl.public.PrivateKey.generate()).hex().encode())
        say(f"made the sealing key {state.sealing_file}")
    return nacl.public.PrivateKey(bytes.fromhex(state.sealing_file.read_text().strip()))


def _enrol(
    invitation: Invitation, name: str, seed: str, sealing_key: nacl.public.PrivateKey, facts: AgentFacts
) -> EnrolReply:
    identity, sealing = nkey.public_key(seed), bytes(sealing_key.public_key).hex()
    request = EnrolRequest(
        token=invitation.token,
        name=name,
        identity_key=identity,
        sealing_key=sealing,
        facts=facts,
        signature=nkey.sign(seed, enrol_message(invitation.token, name, identity, sealing)).hex(),
    )
    status, answer = _post(invitation, "/v1/enrol", msgspec.json.encode(request))
    if status not in (200, 201):
        raise JoinRefused(f"the manager refused the join ({status}): {_detail(answer)}")
    try:
        return msgspec.json.decode(answer, type=EnrolReply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JoinRefused(f"{invitation.url} does not answer like a Stowage manager") from error


def _post(invitation: Invitation, path: str, body: bytes) -> tuple[int, bytes]:
    parts = urlsplit(invitation.url)
    assert parts.hostname is not None
    if parts.scheme == "http":
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
    else:
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=_TIMEOUT_S, context=_tls(is_pinned=bool(invitation.fingerprint))
        )
    try:
        connection.connect()
        if invitation.fingerprint and isinstance(connection.sock, ssl.SSLSocket):
            _check_pin(connection.sock, invitation.fingerprint)
        connection.request(
            "POST", parts.path + path, body, {"Content-Type": "application/json", "Accept": "application/json"}
        )
        response = connection.getresponse()
        return response.status, response.read(_MAX_ANSWER_BYTES)
    except http.client.HTTPException as error:
        raise JoinRefused(f"{invitation.url} does not speak HTTP as a manager does") from error
    finally:
        connection.close()


def _tls(*, is_pinned: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if is_pinned:
        # The pin is stricter than any CA: exactly this certificate, whatever its name and issuer.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_pin(sock: ssl.SSLSocket, fingerprint: str) -> None:
    certificate = sock.getpeercert(binary_form=True) or b""
    if not hmac.compare_digest(hashlib.sha256(certificate).hexdigest(), fingerprint):
        raise JoinRefused(
            "the manager's certificate is not the one that the token names; nothing was sent."
            " Make a new token, or look who answers there"
        )


def _detail(answer: bytes) -> str:
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "no reason given"
    return "; ".join(filter(None, (problem.detail, *(error.detail for error in problem.errors))))[:500]


def _is_loopback(hostname: str) -> bool:
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return hostname == "localhost"
