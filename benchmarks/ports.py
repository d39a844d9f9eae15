"""Ports for servers that are about to start, below those that the kernel gives to connections."""

from __future__ import annotations

import random
import socket

_FIRST, _END = 10_000, 32_000
# Nobody's seed makes two processes choose the same.
_chance = random.SystemRandom()
_given: set[int] = set()


def free_port(*further: int) -> int:
    """Return a port that is free now, as are those so much higher; each is given out once."""
    while True:
        port = _chance.randrange(_FIRST, _END - max(further, default=0))
        wanted = {port, *(port + each for each in further)}
        if not wanted & _given and all(map(_is_free, wanted)):
            _given.update(wanted)
            return port


def free_address() -> str:
    """Return HOST:PORT with such a port."""
    return f"127.0.0.1:{free_port()}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As a server binds: what a closed connection left behind is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
