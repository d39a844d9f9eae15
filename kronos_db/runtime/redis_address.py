"""Reads the URL of a Redis: one server, the nodes of a cluster, or the sentinels that know the master of a service."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

Kind = Literal["single", "cluster", "sentinel"]

_PORTS = {"cluster": 6379, "sentinel": 26379}
_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
# Parameters of the URL that are for the sentinels, and not for the servers that they name.
_SENTINEL = "sentinel_"
_NODE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:,@/\s]+)(?::(?P<port>[0-9]{1,5}))?")
_RESERVED = "must be a URL whose password spells reserved characters as %XX"
_FORMS = (
    "must be redis://HOST:PORT, rediss://HOST:PORT, unix:///PATH, redis+cluster://HOST:PORT,HOST:PORT or "
    "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"
)


class RedisAddress(NamedTuple):
    """Where a Redis is. `nodes` are host and port; `url` is that of one of them, with login and options.

    `service` is the name of the master among sentinels, `sentinel_options` what logs in to these.
    """

    kind: Kind
    url: str
    nodes: Sequence[tuple[str, int]] = ()
    service: str = ""
    sentinel_options: Sequence[tuple[str, str]] = ()


def read_address(url: str) -> RedisAddress:
    """Read `url`. Raises ValueError with what it must be; the text does not repeat it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_RESERVED) from None
    if "@" in parts.path + parts.query or parts.fragment:
        raise ValueError(_RESERVED)
    if parts.scheme not in _SCHEMES:
        raise ValueError(_FORMS)
    scheme, _, kind = parts.scheme.partition("+")
    if kind == "cluster":
        return RedisAddress("cluster", _one(parts, scheme, "", parts.query), _nodes(parts, kind))
    if kind == "sentinel":
        return _behind_sentinels(parts, scheme)
    return _single(parts, url)


def _single(parts: SplitResult, url: str) -> RedisAddress:
    try:
        port = parts.port
    except ValueError:
        raise ValueError(_RESERVED) from None
    if not (parts.path if parts.scheme == "unix" else parts.hostname) or port == 0:
        raise ValueError(_FORMS)
    return RedisAddress("single", url)


def _behind_sentinels(parts: SplitResult, scheme: str) -> RedisAddress:
    service = unquote(parts.path.strip("/"))
    if not service or "/" in service:
        raise ValueError(_FORMS)
    options = parse_qsl(parts.query)
    own = [(name.removeprefix(_SENTINEL), value) for name, value in options if name.startswith(_SENTINEL)]
    rest = urlencode([pair for pair in options if not pair[0].startswith(_SENTINEL)])
    return RedisAddress("sentinel", _one(parts, scheme, "", rest), _nodes(parts, "sentinel"), service, own)


def _nodes(parts: SplitResult, kind: str) -> list[tuple[str, int]]:
    found = []
    for text in parts.netloc.rpartition("@")[2].split(","):
        node = _NODE.fullmatch(text)
        port = int(node["port"] or _PORTS[kind]) if node else 0
        if node is None or not 0 < port < 1 << 16:
            raise ValueError(_FORMS)
        found.append((node["host"].strip("[]"), port))
    return found


def _one(parts: SplitResult, scheme: str, path: str, query: str) -> str:
    """Return the URL of the first node alone: what it says of login and options holds for all."""
    login, at, hosts = parts.netloc.rpartition("@")
    return parts._replace(scheme=scheme, netloc=login + at + hosts.split(",")[0], path=path, query=query).geturl()
