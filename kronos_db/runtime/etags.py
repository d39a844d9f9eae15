"""Etags (AIP-154) of records that count their changes: the version as decimal digits."""

from __future__ import annotations

from kronos_db.runtime.errors import BadRequestError

# Digits that always fit a bigint.
_MOST_DIGITS = 18


def version_of(etag: str, field: str) -> int | None:
    """Return the version that an etag names, None for no etag. Raises BadRequestError, naming `field`, for others."""
    if not etag:
        return None
    if not etag.isascii() or not etag.isdigit() or len(etag) > _MOST_DIGITS:
        raise BadRequestError.of(field, "is not an etag of this server")
    return int(etag)
