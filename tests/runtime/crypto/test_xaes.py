"""XAES-256-GCM gives the specification's answers and opens nothing that was altered."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode
from hypothesis import given
from hypothesis import strategies as st

from kronos_db.runtime.crypto.xaes import Xaes256Gcm

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"


@pytest.mark.parametrize(
    ("key_byte", "associated_data", "expected"),
    [
        # One key for each value of the bit that CMAC's subkey turns on.
        (b"\x01", b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (b"\x03", b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
)
def test_known_answers(key_byte: bytes, associated_data: bytes, expected: str) -> None:
    cipher = Xaes256Gcm(key_byte * 32)
    sealed = cipher.encrypt(NONCE, b"XAES-256-GCM", associated_data)
    assert sealed.hex() == expected
    assert cipher.decrypt(NONCE, sealed, associated_data) == b"XAES-256-GCM"


def test_accumulated_answers() -> None:
    """The specification's 10,000 random messages, drawn from SHAKE128 and hashed into one answer."""
    rounds = 10_000
    stream = hashlib.shake_128().digest(rounds * (32 + 24 + 2 + 2 * 255))

    def take() -> Iterator[bytes]:
        place = 0
        while True:
            for size in (32, 24, None, None):
                if size is None:
                    size, place = stream[place], place + 1  # noqa: PLW2901
                yield stream[place : place + size]
                place += size

    parts, answer = take(), hashlib.shake_128()
    for _ in range(rounds):
        key, nonce, plaintext, associated_data = (next(parts) for _ in range(4))
        answer.update(Xaes256Gcm(key).encrypt(nonce, plaintext, associated_data))
    assert answer.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), st.binary(), st.binary())
def test_agrees_with_the_kdf_of_cryptography(
    key: bytes, nonce: bytes, plaintext: bytes, associated_data: bytes
) -> None:
    kdf = KBKDFCMAC(
        algorithms.AES, Mode.CounterMode, 32, 2, None, CounterLocation.BeforeFixed, None, None, b"X\0" + nonce[:12]
    )
    expected = AESGCM(kdf.derive(key)).encrypt(nonce[12:], plaintext, associated_data)
    assert Xaes256Gcm(key).encrypt(nonce, plaintext, associated_data) == expected


@given(st.binary(), st.binary(), st.data())
def test_opens_only_what_was_sealed(plaintext: bytes, associated_data: bytes, data: st.DataObject) -> None:
    cipher = Xaes256Gcm(bytes(32))
    sealed = cipher.seal(plaintext, associated_data)
    assert len(sealed) == len(plaintext) + 40
    assert cipher.open(sealed, associated_data) == plaintext
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    altered = (int.from_bytes(sealed, "big") ^ 1 << bit).to_bytes(len(sealed), "big")
    with pytest.raises(InvalidTag):
        cipher.open(altered, associated_data)
    with pytest.raises(InvalidTag):
        cipher.open(sealed[: data.draw(st.integers(0, len(sealed) - 1))], associated_data)
    with pytest.raises(InvalidTag):
        cipher.open(sealed, associated_data + b"\0")


def test_no_nonce_comes_twice() -> None:
    cipher = Xaes256Gcm(bytes(32))
    assert len({cipher.seal(b"", b"")[:24] for _ in range(1000)}) == 1000


def test_a_derived_key_seals_no_more_than_so_many() -> None:
    cipher = Xaes256Gcm(bytes(32))
    nonces = [cipher.seal(b"", b"")[:24] for _ in range(3 * 2**16)]
    seals = Counter(nonce[:12] for nonce in nonces)
    assert len(seals) in {3, 4}
    assert max(seals.values()) <= 2**16
    assert len(set(nonces)) == len(nonces)


def test_ciphers_of_one_key_do_not_share_a_derived_one() -> None:
    """As those of several processes, which know nothing of each other."""
    ciphers = [Xaes256Gcm(bytes(32)) for _ in range(100)]
    assert len({cipher.seal(b"", b"")[:12] for cipher in ciphers}) == 100
    assert all(ciphers[0].open(cipher.seal(b"value", b""), b"") == b"value" for cipher in ciphers)


def test_refuses_a_nonce_of_another_length() -> None:
    with pytest.raises(ValueError, match="24 bytes"):
        Xaes256Gcm(bytes(32)).encrypt(bytes(12), b"", b"")


def test_threads_share_a_cipher() -> None:
    cipher = Xaes256Gcm(bytes(32))

    def work(number: int) -> bool:
        value = number.to_bytes(4, "big")
        return all(cipher.open(cipher.seal(value, value), value) == value for _ in range(200))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(16), timeout=60))
    finally:
        sys.setswitchinterval(interval)
