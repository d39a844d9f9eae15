"""The sealed form of values: encrypted, bound to their field and record, and still findable by a blind index.

Version 1. The box is: version (1 byte, 0x01), id of the data key (16), nonce (24), XAES-256-GCM ciphertext and tag
(16). In a `string` field it is `k1.BOX` or, with an exact-match index, `k1.BOX.INDEX`, both base64url without padding
(RFC 4648 section 5), so `split_part(value, '.', 3)` is the index. In a `bytes` field it is: length of the index (1
byte, 0 or 32), index, box, so `substring(value from 2 for get_byte(value, 0))` is the index.

Associated data: version, key id, field's full name, record id, index as it stands in the value. The plaintext is padded
to whole blocks of 32 bytes (ISO/IEC 7816-4: 0x80, then zeros), so that a length shows in steps alone.
"""

from __future__ import annotations

import base64
import binascii
import functools
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from kronos_db.runtime.crypto.keyring import KeyRing, Purpose
from kronos_db.runtime.crypto.normalization import Normalization, normalize
from kronos_db.runtime.errors import SealBrokenError

PADDED_TO = 32
# Opened values that a process remembers; about half a kilobyte each.
REMEMBERED = 16_384

_MARK = "k1"
_VERSION = b"\x01"
_KEY_ID_END = 17
_INDEX_SIZE = 32
_INDEX_TEXT_SIZE = 43
# The URL-safe alphabet in terms of the standard one, whose own characters become foreign; and what fills up a text.
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/!!!")
_PADDED = (b"", b"!", b"==", b"=")
# What a text may end in, by how many characters stand in its last four: the decoder skips spare bits, and one value has
# one text.
_ENDS = ("", "", "AQgw", "AEIMQUYcgkosw048")
# What fills up a value with so many bytes in its last block: one at least, so that there is always an end to find.
_PADDINGS = tuple(b"\x80" + bytes(PADDED_TO - 1 - length) for length in range(PADDED_TO))
_UUID_TEXT_SIZE = (36).to_bytes(4, "big")
_NO_INDEX = bytes(4)


@dataclass(frozen=True, slots=True)
class Index:
    """An exact-match index: fields that name the same one can be compared for equality without being opened."""

    name: str
    normalization: Normalization = Normalization.UNSPECIFIED


class Opener(Protocol):
    """What opens sealed values: `Sealer` says how."""

    def open_text(self, sealed: str, field: str, record_id: str) -> str:
        """Return what is sealed in a `string` field."""

    def open_bytes(self, sealed: bytes, field: str, record_id: str) -> bytes:
        """Return what is sealed in a `bytes` field."""


class _NotOpenedError(Exception):
    """Why a value does not open."""


class Sealer:
    """Seals and opens the values of one domain; usable from any thread.

    `field` is always the full name in the contract (`kronos.users.v1.User.email`), `record_id` the canonical text of
    the record's UUID. Opening raises SealBrokenError for whatever was not sealed for this field and record, and
    KeyUnavailableError when the key cannot be had now.
    """

    def __init__(self, ring: KeyRing, remembered: int = REMEMBERED) -> None:
        self._ring = ring
        self._index_macs: dict[str, HMAC] = {}
        # What a sealed value opens to never changes, so what was opened of late is remembered: whoever can read this
        # memory can read the key beside it. Failures are not remembered.
        self._remembered = functools.lru_cache(maxsize=remembered)(self._open_text)

    def seal_text(self, value: str, field: str, record_id: str, index: Index | None = None) -> str:
        """Return the sealed form of a `string` field."""
        index_text = self.blind_index(value, index) if index else ""
        box = _encode(self._seal(value.encode(), field, record_id, index_text.encode()))
        return f"{_MARK}.{box}.{index_text}" if index else f"{_MARK}.{box}"

    def open_text(self, sealed: str, field: str, record_id: str) -> str:
        """Return what `seal_text` was given."""
        return self._remembered(sealed, field, record_id)

    def forget(self) -> None:
        """Forget what was opened: to be called when a key is erased."""
        self._remembered.cache_clear()

    def _open_text(self, sealed: str, field: str, record_id: str) -> str:
        try:
            box, index_text = _split_text(sealed)
            return self._open(box, field, record_id, index_text.encode()).decode()
        except _NotOpenedError as error:
            raise _broken(field, record_id, str(error)) from None
        except UnicodeError:
            raise _broken(field, record_id, "it is not text") from None

    def seal_bytes(self, value: bytes, field: str, record_id: str, index: Index | None = None) -> bytes:
        """Return the sealed form of a `bytes` field."""
        if index is None:
            return b"\0" + self._seal(value, field, record_id, b"")
        tag = self.blind_index_bytes(value, index)
        return bytes((len(tag),)) + tag + self._seal(value, field, record_id, tag)

    def open_bytes(self, sealed: bytes, field: str, record_id: str) -> bytes:
        """Return what `seal_bytes` was given."""
        try:
            box, tag = _split_bytes(sealed)
            return self._open(box, field, record_id, tag)
        except _NotOpenedError as error:
            raise _broken(field, record_id, str(error)) from None

    def blind_index(self, value: str, index: Index) -> str:
        """Return the keyed hash of a normalised value as it stands in the sealed form: 43 characters of base64url."""
        return _encode(self._index_mac(normalize(value, index.normalization).encode(), index.name))

    def blind_index_bytes(self, value: bytes, index: Index) -> bytes:
        """Return the keyed hash of a value byte for byte, as it stands in the sealed form: 32 bytes."""
        return self._index_mac(value, index.name)

    def _seal(self, plaintext: bytes, field: str, record_id: str, index: bytes) -> bytes:
        key = self._ring.seal_key()
        head = _VERSION + key.id_bytes
        padded = plaintext + _PADDINGS[len(plaintext) % PADDED_TO]
        return head + key.cipher.seal(padded, _associated_data(head, field, record_id, index))

    def _open(self, box: bytes, field: str, record_id: str, index: bytes) -> bytes:
        head = box[:_KEY_ID_END]
        if len(head) < _KEY_ID_END or not head.startswith(_VERSION):
            raise _NotOpenedError("it is too short or of an unknown version")
        key = self._ring.key(head[1:])
        if key is None or key.purpose is not Purpose.SEAL:
            raise _NotOpenedError(f"there is no data key {head[1:].hex()}")
        try:
            padded = key.cipher.open(box[_KEY_ID_END:], _associated_data(head, field, record_id, index))
        except InvalidTag:
            raise _NotOpenedError("it was altered, cut off, or moved from another field or record") from None
        plaintext, end, zeros = padded.rpartition(b"\x80")
        if not end or zeros.strip(b"\0"):
            raise _NotOpenedError("its padding is not of this version")
        return plaintext

    def _index_mac(self, value: bytes, name: str) -> bytes:
        base = self._index_macs.get(name)
        if base is None:
            # A key per index: equal values of two indexes must not be seen to be equal.
            base = self._index_macs[name] = HMAC(self._ring.subkey(f"blind index: {name}"), SHA256())
        mac = base.copy()
        mac.update(value)
        return mac.finalize()


def _associated_data(head: bytes, field: str, record_id: str, index: bytes) -> bytes:
    # Every part of variable length is framed, so two different lists of parts never give the same bytes.
    record = record_id.encode()
    size = _UUID_TEXT_SIZE if len(record) == 36 else len(record).to_bytes(4, "big")  # noqa: PLR2004  # as above
    if not index:
        return b"".join((_framed(head, field), size, record, _NO_INDEX))
    return b"".join((_framed(head, field), size, record, len(index).to_bytes(4, "big"), index))


@functools.lru_cache(maxsize=1024)
def _framed(head: bytes, field: str) -> bytes:
    name = field.encode()
    return head + len(name).to_bytes(4, "big") + name


def _split_text(sealed: str) -> tuple[bytes, str]:
    mark, _, rest = sealed.partition(".")
    box_text, dot, index_text = rest.partition(".")
    if mark != _MARK or len(index_text) != (_INDEX_TEXT_SIZE if dot else 0):
        raise _NotOpenedError("it is not a sealed value of this version")
    return _decode(box_text), index_text


def _split_bytes(sealed: bytes) -> tuple[bytes, bytes]:
    size = sealed[0] if sealed else -1
    if size not in (0, _INDEX_SIZE):
        raise _NotOpenedError("it is not a sealed value of this version")
    return sealed[1 + size :], sealed[1 : 1 + size]


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    rest = len(text) % 4
    try:
        value = binascii.a2b_base64(text.encode().translate(_TO_STANDARD) + _PADDED[rest], strict_mode=True)
    except ValueError:
        raise _NotOpenedError("it is not base64url") from None
    if rest and text[-1] not in _ENDS[rest]:
        raise _NotOpenedError("it is not base64url")
    return value


def _broken(field: str, record_id: str, why: str) -> SealBrokenError:
    return SealBrokenError(f"{field} of record {record_id} does not open: {why}", metadata={"field": field})
