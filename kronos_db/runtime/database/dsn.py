"""Reads, derives and masks PostgreSQL connection strings."""

from __future__ import annotations

import re

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_URL_PASSWORD = re.compile(r"(?P<head>://[^:/@\s]*:)[^@\s]*(?=@)")


def check_dsn(dsn: str) -> None:
    """Raise ValueError when libpq would not understand `dsn`; the text does not repeat it."""
    try:
        conninfo_to_dict(dsn)
    except ProgrammingError:
        raise ValueError("must be a PostgreSQL connection URL or key=value string") from None


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
    """Return `dsn` or another URL with its password replaced by asterisks."""
    if "://" in dsn:
        return _URL_PASSWORD.sub(r"\g<head>***", dsn)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", r"\1***", dsn)
