"""XAES-256-GCM: AES-256-GCM with nonces long enough to be random for ever (c2sp.org/XAES-256-GCM)."""

from __future__ import annotations

import os
import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32
NONCE_SIZE = 24
TAG_SIZE = 16

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


class Xaes256Gcm:
    """XAES-256-GCM under one key of 32 bytes. Safe for 2^80 messages with random nonces; from any thread.

    Each message has its own AES-256-GCM key: CMAC over one whole block, twice. `cryptography` has that derivation as
    KBKDFCMAC; done here with what can be kept per key it takes a fifth of the time.
    """

    __slots__ = ("_blocks", "_mask")

    def __init__(self, key: bytes) -> None:
        self._blocks = _BlockCipher(key)
        doubled = int.from_bytes(self._blocks.encrypt(bytes(16)), "big") << 1
        subkey = doubled ^ _R128 ^ 1 << _BLOCK_BITS if doubled >> _BLOCK_BITS else doubled
        self._mask = _COUNTER_BLOCKS ^ subkey * _TWICE

    def encrypt(self, nonce: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
        """Return ciphertext and tag (16 bytes more than `plaintext`). `nonce`: 24 bytes, never used twice."""
        return self._message_cipher(nonce).encrypt(nonce[12:], plaintext, associated_data)

    def decrypt(self, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
        """Return the plaintext. Raises `cryptography.exceptions.InvalidTag` when anything was altered."""
        return self._message_cipher(nonce).decrypt(nonce[12:], ciphertext, associated_data)

    def seal(self, plaintext: bytes, associated_data: bytes) -> bytes:
        """Return a fresh random nonce, ciphertext and tag: 40 bytes more than `plaintext`."""
        nonce = os.urandom(NONCE_SIZE)
        return nonce + self.encrypt(nonce, plaintext, associated_data)

    def open(self, sealed: bytes, associated_data: bytes) -> bytes:
        """Return what `seal` was given. Raises `InvalidTag` when anything was altered or cut off."""
        if len(sealed) < NONCE_SIZE + TAG_SIZE:
            raise InvalidTag
        return self.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], associated_data)

    def _message_cipher(self, nonce: bytes) -> AESGCM:
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"the nonce must have {NONCE_SIZE} bytes")
        blocks = int.from_bytes(nonce[:12], "big") * _TWICE ^ self._mask
        return AESGCM(self._blocks.encrypt(blocks.to_bytes(32, "big")))
