"""Traces: where a caller stands, what is recorded of its call, and what of it stands in the log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kronos.messages.v1 import messages_pb2, messages_pb2_grpc
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1 import users_pb2_grpc

from kronos_db.config import environment_of
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime import tracing
from kronos_db.runtime.tracing import Place
from kronos_db.runtime.tracing_otlp import OtlpTracer
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet
from tests.parts.serving import Serving
from tests.parts.spans import Receiver, Span, attributes_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
LIMIT = 30.0


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture(scope="module")
def traced(
    postgres: EmbeddedPostgres,
    redis_server: EmbeddedRedis,
    receiver: Receiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Serving]:
    """A server that records; it keeps no copies in memory, and has one thread for reads: they come together."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE traced")
    changes = {"redis_url": redis_server.url, "cache_memory_bytes": 0, "worker_threads": 1}
    sending = {"traces": "otlp", "traces_endpoint": receiver.url, "traces_service_name": "traced"}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        running = Serving(tmp_path_factory.mktemp("traced"), postgres.dsn_for("traced"), **changes, **sending)
    running.start()
    yield running
    running.stop()


def context(trace_id: str, flags: str = "01", **more: str) -> list[tuple[str, str]]:
    """The headers of a caller in a trace."""
    return [(tracing.TRACEPARENT, f"00-{trace_id}-{SPAN}-{flags}"), *more.items()]


def new_trace() -> str:
    return uuid.uuid4().hex


def children(receiver: Receiver, parent: Any) -> list[Any]:
    return [span for span in receiver.of(parent.trace_id.hex()) if span.parent_span_id == parent.span_id]


@pytest.mark.parametrize(
    ("header", "place"),
    [
        (f"00-{TRACE}-{SPAN}-01", Place(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", Place(TRACE, SPAN, False)),
        (f"cc-{TRACE}-{SPAN}-03-what comes later", Place(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        (b"\xff", None),
        ("", None),
    ],
)
def test_a_callers_place_is_read_as_w3c_says(header: str | bytes, place: Place | None) -> None:
    assert tracing.read({tracing.TRACEPARENT: header}) == place


def test_a_call_is_a_span_below_its_callers(traced: Serving, receiver: Receiver) -> None:
    created = traced.users().CreateUser(pb.CreateUserRequest(user=pb.User(username=f"a-{new_trace()}")), timeout=LIMIT)
    trace_id = new_trace()
    headers = [*context(trace_id, tracestate="rojo=1,congo=t61"), ("x-request-id", "call-of-the-test")]
    traced.users().GetUser(pb.GetUserRequest(id=created.user.id), timeout=LIMIT, metadata=headers)
    root = receiver.root_of(trace_id)
    assert root.name == "kronos.users.v1.UsersService/GetUser"
    assert (root.parent_span_id.hex(), root.trace_state) == (SPAN, "rojo=1,congo=t61")
    attributes = attributes_of(root)
    assert attributes.pop("kronos.wait_ms") >= 0
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "kronos.users.v1.UsersService/GetUser",
        "rpc.response.status_code": "OK",
        "kronos.request_id": "call-of-the-test",
        "kronos.caller": "operator",
        "kronos.domain": "users",
    }
    parts = {span.name: span for span in children(receiver, root)}
    [statement] = [span for name, span in parts.items() if name.startswith("users:get_by_id")]
    assert statement.kind == Span.SPAN_KIND_CLIENT
    assert root.start_time_unix_nano <= statement.start_time_unix_nano <= statement.end_time_unix_nano
    assert attributes_of(statement) == {
        "db.system.name": "postgresql",
        "db.namespace": "users",
        "db.operation.name": statement.name.removeprefix("users:"),
        "db.query.summary": statement.name,
        "db.response.returned_rows": 1,
    }
    [resource] = receiver.resources()
    assert resource["service.name"] == "traced"


def test_what_is_asked_of_redis_is_a_span(traced: Serving, receiver: Receiver) -> None:
    trace_id = new_trace()
    traced.users().ListUsers(pb.ListUsersRequest(page_size=3), timeout=LIMIT, metadata=context(trace_id))
    parts = {span.name: span for span in children(receiver, receiver.root_of(trace_id))}
    assert attributes_of(parts["redis MGET"]) == {"db.system.name": "redis", "db.operation.name": "MGET"}


def test_a_call_by_http_is_below_its_callers_too(traced: Serving, receiver: Receiver) -> None:
    trace_id = new_trace()
    headers = {**dict(context(trace_id)), "Authorization": f"Bearer {traced.tokens['operator']}"}
    request = urllib.request.Request(f"http://{traced.server.ops_address}/db/status", headers=headers)
    with urllib.request.urlopen(request, timeout=LIMIT):
        root = receiver.root_of(trace_id)
    assert (root.name, root.parent_span_id.hex()) == ("kronos.admin.v1.AdminService/GetStatus", SPAN)


def test_health_checks_are_not_recorded(traced: Serving, receiver: Receiver) -> None:
    trace_id, after = new_trace(), new_trace()
    health = health_pb2_grpc.HealthStub(traced.channel_of("operator"))
    health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT, metadata=context(trace_id))
    traced.users().ListUsers(pb.ListUsersRequest(), timeout=LIMIT, metadata=context(after))
    receiver.root_of(after)
    assert receiver.of(trace_id) == []


def test_a_write_is_a_transaction_with_its_statements(traced: Serving, receiver: Receiver) -> None:
    trace_id, user = new_trace(), pb.User(username=f"w-{new_trace()}")
    headers = context(trace_id)
    created = traced.users().CreateUser(pb.CreateUserRequest(user=user), timeout=LIMIT, metadata=headers)
    root = receiver.root_of(trace_id)
    [transaction] = [span for span in children(receiver, root) if span.name == "users:transaction"]
    assert "users:create" in {span.name for span in children(receiver, transaction)}

    trace_id, password = new_trace(), "correct horse battery"
    request = pb.SetPasswordRequest(id=created.user.id, password=password)
    traced.users().SetPassword(request, timeout=LIMIT, metadata=context(trace_id))
    [hashing] = receiver.wait(lambda span: span.trace_id.hex() == trace_id and span.name == "argon2id hash")
    assert hashing.kind == Span.SPAN_KIND_INTERNAL


def test_an_answer_that_is_the_callers_fault_is_no_failure(traced: Serving, receiver: Receiver) -> None:
    trace_id = new_trace()
    with pytest.raises(grpc.RpcError):
        traced.users().GetUser(pb.GetUserRequest(id=str(uuid.uuid4())), timeout=LIMIT, metadata=context(trace_id, "03"))
    root = receiver.root_of(trace_id)
    assert attributes_of(root)["rpc.response.status_code"] == "NOT_FOUND"
    assert root.status.code == 0


def test_a_failure_of_the_server_is_marked(traced: Serving, receiver: Receiver) -> None:
    trace_id = new_trace()
    with psycopg.connect(traced.settings.postgres_dsn.get_secret_value(), autocommit=True) as connection:  # type: ignore[union-attr]
        connection.execute("ALTER TABLE users.users RENAME TO gone")
        try:
            with pytest.raises(grpc.RpcError):
                traced.users().GetUser(
                    pb.GetUserRequest(username="nobody-at-all"), timeout=LIMIT, metadata=context(trace_id)
                )
        finally:
            connection.execute("ALTER TABLE users.gone RENAME TO users")
    root = receiver.root_of(trace_id)
    assert (root.status.code, attributes_of(root)["error.type"]) == (2, "INTERNAL")
    [statement] = [span for span in children(receiver, root) if span.name.startswith("users:")]
    assert (statement.status.code, attributes_of(statement)["error.type"]) == (2, "42P01")
    assert not statement.status.message


def test_a_stream_is_one_span(traced: Serving, receiver: Receiver) -> None:
    trace_id = new_trace()
    stream: Any = traced.users().WatchUsers(pb.WatchUsersRequest(), timeout=LIMIT, metadata=context(trace_id))
    stream.initial_metadata()
    stream.cancel()
    root = receiver.root_of(trace_id)
    assert root.name.endswith("/WatchUsers")
    assert attributes_of(root)["rpc.response.status_code"] == "CANCELLED"


def test_what_is_done_for_several_calls_is_linked_with_each(traced: Serving, receiver: Receiver) -> None:
    users = [
        traced.users().CreateUser(pb.CreateUserRequest(user=pb.User(username=f"g-{new_trace()}")), timeout=LIMIT).user
        for _ in range(8)
    ]
    calls: dict[str, Any] = {}

    def read() -> None:
        for user in users * 8:
            trace_id = new_trace()
            request, headers = pb.GetUserRequest(username=user.username), context(trace_id)
            calls[trace_id] = traced.users().GetUser.future(request, timeout=LIMIT, metadata=headers)  # type: ignore[attr-defined]
        for call in list(calls.values()):
            call.result()

    def shared() -> list[Any]:
        found = receiver.wait(lambda span: span.name.startswith("users:get_by_username"))
        return [span for span in found if len(span.links) > 1]

    eventually(lambda: (read(), shared())[1], LIMIT * 2)
    statement = shared()[0]
    assert not statement.parent_span_id
    assert attributes_of(statement)["kronos.calls"] == len(statement.links)
    linked = {link.trace_id.hex() for link in statement.links}
    assert linked <= set(calls)
    for trace_id in linked:
        root = receiver.root_of(trace_id)
        assert statement.span_id in {link.span_id for link in root.links}


def test_writes_that_are_gathered_are_linked_too(traced: Serving, receiver: Receiver) -> None:
    messages = messages_pb2_grpc.MessagesServiceStub(traced.channel_of("operator"))
    messages.CreateQueue(messages_pb2.CreateQueueRequest(queue=messages_pb2.Queue(name="traced")), timeout=LIMIT)

    def write() -> None:
        def enqueue(_: int) -> None:
            request = messages_pb2.EnqueueMessagesRequest(queue="traced", messages=[messages_pb2.Message(payload=b"x")])
            messages.EnqueueMessages(request, timeout=LIMIT, metadata=context(new_trace()))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(enqueue, range(64)))

    def shared() -> list[Any]:
        found = receiver.wait(lambda span: span.name == "messages:transaction")
        return [span for span in found if len(span.links) > 1 and not span.parent_span_id]

    eventually(lambda: (write(), shared())[1], LIMIT * 2)


def test_no_sensitive_value_is_in_a_span(traced: Serving, receiver: Receiver) -> None:
    needle, trace_id = f"needle{new_trace()[:8]}", new_trace()
    users, headers = traced.users(), context(trace_id)
    user = pb.User(username=f"s-{needle}", email=f"{needle}@example.org", phone="+41446681800", display_name=needle)
    user.attributes.fields["key"].CopyFrom(struct_pb2.Value(string_value=needle))
    created = users.CreateUser(pb.CreateUserRequest(user=user), timeout=LIMIT, metadata=headers).user
    users.SetPassword(pb.SetPasswordRequest(id=created.id, password=needle), timeout=LIMIT, metadata=headers)
    users.VerifyPassword(pb.VerifyPasswordRequest(email=user.email, password=needle), timeout=LIMIT, metadata=headers)
    users.GetUser(pb.GetUserRequest(email=user.email), timeout=LIMIT, metadata=headers)
    for wrong in (pb.User(username=user.username), pb.User(username="!", email=f"{needle}@"), user):
        with pytest.raises(grpc.RpcError):
            users.CreateUser(pb.CreateUserRequest(user=wrong), timeout=LIMIT, metadata=headers)
    receiver.wait(lambda span: span.trace_id.hex() == trace_id and span.kind == Span.SPAN_KIND_SERVER, 7)
    sent = b"".join(request.SerializeToString() for request in receiver.requests).lower()
    for value in (needle, "446681800", traced.tokens["operator"], created.id):
        assert value.lower().encode() not in sent


def test_each_process_sends_what_it_has_before_it_ends(
    database: str, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that nothing is sent before the drain.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from the environment")
    fleet = Fleet(tmp_path, database, traces="otlp", traces_endpoint=receiver.url, log_level="info")
    output = tmp_path / "log"
    with output.open("w") as log:
        environment = {**os.environ, **environment_of(fleet.settings)}
        process = subprocess.Popen([sys.executable, "-m", "kronos_db"], env=environment, stdout=log)
        try:
            eventually(fleet.is_ready, 60)
            traces = _called_on_all(fleet)
        finally:
            process.terminate()
            process.wait(60)
    for trace_id in traces:
        assert receiver.root_of(trace_id).parent_span_id.hex() == SPAN
    ours = [each for each in receiver.resources() if each["service.name"] == "from the environment"]
    assert len(ours) == fleet.count
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    calls = {line["trace_id"]: line for line in lines if line["msg"] == "call" and "trace_id" in line}
    for trace_id in traces:
        assert calls[trace_id]["span_id"] == receiver.root_of(trace_id).span_id.hex()
        assert calls[trace_id]["request_id"]


def _called_on_all(fleet: Fleet) -> list[str]:
    """Call on so many new connections that every process serves some; return the traces."""
    traces = [new_trace() for _ in range(30)]
    for trace_id in traces:
        with grpc.insecure_channel(fleet.settings.grpc_listen, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            users = users_pb2_grpc.UsersServiceStub(channel)
            headers = [*fleet.bearer, *context(trace_id)]
            users.ListUsers(pb.ListUsersRequest(), timeout=LIMIT, metadata=headers, wait_for_ready=True)
    return traces


def test_a_receiver_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # For so long the SDK would wait for it.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = OtlpTracer("test", "0", f"http://127.0.0.1:{silent.getsockname()[1]}", None)
        trace = tracer.start("a.B/C", None)
        assert trace.span is not None
        trace.span.end()
        begun = time.monotonic()
        tracer.stop(0.2)
        assert time.monotonic() - begun < 25


def test_the_share_is_of_traces_that_begin_here(receiver: Receiver) -> None:
    tracer = OtlpTracer("test", "0", receiver.url, 0.0)
    assert tracer.start("a.B/C", None).span is None
    assert tracer.start("a.B/C", Place(TRACE, SPAN, False)).span is None
    followed = tracer.start("a.B/C", Place(TRACE, SPAN, True))
    assert followed.span is not None
    assert followed.trace_id == TRACE
    tracer.stop(LIMIT)


def test_opentelemetrys_own_variables_are_read(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    tracer = OtlpTracer(None, "0", None, None)
    assert tracer.start("a.B/C", None).span is None
    trace_id = new_trace()
    trace = tracer.start("a.B/C", Place(trace_id, SPAN, True))
    assert trace.span is not None
    trace.span.end()
    tracer.stop(LIMIT)
    receiver.root_of(trace_id)
    assert {"kronos-db", "test"} <= {
        value for each in receiver.resources() for name, value in each.items() if name != "service.version"
    }


def test_without_traces_nothing_of_opentelemetry_is_loaded_and_with_them_it_must_be_there() -> None:
    program = """
import sys
from kronos_db import server
from kronos_db.config import Settings, SettingsError
assert server._tracer(Settings()) is None
# redis-py takes metrics of the SDK in where they are installed; what records and sends is ours to load.
assert not {"kronos_db.runtime.tracing_otlp", "opentelemetry.sdk.trace", "opentelemetry.exporter"} & set(sys.modules)
sys.modules["opentelemetry.sdk"] = None
try:
    server._tracer(Settings(traces="otlp"))
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "KRONOS_DB_TRACES is otlp" in done.stdout
    assert "extra otel" in done.stdout


class _Call:
    def __init__(self, request_id: str, trace: tracing.Trace | None = None) -> None:
        self.request_id = request_id
        self.trace = trace


def test_log_lines_name_the_call_that_is_worked_for() -> None:
    assert tracing.names() == {}
    one, other = _Call("r1", tracing.Trace(TRACE, SPAN)), _Call("r2")
    for subjects, fields in (
        ([None], {}),
        ([other], {"request_id": "r2"}),
        ([one], {"request_id": "r1", "trace_id": TRACE, "span_id": SPAN}),
        ([other, one, None], {"request_id": "r2", "trace_id": TRACE, "span_id": SPAN, "calls": 2}),
    ):
        token = tracing.current.set(tracing.together(subjects))
        assert tracing.names() == fields
        tracing.current.reset(token)
