"""The client's side of gRPC over HTTP/2 (RFC 9113) for unary calls, as bytes in and bytes out, made for load.

grpcio's own client costs several times what these few frames cost, and takes that from the server beside it. What is
spared: requests are framed once, headers stand in the table of HPACK (RFC 7541) after the first call, answers are
counted and not decoded. A call has succeeded when its stream ended after a message: grpcio sends a status other than
OK without one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from benchmarks.tally import Tally

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = struct.Struct(">BHBBL")
_SETTING = struct.Struct(">HL")

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 0x1
_END_HEADERS = 0x4

_ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 2, 3, 4
_DEFAULT_WINDOW = 65_535
# What a frame may carry, and the table of headers may hold, unless a server allows more.
_LARGEST_FRAME = 16_384
_TABLE_SIZE, _ENTRY_OVERHEAD = 4_096, 32
# What a server may send before it hears from us again.
_OUR_WINDOW = 1 << 30

# Entries of the static table of HPACK: `:method: POST`, `:scheme: http`; and the place of the newest dynamic one.
_FIXED_FIELDS = b"\x83\x86"
_NEWEST = 62


class Http2Calls:
    """One connection with `calls` calls in flight until the tally gives no more.

    Its requests are messages as `framed` returns them, each short enough for one frame. `headers` are those of every
    call, pseudo-headers first, without `:method` and `:scheme`.
    """

    def __init__(self, tally: Tally, headers: Sequence[tuple[str, str]], calls: int) -> None:
        if tally.largest > _LARGEST_FRAME:
            raise ValueError(f"a request may have {_LARGEST_FRAME} bytes at most")
        self.in_flight = 0
        self._tally = tally
        self._calls = calls
        self._largest = tally.largest
        self._first, self._following = _header_blocks(headers)
        self._started: dict[int, float] = {}
        self._answered: set[int] = set()
        self._next_stream = 1
        self._window = _DEFAULT_WINDOW
        self._unreported = 0
        self._rest = b""

    def open(self, now: float) -> bytes:
        """Return what opens the connection and begins the first calls."""
        settings = _SETTING.pack(_ENABLE_PUSH, 0) + _SETTING.pack(_INITIAL_WINDOW_SIZE, _OUR_WINDOW)
        return _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _window_update(_OUR_WINDOW) + self._begin(now)

    def receive(self, data: bytes, now: float) -> bytes:
        """Take what the server sent at `now`; return what is to be sent. Raises ConnectionError when it gives up."""
        buffer = self._rest + data if self._rest else data
        position, end = 0, len(buffer)
        answers = b""
        while end - position >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, position)
            following = position + _HEAD.size + (high << 16 | low)
            if following > end:
                break
            if kind == _DATA:
                self._answered.add(stream)
                self._unreported += following - position - _HEAD.size
            if kind in {_DATA, _HEADERS}:
                if flags & _END_STREAM:
                    self._finish(stream, now)
            else:
                answers += self._control(kind, flags, stream, buffer[position + _HEAD.size : following], now)
            position = following
        self._rest = buffer[position:]
        return answers + self._report() + self._begin(now)

    def _begin(self, now: float) -> bytes:
        """Begin as many calls as are missing and the server has room for."""
        frames: list[bytes] = []
        while self.in_flight < self._calls and self._window >= self._largest:
            message = self._tally.request()
            if message is None:
                break
            stream = self._next_stream
            self._next_stream += 2
            self._started[stream] = now
            self.in_flight += 1
            self._window -= len(message)
            headers = self._first if stream == 1 else self._following
            frames += (
                _HEAD.pack(0, len(headers), _HEADERS, _END_HEADERS, stream),
                headers,
                _HEAD.pack(0, len(message), _DATA, _END_STREAM, stream),
                message,
            )
        return b"".join(frames)

    def _finish(self, stream: int, now: float) -> None:
        started = self._started.pop(stream, None)
        succeeded = stream in self._answered
        self._answered.discard(stream)
        if started is not None:
            self.in_flight -= 1
            self._tally.done(now - started, succeeded)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, now: float) -> bytes:
        """Take a frame of the connection; return the answer to it."""
        if kind == _SETTINGS and not flags & _ACK:
            self._check(payload)
            return _frame(_SETTINGS, _ACK, 0)
        if kind == _PING and not flags & _ACK:
            return _frame(_PING, _ACK, 0, payload)
        if kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _RST_STREAM:
            self._answered.discard(stream)
            self._finish(stream, now)
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server closes the connection: {payload[8:].decode(errors='replace')}")
        return b""

    def _check(self, payload: bytes) -> None:
        """Refuse a server that allows less than what is sent here without looking."""
        limits = dict(_SETTING.iter_unpack(payload))
        if limits.get(_MAX_CONCURRENT_STREAMS, self._calls) < self._calls:
            raise ConnectionError(f"the server allows less than {self._calls} calls on a connection")
        if limits.get(_INITIAL_WINDOW_SIZE, self._largest) < self._largest:
            raise ConnectionError(f"the server takes less than {self._largest} bytes of a call at once")

    def _report(self) -> bytes:
        """Open the connection's window again when half of it is used; those of streams are never used up."""
        if self._unreported < _OUR_WINDOW // 2:
            return b""
        size, self._unreported = self._unreported, 0
        return _window_update(size)


def framed(message: bytes) -> bytes:
    """Return a message as gRPC puts it on a stream: not compressed, its length before it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _window_update(size: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big"))


def _header_blocks(headers: Sequence[tuple[str, str]]) -> tuple[bytes, bytes]:
    """Return the header block of a connection's first call, which fills the table, and that of every later one."""
    if sum(len(name) + len(value) + _ENTRY_OVERHEAD for name, value in headers) > _TABLE_SIZE:
        raise ValueError("the headers do not fit into the table of HPACK")
    first = b"".join(b"\x40" + _text(name) + _text(value) for name, value in headers)
    following = b"".join(_integer(0x80, _NEWEST + place) for place in reversed(range(len(headers))))
    return _FIXED_FIELDS + first, _FIXED_FIELDS + following


def _text(value: str) -> bytes:
    encoded = value.encode("ascii")
    return _integer(0, len(encoded)) + encoded


def _integer(mark: int, value: int) -> bytes:
    """Return a number with a prefix of 7 bits below `mark` (RFC 7541, 5.1)."""
    if value < 0x7F:
        return bytes((mark | value,))
    value -= 0x7F
    encoded = bytearray((mark | 0x7F,))
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
