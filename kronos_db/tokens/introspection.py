"""Whether a token is active, answered from copies: the road that every call of the platform takes.

A copy holds the hash of the token's text, its state, its user, and the bytes of the answer. Whether the user is active
is asked each time and never kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hmac import compare_digest
from typing import NamedTuple

from kronos_db.runtime.cache.engine import Cache, Rules
from kronos_db.runtime.cache.engine import Loaded as LoadedCopy
from kronos_db.runtime.database.changes import tag
from kronos_db.tokens.credentials import Credentials, Presented
from kronos_db.tokens.model import TOKEN, Access, Loaded, Reason, Scope, State, SubjectKind, Token
from kronos_db.tokens.uses import Uses

# By the number that is stored.
_REASONS: Mapping[int, Reason] = {
    State.ACTIVE: Reason.NONE,
    State.EXPIRED: Reason.EXPIRED,
    State.REVOKED: Reason.REVOKED,
    State.USED: Reason.USED,
    State.IDLE: Reason.IDLE,
}
# In place of a reason: the token is active, and will have ended in a moment unless this use is written first.
_URGENT = 255
# Where in a copy what begins: the hash; one byte with the reason; the user's id; one byte, 1 when a part of the answer
# is sealed; the answer.
_HASH, _USER, _SEALED, _ANSWER = 32, 33, 69, 70
_BLANK = 32
_NOBODY = bytes((_BLANK,)) * (_SEALED - _USER)
_NO_HASH = bytes(_HASH)

# A text that was presented, or the `jti` of a JWT.
Key = tuple[str, bool]


class Examined(NamedTuple):
    """What was found of a token: why it is not active; of an active one the answer, and whether parts of it are sealed.

    The bytes are those of the message for one token. One behind the other they are that for several.
    """

    reason: int
    answer: bytes = b""
    sealed: bool = False


class Introspection:
    """Examines tokens. `answer` makes the bytes of what is told of an active one; `uses` are told of each use."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        load: Callable[[Sequence[str]], Sequence[Loaded]],
        cache: Cache,
        access: Access,
        answer: Callable[[Token], bytes],
        uses: Uses,
    ) -> None:
        self._read = credentials.read
        self._jwt_record_id = credentials.jwt_record_id
        self._load = load
        self._answer = answer
        self._note = uses.note
        self._note_now = uses.note_now
        self._active = access.active
        self._copies = cache.kind(Rules("tokens"), self._load_copies)
        self._get = self._copies.get

    def examine(self, text: str) -> Examined:
        """Examine the token with this text."""
        presented = self._read(text)
        if not isinstance(presented, Presented):
            return Examined(presented)
        return self._judged(presented, self._get(presented.id))

    def examine_jwt(self, jwt_id: str) -> Examined:
        """Examine the JWT with this `jti`."""
        presented = Presented(self._jwt_record_id(jwt_id), _NO_HASH)
        return self._judged(presented, self._get(presented.id))

    def examine_many(self, keys: Sequence[Key]) -> list[Examined]:
        """Examine several tokens: each is a text, or a `jti` when the second part is true."""
        presented = [
            Presented(self._jwt_record_id(text), _NO_HASH) if is_jwt else self._read(text) for text, is_jwt in keys
        ]
        ids = {each.id for each in presented if isinstance(each, Presented)}
        copies = self._copies.get_many(list(ids)) if ids else {}
        users = {value[_USER:_SEALED].decode() for value in copies.values() if value[_USER] != _BLANK}
        active = self._active(tuple(users)) if users else frozenset()
        return [
            self._judged(each, copies.get(each.id), active) if isinstance(each, Presented) else Examined(each)
            for each in presented
        ]

    def subject_is_active(self, token_id: str) -> bool:
        """Tell whether the subject of a token (32 digits) is active; False for an unknown token."""
        value = self._get(token_id)
        return value is not None and self._has_active_user(value)

    def _judged(self, presented: Presented, value: bytes | None, active: frozenset[str] | None = None) -> Examined:
        if value is None or not compare_digest(value[:_HASH], presented.hash):
            return Examined(Reason.UNKNOWN)
        reason = value[_HASH]
        if reason and reason != _URGENT:
            return Examined(reason)
        if not self._has_active_user(value, active):
            return Examined(Reason.SUBJECT_INACTIVE)
        (self._note_now if reason else self._note)(presented.id)
        return Examined(0, value[_ANSWER:], value[_SEALED] == 1)

    def _has_active_user(self, value: bytes, active: frozenset[str] | None = None) -> bool:
        if value[_USER] == _BLANK:
            return True
        user = value[_USER:_SEALED].decode()
        return user in (self._active((user,)) if active is None else active)

    def _load_copies(self, ids: Sequence[str]) -> Mapping[str, LoadedCopy]:
        return {loaded.token.id.replace("-", ""): self._copy(loaded) for loaded in self._load(ids)}

    def _copy(self, loaded: Loaded) -> LoadedCopy:
        token = loaded.token
        user = token.subject.encode() if token.subject_kind == SubjectKind.USER else _NOBODY
        hash_ = loaded.hash or _NO_HASH
        reason = _REASONS[token.state]
        if reason:
            # What is over stays so, until somebody changes it.
            return LoadedCopy(hash_ + bytes((reason,)) + user, _tags(token))
        urgent = loaded.valid_for is not None and loaded.valid_for <= 0
        head = hash_ + bytes((_URGENT if urgent else reason,)) + user + bytes((token.sensitive_claims is not None,))
        return LoadedCopy(head + self._answer(token), _tags(token), loaded.valid_for)


def _tags(token: Token) -> list[str]:
    """Return what a copy depends on: the token, and everything by which it can be revoked together with others."""
    tags = [
        tag(TOKEN, token.id),
        tag(Scope.SUBJECT, token.subject),
        tag(Scope.FAMILY, token.family_id),
        tag(Scope.EVERYTHING),
    ]
    if token.client_id:
        tags.append(tag(Scope.CLIENT, token.client_id))
    if token.device_id:
        tags.append(tag(Scope.DEVICE, token.device_id))
    return tags
