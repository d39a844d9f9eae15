"""Retry is safe: one request_id, one effect, one answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts import serving as parts
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.users.population import create, get, new

_AT_ONCE = 16


def _count(serving: Serving, prefix: str) -> int:
    with psycopg.connect(serving.settings.postgres_dsn.get_secret_value()) as connection:  # type: ignore[union-attr]
        row = connection.execute("SELECT count(*) FROM users.users WHERE username LIKE %s", [prefix + "%"]).fetchone()
    assert row is not None
    return int(row[0])


def _batch(size: int = 5) -> pb.BatchCreateUsersRequest:
    return pb.BatchCreateUsersRequest(users=[new() for _ in range(size)], request_id=str(uuid4()))


def _at_once(call: Callable[[], Any]) -> list[Any]:
    barrier = threading.Barrier(_AT_ONCE)

    def run(_: int) -> Any:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(run, range(_AT_ONCE)))


def test_a_repeat_gets_the_first_answer(serving: Serving) -> None:
    users = serving.users()
    one = pb.CreateUserRequest(user=new(), request_id=str(uuid4()))
    many = _batch()

    first, batch = users.CreateUser(one), users.BatchCreateUsers(many)

    assert [users.CreateUser(one) for _ in range(3)] == [first] * 3
    assert users.BatchCreateUsers(many) == batch
    # Also after the user has changed: it is the first answer, not a new one.
    users.UpdateUser(pb.UpdateUserRequest(user=pb.User(id=first.user.id, display_name="later")))
    assert users.CreateUser(one) == first
    users.EraseUser(pb.EraseUserRequest(id=first.user.id))
    assert users.CreateUser(one) == first
    assert _count(serving, one.user.username) == 0


def test_without_a_request_id_there_is_no_memory(serving: Serving) -> None:
    users = serving.users()
    request = pb.CreateUserRequest(user=new())
    users.CreateUser(request)

    assert refused(lambda: users.CreateUser(request)).code == "ALREADY_EXISTS"


@pytest.mark.parametrize("with_id", [True, False], ids=["id given", "id assigned"])
def test_sixteen_at_once_create_once_and_answer_alike(serving: Serving, with_id: bool) -> None:
    users = serving.users()
    one = pb.CreateUserRequest(user=new(id=str(uuid4()) if with_id else ""), request_id=str(uuid4()))
    many = _batch()

    for request, call in ((one, users.CreateUser), (many, users.BatchCreateUsers)):
        answers = _at_once(partial(call, request))  # type: ignore[arg-type]
        assert all(answer == answers[0] for answer in answers)
    assert _count(serving, one.user.username) == 1
    assert [_count(serving, user.username) for user in many.users] == [1] * 5


def test_a_fresh_server_bears_it_and_a_restart_does_not_forget(fresh_serving: Serving) -> None:
    # The connections are new: what they prepare is first prepared while calls collide.
    one = pb.CreateUserRequest(user=new(), request_id=str(uuid4()))
    many = _batch()
    users = fresh_serving.users()
    answers = _at_once(lambda: users.CreateUser(one))
    assert all(answer == answers[0] for answer in answers)
    batch = users.BatchCreateUsers(many)

    fresh_serving.restart()
    users = fresh_serving.users()

    assert users.CreateUser(one) == answers[0]
    assert users.BatchCreateUsers(many) == batch
    again = _at_once(lambda: users.CreateUser(one))
    assert all(answer == answers[0] for answer in again)
    assert _count(fresh_serving, "") == 6
    for _ in range(20):
        create(users)


def test_the_same_id_with_another_body_or_method_is_refused(serving: Serving) -> None:
    users = serving.users()
    one = pb.CreateUserRequest(user=new(), request_id=str(uuid4()))
    user = users.CreateUser(one).user
    other = pb.CreateUserRequest(user=new(), request_id=one.request_id)
    sealed_differs = pb.CreateUserRequest(user=one.user, request_id=one.request_id)
    sealed_differs.user.phone = "+15550009999"
    calls: list[Callable[[], Any]] = [
        lambda: users.CreateUser(other),
        lambda: users.CreateUser(sealed_differs),
        lambda: users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=[new()], request_id=one.request_id)),
        lambda: users.SuspendUser(pb.SuspendUserRequest(id=user.id, request_id=one.request_id)),
        lambda: users.EraseUser(pb.EraseUserRequest(id=user.id, request_id=one.request_id)),
        lambda: users.SetPassword(pb.SetPasswordRequest(id=user.id, password="12345678", request_id=one.request_id)),
    ]

    for call in calls:
        found = refused(call)
        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
        assert list(found.fields) == ["request_id"]
    assert get(users, user.id) == user
    assert _count(serving, other.user.username) == 0


def test_every_mutating_method_is_done_once(serving: Serving) -> None:
    users = serving.users()
    user_id = create(users).id
    # In an order in which each would fail, or change something, if it were done twice.
    requests: list[tuple[Any, Any]] = [
        (users.UpdateUser, pb.UpdateUserRequest(user=pb.User(id=user_id, display_name="once"))),
        (users.SuspendUser, pb.SuspendUserRequest(id=user_id)),
        (users.ReactivateUser, pb.ReactivateUserRequest(id=user_id)),
        (users.SetPassword, pb.SetPasswordRequest(id=user_id, password="correct horse")),
        (users.DeleteUser, pb.DeleteUserRequest(id=user_id)),
        (users.UndeleteUser, pb.UndeleteUserRequest(id=user_id)),
        (users.EraseUser, pb.EraseUserRequest(id=user_id)),
    ]

    for call, request in requests:
        request.request_id = str(uuid4())
        answers = _at_once(partial(call, request))
        assert all(answer == answers[0] for answer in answers), request
    # And all of them again, in the end.
    for call, request in requests:
        call(request)
    assert refused(lambda: get(users, user_id)).code == "NOT_FOUND"


def test_a_call_that_was_refused_may_be_made_good_under_its_id(serving: Serving) -> None:
    users = serving.users()
    taken = create(users)
    request = pb.CreateUserRequest(user=new(username=taken.username), request_id=str(uuid4()))
    assert refused(lambda: users.CreateUser(request)).code == "ALREADY_EXISTS"

    users.EraseUser(pb.EraseUserRequest(id=taken.id))

    assert users.CreateUser(request).user.username == taken.username


def test_ids_belong_to_their_callers(tmp_path: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CALLERS", {"operator": '["*"]', "other": '["kronos.users.v1.UsersService/*"]'})
    serving = Serving(tmp_path, database)
    serving.start()
    try:
        mine, theirs = serving.users("operator"), serving.users("other")
        request_id = str(uuid4())
        first = pb.CreateUserRequest(user=new(), request_id=request_id)
        second = pb.CreateUserRequest(user=new(), request_id=request_id)

        one, two = mine.CreateUser(first), theirs.CreateUser(second)

        assert one.user.id != two.user.id
        # Nobody gets the stored answer of somebody else.
        assert refused(lambda: theirs.CreateUser(first)).reason == "REQUEST_ID_REUSED"
        assert (mine.CreateUser(first), theirs.CreateUser(second)) == (one, two)
    finally:
        serving.stop()


def test_a_request_id_that_is_none_is_named(serving: Serving) -> None:
    users: UsersServiceStub = serving.users()

    for request_id in ("x", "0190b6f27c1e70008000000000000000"):
        found = refused(partial(users.CreateUser, pb.CreateUserRequest(user=new(), request_id=request_id)))
        assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", ["request_id"])
