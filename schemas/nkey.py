"""NATS keys (nkeys): an Ed25519 seed or public key as base32 text with its role and a CRC-16 in it.

The form: NATS ADR-14 and the Go library nkeys; tests compare with the Python library of that name,
which nats-py brings but which knows neither types nor how to read a public key.
"""

import base64
import binascii
import enum
import secrets

import nacl.exceptions
import nacl.signing

_SEED = 18 << 3


class Role(enum.IntEnum):
    """The prefix byte; in base32 it shows as the first letter of the public key."""

    ACCOUNT = 0
    OPERATOR = 14 << 3
    USER = 20 << 3


class BadKey(ValueError):
    """The text is no nkey of the wanted role. Says nothing of the text: it may be a secret."""


def new_seed(role: Role) -> str:
    """A fresh secret seed, 58 characters that begin with S and the role's letter."""
    head = bytes((_SEED | role >> 5, (role & 31) << 3))
    return _text(head + secrets.token_bytes(32))


def public_key(seed: str) -> str:
    """The public key of a seed. Raises BadKey."""
    role, raw = _parse_seed(seed)
    return _text(bytes((role,)) + bytes(nacl.signing.SigningKey(raw).verify_key))


def sign(seed: str, message: bytes) -> bytes:
    """The 64 bytes of the Ed25519 signature. Raises BadKey."""
    return nacl.signing.SigningKey(_parse_seed(seed)[1]).sign(message).signature


def is_public_key(text: str, role: Role) -> bool:
    """Whether the text is a well-formed public key of that role."""
    try:
        _parse_public(text, role)
    except BadKey:
        return False
    return True


def verify(public: str, role: Role, message: bytes, signature: bytes) -> bool:
    """Whether the key of that role made the signature; False for a malformed key or signature, too."""
    try:
        nacl.signing.VerifyKey(_parse_public(public, role)).verify(message, signature)
    except (BadKey, ValueError, nacl.exceptions.BadSignatureError):
        return False
    return True


def _text(body: bytes) -> str:
    return base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).rstrip(b"=").decode()


def _parse(text: str, size: int) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        raise BadKey("not an nkey") from None
    body, checksum = raw[:-2], raw[-2:]
    if len(body) != size or binascii.crc_hqx(body, 0).to_bytes(2, "little") != checksum:
        raise BadKey("not an nkey")
    return body


def _parse_seed(seed: str) -> tuple[int, bytes]:
    body = _parse(seed, 34)
    if body[0] & 248 != _SEED:
        raise BadKey("not an nkey seed")
    return (body[0] & 7) << 5 | (body[1] & 248) >> 3, body[2:]


def _parse_public(text: str, role: Role) -> bytes:
    body = _parse(text, 33)
    if body[0] != role:
        raise BadKey("an nkey of another role")
    return body[1:]
