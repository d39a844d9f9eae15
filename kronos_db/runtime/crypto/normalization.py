"""Brings values to the one form in which they are compared."""

from __future__ import annotations

import enum
import functools
import re
import unicodedata
from collections.abc import Callable, Mapping

# Unicode property Default_Ignorable_Code_Point, which NFKC_Casefold removes. Unassigned code points that will
# have the property are in it already, so it does not grow with new versions of Unicode.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)


class Normalization(enum.IntEnum):
    """How a value is normalised; names and numbers are those of kronos.options.v1.Normalization."""

    UNSPECIFIED = 0
    CASELESS = 1
    PHONE = 2


def normalize(value: str, normalization: Normalization) -> str:
    """Return `value` in its one form; normalising twice changes nothing more."""
    return _NORMALIZERS[normalization](value)


def caseless(value: str) -> str:
    """Return toNFKC_Casefold(NFD(value)) (Unicode 3.13, R5 and D147) without white space around it."""
    if value.isascii():
        return value.strip().lower()
    mapped = "".join(map(_nfkc_casefold, unicodedata.normalize("NFD", value)))
    # Trimmed last: compatibility forms (U+00A8) and what was ignored may leave white space at the ends.
    return unicodedata.normalize("NFC", mapped).strip()


@functools.lru_cache(maxsize=4096)
def _nfkc_casefold(char: str) -> str:
    """Return the Unicode property NFKC_Casefold of one character, which Python's `unicodedata` lacks."""
    # Once is not enough: compatibility forms may hide capitals.
    for _ in range(2):
        char = unicodedata.normalize("NFKC", _IGNORABLE.sub("", char.casefold()))
    return char


def phone(value: str) -> str:
    """Return the decimal digits of `value` as ASCII, after a plus when one stands before the first digit."""
    plain = unicodedata.normalize("NFKC", value)
    digits = "".join(filter(str.isdecimal, plain))
    if not digits.isascii():
        digits = "".join(str(unicodedata.decimal(digit)) for digit in digits)
    return "+" + digits if _LEADING_PLUS.match(plain) else digits


_LEADING_PLUS = re.compile(r"\D*\+")

_NORMALIZERS: Mapping[Normalization, Callable[[str], str]] = {
    Normalization.UNSPECIFIED: str,
    Normalization.CASELESS: caseless,
    Normalization.PHONE: phone,
}
