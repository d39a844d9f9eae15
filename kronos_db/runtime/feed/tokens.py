"""Resume tokens: where a stream of changes goes on, opaque to callers and safe from being made up."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import zlib

from kronos_db.runtime.database.changes import Position
from kronos_db.runtime.errors import FieldViolation, ResumeTokenError

# Characters of a token, at most; the contract has the same limit. A snapshot lists the transactions in progress, so
# this is room for some thousand of them.
LONGEST = 8192
_MAC_BYTES = 16
_SHORT = 512
# What the payload begins with when it is not compressed: a list of JSON.
_PLAIN = b"["


class ResumeTokens:
    """Makes and reads the resume tokens of one log: a position, and a MAC over it and over the log's name."""

    def __init__(self, key: bytes, log: str) -> None:
        self._key = key
        self._log = log.encode()

    def make(self, position: Position) -> str:
        """Return the token of a position; "" when too many transactions were in progress for any token to hold."""
        payload = _packed(position)
        token = base64.urlsafe_b64encode(self._mac(payload) + payload).rstrip(b"=").decode()
        return token if len(token) <= LONGEST else ""

    def read(self, token: str) -> Position:
        """Return the position of a token. Raises ResumeTokenError when it was not made for this log."""
        try:
            raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _refused() from None
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise _refused()
        return Position(*json.loads(payload if payload[:1] == _PLAIN else zlib.decompress(payload)))

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, self._log + b"\0" + payload, "sha256")[:_MAC_BYTES]


def _packed(position: Position) -> bytes:
    parts = (position.seen, position.until, position.place, position.part, position.history)
    payload = json.dumps(parts, separators=(",", ":")).encode()
    # To begin to compress takes longer than all the rest, and every change has a token.
    return payload if len(payload) <= _SHORT else zlib.compress(payload)


def _refused() -> ResumeTokenError:
    return ResumeTokenError(violations=[FieldViolation("resume_token", "is not one of this stream")])
