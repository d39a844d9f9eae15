"""Sealed objects: what was written comes back, and nothing else ever does."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator

import pytest

from kronos_db.backup.model import BackupDamagedError
from kronos_db.backup.sealed import CHUNK, blocks, seal, unseal

KEY = bytes(range(32))
NAME = "backups/x/base.tar"


def sealed(data: bytes, name: str = NAME, key_id: str = "k", size: int = 1000) -> list[bytes]:
    """Return the header and the chunks."""
    pieces = (data[place : place + size] for place in range(0, len(data), size))
    header, *rest = seal(KEY, key_id, name, pieces)
    return [header, *(head + chunk for head, chunk in zip(rest[::2], rest[1::2], strict=True))]


def opened(data: bytes, name: str = NAME, key: bytes = KEY) -> bytes:
    return b"".join(unseal(io.BytesIO(data), name, lambda _: key))


@pytest.mark.parametrize("data", [b"", b"x", b"same" * 5000, os.urandom(10_000)], ids=["none", "one", "same", "random"])
def test_what_was_sealed_comes_back(data: bytes) -> None:
    assert opened(b"".join(sealed(data))) == data


def test_chunks_of_full_length_come_back_compressible_or_not() -> None:
    data = os.urandom(CHUNK) + bytes(CHUNK) + b"end"
    stream = io.BytesIO(data)
    assert opened(b"".join(seal(KEY, "k", NAME, blocks(stream.readinto)))) == data


def test_equal_content_is_sealed_differently_each_time() -> None:
    assert sealed(b"content") != sealed(b"content")


def without_last(chunks: list[bytes]) -> list[bytes]:
    return chunks[:-1]


def swapped(chunks: list[bytes]) -> list[bytes]:
    return [chunks[0], chunks[2], chunks[1], *chunks[3:]]


def repeated(chunks: list[bytes]) -> list[bytes]:
    return [*chunks, chunks[-1]]


def header_alone(chunks: list[bytes]) -> list[bytes]:
    return chunks[:1]


def of_another(chunks: list[bytes]) -> list[bytes]:
    return [*chunks[:2], sealed(os.urandom(5000))[2], *chunks[3:]]


def cut(chunks: list[bytes]) -> list[bytes]:
    return [*chunks[:-1], chunks[-1][:-1]]


@pytest.mark.parametrize("alter", [without_last, swapped, repeated, header_alone, of_another, cut])
def test_altered_streams_do_not_open(alter: Callable[[list[bytes]], list[bytes]]) -> None:
    chunks = sealed(os.urandom(5000))
    assert len(chunks) == 6
    with pytest.raises(BackupDamagedError):
        opened(b"".join(alter(chunks)))


def test_a_stream_does_not_open_under_another_name_or_key() -> None:
    data = b"".join(sealed(b"content"))
    with pytest.raises(BackupDamagedError):
        opened(data, name="backups/y/base.tar")
    with pytest.raises(BackupDamagedError):
        opened(data, key=bytes(32))


def flips(data: bytes) -> Iterator[bytes]:
    chance = random.Random(5)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= chance.randint(1, 255)
        yield bytes(altered)


def test_no_byte_can_be_changed() -> None:
    data = b"".join(sealed(os.urandom(300), size=100))
    for altered in flips(data):
        with pytest.raises(BackupDamagedError):
            opened(altered)
