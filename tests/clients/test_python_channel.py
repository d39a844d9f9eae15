"""What a channel of the Python client adds to calls, how it repeats them, and how it reads what comes back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.clients.places import PythonPlace
from tests.clients.scripted import AnsweredError, Scripted, unavailable
from tests.parts.eventually import eventually
from tests.runtime.interceptors.certificates import Authority

LIMIT = 30.0


@pytest.fixture(scope="module")
def client(python_place: PythonPlace) -> Iterator[Any]:
    """The package as it is installed, in one process with the server's own stubs."""
    sys.path.append(str(python_place.packages))
    yield importlib.import_module("kronos_db_client")
    sys.path.remove(str(python_place.packages))
    for name in [name for name in sys.modules if name.startswith("kronos_db_client")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def _server() -> Iterator[tuple[Scripted, str]]:
    server = Scripted()
    yield server, server.start()
    server.stop()


@pytest.fixture
def server(_server: tuple[Scripted, str]) -> Scripted:
    scripted, _ = _server
    scripted.script.clear()
    scripted.seen.clear()
    return scripted


@pytest.fixture
def address(_server: tuple[Scripted, str]) -> str:
    return _server[1]


def test_both_packages_stubs_may_be_in_one_process(client: Any) -> None:
    theirs = importlib.import_module("kronos_db_client.users.v1.users_pb2")
    assert theirs.__file__ != pb.__file__
    assert theirs.User(username="ann") == pb.User(username="ann")


def test_a_token_file_is_read_again(
    client: Any, server: Scripted, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["kronos_db_client.credentials"], "_LOOK", 0.0)
    token = tmp_path / "token"
    token.write_text("first\n")
    with client.connect(address, token_file=token) as channel:
        users = UsersServiceStub(channel)

        def sent() -> str | bytes:
            users.GetUser(pb.GetUserRequest(id="x"), timeout=LIMIT)
            return server.seen[-1].headers["authorization"]

        assert sent() == "Bearer first"
        (tmp_path / "new").write_text("second\n")
        (tmp_path / "new").rename(token)
        eventually(lambda: sent() == "Bearer second")
        token.unlink()
        assert sent() == "Bearer second"
    with pytest.raises(FileNotFoundError):
        client.connect(address, token_file=token)


def test_a_unary_call_has_a_deadline_and_what_it_brings_counts(client: Any, server: Scripted, address: str) -> None:
    with client.connect(address, token="ours", deadline=7.0) as channel:
        users = UsersServiceStub(channel)
        users.GetUser(pb.GetUserRequest(id="x"))
        users.GetUser(pb.GetUserRequest(id="x"), timeout=100, metadata=[("authorization", "Bearer theirs")])
        list(users.WatchUsers(pb.WatchUsersRequest()))
    first, second, stream = server.seen
    assert 0 < first.left <= 7.0
    assert 10 < second.left < 110
    assert stream.left > 3600
    assert [each.headers["authorization"] for each in server.seen] == ["Bearer ours", "Bearer theirs", "Bearer ours"]


def test_a_write_that_grpc_repeats_keeps_its_request_id(client: Any, server: Scripted, address: str) -> None:
    server.script += [unavailable, unavailable]
    request = pb.CreateUserRequest(user=pb.User(username="ann"))
    with client.connect(address) as channel:
        users = UsersServiceStub(channel)
        users.CreateUser(request, timeout=LIMIT)
        users.CreateUser(request, timeout=LIMIT)
        users.CreateUser(client.repeatable(request), timeout=LIMIT)
    ids = [call.request.request_id for call in server.seen]
    assert len(ids) == 5
    assert all(ids)
    # Three attempts of one write, and two other writes.
    assert len(set(ids[:3])) == 1
    assert len(set(ids)) == 3
    assert not request.request_id
    kept = client.repeatable(request)
    assert client.repeatable(kept) is kept


def test_a_refusal_says_why_and_when_to_come_back(client: Any, server: Scripted, address: str) -> None:
    server.script.append(lambda: AnsweredError(code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED", retry_seconds=3))
    with client.connect(address) as channel, pytest.raises(grpc.RpcError) as caught:
        UsersServiceStub(channel).GetUser(pb.GetUserRequest(id="x"), timeout=LIMIT)
    refusal = client.Refusal.of(caught.value)
    assert (refusal.code, refusal.reason, refusal.message) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        "OVERLOADED.",
    )
    assert (refusal.metadata, refusal.retry_after, refusal.violations) == ({"key": "value"}, 3.0, ())
    # Not repeated: that would add to the overload.
    assert len(server.seen) == 1


def test_a_failure_without_details_is_read_too(client: Any) -> None:
    with client.connect("127.0.0.1:1", deadline=0.2) as channel, pytest.raises(grpc.RpcError) as caught:
        UsersServiceStub(channel).GetUser(pb.GetUserRequest(id="x"))
    refusal = client.Refusal.of(caught.value)
    assert refusal.code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
    assert (refusal.reason, refusal.retry_after) == ("", None)


def test_a_stream_goes_on_where_it_ended(client: Any, server: Scripted, address: str) -> None:
    first, second = (pb.WatchUsersResponse(resume_token=name) for name in ("t1", "t2"))
    slow = AnsweredError(code_pb2.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")
    lost = AnsweredError(code_pb2.OUT_OF_RANGE, "POSITION_LOST")
    server.script += [lambda: [first, unavailable()], lambda: [slow], lambda: [second, unavailable()], lambda: [lost]]
    with client.connect(address) as channel:
        changes = client.follow(UsersServiceStub(channel).WatchUsers, pb.WatchUsersRequest(resume_token="t0"))
        assert [next(changes).resume_token for _ in range(2)] == ["t1", "t2"]
        with pytest.raises(grpc.RpcError) as caught:
            next(changes)
    assert client.Refusal.of(caught.value).reason == "POSITION_LOST"
    assert [call.request.resume_token for call in server.seen] == ["t0", "t1", "t1", "t2"]


def test_who_stops_to_follow_ends_the_stream(client: Any, server: Scripted, address: str) -> None:
    ended: list[bool] = []

    def endless() -> Iterator[Any]:
        try:
            while True:
                yield pb.WatchUsersResponse(resume_token="t")
        finally:
            ended.append(True)

    server.script.append(endless)
    with client.connect(address) as channel:
        changes = client.follow(UsersServiceStub(channel).WatchUsers, pb.WatchUsersRequest())
        next(changes)
        changes.close()
        eventually(lambda: ended, LIMIT)


def test_both_sides_show_certificates(client: Any, tmp_path: Path) -> None:
    authority = Authority()
    pair, own = authority.server(), authority.client("spiffe://kronos/tests")
    for name, content in {"ca": authority.certificate, "cert": own.certificate, "key": own.key}.items():
        (tmp_path / name).write_bytes(content)
    server = Scripted()
    credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)], authority.certificate, True)
    address = server.start(credentials)
    try:
        tls = client.Tls(tmp_path / "ca", tmp_path / "cert", tmp_path / "key")
        with client.connect(address, tls=tls, token="with TLS too") as channel:
            UsersServiceStub(channel).GetUser(pb.GetUserRequest(id="x"), timeout=LIMIT)
        with client.connect(address, tls=client.Tls(tmp_path / "ca")) as channel, pytest.raises(grpc.RpcError):
            UsersServiceStub(channel).GetUser(pb.GetUserRequest(id="x"), timeout=0.5)
    finally:
        server.stop()
    assert [call.headers["authorization"] for call in server.seen] == ["Bearer with TLS too"]
