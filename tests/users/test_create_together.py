"""Calls of CreateUser that come together share a transaction, and what is wrong with one of them is its own."""

from __future__ import annotations

import uuid
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import psycopg
from kronos.users.v1 import users_pb2 as pb

from tests.parts.refusal import read
from tests.parts.serving import Serving

CALLERS = 48


def create_at_once(serving: Serving, requests: list[pb.CreateUserRequest]) -> list[Future[pb.CreateUserResponse]]:
    users = serving.users()
    with ThreadPoolExecutor(len(requests)) as threads:
        return [threads.submit(users.CreateUser, request, timeout=30) for request in requests]


def transactions(serving: Serving) -> int:
    """The number of transactions that have changed users."""
    assert serving.settings.postgres_dsn is not None
    with psycopg.connect(serving.settings.postgres_dsn.get_secret_value()) as connection:
        row = connection.execute("SELECT count(DISTINCT xid) FROM users.change").fetchone()
    assert row is not None
    return int(row[0])


def test_calls_that_come_together_share_transactions(fresh_serving: Serving) -> None:
    requests = [pb.CreateUserRequest(user=pb.User(username=f"user{n}")) for n in range(CALLERS)]
    answers = [future.result() for future in create_at_once(fresh_serving, requests)]
    assert [answer.user.username for answer in answers] == [request.user.username for request in requests]
    assert len({answer.user.id for answer in answers}) == CALLERS
    assert transactions(fresh_serving) < CALLERS


def test_what_is_wrong_with_one_is_its_own(fresh_serving: Serving) -> None:
    fresh_serving.users().CreateUser(pb.CreateUserRequest(user=pb.User(username="taken")))
    names = [f"user{n}" if n % 8 else "taken" for n in range(CALLERS)]
    requests = [pb.CreateUserRequest(user=pb.User(username=name)) for name in names]
    for name, future in zip(names, create_at_once(fresh_serving, requests), strict=True):
        error = future.exception()
        if name == "taken":
            assert isinstance(error, grpc.RpcError)
            assert read(error).reason == "USERNAME_TAKEN"
        else:
            assert future.result().user.username == name


def test_two_that_exclude_each_other(fresh_serving: Serving) -> None:
    requests = [pb.CreateUserRequest(user=pb.User(username=f"user{n % 2}")) for n in range(CALLERS)]
    futures = create_at_once(fresh_serving, requests)
    created = [future.result().user.username for future in futures if not future.exception()]
    assert sorted(created) == ["user0", "user1"]
    assert {read(future.exception()).reason for future in futures if future.exception()} == {"USERNAME_TAKEN"}


def test_a_repeat_among_them_gets_the_first_answer(fresh_serving: Serving) -> None:
    same = str(uuid.uuid4())
    requests = [
        pb.CreateUserRequest(user=pb.User(username="same"), request_id=same)
        if n % 4 == 0
        else pb.CreateUserRequest(user=pb.User(username=f"user{n}"), request_id=str(uuid.uuid4()))
        for n in range(CALLERS)
    ]
    answers = [future.result() for future in create_at_once(fresh_serving, requests)]
    assert len({answer.user.id for answer in answers[::4]}) == 1
    assert len({answer.user.id for answer in answers}) == 1 + CALLERS * 3 // 4
