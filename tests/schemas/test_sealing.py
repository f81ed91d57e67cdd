"""A sealed box opens for one host, one backend, one version, one nonce; everything else is refused without a word of it."""

import time

import nacl.public
import nacl.signing
import pytest

from schemas import sealing
from schemas.credentials import Credentials
from schemas.sealing import SealRefused

_MANAGER = nacl.signing.SigningKey.generate()
_HOST = nacl.public.PrivateKey.generate()
_SECRET = Credentials({"username": "svc", "password": "CANARY"})
_NONCE = b"n" * sealing.NONCE_BYTES


def _sealed(**changes: object) -> bytes:
    words = {
        "host_id": "hA",
        "host_key": bytes(_HOST.public_key),
        "backend_id": "b1",
        "version": 3,
        "nonce": _NONCE,
        **changes,
    }
    return sealing.sign(sealing.box(_SECRET, **words), _MANAGER)  # type: ignore[arg-type]


def _open(sealed: bytes, **changes: object) -> Credentials:
    words = {
        "host_id": "hA", "host_key": _HOST, "manager_key": _MANAGER.verify_key, "backend_id": "b1", "version": 3, "nonce": _NONCE,
        **changes,
    }  # fmt: skip
    return sealing.open_sealed(sealed, **words)  # type: ignore[arg-type]


def test_box_opens_for_whom_it_was_sealed() -> None:
    assert _open(_sealed()) == _SECRET


@pytest.mark.parametrize(
    "changes",
    [{"host_id": "hB"}, {"backend_id": "b2"}, {"version": 2}, {"nonce": b"x" * 16}],
    ids=lambda c: next(iter(c)),
)
def test_box_for_another_host_backend_version_or_request_is_refused(changes: dict[str, object]) -> None:
    for sealed, opened in ((_sealed(**changes), {}), (_sealed(), changes)):
        with pytest.raises(SealRefused) as caught:
            _open(sealed, **opened)
        assert "CANARY" not in str(caught.value)


def test_box_with_one_bit_turned_or_another_signer_is_refused() -> None:
    sealed = bytearray(_sealed())
    sealed[80] ^= 1
    with pytest.raises(SealRefused, match="signature"):
        _open(bytes(sealed))
    forged = sealing.sign(_sealed()[64:], nacl.signing.SigningKey.generate())
    with pytest.raises(SealRefused, match="signature"):
        _open(forged)
    for junk in (b"", b"x" * 10, b"x" * 500):
        with pytest.raises(SealRefused):
            _open(junk)


def test_box_that_another_key_should_open_is_refused() -> None:
    with pytest.raises(SealRefused, match="does not open"):
        _open(_sealed(), host_key=nacl.public.PrivateKey.generate())


def test_expired_box_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed, now = _sealed(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + sealing.LIFETIME_S + sealing.CLOCK_SKEW_S + 1)
    with pytest.raises(SealRefused, match="expired"):
        _open(sealed)


def test_plain_text_is_not_in_the_box() -> None:
    assert b"CANARY" not in _sealed()
