"""Finds the field whose text PostgreSQL or the contract cannot take: invalid UTF-8, or U+0000."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}
# Numbers of the fields of a map's entries.
_KEY, _VALUE = 1, 2
# protobuf's own limit.
_MOST_DEPTH = 100
_MOST_FIELDS = 100_000


def find_nul(message: Message) -> str | None:
    """Return the path of the first string, or map key, that holds U+0000; None when none does."""
    return next(_nul_paths(message, ""), None)


def _nul_paths(message: Any, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if _is_map(field):
            for key, item in value.items():
                if isinstance(key, str) and "\0" in key:
                    yield path
                yield from _nul_in(item, f'{path}["{key}"]')
        elif field.is_repeated:
            for index, item in enumerate(value):
                yield from _nul_in(item, f"{path}[{index}]")
        else:
            yield from _nul_in(value, path)


def _nul_in(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str) and "\0" in value:
        yield path
    elif isinstance(value, Message):
        yield from _nul_paths(value, path + ".")


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def find_invalid_utf8(descriptor: Descriptor, raw: bytes) -> str | None:
    """Return the path of the first `string` field of the encoded message that is not UTF-8; None when none is found.

    For messages that the parser refused: it does not say where. Stops at the first byte that makes no sense, at the
    depth at which the parser does, and after so many fields that a hostile message costs little.
    """
    try:
        return next(_invalid_paths(descriptor, raw, "", _MOST_DEPTH, iter(range(_MOST_FIELDS))), None)
    except IndexError:
        return None


def _invalid_paths(descriptor: Descriptor, raw: bytes, prefix: str, depth: int, budget: Iterator[int]) -> Iterator[str]:
    seen: dict[int, int] = {}
    for number, payload in _length_delimited(raw):
        if next(budget, None) is None:
            return
        field = descriptor.fields_by_number.get(number)
        if field is None:
            continue
        path = prefix + field.name
        if field.message_type is not None and _is_map(field):
            yield from _invalid_in_entry(field.message_type, payload, path, depth, budget)
            continue
        if field.is_repeated:
            path += f"[{seen.setdefault(number, 0)}]"
            seen[number] += 1
        yield from _invalid_in(field, payload, path, depth, budget)


def _invalid_in(field: FieldDescriptor, payload: bytes, path: str, depth: int, budget: Iterator[int]) -> Iterator[str]:
    if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(payload):
        yield path
    elif field.message_type is not None and depth:
        yield from _invalid_paths(field.message_type, payload, path + ".", depth - 1, budget)


def _invalid_in_entry(entry: Descriptor, payload: bytes, path: str, depth: int, budget: Iterator[int]) -> Iterator[str]:
    """Look at one entry of a map; a key at fault has the path of the map, as in `find_nul`."""
    parts = dict(_length_delimited(payload))
    key = parts.get(_KEY, b"")
    if not _is_utf8(key):
        yield path
    elif _VALUE in parts:
        yield from _invalid_in(
            entry.fields_by_number[_VALUE], parts[_VALUE], f'{path}["{key.decode()}"]', depth, budget
        )


def _length_delimited(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and payload of the length-delimited fields of one encoded message."""
    position = 0
    while position < len(raw):
        tag, position = _varint(raw, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH_DELIMITED:
            size, position = _varint(raw, position)
            yield number, raw[position : position + size]
            position += size
        elif wire_type in _FIXED_SIZES:
            position += _FIXED_SIZES[wire_type]
        elif wire_type == 0:
            _, position = _varint(raw, position)
        else:
            return


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80 or shift > 63:  # noqa: PLR2004
            return value, position


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
