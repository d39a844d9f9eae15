"""Makes typed values of the contract of what PostgreSQL writes, by the type of the column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime

from kronos.admin.v1 import query_pb2 as pb

from kronos_db.admin.query_store import Column
from kronos_db.runtime.timestamps import set_timestamp

# Fills a value with what PostgreSQL wrote.
Fill = Callable[[pb.QueryValue, str], None]

# Offsets of time zones that PostgreSQL writes without minutes, which Python wants to see.
_SHORT_OFFSET = re.compile(r"[+-]\d\d$")
# An array may begin with its bounds.
_BOUNDS = re.compile(r"^(\[-?\d+:-?\d+\])+=")
# A quoted element, or one that is not: up to what ends it.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PLAIN = re.compile(r"[^,{}]+")


def _fill_bool(value: pb.QueryValue, text: str) -> None:
    value.bool_value = text == "t"


def _fill_int(value: pb.QueryValue, text: str) -> None:
    value.int64_value = int(text)


def _fill_double(value: pb.QueryValue, text: str) -> None:
    value.double_value = float(text)


def _fill_decimal(value: pb.QueryValue, text: str) -> None:
    value.decimal_value = text


def _fill_text(value: pb.QueryValue, text: str) -> None:
    value.text_value = text


def _fill_bytes(value: pb.QueryValue, text: str) -> None:
    value.bytes_value = bytes.fromhex(text.removeprefix("\\x"))


def _fill_json(value: pb.QueryValue, text: str) -> None:
    value.json_value = text


def _fill_timestamp(value: pb.QueryValue, text: str) -> None:
    try:
        moment = datetime.fromisoformat(text + ":00" if _SHORT_OFFSET.search(text) else text)
    except ValueError:
        # Infinity, and years that Python does not know.
        value.text_value = text
        return
    set_timestamp(value.timestamp_value, moment)


# By oid.
_FILLS: Mapping[int, Fill] = {
    16: _fill_bool,
    17: _fill_bytes,
    20: _fill_int,
    21: _fill_int,
    23: _fill_int,
    26: _fill_int,
    114: _fill_json,
    700: _fill_double,
    701: _fill_double,
    1184: _fill_timestamp,
    1700: _fill_decimal,
    3802: _fill_json,
}


def filler(column: Column) -> Fill:
    """Return what fills values of a column."""
    if not column.element:
        return _FILLS.get(column.oid, _fill_text)
    element = _FILLS.get(column.element, _fill_text)
    return lambda value, text: _fill_array(value.array_value, text, element)


def _fill_array(array: pb.QueryArray, text: str, element: Fill) -> None:
    """Fill an array of any number of dimensions from the form `{1,NULL,"a, b",{…}}`."""
    text = _BOUNDS.sub("", text)
    # The array itself is made whole, also when it is empty.
    array.SetInParent()
    open_arrays = [array]
    place = 1
    while open_arrays:
        sign = text[place]
        if sign == "{":
            inner = open_arrays[-1].values.add().array_value
            inner.SetInParent()
            open_arrays.append(inner)
            place += 1
        elif sign == "}":
            open_arrays.pop()
            place += 1
        elif sign == ",":
            place += 1
        else:
            place = _fill_element(open_arrays[-1].values.add(), text, place, element)


def _fill_element(value: pb.QueryValue, text: str, place: int, element: Fill) -> int:
    """Fill one element that begins at `place`; return where it ends."""
    quoted = _QUOTED.match(text, place)
    if quoted is not None:
        element(value, re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL))
        return quoted.end()
    plain = _PLAIN.match(text, place)
    if plain is None:
        raise ValueError("not an array")
    if plain[0] == "NULL":
        value.null_value = 0  # type: ignore[assignment]  # the only value of its enum
    else:
        element(value, plain[0])
    return plain.end()
