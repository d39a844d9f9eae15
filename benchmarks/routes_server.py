"""A serving process for which everybody is known and may everything: for `benchmarks/routes.py`."""

from __future__ import annotations

import runpy
from collections.abc import Sequence

from kronos_db import server
from kronos_db.routes.strangers import Strangers


class Everybody(Strangers):
    """Knows everybody."""

    def active(self, user_ids: Sequence[str]) -> frozenset[str]:
        """Return all."""
        return frozenset(user_ids)

    def may(self, questions: Sequence[tuple[str, str, str]]) -> list[bool]:
        """Allow."""
        return [True] * len(questions)


if __name__ == "__main__":
    server.Strangers = Everybody  # type: ignore[misc]  # that is what this process is for
    runpy.run_module("kronos_db", run_name="__main__")
