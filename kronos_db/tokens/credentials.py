"""The text of tokens: made, hashed, and taken apart again.

`krs_` MARK ID SECRET CHECKSUM: the kind; 8 hexadecimal digits that name deployment and pepper; 32 of the token's id;
43 random digits of base 62, which are 256 bits; and the CRC-32 of all before it, 8 hexadecimal digits.
docs/decisions/0011-tokens.md has the reasons.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from kronos_db.runtime.crypto.master_key import MasterKeys
from kronos_db.runtime.errors import KeyUnavailableError
from kronos_db.tokens.model import Kind, Reason

# What secret scanners look for; the contract and docs/operations.md tell it too.
FORM = re.compile(r"kr[srak]_([0-9a-f]{8})([0-9a-f]{32})[0-9A-Za-z]{43}[0-9a-f]{8}", re.ASCII)
_PREFIXES = {Kind.SESSION: "krs_", Kind.REFRESH: "krr_", Kind.ACCESS: "kra_", Kind.API_KEY: "krk_"}
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]
_SECRET_DIGITS = 43
# What digit a random byte stands for: the last eight of 256 stand for none, or eight digits would be likelier.
_DIGIT_OF = (_DIGITS * 5)[:256].encode()
_NO_DIGIT = bytes(range(len(_DIGITS) * 4, 256))
# Random bytes drawn for a secret: 62 of them stand for digits on average.
_DRAWN = 64
_CHECKSUM = 8
_MARK_BYTES = 4


class Presented(NamedTuple):
    """What a text says: the id (32 hexadecimal digits), and the keyed hash of the whole text."""

    id: str
    hash: bytes


@dataclass(frozen=True, slots=True)
class Secret:
    """A token that was made: the text to give away, and what is kept. No tuple: JSON would show the text of one."""

    text: str = field(repr=False)
    hash: bytes
    mark: str


@dataclass(frozen=True, slots=True)
class _Pepper:
    mark: str
    hash_key: bytes = field(repr=False)
    derive_key: bytes = field(repr=False)


class Credentials:
    """Makes and reads the texts of tokens.

    There is a pepper for each master key, derived from it: the current one's hashes new tokens, all of them are known.
    `deployment` is a secret of the database, so that two of them never share a mark.
    """

    def __init__(self, masters: MasterKeys, deployment: bytes, jwt_key: bytes) -> None:
        peppers = [_pepper(masters, key_id, deployment) for key_id in masters.ids]
        self._current = peppers[0]
        self._peppers = {pepper.mark: pepper for pepper in peppers}
        self._hash_keys = {pepper.mark: pepper.hash_key for pepper in peppers}
        self._jwt_key = jwt_key

    @property
    def mark(self) -> str:
        """The mark of new tokens."""
        return self._current.mark

    def make(self, kind: Kind, token_id: UUID) -> Secret:
        """Return a new text."""
        return _secret(kind, token_id, _random_digits(), self._current)

    def succeed(self, kind: Kind, token_id: UUID, predecessor: str, mark: str | None = None) -> Secret:
        """Return the text of what a refresh token is exchanged for: always the same for these arguments.

        It takes the predecessor's own text and a key that is not in the database, so neither alone gives it. `mark` is
        of the pepper that it was first made with, by default the current one. Raises KeyUnavailableError.
        """
        pepper = self._current if mark is None else self._peppers.get(mark)
        if pepper is None:
            raise KeyUnavailableError(f"the pepper of the mark {mark} is gone")
        bits = hmac.digest(pepper.derive_key, token_id.bytes + predecessor.encode(), "sha256")
        return _secret(kind, token_id, _base62(bits), pepper)

    def read(self, text: str) -> Presented | Reason:
        """Take a text apart; return why when it is none of ours. Nothing is looked up for it."""
        found = FORM.fullmatch(text)
        if found is None:
            return Reason.MALFORMED
        encoded = text.encode()
        if f"{zlib.crc32(encoded[:-_CHECKSUM]):08x}" != text[-_CHECKSUM:]:
            return Reason.MALFORMED
        mark, token_id = found.groups()
        key = self._hash_keys.get(mark)
        if key is None:
            return Reason.FOREIGN
        return Presented(token_id, hmac.digest(key, encoded, "sha256"))

    def jwt_record_id(self, jwt_id: str) -> str:
        """Return the id of the JWT with this `jti`: 32 hexadecimal digits of a UUIDv8."""
        digest = hmac.digest(self._jwt_key, jwt_id.encode(), "sha256")
        number = int.from_bytes(digest[:16], "big")
        return f"{number & ~(0xF << 76) & ~(0b11 << 62) | 0x8 << 76 | 0b10 << 62:032x}"


def _pepper(masters: MasterKeys, key_id: str, deployment: bytes) -> _Pepper:
    hash_key = masters.derive("token-pepper", key_id)
    # Shown to everybody: made of a key of its own, of which it tells nothing.
    mark = hmac.digest(masters.derive("token-mark", key_id), deployment, "sha256")[:_MARK_BYTES].hex()
    return _Pepper(mark, hash_key, masters.derive("token-succession", key_id))


def _secret(kind: Kind, token_id: UUID, digits: str, pepper: _Pepper) -> Secret:
    body = f"{_PREFIXES[kind]}{pepper.mark}{token_id.hex}{digits}"
    text = f"{body}{zlib.crc32(body.encode()):08x}"
    return Secret(text, hmac.digest(pepper.hash_key, text.encode(), "sha256"), pepper.mark)


def _random_digits() -> str:
    """Return digits of which each is any of the 62 with the same chance: 256 bits of randomness together."""
    digits = b""
    while len(digits) < _SECRET_DIGITS:
        digits = secrets.token_bytes(_DRAWN).translate(_DIGIT_OF, _NO_DIGIT)
    return digits[:_SECRET_DIGITS].decode()


def _base62(bits: bytes) -> str:
    """Return the digits of 256 bits that are given: slower than to draw them, and always the same."""
    number = int.from_bytes(bits, "big")
    pairs = []
    for _ in range(_SECRET_DIGITS // 2):
        number, pair = divmod(number, len(_PAIRS))
        pairs.append(_PAIRS[pair])
    pairs.append(_DIGITS[number])
    pairs.reverse()
    return "".join(pairs)
