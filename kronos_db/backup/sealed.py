"""The form of an object in a destination: compressed, and sealed so that nothing of it can be altered unseen.

    "KDBS" 1 | length of the key's id, one byte | the key's id | 32 random bytes | chunk, chunk, …
    chunk: codec, one byte (0 raw, 1 Zstandard) | length of what follows, 4 bytes | AES-256-GCM of at most 4 MiB of data

The object's key is HKDF-SHA256 of the data key, salted with the random bytes, for the object's name. A chunk's nonce
is its number, its codec, and a byte that is 1 in the last chunk (the STREAM construction: Hoang, Reyhanitabar, Rogaway
and Vizár, CRYPTO 2015), its associated data all before the first chunk, and the name. So chunks that were cut off, put
in another order, or taken from another object, backup or key do not open. Chunks are compressed one by one: threads
work on several at once in both directions.
"""

from __future__ import annotations

import os
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kronos_db.backup.destination import Source
from kronos_db.backup.model import BackupDamagedError

CHUNK = 4 * 1024 * 1024
KEY_SIZE = 32

_MAGIC = b"KDBS\x01"
_KEY_ID = re.compile(rb"[0-9a-z-]{1,64}")
_SALT = 32
_HEAD = struct.Struct(">BI")
_TAG = 16
_RAW, _ZSTD = 0, 1
# The fastest one: the disk is to be the limit, not the processor.
_LEVEL = 1
# A chunk that does not get shorter is stored raw, and its length stays below this.
_LONGEST = CHUNK + _TAG
_THREADS = max(1, min(4, os.cpu_count() or 1))

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Cipher:
    """Seals and opens the chunks of one object, from any thread."""

    def __init__(self, key: bytes, header: bytes, salt: bytes, name: str) -> None:
        info = b"kronos-db backup object\0" + name.encode()
        self._cipher = AESGCM(HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=info).derive(key))
        self._context = header + name.encode()
        self._name = name

    def seal(self, item: tuple[int, bytes, bool]) -> tuple[bytes, bytes]:
        number, data, last = item
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
        codec, body = (_ZSTD, packed) if len(packed) < len(data) else (_RAW, data)
        sealed = self._cipher.encrypt(_nonce(number, codec, last), body, self._context)
        return _HEAD.pack(codec, len(sealed)), sealed

    def open(self, item: tuple[int, tuple[int, bytes], bool]) -> bytes:
        number, (codec, sealed), last = item
        try:
            body = self._cipher.decrypt(_nonce(number, codec, last), sealed, self._context)
        except InvalidTag:
            raise BackupDamagedError(f"{self._name} was altered, cut off, or put in another's place.") from None
        return body if codec == _RAW else zstandard.ZstdDecompressor().decompress(body, max_output_size=CHUNK)


def seal(key: bytes, key_id: str, name: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Return the object `name` that holds `pieces` (of CHUNK bytes at most), in pieces to be stored."""
    salt = os.urandom(_SALT)
    identity = key_id.encode()
    header = _MAGIC + bytes([len(identity)]) + identity + salt
    cipher = _Cipher(key, header, salt, name)
    yield header
    for head, sealed in _in_threads(cipher.seal, _numbered(pieces, b"")):
        yield head
        yield sealed


def unseal(source: Source, name: str, key_of: Callable[[str], bytes]) -> Iterator[bytes]:
    """Return what was sealed as `name`, authenticated piece by piece; `key_of` gives the key of an id.

    Raises BackupDamagedError, at the latest in place of the last piece.
    """
    start = source.read(len(_MAGIC) + 1)
    if len(start) <= len(_MAGIC) or start[:-1] != _MAGIC:
        raise BackupDamagedError(f"{name} does not begin as an object of a backup.")
    rest = source.read(start[-1] + _SALT)
    key_id = _KEY_ID.fullmatch(rest[: start[-1]])
    if key_id is None or len(rest) < start[-1] + _SALT:
        raise BackupDamagedError(f"{name} names no key.")
    cipher = _Cipher(key_of(key_id[0].decode("ascii")), start + rest, rest[start[-1] :], name)
    yield from _in_threads(cipher.open, _numbered(_chunks(source, name), (_RAW, b"")))


def blocks(read: Callable[[memoryview], int | None]) -> Iterator[bytes]:
    """Return what `read` (as RawIOBase.readinto) brings, in pieces of CHUNK bytes and a last one."""
    while True:
        buffer = memoryview(bytearray(CHUNK))
        filled = 0
        while filled < CHUNK and (count := read(buffer[filled:])):
            filled += count
        if filled:
            yield buffer[:filled]  # type: ignore[misc] # a view is as good as bytes to all that take it
        if filled < CHUNK:
            return


def _nonce(number: int, codec: int, last: bool) -> bytes:
    return number.to_bytes(10, "big") + bytes([codec, last])


def _numbered(pieces: Iterable[_Item], nothing: _Item) -> Iterator[tuple[int, _Item, bool]]:
    """Return the pieces with their numbers, the last one marked; `nothing` when there are none."""
    number, waiting = 0, None
    for piece in pieces:
        if waiting is not None:
            yield number, waiting, False
            number += 1
        waiting = piece
    yield number, nothing if waiting is None else waiting, True


def _chunks(source: Source, name: str) -> Iterator[tuple[int, bytes]]:
    while head := source.read(_HEAD.size):
        codec, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (_RAW, 0)
        chunk = source.read(length) if _TAG <= length <= _LONGEST else b""
        if not chunk or len(chunk) < length or codec not in (_RAW, _ZSTD):
            raise BackupDamagedError(f"{name} was cut off or altered.")
        yield codec, chunk


def _in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Return the results in order; several are worked upon at once, and no more than that are held."""
    iterator = iter(items)
    first = next(iterator)
    second = next(iterator, None)
    if second is None:
        # Most objects have one chunk: no threads for them.
        yield work(first)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="seal") as threads:
        try:
            waiting.extend((threads.submit(work, first), threads.submit(work, second)))
            for item in iterator:
                if len(waiting) > _THREADS:
                    yield waiting.popleft().result()
                waiting.append(threads.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
