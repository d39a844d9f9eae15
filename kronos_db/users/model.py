"""What a user is, which changes of state there are, and what can be wrong with a write."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from kronos_db.runtime.errors import Answer, Code, FieldViolation, KronosError
from kronos_db.users.roles import ROLE_ERRORS


class State(enum.IntEnum):
    """State of a user that is not deleted, as it is stored."""

    ACTIVE = 1
    SUSPENDED = 2


class Event(enum.StrEnum):
    """What happened to a user, a grant or a role, as those who watch are told."""

    CREATED = "created"
    UPDATED = "updated"
    SUSPENDED = "suspended"
    REACTIVATED = "reactivated"
    DELETED = "deleted"
    UNDELETED = "undeleted"
    ERASED = "erased"
    PASSWORD_SET = "password_set"  # noqa: S105  # a name
    ROLE_GRANTED = "role_granted"
    GRANT_UPDATED = "grant_updated"
    ROLE_REVOKED = "role_revoked"
    GRANT_EXPIRED = "grant_expired"
    ROLE_CREATED = "role_created"
    ROLE_UPDATED = "role_updated"
    ROLE_DELETED = "role_deleted"


# The kinds of records in the log of changes. Users and grants are there by the id of the user, roles by their own.
KIND = "user"
GRANT_KIND = "grant"
ROLE_KIND = "role"
# By which of its names a user is looked up: the id, the normalised username, the blind index of the e-mail.
Key: TypeAlias = Literal["id", "username", "email"]


class User(NamedTuple):
    """A user as stored; `email` and `phone` are sealed.

    `delete_time` set means soft-deleted; `attributes` is None when there are none. A tuple: rows are made by the
    thousand, and a frozen dataclass takes five times as long.
    """

    id: str
    username: str
    username_key: str
    email: str | None
    phone: str | None
    display_name: str
    attributes: dict[str, Any] | None
    state: int
    version: int
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None

    def key(self, key: Key) -> str:
        """Return the name of the user that look-ups by `key` go by."""
        if key == "id":
            return self.id
        # The third part of a sealed value is its index.
        return self.username_key if key == "username" else (self.email or "").rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to be created. `path` is where it stands in the request, for errors."""

    path: str
    id: str
    username: str
    username_key: str
    email: str | None
    phone: str | None
    display_name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """New values for the `fields` of one user; `version` is the one that must be current, None for any."""

    id: str
    version: int | None
    fields: Sequence[str]
    values: NewUser


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state: what it is called, from which states it is allowed, what it makes of them (None: nothing)."""

    event: Event
    allowed: Sequence[State]
    from_deleted: bool
    to_state: State | None = None
    to_deleted: bool | None = None


SUSPEND = Transition(Event.SUSPENDED, [State.ACTIVE], from_deleted=False, to_state=State.SUSPENDED)
REACTIVATE = Transition(Event.REACTIVATED, [State.SUSPENDED], from_deleted=False, to_state=State.ACTIVE)
DELETE = Transition(Event.DELETED, [State.ACTIVE, State.SUSPENDED], from_deleted=False, to_deleted=True)
UNDELETE = Transition(Event.UNDELETED, [State.ACTIVE, State.SUSPENDED], from_deleted=True, to_deleted=False)


class Order(enum.Enum):
    """Order of a listing; the value names its query."""

    OLDEST_FIRST = "list_oldest_first"
    NEWEST_FIRST = "list_newest_first"
    USERNAME_ASCENDING = "list_username_ascending"
    USERNAME_DESCENDING = "list_username_descending"

    @property
    def by_username(self) -> bool:
        """Whether the sort key is the username, not time and id."""
        return self in {Order.USERNAME_ASCENDING, Order.USERNAME_DESCENDING}

    def key_of(self, user: User) -> list[str]:
        """Return the sort key of `user`: what the next page begins after."""
        return [user.username_key] if self.by_username else [user.create_time.isoformat(), user.id]


@dataclass(frozen=True, slots=True)
class Listing:
    """Filters and order of a listing. None and "" filter nothing; `after` is the sort key of the last row seen."""

    limit: int
    order: Order
    state: State | None
    deleted: bool | None
    create_time_from: datetime | None
    create_time_until: datetime | None
    username_prefix: str
    after: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Credential:
    """What a check of a password needs to know. `password_hash` is an Argon2id PHC string."""

    user_id: str
    state: int
    deleted: bool
    password_hash: str | None


class UserNotFoundError(KronosError):
    """No such user."""


class UserStateError(KronosError):
    """The user's state does not allow the change."""


class EtagMismatchError(KronosError):
    """The user, role or grant changed since the caller read it."""

    @classmethod
    def of(cls, field: str) -> EtagMismatchError:
        """Return the error of the etag in `field`."""
        return cls(violations=[FieldViolation(field, "is not the current one")])


class TakenError(KronosError):
    """Another user has what must be unique."""

    field: str

    def __init__(self, path: str) -> None:
        where = f"{path}.{self.field}"
        super().__init__(metadata={"field": where}, violations=[FieldViolation(where, "is taken by another user")])


class UserExistsError(TakenError):
    """Another user has the id."""

    field = "id"


class UsernameTakenError(TakenError):
    """Another user has the username."""

    field = "username"


class EmailTakenError(TakenError):
    """Another user has the e-mail."""

    field = "email"


class PhoneTakenError(TakenError):
    """Another user has the phone."""

    field = "phone"


# By the name of the unique constraint; the key of users is its id.
TAKEN: Mapping[str, type[TakenError]] = {
    "users_pkey": UserExistsError,
    "users_username": UsernameTakenError,
    "users_email": EmailTakenError,
    "users_phone": PhoneTakenError,
}

ERRORS: Mapping[type[KronosError], Answer] = {
    UserNotFoundError: Answer(Code.NOT_FOUND, "USER_NOT_FOUND", "There is no such user."),
    UserStateError: Answer(
        Code.FAILED_PRECONDITION, "USER_STATE", "The user is {state}, which does not allow this change."
    ),
    EtagMismatchError: Answer(Code.ABORTED, "ETAG_MISMATCH", "The record changed since it was read; read it again."),
    UserExistsError: Answer(Code.ALREADY_EXISTS, "USER_EXISTS", "Another user has the id given in {field}."),
    UsernameTakenError: Answer(
        Code.ALREADY_EXISTS, "USERNAME_TAKEN", "Another user has the username given in {field}."
    ),
    EmailTakenError: Answer(Code.ALREADY_EXISTS, "EMAIL_TAKEN", "Another user has the e-mail given in {field}."),
    PhoneTakenError: Answer(Code.ALREADY_EXISTS, "PHONE_TAKEN", "Another user has the phone given in {field}."),
    **ROLE_ERRORS,
}
