"""The service config: it names what the contract lets be repeated, and gRPC does as it says."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodOptions
from kronos.users.v1 import users_pb2 as pb

from kronos_db import client

ROOT = Path(__file__).parent.parent
SERVICE = "kronos.users.v1.UsersService"
SHIPPED = files("kronos").joinpath("service_config.json").read_text(encoding="utf-8")


@pytest.fixture
def service_config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    make: Callable[..., str] = importlib.import_module("service_config").service_config
    return make


def contract() -> list[FileDescriptorProto]:
    return list(FileDescriptorSet.FromString((ROOT / "generated" / "kronos.binpb").read_bytes()).file)


def named(config: str) -> list[list[str]]:
    """The methods of each group."""
    return [[name["method"] for name in group["name"]] for group in json.loads(config)["methodConfig"]]


def test_what_is_shipped_is_what_the_contract_says(service_config: Callable[..., str]) -> None:
    assert service_config(contract()) == SHIPPED


def test_what_the_contract_does_not_call_repeatable_is_left_out(service_config: Callable[..., str]) -> None:
    file = FileDescriptorProto(package="p")
    methods = file.service.add(name="S").method
    methods.add(name="Unsaid")
    methods.add(name="Read").options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    methods.add(name="Write").options.idempotency_level = MethodOptions.IDEMPOTENT
    methods.add(name="Watch", server_streaming=True).options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    config = service_config([file])
    assert named(config) == [["Read", "Write"], ["Watch"]]
    # A stream may last.
    assert ["timeout" in group for group in json.loads(config)["methodConfig"]] == [True, False]
    assert named(service_config([FileDescriptorProto(package="p")])) == []


def test_every_write_that_may_be_repeated_takes_a_request_id() -> None:
    messages = {f".{file.package}.{message.name}": message for file in contract() for message in file.message_type}
    writes = [
        method
        for file in contract()
        for service in file.service
        for method in service.method
        if method.options.idempotency_level == MethodOptions.IDEMPOTENT
    ]
    assert writes
    for method in writes:
        assert "request_id" in [field.name for field in messages[method.input_type].field], method.name


class Flaky:
    """A server that refuses calls with the codes it is given, then answers; it notes each call."""

    def __init__(self) -> None:
        self.refusals: list[grpc.StatusCode] = []
        self.calls: list[tuple[str, bytes]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append((details.method.rpartition("/")[2], request))
            if self.refusals:
                context.abort(self.refusals.pop(0), "refused")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    server = Flaky()
    yield server
    server.stop()


def call(address: str, method: str, request: bytes = b"") -> str:
    """The code that a call of the command line's client gets."""
    with client.connect(address) as channel:
        try:
            channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=20)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_what_is_unavailable_is_repeated(flaky: Flaky) -> None:
    flaky.refusals = [grpc.StatusCode.UNAVAILABLE] * 2
    assert call(flaky.address, "CreateUser", b"one body") == "OK"
    assert flaky.calls == [("CreateUser", b"one body")] * 3


def test_a_large_request_is_repeated_too(flaky: Flaky) -> None:
    flaky.refusals = [grpc.StatusCode.UNAVAILABLE]
    assert call(flaky.address, "CreateUser", bytes(3 << 20)) == "OK"
    assert len(flaky.calls) == 2


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED", "DEADLINE_EXCEEDED"])
def test_nothing_else_is_repeated(flaky: Flaky, code: str) -> None:
    flaky.refusals = [grpc.StatusCode[code]]
    assert call(flaky.address, "GetUser") == code
    assert len(flaky.calls) == 1


def test_a_method_that_is_not_named_is_not_repeated(flaky: Flaky) -> None:
    flaky.refusals = [grpc.StatusCode.UNAVAILABLE]
    assert call(flaky.address, "NeverHeardOf") == "UNAVAILABLE"
    assert len(flaky.calls) == 1


def test_the_command_lines_client_gives_writes_a_request_id() -> None:
    fresh, given = pb.CreateUserRequest(), pb.CreateUserRequest(request_id="6f1c2f5e-8f0e-4f57-9a43-0d3f1d1c7a10")
    first = client._repeatable(fresh)
    assert len(first.request_id) == 36  # type: ignore[attr-defined] # of that message
    assert client._repeatable(pb.CreateUserRequest()) != first
    assert client._repeatable(given) == pb.CreateUserRequest(request_id="6f1c2f5e-8f0e-4f57-9a43-0d3f1d1c7a10")
    assert client._repeatable(pb.GetUserRequest(username="ann")) == pb.GetUserRequest(username="ann")
