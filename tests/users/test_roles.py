"""Roles through real gRPC: their life, what refuses a write, and that no order of writes brings about a cycle."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.users.v1 import roles_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from kronos_db.users import roles as rules
from kronos_db.users.role_graph import way_to
from tests.parts.refusal import Refusal, read, refused
from tests.parts.serving import Serving
from tests.users.permits import grant, may, role
from tests.users.population import create, unique

NOBODY = "01a207c9-538b-72bb-b4c6-24200d69a6a3"


@pytest.fixture
def users(serving: Serving) -> UsersServiceStub:
    return serving.users()


def get(users: UsersServiceStub, role_id: str) -> pb.Role:
    return users.GetRole(pb.GetRoleRequest(id=role_id)).role


def update(users: UsersServiceStub, *mask: str, **changes: Any) -> pb.Role:
    request = pb.UpdateRoleRequest(role=pb.Role(**changes), update_mask=FieldMask(paths=mask))
    return users.UpdateRole(request).role


class TestLife:
    def test_create_get_update_delete(self, users: UsersServiceStub) -> None:
        parent = role(users)
        name = unique("Role")
        new = pb.Role(
            name=name, description="What", permissions=["b:c", "a:b", "a:b"], parent_ids=[parent.id.upper(), parent.id]
        )
        created = users.CreateRole(pb.CreateRoleRequest(role=new)).role

        assert (created.name, created.description, created.etag) == (name, "What", "1")
        assert (list(created.permissions), list(created.parent_ids)) == (["a:b", "b:c"], [parent.id])
        assert get(users, created.id.upper()) == created
        assert users.GetRole(pb.GetRoleRequest(name=name.upper())).role == created

        changed = update(users, "name", "permissions", id=created.id, name=f"{name}.x", etag="1", description="no")
        assert (changed.name, changed.description, changed.etag) == (f"{name}.x", "What", "2")
        assert (list(changed.permissions), list(changed.parent_ids)) == ([], [parent.id])
        assert update(users, "parent_ids", id=created.id).parent_ids == []
        everything = update(users, "*", id=created.id, name=name, permissions=["x:y"])
        assert (everything.name, everything.description, list(everything.permissions)) == (name, "", ["x:y"])
        assert update(users, id=created.id, description="again").permissions == ["x:y"]

        users.DeleteRole(pb.DeleteRoleRequest(id=created.id, etag=get(users, created.id).etag))
        assert refused(lambda: get(users, created.id)).reason == "ROLE_NOT_FOUND"

    def test_pages_by_name(self, users: UsersServiceStub) -> None:
        prefix = unique("paged")
        names = sorted(role(users, name=f"{prefix}.{number}").name for number in range(7))
        found, token = [], ""
        while True:
            request = pb.ListRolesRequest(name_prefix=prefix.upper(), page_size=3, page_token=token)
            page = users.ListRoles(request)
            found += [each.name for each in page.roles]
            token = page.next_page_token
            if not token:
                break
        assert found == names

    def test_validate_only_writes_nothing(self, users: UsersServiceStub) -> None:
        name = unique("role")
        users.CreateRole(pb.CreateRoleRequest(role=pb.Role(name=name), validate_only=True))
        assert refused(lambda: users.GetRole(pb.GetRoleRequest(name=name))).reason == "ROLE_NOT_FOUND"
        made = role(users)
        users.UpdateRole(pb.UpdateRoleRequest(role=pb.Role(id=made.id, description="x"), validate_only=True))
        users.DeleteRole(pb.DeleteRoleRequest(id=made.id, validate_only=True))
        assert get(users, made.id) == made

    def test_a_repeat_gets_the_first_answer(self, users: UsersServiceStub) -> None:
        request = pb.CreateRoleRequest(role=pb.Role(name=unique("role")), request_id=str(uuid4()))
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: users.CreateRole(request), range(16)))
        assert answers == [answers[0]] * 16
        made = answers[0].role.id
        change = pb.UpdateRoleRequest(role=pb.Role(id=made, description="x"), request_id=str(uuid4()))
        assert users.UpdateRole(change) == users.UpdateRole(change)
        assert get(users, made).etag == "2"
        end = pb.DeleteRoleRequest(id=made, request_id=str(uuid4()))
        assert users.DeleteRole(end) == users.DeleteRole(end)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"name": ""}, "role.name"),
            ({"name": "a b"}, "role.name"),
            ({"name": "x" * 65}, "role.name"),
            ({"permissions": ["doc:read", "doc"]}, "role.permissions[1]"),
            ({"permissions": ["a:b"] * 1001}, "role.permissions"),
            ({"parent_ids": ["x"]}, "role.parent_ids[0]"),
            ({"description": "x" * 1001}, "role.description"),
        ],
    )
    def test_bad_input(self, users: UsersServiceStub, changes: dict[str, Any], field: str) -> None:
        new = pb.Role(**{"name": unique("role"), **changes})
        refusal = refused(lambda: users.CreateRole(pb.CreateRoleRequest(role=new)))
        assert (refusal.code, refusal.reason, list(refusal.fields)) == ("INVALID_ARGUMENT", "BAD_REQUEST", [field])

    def test_a_name_that_is_taken(self, users: UsersServiceStub) -> None:
        first, second = role(users), role(users)
        for call in (
            lambda: role(users, name=first.name.upper()),
            lambda: update(users, id=second.id, name=first.name.upper()),
        ):
            refusal = refused(call)
            assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "ROLE_NAME_TAKEN")
            assert list(refusal.fields) == ["role.name"]
        assert get(users, second.id) == second

    def test_what_is_not_there(self, users: UsersServiceStub) -> None:
        name = unique("role")
        for call in (
            lambda: get(users, NOBODY),
            lambda: update(users, id=NOBODY, description="x"),
            lambda: users.DeleteRole(pb.DeleteRoleRequest(id=NOBODY)),
        ):
            assert (refused(call).code, refused(call).reason) == ("NOT_FOUND", "ROLE_NOT_FOUND")
        refusal = refused(lambda: role(users, name=name, parents=[role(users).id, NOBODY]))
        assert (refusal.reason, list(refusal.fields)) == ("ROLE_NOT_FOUND", ["role.parent_ids[1]"])
        assert refused(lambda: users.GetRole(pb.GetRoleRequest(name=name))).reason == "ROLE_NOT_FOUND"

    def test_an_old_etag(self, users: UsersServiceStub) -> None:
        made = role(users)
        update(users, id=made.id, description="x")
        for call, field in (
            (lambda: update(users, id=made.id, description="y", etag=made.etag), "role.etag"),
            (lambda: users.DeleteRole(pb.DeleteRoleRequest(id=made.id, etag=made.etag)), "etag"),
        ):
            refusal = refused(call)
            assert (refusal.code, refusal.reason, list(refusal.fields)) == ("ABORTED", "ETAG_MISMATCH", [field])
        assert get(users, made.id).description == "x"

    def test_a_mask_that_names_something_else(self, users: UsersServiceStub) -> None:
        made = role(users)
        assert list(refused(lambda: update(users, "etag", id=made.id)).fields) == ["update_mask.paths[0]"]
        assert list(refused(lambda: update(users, id=made.id)).fields) == ["update_mask"]

    def test_a_granted_role_stays_unless_told_to_revoke(self, users: UsersServiceStub) -> None:
        made, user = role(users, "doc:read"), create(users).id
        grant(users, user, made.id, unique())
        grant(users, user, made.id, unique())

        refusal = refused(lambda: users.DeleteRole(pb.DeleteRoleRequest(id=made.id)))

        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "ROLE_GRANTED")
        assert refusal.metadata == {"grants": "2", "limit": "10000"}
        assert len(users.ListGrants(pb.ListGrantsRequest(role_id=made.id)).grants) == 2
        users.DeleteRole(pb.DeleteRoleRequest(id=made.id, revoke_grants=True))
        assert users.ListGrants(pb.ListGrantsRequest(user_id=user)).grants == []

    def test_more_grants_than_one_call_revokes(self, users: UsersServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kronos_db.users.role_store.MAX_REVOKED", 2)
        made, user = role(users), create(users).id
        for number in range(3):
            grant(users, user, made.id, f"s{number}")

        refusal = refused(lambda: users.DeleteRole(pb.DeleteRoleRequest(id=made.id, revoke_grants=True)))

        assert refusal.reason == "ROLE_GRANTED"
        assert get(users, made.id) == made

    def test_a_role_that_another_inherits_from(self, users: UsersServiceStub) -> None:
        top = role(users)
        low = role(users, parents=[top.id])

        refusal = refused(lambda: users.DeleteRole(pb.DeleteRoleRequest(id=top.id, revoke_grants=True)))

        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "ROLE_INHERITED")
        assert refusal.metadata == {"role": low.name}
        users.DeleteRole(pb.DeleteRoleRequest(id=top.id, detach_children=True))
        assert (get(users, low.id).parent_ids, get(users, low.id).etag) == ([], "2")


class TestCycles:
    def test_the_way_is_named(self, users: UsersServiceStub) -> None:
        top = role(users)
        middle = role(users, parents=[top.id])
        low = role(users, parents=[middle.id])

        refusal = refused(lambda: update(users, id=top.id, parent_ids=[role(users).id, low.id]))

        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "ROLE_CYCLE")
        assert refusal.metadata == {"way": f"{top.name} → {low.name} → {middle.name} → {top.name}"}
        assert list(refusal.fields) == ["role.parent_ids"]
        assert get(users, top.id) == top
        refusal = refused(lambda: update(users, id=top.id, parent_ids=[top.id]))
        assert refusal.metadata == {"way": f"{top.name} → {top.name}"}

    def test_a_parent_may_be_put_elsewhere(self, users: UsersServiceStub) -> None:
        """What the role inherited before does not count: it is replaced."""
        top, low = role(users), role(users)
        update(users, id=low.id, parent_ids=[top.id])
        update(users, "parent_ids", id=low.id)
        assert update(users, id=top.id, parent_ids=[low.id]).parent_ids == [low.id]

    def test_two_that_each_add_one_half(self, users: UsersServiceStub) -> None:
        for _ in range(15):
            one, two = role(users), role(users)
            outcomes = _at_once(
                partial(update, users, id=one.id, parent_ids=[two.id]),
                partial(update, users, id=two.id, parent_ids=[one.id]),
            )
            refusals = [each for each in outcomes if isinstance(each, Refusal)]
            assert [each.reason for each in refusals] == ["ROLE_CYCLE"]

    def test_many_at_once_leave_no_cycle(self, fresh_serving: Serving, database: str) -> None:
        users = fresh_serving.users()
        ids = [role(users).id for _ in range(6)]

        def link(number: int) -> None:
            change = partial(update, users, id=ids[number % 6], parent_ids=[ids[(number * 5 + number // 6) % 6]])
            _outcome(change)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(link, range(90)))

        with psycopg.connect(database) as admin:
            edges: dict[int, list[int]] = {}
            for child, parent in admin.execute("SELECT role, parent FROM users.role_parents"):
                edges.setdefault(child, []).append(parent)
        assert edges
        assert [each for each in edges if way_to(edges[each], each, edges)] == []

    def test_a_parent_that_is_removed_meanwhile(self, users: UsersServiceStub) -> None:
        for _ in range(10):
            one, two = role(users), role(users)
            outcomes = _at_once(
                partial(update, users, id=one.id, parent_ids=[two.id]),
                lambda: users.DeleteRole(pb.DeleteRoleRequest(id=two.id)),  # noqa: B023
            )
            reasons = {each.reason for each in outcomes if isinstance(each, Refusal)}
            assert reasons in ({"ROLE_NOT_FOUND"}, {"ROLE_INHERITED"})

    def test_a_role_that_is_granted_while_it_is_removed(self, users: UsersServiceStub) -> None:
        user = create(users).id
        for _ in range(10):
            made = role(users, "doc:read")
            outcomes = _at_once(
                partial(grant, users, user, made.id, unique()),
                lambda: users.DeleteRole(pb.DeleteRoleRequest(id=made.id)),  # noqa: B023
            )
            reasons = {each.reason for each in outcomes if isinstance(each, Refusal)}
            assert reasons in ({"ROLE_NOT_FOUND"}, {"ROLE_GRANTED"})


def test_who_has_a_role_may_what_it_carries_then(users: UsersServiceStub) -> None:
    user, made = create(users).id, role(users, "doc:read")
    grant(users, user, made.id)
    update(users, id=made.id, permissions=["mail:read"])
    assert [may(users, user, "doc:read"), may(users, user, "mail:read")] == [False, True]


def test_limits_are_those_of_the_contract() -> None:
    assert (rules.MAX_REVOKED, rules.MAX_GRANTS) == (10_000, 1_000)


def _outcome(call: Any) -> Any:
    try:
        return call()
    except grpc.RpcError as error:
        return read(error)


def _at_once(*calls: Any) -> list[Any]:
    barrier = threading.Barrier(len(calls))

    def run(call: Any) -> Any:
        barrier.wait(10)
        return _outcome(call)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))
