"""Random models of roles, grants and scopes, and an evaluator that goes by the definitions alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kronos_db.runtime.identifiers import uuid7_text

_NAMES = ["doc", "mail", "*"]
_ACTIONS = ["read", "write", "*"]
_SCOPES = ["", "a", "a/b", "a/b/c", "a/bb", "b", "b/a"]


@dataclass(frozen=True)
class ModelRole:
    """A role; `parents` are places in the list of roles, all before its own."""

    id: str
    permissions: Sequence[str]
    parents: Sequence[int]


@dataclass(frozen=True)
class ModelGrant:
    """A grant; `user` and `role` are places in the lists. `expired` decides, whatever the clock says."""

    id: str
    user: int
    role: int
    scope: str
    expire_time: datetime | None
    expired: bool


@dataclass(frozen=True)
class Model:
    """Users with their state (A, S or D), roles and grants."""

    users: Sequence[tuple[str, str]]
    roles: Sequence[ModelRole]
    grants: Sequence[ModelGrant]


def random_model(chance: random.Random) -> Model:
    """Return a model: small, so that everything in it touches."""
    roles = [
        ModelRole(
            uuid7_text(),
            sorted({_permission(chance) for _ in range(chance.randint(0, 3))}),
            sorted(chance.sample(range(number), chance.randint(0, min(number, 2)))),
        )
        for number in range(chance.randint(1, 6))
    ]
    users = [(uuid7_text(), chance.choice("AAAASD")) for _ in range(chance.randint(1, 3))]
    triples = {
        (chance.randrange(len(users)), chance.randrange(len(roles)), chance.choice(_SCOPES))
        for _ in range(chance.randint(0, 8))
    }
    return Model(users, roles, [_grant(chance, *triple) for triple in sorted(triples)])


def _permission(chance: random.Random) -> str:
    return f"{chance.choice(_NAMES)}:{chance.choice(_ACTIONS)}"


def _grant(chance: random.Random, user: int, role: int, scope: str) -> ModelGrant:
    expired = chance.random() < 0.2
    minutes = chance.choice([None, *range(60, 63)])
    now = datetime.now(UTC)
    end = now - timedelta(seconds=5) if expired else now + timedelta(minutes=minutes) if minutes else None
    return ModelGrant(uuid7_text(), user, role, scope, end, expired)


_ASKED = [
    (f"{name}:{action}", scope)
    for name in [*_NAMES, "other"]
    for action in [*_ACTIONS, "other"]
    for scope in [*_SCOPES, "a/b/c/d", "c"]
]


def questions(model: Model) -> Iterator[tuple[int, str, str]]:
    """Yield all that can be asked: user, permission, scope."""
    return ((user, *asked) for user in range(len(model.users)) for asked in _ASKED)


def random_question(model: Model, chance: random.Random) -> tuple[int, str, str]:
    """Return one of them."""
    return (chance.randrange(len(model.users)), *chance.choice(_ASKED))


def covers(held: str, asked: str) -> bool:
    """Return whether one permission covers another."""
    return all(mine in {"*", theirs} for mine, theirs in zip(held.split(":"), asked.split(":"), strict=True))


def contains(outer: str, inner: str) -> bool:
    """Return whether one scope is another or lies above it."""
    parts = outer.split("/") if outer else []
    return inner.split("/")[: len(parts)] == parts


def carried(model: Model, role: int) -> set[str]:
    """Return what a role gives, with what it inherits."""
    found = set(model.roles[role].permissions)
    for parent in model.roles[role].parents:
        found |= carried(model, parent)
    return found


def in_force(model: Model, user: int) -> list[ModelGrant]:
    """Return the grants that count."""
    return [] if model.users[user][1] != "A" else [g for g in model.grants if g.user == user and not g.expired]


def judged(model: Model, user: int, permission: str, scope: str) -> list[ModelGrant]:
    """Return the grants that allow it: none means no."""
    return [
        grant
        for grant in in_force(model, user)
        if contains(grant.scope, scope) and any(covers(held, permission) for held in carried(model, grant.role))
    ]


def latest(grants: Sequence[ModelGrant]) -> datetime | None:
    """Return until when the longest of some grants lasts."""
    ends = [grant.expire_time for grant in grants]
    return None if None in ends else max(end for end in ends if end is not None)


def listed(model: Model, user: int, scope: str | None) -> dict[tuple[str, str], datetime | None]:
    """Return all that a user may: permission and scope, and until when."""
    by_entry: dict[tuple[str, str], list[ModelGrant]] = {}
    for grant in in_force(model, user):
        if scope is None or contains(grant.scope, scope):
            for permission in carried(model, grant.role):
                by_entry.setdefault((permission, grant.scope), []).append(grant)
    return {entry: latest(grants) for entry, grants in by_entry.items()}
