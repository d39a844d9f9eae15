"""CheckPermission, its batch and both listings through real gRPC: who may do what, why, and right after a change."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import pytest
from kronos.users.v1 import roles_pb2 as pb
from kronos.users.v1 import users_pb2
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from kronos_db.users.access_store import AccessStore
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.users.permits import explain, grant, holders_of, in_seconds, may, permissions_of, role
from tests.users.population import create, unique


@pytest.fixture
def users(serving: Serving) -> UsersServiceStub:
    return serving.users()


@pytest.fixture
def ann(users: UsersServiceStub) -> str:
    return create(users).id


def action() -> str:
    """Return a permission that no other test has."""
    return f"{unique('doc')}:read"


class TestWhatAllows:
    @pytest.mark.parametrize("pattern", ["{r}:read", "{r}:*", "*:read", "*:*"])
    def test_a_permission_that_covers_it(self, users: UsersServiceStub, ann: str, pattern: str) -> None:
        wanted = action()
        grant(users, ann, role(users, pattern.format(r=wanted.partition(":")[0])).id)

        assert may(users, ann, wanted)
        assert may(users, ann.upper(), wanted, "any/where")

    def test_nothing_else(self, users: UsersServiceStub, ann: str) -> None:
        grant(users, ann, role(users, "doc:read", "*:list", "mail:*").id)

        assert [may(users, ann, each) for each in ("doc:write", "Doc:read", "list:doc", "mails:x", "doc:reads")] == [
            False
        ] * 5

    def test_a_wildcard_is_asked_for_as_a_whole(self, users: UsersServiceStub, ann: str) -> None:
        grant(users, ann, role(users, "doc:read", "doc:write", "mail:*").id)

        assert may(users, ann, "mail:*")
        assert not may(users, ann, "doc:*")
        assert not may(users, ann, "*:read")

    def test_the_scope_and_below(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        grant(users, ann, role(users, wanted).id, "tenant/acme")

        scopes = ["tenant/acme", "tenant/acme/project/x", "", "tenant", "tenant/acm", "tenant/acme2", "x/tenant/acme"]
        assert [may(users, ann, wanted, scope) for scope in scopes] == [True, True, *[False] * 5]

    def test_inheritance_ten_deep(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        roles = [role(users, wanted)]
        for _ in range(10):
            roles.append(role(users, parents=[roles[-1].id]))
        grant(users, ann, roles[-1].id)

        assert may(users, ann, wanted)
        assert [each.id for each in explain(users, ann, wanted).roles] == [each.id for each in reversed(roles)]

    def test_who_is_unknown_suspended_or_deleted_may_nothing(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        grant(users, ann, role(users, wanted).id)

        assert explain(users, str(uuid4()), wanted).reason == pb.CHECK_REASON_USER_UNKNOWN
        assert explain(users, ann, wanted).reason == pb.CHECK_REASON_GRANTED
        users.SuspendUser(users_pb2.SuspendUserRequest(id=ann))
        assert explain(users, ann, wanted).reason == pb.CHECK_REASON_USER_SUSPENDED
        users.ReactivateUser(users_pb2.ReactivateUserRequest(id=ann))
        assert may(users, ann, wanted)
        users.DeleteUser(users_pb2.DeleteUserRequest(id=ann))
        assert explain(users, ann, wanted).reason == pb.CHECK_REASON_USER_DELETED
        users.UndeleteUser(users_pb2.UndeleteUserRequest(id=ann))
        assert may(users, ann, wanted)
        users.EraseUser(users_pb2.EraseUserRequest(id=ann))
        assert explain(users, ann, wanted).reason == pb.CHECK_REASON_USER_UNKNOWN


class TestRightAfterAChange:
    def test_of_a_grant(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        given = role(users, wanted)
        for _ in range(3):
            assert not may(users, ann, wanted)
            made = grant(users, ann, given.id)
            assert may(users, ann, wanted)
            users.RevokeRole(pb.RevokeRoleRequest(grant_id=made.id))

    def test_of_a_role(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        top, child = role(users), role(users)
        grant(users, ann, child.id)
        assert not may(users, ann, wanted)
        users.UpdateRole(pb.UpdateRoleRequest(role=pb.Role(id=child.id, parent_ids=[top.id])))
        assert not may(users, ann, wanted)
        users.UpdateRole(pb.UpdateRoleRequest(role=pb.Role(id=top.id, permissions=[wanted])))
        assert may(users, ann, wanted)
        users.DeleteRole(pb.DeleteRoleRequest(id=top.id, detach_children=True))
        assert not may(users, ann, wanted)
        users.UpdateRole(pb.UpdateRoleRequest(role=pb.Role(id=child.id, permissions=[wanted])))
        assert may(users, ann, wanted)
        users.DeleteRole(pb.DeleteRoleRequest(id=child.id, revoke_grants=True))
        assert not may(users, ann, wanted)

    def test_a_change_to_one_user_or_a_role_drops_no_copy_of_another_user(
        self, users: UsersServiceStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []
        original = AccessStore.holdings
        monkeypatch.setattr(
            AccessStore, "holdings", lambda self, ids, known: (read.extend(ids), original(self, ids, known))[1]
        )
        wanted = action()
        given = role(users, wanted)
        ann, ben = create(users).id, create(users).id
        grant(users, ann, given.id)
        assert may(users, ann, wanted)
        read.clear()

        for _ in range(5):
            users.RevokeRole(pb.RevokeRoleRequest(grant_id=grant(users, ben, given.id).id))
            users.UpdateUser(users_pb2.UpdateUserRequest(user=users_pb2.User(id=ben, display_name=unique())))
            users.UpdateRole(pb.UpdateRoleRequest(role=pb.Role(id=given.id, description=unique())))
            assert may(users, ann, wanted)
            assert not may(users, ben, wanted)

        assert read.count(ben) == 5
        # What the log of changes tells of her own grant may void her copy once more.
        assert read.count(ann) <= 1

    def test_an_expiry(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        given = role(users, wanted)
        grant(users, ann, given.id, expire_time=in_seconds(1.5))
        assert may(users, ann, wanted)
        until = time.monotonic() + 1.5
        while time.monotonic() < until + 0.05:
            allowed, asked = may(users, ann, wanted), time.monotonic()
        assert not allowed, asked
        # It is gone: the same grant can be made anew, whether or not the background work was there already.
        grant(users, ann, given.id)
        assert may(users, ann, wanted)

    def test_an_expiry_put_off_and_brought_forward(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        made = grant(users, ann, role(users, wanted).id, expire_time=in_seconds(1.0))
        assert may(users, ann, wanted)
        later = users.UpdateGrant(pb.UpdateGrantRequest(grant=pb.Grant(id=made.id, expire_time=in_seconds(60)))).grant
        time.sleep(1.2)
        assert may(users, ann, wanted)
        soon = pb.Grant(id=made.id, etag=later.etag, expire_time=in_seconds(0.3))
        users.UpdateGrant(pb.UpdateGrantRequest(grant=soon))
        eventually(lambda: not may(users, ann, wanted), 3)


class TestExplanation:
    def test_which_grant_through_which_roles_until_when(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        top = role(users, f"{wanted.partition(':')[0]}:*")
        low = role(users, parents=[top.id])
        grant(users, ann, low.id, "a/b", expire_time=in_seconds(60))
        long = grant(users, ann, low.id, "a", expire_time=in_seconds(600))

        why = explain(users, ann, wanted, "a/b/c")

        assert why.grant == long
        assert [(each.id, each.name) for each in why.roles] == [(low.id, low.name), (top.id, top.name)]
        assert why.permission == top.permissions[0]
        assert explain(users, ann, wanted, "b").reason == pb.CHECK_REASON_NOT_GRANTED
        for_ever = grant(users, ann, top.id)
        assert explain(users, ann, wanted, "a/b/c").grant == for_ever


class TestBatch:
    def test_answers_in_order_result_or_error(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        grant(users, ann, role(users, wanted).id, "a")
        question = pb.PermissionQuestion
        questions = [
            question(user_id=ann, permission=wanted, scope="a/b"),
            question(user_id=ann, permission=wanted),
            question(user_id="nobody", permission=wanted),
            question(user_id=ann, permission="nothing"),
            question(user_id=ann, permission=wanted, scope="/a"),
            question(user_id=str(uuid4()), permission=wanted),
            question(user_id=ann.upper(), permission=wanted, scope="a"),
        ]

        answers = users.BatchCheckPermissions(pb.BatchCheckPermissionsRequest(questions=questions)).answers

        assert [each.allowed for each in answers] == [True, False, False, False, False, False, True]
        assert [each.error.field for each in answers] == [
            "",
            "",
            "questions[2].user_id",
            "questions[3].permission",
            "questions[4].scope",
            "",
            "",
        ]
        assert {each.error.reason for each in answers[2:5]} == {"BAD_REQUEST"}

    def test_a_thousand_and_one_more(self, users: UsersServiceStub, ann: str) -> None:
        wanted = action()
        grant(users, ann, role(users, wanted).id)
        many = [pb.PermissionQuestion(user_id=ann, permission=wanted)] * 1000

        answers = users.BatchCheckPermissions(pb.BatchCheckPermissionsRequest(questions=many)).answers

        assert [each.allowed for each in answers] == [True] * 1000
        for wrong in ([], [*many, many[0]]):
            refusal = refused(
                lambda: users.BatchCheckPermissions(pb.BatchCheckPermissionsRequest(questions=wrong))  # noqa: B023
            )
            assert (refusal.code, list(refusal.fields)) == ("INVALID_ARGUMENT", ["questions"])


class TestListings:
    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    def test_all_of_a_user_page_by_page(self, users: UsersServiceStub, ann: str, size: int) -> None:
        top = role(users, "doc:read", "doc:*")
        low = role(users, "mail:send", "doc:read", parents=[top.id])
        grant(users, ann, low.id, "a")
        grant(users, ann, top.id, "a/b")

        assert permissions_of(users, ann, size) == [
            ("doc:*", "a"),
            ("doc:*", "a/b"),
            ("doc:read", "a"),
            ("doc:read", "a/b"),
            ("mail:send", "a"),
        ]
        assert permissions_of(users, ann, size, scope="a") == [("doc:*", "a"), ("doc:read", "a"), ("mail:send", "a")]
        assert permissions_of(users, ann, size, scope="") == []
        users.SuspendUser(users_pb2.SuspendUserRequest(id=ann))
        assert permissions_of(users, ann, size) == []

    def test_until_when(self, users: UsersServiceStub, ann: str) -> None:
        one, two = action(), action()
        first, second = role(users, one), role(users, one, two)
        soon, late = in_seconds(60), in_seconds(600)
        grant(users, ann, first.id, "a", expire_time=late)
        grant(users, ann, second.id, "a", expire_time=soon)

        page = users.ListUserPermissions(pb.ListUserPermissionsRequest(user_id=ann)).permissions
        until = {each.permission: each.expire_time.ToMicroseconds() for each in page}
        holder = self._holder(users, ann, one)

        assert until == {one: late.ToMicroseconds(), two: soon.ToMicroseconds()}
        assert holder.expire_time.ToMicroseconds() == late.ToMicroseconds()
        grant(users, ann, second.id)
        assert not self._holder(users, ann, one).HasField("expire_time")

    @staticmethod
    def _holder(users: UsersServiceStub, user_id: str, permission: str) -> pb.PermissionHolder:
        request = pb.ListPermissionHoldersRequest(permission=permission, scope="a", page_size=1000)
        return next(each for each in users.ListPermissionHolders(request).holders if each.user_id == user_id)

    @pytest.mark.parametrize("size", [1, 2, 1000])
    def test_all_holders_page_by_page(self, users: UsersServiceStub, size: int) -> None:
        # `*:*` of other tests would be found too.
        wanted, where = action(), unique("only")
        top = role(users, wanted)
        low = role(users, parents=[top.id])
        ids = [create(users).id for _ in range(5)]
        for user_id in ids:
            grant(users, user_id, low.id, where)
        grant(users, ids[0], top.id, f"{where}/a")
        grant(users, ids[1], top.id, where, expire_time=in_seconds(60))
        elsewhere = create(users).id
        grant(users, elsewhere, low.id, f"{where}/b")
        users.SuspendUser(users_pb2.SuspendUserRequest(id=ids[4]))

        found = holders_of(users, wanted, f"{where}/a", size)

        assert [each for each in found if each in {*ids, elsewhere}] == sorted(ids[:4])
        assert found == sorted(set(found))

    def test_an_unknown_user(self, users: UsersServiceStub) -> None:
        request = pb.ListUserPermissionsRequest(user_id=str(uuid4()))
        refusal = refused(lambda: users.ListUserPermissions(request))
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "USER_NOT_FOUND")


@pytest.mark.parametrize("permission", ["", "doc", "doc:", ":read", "doc:read:x", "d c:read", "**:read", "-a:b", "ä:b"])
def test_a_malformed_permission(users: UsersServiceStub, ann: str, permission: str) -> None:
    for call in (
        lambda: users.CheckPermission(pb.CheckPermissionRequest(user_id=ann, permission=permission)),
        lambda: users.ListPermissionHolders(pb.ListPermissionHoldersRequest(permission=permission)),
    ):
        refusal = refused(call)
        assert (refusal.code, refusal.reason, list(refusal.fields)) == (
            "INVALID_ARGUMENT",
            "BAD_REQUEST",
            ["permission"],
        )


BAD_SCOPES = ["/", "/a", "a/", "a//b", "a b", "ä", "a/" * 16 + "a", "a" * 257]


@pytest.mark.parametrize("scope", BAD_SCOPES)
def test_a_malformed_scope(users: UsersServiceStub, ann: str, scope: str) -> None:
    calls: list[Any] = [
        lambda: users.CheckPermission(pb.CheckPermissionRequest(user_id=ann, permission="a:b", scope=scope)),
        lambda: users.ListPermissionHolders(pb.ListPermissionHoldersRequest(permission="a:b", scope=scope)),
        lambda: users.ListUserPermissions(pb.ListUserPermissionsRequest(user_id=ann, scope=scope)),
        lambda: users.ListGrants(pb.ListGrantsRequest(scope=scope)),
    ]
    for call in calls:
        refusal = refused(call)
        assert (refusal.code, list(refusal.fields)) == ("INVALID_ARGUMENT", ["scope"])
