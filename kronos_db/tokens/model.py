"""What a token is, what can become of it, and what can be wrong with a write."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from kronos_db.runtime.errors import Answer, Code, FieldViolation, KronosError


class Kind(enum.IntEnum):
    """What a token is, as it is stored."""

    SESSION = 1
    REFRESH = 2
    ACCESS = 3
    API_KEY = 4
    JWT = 5


class SubjectKind(enum.IntEnum):
    """Whom a token speaks for, as it is stored."""

    USER = 1
    SERVICE = 2


class State(enum.IntEnum):
    """What has become of a token, as queries tell it."""

    ACTIVE = 1
    EXPIRED = 2
    REVOKED = 3
    USED = 4
    IDLE = 5


class Reason(enum.IntEnum):
    """Why a token is not active; NONE of one that is."""

    NONE = 0
    MALFORMED = 1
    FOREIGN = 2
    UNKNOWN = 3
    EXPIRED = 4
    IDLE = 5
    REVOKED = 6
    USED = 7
    SUBJECT_INACTIVE = 8


class Outcome(enum.IntEnum):
    """What came of an exchange of a refresh token."""

    ROTATED = 1
    REPLAYED = 2
    REUSE_DETECTED = 3
    REJECTED = 4


class Scope(enum.StrEnum):
    """By what many tokens are revoked at once: kinds of records in the log of changes, too."""

    SUBJECT = "subject"
    FAMILY = "family"
    CLIENT = "client"
    DEVICE = "device"
    EVERYTHING = "everything"


# Kinds of records in the log of changes: a token, whatever happens to it, and a JWT that is revoked.
TOKEN, REVOKED_JWT = "token", "revoked_jwt"
# Beside methods, what the access policy grants: to be told why a token is not active.
REASON_CAPABILITY = "tokens.introspect.reason"
CAPABILITIES = (REASON_CAPABILITY,)

# Seconds. A use is noted once in so many by each process, and written so many later at most.
SEEN_EVERY, SEEN_WITHIN = 60.0, 5.0
# So much older than the last use can what is stored of it be, in whole seconds: `seen_lag` of queries.sql.
SEEN_LAG = 65
# A token ends for want of use so much later than its idle_timeout says: `idle_slack` of queries.sql. More than the lag,
# so that a process that knows an older use never ends one that another has just seen used, even if that one was killed.
IDLE_SLACK = 90
# For how long rows are kept after a token is over: a refresh token that is presented again is recognised as long.
KEPT = 7 * 86_400
DEFAULT_ACCESS_SECONDS = 600
DEFAULT_GRACE_SECONDS = 30


class Token(NamedTuple):
    """A token as stored; `device_name`, `ip_address` and `sensitive_claims` are sealed.

    `claims` is None when there are none. A tuple: rows are made by the thousand.
    """

    id: str
    family_id: str
    kind: int
    subject_kind: int
    subject: str
    client_id: str
    device_id: str
    device_name: str | None
    ip_address: str | None
    scope: str
    claims: dict[str, Any] | None
    sensitive_claims: str | None
    expire_time: datetime | None
    idle_seconds: int | None
    access_seconds: int
    grace_seconds: int
    jwt_id: str | None
    grant_time: datetime
    issue_time: datetime
    seen_time: datetime
    use_time: datetime | None
    revoke_time: datetime | None
    version: int
    state: int


class Loaded(NamedTuple):
    """A token with the hash of its text, and for how many seconds it stays what it is."""

    hash: bytes | None
    valid_for: float | None
    token: Token


class NewToken(NamedTuple):
    """A token to be stored. `path` is where it stands in the request, for errors. Hash and mark are of its text."""

    path: str
    id: str
    family_id: str
    kind: Kind
    hash: bytes | None
    mark: str
    subject_kind: int
    subject: str
    client_id: str
    device_id: str
    device_name: str | None
    ip_address: str | None
    scope: str
    claims: Mapping[str, Any]
    sensitive_claims: str | None
    expire_time: datetime | None
    issue_time: datetime | None = None
    jwt_id: str | None = None
    idle_seconds: int | None = None
    access_seconds: int = 0
    grace_seconds: int = 0

    def stored(self, grant_time: datetime, issue_time: datetime, seen_time: datetime) -> Token:
        """Return what it is once it is stored."""
        return Token(
            self.id,
            self.family_id,
            self.kind,
            self.subject_kind,
            self.subject,
            self.client_id,
            self.device_id,
            self.device_name,
            self.ip_address,
            self.scope,
            dict(self.claims) or None,
            self.sensitive_claims,
            self.expire_time,
            self.idle_seconds,
            self.access_seconds,
            self.grace_seconds,
            self.jwt_id,
            grant_time,
            issue_time,
            seen_time,
            None,
            None,
            1,
            State.ACTIVE,
        )


@dataclass(frozen=True, slots=True)
class Exchange:
    """A refresh token that was presented, and what its successor and the access token are to be, should it be new.

    `subject_active`: whether its user may have them.
    """

    id: str
    hash: bytes
    refresh_id: str
    refresh_hash: bytes
    access_id: str
    access_hash: bytes
    mark: str
    subject_active: bool


@dataclass(frozen=True, slots=True)
class Rotation:
    """What came of an exchange: with the successor, its access token, and the mark of the key of their texts.

    `family_id` is of a family that was revoked for it.
    """

    outcome: Outcome
    refresh: Token | None = None
    access: Token | None = None
    mark: str = ""
    family_id: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tokens are revoked at once: those of one `value`; of these those before a time, None for all so far."""

    scope: Scope
    value: str
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """New values for the `fields` of one token; `version` is the one that must be current, None for any."""

    id: str
    family_id: str
    version: int | None
    fields: Sequence[str]
    claims: Mapping[str, Any]
    sensitive_claims: str | None
    expire_time: datetime | None


class Revocation(NamedTuple):
    """A revocation that still matters to who verifies JWTs alone: of one JWT, or of all issued before a time."""

    scope: Scope | None
    value: str
    issued_before: datetime | None
    revoke_time: datetime


class Access(Protocol):
    """What tokens ask about users; answered from copies, and never from before a write."""

    def active(self, user_ids: Sequence[str]) -> frozenset[str]:
        """Return those of `user_ids` (lower-case UUIDs) that exist, are active and not deleted."""

    def may(self, questions: Sequence[tuple[str, str, str]]) -> list[bool]:
        """Tell for each (user id, permission `resource:action`, scope path) whether the user may.

        Raises BadRequestError for what is no permission or scope.
        """


class TokenNotFoundError(KronosError):
    """No such token, or one that was purged."""


class TokenStateError(KronosError):
    """The token is not active, so it cannot be changed."""


class TokenEtagMismatchError(KronosError):
    """The token changed since the caller read it."""


class JwtExistsError(KronosError):
    """A JWT with this `jti` is registered."""

    def __init__(self, path: str) -> None:
        where = f"{path}.jwt_id"
        super().__init__(metadata={"field": where}, violations=[FieldViolation(where, "is registered already")])


ERRORS: Mapping[type[KronosError], Answer] = {
    TokenNotFoundError: Answer(Code.NOT_FOUND, "TOKEN_NOT_FOUND", "There is no such token."),
    TokenStateError: Answer(
        Code.FAILED_PRECONDITION, "TOKEN_STATE", "The token is {state}, which does not allow this change."
    ),
    TokenEtagMismatchError: Answer(
        Code.ABORTED, "TOKEN_ETAG_MISMATCH", "The token changed since it was read; read it again."
    ),
    JwtExistsError: Answer(Code.ALREADY_EXISTS, "JWT_EXISTS", "A JWT with the jti given in {field} is registered."),
}
