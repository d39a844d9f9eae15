"""Grants through real gRPC: their life, what refuses a write, and what those who watch are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kronos.users.v1 import roles_pb2 as pb
from kronos.users.v1 import users_pb2
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.commit_order import Write, assert_in_commit_order, timed
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.parts.watching import LIMIT
from tests.users.permits import grant, in_seconds, may, role
from tests.users.population import create, unique

NOBODY = "01a207c9-538b-72bb-b4c6-24200d69a6a3"


@pytest.fixture
def users(serving: Serving) -> UsersServiceStub:
    return serving.users()


@pytest.fixture
def ann(users: UsersServiceStub) -> str:
    return create(users).id


def grants_of(users: UsersServiceStub, user_id: str, size: int = 1000, **filters: str) -> list[pb.Grant]:
    found: list[pb.Grant] = []
    token = ""
    while True:
        request = pb.ListGrantsRequest(user_id=user_id, page_size=size, page_token=token, **filters)
        page = users.ListGrants(request)
        found += page.grants
        token = page.next_page_token
        if not token:
            return found


class TestLife:
    def test_grant_update_revoke(self, users: UsersServiceStub, ann: str) -> None:
        given = role(users, "doc:read")
        soon, late = in_seconds(60), in_seconds(600)
        made = grant(users, ann.upper(), given.id.upper(), "tenant/acme", expire_time=soon)

        assert (made.user_id, made.role_id, made.scope, made.etag) == (ann, given.id, "tenant/acme", "1")
        assert made.expire_time.ToMicroseconds() == soon.ToMicroseconds()
        assert grants_of(users, ann) == [made]

        later = users.UpdateGrant(pb.UpdateGrantRequest(grant=pb.Grant(id=made.id, etag="1", expire_time=late))).grant
        assert (later.etag, later.expire_time.ToMicroseconds()) == ("2", late.ToMicroseconds())
        mask = FieldMask(paths=["expire_time"])
        never = users.UpdateGrant(pb.UpdateGrantRequest(grant=pb.Grant(id=made.id), update_mask=mask)).grant
        assert not never.HasField("expire_time")
        assert grants_of(users, ann) == [never]

        users.RevokeRole(pb.RevokeRoleRequest(grant_id=made.id, etag="3"))
        assert grants_of(users, ann) == []

    @pytest.mark.parametrize("size", [1, 2, 1000])
    def test_listing(self, users: UsersServiceStub, ann: str, size: int) -> None:
        one, two = role(users), role(users)
        made = [
            grant(users, ann, one.id),
            grant(users, ann, one.id, "a"),
            grant(users, ann, two.id, "a"),
            grant(users, ann, two.id, "a/b"),
            grant(users, ann, two.id, "ab"),
        ]
        assert grants_of(users, ann, size) == made
        assert grants_of(users, ann, size, role_id=one.id) == made[:2]
        assert grants_of(users, ann, size, scope="a") == made[1:4]
        assert grants_of(users, ann, size, role_id=two.id, scope="a/b") == [made[3]]

    def test_validate_only_writes_nothing(self, users: UsersServiceStub, ann: str) -> None:
        given = role(users, "doc:read")
        new = pb.Grant(user_id=ann, role_id=given.id)
        users.GrantRole(pb.GrantRoleRequest(grant=new, validate_only=True))
        assert grants_of(users, ann) == []
        made = grant(users, ann, given.id)
        end = pb.Grant(id=made.id, expire_time=in_seconds(60))
        users.UpdateGrant(pb.UpdateGrantRequest(grant=end, validate_only=True))
        users.RevokeRole(pb.RevokeRoleRequest(grant_id=made.id, validate_only=True))
        assert grants_of(users, ann) == [made]
        assert may(users, ann, "doc:read")

    def test_a_repeat_gets_the_first_answer(self, users: UsersServiceStub, ann: str) -> None:
        new = pb.Grant(user_id=ann, role_id=role(users).id, expire_time=in_seconds(60))
        request = pb.GrantRoleRequest(grant=new, request_id=str(uuid4()))
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: users.GrantRole(request), range(16)))
        assert answers == [answers[0]] * 16
        end = pb.RevokeRoleRequest(grant_id=answers[0].grant.id, request_id=str(uuid4()))
        with ThreadPoolExecutor(8) as threads:
            assert len(list(threads.map(lambda _: users.RevokeRole(end), range(8)))) == 8
        assert users.GrantRole(request) == answers[0]
        assert grants_of(users, ann) == []

    def test_erasing_a_user_ends_its_grants(self, users: UsersServiceStub, ann: str) -> None:
        given = role(users)
        grant(users, ann, given.id)
        users.EraseUser(users_pb2.EraseUserRequest(id=ann))
        assert grants_of(users, ann) == []
        users.DeleteRole(pb.DeleteRoleRequest(id=given.id))


class TestRefusals:
    def test_bad_input(self, users: UsersServiceStub, ann: str) -> None:
        given = role(users).id
        bad = Timestamp(seconds=10**15)
        for changes, field in [
            ({"user_id": "x"}, "grant.user_id"),
            ({"user_id": ""}, "grant"),
            ({"role_id": "x"}, "grant.role_id"),
            ({"role_id": ""}, "grant"),
            ({"scope": "/a"}, "grant.scope"),
            ({"scope": "a/" * 16 + "a"}, "grant.scope"),
            ({"scope": "a" * 257}, "grant.scope"),
            ({"expire_time": in_seconds(-1)}, "grant.expire_time"),
            ({"expire_time": bad}, "grant.expire_time"),
        ]:
            new = pb.Grant(**{"user_id": ann, "role_id": given, **changes})  # type: ignore[arg-type]
            refusal = refused(lambda: users.GrantRole(pb.GrantRoleRequest(grant=new)))  # noqa: B023
            assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
            assert list(refusal.fields) == [field]
        assert grants_of(users, ann) == []

    def test_what_is_not_there(self, users: UsersServiceStub, ann: str) -> None:
        given = role(users).id
        refusal = refused(lambda: grant(users, NOBODY, given))
        assert (refusal.code, refusal.reason, list(refusal.fields)) == (
            "NOT_FOUND",
            "USER_NOT_FOUND",
            ["grant.user_id"],
        )
        refusal = refused(lambda: grant(users, ann, NOBODY))
        assert (refusal.code, refusal.reason, list(refusal.fields)) == (
            "NOT_FOUND",
            "ROLE_NOT_FOUND",
            ["grant.role_id"],
        )
        users.DeleteUser(users_pb2.DeleteUserRequest(id=ann))
        assert refused(lambda: grant(users, ann, given)).reason == "USER_NOT_FOUND"
        for call in (
            lambda: users.RevokeRole(pb.RevokeRoleRequest(grant_id=NOBODY)),
            lambda: users.UpdateGrant(pb.UpdateGrantRequest(grant=pb.Grant(id=NOBODY, expire_time=in_seconds(60)))),
        ):
            assert (refused(call).code, refused(call).reason) == ("NOT_FOUND", "GRANT_NOT_FOUND")

    def test_a_duplicate(self, users: UsersServiceStub, ann: str) -> None:
        given = role(users).id
        made = grant(users, ann, given, "a")
        refusal = refused(lambda: grant(users, ann, given, "a", expire_time=in_seconds(60)))
        assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "GRANT_EXISTS")
        assert grants_of(users, ann) == [made]
        grant(users, ann, given, "a/b")

    def test_an_old_etag_and_a_past_expiry(self, users: UsersServiceStub, ann: str) -> None:
        made = grant(users, ann, role(users).id, expire_time=in_seconds(60))
        later = pb.Grant(id=made.id, expire_time=in_seconds(120))
        changed = users.UpdateGrant(pb.UpdateGrantRequest(grant=later)).grant
        old = pb.Grant(id=made.id, etag=made.etag, expire_time=in_seconds(60))
        for call, field in (
            (lambda: users.UpdateGrant(pb.UpdateGrantRequest(grant=old)), "grant.etag"),
            (lambda: users.RevokeRole(pb.RevokeRoleRequest(grant_id=made.id, etag=made.etag)), "etag"),
        ):
            refusal = refused(call)
            assert (refusal.code, refusal.reason, list(refusal.fields)) == ("ABORTED", "ETAG_MISMATCH", [field])
        past = pb.Grant(id=made.id, expire_time=in_seconds(-1))
        refusal = refused(lambda: users.UpdateGrant(pb.UpdateGrantRequest(grant=past)))
        assert (refusal.code, list(refusal.fields)) == ("INVALID_ARGUMENT", ["grant.expire_time"])
        assert list(refused(lambda: users.UpdateGrant(pb.UpdateGrantRequest(grant=pb.Grant(id=made.id)))).fields) == [
            "update_mask"
        ]
        mask = FieldMask(paths=["scope"])
        refusal = refused(
            lambda: users.UpdateGrant(pb.UpdateGrantRequest(grant=pb.Grant(id=made.id), update_mask=mask))
        )
        assert list(refusal.fields) == ["update_mask.paths[0]"]
        assert grants_of(users, ann) == [changed]

    def test_more_grants_than_a_user_may_have(
        self, users: UsersServiceStub, ann: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kronos_db.users.grant_store.MAX_GRANTS", 2)
        given = role(users).id
        grant(users, ann, given, "a")
        grant(users, ann, given, "b")
        refusal = refused(lambda: grant(users, ann, given, "c"))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "TOO_MANY_GRANTS")
        assert len(grants_of(users, ann)) == 2


class TestExpiry:
    @pytest.fixture
    def late(self, fresh_serving: Serving) -> Serving:
        """A server whose background work does not come to remove what has expired."""
        for work in fresh_serving.server._domains._background:
            if work.name == "expire-grants":
                work.stop()
        return fresh_serving

    def test_what_has_expired_is_gone_though_it_is_still_there(self, late: Serving, database: str) -> None:
        users = late.users()
        ann, given = create(users).id, role(users, "doc:read")
        made = grant(users, ann, given.id, expire_time=in_seconds(60))
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("UPDATE users.grants SET expire_time = now() - interval '1 ms'")
            # Past the server: copies do not know of it.
            assert may(users, create(users).id, "doc:read") is False

            assert grants_of(users, ann) == []
            for call in (
                lambda: users.RevokeRole(pb.RevokeRoleRequest(grant_id=made.id)),
                lambda: users.UpdateGrant(
                    pb.UpdateGrantRequest(grant=pb.Grant(id=made.id, expire_time=in_seconds(60)))
                ),
            ):
                assert refused(call).reason == "GRANT_NOT_FOUND"
            assert may(users, ann, "doc:read") is False
            # The same can be granted anew, and the old one is told to have expired.
            again = grant(users, ann, given.id)
            assert grants_of(users, ann) == [again]
            told = admin.execute("SELECT body->>'event' FROM users.change WHERE kind = 'grant' ORDER BY place, part")
            assert [row[0] for row in told] == ["role_granted", "grant_expired", "role_granted"]

    def test_no_decision_outlives_an_expiry_when_nobody_removes_it(self, late: Serving) -> None:
        users = late.users()
        ann, given = create(users).id, role(users, "doc:read")
        grant(users, ann, given.id, expire_time=in_seconds(1.0))
        made = users.ListGrants(pb.ListGrantsRequest(user_id=ann)).grants[0]
        end = made.expire_time.ToMicroseconds() / 1e6
        answers = []
        while not answers or answers[-1][1] < end + 0.3:
            begun = in_seconds(0).ToMicroseconds() / 1e6
            answers.append((may(users, ann, "doc:read"), begun))
        assert answers[0][0]
        assert [begun for allowed, begun in answers if allowed and begun > end] == []
        assert not answers[-1][0]


class TestWatching:
    @pytest.fixture
    def watch(self, serving: Serving) -> Iterator[Callable[..., Any]]:
        streams: list[Any] = []

        def begin(**request: Any) -> Any:
            streams.append(serving.users().WatchUsers(users_pb2.WatchUsersRequest(**request), timeout=LIMIT))
            next(streams[-1])
            return streams[-1]

        yield begin
        for stream in streams:
            stream.cancel()

    def test_grants_of_a_user_expiry_included(
        self, users: UsersServiceStub, ann: str, watch: Callable[..., Any]
    ) -> None:
        stream = watch(user_ids=[ann])
        given = role(users, "doc:read")
        made = grant(users, ann, given.id)
        users.UpdateGrant(pb.UpdateGrantRequest(grant=pb.Grant(id=made.id, expire_time=in_seconds(0.5))))
        other = grant(users, ann, given.id, "a")
        users.RevokeRole(pb.RevokeRoleRequest(grant_id=other.id))

        changes = [next(stream).change for _ in range(5)]

        names = [users_pb2.UserEvent.Name(change.event).removeprefix("USER_EVENT_") for change in changes]
        assert names == ["ROLE_GRANTED", "GRANT_UPDATED", "ROLE_GRANTED", "ROLE_REVOKED", "GRANT_EXPIRED"]
        assert [change.grant_id for change in changes] == [made.id, made.id, other.id, other.id, made.id]
        assert {(change.user_id, change.role_id) for change in changes} == {(ann, given.id)}
        assert [change.etag for change in changes] == ["1", "2", "1", "1", "2"]
        assert not may(users, ann, "doc:read")

    def test_roles(self, users: UsersServiceStub, ann: str, watch: Callable[..., Any]) -> None:
        stream = watch(kinds=[users_pb2.WATCHED_KIND_ROLES])
        made = role(users)
        low = role(users, parents=[made.id])
        grant(users, ann, made.id)
        users.UpdateRole(pb.UpdateRoleRequest(role=pb.Role(id=made.id, description="x")))
        users.DeleteRole(pb.DeleteRoleRequest(id=made.id, revoke_grants=True, detach_children=True))

        changes = [next(stream).change for _ in range(5)]

        names = [users_pb2.UserEvent.Name(change.event).removeprefix("USER_EVENT_") for change in changes]
        assert names == ["ROLE_CREATED", "ROLE_CREATED", "ROLE_UPDATED", "ROLE_UPDATED", "ROLE_DELETED"]
        assert [change.role_id for change in changes] == [made.id, low.id, made.id, low.id, made.id]
        assert {(change.user_id, change.grant_id) for change in changes} == {("", "")}

    def test_everything_in_the_order_of_the_commits(self, users: UsersServiceStub, watch: Callable[..., Any]) -> None:
        stream = watch()
        user = create(users).id
        made = role(users)
        given = grant(users, user, made.id)
        users.DeleteRole(pb.DeleteRoleRequest(id=made.id, revoke_grants=True))

        told = [next(stream).change for _ in range(5)]

        assert [(change.user_id, change.grant_id, change.role_id) for change in told] == [
            (user, "", ""),
            ("", "", made.id),
            (user, given.id, made.id),
            (user, given.id, made.id),
            ("", "", made.id),
        ]

    def test_concurrent_writers(self, users: UsersServiceStub, watch: Callable[..., Any]) -> None:
        """Eight writers on four users: each change is told once, and in the order of the commits."""
        ids = [create(users).id for _ in range(4)]
        given = role(users).id
        stream = watch(user_ids=ids)

        def write(number: int) -> list[Write]:
            writes = []
            for turn in range(8):
                made, began, ended = timed(lambda: grant(users, ids[number % 4], given, f"s{number}/{turn}"))  # noqa: B023
                writes.append(Write(made.id, 1, began, ended))
                change = pb.UpdateGrantRequest(grant=pb.Grant(id=made.id, expire_time=in_seconds(60)))
                _, began, ended = timed(lambda: users.UpdateGrant(change))  # noqa: B023
                writes.append(Write(made.id, 2, began, ended))
                end = pb.RevokeRoleRequest(grant_id=made.id)
                _, began, ended = timed(lambda: users.RevokeRole(end))  # noqa: B023
                writes.append(Write(f"end of {made.id}", 2, began, ended))
            return writes

        with ThreadPoolExecutor(8) as threads:
            writes = [each for of in threads.map(write, range(8)) for each in of]
        told = [next(stream).change for _ in writes]

        ends = {users_pb2.USER_EVENT_ROLE_REVOKED: "end of "}
        assert_in_commit_order(
            [(ends.get(change.event, "") + change.grant_id, int(change.etag)) for change in told], writes
        )

    def test_only_what_was_asked_for(self, users: UsersServiceStub, ann: str, watch: Callable[..., Any]) -> None:
        stream = watch(kinds=[users_pb2.WATCHED_KIND_USERS], user_ids=[ann])
        grant(users, ann, role(users).id)
        users.SuspendUser(users_pb2.SuspendUserRequest(id=ann))
        assert next(stream).change.event == users_pb2.USER_EVENT_SUSPENDED

    def test_roles_of_a_user_are_not_a_thing(self, ann: str, watch: Callable[..., Any]) -> None:
        kinds = [users_pb2.WATCHED_KIND_ROLES]
        refusal = refused(lambda: watch(kinds=kinds, user_ids=[ann]))
        assert (refusal.code, list(refusal.fields)) == ("INVALID_ARGUMENT", ["kinds"])
        refusal = refused(lambda: watch(kinds=[users_pb2.WATCHED_KIND_UNSPECIFIED]))
        assert (refusal.code, list(refusal.fields)) == ("INVALID_ARGUMENT", ["kinds[0]"])

    def test_no_name_is_told(self, users: UsersServiceStub, ann: str, watch: Callable[..., Any]) -> None:
        stream = watch(kinds=[users_pb2.WATCHED_KIND_ROLES, users_pb2.WATCHED_KIND_GRANTS])
        name, scope = unique("secretrole"), unique("secretscope")
        grant(users, ann, role(users, name=name).id, scope)
        for message in (next(stream), next(stream)):
            assert name.encode() not in message.SerializeToString()
            assert scope.encode() not in message.SerializeToString()
