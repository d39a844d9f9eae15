"""The access policy: a TOML file that says which caller is known by what, and which methods it may call.

    closed = ["kronos.admin.v1.AdminService/*"]        # nobody may call these

    [callers.user-service]
    tokens = ["hmac-sha256:<key id>:<hash>"]            # made by `kronos-db token new user-service`
    spiffe_ids = ["spiffe://kronos/user-service"]
    allow = ["kronos.users.v1.UsersService/*"]
    may = ["tokens.introspect.reason"]                  # what a method grants to some of its callers alone

Not named is refused. Every method of the server has to be named somewhere, so that a new one is decided on, not
forgotten.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kronos_db.runtime.errors import KronosError

_TOKEN_HASH = re.compile(r"hmac-sha256:[A-Za-z0-9_-]+:[A-Za-z0-9_-]{43}")
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+")


class PolicyError(KronosError):
    """The access file cannot be used; the text is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who is known by what, and who may call what.

    `token_hashes` and `spiffe_ids` map to callers; `allowed` maps callers to method paths `<service>/<method>`, and
    `may` to the capabilities that they have.
    """

    token_hashes: Mapping[str, str]
    spiffe_ids: Mapping[str, str]
    allowed: Mapping[str, frozenset[str]]
    may: Mapping[str, frozenset[str]] = field(default_factory=dict)


def load_policy(
    path: Path, methods: Iterable[str], public: Iterable[str] = (), capabilities: Iterable[str] = ()
) -> Policy:
    """Read the access file for a server with these `methods` (paths), of which the `public` ones need no caller.

    `capabilities` are those that callers may be given beside methods. Raises PolicyError for a file that is not valid,
    a pattern that names no method, a capability that there is not, an identity that two callers claim, or a method that
    is named nowhere.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"the access file {path} cannot be read: {error}") from None
    try:
        return _policy(document, frozenset(methods), frozenset(public), frozenset(capabilities))
    except PolicyError as error:
        raise PolicyError(f"the access file {path}: {error}") from None


def _policy(
    document: Mapping[str, Any], methods: frozenset[str], public: frozenset[str], capabilities: frozenset[str]
) -> Policy:
    _only(document, {"callers", "closed"}, "the file")
    token_hashes: dict[str, str] = {}
    spiffe_ids: dict[str, str] = {}
    allowed: dict[str, frozenset[str]] = {}
    may: dict[str, frozenset[str]] = {}
    callers = document.get("callers", {})
    if not isinstance(callers, dict):
        raise PolicyError("callers must be tables")
    for caller, entry in callers.items():
        if not isinstance(entry, dict):
            raise PolicyError(f"callers.{caller} must be a table")
        _only(entry, {"tokens", "spiffe_ids", "allow", "may"}, f"callers.{caller}")
        _claim(token_hashes, caller, _texts(entry, "tokens", caller), _TOKEN_HASH, "token hash")
        _claim(spiffe_ids, caller, _texts(entry, "spiffe_ids", caller), _SPIFFE_ID, "SPIFFE id")
        allowed[caller] = _expand(_texts(entry, "allow", caller), methods)
        may[caller] = _known(_texts(entry, "may", caller), capabilities)
    closed = _expand(_texts(document, "closed", "the file"), methods)
    forgotten = sorted(methods - public - closed - frozenset().union(*allowed.values()))
    if forgotten:
        raise PolicyError(f"no caller may call {', '.join(forgotten)}; allow it to one, or list it under closed")
    return Policy(token_hashes, spiffe_ids, allowed, may)


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise PolicyError(f"{where} has an unknown key {unknown[0]}")


def _texts(table: Mapping[str, Any], key: str, where: str) -> list[str]:
    values = table.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise PolicyError(f"{key} of {where} must be a list of texts")
    return values


def _claim(claims: dict[str, str], caller: str, values: Iterable[str], form: re.Pattern[str], what: str) -> None:
    for value in values:
        if not form.fullmatch(value):
            raise PolicyError(f"callers.{caller} has a malformed {what}")
        if claims.setdefault(value, caller) != caller:
            raise PolicyError(f"callers.{caller} and callers.{claims[value]} claim the same {what}")


def _known(names: Sequence[str], capabilities: frozenset[str]) -> frozenset[str]:
    """Return the capabilities that the names are; `*` is all of them."""
    if "*" in names:
        return capabilities
    for name in names:
        if name not in capabilities:
            raise PolicyError(f"{name} names no capability of this server; known: {', '.join(sorted(capabilities))}")
    return frozenset(names)


def _expand(patterns: Iterable[str], methods: frozenset[str]) -> frozenset[str]:
    """Return the methods that the patterns name: `<service>/<method>`, `<service>/*` or `*`."""
    found: set[str] = set()
    for pattern in patterns:
        prefix = "" if pattern == "*" else pattern.removesuffix("*")
        open_ended = pattern == "*" or pattern.endswith("/*")
        named = {method for method in methods if (method.startswith(prefix) if open_ended else method == pattern)}
        if not named:
            raise PolicyError(f"{pattern} names no method of this server")
        found |= named
    return frozenset(found)
