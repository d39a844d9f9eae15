"""Users as the store has them: each test begins with none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.users import model
from kronos_db.users.model import Key, Listing, NewUser, Order, User
from kronos_db.users.store import UsersStore
from tests.parts.domain import mutation

TAKEN_BY = [
    ("id", model.UserExistsError, "id"),
    ("username_key", model.UsernameTakenError, "username"),
    ("email", model.EmailTakenError, "email"),
    ("phone", model.PhoneTakenError, "phone"),
]


def get(store: UsersStore, key: Key, value: str) -> User:
    """Return the one user of that name; KeyError when there is none."""
    return store.get_many(key, [value])[value]


def new(name: str, **changes: Any) -> NewUser:
    values = {
        "path": "user",
        "id": uuid7_text(),
        "username": name.upper(),
        "username_key": name,
        "email": f"k1.box-{name}.mail-{name}",
        "phone": f"k1.box-{name}.phone-{name}",
        "display_name": f"The {name}",
        "attributes": {"n": 1, "deep": {"list": [1, "ä", None, 1.5]}},
    }
    return NewUser(**{**values, **changes})


def batch(*names: str) -> list[NewUser]:
    return [new(name, path=f"users[{index}]") for index, name in enumerate(names)]


def create(store: UsersStore, *users: NewUser) -> list[User]:
    created: list[User] = store.create(users, mutation())
    return created


def listing(**changes: Any) -> Listing:
    values = {
        "limit": 10,
        "order": Order.OLDEST_FIRST,
        "state": None,
        "deleted": None,
        "create_time_from": None,
        "create_time_until": None,
        "username_prefix": "",
        "after": None,
    }
    return Listing(**{**values, **changes})


def walk(store: UsersStore, **changes: Any) -> Iterator[list[User]]:
    """Yield page after page, as a caller with page tokens sees them."""
    current = listing(**changes)
    while page := store.list_page(current):
        yield page
        current = replace(current, after=current.order.key_of(page[-1]))


def names(users: Sequence[User]) -> list[str]:
    return [user.username_key for user in users]
