"""All about what one user may, read at one instant: for explanations, and for the list of its permissions."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from kronos_db.users.role_graph import Node, RoleGraph
from kronos_db.users.roles import Grant


class State(enum.StrEnum):
    """The state of a user, for what it may; `access.sql` has the same letters."""

    ACTIVE = "A"
    SUSPENDED = "S"
    DELETED = "D"


class Held(NamedTuple):
    """A grant in force, and the number of its role."""

    number: int
    grant: Grant


@dataclass(frozen=True, slots=True)
class Way:
    """Why a user may: by which grant, by which roles, and which permission the last of them carries."""

    grant: Grant
    roles: Sequence[Node]
    permission: str


@dataclass(frozen=True, slots=True)
class Account:
    """The state of a user, its grants in force, and the roles that give it anything."""

    state: State
    held: Sequence[Held]
    graph: RoleGraph

    def explain(self, wanted: frozenset[str], where: str) -> Way | None:
        """Return why the user may do what any of `wanted` allows; None when it may not."""
        if self.state != State.ACTIVE:
            return None
        for number, grant in sorted(self.held, key=_lasting):
            if where.startswith(grant.place) and (found := self.graph.way(number, wanted)):
                return Way(grant, *found)
        return None

    def permissions(self, where: str | None) -> Mapping[tuple[str, str], datetime | None]:
        """Return what the user may, by permission and place, and until when: in `where`, or in whatever place."""
        found: dict[tuple[str, str], datetime | None] = {}
        for number, grant in self.held if self.state == State.ACTIVE else ():
            if where is None or where.startswith(grant.place):
                for permission in self.graph.gives[str(number)]:
                    key = permission, grant.place
                    found[key] = _later(grant.expire_time, found.get(key, grant.expire_time))
        return {key: found[key] for key in sorted(found)}


def _lasting(held: Held) -> tuple[bool, float, str]:
    """Order what lasts longest first, and of that what is oldest."""
    end = held.grant.expire_time
    return end is not None, -end.timestamp() if end else 0.0, held.grant.id


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return None if one is None or other is None else max(one, other)
