"""Takes the indexed members out of JSON values, and brings them into a form whose order as text is theirs."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from kronos_db.cache.model import Index, IndexType
from kronos_db.runtime.errors import BadRequestError

_LONGEST = 512
# Above every text that an index holds: more than so many bytes of the last code point.
END = "\U0010ffff" * (_LONGEST // 4 + 1)
_SIGN = 1 << 63
_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


def indexed(value: bytes, indexes: Sequence[Index], path: str) -> str:
    """Return what of `value` stands in `indexes`, as the text of a PostgreSQL array.

    Raises BadRequestError, at `path`, for a value that is no JSON object or has a member of another type.
    """
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadRequestError.of(path, "must be a JSON object, since the namespace has indexes")
    return f"{{{','.join(_member(document, index, path) for index in indexes)}}}"


def encoded(value: object, kind: IndexType) -> str | None:
    """Return the text that stands for `value` in an index of `kind`; None when it is not of that type."""
    if kind is IndexType.BOOLEAN:
        return "01"[value] if isinstance(value, bool) else None
    if kind is IndexType.NUMBER:
        return _number(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if not isinstance(value, str):
        return None
    if kind is IndexType.TIME:
        return _time(value)
    return value if _is_storable(value) else None


def after_prefix(prefix: str) -> str | None:
    """Return the least text, by code points, above all that begin with `prefix`; None when there is none."""
    while prefix:
        last = ord(prefix[-1]) + 1
        if last in _SURROGATES:
            last = _SURROGATES.stop
        prefix = prefix[:-1]
        if last <= _LAST_CODE_POINT:
            return prefix + chr(last)
    return None


def just_after(text: str) -> str:
    """Return the least text, by code points, above `text`: PostgreSQL has no U+0000."""
    return text + "\1"


def moment(value: datetime) -> str:
    """Return the text that stands for an aware datetime."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def _member(document: dict[str, Any], index: Index, path: str) -> str:
    found: Any = document
    for name in index.path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        return "NULL"
    text = encoded(found, index.type)
    if text is None:
        wanted = f"a {index.type}" + (f" of at most {_LONGEST} bytes" if index.type is IndexType.STRING else "")
        raise BadRequestError.of(path, f"must have {wanted} at {index.path}, which the index {index.name} is over")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _is_storable(value: str) -> bool:
    try:
        return len(value.encode()) <= _LONGEST and "\0" not in value
    except UnicodeEncodeError:
        # JSON can spell half a pair of surrogates.
        return False


def _number(value: float) -> str | None:
    """Return the bits of a double, turned so that their order is that of the numbers, as 16 hexadecimal digits."""
    try:
        number = float(value)
    except OverflowError:
        return None
    if number != number or number in (float("inf"), float("-inf")):  # noqa: PLR0124  # not a number
        return None
    # Zero has two signs.
    (bits,) = struct.unpack(">Q", struct.pack(">d", number + 0.0))
    return f"{bits ^ (_SIGN | (_SIGN - 1)) if bits & _SIGN else bits | _SIGN:016x}"


def _time(value: str) -> str | None:
    try:
        found = datetime.fromisoformat(value)
        return moment(found) if found.tzinfo is not None and "T" in value.upper() else None
    except (ValueError, OverflowError):
        return None
