"""What can go wrong with the parts that the server starts itself."""

from __future__ import annotations

from kronos_db.runtime.errors import KronosError


class EmbeddedError(KronosError):
    """An embedded part cannot be started or stopped; the text is one sentence for the operator."""


class StartCancelledError(EmbeddedError):
    """Whoever started the part wants it no longer."""
