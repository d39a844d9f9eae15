"""Hashes and checks passwords with Argon2id (RFC 9106)."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from kronos_db.runtime import tracing


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of a check; `upgraded` is a hash with the current parameters when the stored one had others."""

    matches: bool
    upgraded: str | None = None


class Passwords:
    """Argon2id with `memory_kib` KiB and `iterations` passes on one lane."""

    def __init__(self, memory_kib: int, iterations: int) -> None:
        self._hasher = PasswordHasher(time_cost=iterations, memory_cost=memory_kib, parallelism=1, type=Type.ID)
        # Checked when there is no hash to check, so that an unknown user costs the same time as a wrong password.
        self._nobodys = self._hasher.hash("no password hashes to this")

    def hash(self, password: str) -> str:
        """Return the PHC string of `password` with a fresh salt."""
        with tracing.within("argon2id hash", {}, calls_out=False):
            return self._hasher.hash(_prepared(password))

    def check(self, password: str, stored: str | None) -> Verdict:
        """Tell whether `password` is the one of `stored`; None is nobody's and takes as long."""
        try:
            with tracing.within("argon2id verify", {}, calls_out=False):
                self._hasher.verify(stored or self._nobodys, _prepared(password))
        except (VerificationError, InvalidHashError):
            return Verdict(matches=False)
        if stored is None:
            return Verdict(matches=False)
        upgraded = self.hash(password) if self._hasher.check_needs_rehash(stored) else None
        return Verdict(matches=True, upgraded=upgraded)


def _prepared(password: str) -> str:
    # As the OpaqueString profile (RFC 8265) has it: composed and decomposed spellings are one password.
    return unicodedata.normalize("NFC", password)
