"""Stands in for Users and Tokens where they are not built: nobody is known, and nobody may anything."""

from __future__ import annotations

from collections.abc import Sequence

from kronos_db.routes.model import Identity


class Strangers:
    """Both `Access` and `Identities`."""

    def active(self, user_ids: Sequence[str]) -> frozenset[str]:
        """Return nobody."""
        del user_ids
        return frozenset()

    def may(self, questions: Sequence[tuple[str, str, str]]) -> list[bool]:
        """Refuse."""
        return [False] * len(questions)

    def identify(self, tokens: Sequence[str]) -> Sequence[Identity | None]:
        """Know nobody."""
        return [None] * len(tokens)
