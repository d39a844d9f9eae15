"""Whose a token is: what other domains ask of this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kronos.tokens.v1 import tokens_pb2 as pb

from kronos_db.tokens.introspection import Examined, Introspection


class Identity(NamedTuple):
    """Of an active token: its subject, the client that it was issued to, its scopes and its id."""

    subject: str
    client: str
    scopes: Sequence[str]
    token_id: str


class Identities:
    """Tells whose tokens are; answered from copies, and never from before a write."""

    def __init__(self, introspection: Introspection) -> None:
        self._introspection = introspection

    def identify(self, tokens: Sequence[str]) -> list[Identity | None]:
        """Return for each text of a token whose it is, or None when it is not active, or its user is not."""
        found = self._introspection.examine_many([(text, False) for text in tokens])
        return [None if each.reason else _identity(each) for each in found]


def _identity(examined: Examined) -> Identity:
    token = pb.IntrospectTokenResponse.FromString(examined.answer).introspection.token
    return Identity(token.subject, token.client_id, tuple(token.scopes), token.id)
