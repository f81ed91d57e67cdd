"""Credentials sealed to one host: only that host's key opens them, and only the manager's signature is believed.

The bytes are `signature (64) || SealedBox(host's X25519 key, msgpack(Envelope))`, signed by the
manager's Ed25519 key over a context string and the box. A sealed box alone has no sender, hence the
signature; the nonce is the receiving agent's own, so a replay fails whatever the clocks say; `expires_at`
is the second line (BUS.md 3.4). Sizes: 256 bytes of secret make about 420 bytes.
"""

import time

import msgspec
import nacl.exceptions
import nacl.public
import nacl.signing

from schemas.credentials import Credentials

NONCE_BYTES = 16
LIFETIME_S = 60
#: Tolerated difference between the clocks of two machines.
CLOCK_SKEW_S = 300
_CONTEXT = b"stowage-credentials-v1\0"


class SealRefused(Exception):
    """The sealed bytes are not for this host, this request or this moment; nothing was opened."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What the box holds; it names its one reader and its one use. Its repr shows no secret."""

    host_id: str
    backend_id: str
    version: int
    nonce: bytes
    expires_at: float
    fields: dict[str, str]

    def __repr__(self) -> str:
        return f"<envelope for host {self.host_id}, backend {self.backend_id}, version {self.version}>"


def box(
    credentials: Credentials, *, host_id: str, host_key: bytes, backend_id: str, version: int, nonce: bytes
) -> bytes:
    """The unsigned box; a host that reseals for a newcomer makes one and cannot read it again."""
    envelope = Envelope(
        host_id=host_id,
        backend_id=backend_id,
        version=version,
        nonce=nonce,
        expires_at=time.time() + LIFETIME_S,
        fields=credentials.reveal(),
    )
    return bytes(nacl.public.SealedBox(nacl.public.PublicKey(host_key)).encrypt(msgspec.msgpack.encode(envelope)))


def sign(box_bytes: bytes, manager_key: nacl.signing.SigningKey) -> bytes:
    """The box with the manager's signature before it: what an agent accepts."""
    return bytes(manager_key.sign(_CONTEXT + box_bytes).signature) + box_bytes


def open_sealed(
    sealed: bytes,
    *,
    host_id: str,
    host_key: nacl.public.PrivateKey,
    manager_key: nacl.signing.VerifyKey,
    backend_id: str,
    version: int,
    nonce: bytes,
) -> Credentials:
    """The credentials, if every word of the envelope is what this agent asked for.

    Raises SealRefused, whose text says which check failed and nothing of the content.
    """
    try:
        manager_key.verify(_CONTEXT + sealed[64:], sealed[:64])
    except (nacl.exceptions.BadSignatureError, ValueError) as error:
        raise SealRefused("the manager's signature does not fit") from error
    try:
        plain = nacl.public.SealedBox(host_key).decrypt(sealed[64:])
        envelope = msgspec.msgpack.decode(plain, type=Envelope)
    except (nacl.exceptions.CryptoError, msgspec.DecodeError, ValueError):
        # `from None`: a decoder's message may quote the plain text.
        raise SealRefused("the box does not open with this host's key") from None
    if (envelope.host_id, envelope.backend_id, envelope.version) != (host_id, backend_id, version):
        raise SealRefused("the box is for another host, backend or version")
    if envelope.nonce != nonce:
        raise SealRefused("the box answers another request than the open one")
    if time.time() > envelope.expires_at + CLOCK_SKEW_S:
        raise SealRefused("the box has expired")
    return Credentials(envelope.fields)
