"""The server as a whole: coming up, what is open to whom, staying up, going down."""

from __future__ import annotations

import gc
import threading
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from kronos.users.v1 import users_pb2 as pb

from kronos_db import fleet
from kronos_db import server as server_module
from kronos_db.config import Settings, SettingsError
from kronos_db.domains import ADOPTED, ERRORS, SERVICES
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.interceptors.authentication import hash_token, new_token
from kronos_db.runtime.interceptors.policy import PolicyError
from kronos_db.server import Server, StartError
from tests.parts import threads
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving, make_secrets
from tests.users.population import create, get, new

_SERVICE = "kronos.users.v1.UsersService"


def _health(channel: grpc.Channel, service: str = "") -> str:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _reflect(channel: grpc.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
    return {service.name for service in answer.list_services_response.service}


@pytest.fixture
def make(database: str, tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Make a server with settings of the test's own."""
    made: list[Serving] = []

    def start(**changes: Any) -> Serving:
        serving = Serving(tmp_path, database, **changes)
        serving.start()
        made.append(serving)
        return serving

    yield start
    for serving in made:
        serving.stop()


@pytest.mark.parametrize(
    ("setting", "health", "reflection"),
    [("none", False, False), ("health", True, False), ("health+reflection", True, True)],
)
def test_what_is_open_to_anybody(make: Callable[..., Serving], setting: str, health: bool, reflection: bool) -> None:
    serving = make(public_services=setting)

    if health:
        assert _health(serving.channel) == "SERVING"
    else:
        assert refused(lambda: _health(serving.channel)).reason == "CREDENTIAL_INVALID"
    if reflection:
        assert _SERVICE in _reflect(serving.channel)
    else:
        assert refused(lambda: _reflect(serving.channel)).reason == "CREDENTIAL_INVALID"
    # The domains are open to nobody, whatever the setting; and a caller who may is let in, whatever the setting.
    users = pb.GetUserRequest(id=str(uuid4()))
    stub = serving.channel.unary_unary(
        f"/{_SERVICE}/GetUser", pb.GetUserRequest.SerializeToString, pb.GetUserResponse.FromString
    )
    assert refused(lambda: stub(users, timeout=10)).reason == "CREDENTIAL_INVALID"
    operator = serving.channel_of("operator")
    assert _health(operator, _SERVICE) == "SERVING"
    assert _reflect(operator) == {*SERVICES.values(), *ADOPTED, "grpc.health.v1.Health"}
    if not health:
        assert refused(lambda: _health(serving.channel_of("reader"))).reason == "METHOD_NOT_ALLOWED"


def test_a_server_that_stopped_is_forgotten(fresh_serving: Serving) -> None:
    """What parks on threads that end would keep all that it knows."""
    create(fresh_serving.users())
    gone = weakref.ref(fresh_serving.server._workers)
    fresh_serving.restart()
    gc.collect()
    assert gone() is None


def test_a_hundred_idle_watchers_cost_no_thread_and_slow_nobody(serving: Serving) -> None:
    channel = serving.channel_of("operator")
    users = serving.users()
    create(users)
    stub = health_pb2_grpc.HealthStub(channel)
    first = stub.Watch(health_pb2.HealthCheckRequest())
    next(first)
    before = threads.held()

    watchers = [stub.Watch(health_pb2.HealthCheckRequest(service=_SERVICE)) for _ in range(100)]
    for watcher in watchers:
        assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING

    assert threads.held() < before + threads.FEW
    assert serving.server._overload.running()["grpc.health.v1"] == 101
    create(users)
    assert _health(channel) == "SERVING"
    for watcher in (first, *watchers):
        watcher.cancel()
    eventually(lambda: serving.server._overload.running()["grpc.health.v1"] == 0)
    eventually(lambda: _metric(serving, "grpc_server_handled_total", "Watch", 'grpc_code="CANCELLED"') >= 101)
    assert _metric(serving, "grpc_server_started_total", "Watch") == _metric(
        serving, "grpc_server_handled_total", "Watch"
    )


def test_watchers_that_leave_while_they_are_told_hold_nobody_up(fresh_serving: Serving) -> None:
    stub = health_pb2_grpc.HealthStub(fresh_serving.channel_of("operator"))
    request = health_pb2.HealthCheckRequest(service=_SERVICE)
    servicer = fresh_serving.server._health.servicer
    enough = threading.Event()

    def change() -> None:
        while not enough.is_set():
            servicer.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
            servicer.set(_SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    for _ in range(20):
        watchers = [stub.Watch(request, timeout=60) for _ in range(10)]
        for watcher in watchers:
            next(watcher)
        for watcher in watchers:
            watcher.cancel()
    enough.set()
    changing.join(60)
    assert not changing.is_alive()


def _metric(serving: Serving, name: str, method: str, label: str = "") -> float:
    with urllib.request.urlopen(f"http://{serving.server.ops_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [
        line for line in lines if line.startswith(name + "{") and f'grpc_method="{method}"' in line and label in line
    ]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def test_watchers_are_told_when_the_server_drains(fresh_serving: Serving) -> None:
    stub = health_pb2_grpc.HealthStub(fresh_serving.channel_of("operator"))
    watcher = stub.Watch(health_pb2.HealthCheckRequest(service=_SERVICE))
    assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING

    fresh_serving.server.readiness.drain()

    assert next(watcher).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watcher.cancel()


def test_idle_reflection_streams_leave_the_workers_to_other_calls(serving: Serving) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(serving.channel_of("operator"))
    end = threading.Event()

    def requests() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        end.wait(30)

    # Twice as many as there are workers; a caller of grpcurl holds one open for as long as it calls.
    streams = [stub.ServerReflectionInfo(requests()) for _ in range(8)]
    try:
        for stream in streams:
            next(stream)
        users = serving.users()
        created = users.CreateUser(pb.CreateUserRequest(user=new()), timeout=5).user
        assert users.GetUser(pb.GetUserRequest(id=created.id), timeout=5).user == created
    finally:
        end.set()
    for stream in streams:
        assert list(stream) == []


class TestReload:
    """SIGHUP: the access file is read again."""

    def _file(self, serving: Serving) -> Path:
        return Path(str(serving.settings.access_file))

    def test_a_new_caller_is_let_in_and_an_old_one_shut_out(self, fresh_serving: Serving) -> None:
        users = fresh_serving.users()
        user = create(users)
        fresh_serving.tokens["newcomer"] = new_token()
        hashed = hash_token(fresh_serving.tokens["newcomer"], fresh_serving.server._masters)
        self._file(fresh_serving).write_text(f'[callers.newcomer]\ntokens = ["{hashed}"]\nallow = ["*"]\n')

        fleet.reload(fresh_serving.server)

        assert get(fresh_serving.users("newcomer"), user.id) == user
        assert refused(lambda: get(users, user.id)).reason == "CREDENTIAL_INVALID"

    @pytest.mark.parametrize(
        "text",
        [
            "callers = [",
            '[callers.ann]\nallow = ["kronos.users.v1.UsersService/*"]',
            '[callers.ann]\nallow = ["*", "kronos.users.v1.UsersService/Fly"]',
            f'[callers.ann]\nallow = ["*"]\ntokens = ["hmac-sha256:mk-unknown:{"a" * 43}"]',
            None,
        ],
        ids=["not TOML", "forgotten methods", "names nothing", "unknown master key", "gone"],
    )
    def test_a_file_that_is_no_good_changes_nothing(self, fresh_serving: Serving, text: str | None) -> None:
        users = fresh_serving.users()
        user = create(users)
        if text is None:
            self._file(fresh_serving).unlink()
        else:
            self._file(fresh_serving).write_text(text)

        # As the signal handler calls it: it must not raise, for that would end the server.
        fleet.reload(fresh_serving.server)

        assert get(users, user.id) == user
        assert refused(lambda: fresh_serving.users("reader").ListUsers(pb.ListUsersRequest(page_size=-1))).fields


class TestStart:
    """What stops a start, and what it waits for."""

    def _settings(self, folder: Path, dsn: str, **changes: Any) -> Settings:
        values = {
            "grpc_listen": "127.0.0.1:0",
            "ops_listen": "127.0.0.1:0",
            "postgres_dsn": dsn,
            **make_secrets(folder, {}),
            **changes,
        }
        return Settings.model_validate({name: value for name, value in values.items() if value is not None})

    @pytest.mark.parametrize(
        ("missing", "sentence"),
        [("master_key_file", "KRONOS_DB_MASTER_KEY_FILE is required"), ("postgres_dsn", "KRONOS_DB_POSTGRES_DSN")],
    )
    def test_a_missing_setting_is_named(self, tmp_path: Path, database: str, missing: str, sentence: str) -> None:
        with pytest.raises(SettingsError, match=sentence):
            Server(self._settings(tmp_path, database, **{missing: None}))

    def test_an_access_file_that_is_no_good_stops_it(self, fresh_serving: Serving) -> None:
        Path(str(fresh_serving.settings.access_file)).write_text("")
        server = Server(fresh_serving.settings)

        try:
            with pytest.raises(PolicyError, match="no caller may call"):
                server.start(threading.Event())
        finally:
            server.stop()

    def test_an_address_that_is_taken_is_named(self, fresh_serving: Serving) -> None:
        taken = fresh_serving.server.grpc_address
        server = Server(fresh_serving.settings.model_copy(update={"grpc_listen": taken}))

        try:
            with pytest.raises(StartError, match=f"KRONOS_DB_GRPC_LISTEN: {taken}"):
                server.start(threading.Event())
        finally:
            server.stop()

    def test_half_of_tls_is_refused(self, fresh_serving: Serving, tmp_path: Path) -> None:
        (tmp_path / "key.pem").write_text("x")
        server = Server(fresh_serving.settings.model_copy(update={"tls_key_file": tmp_path / "key.pem"}))

        try:
            with pytest.raises(SettingsError, match="needed together"):
                server.start(threading.Event())
        finally:
            server.stop()

    def test_it_waits_for_migrations_and_says_so(self, tmp_path: Path, empty_database: str) -> None:
        settings = self._settings(tmp_path, empty_database)
        server = Server(settings)
        stopped = threading.Event()
        came_up: list[bool] = []
        starting = threading.Thread(target=lambda: came_up.append(server.start(stopped)))
        starting.start()
        try:
            eventually(lambda: server.ops_address.rpartition(":")[2] != "0")
            assert not _ready(server)
            stopped.set()
            starting.join(10)
            assert came_up == [False]
        finally:
            stopped.set()
            starting.join(10)
            server.stop()


def _ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"http://{server.ops_address}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def test_nothing_is_left_when_it_stops(database: str, tmp_path: Path) -> None:
    serving = Serving(tmp_path, database)
    before = {thread.ident for thread in threading.enumerate()}
    serving.start()
    users = serving.users()
    user = create(users)
    users.SetPassword(pb.SetPasswordRequest(id=user.id, password="correct horse"))
    assert _reflect(serving.channel_of("operator"))

    serving.stop()

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.ident not in before]

    eventually(lambda: not left(), why=left)


def test_running_calls_are_finished_before_it_stops(database: str, tmp_path: Path, postgres: EmbeddedPostgres) -> None:
    serving = Serving(tmp_path, database)
    serving.start()
    users = serving.users()
    user = create(users)
    with psycopg.connect(database) as blocker:
        # The write waits for this row.
        blocker.execute("SELECT 1 FROM users.users WHERE id = %s FOR UPDATE", [user.id])
        writing = users.SuspendUser.future(pb.SuspendUserRequest(id=user.id), timeout=20)
        eventually(lambda: serving.server._overload.running()["users"] == 1)
        stopping = threading.Thread(target=serving.server.stop)
        stopping.start()
        eventually(lambda: not _ready(serving.server))
        blocker.rollback()

        assert writing.result().user.state == pb.USER_STATE_SUSPENDED
    stopping.join(15)
    assert not stopping.is_alive()


def test_new_calls_are_served_until_it_was_seen_to_drain(
    fresh_serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, go, pauses = fresh_serving.server, threading.Event(), []
    server._settings = server._settings.model_copy(update={"drain_pause": 7.0})

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert go.wait(10)

    monkeypatch.setattr(server_module, "time", SimpleNamespace(sleep=pause))
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: pauses)

    assert not _ready(server)
    assert _health(fresh_serving.channel_of("operator")) == "NOT_SERVING"
    create(fresh_serving.users())

    go.set()
    stopping.join(15)
    assert not stopping.is_alive()
    assert pauses == [7.0]
    assert refused(lambda: create(fresh_serving.users())).code == "UNAVAILABLE"


class TestBadInput:
    """What no interceptor alone can show."""

    def test_five_megabytes(self, serving: Serving) -> None:
        user = new()
        user.attributes["x"] = "y" * 5_000_000

        found = refused(lambda: serving.users().CreateUser(pb.CreateUserRequest(user=user), timeout=20))

        assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
        assert found.metadata["limit"] == str(4 * 1024 * 1024)
        assert int(found.metadata["size"]) > 5_000_000
        assert refused(lambda: serving.users().GetUser(pb.GetUserRequest(username=user.username))).code == "NOT_FOUND"

    def test_beyond_what_grpc_takes(self, serving: Serving) -> None:
        user = new(display_name="y" * 17_000_000)

        assert refused(lambda: serving.users().CreateUser(pb.CreateUserRequest(user=user))).code == "RESOURCE_EXHAUSTED"

    def test_a_method_that_does_not_exist(self, serving: Serving) -> None:
        call = serving.channel_of("operator").unary_unary(f"/{_SERVICE}/Fly", lambda raw: raw, lambda raw: raw)

        assert refused(lambda: call(b"", timeout=10)).code == "UNIMPLEMENTED"

    def test_fields_that_the_contract_does_not_know_are_no_fault(self, serving: Serving) -> None:
        user = create(serving.users())
        raw = pb.GetUserRequest(id=user.id).SerializeToString() + b"\xfa\x7f\x03abc"
        call = serving.channel_of("operator").unary_unary(
            f"/{_SERVICE}/GetUser", lambda raw: raw, pb.GetUserResponse.FromString
        )

        assert call(raw, timeout=10).user == user

    def test_a_database_that_fails_says_nothing_of_itself(self, fresh_serving: Serving) -> None:
        users = fresh_serving.users()
        user = create(users)
        with psycopg.connect(fresh_serving.settings.postgres_dsn.get_secret_value()) as connection:  # type: ignore[union-attr]
            connection.execute("ALTER TABLE users.users RENAME COLUMN display_name TO renamed_by_the_test")

        found = refused(lambda: get(users, user.id))

        assert (found.code, found.reason, found.metadata) == ("INTERNAL", "INTERNAL", {})
        for word in (b"display_name", b"SELECT", b"column", b"psycopg", b"Traceback", b"users.users"):
            assert word not in found.everything


def test_the_table_of_errors_has_no_two_answers_for_one_exception() -> None:
    assert len(ERRORS.rows) >= 20
