"""Values of attributes and bodies as JSON text, and back.

JSON has no bytes, no NaN, and one kind of number. Whole numbers are written without a point and all others with one,
which jsonb keeps. What JSON lacks is an object with one key that begins with `$`: `$bytes` (base64), `$double` (NaN,
Infinity, -Infinity), `$sealed` (the sealed JSON of the value; with `$index`, its keyed hash). Keys of callers that
begin with `$` get another one in front, so none of these can be made up.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring
from typing import Any

from kronos_db.logs.keys import Keys
from kronos_db.logs.model import RefusedError
from kronos_db.runtime.crypto.marks import REDACTION
from kronos_db.runtime.crypto.sealing import Index, Sealer

DEEPEST = 16
MOST_ATTRIBUTES = 256
_FIELD = "kronos.logs.v1.LogRecord.attributes"
_REDACTED = json.dumps(REDACTION)
_SMALLEST, _LARGEST = -(1 << 63), (1 << 63) - 1
# Beyond it a double is written by Python with an exponent, which jsonb would make a whole number of.
_PLAIN_DOUBLES = 1e16


class Spelling:
    """Writes the values of one record. `subject` is what its subject attribute says, once that was met."""

    __slots__ = ("_keys", "_name", "_sealer", "subject")

    def __init__(self, keys: Keys, sealer: Sealer, name: str) -> None:
        self._keys = keys
        self._sealer = sealer
        # What sealed values are bound to.
        self._name = name
        self.subject: str | None = None

    def entry(self, attribute: Any, depth: int) -> str:
        """Return an attribute as an entry of a JSON object, treated as its key asks."""
        key = attribute.key
        special = self._keys.special(key)
        begin = self._keys.begin(f"${key}" if depth > 1 and key.startswith("$") else key)
        if special is None:
            return begin + self.value(attribute.value, depth)
        text = self.value(attribute.value, depth)
        if "subject" in special.treatments and depth == 1:
            self.subject = attribute.value.string_value or text
        if "redacted" in special.treatments:
            return begin + _REDACTED
        return begin + (self.sealed(text, special.name) if "sealed" in special.treatments else text)

    def sealed(self, text: str, name: str) -> str:
        """Return the sealed form of a value's JSON, and its keyed hash by which it is found."""
        value = self._sealer.seal_text(text, _FIELD, self._name, index_of(name))
        return f'{{"$sealed":"{value}","$index":"{value.rpartition(".")[2]}"}}'

    def value(self, value: Any, depth: int) -> str:
        """Return a value as JSON text. Raises RefusedError when it is nested too deep."""
        kind = value.WhichOneof("value")
        spell = SCALARS.get(kind)
        if spell is not None:
            return spell(value)
        if depth >= DEEPEST:
            raise RefusedError("NESTED_TOO_DEEP", "", f"must not be deeper than {DEEPEST}")
        if kind == "array_value":
            return f"[{','.join([self.value(item, depth + 1) for item in value.array_value.values])}]"
        entries = value.kvlist_value.values
        return f"{{{','.join([self.entry(attribute, depth + 1) for attribute in entries])}}}"


def index_of(name: str) -> Index:
    """Return the blind index of the sealed values that a name of the settings stands for."""
    return Index(f"logs.attributes.{name}")


def _double(number: float) -> str:
    if not math.isfinite(number):
        name = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
        return f'{{"$double":"{name}"}}'
    return f"{number:.1f}" if abs(number) >= _PLAIN_DOUBLES else repr(number)


# How values that hold no others are spelled, by their kind.
SCALARS: Mapping[str | None, Callable[[Any], str]] = {
    "string_value": lambda value: encode_basestring(value.string_value),
    "int_value": lambda value: str(value.int_value),
    "bool_value": lambda value: "true" if value.bool_value else "false",
    "double_value": lambda value: _double(value.double_value),
    "bytes_value": lambda value: f'{{"$bytes":"{base64.b64encode(value.bytes_value).decode()}"}}',
    None: lambda _value: "null",
}


class Reading:
    """Makes values of stored JSON, and opens what is sealed in it."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def attributes(self, text: str, add: Callable[[], Any], name: str) -> None:
        """Add the attributes of the record or origin called `name`; `add` makes an empty one."""
        for key, item in json.loads(text).items():
            attribute = add()
            attribute.key = key
            self.fill(attribute.value, item, name)

    def body(self, text: str, value: Any, name: str) -> None:
        """Fill in a structured body."""
        self.fill(value, json.loads(text), name)

    def fill(self, value: Any, item: Any, name: str) -> None:
        """Write one JSON value into an empty Value."""
        if isinstance(item, str):
            value.string_value = item
        elif isinstance(item, bool):
            value.bool_value = item
        elif isinstance(item, int) and _SMALLEST <= item <= _LARGEST:
            value.int_value = item
        elif isinstance(item, int | float):
            value.double_value = item
        elif isinstance(item, list):
            value.array_value.SetInParent()
            for each in item:
                self.fill(value.array_value.values.add(), each, name)
        elif isinstance(item, dict):
            self._fill_object(value, item, name)

    def _fill_object(self, value: Any, item: dict[str, Any], name: str) -> None:
        if "$sealed" in item:
            self.fill(value, json.loads(self._sealer.open_text(item["$sealed"], _FIELD, name)), name)
        elif "$bytes" in item:
            value.bytes_value = base64.b64decode(item["$bytes"])
        elif "$double" in item:
            value.double_value = float(item["$double"])
        else:
            value.kvlist_value.SetInParent()
            for key, each in item.items():
                attribute = value.kvlist_value.values.add()
                attribute.key = key[1:] if key.startswith("$$") else key
                self.fill(attribute.value, each, name)
