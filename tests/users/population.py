"""Users for the tests: each test has names of its own on the one server."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import uuid4

from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

_numbers = itertools.count(1)


def unique(prefix: str = "user") -> str:
    """Return a username that no other test has."""
    return f"{prefix}-{uuid4().hex[:12]}-{next(_numbers)}"


def phone() -> str:
    """Return a telephone number that no other test has."""
    return f"+1{uuid4().int % 10**18:018d}{next(_numbers):06d}"


def new(**changes: Any) -> pb.User:
    """Return a user to be created, with everything set."""
    name = unique()
    values: dict[str, Any] = {
        "username": name,
        "email": f"{name}@example.org",
        "phone": phone(),
        "display_name": "A name to show",
        "attributes": {"plan": "pro", "seats": 3, "deep": {"list": [1, None, "x", True]}},
    }
    values.update(changes)
    attributes = values.pop("attributes")
    user = pb.User(**values)
    if attributes is not None:
        user.attributes.update(attributes)
    return user


def create(users: UsersServiceStub, **changes: Any) -> pb.User:
    """Create a user."""
    return users.CreateUser(pb.CreateUserRequest(user=new(**changes))).user


def get(users: UsersServiceStub, user_id: str) -> pb.User:
    """Read a user."""
    return users.GetUser(pb.GetUserRequest(id=user_id)).user
