"""What roles and grants are, and what can be wrong with a write of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from kronos_db.runtime.errors import Answer, Code, FieldViolation, KronosError

# Grants of one user, about: calls that come together may go a little beyond.
MAX_GRANTS = 1_000
# Grants that are revoked together with their role.
MAX_REVOKED = 10_000


class Role(NamedTuple):
    """A role as stored; `permissions` are its own."""

    id: str
    number: int
    name: str
    name_key: str
    description: str
    permissions: Sequence[str]
    parent_ids: Sequence[str]
    version: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class NewRole:
    """A role to be created, or new values for one. Permissions and parents are sorted, each there once."""

    id: str
    name: str
    name_key: str
    description: str
    permissions: Sequence[str]
    parent_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class RoleChange:
    """New values for the `fields` of a role; `version` is the one that must be current, None for any."""

    version: int | None
    fields: Sequence[str]
    values: NewRole


@dataclass(frozen=True, slots=True)
class Removal:
    """A role to be removed, and what may end with it."""

    id: str
    version: int | None
    revoke_grants: bool
    detach_children: bool


class Grant(NamedTuple):
    """A grant as stored. `place` is its scope as `permissions.py` has it."""

    id: str
    user_id: str
    role_id: str
    place: str
    expire_time: datetime | None
    version: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class NewGrant:
    """A grant to be made."""

    id: str
    user_id: str
    role_id: str
    place: str
    expire_time: datetime | None


class RoleNotFoundError(KronosError):
    """No such role."""


class RoleNameTakenError(KronosError):
    """Another role has the name."""

    def __init__(self) -> None:
        super().__init__(violations=[FieldViolation("role.name", "is taken by another role")])


class RoleCycleError(KronosError):
    """The role would inherit from itself."""

    def __init__(self, names: Sequence[str]) -> None:
        way = " → ".join(names)
        violation = FieldViolation("role.parent_ids", f"would close the circle {way}")
        super().__init__(metadata={"way": way}, violations=[violation])


class RoleGrantedError(KronosError):
    """The role is granted, and nothing was said about revoking that, or it is granted too often for one call."""

    def __init__(self, grants: int) -> None:
        # One more than the most was counted at most.
        count = str(grants) if grants <= MAX_REVOKED else f"more than {MAX_REVOKED}"
        super().__init__(metadata={"grants": count, "limit": str(MAX_REVOKED)})


class RoleInheritedError(KronosError):
    """Another role inherits from the role, and nothing was said about ending that."""


class GrantNotFoundError(KronosError):
    """No such grant, or not any more: it has expired."""


class GrantExistsError(KronosError):
    """The user has the role in that scope."""


class TooManyGrantsError(KronosError):
    """The user has as many grants as one may have."""


ROLE_ERRORS: Mapping[type[KronosError], Answer] = {
    RoleNotFoundError: Answer(Code.NOT_FOUND, "ROLE_NOT_FOUND", "There is no such role."),
    RoleNameTakenError: Answer(Code.ALREADY_EXISTS, "ROLE_NAME_TAKEN", "Another role has the name given in role.name."),
    RoleCycleError: Answer(Code.FAILED_PRECONDITION, "ROLE_CYCLE", "The role would inherit from itself: {way}."),
    RoleGrantedError: Answer(
        Code.FAILED_PRECONDITION,
        "ROLE_GRANTED",
        "There are {grants} grants of the role; revoke_grants revokes up to {limit} with it.",
    ),
    RoleInheritedError: Answer(
        Code.FAILED_PRECONDITION,
        "ROLE_INHERITED",
        "The role {role} inherits from this one; detach_children ends that too.",
    ),
    GrantNotFoundError: Answer(Code.NOT_FOUND, "GRANT_NOT_FOUND", "There is no such grant; it may have expired."),
    GrantExistsError: Answer(Code.ALREADY_EXISTS, "GRANT_EXISTS", "The user has this role in this scope."),
    TooManyGrantsError: Answer(
        Code.FAILED_PRECONDITION, "TOO_MANY_GRANTS", "The user has {limit} grants, which is as many as one may have."
    ),
}
