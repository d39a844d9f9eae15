"""Pages of listings (AIP-158): sizes, and opaque tokens that continue where the page before ended."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from kronos_db.runtime.errors import FieldViolation, PageTokenError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
_MAC_BYTES = 16


def page_size(requested: int) -> int:
    """Return the size of a page: 0 means the default, too large means the largest; validation refuses negative ones."""
    return min(requested, MAX_PAGE_SIZE) if requested else DEFAULT_PAGE_SIZE


class PageTokens:
    """Makes and reads page tokens.

    A token holds the key of the last row and a MAC over it and over the request that it belongs to: altered tokens, and
    tokens of another listing or with other filters, are refused.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, request: Message, last: Sequence[str]) -> str:
        """Return the token of the page after the row whose sort key is `last`."""
        payload = json.dumps(list(last), separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(request, payload) + payload).rstrip(b"=").decode()

    def read(self, request: Any) -> list[str] | None:
        """Return the sort key of the last row of the page before; None for the first page.

        Raises PageTokenError for a token that was not made for this request.
        """
        token: str = request.page_token
        if not token:
            return None
        try:
            raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _refused() from None
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(request, payload)):
            raise _refused()
        last: list[str] = json.loads(payload)
        return last

    def _mac(self, request: Any, payload: bytes) -> bytes:
        # What may differ between two pages of one listing is left out; all the rest are filters and order.
        filters = type(request)()
        filters.CopyFrom(request)
        filters.ClearField("page_token")
        filters.ClearField("page_size")
        name = request.DESCRIPTOR.full_name.encode()
        body = filters.SerializeToString(deterministic=True)
        return hmac.digest(self._key, b"\0".join((name, str(len(body)).encode(), body, payload)), "sha256")[:_MAC_BYTES]


def _refused() -> PageTokenError:
    return PageTokenError(violations=[FieldViolation("page_token", "is not one of this listing with these filters")])
