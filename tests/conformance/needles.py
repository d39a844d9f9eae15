"""Finds a value in bytes, in any of the forms in which a careless program leaves it."""

from __future__ import annotations

import base64
from collections.abc import Mapping


def forms(value: str) -> Mapping[str, bytes]:
    """Return the value as it is, in another case, in other encodings, as base64 and as hex."""
    raw = value.encode()
    found = {
        "as it is": raw,
        "upper case": value.upper().encode(),
        "lower case": value.lower().encode(),
        "UTF-16 LE": value.encode("utf-16-le"),
        "UTF-16 BE": value.encode("utf-16-be"),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "reversed": raw[::-1],
    }
    for offset in range(3):
        # Within longer base64 a value has one of three forms; its edges depend on its neighbours.
        encoded = base64.b64encode(b"\0" * offset + raw)
        inner = encoded[4 if offset else 0 : (len(raw) + offset) // 3 * 4]
        found[f"base64 +{offset}"] = inner
        found[f"base64url +{offset}"] = inner.replace(b"+", b"-").replace(b"/", b"_")
    return found


def found_in(haystack: bytes, needles: Mapping[str, str]) -> list[str]:
    """Return which values are in the bytes and in which form; `needles` maps what a value is to the value."""
    return [
        f"{what} {form}"
        for what, value in needles.items()
        for form, needle in forms(value).items()
        if len(needle) >= 8 and needle in haystack
    ]
