"""Reads, derives and masks connection strings: PostgreSQL's, and for masking any URL."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from psycopg import OperationalError, ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

MASK = "***"
# libpq itself shows these two in its debug output, but they let their bearer log in.
_LOGIN_KEYS = ("scram_client_key", "scram_server_key")
# Every other parameter of a URL may be a secret, or the rest of one that was not escaped.
_PLAIN_PARAMETERS = ("db", "protocol")


def check_dsn(dsn: str) -> None:
    """Raise ValueError when `dsn` is no DSN, or libpq would not read it as meant; the text does not repeat it."""
    if _is_postgres_url(dsn) and re.search(r"[/?@][^@]*@", dsn.partition("://")[2]):
        # libpq ends the password at the first of these and would take the rest for a host or a database.
        raise ValueError("must spell @, / and ? inside a name or password as %40, %2F and %3F")
    try:
        parts = {} if "\0" in dsn else conninfo_to_dict(dsn)
    except (ProgrammingError, OperationalError, UnicodeError):
        parts = {}
    if not parts:
        raise ValueError("must be a PostgreSQL connection URL or key=value string")
    ports = str(parts.get("port", "")).split(",")
    if any(port and not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16) for port in ports):
        raise ValueError("must name a port from 1 to 65535")


def as_role(dsn: str, role: str, password: str) -> str:
    """Return `dsn` for another login role."""
    return make_conninfo(dsn, user=role, password=password)


def login_of(dsn: str) -> tuple[str, str | None] | None:
    """Return the role and password that `dsn` names, or None when it names no role."""
    parts = conninfo_to_dict(dsn)
    user = parts.get("user")
    if not user:
        return None
    password = parts.get("password")
    return str(user), None if password is None else str(password)


def masked(dsn: str) -> str:
    """Return a DSN or another URL for people, every secret in it replaced.

    A DSN comes back as key=value string: libpq reads it and says which of its parts are secret. What cannot be read
    with certainty is replaced as a whole.
    """
    # The scheme must be one: "host=db password='…://…'" is no URL.
    is_url = re.match(r"[a-z][a-z0-9+.-]*://", dsn) is not None
    return _masked_url(dsn) if is_url and not _is_postgres_url(dsn) else _masked_dsn(dsn)


def _is_postgres_url(text: str) -> bool:
    return text.startswith(("postgresql://", "postgres://"))


def _masked_dsn(dsn: str) -> str:
    try:
        check_dsn(dsn)
        options = pq.Conninfo.parse(dsn.encode())
    except (ValueError, OperationalError):
        return MASK
    shown = {}
    for option in options:
        if option.val is not None:
            name = option.keyword.decode()
            secret = option.dispchar == b"*" or name in _LOGIN_KEYS
            shown[name] = MASK if secret else option.val.decode(errors="replace")
    return make_conninfo(**shown)


def _masked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        # Schemes such as redis+cluster: have several hosts, each with a port.
        several = "+" in parts.scheme
        port = None if several else parts.port
    except ValueError:
        return MASK
    if "@" in parts.path + parts.query or parts.fragment:
        # The password holds a character that ends it for the parser: what follows may still be password.
        return f"{parts.scheme}://{MASK}"
    user = f"{parts.username or ''}{':' + MASK if parts.password is not None else ''}"
    login = f"{user}@" if user else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    place = f"{host}:{port}" if port is not None else host
    if several:
        place = parts.netloc.rpartition("@")[2]
    pairs = [f"{name}={value}" if name in _PLAIN_PARAMETERS else MASK for name, value in parse_qsl(parts.query)]
    return f"{parts.scheme}://{login}{place}{parts.path}{'?' if pairs else ''}{'&'.join(pairs)}"
