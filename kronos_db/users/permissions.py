"""What permissions and scopes are, and which cover which; roles.proto has the same rules for callers.

Within the domain a scope is kept as a place: "" for everywhere, else its path with a slash at the end. So one place
lies in another exactly when it begins with it.
"""

from __future__ import annotations

import re
from functools import lru_cache

# As in roles.proto, where RE2 reads them; a test holds the two together.
PERMISSION = r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63}):(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63})$"
SCOPE = r"^([A-Za-z0-9._~@=+-]+(/[A-Za-z0-9._~@=+-]+){0,15})?$"
MAX_SCOPE = 256

_PERMISSION = re.compile(PERMISSION)
_SCOPE = re.compile(SCOPE)
# Texts whose rules and places are remembered: platforms have hundreds of permissions, and scopes that are busy.
_REMEMBERED = 8192


@lru_cache(_REMEMBERED)
def covering(permission: str) -> frozenset[str] | None:
    """Return the permissions that cover `permission`, itself among them; None when it is not one.

    A permission covers another when each of its sides is `*` or the same. So one with `*` is covered as a whole or not.
    """
    if not _PERMISSION.fullmatch(permission):
        return None
    resource, _, action = permission.partition(":")
    return frozenset((permission, f"{resource}:*", f"*:{action}", "*:*"))


@lru_cache(_REMEMBERED)
def place(scope: str) -> str | None:
    """Return the place of a scope; None when it is not one."""
    if len(scope) > MAX_SCOPE or not _SCOPE.fullmatch(scope):
        return None
    return f"{scope}/" if scope else ""


def scope_of(where: str) -> str:
    """Return the scope of a place."""
    return where[:-1]


def around(where: str) -> list[str]:
    """Return the places in which a place lies, from everywhere to itself."""
    parts = where.split("/")[:-1]
    return ["".join(f"{part}/" for part in parts[:count]) for count in range(len(parts) + 1)]
