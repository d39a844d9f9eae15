"""Names leases: so that a repeated call asks for the same ones, and nobody can make up another's."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from uuid import UUID, uuid4

from kronos_db.cache.model import Ask, Namespace
from kronos_db.runtime.interceptors.call import Call

_DEFAULT_SECONDS = 10.0


class Leases:
    """Makes the ids of leases; `secret` is shared by all processes."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def asks(self, namespace: Namespace, keys: Sequence[str], seconds: float | None, call: Call) -> Mapping[str, Ask]:
        """Return what a call asks for, by key; with a request_id, the same leases whenever it is repeated."""
        lasting = _DEFAULT_SECONDS if seconds is None else seconds
        return {key: Ask(namespace, key, self._id(namespace, key, call), lasting) for key in keys}

    def _id(self, namespace: Namespace, key: str, call: Call) -> str:
        if call.write_id is None:
            return uuid4().hex
        parts = "\0".join((call.caller, str(call.write_id), namespace.id, key))
        return hmac.digest(self._secret, parts.encode(), "sha256")[:16].hex()


def lease_text(ask: Ask, base: int) -> str:
    """Return a lease as its holder gets it: the id, and the number that was drawn when it was given.

    The number belongs to it: the same id may be given again to a call that was held up, after the lease was void.
    """
    return f"{UUID(ask.lease_id).hex}.{base}"


def lease_of(text: str) -> tuple[str, int]:
    """Return the id and the number of a lease."""
    lease_id, _, base = text.partition(".")
    return lease_id, int(base)
