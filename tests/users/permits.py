"""Roles, grants and checks for the tests: short forms of the calls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from kronos.users.v1 import roles_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.users.population import unique


def role(users: UsersServiceStub, *permissions: str, parents: Sequence[str] = (), name: str = "") -> pb.Role:
    """Create a role."""
    new = pb.Role(name=name or unique("role"), permissions=permissions, parent_ids=parents)
    return users.CreateRole(pb.CreateRoleRequest(role=new)).role


def grant(users: UsersServiceStub, user_id: str, role_id: str, scope: str = "", **changes: Any) -> pb.Grant:
    """Grant a role."""
    new = pb.Grant(user_id=user_id, role_id=role_id, scope=scope, **changes)
    return users.GrantRole(pb.GrantRoleRequest(grant=new)).grant


def may(users: UsersServiceStub, user_id: str, permission: str, scope: str = "") -> bool:
    """Return whether a user may."""
    question = pb.CheckPermissionRequest(user_id=user_id, permission=permission, scope=scope)
    return users.CheckPermission(question).allowed


def explain(users: UsersServiceStub, user_id: str, permission: str, scope: str = "") -> pb.CheckExplanation:
    """Return why a user may, or may not; the answer itself must be the same."""
    question = pb.CheckPermissionRequest(user_id=user_id, permission=permission, scope=scope, explain=True)
    answer = users.CheckPermission(question)
    assert answer.allowed == (answer.explanation.reason == pb.CHECK_REASON_GRANTED)
    assert answer.allowed == may(users, user_id, permission, scope)
    return answer.explanation


def in_seconds(seconds: float) -> Timestamp:
    """Return the time in so many seconds."""
    found = Timestamp()
    found.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return found


def permissions_of(users: UsersServiceStub, user_id: str, size: int = 1000, **filters: str) -> list[tuple[str, str]]:
    """Return all permissions of a user with their scopes, read page by page."""
    found, token = [], ""
    while True:
        request = pb.ListUserPermissionsRequest(user_id=user_id, page_size=size, page_token=token, **filters)
        page = users.ListUserPermissions(request)
        assert len(page.permissions) <= size
        found += [(each.permission, each.scope) for each in page.permissions]
        token = page.next_page_token
        if not token:
            return found


def holders_of(users: UsersServiceStub, permission: str, scope: str = "", size: int = 1000) -> list[str]:
    """Return all holders of a permission, read page by page."""
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListPermissionHoldersRequest(permission=permission, scope=scope, page_size=size, page_token=token)
        page = users.ListPermissionHolders(request)
        assert len(page.holders) <= size
        found += [each.user_id for each in page.holders]
        token = page.next_page_token
        if not token:
            return found
