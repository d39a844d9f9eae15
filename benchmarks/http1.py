"""The client's side of HTTP/1.1 (RFC 9112) with keep-alive, as bytes in and bytes out: one GET after the other."""

from __future__ import annotations

import re

from benchmarks.tally import Tally

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Http1Calls:
    """One connection with one call in flight until the tally gives no more. Requests are as `get` returns them."""

    def __init__(self, tally: Tally) -> None:
        self.in_flight = 0
        self._tally = tally
        self._started = 0.0
        self._rest = b""

    def open(self, now: float) -> bytes:
        """Return the first request."""
        request = self._tally.request()
        if request is None:
            return b""
        self.in_flight, self._started = 1, now
        return request

    def receive(self, data: bytes, now: float) -> bytes:
        """Take what the server sent at `now`; return the next request. Raises ConnectionError for a strange answer."""
        self._rest += data
        head, found, body = self._rest.partition(_HEAD_END)
        if not found:
            return b""
        length = _LENGTH.search(head + b"\r\n")
        if length is None:
            raise ConnectionError("the server did not tell the length of its answer")
        if len(body) < int(length[1]):
            return b""
        self._rest = b""
        self.in_flight = 0
        self._tally.done(now - self._started, head.startswith(b"HTTP/1.1 200 "))
        return self.open(now)


def get(host: str, path: str) -> bytes:
    """Return a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n\r\n".encode("ascii")
