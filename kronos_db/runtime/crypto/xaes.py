"""XAES-256-GCM: AES-256-GCM with nonces long enough to be random for ever (c2sp.org/XAES-256-GCM)."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32
NONCE_SIZE = 24
TAG_SIZE = 16

# The half of the nonce that the message's key is derived from, and the other one, which AES-GCM takes.
_HEAD_SIZE = 12
# Seals under one derived key: so few that random nonces of 96 bits do not meet (one chance in 2^64).
_SEALS = 1 << 16
# Derived keys that a key remembers for opening, of 300 bytes each.
_DERIVED = 4096

_BLOCK_BITS = 128
# What the two counter blocks of the key derivation (NIST SP 800-108r1, CMAC) begin with; half of the nonce follows.
_COUNTER_BLOCKS = int.from_bytes(b"\x00\x01X\x00".ljust(16, b"\0") + b"\x00\x02X\x00".ljust(16, b"\0"), "big")
# Multiplying a 128-bit number by this writes it twice, side by side.
_TWICE = 1 << _BLOCK_BITS | 1
# The reduction polynomial of CMAC's subkeys for 128-bit blocks (NIST SP 800-38B).
_R128 = 0b10000111


class _BlockCipher(threading.local):
    """AES-256 on whole blocks. One context per thread: those of `cryptography` must not be shared."""

    def __init__(self, key: bytes) -> None:
        # Not a mode of encryption here: CMAC is made of single blocks.
        self.encrypt = Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update  # noqa: S305


class _Derived(NamedTuple):
    """The AES-256-GCM key that belongs to one half of a nonce, and when it is to be left."""

    head: bytes
    cipher: AESGCM
    ends: int


class Xaes256Gcm:
    """XAES-256-GCM under one key of 32 bytes; from any thread.

    The first half of a nonce gives the AES-256-GCM key of the message: CMAC over one whole block, twice. `cryptography`
    has that derivation as KBKDFCMAC; done here with what can be kept per key it takes a fifth of the time. What is
    sealed one after the other shares a random first half, 2^16 times at most, and so the derivation; second halves
    are random. That is safe for 2^64 messages and more: each derived key seals few, and hardly ever are two the same.
    """

    def __init__(self, key: bytes) -> None:
        self._blocks = _BlockCipher(key)
        doubled = int.from_bytes(self._blocks.encrypt(bytes(16)), "big") << 1
        subkey = doubled ^ _R128 ^ 1 << _BLOCK_BITS if doubled >> _BLOCK_BITS else doubled
        self._mask = _COUNTER_BLOCKS ^ subkey * _TWICE
        self._cipher = lru_cache(_DERIVED)(self._derive)
        self._seals = 0
        self._sealing = self._fresh()

    def encrypt(self, nonce: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
        """Return ciphertext and tag (16 bytes more than `plaintext`). `nonce`: 24 bytes, never used twice."""
        return self._cipher_of(nonce).encrypt(nonce[_HEAD_SIZE:], plaintext, associated_data)

    def decrypt(self, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
        """Return the plaintext. Raises `cryptography.exceptions.InvalidTag` when anything was altered."""
        return self._cipher_of(nonce).decrypt(nonce[_HEAD_SIZE:], ciphertext, associated_data)

    def seal(self, plaintext: bytes, associated_data: bytes) -> bytes:
        """Return a nonce, ciphertext and tag: 40 bytes more than `plaintext`."""
        sealing = self._sealing
        # Threads that count at once count less: a few seals more under one key.
        self._seals += 1
        if self._seals >= sealing.ends:
            sealing = self._sealing = self._fresh()
        tail = os.urandom(NONCE_SIZE - _HEAD_SIZE)
        return sealing.head + tail + sealing.cipher.encrypt(tail, plaintext, associated_data)

    def open(self, sealed: bytes, associated_data: bytes) -> bytes:
        """Return what `seal` was given. Raises `InvalidTag` when anything was altered or cut off."""
        if len(sealed) < NONCE_SIZE + TAG_SIZE:
            raise InvalidTag
        return self.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], associated_data)

    def _fresh(self) -> _Derived:
        head = os.urandom(_HEAD_SIZE)
        return _Derived(head, self._cipher(head), self._seals + _SEALS)

    def _cipher_of(self, nonce: bytes) -> AESGCM:
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"the nonce must have {NONCE_SIZE} bytes")
        return self._cipher(nonce[:_HEAD_SIZE])

    def _derive(self, head: bytes) -> AESGCM:
        blocks = int.from_bytes(head, "big") * _TWICE ^ self._mask
        return AESGCM(self._blocks.encrypt(blocks.to_bytes(32, "big")))
