"""The Python client: a wheel on its own, what its channels add to calls, and how it reads what comes back."""

from __future__ import annotations

import importlib
import queue
import re
import subprocess
import sys
import tarfile
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from kronos.messages.v1 import messages_pb2
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from kronos_db import __version__
from tests.clients.conftest import PYTHON
from tests.clients.places import ROOT, PythonPlace, block_of_the_page, ran
from tests.clients.scripted import AnsweredError, Scripted, unavailable
from tests.clients.stories import STORIES, parted
from tests.parts.eventually import eventually
from tests.parts.serving import Serving
from tests.parts.watching import SOAK
from tests.runtime.interceptors.certificates import Authority

LIMIT = 30.0


def test_the_version_is_the_servers() -> None:
    assert tomllib.loads((PYTHON / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_the_wheel_holds_all_that_is_generated_and_shares_no_file_with_the_servers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        policy = archive.read("kronos_db_client/service_config.json")
    assert {name.partition("/")[0] for name in names} == {
        "kronos_db_client",
        f"kronos_db_client-{__version__}.dist-info",
    }
    generated = ROOT / "generated" / "kronos"
    for path in generated.rglob("*_pb2*.py*"):
        if path.parent.name != "__pycache__":
            assert f"kronos_db_client/{path.relative_to(generated)}" in names
    assert policy == (generated / "service_config.json").read_bytes()
    # The server's own: where pip would write the other's files.
    assert not any(name.startswith(("kronos/", "buf/", "kronos_db/")) for name in names)


def test_an_sdist_is_enough_to_build_the_wheel(wheel: Path, tmp_path: Path) -> None:
    ran([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], PYTHON)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [folder] = (path for path in tmp_path.iterdir() if path.is_dir())
    ran([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], folder)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


ALONE = """
import importlib.util, os
for name in ("kronos_db", "kronos", "buf", "psycopg", "protovalidate"):
    assert importlib.util.find_spec(name) is None, name
import grpc
from kronos_db_client import Refusal, connect, pages
from kronos_db_client.users.v1 import users_pb2 as pb
from kronos_db_client.users.v1.users_pb2_grpc import UsersServiceStub
import kronos_db_client.admin.v1.admin_pb2_grpc, kronos_db_client.cache.v1.cache_pb2_grpc
import kronos_db_client.logs.v1.logs_pb2_grpc, kronos_db_client.messages.v1.messages_pb2_grpc
import kronos_db_client.routes.v1.routes_pb2_grpc, kronos_db_client.tokens.v1.tokens_pb2_grpc

with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
    users = UsersServiceStub(channel)
    request = pb.CreateUserRequest(user=pb.User(username="alone-1", email="alone-1@example.org"))
    created = users.CreateUser(request).user
    assert not request.request_id
    users.CreateUser(pb.CreateUserRequest(user=pb.User(username="alone-2")))
    assert users.GetUser(pb.GetUserRequest(id=created.id)).user == created
    every = pages(users.ListUsers, pb.ListUsersRequest(username_prefix="alone-", page_size=1))
    assert [[user.username for user in page.users] for page in every] == [["alone-1"], ["alone-2"]]
    try:
        users.CreateUser(request)
    except grpc.RpcError as error:
        refusal = Refusal.of(error)
        print(refusal.code.name, refusal.reason, refusal.violations[0].field, bool(refusal.request_id))
"""


def test_it_calls_a_server_from_where_no_server_is_installed(serving: Serving, python_place: PythonPlace) -> None:
    settings = {"KRONOS_ADDRESS": serving.server.grpc_address, "KRONOS_TOKEN": serving.tokens["operator"]}
    said = python_place.run(ALONE, **settings)
    assert said == "ALREADY_EXISTS EMAIL_TAKEN user.email True\n"


TYPED = """
import grpc
from kronos_db_client import Refusal, Tls, connect, follow, pages, repeatable
from kronos_db_client.users.v1 import users_pb2 as pb
from kronos_db_client.users.v1.users_pb2_grpc import UsersServiceStub

def read(address: str) -> list[str]:
    with connect(address, token_file="token", tls=Tls("ca.pem"), deadline=2.5) as channel:
        users = UsersServiceStub(channel)
        request = repeatable(pb.CreateUserRequest(user=pb.User(username="ann")))
        reveal_type(users.CreateUser(request).user)
        for change in follow(users.WatchUsers, pb.WatchUsersRequest()):
            reveal_type(change)
        reveal_type(Refusal.of(grpc.RpcError()).retry_after)
        users.GetUser(pb.ListUsersRequest())
        return [user.username for page in pages(users.ListUsers, pb.ListUsersRequest()) for user in page.users]
"""


def test_it_is_typed(python_place: PythonPlace, tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "--python-executable"]
    done = subprocess.run(
        [*command, str(python_place.python), "--ignore-missing-imports", str(sample)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert revealed[0].endswith("users_pb2.User"), done.stdout
    assert revealed[1].endswith("users_pb2.WatchUsersResponse")
    assert revealed[2] in {"float | None", "Union[builtins.float, None]", "builtins.float | None"}
    [error] = re.findall(r":(\d+): error: (.*)", done.stdout)
    assert "ListUsersRequest" in error[1]


# All in one process: each of its own would spend most of its time on starting.
ALL = """
import runpy
from pathlib import Path
for example in sorted(Path(FOLDER).glob("*.py")):
    print("==", example.stem, flush=True)
    runpy.run_path(str(example), run_name="__main__")
"""


def test_the_program_of_the_page_runs(serving: Serving, python_place: PythonPlace, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(serving.tokens["operator"])
    said = python_place.run(block_of_the_page("python", serving.server.grpc_address, token))
    assert "ann" in said


@pytest.fixture(scope="module")
def stories(serving: Serving, python_place: PythonPlace) -> dict[str, str]:
    """What each example prints."""
    settings = {"KRONOS_ADDRESS": serving.server.grpc_address, "KRONOS_TOKEN": serving.tokens["operator"]}
    return parted(python_place.run(ALL.replace("FOLDER", repr(str(ROOT / "examples" / "python"))), **settings))


@pytest.mark.parametrize("domain", STORIES)
def test_the_example_tells_its_story(stories: dict[str, str], domain: str) -> None:
    assert re.fullmatch(STORIES[domain], stories[domain]), stories[domain]


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
    # A timeout is rounded up on its way.
    assert 0 < first.left < 9
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


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_quiet_stream_lives_with_the_pings_of_both_sides(client: Any, serving: Serving) -> None:
    """A consumer without messages is told nothing for as long as it waits."""
    with client.connect(serving.server.grpc_address, token=serving.tokens["operator"]) as channel:
        messages = MessagesServiceStub(channel)
        messages.CreateQueue(messages_pb2.CreateQueueRequest(queue=messages_pb2.Queue(name="quiet")))
        says: queue.SimpleQueue[Any] = queue.SimpleQueue()
        says.put(messages_pb2.ConsumeMessagesRequest(queue="quiet", credit_messages=1, credit_bytes=1024))
        stream: Any = messages.ConsumeMessages(iter(says.get, None))
        over = threading.Event()
        stream.add_callback(over.set)
        # In its long form, more pings than a server takes that was not told of them.
        assert not over.wait(170 if SOAK else 0.1), stream.details()
        stream.cancel()
        says.put(None)


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
