"""Which attribute keys are sensitive or name the subject, and what all others look like in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import Literal, NamedTuple, TypeAlias

from kronos_db.logs.model import RefusedError

Treatment: TypeAlias = Literal["sealed", "redacted", "subject"]

_LONGEST = 256
# Keys that a process remembers; more are spelled anew each time.
_REMEMBERED = 10_000


class Special(NamedTuple):
    """A key whose values are not stored as they come, or are more than a value."""

    treatments: frozenset[Treatment]
    # The name in the settings, for all keys that it stands for.
    name: str


class Keys:
    """The keys of a process.

    A name of the settings stands for the key itself and for every key that ends in it behind a dot, in any case:
    `password` for `user.password` and `DB.Password`.
    """

    def __init__(self, sealed: Iterable[str], redacted: Iterable[str], subject: str) -> None:
        self._subject = subject
        self._treated: dict[str, Treatment] = {name.lower(): "sealed" for name in sealed}
        self._treated |= {name.lower(): "redacted" for name in redacted}
        # Of keys whose values need no look: the key as it begins its entry in JSON.
        self.plain: dict[str, str] = {}
        self._special: dict[str, Special] = {}

    def special(self, key: str) -> Special | None:
        """Return what is to be done with the values of a key; None, and the key is in `plain`, when nothing is.

        Raises RefusedError for what is no key.
        """
        if key in self.plain:
            return None
        known = self._special.get(key)
        if known is None:
            known = self._look_at(key)
            if known.treatments and len(self._special) < _REMEMBERED:
                self._special[key] = known
        return known if known.treatments else None

    def begin(self, key: str) -> str:
        """Return a key as it begins its entry in JSON."""
        return self.plain.get(key) or encode_basestring(key) + ":"

    def _look_at(self, key: str) -> Special:
        if not 0 < len(key) <= _LONGEST:
            raise RefusedError("ATTRIBUTE_KEY_INVALID", ".key", f"must have 1 to {_LONGEST} characters")
        if "\0" in key:
            raise RefusedError("TEXT_HAS_NUL", ".key", "must not contain U+0000")
        treatments: set[Treatment] = set()
        lowered = key.lower()
        name = next((name for name in _endings(lowered) if name in self._treated), "")
        if name:
            treatments.add(self._treated[name])
        if key == self._subject:
            treatments.add("subject")
        if not treatments and len(self.plain) < _REMEMBERED:
            self.plain[key] = encode_basestring(key) + ":"
        return Special(frozenset(treatments), name)


def _endings(key: str) -> Iterable[str]:
    """Yield a key and what follows each of its dots."""
    yield key
    while "." in key:
        key = key.partition(".")[2]
        yield key
